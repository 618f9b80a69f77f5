//! The daemon's configuration: one typed struct, its defaults and its manual in one place.
//!
//! `load` reads and merges files and says precisely what is wrong with them; `paths` derives where everything lies;
//! `manual` prints `knarr config default` and docs/config.md from the doc comments below. Nothing here looks at the
//! machine: whether a directory exists or a bridge can be made is for the part that uses it to find out.

mod load;
mod manual;
mod paths;
mod section;
pub mod suggest;
mod value;

use std::path::{Path, PathBuf};

use section::section;

pub use load::{ConfigError, Problem, SYSTEM_FILE};
pub use paths::{Paths, cli_dir, default_socket};
pub use value::{ByteSize, FileMode, Span};

/// The `version` that this program reads.
pub const VERSION: u32 = 1;

section! {
    /// The top of the file: where one instance of knarr keeps its things.
    pub struct Config {
        /// The version of this file's format. Only 1 exists; the key may be left out.
        version: u32 = VERSION,
        /// Moves everything at once: with `root = "/srv/one"` state lies in /srv/one/state, what belongs to living pods
        /// in /srv/one/run and the socket at /srv/one/knarr.sock. Empty: the system's places. `--root` on the command
        /// line wins over this key. Several instances with different roots run side by side; those that use the
        /// built-in network also need a bridge and subnets of their own.
        root: PathBuf = PathBuf::new(),
        /// What must survive a reboot: images, records, writable layers, addresses. Empty: /var/lib/knarr, or
        /// `state` below `root`.
        state_dir: PathBuf = PathBuf::new(),
        /// What belongs to living pods and is gone at boot. Empty: /run/knarr, or `run` below `root`.
        run_dir: PathBuf = PathBuf::new(),
    } with {
        socket: Socket,
        log: Log,
        shim: Shim,
        cgroup: Cgroup,
        network: Network,
        image: Image,
        streaming: Streaming,
        security: Security,
        devices: Devices,
        resources: Resources,
        limits: Limits,
        stats: Stats,
    }
}

section! {
    /// The gRPC socket that kubelet, crictl and knarr itself talk to. Whoever may write to it is root on this machine.
    pub struct Socket {
        /// Empty: /run/knarr/knarr.sock, or `knarr.sock` below `root`. At most 107 bytes.
        path: PathBuf = PathBuf::new(),
        /// Permission bits, octal.
        mode: FileMode = FileMode(0o660),
        /// Name or number of the group that owns the socket; members of it are as good as root.
        group: String = "root".to_owned(),
    }
}

section! {
    /// The daemon's own log, on standard error.
    pub struct Log {
        /// `error`, `warn`, `info`, `debug` or `trace`.
        level: LogLevel = LogLevel::Info,
        /// `text` for people and the journal, `json` for collectors.
        format: LogFormat = LogFormat::Text,
    }
}

section! {
    /// The small process that is the parent of a pod's containers.
    pub struct Shim {
        /// The shim's executable. Empty: `knarr-shim` beside the knarr executable, else /usr/libexec/knarr/knarr-shim.
        path: PathBuf = PathBuf::new(),
        /// `runtime`: shims live in a cgroup of their own beside the daemon, so that a pod's CPU limit does not slow
        /// its own exec and probes. `pod`: in a leaf of their pod's cgroup, so that the pod is charged for them.
        cgroup: ShimCgroup = ShimCgroup::Runtime,
    }
}

