//! Every message comes back as it was; no bytes make the reader panic; older and newer sides understand each other.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use knarr_model::plan::{
    Capabilities, CgroupPlan, DevicePlan, FdIndex, MountKind, MountPlan, Namespace, ProcessPlan, Rlimit, StdioPlan,
};
use knarr_model::{IdMap, UserNamespace};

use super::*;
use crate::shim::codec::{decode, encode};

fn container_id() -> impl Strategy<Value = ContainerId> {
    any::<[u8; 32]>().prop_map(|bytes| ContainerId::from_bytes(&bytes))
}

fn pod_id() -> impl Strategy<Value = PodId> {
    any::<[u8; 32]>().prop_map(|bytes| PodId::from_bytes(&bytes))
}

fn string() -> impl Strategy<Value = Vec<u8>> {
    vec(1_u8..=255, 0..12)
}

fn strings() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(string(), 0..4)
}

fn pairs() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    vec((string(), string()), 0..3)
}

fn fd() -> impl Strategy<Value = FdIndex> {
    any::<u32>().prop_map(FdIndex)
}

fn exit() -> impl Strategy<Value = Exit> {
    (any::<i32>(), any::<Option<u8>>(), any::<i64>()).prop_map(|(code, signal, finished_at)| Exit {
        code,
        signal,
        finished_at,
    })
}

fn id_map() -> impl Strategy<Value = IdMap> {
    any::<[u32; 3]>().prop_map(|[host, container, length]| IdMap { host, container, length })
}

fn pod_plan() -> impl Strategy<Value = PodPlan> {
    let user = option::of((id_map(), id_map()).prop_map(|(uids, gids)| UserNamespace { uids, gids }));
    let flags = (any::<[bool; 4]>(), user);
    let files = vec((string(), vec(any::<u8>(), 0..40)), 0..3);
    (pod_id(), fd(), fd(), flags, string(), pairs(), any::<u64>(), files, any::<i32>()).prop_map(
        |(id, base_mount_ns, run_dir, flags, hostname, sysctls, shm_size, files, shim_oom_score_adj)| PodPlan {
            id,
            base_mount_ns,
            run_dir,
            new_net: flags.0[0],
            new_ipc: flags.0[1],
            new_uts: flags.0[2],
            shared_pid: flags.0[3],
            hostname,
            sysctls,
            shm_size,
            files,
            shim_oom_score_adj,
            user: flags.1,
        },
    )
}

fn namespace() -> impl Strategy<Value = Namespace> {
    prop_oneof![
        Just(Namespace::Host),
        Just(Namespace::Pod),
        Just(Namespace::Own),
        container_id().prop_map(Namespace::Of),
    ]
}

fn mount() -> impl Strategy<Value = MountPlan> {
    let kind = prop_oneof![
        (string(), any::<u64>(), any::<[bool; 2]>()).prop_map(|(source, propagation, [recursive_flags, id_mapped])| {
            MountKind::Bind { source, propagation, recursive_flags, id_mapped }
        }),
        (string(), string()).prop_map(|(fstype, options)| MountKind::New { fstype, options }),
        string().prop_map(MountKind::PodFile),
        Just(MountKind::PodShm),
        fd().prop_map(MountKind::Detached),
        pairs().prop_map(|v1| MountKind::Cgroup { v1 }),
    ];
    (string(), kind, any::<u64>()).prop_map(|(target, kind, flags)| MountPlan { target, kind, flags })
}

fn device() -> impl Strategy<Value = DevicePlan> {
    (string(), any::<u8>(), any::<[u32; 5]>()).prop_map(|(path, kind, n)| DevicePlan {
        path,
        kind,
        major: n[0],
        minor: n[1],
        mode: n[2],
        uid: n[3],
        gid: n[4],
    })
}

fn cgroup() -> impl Strategy<Value = CgroupPlan> {
    (fd(), vec(fd(), 0..3)).prop_map(|(into, v1_tasks)| CgroupPlan { into, v1_tasks })
}

