//! What was asked for, after parsing: past the edge no `Option` must be `Some` and no text is unchecked.
//!
//! The daemon's `rpc::convert` makes these from CRI requests and refuses what it cannot express here.

use crate::resources::Resources;
use crate::{ContainerId, IdMap, UserNamespace};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A pod, as RunPodSandbox asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodSpec {
    /// metadata.name
    pub name: String,
    /// metadata.namespace
    pub namespace: String,
    /// metadata.uid
    pub uid: String,
    /// metadata.attempt
    pub attempt: u32,
    /// Empty only on the host's network: then the host's name is used.
    pub hostname: String,
    /// Absolute path, or empty: then containers' logs are not written.
    pub log_directory: String,
    /// `None`: the host's resolv.conf is copied.
    pub dns: Option<DnsConfig>,
    /// Every port, including those without a host port.
    pub port_mappings: Vec<PortMapping>,
    /// Round-trip unchanged.
    pub labels: BTreeMap<String, String>,
    /// Round-trip unchanged.
    pub annotations: BTreeMap<String, String>,
    /// The runtime handler; empty is the default one.
    pub handler: String,
    /// As kubelet gave it: an absolute cgroupfs path, a slice for the systemd driver, or empty.
    pub cgroup_parent: String,
    /// Only those that belong to a namespace of the pod; checked at the edge.
    pub sysctls: BTreeMap<String, String>,
    /// Which namespaces the pod has for itself.
    pub namespaces: PodNamespaces,
    /// Containers may be privileged only if the pod is.
    pub privileged: bool,
    /// runtime overhead plus all containers; kept for status and for other handlers.
    pub overhead: Resources,
    /// sum of all containers
    pub resources: Resources,
}

/// dns_config, taken as given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DnsConfig {
    /// nameserver lines
    pub servers: Vec<String>,
    /// the search line
    pub searches: Vec<String>,
    /// the options line
    pub options: Vec<String>,
}

/// A transport protocol that a host port can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// One port of the pod; `host_port` 0 means that it is not published on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// tcp, udp or sctp
    pub protocol: Protocol,
    /// 1..=65535
    pub container_port: u16,
    /// 0 for none
    pub host_port: u16,
    /// `None`: every address of the host
    pub host_ip: Option<IpAddr>,
}

/// Which of its namespaces a pod shares with the host, and whether its containers share one PID namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodNamespaces {
    /// NODE
    pub host_network: bool,
    /// NODE
    pub host_ipc: bool,
    /// NODE
    pub host_pid: bool,
    /// POD: one PID namespace for all containers, with an init of ours.
    pub shared_pid: bool,
    /// POD: a user namespace of the pod's own, in which all its containers are; `None` is NODE.
    pub user: Option<UserNamespace>,
}

/// A container's PID namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PidNamespace {
    /// CONTAINER: its own.
    #[default]
    Own,
    /// POD: the pod's shared one.
    Pod,
    /// NODE: the host's.
    Host,
    /// TARGET: that of another container of the same pod.
    Target(ContainerId),
}

/// A container, as CreateContainer asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerSpec {
    /// metadata.name
    pub name: String,
    /// metadata.attempt
    pub attempt: u32,
    /// image.image: what to run; an id or a name.
    pub image: String,
    /// image.user_specified_image, for status only.
    pub user_image: String,
    /// Overrides the image's entry point when not empty.
    pub command: Vec<String>,
    /// Overrides the image's arguments when not empty.
    pub args: Vec<String>,
    /// Absolute, or empty for the image's.
    pub working_dir: String,
    /// In order; later wins.
    pub envs: Vec<(String, String)>,
    /// In order.
    pub mounts: Vec<Mount>,
    /// CRI devices.
    pub devices: Vec<Device>,
    /// Fully qualified CDI names.
    pub cdi_devices: Vec<String>,
    /// Round-trip unchanged.
    pub labels: BTreeMap<String, String>,
    /// Round-trip unchanged.
    pub annotations: BTreeMap<String, String>,
    /// Relative to the pod's log directory; empty for no log.
    pub log_path: String,
    /// Keep stdin open.
    pub stdin: bool,
    /// Close stdin when the first client that attached detaches.
    pub stdin_once: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Number in Linux' numbering; `None`: the image's, then SIGTERM.
    pub stop_signal: Option<u8>,
    /// What it may use.
    pub resources: Resources,
    /// Who it is and what it may do.
    pub security: Security,
}