section! {
    /// The cgroups of pods.
    pub struct Cgroup {
        /// Who makes cgroups, which must be kubelet's `cgroupDriver`: `systemd` (asked over D-Bus; needs cgroup v2),
        /// `cgroupfs` (knarr itself) or `auto`, which is `systemd` where systemd is the machine's init, the hierarchy is
        /// v2 only and D-Bus answers, and `cgroupfs` elsewhere. A kubelet that asks its runtime is told which it is.
        driver: CgroupDriver = CgroupDriver::Auto,
        /// The cgroup in which pods lie that name no parent themselves, as those of `knarr run` and crictl. kubelet
        /// always names one. A path for the cgroupfs driver, a slice (`pods.slice`) for the systemd driver.
        /// At its start an instance removes what it does not know below its parent, so no two may share one. Empty:
        /// /knarr or knarr.slice, or with a `root` /knarr- or knarr- and eight digits that follow from it.
        parent: String = String::new(),
    }
}

section! {
    /// The network of pods: CNI plugins or the built-in bridge.
    pub struct Network {
        /// `auto`: CNI whenever `cni.conf_dir` holds a configuration, the built-in bridge otherwise. `cni`: CNI only,
        /// and the node is not ready until there is a configuration; set this on a cluster's node, where pods must
        /// not start on another network before the cluster's own is installed. `builtin`: never CNI.
        mode: NetworkMode = NetworkMode::Auto,
        /// Where network namespaces are pinned. Empty: /run/netns, or `run/netns` below `root`.
        netns_dir: PathBuf = PathBuf::new(),
    } with {
        cni: Cni,
        builtin: Builtin,
    }
}

section! {
    /// CNI plugins. The directory is watched; a changed configuration counts for the next pod.
    pub struct Cni {
        /// Where network configurations lie; the first of each name in lexical order counts.
        conf_dir: PathBuf = "/etc/cni/net.d".into(),
        /// Where plugins are looked for, in this order.
        bin_dirs: Vec<PathBuf> = vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
        /// How long one plugin may take before it is killed and its pod's step fails.
        plugin_timeout: Span = Span::seconds(60),
        /// How many networks of the directory each pod joins, in lexical order of their files.
        max_networks: u32 = 1,
    }
}

section! {
    /// The built-in network: a bridge on this host, addresses, masquerading and host ports. It joins no other host.
    pub struct Builtin {
        /// The bridge's name, made when the first pod needs it. At most 15 bytes.
        bridge: String = "knarr0".to_owned(),
        /// Addresses of pods; the first is the bridge's. Empty: no IPv4.
        subnet_v4: String = "10.92.0.0/16".to_owned(),
        /// Addresses of pods; the first is the bridge's. Empty: no IPv6.
        subnet_v6: String = "fd6b:6e61:7272::/64".to_owned(),
        /// Whether ports that a pod asks for are opened on the host.
        host_ports: bool = true,
        /// Whether traffic that leaves the subnet carries the host's address.
        masquerade: bool = true,
        /// Largest packet in bytes; 0: that of the interface with the default route.
        mtu: u32 = 0,
    }
}

section! {
    /// Pulling and keeping images.
    pub struct Image {
        /// How many layers are fetched and unpacked at the same time, over all pulls.
        max_concurrent_layers: u32 = 6,
        /// A pull that receives no byte from a registry for this long turns to the next mirror or fails.
        pull_progress_timeout: Span = Span::seconds(60),
        /// Images that garbage collection must leave alone: names, with `*` for any run of characters.
        pinned: Vec<String> = Vec::new(),
        /// An image that unpacks to more than this is refused; 0: no limit.
        max_unpacked_bytes: ByteSize = ByteSize(256 << 30),
    } with {
        registry: Registry,
    }
}

section! {
    /// How registries are reached.
    pub struct Registry {
        /// Directories with one folder for each registry, `<host[:port]>/hosts.toml` and its certificates, in
        /// containerd's format; the first directory that knows a registry counts.
        config_path: Vec<PathBuf> =
            vec!["/etc/knarr/certs.d".into(), "/etc/containerd/certs.d".into(), "/etc/docker/certs.d".into()],
    }
}