fn process() -> impl Strategy<Value = ProcessPlan> {
    let rlimit = any::<(u32, u64, u64)>().prop_map(|(resource, soft, hard)| Rlimit { resource, soft, hard });
    let texts = (strings(), strings(), string(), string(), string());
    let ids = any::<(u32, u32, u32)>();
    let rest = any::<(bool, bool, bool, [u64; 4], Option<i32>, (u16, u16))>();
    (texts, ids, vec(any::<u32>(), 0..4), vec(rlimit, 0..3), vec(any::<u8>(), 0..40), rest).prop_map(
        |((args, env, cwd, apparmor, selinux), (uid, gid, umask), groups, rlimits, seccomp, rest)| ProcessPlan {
            args,
            env,
            cwd,
            create_cwd: rest.0,
            uid,
            gid,
            groups,
            umask,
            no_new_privs: rest.1,
            capabilities: Capabilities {
                bounding: rest.3[0],
                effective: rest.3[1],
                permitted: rest.3[2],
                ambient: rest.3[3],
            },
            rlimits,
            seccomp,
            apparmor,
            selinux,
            oom_score_adj: rest.4,
            terminal: rest.2,
            console_size: rest.5,
        },
    )
}

fn container_plan() -> impl Strategy<Value = ContainerPlan> {
    let namespaces = (namespace(), namespace(), namespace(), namespace(), namespace());
    let stdio = (string(), any::<bool>(), any::<bool>()).prop_map(|(log_path, stdin, stdin_once)| StdioPlan {
        log_path,
        stdin,
        stdin_once,
    });
    let root = (fd(), any::<bool>(), any::<bool>(), vec(mount(), 0..4), vec(device(), 0..3), pairs());
    (container_id(), namespaces, root, strings(), strings(), cgroup(), process(), stdio).prop_map(
        |(id, namespaces, root, masked_paths, readonly_paths, cgroup, process, stdio)| ContainerPlan {
            id,
            pid_ns: namespaces.0,
            net_ns: namespaces.1,
            ipc_ns: namespaces.2,
            uts_ns: namespaces.3,
            rootfs: root.0,
            new_cgroup_ns: root.1,
            read_only_rootfs: root.2,
            mounts: root.3,
            devices: root.4,
            links: root.5,
            masked_paths,
            readonly_paths,
            cgroup,
            process,
            stdio,
            user_ns: namespaces.4,
        },
    )
}

fn exec_plan() -> impl Strategy<Value = ExecPlan> {
    (any::<u64>(), container_id(), cgroup(), process(), option::of(fd()), option::of(fd()), option::of(fd())).prop_map(
        |(id, container, cgroup, process, stdin, stdout, stderr)| ExecPlan {
            id: ExecId(id),
            container,
            cgroup,
            process,
            stdin,
            stdout,
            stderr,
        },
    )
}

