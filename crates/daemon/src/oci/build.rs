//! A container as a value of the OCI runtime specification.
//!
//! The types of the `oci-spec` crate have defaults of their own (capabilities, limits, namespaces, masked paths), so
//! every field is set here, to nothing if nothing is meant.

use super::{Inputs, capability, devices, label, mounts, process};
use knarr_model::resources::Resources;
use knarr_model::spec::PidNamespace;
use knarr_model::{Error, IdMap};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Linux, LinuxCpuBuilder, LinuxHugepageLimit, LinuxHugepageLimitBuilder, LinuxIdMapping, LinuxIdMappingBuilder,
    LinuxMemoryBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder, LinuxSeccomp, Root, Spec,
};
use std::collections::HashMap;

/// The version of the specification that is spoken.
const OCI_VERSION: &str = "1.2.0";

/// Builds the specification. It is an error when nothing says what to run, when a Localhost profile is asked for on a
/// host that cannot have one, and when a profile is wrong.
pub fn build(inputs: &Inputs<'_>) -> Result<Spec, Error> {
    let security = &inputs.container.security;
    let capabilities = capability::sets(security, inputs.host.default_capabilities, inputs.host.capabilities);
    let mut root = Root::default();
    root.set_path("rootfs".into()).set_readonly(Some(security.read_only_rootfs));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_process(Some(process::process(inputs, capabilities)?))
        .set_root(Some(root))
        .set_hostname(owns_uts(inputs).then(|| inputs.hostname().to_owned()))
        .set_mounts(Some(mounts::mounts(inputs)?))
        .set_annotations(Some(annotations(inputs)))
        .set_linux(Some(linux(inputs, capabilities.bounding)?));
    Ok(spec)
}

/// What went wrong in a builder of `oci-spec`: none of ours leaves out a required field.
pub(super) fn bug(error: OciSpecError) -> Error {
    Error::internal(format!("build the OCI specification: {error}"))
}

/// The UTS namespace goes with the network: a pod on the host's network has the host's name.
fn owns_uts(inputs: &Inputs<'_>) -> bool {
    !inputs.pod.namespaces.host_network
}

fn linux(inputs: &Inputs<'_>, bounding: u64) -> Result<Linux, Error> {
    let security = &inputs.container.security;
    let user = inputs.pod.namespaces.user;
    let unmasked = |paths: &[String]| if security.privileged { Vec::new() } else { paths.to_vec() };
    let mut linux = Linux::default();
    linux
        .set_resources(Some(resources(inputs)?))
        .set_cgroups_path(Some(inputs.cgroups_path.into()))
        .set_namespaces(Some(namespaces(inputs)?))
        .set_uid_mappings(user.map(|user| id_mappings(&user.uids)).transpose()?)
        .set_gid_mappings(user.map(|user| id_mappings(&user.gids)).transpose()?)
        .set_devices(Some(devices::nodes(inputs.devices)?))
        .set_seccomp(seccomp(inputs, bounding)?)
        .set_rootfs_propagation(mounts::rootfs_propagation(&inputs.container.mounts).map(str::to_owned))
        .set_masked_paths(Some(unmasked(&security.masked_paths)))
        .set_readonly_paths(Some(unmasked(&security.readonly_paths)))
        .set_mount_label(label::mount(inputs));
    Ok(linux)
}

/// Profiles on a kernel without filters: what the user named must work, what is only the default may be missing.
fn seccomp(inputs: &Inputs<'_>, bounding: u64) -> Result<Option<LinuxSeccomp>, Error> {
    use knarr_model::spec::Profile;
    match (inputs.seccomp, inputs.host.seccomp) {
        (None, _) => Ok(None),
        (Some(profile), true) => profile.resolve(bounding, inputs.host.kernel).map(Some),
        (Some(_), false) => match &inputs.container.security.seccomp {
            Profile::Localhost(path) => {
                Err(Error::invalid("seccomp profile", format!("{path}: this kernel has no seccomp filters")))
            }
            Profile::RuntimeDefault | Profile::Unconfined => Ok(None),
        },
    }
}

