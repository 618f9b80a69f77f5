//! How the plans of `knarr_model::plan` are written. The order of the fields here is the protocol: new ones go to the
//! end, old ones stay.

use knarr_model::plan::{
    Capabilities, CgroupPlan, ContainerPlan, DevicePlan, ExecPlan, Exit, FdIndex, MountKind, MountPlan, Namespace,
    PodPlan, ProcessPlan, Rlimit, StartFailure, StdioPlan,
};
use knarr_model::{IdMap, UserNamespace};

use super::codec::{Blob, Malformed, NamedBlobs, Reader, Wire, Writer, wire_struct};

wire_struct!(PodPlan {
    id,
    base_mount_ns,
    run_dir,
    new_net,
    new_ipc,
    new_uts,
    shared_pid,
    hostname,
    sysctls,
    shm_size,
    files via NamedBlobs,
    shim_oom_score_adj,
    user,
});

wire_struct!(ContainerPlan {
    id,
    pid_ns,
    net_ns,
    ipc_ns,
    uts_ns,
    new_cgroup_ns,
    rootfs,
    read_only_rootfs,
    mounts,
    devices,
    links,
    masked_paths,
    readonly_paths,
    cgroup,
    process,
    stdio,
    user_ns,
});

wire_struct!(IdMap { host, container, length });
wire_struct!(UserNamespace { uids, gids });
wire_struct!(MountPlan { target, kind, flags });
wire_struct!(DevicePlan { path, kind, major, minor, mode, uid, gid });
wire_struct!(CgroupPlan { into, v1_tasks });

wire_struct!(ProcessPlan {
    args,
    env,
    cwd,
    create_cwd,
    uid,
    gid,
    groups,
    umask,
    no_new_privs,
    capabilities,
    rlimits,
    seccomp via Blob,
    apparmor,
    selinux,
    oom_score_adj,
    terminal,
    console_size,
});

wire_struct!(Capabilities { bounding, effective, permitted, ambient });
wire_struct!(Rlimit { resource, soft, hard });
wire_struct!(StdioPlan { log_path, stdin, stdin_once });
wire_struct!(ExecPlan { id, container, cgroup, process, stdin, stdout, stderr });
wire_struct!(Exit { code, signal, finished_at });
wire_struct!(StartFailure { step, errno, about });

impl Wire for FdIndex {
    fn put(&self, out: &mut Writer) {
        self.0.put(out);
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self(u32::take(input)?))
    }
}

impl Wire for Namespace {
    fn put(&self, out: &mut Writer) {
        match self {
            Self::Host => out.variant(0, |_| ()),
            Self::Pod => out.variant(1, |_| ()),
            Self::Own => out.variant(2, |_| ()),
            Self::Of(container) => out.variant(3, |out| container.put(out)),
        }
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (tag, mut fields) = input.variant()?;
        match tag {
            0 => Ok(Self::Host),
            1 => Ok(Self::Pod),
            2 => Ok(Self::Own),
            3 => Ok(Self::Of(fields.field()?)),
            tag => Err(Malformed::Variant(tag)),
        }
    }
    fn absent() -> Result<Self, Malformed> {
        Ok(Self::default())
    }
}

impl Wire for MountKind {
    fn put(&self, out: &mut Writer) {
        match self {
            Self::Bind { source, propagation, recursive_flags, id_mapped } => out.variant(0, |out| {
                source.put(out);
                propagation.put(out);
                recursive_flags.put(out);
                id_mapped.put(out);
            }),
            Self::New { fstype, options } => out.variant(1, |out| {
                fstype.put(out);
                options.put(out);
            }),
            Self::PodFile(name) => out.variant(2, |out| name.put(out)),
            Self::PodShm => out.variant(3, |_| ()),
            Self::Detached(mount) => out.variant(4, |out| mount.put(out)),
            Self::Cgroup { v1 } => out.variant(5, |out| v1.put(out)),
        }
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (tag, mut fields) = input.variant()?;
        match tag {
            0 => Ok(Self::Bind {
                source: fields.field()?,
                propagation: fields.field()?,
                recursive_flags: fields.field()?,
                id_mapped: fields.field()?,
            }),
            1 => Ok(Self::New { fstype: fields.field()?, options: fields.field()? }),
            2 => Ok(Self::PodFile(fields.field()?)),
            3 => Ok(Self::PodShm),
            4 => Ok(Self::Detached(fields.field()?)),
            5 => Ok(Self::Cgroup { v1: fields.field()? }),
            tag => Err(Malformed::Variant(tag)),
        }
    }
}
