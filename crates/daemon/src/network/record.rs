//! What is written down of each attached pod before anything is done for it: one file per pod, named by its id.
//!
//! ```text
//! <state_dir>/attachments/<pod id>      first line: "knarr-network 1 <SHA-256 of the rest>", then JSON
//! <state_dir>/addresses/<address>       the same file, for as long as the built-in network's address is taken
//! ```
//!
//! Written by rename without fsync: after a power cut a file may be empty. Then its name is enough: what the pod has in
//! the kernel is named by its id, addresses and CNI cache entries hold it.

use super::cni::Attached;
use super::{Mechanism, PodIdentity};
use knarr_model::spec::{DnsConfig, PortMapping, Protocol};
use knarr_model::{Error, PodId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

const MAGIC: &str = "knarr-network 1";
/// Bytes of one record: annotations of a pod end at 256 KiB, a CNI result at 1 MiB.
const RECORD_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A pod's attachment.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    pub pod: PodIdentity,
    pub mechanism: Mechanism,
    /// Networks of CNI; empty for the built-in one.
    pub networks: Vec<Attached>,
    /// Empty until the attachment is complete.
    pub ips: Vec<IpAddr>,
    /// The CNI results.
    pub detail: Value,
    /// Names the network namespace in /proc.
    pub netns_inode: Option<u64>,
    /// How often detaching failed only because plugins' executables were not there.
    pub missing_plugin_failures: u32,
}

#[derive(Serialize, Deserialize)]
struct File {
    id: String,
    name: String,
    namespace: String,
    uid: String,
    annotations: BTreeMap<String, String>,
    cgroup_path: String,
    ports: Vec<Port>,
    #[serde(default)]
    dns: Option<Dns>,
    builtin: bool,
    networks: Vec<(String, String)>,
    ips: Vec<IpAddr>,
    #[serde(default)]
    detail: Value,
    #[serde(default)]
    netns_inode: Option<u64>,
    #[serde(default)]
    missing_plugin_failures: u32,
}

#[derive(Serialize, Deserialize)]
struct Port {
    protocol: u8,
    container: u16,
    host: u16,
    host_ip: Option<IpAddr>,
}

#[derive(Serialize, Deserialize)]
struct Dns {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl File {
    fn new(record: &Record) -> Self {
        let port = |port: &PortMapping| Port {
            protocol: match port.protocol {
                Protocol::Tcp => 6,
                Protocol::Udp => 17,
                Protocol::Sctp => 132,
            },
            container: port.container_port,
            host: port.host_port,
            host_ip: port.host_ip,
        };
        let dns = |dns: &DnsConfig| Dns {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        };
        let pod = &record.pod;
        Self {
            id: pod.id.to_string(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            uid: pod.uid.clone(),
            annotations: pod.annotations.clone(),
            cgroup_path: pod.cgroup_path.clone(),
            ports: pod.ports.iter().map(port).collect(),
            dns: pod.dns.as_ref().map(dns),
            builtin: record.mechanism == Mechanism::Builtin,
            networks: record.networks.iter().map(|one| (one.network.clone(), one.interface.clone())).collect(),
            ips: record.ips.clone(),
            detail: record.detail.clone(),
            netns_inode: record.netns_inode,
            missing_plugin_failures: record.missing_plugin_failures,
        }
    }

    fn into_record(self) -> Option<Record> {
        let port = |port: Port| {
            let protocol = match port.protocol {
                6 => Protocol::Tcp,
                17 => Protocol::Udp,
                132 => Protocol::Sctp,
                _ => return None,
            };
            Some(PortMapping { protocol, container_port: port.container, host_port: port.host, host_ip: port.host_ip })
        };
        let networks: Vec<Attached> =
            self.networks.into_iter().map(|(network, interface)| Attached { network, interface }).collect();
        let mechanism = match (self.builtin, networks.first()) {
            (true, _) => Mechanism::Builtin,
            (false, first) => Mechanism::Cni { network: first?.network.clone() },
        };
        let dns = |dns: Dns| DnsConfig { servers: dns.servers, searches: dns.searches, options: dns.options };
        let pod = PodIdentity {
            id: PodId::parse(&self.id).ok()?,
            name: self.name,
            namespace: self.namespace,
            uid: self.uid,
            annotations: self.annotations,
            cgroup_path: self.cgroup_path,
            ports: self.ports.into_iter().map(port).collect::<Option<_>>()?,
            dns: self.dns.map(dns),
        };
        Some(Record {
            pod,
            mechanism,
            networks,
            ips: self.ips,
            detail: self.detail,
            netns_inode: self.netns_inode,
            missing_plugin_failures: self.missing_plugin_failures,
        })
    }
}

/// The folder of all records. Everything here blocks.
#[derive(Debug)]
pub(super) struct Records {
    folder: PathBuf,
}

impl Records {
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        let folder = state_dir.join("attachments");
        std::fs::create_dir_all(&folder).map_err(|e| Error::internal(format!("making {}: {e}", folder.display())))?;
        super::remove_unfinished(&folder);
        Ok(Self { folder })
    }

