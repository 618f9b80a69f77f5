//! Good requests as kubelet makes them, what is understood of them, and the rules that need more than one field.

mod arbitrary;
mod refused;
mod shown;
mod users;

use super::*;
use knarr_cri_api::v1;
use knarr_cri_api::v1::NamespaceMode as Mode;
use knarr_model::input::{PodNetwork, Resolved};
use knarr_model::resources::{PodResources, Resources};
use knarr_model::spec::{
    ContainerSpec, GroupsPolicy, MountSource, PidNamespace, PodNamespaces, PodSpec, Profile, Propagation, Protocol,
    RunAs,
};
use knarr_model::view::{ContainerState, ContainerView, PodView, Reason};
use knarr_model::{ContainerId, ErrorKind, PodId};
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
fn a_volume_from_an_image_is_read_only_and_within_it() {
    let mut config = container_config();
    let image = Some(v1::ImageSpec { image: "data:1".into(), ..Default::default() });
    config.mounts = vec![v1::Mount { container_path: "/data".into(), image, readonly: true, ..Default::default() }];
    config.mounts[0].image_sub_path = "a/b".into();
    let parsed = container_spec(config.clone(), &pod()).unwrap();
    assert_eq!(parsed.mounts[0].source, MountSource::Image { image: "data:1".into(), sub_path: "a/b".into() });
    config.mounts[0].readonly = false;
    assert_eq!(refusal(config.clone()).0, "config.mounts[0].readonly");
    config.mounts[0].readonly = true;
    for bad in ["../x", "/a", "a/../../b"] {
        config.mounts[0].image_sub_path = bad.into();
        assert_eq!(refusal(config.clone()).0, "config.mounts[0].image_sub_path", "{bad}");
    }
    config.mounts[0].image_sub_path.clear();
    config.mounts = vec![config.mounts[0].clone(); IMAGE_VOLUMES_MAX + 1];
    assert_eq!(refusal(config).0, "config.mounts");
}

/// The field and the reason of a refusal for a wrong argument.
fn refusal(config: v1::ContainerConfig) -> (String, String) {
    let error = container_spec(config, &pod()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    let (field, why) = error.message.split_once(": ").unwrap();
    (field.to_owned(), why.to_owned())
}

#[test]
fn devices_of_the_device_interface_come_from_the_field_and_from_annotations_once() {
    let mut config = container_config();
    config.annotations.insert("cdi.k8s.io/b".into(), "v/c=1,v/c=0".into());
    config.annotations.insert("cdi.k8s.io/a".into(), "vendor.com/gpu=0".into());
    let parsed = container_spec(config.clone(), &pod()).unwrap();
    assert_eq!(parsed.cdi_devices, ["vendor.com/gpu=0", "v/c=1", "v/c=0"]);
    config.annotations.insert("cdi.k8s.io/b".into(), "v/c=1,".into());
    assert_eq!(refusal(config).0, "config.annotations[cdi.k8s.io/b]");
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
    let merged = current.merged(&resources("linux", update).unwrap());
    assert_eq!(merged.memory_limit, Some(128 << 20));
    assert_eq!(merged.cpu_quota, current.cpu_quota);
    assert_eq!(merged.cpuset_cpus, current.cpuset_cpus);
    assert_eq!(merged.unified["memory.high"], "100");
    assert_eq!(merged.unified["memory.oom.group"], "1");
    assert_eq!(current.merged(&Resources::default()), current);
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
