//! What kubelet would send: pods and containers as CRI messages, with everything filled in that a test does not care
//! about.

use crate::images::TOOL_IMAGE;
use knarr_cri_api::v1;

/// A pod's configuration with the usual metadata. Names of pods are unique within a test.
pub fn pod(name: &str) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-of-{name}"),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        labels: [("io.kubernetes.pod.name".into(), name.into())].into(),
        annotations: [("note".into(), "kept as it is".into())].into(),
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(Mode::Pod, Mode::Container, Mode::Pod)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The modes of a namespace.
pub use knarr_cri_api::v1::NamespaceMode as Mode;

/// network, pid, ipc
pub fn namespaces(network: Mode, pid: Mode, ipc: Mode) -> v1::NamespaceOption {
    v1::NamespaceOption { network: network.into(), pid: pid.into(), ipc: ipc.into(), ..Default::default() }
}

/// A pod on the host's network.
pub fn host_network_pod(name: &str) -> v1::PodSandboxConfig {
    let mut config = pod(name);
    security_of_pod(&mut config).namespace_options = Some(namespaces(Mode::Node, Mode::Container, Mode::Pod));
    config.hostname.clear();
    config
}

/// The pod's security context, to be changed.
pub fn security_of_pod(config: &mut v1::PodSandboxConfig) -> &mut v1::LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// A container that runs the tool with these words.
pub fn container(name: &str, words: &[&str]) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(v1::ImageSpec {
            image: TOOL_IMAGE.into(),
            user_specified_image: TOOL_IMAGE.into(),
            ..Default::default()
        }),
        args: words.iter().map(|w| (*w).to_owned()).collect(),
        labels: [("io.kubernetes.container.name".into(), name.into())].into(),
        annotations: [("io.kubernetes.container.restartCount".into(), "0".into())].into(),
        log_path: format!("{name}/0.log"),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources::default()),
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces(Mode::Pod, Mode::Container, Mode::Pod)),
                masked_paths: MASKED.map(str::to_owned).to_vec(),
                readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// What kubelet masks by default.
const MASKED: [&str; 4] = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/sys/firmware"];
/// What kubelet makes read-only by default.
const READ_ONLY: [&str; 3] = ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq"];

/// The container's security context, to be changed.
pub fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The container's resources, to be changed.
pub fn resources(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// A volume of the host.
pub fn mount(host_path: impl AsRef<std::path::Path>, container_path: &str) -> v1::Mount {
    v1::Mount {
        host_path: host_path.as_ref().display().to_string(),
        container_path: container_path.into(),
        ..Default::default()
    }
}

/// A number that may be absent.
pub fn int(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}
