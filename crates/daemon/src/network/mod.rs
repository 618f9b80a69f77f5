//! The pod's network: CNI where there is a configuration for it, built in where there is none.

use knarr_model::spec::{DnsConfig, PortMapping};
use knarr_model::{Error, PodId};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
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

/// What the network must know of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodIdentity {
    /// CNI_CONTAINERID; every name in the kernel follows from it.
    pub id: PodId,
    /// metadata.name
    pub name: String,
    /// metadata.namespace
    pub namespace: String,
    /// metadata.uid
    pub uid: String,
    /// For CNI's bandwidth and pod-annotations capabilities.
    pub annotations: BTreeMap<String, String>,
    /// For CNI's cgroupPath capability; may be empty.
    pub cgroup_path: String,
    /// Host ports are those with `host_port != 0`.
    pub ports: Vec<PortMapping>,
    /// The pod's host name.
    pub hostname: String,
    /// For CNI's dns capability.
    pub dns: Option<DnsConfig>,
}

/// How a pod was attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mechanism {
    /// Our bridge.
    Builtin,
    /// A CNI network list of this name.
    Cni {
        /// the first network's name
        network: String,
    },
}

/// A pod's place in the network.
#[derive(Debug, Clone, PartialEq)]
pub struct Attachment {
    /// Primary first, without repetition; never empty.
    pub ips: Vec<IpAddr>,
    /// Who made it.
    pub mechanism: Mechanism,
    /// For people (`inspectp`): the CNI result, or one of the same shape.
    pub detail: serde_json::Value,
}

/// NetworkReady, in kubelet's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Whether a pod could be attached now.
    pub ready: bool,
    /// `NetworkPluginNotReady` or empty.
    pub reason: String,
    /// What is wrong, or what is worth knowing.
    pub message: String,
}

/// The network of all pods of this node.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
}

impl Network {
    /// Makes the directories, reads what earlier lives left and starts watching links and the CNI directory.
    pub async fn open(config: NetworkConfig) -> Result<Arc<Network>, Error> {
        Ok(Arc::new(Network { config }))
    }

    /// Brings the pod's loopback up, pins its namespace and attaches it. Undoes itself on failure.
    pub async fn attach(&self, pod: &PodIdentity, netns: OwnedFd) -> Result<Attachment, Error> {
        let _ = netns;
        Err(Error::internal(format!("attach pod {}: not there yet", pod.id)))
    }

    /// Undoes [`Network::attach`] whatever is left of it; idempotent.
    pub async fn detach(&self, pod: &PodIdentity) -> Result<(), Error> {
        let _ = pod;
        Ok(())
    }

    /// Whether pods can be attached; cheap.
    pub fn status(&self) -> NetworkStatus {
        NetworkStatus { ready: true, reason: String::new(), message: String::new() }
    }

    /// Where the pod's network namespace is pinned.
    pub fn path(&self, pod: &PodId) -> PathBuf {
        self.config.netns_dir.join(format!("knarr-{}", &pod.as_str()[..32]))
    }

    /// The pinned network namespace.
    pub fn open_netns(&self, pod: &PodId) -> io::Result<OwnedFd> {
        Ok(std::fs::File::open(self.path(pod))?.into())
    }

    /// Removes what pods that are not `alive` have left; to be called once at start.
    pub async fn sweep(&self, alive: &[PodId]) -> Vec<Error> {
        let _ = alive;
        Vec::new()
    }

    /// UpdateRuntimeConfig's pod CIDRs, comma-separated: new addresses of the built-in network come from there.
    pub async fn pod_cidr(&self, cidr: &str) -> Result<(), Error> {
        let _ = cidr;
        Ok(())
    }
}