section! {
    /// The HTTP server that carries the streams of exec, attach and port-forward. A client gets a URL with a secret over
    /// the gRPC socket; kubelet connects to it on this machine for its own clients.
    pub struct Streaming {
        /// The address that it listens on. On another than a loopback address, set `tls_cert`, `tls_key` and
        /// `tls_client_ca`: the secret in the URL is all that keeps others out, and without TLS it is readable.
        address: String = "127.0.0.1".to_owned(),
        /// The port; 0: a free one, another after each start of the daemon.
        port: u16 = 0,
        /// What clients are told to connect to, as `"https://node1:10010"`, where that is not the address itself. Empty:
        /// the address and the port.
        base_url: String = String::new(),
        /// The server's certificate and those that signed it (PEM). Set, the server speaks TLS; it goes with `tls_key`.
        tls_cert: PathBuf = PathBuf::new(),
        /// The certificate's private key (PEM).
        tls_key: PathBuf = PathBuf::new(),
        /// Authorities (PEM), one of which must have signed a client's certificate. Empty: clients need none.
        tls_client_ca: PathBuf = PathBuf::new(),
        /// A session without a byte in either direction for this long is ended.
        idle_timeout: Span = Span::seconds(4 * 60 * 60),
        /// How long a client may take for its HTTP request and to make its streams.
        creation_timeout: Span = Span::seconds(30),
        /// How many clients may be connected at the same time. Fewer where the daemon may not have ten times as many files
        /// open (systemd: LimitNOFILE).
        max_sessions: u32 = 1024,
    }
}

section! {
    /// What containers may do when the pod does not say.
    pub struct Security {
        /// A seccomp profile (JSON, as Docker's) that takes the place of the built-in one for `RuntimeDefault`. Empty: the
        /// built-in one.
        seccomp_profile: PathBuf = PathBuf::new(),
        /// Capabilities of a container that is not privileged, before its own `add` and `drop`.
        default_capabilities: Vec<String> = DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
    }
}

section! {
    /// Devices of containers. The keys that containerd has are called as there.
    pub struct Devices {
        /// Where specifications of the Container Device Interface (CDI) lie, `*.json` and `*.yaml`; of two directories that
        /// describe one device the later counts. Read afresh for each container that asks for such a device. Empty: there
        /// are none.
        cdi_spec_dirs: Vec<PathBuf> = vec!["/etc/cdi".into(), "/var/run/cdi".into()],
        /// Whether device nodes belong to runAsUser and runAsGroup of the container, where those are not 0, and not to
        /// whom they belong on the host.
        device_ownership_from_security_context: bool = false,
        /// Whether a privileged container has no device of the host but those that it asks for.
        privileged_without_host_devices: bool = false,
        /// Whether such a container may still open every device for which it makes a node itself.
        privileged_without_host_devices_all_devices_allowed: bool = false,
    }
}

section! {
    /// Classes of service that pods ask for by annotations, `blockio.resources.beta.kubernetes.io/…` and
    /// `rdt.resources.beta.kubernetes.io/…`. knarr knows no classes yet; the keys are containerd's.
    pub struct Resources {
        /// Whether a container that asks for a class of block I/O runs without it. Else it is refused.
        ignore_blockio_not_enabled_errors: bool = false,
        /// Whether a container that asks for a class of caches and memory bandwidth (Intel RDT) runs without it. Else it is
        /// refused.
        ignore_rdt_not_enabled_errors: bool = false,
    }
}

section! {
    /// Bounds on what one request or one container may take.
    pub struct Limits {
        /// What an ExecSync keeps of each of its two streams; the rest is read and dropped.
        exec_output_bytes: ByteSize = ByteSize(16 << 20),
        /// How long the end of an exec's streams is waited for once its process has ended: a child that it left behind may
        /// hold them open for ever.
        exec_drain: Span = Span::milliseconds(100),
        /// After this long a request fails with DEADLINE_EXCEEDED unless its client set a shorter deadline. Pulls, and calls
        /// that carry their own timeout, are not counted.
        request_deadline: Span = Span::seconds(120),
        /// The same for RunPodSandbox, which waits for CNI plugins.
        run_pod_deadline: Span = Span::seconds(240),
        /// Processes and threads of one container whose pod sets no limit; 0: no limit.
        pids_limit: u32 = 32_768,
        /// How long the daemon waits at its end for requests under way. Pods go on running.
        shutdown_deadline: Span = Span::seconds(10),
    }
}