/// A namespace with a path is the pod's or another container's, one without is new, and one that is not in the list
/// is the host's.
fn namespaces(inputs: &Inputs<'_>) -> Result<Vec<LinuxNamespace>, Error> {
    let security = &inputs.container.security;
    let dir = inputs.pod_dir;
    let mut all = vec![namespace(LinuxNamespaceType::Mount, None)?];
    match &security.pid {
        PidNamespace::Host => {}
        PidNamespace::Own => all.push(namespace(LinuxNamespaceType::Pid, None)?),
        PidNamespace::Pod => all.push(namespace(LinuxNamespaceType::Pid, Some(dir.namespace("pid")))?),
        PidNamespace::Target(id) => {
            all.push(namespace(LinuxNamespaceType::Pid, Some(dir.pid_namespace_of(id)))?);
        }
    }
    if !security.host_network {
        all.push(namespace(LinuxNamespaceType::Network, Some(dir.namespace("net")))?);
    }
    if owns_uts(inputs) {
        all.push(namespace(LinuxNamespaceType::Uts, Some(dir.namespace("uts")))?);
    }
    if !security.host_ipc {
        all.push(namespace(LinuxNamespaceType::Ipc, Some(dir.namespace("ipc")))?);
    }
    if inputs.pod.namespaces.user.is_some() {
        all.push(namespace(LinuxNamespaceType::User, Some(dir.namespace("user")))?);
    }
    // Version 1 shows each hierarchy by a mount of its own, and a privileged container is to see the host's cgroups.
    if inputs.host.cgroup_v2 && !security.privileged {
        all.push(namespace(LinuxNamespaceType::Cgroup, None)?);
    }
    Ok(all)
}

/// One range, as the specification has it.
pub(super) fn id_mappings(map: &IdMap) -> Result<Vec<LinuxIdMapping>, Error> {
    let mapping = LinuxIdMappingBuilder::default().host_id(map.host).container_id(map.container).size(map.length);
    Ok(vec![mapping.build().map_err(bug)?])
}

fn namespace(kind: LinuxNamespaceType, path: Option<String>) -> Result<LinuxNamespace, Error> {
    let builder = LinuxNamespaceBuilder::default().typ(kind);
    match path {
        Some(path) => builder.path(path).build().map_err(bug),
        None => builder.build().map_err(bug),
    }
}

fn resources(inputs: &Inputs<'_>) -> Result<LinuxResources, Error> {
    let wanted = &inputs.container.resources;
    let mut builder = LinuxResourcesBuilder::default()
        .devices(devices::rules(inputs.devices, inputs.all_devices)?)
        .hugepage_limits(hugepages(wanted)?)
        .unified(wanted.unified.iter().map(|(file, value)| (file.clone(), value.clone())).collect::<HashMap<_, _>>());
    let mut memory = LinuxMemoryBuilder::default();
    if let Some(limit) = wanted.memory_limit {
        memory = memory.limit(limit);
    }
    // Without a word about swap there is none: the sum of memory and swap is limited to what memory is.
    if let Some(limit) = wanted.memory_swap_limit.or(wanted.memory_limit) {
        memory = memory.swap(limit);
    }
    builder = builder.memory(memory.build().map_err(bug)?);
    let mut cpu = LinuxCpuBuilder::default();
    if let Some(shares) = wanted.cpu_shares {
        cpu = cpu.shares(shares);
    }
    if let Some(quota) = wanted.cpu_quota {
        cpu = cpu.quota(quota);
    }
    if let Some(period) = wanted.cpu_period {
        cpu = cpu.period(period);
    }
    if let Some(cpus) = &wanted.cpuset_cpus {
        cpu = cpu.cpus(cpus.clone());
    }
    if let Some(mems) = &wanted.cpuset_mems {
        cpu = cpu.mems(mems.clone());
    }
    builder = builder.cpu(cpu.build().map_err(bug)?);
    if let Some(limit) = wanted.pids_limit {
        builder = builder.pids(LinuxPidsBuilder::default().limit(limit).build().map_err(bug)?);
    }
    builder.build().map_err(bug)
}

fn hugepages(wanted: &Resources) -> Result<Vec<LinuxHugepageLimit>, Error> {
    let limit = |(size, limit): (&String, &u64)| {
        let bytes = i64::try_from(*limit).unwrap_or(i64::MAX);
        LinuxHugepageLimitBuilder::default().page_size(size.clone()).limit(bytes).build().map_err(bug)
    };
    wanted.hugepage_limits.iter().map(limit).collect()
}

/// Foreign runtimes (Kata, gVisor) look at these names. Annotations of pods are never among them: some runtimes take
/// instructions from annotations that a user must not give.
fn annotations(inputs: &Inputs<'_>) -> HashMap<String, String> {
    let (pod, container) = (inputs.pod, inputs.container);
    [
        ("container-type", "container"),
        ("sandbox-id", inputs.pod_id.as_str()),
        ("sandbox-name", &pod.name),
        ("sandbox-namespace", &pod.namespace),
        ("sandbox-uid", &pod.uid),
        ("container-name", &container.name),
        ("image-name", &container.image),
    ]
    .into_iter()
    .map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value.to_owned()))
    .collect()
}