    /// Writes a pod's record, replacing an earlier one as a whole; gives its path.
    pub fn write(&self, record: &Record) -> Result<PathBuf, Error> {
        let path = self.folder.join(record.pod.id.as_str());
        let failed = |e: io::Error| Error::internal(format!("writing {}: {e}", path.display()));
        let body = serde_json::to_string(&File::new(record)).map_err(|e| failed(e.into()))?;
        let fresh = self.folder.join(format!(".{}", record.pod.id));
        let text = format!("{MAGIC} {}\n{body}", checksum(body.as_bytes()));
        super::write_private(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path)).map_err(failed)?;
        Ok(path)
    }

    /// Reads a pod's record; `None` if there is none or none that can be read.
    pub fn read(&self, pod: &PodId) -> Option<Record> {
        read(&self.folder.join(pod.as_str())).filter(|record| record.pod.id == *pod)
    }

    /// Whether there is a file of the pod, readable or not.
    pub fn has(&self, pod: &PodId) -> bool {
        self.folder.join(pod.as_str()).exists()
    }

    /// Removes a pod's record; one that is not there is no error.
    pub fn remove(&self, pod: &PodId) -> Result<(), Error> {
        let path = self.folder.join(pod.as_str());
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::internal(format!("removing {}: {error}", path.display())))
            }
            _ => Ok(()),
        }
    }

    /// Every pod that has a record, by the files' names alone.
    pub fn pods(&self) -> Result<Vec<PodId>, Error> {
        let failed = |e: io::Error| Error::internal(format!("reading {}: {e}", self.folder.display()));
        let mut pods = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            pods.extend(name.to_str().and_then(|name| PodId::parse(name).ok()));
        }
        Ok(pods)
    }
}

/// Reads a record under any of its names; `None` if there is none or none that can be read.
pub(super) fn read(path: &Path) -> Option<Record> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(RECORD_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let record = parse(&bytes);
    if record.is_none() {
        tracing::warn!(path = %path.display(), "network record cannot be read: cleaning up by names");
    }
    record
}

fn checksum(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse(bytes: &[u8]) -> Option<Record> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once('\n')?;
    if head.strip_prefix(MAGIC)?.trim() != checksum(body.as_bytes()) {
        return None;
    }
    serde_json::from_str::<File>(body).ok()?.into_record()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> Record {
        Record {
            pod: PodIdentity {
                id: PodId::from_bytes(&[3; 32]),
                name: "web".to_owned(),
                namespace: "default".to_owned(),
                uid: "u".to_owned(),
                annotations: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
                cgroup_path: "/x".to_owned(),
                ports: vec![PortMapping {
                    protocol: Protocol::Sctp,
                    container_port: 1,
                    host_port: 2,
                    host_ip: Some([127, 0, 0, 1].into()),
                }],
                dns: Some(DnsConfig { servers: vec!["192.0.2.53".to_owned()], ..DnsConfig::default() }),
            },
            mechanism: Mechanism::Cni { network: "lab".to_owned() },
            networks: vec![Attached { network: "lab".to_owned(), interface: "eth0".to_owned() }],
            ips: vec![[10, 0, 0, 2].into()],
            detail: serde_json::json!({"lab": {}}),
            netns_inode: Some(4026531840),
            missing_plugin_failures: 1,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let record = record();
        records.write(&record).unwrap();
        assert_eq!(records.read(&record.pod.id), Some(record.clone()));
        assert_eq!(records.pods().unwrap(), std::slice::from_ref(&record.pod.id));
        records.remove(&record.pod.id).unwrap();
        records.remove(&record.pod.id).unwrap();
        assert!(!records.has(&record.pod.id));
    }

    #[test]
    fn a_torn_record_is_known_by_name_only() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let record = record();
        records.write(&record).unwrap();
        let path = dir.path().join("attachments").join(record.pod.id.as_str());
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 1, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(records.read(&record.pod.id), None, "{length}");
            assert!(records.has(&record.pod.id));
        }
        let mut changed = whole;
        let last = changed.len() - 2;
        changed[last] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        assert_eq!(records.read(&record.pod.id), None);
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_no_record(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(parse(&bytes), None);
        }
    }
}
