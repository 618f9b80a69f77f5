//! Good and bad requests, and what comes back of them in a status.
//!
//! Each bad request is a good one with one thing made wrong, so that a case shows which rule refuses it.

use super::*;
use knarr_cri_api::v1;
use knarr_cri_api::v1::NamespaceMode as Mode;
use knarr_model::input::{PodNetwork, Resolved};
use knarr_model::resources::Resources;
use knarr_model::spec::{
    ContainerSpec, GroupsPolicy, MountSource, PidNamespace, PodNamespaces, PodSpec, Profile, Propagation, Protocol,
    RunAs,
};
use knarr_model::view::{ContainerState, ContainerView, PodView, Reason};
use knarr_model::{ContainerId, ErrorKind, PodId};
use proptest::prelude::*;
use prost::Message as _;
use std::collections::HashMap;
use std::sync::Arc;

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

fn pairs(items: &[(&str, &str)]) -> HashMap<String, String> {
    items.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn modes(network: Mode, pid: Mode, ipc: Mode) -> v1::NamespaceOption {
    v1::NamespaceOption {
        network: network as i32,
        pid: pid as i32,
        ipc: ipc as i32,
        target_id: String::new(),
        userns_options: Some(v1::UserNamespace { mode: Mode::Node as i32, uids: vec![], gids: vec![] }),
    }
}

/// As kubelet makes it for an ordinary pod.
fn pod_config() -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "web-0".into(),
            uid: "6f1ed0a5-8e0c-4b4d-8d5e-0d9c1d3f1c55".into(),
            namespace: "default".into(),
            attempt: 1,
        }),
        hostname: "web-0".into(),
        log_directory: "/var/log/pods/default_web-0_6f1ed0a5".into(),
        dns_config: Some(v1::DnsConfig {
            servers: strings(&["10.96.0.10"]),
            searches: strings(&["default.svc.cluster.local", "svc.cluster.local"]),
            options: strings(&["ndots:5"]),
        }),
        port_mappings: vec![v1::PortMapping {
            protocol: 0,
            container_port: 80,
            host_port: 8080,
            host_ip: "::1".into(),
        }],
        labels: pairs(&[("io.kubernetes.pod.name", "web-0")]),
        annotations: pairs(&[("note", "two\nlines")]),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/burstable/pod6f1ed0a5".into(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(modes(Mode::Pod, Mode::Container, Mode::Pod)),
                privileged: true,
                seccomp: Some(v1::SecurityProfile { profile_type: 0, localhost_ref: String::new() }),
                ..Default::default()
            }),
            sysctls: pairs(&[("net.ipv4.ip_unprivileged_port_start", "0"), ("kernel.shm_rmid_forced", "1")]),
            overhead: None,
            resources: Some(v1::LinuxContainerResources { cpu_shares: 512, ..Default::default() }),
        }),
        windows: None,
    }
}

/// As kubelet makes it, with most fields in use.
fn container_config() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "nginx".into(), attempt: 2 }),
        image: Some(v1::ImageSpec {
            image: "sha256:0f2ac4".into(),
            user_specified_image: "nginx:1.27".into(),
            ..Default::default()
        }),
        command: strings(&["nginx"]),
        args: strings(&["-g", "daemon off;"]),
        working_dir: "/srv".into(),
        envs: vec![v1::KeyValue { key: "KEY".into(), value: b"a=b\nsecond line".to_vec() }],
        mounts: vec![
            v1::Mount {
                container_path: "/etc/hosts".into(),
                host_path: "/var/lib/kubelet/pods/6f/etc-hosts".into(),
                ..Default::default()
            },
            v1::Mount {
                container_path: "/data".into(),
                host_path: "/mnt/data".into(),
                readonly: true,
                recursive_read_only: true,
                ..Default::default()
            },
        ],
        devices: vec![v1::Device {
            container_path: "/dev/fuse".into(),
            host_path: "/dev/fuse".into(),
            permissions: "mrw".into(),
        }],
        labels: pairs(&[("io.kubernetes.container.name", "nginx")]),
        annotations: pairs(&[("io.kubernetes.container.hash", "7f")]),
        log_path: "nginx/2.log".into(),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 50_000,
                cpu_shares: 512,
                memory_limit_in_bytes: 64 << 20,
                oom_score_adj: 999,
                cpuset_cpus: "0-1,3".into(),
                hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
                unified: pairs(&[("memory.oom.group", "1")]),
                ..Default::default()
            }),
            security_context: Some(v1::LinuxContainerSecurityContext {
                capabilities: Some(v1::Capability {
                    add_capabilities: strings(&["NET_ADMIN", "cap_sys_time"]),
                    drop_capabilities: strings(&["ALL"]),
                    add_ambient_capabilities: vec![],
                }),
                namespace_options: Some(modes(Mode::Pod, Mode::Container, Mode::Pod)),
                run_as_user: Some(v1::Int64Value { value: 1000 }),
                run_as_group: Some(v1::Int64Value { value: 2000 }),
                supplemental_groups: vec![3000],
                masked_paths: strings(&["/proc/kcore"]),
                readonly_paths: strings(&["/proc/sys"]),
                seccomp: Some(v1::SecurityProfile { profile_type: 0, localhost_ref: String::new() }),
                ..Default::default()
            }),
        }),
        cdi_devices: vec![v1::CdiDevice { name: "vendor.com/gpu=0".into() }],
        stop_signal: v1::Signal::Sigquit as i32,
        ..Default::default()
    }
}

fn pod() -> PodSpec {
    pod_spec(pod_config(), "").expect("the good pod")
}

fn spec() -> ContainerSpec {
    container_spec(container_config(), &pod()).expect("the good container")
}

fn linux_pod(config: &mut v1::PodSandboxConfig) -> &mut v1::LinuxPodSandboxConfig {
    config.linux.get_or_insert_default()
}

