//! What outlives the daemon: one directory per pod, named by its id.
//!
//! ```text
//! <state>/records/<pod id>/
//!     pod.cri              the PodSandboxConfig as it came, behind a checksum; written once
//!     <container id>.cri   the ContainerConfig as it came; written once
//!     <container id>.dev   the devices that it asked for as they were found, if it asked; written once
//!     state                phases, addresses, what was resolved: JSON behind a checksum; rewritten by rename
//! ```
//!
//! Nothing is synced: a record must survive the daemon's death and a clean reboot, and after a power cut no process
//! that it speaks of is left. What a pod owns follows from names alone, so a record that cannot be read costs that
//! pod only: the directory's name says what to clean up.
//!
//! The requests are kept in CRI's own encoding, which has been stable for years, so a newer knarr reads an older
//! one's records by parsing them like any request.

mod format;

use crate::oci::devices::Taken;
use crate::rpc::convert;
use knarr_cri_api::v1;
use knarr_model::pod::SavedPod;
use knarr_model::{ContainerId, Error, PodId};
use prost::Message;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A record above this is not ours: the largest request that the socket takes is 16 MiB.
const RECORD_BYTES_MAX: u64 = 32 << 20;

/// First words of every file, with the version of its layout.
const MAGIC: &str = "knarr-record 1";

/// The directory of all records.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
}

/// What was found for one pod at start.
#[derive(Debug)]
pub enum Loaded {
    /// Whole.
    Pod(Box<SavedPod>),
    /// The name is there and the content is not: everything of this id is to be cleaned up.
    Broken(PodId, Error),
}

impl Records {
    /// Makes the directory (0700) if it is not there.
    pub fn open(dir: &Path) -> io::Result<Self> {
        make_private_dir(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn pod_dir(&self, pod: &PodId) -> PathBuf {
        self.dir.join(pod.as_str())
    }

    /// Keeps the request that a pod is made from.
    pub fn save_pod_config(&self, pod: &PodId, config: &PodConfig) -> io::Result<()> {
        let dir = self.pod_dir(pod);
        make_private_dir(&dir)?;
        write_checked(&dir, "pod.cri", &config.encode())
    }

    /// Keeps the request that a container is made from.
    pub fn save_container_config(
        &self,
        pod: &PodId,
        container: &ContainerId,
        config: &v1::ContainerConfig,
    ) -> io::Result<()> {
        write_checked(&self.pod_dir(pod), &format!("{container}.cri"), &config.encode_to_vec())
    }

    /// Keeps what was found of the devices that a container asked for.
    pub fn save_devices(&self, pod: &PodId, container: &ContainerId, taken: &Taken) -> io::Result<()> {
        let json = serde_json::to_vec(taken).map_err(io::Error::other)?;
        write_checked(&self.pod_dir(pod), &format!("{container}.dev"), &json)
    }

    /// What [`save_devices`](Self::save_devices) kept, if it did.
    pub fn load_devices(&self, pod: &PodId, container: &ContainerId) -> Result<Option<Taken>, Error> {
        let (dir, name) = (self.pod_dir(pod), format!("{container}.dev"));
        if !dir.join(&name).exists() {
            return Ok(None);
        }
        let taken = serde_json::from_slice(&read_checked(&dir, &name)?);
        taken.map(Some).map_err(|e| Error::internal(format!("record {}: {e}", dir.join(&name).display())))
    }

    /// Forgets a container's request and devices; it is no error if there are none.
    pub fn drop_container_config(&self, pod: &PodId, container: &ContainerId) {
        for ending in ["cri", "dev"] {
            let _ = fs::remove_file(self.pod_dir(pod).join(format!("{container}.{ending}")));
        }
    }

    /// Keeps where a pod and its containers are in their lives.
    pub fn save_state(&self, saved: &SavedPod) -> io::Result<()> {
        let json = serde_json::to_vec(&format::State::from(saved)).map_err(io::Error::other)?;
        write_checked(&self.pod_dir(&saved.id), "state", &json)
    }

    /// Forgets a pod; it is no error if there is nothing.
    pub fn drop_pod(&self, pod: &PodId) -> io::Result<()> {
        match fs::remove_dir_all(self.pod_dir(pod)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Everything there is. Files that are not records are left alone and passed over.
    pub fn load(&self) -> io::Result<Vec<Loaded>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let Some(id) = name.to_str().and_then(|n| PodId::parse(n).ok()) else { continue };
            found.push(match self.load_pod(&id) {
                Ok(saved) => Loaded::Pod(Box::new(saved)),
                Err(error) => Loaded::Broken(id, error),
            });
        }
        Ok(found)
    }

    fn load_pod(&self, id: &PodId) -> Result<SavedPod, Error> {
        let dir = self.pod_dir(id);
        let config = PodConfig::decode(&read_checked(&dir, "pod.cri")?)?;
        let spec = Arc::new(convert::pod_spec(config.config, &config.handler)?);
        let json = read_checked(&dir, "state")?;
        let state: format::State =
            serde_json::from_slice(&json).map_err(|e| Error::internal(format!("{}: {e}", dir.display())))?;
        state.into_saved(id, spec.clone(), |container| {
            let bytes = read_checked(&dir, &format!("{container}.cri"))?;
            let config = v1::ContainerConfig::decode(bytes.as_slice()).map_err(|e| Error::internal(e.to_string()))?;
            Ok(Arc::new(convert::container_spec(config, &spec)?))
        })
    }
}

/// The two parts of a RunPodSandbox request.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct PodConfig {
    pub config: v1::PodSandboxConfig,
    pub handler: String,
}

impl PodConfig {
    fn encode(&self) -> Vec<u8> {
        let request =
            v1::RunPodSandboxRequest { config: Some(self.config.clone()), runtime_handler: self.handler.clone() };
        request.encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let request = v1::RunPodSandboxRequest::decode(bytes).map_err(|e| Error::internal(e.to_string()))?;
        let config = request.config.ok_or_else(|| Error::internal("pod.cri: has no config"))?;
        Ok(Self { config, handler: request.runtime_handler })
    }
}

fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn checksum(content: &[u8]) -> String {
    Sha256::digest(content).iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// Writes beside and renames over: a reader sees the old content or the new one.
fn write_checked(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let beside = dir.join(format!(".{name}.new"));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    let mut bytes = Vec::with_capacity(content.len() + 64);
    writeln!(bytes, "{MAGIC} {}", checksum(content))?;
    bytes.extend_from_slice(content);
    file.write_all(&bytes)?;
    fs::rename(&beside, dir.join(name))
}

fn read_checked(dir: &Path, name: &str) -> Result<Vec<u8>, Error> {
    let path = dir.join(name);
    let broken = |why: String| Error::internal(format!("record {}: {why}", path.display()));
    let length = fs::metadata(&path).map_err(|e| broken(e.to_string()))?.len();
    if length > RECORD_BYTES_MAX {
        return Err(broken(format!("{length} bytes, more than the {RECORD_BYTES_MAX} that a record may have")));
    }
    let bytes = fs::read(&path).map_err(|e| broken(e.to_string()))?;
    let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| broken("has no head".into()))?;
    let content = &bytes[end + 1..];
    let head = format!("{MAGIC} {}", checksum(content));
    if bytes[..end] != *head.as_bytes() {
        return Err(broken("its head does not fit its content".into()));
    }
    Ok(content.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_model::input::PodNetwork;
    use knarr_model::pod::SavedPhase;
    use knarr_model::resources::{PodResources, Resources};
    use knarr_model::spec::Device;

    fn config() -> PodConfig {
        let metadata =
            v1::PodSandboxMetadata { name: "web".into(), namespace: "default".into(), uid: "u1".into(), attempt: 0 };
        let config = v1::PodSandboxConfig { metadata: Some(metadata), hostname: "web".into(), ..Default::default() };
        PodConfig { config, handler: String::new() }
    }

    fn saved(id: &PodId) -> SavedPod {
        let spec = Arc::new(convert::pod_spec(config().config, "").unwrap());
        let network = PodNetwork { ips: vec!["10.1.2.3".parse().unwrap()] };
        let overhead = Resources { cpu_shares: Some(7), ..Resources::default() };
        let resources = PodResources { overhead, ..PodResources::default() };
        let (created_at, phase, containers) = (7, SavedPhase::Ready, vec![]);
        SavedPod { id: id.clone(), spec, created_at, phase, network, resources, containers }
    }

    #[test]
    fn a_pod_comes_back_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("records")).unwrap();
        let id = PodId::from_bytes(&[1; 32]);
        records.save_pod_config(&id, &config()).unwrap();
        records.save_state(&saved(&id)).unwrap();
        let loaded = records.load().unwrap();
        let [Loaded::Pod(pod)] = loaded.as_slice() else { panic!("{loaded:?}") };
        assert_eq!((pod.created_at, pod.phase, pod.spec.name.as_str()), (7, SavedPhase::Ready, "web"));
        assert_eq!((&pod.network, &pod.resources), (&saved(&id).network, &saved(&id).resources));
        records.drop_pod(&id).unwrap();
        records.drop_pod(&id).unwrap();
        assert!(records.load().unwrap().is_empty());
    }

