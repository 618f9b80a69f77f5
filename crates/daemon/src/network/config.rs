//! What can be chosen about the network. The daemon's configuration maps into these; nothing is read here.

use std::path::PathBuf;
use std::time::Duration;

/// Where the network keeps its things and how it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Where network namespaces are pinned for others to see: /run/netns, or a folder under the root.
    pub netns_dir: PathBuf,
    /// Addresses and attachment records; created 0700.
    pub state_dir: PathBuf,
    /// How CNI plugins are found and run.
    pub cni: CniConfig,
    /// The network that is there without any plugin.
    pub builtin: BuiltinConfig,
}

/// How CNI plugins are found and run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniConfig {
    /// Configurations: the first valid `.conf`, `.conflist` or `.json` in lexical order wins.
    pub conf_dir: PathBuf,
    /// Searched in order for a plugin's executable.
    pub bin_dirs: Vec<PathBuf>,
    /// Results of ADD, in libcni's layout (`results/<network>-<pod id>-<interface>`).
    pub cache_dir: PathBuf,
    /// How long one plugin may take for one command before its process group is killed.
    pub plugin_timeout: Duration,
    /// How many of the valid configurations each pod is attached to; 1 unless told otherwise.
    pub max_networks: usize,
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: "/var/lib/cni".into(),
            // Kubelet waits four minutes for a pod: two plugins that hang are still answered.
            plugin_timeout: Duration::from_secs(110),
            max_networks: 1,
        }
    }
}

/// The network that is there without any plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltinConfig {
    /// Whether pods get this network while there is no CNI configuration. On a cluster's node whose CNI is installed
    /// by a pod this must be off: else pods are started on this network before the plugin arrives.
    pub enabled: bool,
    /// Name of the bridge, at most 15 bytes; also names the nftables table.
    pub bridge: String,
    /// Pods' IPv4 addresses; the first one is the bridge's.
    pub subnet_v4: String,
    /// Pods' IPv6 addresses; `None` for IPv4 alone.
    pub subnet_v6: Option<String>,
    /// Whether host ports of pods are made.
    pub host_ports: bool,
    /// Whether traffic of pods to the outside leaves with the host's address.
    pub masquerade: bool,
    /// MTU of pods' interfaces in bytes; 0 takes that of the host's default route.
    pub mtu: u32,
}

impl Default for BuiltinConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            bridge: "knarr0".to_owned(),
            subnet_v4: "10.85.0.0/16".to_owned(),
            subnet_v6: Some("fd85:6b6e:6172:7200::/64".to_owned()),
            host_ports: true,
            masquerade: true,
            mtu: 0,
        }
    }
}