/// Where a mount's content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// An absolute path on the host.
    Host(String),
    /// An image, optionally one folder of it.
    Image {
        /// reference or id
        image: String,
        /// relative; empty for the whole image
        sub_path: String,
    },
}

/// Whether mounts made on one side appear on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// rprivate
    #[default]
    Private,
    /// rslave
    HostToContainer,
    /// rshared
    Bidirectional,
}

/// One volume of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path in the container.
    pub container_path: String,
    /// What is put there.
    pub source: MountSource,
    /// no writes at the top mount
    pub read_only: bool,
    /// no writes in submounts either
    pub recursive_read_only: bool,
    /// SELinux relabelling was asked for.
    pub selinux_relabel: bool,
    /// private, slave or shared
    pub propagation: Propagation,
    /// Files that belong to an id of the pod's user namespace by number belong to it in fact: the pod's map of uids,
    /// or nothing where files keep the host's owners.
    pub uid_mappings: Vec<IdMap>,
    /// The same of gids; there is one exactly when there is one of uids.
    pub gid_mappings: Vec<IdMap>,
}

/// One CRI device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Device {
    pub container_path: String,
    pub host_path: String,
    /// some of "rwm"
    pub permissions: String,
}

/// Whom to run as, before the image has been asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RunAs {
    /// What the image says, else root.
    #[default]
    Image,
    /// run_as_user
    Uid(u32),
    /// run_as_username: must be in the image's /etc/passwd.
    Name(String),
}

/// How supplementary groups come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupsPolicy {
    /// The image's /etc/group plus those of the request.
    #[default]
    Merge,
    /// Only those of the request.
    Strict,
}

/// seccomp or AppArmor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Profile {
    /// None.
    #[default]
    Unconfined,
    /// The runtime's own.
    RuntimeDefault,
    /// seccomp: absolute path of a JSON file; AppArmor: name of a loaded profile.
    Localhost(String),
}

/// SELinux label parts; empty parts are filled in by the host's policy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct SelinuxOptions {
    pub user: String,
    pub role: String,
    pub kind: String,
    pub level: String,
}

/// Who a container's processes are and what they may do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Security {
    /// Everything the host has, nothing masked.
    pub privileged: bool,
    /// which PID namespace
    pub pid: PidNamespace,
    /// NODE: the host's network; must agree with the pod
    pub host_network: bool,
    /// NODE
    pub host_ipc: bool,
    /// user
    pub run_as: RunAs,
    /// primary group
    pub run_as_group: Option<u32>,
    /// added by the request
    pub supplemental_groups: Vec<u32>,
    /// whether the image's groups count
    pub groups_policy: GroupsPolicy,
    /// Names without CAP_, upper case; may hold ALL.
    pub add_capabilities: Vec<String>,
    /// Names without CAP_, upper case; may hold ALL.
    pub drop_capabilities: Vec<String>,
    /// Names without CAP_, upper case.
    pub add_ambient_capabilities: Vec<String>,
    /// read-only root file system
    pub read_only_rootfs: bool,
    /// set no_new_privs
    pub no_new_privs: bool,
    /// absolute paths made unreadable
    pub masked_paths: Vec<String>,
    /// absolute paths made read-only
    pub readonly_paths: Vec<String>,
    /// system call filter
    pub seccomp: Profile,
    /// AppArmor profile
    pub apparmor: Profile,
    /// SELinux label, if any part was given
    pub selinux: Option<SelinuxOptions>,
}