section! {
    /// Measuring what containers use.
    pub struct Stats {
        /// How old the disk usage of a writable layer may be before it is counted again. CPU and memory are always
        /// read afresh.
        disk_usage_max_age: Span = Span::seconds(30),
    }
}

/// What Docker, containerd and podman agree a container has: no more than a package's post-install script needs.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

macro_rules! words {
    ($(#[$doc:meta])+ pub enum $name:ident { $( $(#[$variant_doc:meta])+ $variant:ident = $word:literal, )+ }) => {
        $(#[$doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
        pub enum $name { $( $(#[$variant_doc])+ #[serde(rename = $word)] $variant, )+ }

        impl $name {
            /// The word that stands for it in the file.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word, )+ }
            }
        }
    };
}

words! {
    /// How much the daemon says.
    pub enum LogLevel {
        /// What failed.
        Error = "error",
        /// And what an operator should look at.
        Warn = "warn",
        /// And what began and ended.
        Info = "info",
        /// And each step.
        Debug = "debug",
        /// And each message.
        Trace = "trace",
    }
}

words! {
    /// In which form it says it.
    pub enum LogFormat {
        /// One readable line for each event.
        Text = "text",
        /// One JSON object for each event.
        Json = "json",
    }
}

words! {
    /// Where shims live.
    pub enum ShimCgroup {
        /// Beside the daemon.
        Runtime = "runtime",
        /// In the pod's own cgroup.
        Pod = "pod",
    }
}

words! {
    /// Who makes cgroups.
    pub enum CgroupDriver {
        /// systemd where it can, else knarr.
        Auto = "auto",
        /// knarr, in the file system.
        Cgroupfs = "cgroupfs",
        /// systemd, asked over D-Bus.
        Systemd = "systemd",
    }
}

words! {
    /// Which network pods get.
    pub enum NetworkMode {
        /// CNI where it is configured, the built-in one elsewhere.
        Auto = "auto",
        /// CNI only.
        Cni = "cni",
        /// The built-in one only.
        Builtin = "builtin",
    }
}

/// Where packages put the shim when it is not beside `knarr`.
const PACKAGED_SHIM: &str = "/usr/libexec/knarr/knarr-shim";
const SHIM_NAME: &str = "knarr-shim";

impl Config {
    /// Where everything of this instance lies.
    pub fn paths(&self) -> Paths {
        Paths::of(self)
    }

    /// Where to look for the shim's executable, best first. `own_executable` is the path of the running knarr.
    pub fn shim_candidates(&self, own_executable: Option<&Path>) -> Vec<PathBuf> {
        if !self.shim.path.as_os_str().is_empty() {
            return vec![self.shim.path.clone()];
        }
        let beside = own_executable.and_then(Path::parent).map(|dir| dir.join(SHIM_NAME));
        beside.into_iter().chain([PathBuf::from(PACKAGED_SHIM)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shim_is_looked_for_beside_knarr_first() {
        let candidates = Config::default().shim_candidates(Some(Path::new("/opt/knarr/bin/knarr")));
        assert_eq!(candidates, [Path::new("/opt/knarr/bin/knarr-shim"), Path::new(PACKAGED_SHIM)]);
        let shim = Shim { path: "/x/shim".into(), ..Shim::default() };
        let config = Config { shim, ..Config::default() };
        assert_eq!(config.shim_candidates(Some(Path::new("/opt/knarr/bin/knarr"))), [Path::new("/x/shim")]);
    }
}