fn pod_security(config: &mut v1::PodSandboxConfig) -> &mut v1::LinuxSandboxSecurityContext {
    linux_pod(config).security_context.get_or_insert_default()
}

fn pod_modes(config: &mut v1::PodSandboxConfig) -> &mut v1::NamespaceOption {
    pod_security(config).namespace_options.get_or_insert_default()
}

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn wanted(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

fn localhost(reference: &str) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile { profile_type: 2, localhost_ref: reference.into() })
}

type BadPod = (&'static str, fn(&mut v1::PodSandboxConfig));
type BadContainer = (&'static str, fn(&mut v1::ContainerConfig));

/// What the message must begin with, and how the good request is spoilt.
const BAD_PODS: &[BadPod] = &[
    ("config.metadata: is required", |c| c.metadata = None),
    ("config.metadata.name: is required", |c| c.metadata.as_mut().unwrap().name.clear()),
    ("config.metadata.namespace: is required", |c| c.metadata.as_mut().unwrap().namespace.clear()),
    ("config.metadata.uid: is required", |c| c.metadata.as_mut().unwrap().uid.clear()),
    ("config.metadata.name: holds", |c| c.metadata.as_mut().unwrap().name = "../../x".into()),
    ("config.metadata.name: holds", |c| c.metadata.as_mut().unwrap().name = "a;K8S_POD_UID=b".into()),
    ("config.metadata.uid: holds", |c| c.metadata.as_mut().unwrap().uid = "a\nb".into()),
    ("config.metadata.name: 600 bytes", |c| c.metadata.as_mut().unwrap().name = "n".repeat(600)),
    ("config.hostname: ", |c| c.hostname = "a\nnameserver 1.2.3.4".into()),
    ("config.hostname: ", |c| c.hostname = "a\0".into()),
    ("config.hostname: ", |c| c.hostname = "a:b".into()),
    ("config.hostname: ", |c| c.hostname = "-a".into()),
    ("config.hostname: 65 bytes", |c| c.hostname = "h".repeat(65)),
    ("config.log_directory: ", |c| c.log_directory = "var/log".into()),
    ("config.log_directory: ", |c| c.log_directory = "/var/log/../../etc".into()),
    ("config.log_directory: ", |c| c.log_directory = "/var/log\n".into()),
    ("config.dns_config.servers: ", |c| c.dns_config.as_mut().unwrap().servers = strings(&["1.1.1.1\noptions x"])),
    ("config.dns_config.searches: ", |c| c.dns_config.as_mut().unwrap().searches = strings(&["a b"])),
    ("config.dns_config.options: ", |c| c.dns_config.as_mut().unwrap().options = strings(&[""])),
    ("config.dns_config: ", |c| c.dns_config.as_mut().unwrap().searches = vec!["x".repeat(100); 400]),
    ("config.port_mappings[0].protocol: ", |c| c.port_mappings[0].protocol = 3),
    ("config.port_mappings[0].container_port: ", |c| c.port_mappings[0].container_port = 0),
    ("config.port_mappings[0].container_port: ", |c| c.port_mappings[0].container_port = 65536),
    ("config.port_mappings[0].host_port: ", |c| c.port_mappings[0].host_port = -1),
    ("config.port_mappings[0].host_ip: ", |c| c.port_mappings[0].host_ip = "localhost".into()),
    ("config.annotations: ", |c| drop(c.annotations.insert("big".into(), "b".repeat(MAP_BYTES_MAX)))),
    ("config.linux.cgroup_parent: ", |c| linux_pod(c).cgroup_parent = "/a/../b".into()),
    ("config.linux.cgroup_parent: ", |c| linux_pod(c).cgroup_parent = "kubepods".into()),
    ("config.linux.cgroup_parent: ", |c| linux_pod(c).cgroup_parent = "a/b.slice".into()),
    ("config.linux.cgroup_parent: ", |c| linux_pod(c).cgroup_parent = "/a b".into()),
    ("config.linux.cgroup_parent: ", |c| linux_pod(c).cgroup_parent = "/a\"".into()),
    ("config.linux.resources.cpu_shares: ", |c| linux_pod(c).resources.get_or_insert_default().cpu_shares = -1),
    ("config.linux.overhead.oom_score_adj: ", |c| linux_pod(c).overhead.get_or_insert_default().oom_score_adj = 1001),
    ("config.linux.security_context.run_as_group: needs run_as_user", |c| {
        pod_security(c).run_as_group = Some(v1::Int64Value { value: 1 })
    }),
    ("config.linux.security_context.seccomp.localhost_ref: ", |c| pod_security(c).seccomp = localhost("")),
    ("config.linux.security_context.namespace_options.network: ", |c| pod_modes(c).network = Mode::Container as i32),
    ("config.linux.security_context.namespace_options.network: ", |c| pod_modes(c).network = 9),
    ("config.linux.security_context.namespace_options.ipc: ", |c| pod_modes(c).ipc = Mode::Target as i32),
    ("config.linux.security_context.namespace_options.pid: ", |c| pod_modes(c).pid = Mode::Target as i32),
];

const BAD_SYSCTLS: &[(&str, &str)] = &[
    ("kernel.core_pattern", "|/bin/sh"),
    ("kernel.hostname", "x"),
    ("kernel.domainname", "x"),
    ("kernel.shmall_x/../../core_pattern", "x"),
    ("net.ipv4.ip_forward", "1+kernel.core_pattern=x"),
    ("net.ipv4.ip_forward", "1\n"),
    ("net.ipv4.ip_forward", "1=2"),
    ("net.ipv4.ip forward", "1"),
    ("net..ipv4", "1"),
    ("net.", "1"),
    ("net/../kernel/core_pattern", "x"),
    ("net/ipv4/../../kernel/core_pattern", "x"),
    ("/net/ipv4/ip_forward", "1"),
    ("fs.file-max", "1"),
    ("vm.swappiness", "1"),
    ("", "1"),
];

const BAD_CONTAINERS: &[BadContainer] = &[
    ("config.metadata: is required", |c| c.metadata = None),
    ("config.metadata.name: is required", |c| c.metadata.as_mut().unwrap().name.clear()),
    ("config.image: is required", |c| c.image = None),
    ("config.image.image: is required", |c| c.image.as_mut().unwrap().image.clear()),
    ("config.image.image: holds", |c| c.image.as_mut().unwrap().image = "a\nb".into()),
    ("config.command[0]: holds a NUL", |c| c.command[0] = "a\0b".into()),
    ("config.args[1]: 131072 bytes", |c| c.args[1] = "a".repeat(ARG_BYTES_MAX + 1)),
    ("config.args: ", |c| c.args = vec!["a".repeat(ARG_BYTES_MAX); 17]),
    ("config.args: ", |c| c.args = vec![String::new(); ARGS_MAX + 1]),
    ("config.working_dir: ", |c| c.working_dir = "srv".into()),
    ("config.envs[0].key: is required", |c| c.envs[0].key.clear()),
    ("config.envs[0].key: ", |c| c.envs[0].key = "A=B".into()),
    ("config.envs[0].key: ", |c| c.envs[0].key = "A\nB".into()),
    ("config.envs[0].value: holds a NUL", |c| c.envs[0].value = b"a\0b".to_vec()),
    ("config.envs[0].value: is not UTF-8", |c| c.envs[0].value = vec![0xff]),
    ("config.mounts[1].container_path: ", |c| c.mounts[1].container_path = "data".into()),
    ("config.mounts[1].container_path: ", |c| c.mounts[1].container_path = "/./".into()),
    ("config.mounts[1].container_path: ", |c| c.mounts[1].container_path = "/a\nb".into()),
    ("config.mounts[1].host_path: is required", |c| c.mounts[1].host_path.clear()),
    ("config.mounts[1].host_path: ", |c| c.mounts[1].host_path = "mnt".into()),
    ("config.mounts[1].host_path: ", |c| c.mounts[1].host_path = "/".repeat(PATH_BYTES_MAX + 1)),
    ("config.mounts[1].image: host_path is given too", |c| {
        c.mounts[1].image = Some(v1::ImageSpec { image: "i".into(), ..Default::default() })
    }),
    ("config.mounts[1].image_sub_path: ", |c| c.mounts[1].image_sub_path = "a".into()),
    ("config.mounts[1].propagation: ", |c| c.mounts[1].propagation = 3),
    ("config.mounts[1].recursive_read_only: ", |c| c.mounts[1].readonly = false),
    ("config.mounts[1].recursive_read_only: ", |c| c.mounts[1].propagation = 1),
    ("config.devices[0].permissions: ", |c| c.devices[0].permissions = "rwx".into()),
    ("config.devices[0].permissions: ", |c| c.devices[0].permissions.clear()),
    ("config.devices[0].container_path: ", |c| c.devices[0].container_path = "/dev/../etc/x".into()),
    ("config.devices[0].host_path: ", |c| c.devices[0].host_path = "fuse".into()),
    ("config.CDI_devices[0].name: ", |c| c.cdi_devices[0].name = "gpu0".into()),
    ("config.CDI_devices[0].name: ", |c| c.cdi_devices[0].name = "../x/y=z".into()),
    ("config.log_path: ", |c| c.log_path = "/var/log/x".into()),
    ("config.log_path: ", |c| c.log_path = "a/../../x".into()),
    ("config.log_path: ", |c| c.log_path = "a/".into()),
    ("config.log_path: ", |c| c.log_path = "a\0".into()),
    ("config.stop_signal: ", |c| c.stop_signal = 66),
    ("config.linux.resources.cpu_period: ", |c| wanted(c).cpu_period = 999),
    ("config.linux.resources.cpu_period: ", |c| wanted(c).cpu_period = -1),
    ("config.linux.resources.cpu_quota: ", |c| wanted(c).cpu_quota = 999),
    ("config.linux.resources.cpu_shares: ", |c| wanted(c).cpu_shares = -2),
    ("config.linux.resources.memory_swap_limit_in_bytes: ", |c| wanted(c).memory_swap_limit_in_bytes = 1 << 20),
    ("config.linux.resources.oom_score_adj: ", |c| wanted(c).oom_score_adj = -1001),
    ("config.linux.resources.oom_score_adj: ", |c| wanted(c).oom_score_adj = i64::MIN),
    ("config.linux.resources.cpuset_cpus: ", |c| wanted(c).cpuset_cpus = "3-1".into()),
    ("config.linux.resources.cpuset_cpus: ", |c| wanted(c).cpuset_cpus = "0,,1".into()),
    ("config.linux.resources.cpuset_cpus: ", |c| wanted(c).cpuset_cpus = "+1".into()),
    ("config.linux.resources.cpuset_cpus: ", |c| wanted(c).cpuset_cpus = "99999999999".into()),
    ("config.linux.resources.cpuset_mems: ", |c| wanted(c).cpuset_mems = "0\n".into()),
    ("config.linux.resources.hugepage_limits: ", |c| wanted(c).hugepage_limits[0].page_size = "../2MB".into()),
    ("config.linux.resources.hugepage_limits: ", |c| {
        let twice = wanted(c).hugepage_limits[0].clone();
        wanted(c).hugepage_limits.push(twice)
    }),
    ("config.linux.resources.unified: ", |c| wanted(c).unified = pairs(&[("../memory.max", "1")])),
    ("config.linux.resources.unified: ", |c| wanted(c).unified = pairs(&[("cgroup.procs", "1")])),
    ("config.linux.resources.unified: ", |c| wanted(c).unified = pairs(&[("cgroup.kill", "1")])),
    ("config.linux.resources.unified: ", |c| wanted(c).unified = pairs(&[("memory/x.max", "1")])),
    ("config.linux.resources.unified[memory.max]: ", |c| wanted(c).unified = pairs(&[("memory.max", "1\n2")])),
    ("config.linux.security_context.run_as_group: needs run_as_user", |c| security(c).run_as_user = None),
    ("config.linux.security_context.run_as_user: ", |c| {
        security(c).run_as_user = Some(v1::Int64Value { value: 1 << 31 })
    }),
    ("config.linux.security_context.run_as_user: ", |c| security(c).run_as_user = Some(v1::Int64Value { value: -1 })),
    ("config.linux.security_context.run_as_username: run_as_user is given", |c| {
        security(c).run_as_username = "www".into()
    }),
    ("config.linux.security_context.run_as_username: ", |c| {
        security(c).run_as_user = None;
        security(c).run_as_username = "root:0".into()
    }),
    ("config.linux.security_context.supplemental_groups: ", |c| security(c).supplemental_groups = vec![-1]),
    ("config.linux.security_context.supplemental_groups: ", |c| {
        security(c).supplemental_groups = vec![1; GROUPS_MAX + 1]
    }),
    ("config.linux.security_context.supplemental_groups_policy: ", |c| security(c).supplemental_groups_policy = 2),
    ("config.linux.security_context.capabilities.add_capabilities: ", |c| {
        security(c).capabilities.as_mut().unwrap().add_capabilities = strings(&["SYS_FOO"])
    }),
    ("config.linux.security_context.masked_paths: ", |c| security(c).masked_paths = strings(&["proc/kcore"])),
    ("config.linux.security_context.readonly_paths: ", |c| security(c).readonly_paths = strings(&["/a\0"])),
    ("config.linux.security_context.seccomp.localhost_ref: ", |c| security(c).seccomp = localhost("")),
    ("config.linux.security_context.seccomp: ", |c| security(c).seccomp = localhost("profiles/a.json")),
    ("config.linux.security_context.seccomp: ", |c| security(c).seccomp = localhost("/a/../../etc/shadow")),
    ("config.linux.security_context.seccomp.profile_type: ", |c| {
        security(c).seccomp.as_mut().unwrap().profile_type = 7
    }),
    ("config.linux.security_context.apparmor.localhost_ref: ", |c| security(c).apparmor = localhost("")),
    ("config.linux.security_context.apparmor: ", |c| security(c).apparmor = localhost("localhost/")),
    ("config.linux.security_context.apparmor: ", |c| security(c).apparmor = localhost("a\nb")),
    #[allow(deprecated)]
    ("config.linux.security_context.apparmor_profile: ", |c| security(c).apparmor_profile = "localhost/".into()),
    #[allow(deprecated)]
    ("config.linux.security_context.seccomp_profile_path: ", |c| {
        security(c).seccomp = None;
        security(c).seccomp_profile_path = "/etc/passwd".into()
    }),
    ("config.linux.security_context.selinux_options.type: ", |c| {
        security(c).selinux_options = Some(v1::SeLinuxOption { r#type: "a:b".into(), ..Default::default() })
    }),
    ("config.linux.security_context.namespace_options.network: NODE", |c| {
        security(c).namespace_options = Some(modes(Mode::Node, Mode::Container, Mode::Pod))
    }),
    ("config.linux.security_context.namespace_options.ipc: NODE", |c| {
        security(c).namespace_options = Some(modes(Mode::Pod, Mode::Container, Mode::Node))
    }),
    ("config.linux.security_context.namespace_options.ipc: CONTAINER", |c| {
        security(c).namespace_options = Some(modes(Mode::Pod, Mode::Container, Mode::Container))
    }),
    ("config.linux.security_context.namespace_options.pid: NODE", |c| {
        security(c).namespace_options = Some(modes(Mode::Pod, Mode::Node, Mode::Pod))
    }),
    ("config.linux.security_context.namespace_options.pid: POD", |c| {
        security(c).namespace_options = Some(modes(Mode::Pod, Mode::Pod, Mode::Pod))
    }),
    ("config.linux.security_context.namespace_options.target_id: ", |c| {
        security(c).namespace_options = Some(modes(Mode::Pod, Mode::Target, Mode::Pod))
    }),
];

#[test]
fn a_bad_pod_is_refused_and_the_field_is_named() {
    for (at, (message, spoil)) in BAD_PODS.iter().enumerate() {
        let mut config = pod_config();
        spoil(&mut config);
        let error = pod_spec(config, "").expect_err(&format!("{at}: {message}"));
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{at}: {error}");
        assert!(error.message.starts_with(message), "{at}: {message:?} but got {error}");
    }
    let error = pod_spec(pod_config(), "a\nb").unwrap_err();
    assert!(error.message.starts_with("runtime_handler: "), "{error}");
}

#[test]
fn a_bad_container_is_refused_and_the_field_is_named() {
    for (at, (message, spoil)) in BAD_CONTAINERS.iter().enumerate() {
        let mut config = container_config();
        spoil(&mut config);
        let error = container_spec(config, &pod()).expect_err(&format!("{at}: {message}"));
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{at}: {error}");
        assert!(error.message.starts_with(message), "{at}: {message:?} but got {error}");
    }
}

#[test]
fn the_good_pod_is_understood() {
    let pod = pod();
    assert_eq!((pod.name.as_str(), pod.namespace.as_str(), pod.attempt), ("web-0", "default", 1));
    assert_eq!(pod.namespaces, PodNamespaces::default());
    assert!(pod.privileged);
    assert_eq!(pod.port_mappings[0].protocol, Protocol::Tcp);
    assert_eq!(pod.port_mappings[0].host_ip, Some("::1".parse().unwrap()));
    assert_eq!(pod.sysctls["kernel.shm_rmid_forced"], "1");
    assert_eq!(pod.resources.cpu_shares, Some(512));
    assert_eq!(pod.annotations["note"], "two\nlines");
}

#[test]
fn the_good_container_is_understood() {
    let spec = spec();
    assert_eq!(spec.stop_signal, Some(3));
    assert_eq!(spec.envs, [("KEY".to_owned(), "a=b\nsecond line".to_owned())]);
    assert_eq!(spec.devices[0].permissions, "rwm");
    assert_eq!(spec.mounts[0].source, MountSource::Host("/var/lib/kubelet/pods/6f/etc-hosts".into()));
    assert!(spec.mounts[1].recursive_read_only);
    let security = &spec.security;
    assert_eq!(security.run_as, RunAs::Uid(1000));
    assert_eq!(security.run_as_group, Some(2000));
    assert_eq!(security.add_capabilities, ["NET_ADMIN", "SYS_TIME"]);
    assert_eq!(security.pid, PidNamespace::Own);
    assert_eq!(security.seccomp, Profile::RuntimeDefault);
    assert_eq!(security.groups_policy, GroupsPolicy::Merge);
    assert_eq!(spec.resources.cpu_quota, Some(50_000));
    assert_eq!(spec.resources.hugepage_limits["2MB"], 0);
    assert_eq!(spec.resources.memory_swap_limit, None);
}

#[test]
fn a_privileged_container_needs_a_privileged_pod() {
    let mut config = container_config();
    security(&mut config).privileged = true;
    assert!(container_spec(config.clone(), &pod()).is_ok());
    let error = container_spec(config, &PodSpec { privileged: false, ..pod() }).unwrap_err();
    assert_eq!(error.message, "config.linux.security_context.privileged: the pod is not privileged");
}

#[test]
fn only_sysctls_of_the_pods_own_namespaces_are_taken() {
    for (name, value) in BAD_SYSCTLS {
        let mut config = pod_config();
        linux_pod(&mut config).sysctls = pairs(&[(name, value)]);
        let error = pod_spec(config, "").expect_err(&format!("{name} = {value:?}"));
        assert!(error.message.starts_with("config.linux.sysctls["), "{error}");
    }
    let owned = [
        ("net.ipv4.tcp_rmem", "4096 131072 6291456"),
        ("kernel.msgmax", "8192"),
        ("kernel.sem", "32000 1024000000 500 32000"),
        ("fs.mqueue.msg_max", "20"),
        ("kernel.shmmni", "1"),
    ];
    for (name, value) in owned {
        let mut config = pod_config();
        linux_pod(&mut config).sysctls = pairs(&[(name, value)]);
        assert!(pod_spec(config.clone(), "").is_ok(), "{name}");
        *pod_modes(&mut config) = modes(Mode::Node, Mode::Container, Mode::Node);
        assert!(pod_spec(config, "").is_err(), "{name} with the host's namespaces");
    }
}

#[test]
fn a_sysctl_with_slashes_is_the_one_with_dots() {
    let mut config = pod_config();
    linux_pod(&mut config).sysctls = pairs(&[("net/ipv4/conf/eno2.100/rp_filter", "1")]);
    let pod = pod_spec(config.clone(), "").unwrap();
    assert_eq!(pod.sysctls["net.ipv4.conf.eno2/100.rp_filter"], "1");
    linux_pod(&mut config).sysctls = pairs(&[("net/ipv4/ip_forward", "1"), ("net.ipv4.ip_forward", "0")]);
    assert!(pod_spec(config, "").is_err(), "which of the two?");
}

#[test]
fn a_pod_without_a_host_name_gets_its_own() {
    let named = |name: &str, network: Mode| {
        let mut config = pod_config();
        config.hostname.clear();
        config.metadata.as_mut().unwrap().name = name.into();
        *pod_modes(&mut config) = modes(network, Mode::Container, Mode::Pod);
        linux_pod(&mut config).sysctls.clear();
        pod_spec(config, "").unwrap().hostname
    };
    assert_eq!(named("nginx_1", Mode::Pod), "nginx_1");
    assert_eq!(named("ä.b", Mode::Pod), "b");
    assert_eq!(named("--", Mode::Pod), "pod");
    assert_eq!(named(&"n".repeat(200), Mode::Pod), "n".repeat(63));
    assert_eq!(named("nginx", Mode::Node), "", "the host's name is used");
}

#[test]
fn namespaces_follow_the_pod() {
    // (pod's mode, container's mode or nothing, what the container gets)
    for (of_pod, of_container, expected) in [
        (Mode::Container, None, Some(PidNamespace::Own)),
        (Mode::Container, Some(Mode::Container), Some(PidNamespace::Own)),
        (Mode::Container, Some(Mode::Pod), None),
        (Mode::Container, Some(Mode::Node), None),
        (Mode::Pod, None, Some(PidNamespace::Pod)),
        (Mode::Pod, Some(Mode::Pod), Some(PidNamespace::Pod)),
        (Mode::Pod, Some(Mode::Container), Some(PidNamespace::Own)),
        (Mode::Node, None, Some(PidNamespace::Host)),
        (Mode::Node, Some(Mode::Node), Some(PidNamespace::Host)),
        (Mode::Node, Some(Mode::Pod), Some(PidNamespace::Host)),
    ] {
        let mut config = pod_config();
        *pod_modes(&mut config) = modes(Mode::Pod, of_pod, Mode::Pod);
        let pod = pod_spec(config, "").unwrap();
        let mut config = container_config();
        security(&mut config).namespace_options = of_container.map(|pid| modes(Mode::Pod, pid, Mode::Pod));
        let got = container_spec(config, &pod).ok().map(|spec| spec.security.pid);
        assert_eq!(got, expected, "{of_pod:?} {of_container:?}");
    }
}

#[test]
fn a_pod_that_says_nothing_shares_one_pid_namespace() {
    let mut config = pod_config();
    config.linux = None;
    let pod = pod_spec(config, "").unwrap();
    assert_eq!(pod.namespaces, PodNamespaces { shared_pid: true, ..PodNamespaces::default() });
    let mut config = container_config();
    config.linux = None;
    let spec = container_spec(config, &pod).unwrap();
    assert_eq!(spec.security.pid, PidNamespace::Pod);
    assert_eq!(spec.security.seccomp, Profile::Unconfined, "nothing means nothing");
    assert_eq!(spec.security.apparmor, Profile::RuntimeDefault, "nothing means the default");
}

#[test]
fn a_target_is_a_whole_id() {
    let id = "ab".repeat(32);
    let mut config = container_config();
    let mut options = modes(Mode::Pod, Mode::Target, Mode::Pod);
    options.target_id = id.clone();
    security(&mut config).namespace_options = Some(options);
    let spec = container_spec(config, &pod()).unwrap();
    assert_eq!(spec.security.pid, PidNamespace::Target(ContainerId::parse(&id).unwrap()));
}

#[test]
fn user_namespaces_are_refused_and_bad_ones_for_being_bad() {
    let mapping = |container_id, host_id, length| v1::IdMapping { container_id, host_id, length };
    let good = vec![mapping(0, 100_000, 65_536)];
    for (mode, uids, gids, kind) in [
        (Mode::Pod, good.clone(), good.clone(), ErrorKind::Unimplemented),
        (Mode::Pod, vec![], vec![], ErrorKind::InvalidArgument),
        (Mode::Pod, good.clone(), vec![], ErrorKind::InvalidArgument),
        (Mode::Pod, [good.clone(), good.clone()].concat(), good.clone(), ErrorKind::InvalidArgument),
        (Mode::Pod, vec![mapping(1, 1000, 10)], good.clone(), ErrorKind::InvalidArgument),
        (Mode::Pod, vec![mapping(0, 1000, 0)], good.clone(), ErrorKind::InvalidArgument),
        (Mode::Pod, vec![mapping(0, u32::MAX, 2)], good.clone(), ErrorKind::InvalidArgument),
        (Mode::Node, good.clone(), vec![], ErrorKind::InvalidArgument),
        (Mode::Container, vec![], vec![], ErrorKind::InvalidArgument),
        (Mode::Target, vec![], vec![], ErrorKind::InvalidArgument),
    ] {
        let mut config = pod_config();
        pod_modes(&mut config).userns_options = Some(v1::UserNamespace { mode: mode as i32, uids, gids });
        let error = pod_spec(config, "").unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains("userns_options"), "{error}");
    }
}

#[test]
fn a_volume_from_an_image_is_not_there_yet() {
    let mut config = container_config();
    config.mounts[0].host_path.clear();
    config.mounts[0].image = Some(v1::ImageSpec { image: "data:1".into(), ..Default::default() });
    assert_eq!(container_spec(config.clone(), &pod()).unwrap_err().kind, ErrorKind::Unimplemented);
    config.mounts[0].image_sub_path = "../x".into();
    assert_eq!(container_spec(config, &pod()).unwrap_err().kind, ErrorKind::InvalidArgument);
}

#[test]
#[allow(deprecated)]
fn a_profile_wins_over_the_deprecated_text() {
    let seccomp = |profile, text: &str| {
        let mut config = container_config();
        security(&mut config).seccomp = profile;
        security(&mut config).seccomp_profile_path = text.into();
        container_spec(config, &pod()).unwrap().security.seccomp
    };
    assert_eq!(seccomp(None, ""), Profile::Unconfined);
    assert_eq!(seccomp(None, "unconfined"), Profile::Unconfined);
    assert_eq!(seccomp(None, "runtime/default"), Profile::RuntimeDefault);
    assert_eq!(seccomp(None, "localhost//p/a.json"), Profile::Localhost("/p/a.json".into()));
    assert_eq!(seccomp(localhost("/p/b.json"), "unconfined"), Profile::Localhost("/p/b.json".into()));
    let apparmor = |profile, text: &str| {
        let mut config = container_config();
        security(&mut config).apparmor = profile;
        security(&mut config).apparmor_profile = text.into();
        container_spec(config, &pod()).unwrap().security.apparmor
    };
    assert_eq!(apparmor(None, ""), Profile::RuntimeDefault);
    assert_eq!(apparmor(None, "unconfined"), Profile::Unconfined);
    assert_eq!(apparmor(None, "localhost/mine"), Profile::Localhost("mine".into()));
    assert_eq!(apparmor(localhost("localhost/mine"), ""), Profile::Localhost("mine".into()));
}

#[test]
fn an_update_leaves_alone_what_it_does_not_say() {
    let current = spec().resources;
    let update = v1::LinuxContainerResources {
        memory_limit_in_bytes: 128 << 20,
        unified: pairs(&[("memory.high", "100")]),
        ..Default::default()
    };
    let merged = merge(&current, resources("linux", update).unwrap());
    assert_eq!(merged.memory_limit, Some(128 << 20));
    assert_eq!(merged.cpu_quota, current.cpu_quota);
    assert_eq!(merged.cpuset_cpus, current.cpuset_cpus);
    assert_eq!(merged.unified["memory.high"], "100");
    assert_eq!(merged.unified["memory.oom.group"], "1");
    assert_eq!(merge(&current, Resources::default()), current);
}

#[test]
fn unlimited_is_minus_one_however_it_is_written() {
    let wanted = v1::LinuxContainerResources {
        cpu_quota: -5,
        memory_limit_in_bytes: -7,
        memory_swap_limit_in_bytes: i64::MIN,
        cpu_shares: 1,
        ..Default::default()
    };
    let parsed = resources("linux", wanted).unwrap();
    assert_eq!((parsed.cpu_quota, parsed.memory_limit, parsed.memory_swap_limit), (Some(-1), Some(-1), Some(-1)));
    assert_eq!(parsed.cpu_shares, Some(2), "as the kernel does it");
}

fn view() -> PodView {
    let container = ContainerView {
        id: ContainerId::from_bytes(&[0xcd; 32]),
        spec: Arc::new(spec()),
        resolved: Resolved {
            image_id: "sha256:0f2ac4".into(),
            uid: 1000,
            gid: 2000,
            groups: vec![2000, 3000],
            stop_signal: 3,
        },
        resources: spec().resources,
        created_at: 11,
        state: ContainerState::Exited {
            started_at: 12,
            finished_at: 13,
            code: 137,
            reason: Reason::OomKilled,
            message: String::new(),
        },
    };
    PodView {
        id: PodId::from_bytes(&[0xab; 32]),
        spec: Arc::new(pod()),
        created_at: 10,
        ready: true,
        hidden: false,
        network: PodNetwork { ips: vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()] },
        containers: vec![container],
    }
}

#[test]
fn a_status_says_what_was_asked_for() {
    let view = view();
    let config = pod_config();
    let status = pod_sandbox_status(&view);
    assert_eq!(status.metadata, config.metadata);
    assert_eq!(status.labels, config.labels);
    assert_eq!(status.annotations, config.annotations);
    assert_eq!(status.state, v1::PodSandboxState::SandboxReady as i32);
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(options, modes(Mode::Pod, Mode::Container, Mode::Pod));
    let network = status.network.unwrap();
    assert_eq!(network.ip, "10.1.0.5");
    assert_eq!(network.additional_ips, [v1::PodIp { ip: "fd00::5".into() }]);

    let config = container_config();
    let status = container_status(&view, &view.containers[0], "");
    assert_eq!(status.metadata, config.metadata);
    assert_eq!(status.labels, config.labels);
    assert_eq!(status.annotations, config.annotations);
    assert_eq!(status.mounts, config.mounts);
    assert_eq!(status.log_path, "/var/log/pods/default_web-0_6f1ed0a5/nginx/2.log");
    assert_eq!(status.resources.unwrap().linux, config.linux.unwrap().resources);
    assert_eq!(status.stop_signal, config.stop_signal);
    assert_eq!((status.started_at, status.finished_at, status.exit_code), (12, 13, 137));
    assert_eq!(status.reason, "OOMKilled");
    assert_eq!((status.image_id.as_str(), status.image_ref.as_str()), ("sha256:0f2ac4", "sha256:0f2ac4"));
    assert_eq!(status.image.unwrap().image, "nginx:1.27");
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 2000, vec![2000, 3000]));

    let listed = container(&view.id, &view.containers[0]);
    assert_eq!(listed.pod_sandbox_id, "ab".repeat(32));
    assert_eq!(listed.state, v1::ContainerState::ContainerExited as i32);
    assert_eq!(listed.image_id, "sha256:0f2ac4");
    assert_eq!(pod_sandbox(&view).id, "ab".repeat(32));
}

