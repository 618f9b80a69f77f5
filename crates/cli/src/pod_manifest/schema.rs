//! A pod as a manifest asks for it, after parsing: only what knarr does, in types that cannot be half right.

use std::collections::BTreeMap;

use super::quantity::Quantity;

/// Names to bytes: the content of one ConfigMap or Secret of the same file.
pub type Data = BTreeMap<String, Vec<u8>>;

/// Everything that one file holds.
#[derive(Debug, Default)]
pub struct Manifest {
    /// In the order of the file.
    pub pods: Vec<Pod>,
    /// By (namespace, name).
    pub config_maps: BTreeMap<(String, String), Data>,
    /// By (namespace, name).
    pub secrets: BTreeMap<(String, String), Data>,
}

/// One pod.
#[derive(Debug, Clone)]
pub struct Pod {
    /// metadata.name
    pub name: String,
    /// metadata.namespace, "default" where it has none.
    pub namespace: String,
    /// metadata.labels
    pub labels: BTreeMap<String, String>,
    /// metadata.annotations
    pub annotations: BTreeMap<String, String>,
    /// In their order; each before the next, sidecars only started before the next.
    pub init_containers: Vec<Container>,
    /// At least one.
    pub containers: Vec<Container>,
    /// Volumes by name, in their order.
    pub volumes: Vec<(String, Volume)>,
    /// Whether ended containers are started again.
    pub restart_policy: RestartPolicy,
    /// terminationGracePeriodSeconds
    pub grace_s: i64,
    /// spec.hostname, or the pod's name.
    pub hostname: String,
    /// Which namespaces of the host it uses.
    pub host: HostNamespaces,
    /// shareProcessNamespace
    pub share_processes: bool,
    /// hostUsers: false. The pod's ids are others than the host's.
    pub own_users: bool,
    /// How names are resolved.
    pub dns: Dns,
    /// (address, names) for /etc/hosts.
    pub host_aliases: Vec<(String, Vec<String>)>,
    /// securityContext of the pod.
    pub security: PodSecurity,
    /// runtimeClassName, taken as the name of a handler; empty for the default one.
    pub handler: String,
}

/// restartPolicy
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// However it ended.
    Always,
    /// Unless it ended with 0.
    OnFailure,
    /// Not at all.
    Never,
}

/// hostNetwork, hostPID, hostIPC
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostNamespaces {
    /// The host's network.
    pub network: bool,
    /// The host's processes.
    pub pid: bool,
    /// The host's System V IPC.
    pub ipc: bool,
}

/// dnsPolicy and dnsConfig
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dns {
    /// Whether the host's servers, search list and options come first.
    pub with_host: bool,
    /// nameservers
    pub servers: Vec<String>,
    /// searches
    pub searches: Vec<String>,
    /// options, "name" or "name:value"
    pub options: Vec<String>,
}

/// What a container is in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before what follows.
    Init,
    /// An init container with restartPolicy Always: started before what follows, stopped after the main ones.
    Sidecar,
    /// One of `containers`.
    Main,
}

/// imagePullPolicy
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Each time.
    Always,
    /// Where it is missing.
    IfNotPresent,
    /// It must be there.
    Never,
}

/// One container.
#[derive(Debug, Clone)]
pub struct Container {
    /// Unique in the pod; a DNS label.
    pub name: String,
    /// What it is in its pod.
    pub role: Role,
    /// As written.
    pub image: String,
    /// When to pull it.
    pub pull: PullPolicy,
    /// Before expansion.
    pub command: Vec<String>,
    /// Before expansion.
    pub args: Vec<String>,
    /// Empty for the image's.
    pub working_dir: String,
    /// Whole ConfigMaps and Secrets, before `env`.
    pub env_from: Vec<EnvFrom>,
    /// In order; later ones win and see earlier ones.
    pub env: Vec<(String, EnvValue)>,
    /// Ports, published or not.
    pub ports: Vec<Port>,
    /// What it may use.
    pub resources: Resources,
    /// Where volumes appear.
    pub mounts: Vec<VolumeMount>,
    /// Its own securityContext.
    pub security: ContainerSecurity,
    /// Keeps standard input open.
    pub stdin: bool,
    /// Closes it after the first attach.
    pub stdin_once: bool,
    /// Gives it a terminal.
    pub tty: bool,
    /// lifecycle.stopSignal, "SIGUSR1"; empty for the image's.
    pub stop_signal: String,
}

/// envFrom
#[derive(Debug, Clone)]
pub struct EnvFrom {
    /// Put before each name.
    pub prefix: String,
    /// Where the names come from.
    pub source: DataRef,
}

/// A ConfigMap or Secret.
#[derive(Debug, Clone)]
pub struct DataRef {
    /// Of a Secret, not of a ConfigMap.
    pub secret: bool,
    /// Its name in the pod's namespace.
    pub name: String,
    /// Whether it may be missing.
    pub optional: bool,
}

/// One variable's value.
#[derive(Debug, Clone)]
pub enum EnvValue {
    /// A text with references.
    Text(String),
    /// One key of a ConfigMap or Secret.
    Key(DataRef, String),
    /// A field of the pod.
    Field(FieldRef),
    /// An amount of a container, in units of the divisor.
    Resource {
        /// Whose; empty for this one.
        container: String,
        /// limits or requests
        limit: bool,
        /// "cpu" or "memory"
        resource: String,
        /// At least 1m.
        divisor: Quantity,
    },
}