fn attach_plan() -> impl Strategy<Value = AttachPlan> {
    (any::<u64>(), container_id(), any::<bool>(), option::of(fd()), option::of(fd())).prop_map(
        |(attach, container, stdin, stdout, stderr)| AttachPlan {
            attach: AttachId(attach),
            container,
            stdin,
            stdout,
            stderr,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (any::<u32>(), any::<String>())
            .prop_map(|(protocol_version, release)| Request::Hello(Hello { protocol_version, release })),
        pod_plan().prop_map(Request::SetUpPod),
        container_plan().prop_map(Request::StartContainer),
        exec_plan().prop_map(Request::Exec),
        container_id().prop_map(Request::ReopenLog),
        Just(Request::ListContainers),
        container_id().prop_map(Request::ForgetContainer),
        any::<bool>().prop_map(|force| Request::Shutdown { force }),
        Just(Request::Ping),
        attach_plan().prop_map(Request::Attach),
    ]
}

fn pod_is_up() -> impl Strategy<Value = PodIsUp> {
    let flags = any::<[bool; 6]>();
    flags.prop_map(|[net, ipc, uts, pid, pid_init, user]| PodIsUp { net, ipc, uts, pid, pid_init, user })
}

fn reply() -> impl Strategy<Value = Reply> {
    let entry = (container_id(), any::<(u32, i64, bool)>(), option::of(exit()))
        .prop_map(|(id, (pid, started_at, stdin_open), exit)| ContainerEntry { id, pid, started_at, exit, stdin_open });
    prop_oneof![
        Just(Reply::Done),
        any::<String>().prop_map(Reply::Refused),
        (any::<(u32, String, u32)>(), option::of(pod_id())).prop_map(|((protocol_version, release, pid), pod)| {
            Reply::ShimIs(ShimIs { protocol_version, release, pid, pod })
        }),
        pod_is_up().prop_map(Reply::PodIsUp),
        any::<(u32, i64)>().prop_map(|(pid, started_at)| Reply::Started { pid, started_at }),
        any::<(u32, bool)>().prop_map(|(pid, terminal)| Reply::ExecStarted { pid, terminal }),
        any::<(String, i32, String)>().prop_map(|(step, errno, about)| Reply::StartFailed(StartFailure {
            step,
            errno,
            about
        })),
        (any::<bool>(), pod_is_up(), vec(entry, 0..4))
            .prop_map(|(is_up, pod, containers)| Reply::Containers(ContainerList { is_up, pod, containers })),
        any::<[bool; 3]>().prop_map(|[terminal, input, stdin_closed]| Reply::Attached(Attached {
            terminal,
            input,
            stdin_closed
        })),
        any::<String>().prop_map(Reply::Exhausted),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (container_id(), exit()).prop_map(|(container, exit)| Event::Exited { container, exit }),
        (any::<u64>(), exit()).prop_map(|(exec, exit)| Event::ExecExited { exec: ExecId(exec), exit }),
        exit().prop_map(|exit| Event::PodInitExited { exit }),
        any::<(u64, bool)>()
            .prop_map(|(attach, fell_behind)| Event::AttachEnded { attach: AttachId(attach), fell_behind }),
    ]
}

/// Appends bytes to the outermost variant and to the struct that is its only field, as a newer side would.
fn appended(bytes: &[u8], extra: &[u8]) -> Vec<u8> {
    let grown = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) + extra.len() as u32;
    let mut newer = bytes.to_vec();
    newer[..4].copy_from_slice(&grown(0).to_le_bytes());
    newer[5..9].copy_from_slice(&grown(5).to_le_bytes());
    newer.extend_from_slice(extra);
    newer
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_request_comes_back(request in request()) {
        prop_assert_eq!(decode::<Request>(&encode(&request).unwrap()), Ok(request));
    }

    #[test]
    fn every_reply_comes_back(reply in reply()) {
        prop_assert_eq!(decode::<Reply>(&encode(&reply).unwrap()), Ok(reply));
    }

    #[test]
    fn every_event_comes_back(event in event()) {
        prop_assert_eq!(decode::<Event>(&encode(&event).unwrap()), Ok(event));
    }

    #[test]
    fn a_cut_request_is_an_error(request in request(), cut in any::<prop::sample::Index>()) {
        let bytes = encode(&request).unwrap();
        let cut = cut.index(bytes.len());
        prop_assert!(decode::<Request>(&bytes[..cut]).is_err());
    }

    #[test]
    fn a_damaged_request_never_panics(
        request in request(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encode(&request).unwrap();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        // What is still a request can be written again: nothing got in that the writer refuses.
        if let Ok(request) = decode::<Request>(&bytes) {
            prop_assert!(encode(&request).is_ok());
        }
    }

    #[test]
    fn a_plan_of_a_newer_daemon_is_understood(plan in container_plan(), extra in vec(any::<u8>(), 1..20)) {
        let newer = appended(&encode(&Request::StartContainer(plan.clone())).unwrap(), &extra);
        prop_assert_eq!(decode::<Request>(&newer), Ok(Request::StartContainer(plan)));
    }

    #[test]
    fn a_plan_of_an_older_daemon_is_understood(mut plan in pod_plan()) {
        // The last fields are one byte and four; an older daemon would not have written the last, or neither.
        plan.user = None;
        plan.shim_oom_score_adj = 0;
        for missing in [1, 5] {
            let mut older = encode(&Request::SetUpPod(plan.clone())).unwrap();
            older.truncate(older.len() - missing);
            for at in [0, 5] {
                let length = u32::from_le_bytes(older[at..at + 4].try_into().unwrap()) - missing as u32;
                older[at..at + 4].copy_from_slice(&length.to_le_bytes());
            }
            prop_assert_eq!(decode::<Request>(&older), Ok(Request::SetUpPod(plan.clone())));
        }
    }
}

#[test]
fn a_request_that_this_version_does_not_know_says_so() {
    assert_eq!(decode::<Request>(&[1, 0, 0, 0, 200]), Err(Malformed::Variant(200)));
}