#[test]
fn a_pod_on_the_hosts_network_says_so() {
    let mut config = pod_config();
    *pod_modes(&mut config) = modes(Mode::Node, Mode::Node, Mode::Node);
    linux_pod(&mut config).sysctls.clear();
    let spec = Arc::new(pod_spec(config, "").unwrap());
    let view = PodView { spec, network: PodNetwork::default(), ..view() };
    let status = pod_sandbox_status(&view);
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(options, modes(Mode::Node, Mode::Node, Mode::Node));
    assert_eq!(status.network.unwrap().ip, "");
}

#[test]
fn every_condition_of_a_filter_must_hold() {
    let view = view();
    let pods = |filter| PodFilter::parse(Some(filter)).unwrap().matches(&view);
    let filter = v1::PodSandboxFilter {
        id: "abab".into(),
        state: Some(v1::PodSandboxStateValue { state: 0 }),
        label_selector: pairs(&[("io.kubernetes.pod.name", "web-0")]),
    };
    assert!(PodFilter::parse(None).unwrap().matches(&view));
    assert!(pods(filter.clone()));
    assert!(!pods(v1::PodSandboxFilter { id: "abac".into(), ..filter.clone() }));
    assert!(!pods(v1::PodSandboxFilter { state: Some(v1::PodSandboxStateValue { state: 1 }), ..filter.clone() }));
    assert!(!pods(v1::PodSandboxFilter {
        label_selector: pairs(&[("io.kubernetes.pod.name", "x")]),
        ..filter.clone()
    }));
    assert!(!pods(v1::PodSandboxFilter { label_selector: pairs(&[("x", "")]), ..filter }));
    assert!(!PodFilter::default().matches(&PodView { hidden: true, ..view.clone() }));

    let containers = |filter| ContainerFilter::parse(Some(filter)).unwrap().matches(&view, &view.containers[0]);
    let filter = v1::ContainerFilter {
        id: "cd".repeat(32),
        state: Some(v1::ContainerStateValue { state: 2 }),
        pod_sandbox_id: "ab".into(),
        label_selector: HashMap::new(),
    };
    assert!(containers(filter.clone()));
    assert!(!containers(v1::ContainerFilter { pod_sandbox_id: "cd".into(), ..filter.clone() }));
    assert!(!containers(v1::ContainerFilter { id: "ab".into(), ..filter.clone() }));
    assert!(!containers(v1::ContainerFilter { state: Some(v1::ContainerStateValue { state: 1 }), ..filter.clone() }));
    let bad = v1::ContainerFilter { state: Some(v1::ContainerStateValue { state: 9 }), ..filter };
    assert!(ContainerFilter::parse(Some(bad)).is_err());
}