/// A field that a variable can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldRef {
    /// metadata.name
    Name,
    /// metadata.namespace
    Namespace,
    /// metadata.uid
    Uid,
    /// metadata.labels['key']
    Label(String),
    /// metadata.annotations['key']
    Annotation(String),
    /// spec.nodeName: this machine's name.
    NodeName,
    /// status.podIP
    PodIp,
    /// status.podIPs, joined by commas
    PodIps,
}

/// One of `ports`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// May be empty.
    pub name: String,
    /// 1–65535
    pub container_port: i32,
    /// 0 for none.
    pub host_port: i32,
    /// Empty for every address.
    pub host_ip: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// limits and requests that were written.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    /// limits.cpu, in cores
    pub cpu_limit: Option<Quantity>,
    /// requests.cpu; the limit where only that is given
    pub cpu_request: Option<Quantity>,
    /// limits.memory, in bytes
    pub memory_limit: Option<Quantity>,
    /// requests.memory; the limit where only that is given
    pub memory_request: Option<Quantity>,
    /// Page size as the kernel writes it ("2MB") and bytes.
    pub huge_pages: Vec<(String, u64)>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Volume {
    /// A path of this machine.
    HostPath {
        /// Absolute.
        path: String,
        /// What must be there.
        kind: HostPathKind,
    },
    /// An empty directory that lives as long as the pod.
    EmptyDir {
        /// In memory.
        memory: bool,
        /// Enforced for memory only.
        size_limit_bytes: Option<u64>,
    },
    /// Files from a ConfigMap or Secret.
    Files {
        /// Of a Secret, not of a ConfigMap.
        secret: bool,
        /// Its name in the pod's namespace.
        name: String,
        /// (key, relative path, mode); empty for all keys.
        items: Vec<(String, String, Option<u32>)>,
        /// Mode of files that say none.
        default_mode: u32,
        /// Whether it and its keys may be missing.
        optional: bool,
    },
    /// The content of an image, read-only.
    Image {
        /// Its name.
        reference: String,
        /// When to pull it.
        pull: PullPolicy,
    },
}

/// hostPath.type
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum HostPathKind {
    Anything,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

/// One of `volumeMounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// Names a volume of the pod.
    pub volume: String,
    /// Where in the container.
    pub path: String,
    /// No writes.
    pub read_only: bool,
    /// No writes below either.
    pub recursive_read_only: RecursiveReadOnly,
    /// A part of the volume; may hold references where `expand_sub_path` is set.
    pub sub_path: String,
    /// subPathExpr, not subPath.
    pub expand_sub_path: bool,
    /// Whether mounts made on one side appear on the other.
    pub propagation: Propagation,
}

/// recursiveReadOnly
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum RecursiveReadOnly {
    #[default]
    Disabled,
    IfPossible,
    Enabled,
}

/// mountPropagation
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum Propagation {
    #[default]
    None,
    HostToContainer,
    Bidirectional,
}

/// seccompProfile or appArmorProfile
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// The runtime's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// seccomp: a path below kubelet's seccomp directory; AppArmor: a loaded profile's name.
    Localhost(String),
}

/// seLinuxOptions
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct SeLinux {
    pub user: String,
    pub role: String,
    pub kind: String,
    pub level: String,
}

/// What a pod and each of its containers can both say; the container's word wins.
#[derive(Debug, Clone, Default)]
pub struct SharedSecurity {
    /// runAsUser
    pub user: Option<i64>,
    /// runAsGroup
    pub group: Option<i64>,
    /// runAsNonRoot
    pub non_root: Option<bool>,
    /// seccompProfile
    pub seccomp: Option<Profile>,
    /// appArmorProfile
    pub apparmor: Option<Profile>,
    /// seLinuxOptions
    pub selinux: Option<SeLinux>,
}

/// securityContext of a pod.
#[derive(Debug, Clone, Default)]
pub struct PodSecurity {
    /// What containers inherit.
    pub shared: SharedSecurity,
    /// supplementalGroups
    pub groups: Vec<i64>,
    /// supplementalGroupsPolicy: Strict
    pub strict_groups: bool,
    /// fsGroup
    pub fs_group: Option<i64>,
    /// sysctls
    pub sysctls: BTreeMap<String, String>,
}

/// securityContext of a container.
#[derive(Debug, Clone, Default)]
pub struct ContainerSecurity {
    /// What it says instead of its pod.
    pub shared: SharedSecurity,
    /// Everything that the host may.
    pub privileged: bool,
    /// capabilities.add
    pub add: Vec<String>,
    /// capabilities.drop
    pub drop: Vec<String>,
    /// readOnlyRootFilesystem
    pub read_only_root: bool,
    /// allowPrivilegeEscalation: false
    pub no_new_privileges: bool,
    /// procMount: Unmasked
    pub unmasked: bool,
}

impl Pod {
    /// All containers, init containers first.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers.iter().chain(&self.containers)
    }

    /// The volume of this name.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|(known, _)| known == name).map(|(_, volume)| volume)
    }
}
