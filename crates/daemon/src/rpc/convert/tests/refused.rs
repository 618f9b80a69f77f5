//! Bad requests: each is the good one with one thing made wrong, so that a case shows which rule refuses it.

use super::*;

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