#[test]
fn propagation_comes_back() {
    for (raw, expected) in
        [(0, Propagation::Private), (1, Propagation::HostToContainer), (2, Propagation::Bidirectional)]
    {
        let mut config = container_config();
        config.mounts[0].propagation = raw;
        let spec = container_spec(config, &pod()).unwrap();
        assert_eq!(spec.mounts[0].propagation, expected);
        let view = view();
        let container = ContainerView { spec: Arc::new(spec), ..view.containers[0].clone() };
        assert_eq!(container_status(&view, &container, "").mounts[0].propagation, raw);
    }
}

/// Texts that have broken parsers before.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[a-z0-9./=:_-]{0,12}",
        ".{0,8}",
        proptest::sample::select(vec![
            "/",
            "..",
            "/..",
            "a/../b",
            "\0",
            "\n",
            "-1",
            "0-",
            "-",
            "é",
            "localhost/",
            "net.",
            "/dev/null",
            "0,1",
            "😀",
        ])
        .prop_map(str::to_owned),
    ]
}

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![Just(0), Just(-1), Just(i64::MIN), Just(i64::MAX), -10_i64..70_000, any::<i64>()]
}

/// A message with some of its bytes changed still decodes surprisingly often.
fn mutated(bytes: Vec<u8>, edits: &[(usize, u8)]) -> Vec<u8> {
    edits.iter().fold(bytes, |mut bytes, (at, value)| {
        let at = at % bytes.len();
        bytes[at] = *value;
        bytes
    })
}

