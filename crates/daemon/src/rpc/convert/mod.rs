//! CRI messages to specs, and views to CRI messages.
//!
//! Every rule about what a request may say is here and nowhere behind: past this edge no text is unchecked and no
//! `Option` must be `Some`. A refusal names the field as the client wrote it ("config.linux.…") and the rule.
//!
//! Nothing here asks the kernel, an image or another pod: whether a path exists, a handler is configured or a user is
//! known is found out later.

mod container;
mod filter;
mod image;
mod pod;
mod resources;
mod security;
mod signal;
mod text;
mod view;

#[cfg(test)]
mod tests;

pub use container::{check_arguments, container_spec};
pub use filter::{ContainerFilter, PodFilter};
pub use image::{ImageFacts, image, uid_or_username};
pub use pod::pod_spec;
pub use resources::{linux_container_resources, resources};
pub use signal::{signal_from_cri, signal_to_cri};
pub use view::{container, container_status, pod_sandbox, pod_sandbox_status};

/// Bytes of a pod's or container's metadata.name, .namespace or .uid. Kubernetes stops at 253.
pub const NAME_BYTES_MAX: usize = 512;
/// Bytes of any one path: the kernel's PATH_MAX less the closing NUL.
pub const PATH_BYTES_MAX: usize = 4095;
/// Bytes of all keys and values of one map of labels or annotations. Kubernetes allows 256 KiB of annotations per
/// object, kubelet adds its own.
pub const MAP_BYTES_MAX: usize = 1 << 20;
/// Bytes of one argument or environment entry: the kernel's MAX_ARG_STRLEN (32 pages) less the closing NUL.
pub const ARG_BYTES_MAX: usize = 32 * 4096 - 1;
/// Bytes of all arguments, and again of all environment entries: the kernel refuses more than 2 MiB in sum with the
/// usual stack limit of 8 MiB.
pub const ARGS_BYTES_MAX: usize = 2 << 20;
/// Entries of command, args or envs. Each costs the kernel a pointer besides its bytes.
pub const ARGS_MAX: usize = 65_536;
/// Volumes of one container. Kubernetes' largest pods have a few dozen.
pub const MOUNTS_MAX: usize = 1024;
/// Volumes of one container that are images. Each is a descriptor of the message that starts the container, which takes
/// 253.
pub const IMAGE_VOLUMES_MAX: usize = 128;
/// Devices, and again CDI devices, of one container.
pub const DEVICES_MAX: usize = 1024;
/// Masked paths, and again read-only paths, of one container.
pub const PATHS_MAX: usize = 1024;
/// Ports of one pod: every port there is, for TCP.
pub const PORTS_MAX: usize = 65_535;
/// Supplementary groups of a process: the kernel's NGROUPS_MAX.
pub const GROUPS_MAX: usize = 65_536;
/// Bytes of a host name: the kernel's __NEW_UTS_LEN.
pub const HOSTNAME_BYTES_MAX: usize = 64;
/// Bytes of everything in a dns_config; Kubernetes allows 32 search domains of 2048 characters in all.
pub const DNS_BYTES_MAX: usize = 16 << 10;
/// Sysctls of one pod.
pub const SYSCTLS_MAX: usize = 1024;
/// Bytes of one sysctl's name or value, and of one cgroup file's value: the kernel takes at most a page.
pub const SETTING_BYTES_MAX: usize = 4095;