    #[test]
    fn devices_are_kept_as_they_were_found() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let (pod, container) = (PodId::from_bytes(&[1; 32]), ContainerId::from_bytes(&[2; 32]));
        records.save_pod_config(&pod, &config()).unwrap();
        assert_eq!(records.load_devices(&pod, &container).unwrap(), None);
        let asked = Device { container_path: "/dev/x".into(), host_path: "/dev/null".into(), permissions: "r".into() };
        let nodes = crate::oci::devices::requested(&[asked], Default::default()).unwrap();
        let taken = Taken { nodes, ..Taken::default() };
        records.save_devices(&pod, &container, &taken).unwrap();
        assert_eq!(records.load_devices(&pod, &container).unwrap(), Some(taken));
        fs::write(records.pod_dir(&pod).join(format!("{container}.dev")), "{}").unwrap();
        records.load_devices(&pod, &container).unwrap_err();
        records.drop_container_config(&pod, &container);
        assert_eq!(records.load_devices(&pod, &container).unwrap(), None);
    }

    #[test]
    fn a_damaged_record_costs_that_pod_only() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        for n in [1, 2] {
            let id = PodId::from_bytes(&[n; 32]);
            records.save_pod_config(&id, &config()).unwrap();
            records.save_state(&saved(&id)).unwrap();
        }
        let damaged = PodId::from_bytes(&[2; 32]);
        for content in [&b""[..], b"knarr-record 1 00\n{}", b"\0\0\0\0"] {
            fs::write(records.pod_dir(&damaged).join("state"), content).unwrap();
            let loaded = records.load().unwrap();
            let broken: Vec<_> = loaded
                .iter()
                .filter_map(|l| match l {
                    Loaded::Broken(id, _) => Some(id),
                    Loaded::Pod(_) => None,
                })
                .collect();
            assert_eq!(broken, [&damaged]);
            assert_eq!(loaded.len(), 2);
        }
    }
}