proptest! {
    #[test]
    fn no_message_makes_the_conversion_panic(edits in prop::collection::vec((any::<usize>(), any::<u8>()), 0..6)) {
        let edited = mutated(pod_config().encode_to_vec(), &edits);
        if let Ok(config) = v1::PodSandboxConfig::decode(edited.as_slice()) {
            let _ = pod_spec(config, "");
        }
        let edited = mutated(container_config().encode_to_vec(), &edits);
        if let Ok(config) = v1::ContainerConfig::decode(edited.as_slice()) {
            let _ = container_spec(config, &pod());
        }
    }

    #[test]
    fn no_text_makes_the_conversion_panic_or_gets_a_nul_through(
        texts in prop::collection::vec(text(), 12), numbers in prop::collection::vec(number(), 6),
    ) {
        let mut config = pod_config();
        config.metadata.as_mut().unwrap().name = texts[0].clone();
        config.hostname = texts[1].clone();
        linux_pod(&mut config).cgroup_parent = texts[2].clone();
        linux_pod(&mut config).sysctls = HashMap::from([(texts[3].clone(), texts[4].clone())]);
        config.dns_config.as_mut().unwrap().searches = vec![texts[5].clone()];
        config.port_mappings[0].host_ip = texts[6].clone();
        config.port_mappings[0].host_port = numbers[0] as i32;
        pod_modes(&mut config).pid = (numbers[1] % 6) as i32;
        if let Ok(pod) = pod_spec(config, &texts[7]) {
            for checked in [&pod.name, &pod.hostname, &pod.cgroup_parent, &pod.handler] {
                prop_assert!(!checked.contains(['\0', '\n']));
            }
            prop_assert!(!pod.hostname.is_empty() && pod.hostname.len() <= HOSTNAME_BYTES_MAX);
            for name in pod.sysctls.keys() {
                prop_assert!(!name.contains("..") && !name.contains(['\0', '\n', '+', '=']));
            }
        }
        let mut config = container_config();
        config.log_path = texts[0].clone();
        config.command = vec![texts[1].clone()];
        config.mounts[0].container_path = texts[2].clone();
        config.mounts[0].host_path = texts[3].clone();
        config.devices[0].permissions = texts[4].clone();
        config.cdi_devices[0].name = texts[5].clone();
        wanted(&mut config).cpuset_cpus = texts[6].clone();
        wanted(&mut config).unified = HashMap::from([(texts[7].clone(), texts[8].clone())]);
        wanted(&mut config).oom_score_adj = numbers[0];
        wanted(&mut config).memory_limit_in_bytes = numbers[1];
        wanted(&mut config).memory_swap_limit_in_bytes = numbers[2];
        wanted(&mut config).cpu_shares = numbers[3];
        security(&mut config).run_as_user = Some(v1::Int64Value { value: numbers[4] });
        security(&mut config).seccomp = localhost(&texts[9]);
        if let Ok(spec) = container_spec(config, &pod()) {
            prop_assert!(!spec.log_path.split('/').any(|part| part == ".."));
            prop_assert!(!spec.log_path.starts_with('/'));
            prop_assert!(!spec.command[0].contains('\0'));
            let view = view();
            let container = ContainerView { resources: spec.resources.clone(), spec: Arc::new(spec), ..view.containers[0].clone() };
            let _ = container_status(&view, &container, "");
        }
    }

    #[test]
    fn what_a_status_says_of_resources_is_understood_as_the_same(
        period in 1_000_i64..=1_000_000, quota in 1_000_i64..10_000_000, shares in 2_i64..=262_144,
        memory in 1_i64..1 << 50, oom in -1000_i64..=1000,
    ) {
        let wanted = v1::LinuxContainerResources {
            cpu_period: period, cpu_quota: quota, cpu_shares: shares, memory_limit_in_bytes: memory,
            memory_swap_limit_in_bytes: memory, oom_score_adj: oom, ..Default::default()
        };
        let parsed = resources("linux", wanted.clone()).unwrap();
        prop_assert_eq!(linux_container_resources(&parsed), wanted);
    }
}
