//! What is needed to undo a CNI attachment, in libcni's own format and place, so that its tools can read it:
//! `<cache_dir>/results/<network>-<pod id>-<interface>`.
//!
//! It is written before the first plugin runs, without a result, and again with it: DEL finds the configuration that ADD
//! had, whatever has become of the file in the configuration folder.

use super::config::{NetworkList, is_plain_name};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use knarr_model::{Error, PodId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of a cache file that are read: configuration and result, each of at most 1 MiB, one of them in base64.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
const KIND: &str = "cniCacheV1";

/// One attachment: a pod's interface in a network.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub list: NetworkList,
    pub interface: String,
    pub netns: String,
    pub args: Vec<(String, String)>,
    pub capabilities: Map<String, Value>,
    /// What the last plugin of ADD said; of an ADD that failed, the last one that did not.
    pub result: Option<Value>,
    /// Of an ADD that failed: how many plugins of the list were called. `None`: all, or nobody knows.
    pub called: Option<usize>,
}

/// libcni's file format.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    kind: String,
    container_id: String,
    config: String,
    if_name: String,
    network_name: String,
    #[serde(default)]
    netns: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    capability_args: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    /// Ours; libcni passes over it.
    #[serde(default, rename = "knarrCalledPlugins", skip_serializing_if = "Option::is_none")]
    called: Option<usize>,
}

/// The folder of all entries.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
}

impl Cache {
    pub fn new(cache_dir: &Path) -> Self {
        let folder = cache_dir.join("results");
        super::super::remove_unfinished(&folder);
        Self { folder }
    }

    fn path(&self, network: &str, pod: &PodId, interface: &str) -> Result<PathBuf, Error> {
        if is_plain_name(network) && is_plain_name(interface) {
            return Ok(self.folder.join(format!("{network}-{pod}-{interface}")));
        }
        Err(Error::internal(format!("CNI cache: {network:?} or {interface:?} is no plain name")))
    }

    /// Writes an entry; blocks.
    pub fn write(&self, pod: &PodId, entry: &Entry) -> Result<(), Error> {
        let path = self.path(&entry.list.name, pod, &entry.interface)?;
        let file = File {
            kind: KIND.to_owned(),
            container_id: pod.to_string(),
            config: STANDARD.encode(entry.list.to_value().to_string()),
            if_name: entry.interface.clone(),
            network_name: entry.list.name.clone(),
            netns: entry.netns.clone(),
            cni_args: entry.args.clone(),
            capability_args: entry.capabilities.clone(),
            result: entry.result.clone(),
            called: entry.called,
        };
        let failed = |e: io::Error| Error::internal(format!("writing CNI cache {}: {e}", path.display()));
        let bytes = serde_json::to_vec(&file).map_err(|e| failed(e.into()))?;
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        let fresh = self.folder.join(format!(".{pod}-{}", entry.interface));
        super::super::write_private(&fresh, bytes).and_then(|()| std::fs::rename(&fresh, &path)).map_err(failed)
    }

    /// Reads an entry; `None` if there is none that can be read. Blocks.
    pub fn read(&self, network: &str, pod: &PodId, interface: &str) -> Option<Entry> {
        use std::io::Read;
        let path = self.path(network, pod, interface).ok()?;
        let mut bytes = Vec::new();
        std::fs::File::open(&path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        let parsed = parse(&bytes);
        if let Err(why) = &parsed {
            tracing::warn!(path = %path.display(), why, "CNI cache entry cannot be read");
        }
        parsed.ok().filter(|entry| entry.list.name == network && entry.interface == interface)
    }

    /// Removes an entry; one that is not there is no error. Blocks.
    pub fn remove(&self, network: &str, pod: &PodId, interface: &str) -> Result<(), Error> {
        let path = self.path(network, pod, interface)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::internal(format!("removing CNI cache {}: {error}", path.display())))
            }
            _ => Ok(()),
        }
    }

    /// Network and interface of every entry of a pod, by the files' names alone. Blocks.
    pub fn of_pod(&self, pod: &PodId) -> Vec<(String, String)> {
        let separator = format!("-{pod}-");
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter_map(|name| {
                let (network, interface) = name.split_once(&separator)?;
                (is_plain_name(network) && is_plain_name(interface)).then(|| (network.to_owned(), interface.to_owned()))
            })
            .collect()
    }
}

fn parse(bytes: &[u8]) -> Result<Entry, String> {
    let file: File = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if file.kind != KIND {
        return Err(format!("kind {:?}", file.kind));
    }
    let config = STANDARD.decode(&file.config).map_err(|e| e.to_string())?;
    Ok(Entry {
        list: NetworkList::parse(&config)?,
        interface: file.if_name,
        netns: file.netns,
        args: file.cni_args,
        capabilities: file.capability_args,
        result: file.result.filter(Value::is_object),
        called: file.called,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn entry() -> Entry {
        let list = NetworkList::parse(br#"{"cniVersion":"1.0.0","name":"lab-net","type":"bridge"}"#).unwrap();
        Entry {
            list,
            interface: "eth0".to_owned(),
            netns: "/run/netns/x".to_owned(),
            args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
            capabilities: Map::from_iter([("cgroupPath".to_owned(), json!("/x"))]),
            result: Some(json!({"cniVersion": "1.0.0"})),
            called: Some(1),
        }
    }

    #[test]
    fn what_is_written_is_read_and_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let pod = PodId::from_bytes(&[1; 32]);
        cache.write(&pod, &entry()).unwrap();
        assert_eq!(cache.read("lab-net", &pod, "eth0"), Some(entry()));
        assert_eq!(cache.of_pod(&pod), [("lab-net".to_owned(), "eth0".to_owned())]);
        assert_eq!(cache.of_pod(&PodId::from_bytes(&[2; 32])), []);
        cache.remove("lab-net", &pod, "eth0").unwrap();
        cache.remove("lab-net", &pod, "eth0").unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("results")).unwrap().count(), 0);
    }

    #[test]
    fn an_empty_file_is_no_entry_but_has_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let pod = PodId::from_bytes(&[1; 32]);
        cache.write(&pod, &entry()).unwrap();
        std::fs::write(dir.path().join(format!("results/lab-net-{pod}-eth0")), "").unwrap();
        assert_eq!(cache.read("lab-net", &pod, "eth0"), None);
        assert_eq!(cache.of_pod(&pod).len(), 1);
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_no_entry(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
