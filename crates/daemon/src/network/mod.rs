//! The pod's network: CNI where there is a configuration for it, built in where there is none.
//!
//! Chosen per attach; a pod is detached by what it was attached with, which its record says. Order of an attachment:
//! address, record, pin, loopback, then built-in or CNI. Every name follows from the pod's id, so that what is left of an
//! attachment that broke anywhere is found without a record.
//!
//! - [`config`]: what can be chosen.
//! - `netlink`, `netns`: messages to the kernel; entering and pinning namespaces.
//! - `record`: what is written down of each pod.
//! - `builtin`: bridge, addresses, nf_tables, all in process.
//! - `cni`: configurations, plugins, results.
//!
//! Nothing here makes network namespaces, and nothing here knows CRI.

mod builtin;
mod cni;
pub mod config;
mod netlink;
pub(crate) mod netns;
mod record;

pub use self::config::{BuiltinConfig, CniConfig, NetworkConfig};

use self::builtin::Builtin;
use self::cni::{Attached, Choice, Cni};
use self::netns::Pins;
use self::record::{Record, Records};
use knarr_model::spec::{DnsConfig, PortMapping};
use knarr_model::{Error, ErrorKind, PodId};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

/// How often the CNI configuration folder is looked at between attachments; a look costs some 20 µs.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// How often CNI plugins are asked for their STATUS, flushed rules are made again and stuck pins are tried again.
const CARE_INTERVAL: Duration = Duration::from_secs(10);
/// Pods that are attached to the built-in network at the same time: the kernel does one after the other anyhow.
const BUILTIN_ATTACHING_MAX: usize = 16;
/// Pods that a sweep cleans up at the same time.
const SWEEPING_MAX: usize = 16;
/// After so many failures a plugin whose executable is not there no longer keeps its pod from going. Kubelet tries again
/// every few seconds to minutes: a plugin that is being upgraded is back by then, one that was uninstalled is not.
const MISSING_PLUGIN_FAILURES_MAX: u32 = 5;

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
    /// For CNI's dns capability.
    pub dns: Option<DnsConfig>,
}

impl PodIdentity {
    /// A pod of which only the id is known: enough to clean up after it.
    pub fn nameless(id: PodId) -> Self {
        let (name, namespace, uid, cgroup_path) = Default::default();
        Self { id, name, namespace, uid, annotations: BTreeMap::new(), cgroup_path, ports: Vec::new(), dns: None }
    }
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
    /// For people (`inspectp`): each CNI network's result by name, or one of the same shape.
    pub detail: Value,
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
    me: Weak<Network>,
    config: NetworkConfig,
    pins: Pins,
    records: Records,
    builtin: Builtin,
    cni: Cni,
    attaching: tokio::sync::Semaphore,
    /// Pods that something is being done for: one thing at a time.
    turns: Mutex<HashMap<PodId, Turn>>,
    /// Pods that are gone but whose pin could not be removed.
    stuck_pins: Mutex<HashSet<PodId>>,
    cni_changed: tokio::sync::Notify,
    tasks: Mutex<Vec<AbortHandle>>,
}

#[derive(Debug, Clone)]
struct Turn {
    cancel: CancellationToken,
    ended: CancellationToken,
}

/// Holds a pod's turn until dropped.
struct Held {
    network: Arc<Network>,
    pod: PodId,
    turn: Turn,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.network.turns.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pod);
        self.turn.ended.cancel();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

impl Network {
    /// Makes the directories, reads what earlier lives left and starts watching links and the CNI directory. Must run in
    /// the host's mount and network namespaces; nothing is put on the host's network before the first pod.
    pub async fn open(config: NetworkConfig) -> Result<Arc<Network>, Error> {
        let network = blocking(move || Self::read(config)).await??;
        let departures = network.builtin.departures.clone();
        let tasks = [
            tokio::spawn(departures.watch()),
            tokio::spawn(watch_cni(network.me.clone())),
            tokio::spawn(care(network.me.clone())),
        ];
        *network.tasks.lock().unwrap_or_else(PoisonError::into_inner) =
            tasks.iter().map(tokio::task::JoinHandle::abort_handle).collect();
        Ok(network)
    }

    fn read(config: NetworkConfig) -> Result<Arc<Network>, Error> {
        make_private_folder(&config.state_dir)?;
        make_private_folder(&config.cni.cache_dir)?;
        let pins = Pins::open(&config.netns_dir)?;
        let records = Records::open(&config.state_dir)?;
        let mut ports = BTreeMap::new();
        for record in records.pods()?.iter().filter_map(|pod| records.read(pod)) {
            if record.mechanism == Mechanism::Builtin {
                ports.insert(record.pod.id, record.pod.ports);
            }
        }
        let cidr = std::fs::read_to_string(config.state_dir.join(CIDR_FILE)).ok();
        let builtin = Builtin::open(&config.builtin, &config.state_dir, &ports, cidr.as_deref())?;
        let cni = Cni::new(&config.cni);
        cni.reload();
        Ok(Arc::new_cyclic(|me| Network {
            me: me.clone(),
            pins,
            records,
            builtin,
            cni,
            attaching: tokio::sync::Semaphore::new(BUILTIN_ATTACHING_MAX),
            turns: Mutex::default(),
            stuck_pins: Mutex::default(),
            cni_changed: tokio::sync::Notify::new(),
            tasks: Mutex::default(),
            config,
        }))
    }

    fn arc(&self) -> Result<Arc<Network>, Error> {
        self.me.upgrade().ok_or_else(|| Error::internal("the network is being closed"))
    }

    /// Waits until nothing else is being done for the pod; an attachment under way is cancelled.
    async fn turn(&self, pod: &PodId) -> Result<Held, Error> {
        let network = self.arc()?;
        loop {
            let earlier = {
                let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
                match turns.get(pod) {
                    Some(earlier) => earlier.clone(),
                    None => {
                        let turn = Turn { cancel: CancellationToken::new(), ended: CancellationToken::new() };
                        turns.insert(pod.clone(), turn.clone());
                        return Ok(Held { network: network.clone(), pod: pod.clone(), turn });
                    }
                }
            };
            earlier.cancel.cancel();
            earlier.ended.cancelled().await;
        }
    }

    /// Brings the pod's loopback up, pins its namespace and attaches it. Undoes itself on failure. Goes on when the
    /// caller stops waiting; a [`Network::detach`] meanwhile cancels it.
    pub async fn attach(&self, pod: &PodIdentity, netns: OwnedFd) -> Result<Attachment, Error> {
        let held = self.turn(&pod.id).await?;
        let pod = pod.clone();
        finish(async move {
            let network = held.network.clone();
            let attached = network.attach_alone(&pod, netns, &held.turn.cancel).await;
            if attached.is_err()
                && let Err(error) = network.undo_failed(&pod).await
            {
                tracing::warn!(pod = %pod.id, %error, "undoing a failed attachment");
            }
            attached.map_err(|error| error.context(format_args!("attaching pod {} to the network", pod.id.short())))
        })
        .await
    }

    async fn attach_alone(
        self: &Arc<Self>,
        pod: &PodIdentity,
        netns: OwnedFd,
        cancel: &CancellationToken,
    ) -> Result<Attachment, Error> {
        let (network, id) = (self.clone(), pod.id.clone());
        let (changed, leftovers) = blocking(move || (network.cni.reload(), network.records.has(&id))).await?;
        if changed {
            self.cni_changed.notify_one();
        }
        // A pod that is attached already is one whose daemon died before it wrote that down.
        if leftovers && let Err(error) = self.undo(pod).await {
            tracing::warn!(pod = %pod.id, %error, "undoing an earlier attachment");
        }
        match self.cni.choice() {
            Choice::Networks(networks) => self.attach_cni(pod, networks, netns, cancel).await,
            Choice::Unusable(why) => {
                Err(Error::new(ErrorKind::FailedPrecondition, format!("CNI in {}: {why}", self.conf_dir())))
            }
            Choice::Nothing if self.config.builtin.enabled => {
                let _slot = self.attaching.acquire().await.map_err(|e| Error::internal(e.to_string()))?;
                let (network, pod) = (self.clone(), pod.clone());
                netns::on_own_thread(move || network.attach_builtin(&pod, &netns)).await?
            }
            Choice::Nothing => Err(Error::new(ErrorKind::FailedPrecondition, self.no_network())),
        }
    }

    fn conf_dir(&self) -> std::path::Display<'_> {
        self.config.cni.conf_dir.display()
    }

    fn no_network(&self) -> String {
        format!("no CNI configuration in {}, and the built-in network is switched off", self.conf_dir())
    }

    /// Everything for one pod on one thread, which ends inside the pod's namespace.
    fn attach_builtin(&self, pod: &PodIdentity, netns: &OwnedFd) -> Result<Attachment, Error> {
        let mut record = Record {
            pod: pod.clone(),
            mechanism: Mechanism::Builtin,
            networks: Vec::new(),
            ips: Vec::new(),
            detail: Value::Null,
            netns_inode: netns::inode(netns.as_fd()).ok(),
            missing_plugin_failures: 0,
        };
        let addresses = self.builtin.addresses.allocate(&pod.id, |wanted| {
            record.ips = wanted.iter().map(|(ip, _)| *ip).collect();
            self.records.write(&record)
        })?;
        self.pin(&pod.id, netns)?;
        self.builtin.attach(pod, &addresses, netns.as_fd())?;
        Ok(self.attachment_of(record))
    }

    fn pin(&self, pod: &PodId, netns: &OwnedFd) -> Result<(), Error> {
        let path = self.pins.path(pod);
        self.pins.pin(pod, netns.as_fd()).map_err(|e| Error::internal(format!("pinning {}: {e}", path.display())))
    }

    fn attachment_of(&self, record: Record) -> Attachment {
        let detail = match record.mechanism {
            Mechanism::Builtin => self.builtin.detail(&record.pod.id, &self.pins.path(&record.pod.id)),
            Mechanism::Cni { .. } => record.detail,
        };
        Attachment { ips: record.ips, mechanism: record.mechanism, detail }
    }

    async fn attach_cni(
        self: &Arc<Self>,
        pod: &PodIdentity,
        networks: Vec<Arc<cni::config::NetworkList>>,
        netns: OwnedFd,
        cancel: &CancellationToken,
    ) -> Result<Attachment, Error> {
        Cni::accepts(pod)?;
        let attached = Cni::attachments_for(&networks);
        let network = attached.first().map(|first| first.network.clone()).unwrap_or_default();
        let mut record = Record {
            pod: pod.clone(),
            mechanism: Mechanism::Cni { network },
            networks: attached,
            ips: Vec::new(),
            detail: Value::Null,
            netns_inode: netns::inode(netns.as_fd()).ok(),
            missing_plugin_failures: 0,
        };
        let (me, written) = (self.clone(), record.clone());
        netns::on_own_thread(move || {
            me.records.write(&written)?;
            me.pin(&written.pod.id, &netns)?;
            netns::enter_and_bring_loopback_up(netns.as_fd())
        })
        .await??;
        let outcome = self.cni.add(pod, &networks, &self.pins.path(&pod.id), cancel).await?;
        record.ips = outcome.ips;
        record.detail = outcome.detail;
        let (me, written) = (self.clone(), record.clone());
        blocking(move || me.records.write(&written)).await??;
        Ok(self.attachment_of(record))
    }

    /// Undoes [`Network::attach`] whatever is left of it; idempotent. Goes on when the caller stops waiting. The kernel
    /// removes the pod's link when its last process and descriptor are gone; that is not waited for.
    pub async fn detach(&self, pod: &PodIdentity) -> Result<(), Error> {
        let held = self.turn(&pod.id).await?;
        let pod = pod.clone();
        finish(async move {
            let undone = held.network.undo(&pod).await;
            undone.map_err(|error| error.context(format_args!("detaching pod {} from the network", pod.id.short())))
        })
        .await
    }

    /// A failed attachment is undone without waiting for the namespace to go: the caller may keep it.
    async fn undo_failed(self: &Arc<Self>, pod: &PodIdentity) -> Result<(), Error> {
        let (network, id) = (self.clone(), pod.id.clone());
        let deleted = blocking(move || network.builtin.delete_link(&id)).await?;
        self.undo(pod).await.and(deleted)
    }

    async fn undo(self: &Arc<Self>, pod: &PodIdentity) -> Result<(), Error> {
        let (network, id) = (self.clone(), pod.id.clone());
        let begun = blocking(move || {
            let record = network.records.read(&id);
            match &record {
                Some(record) if record.mechanism == Mechanism::Builtin => {
                    Err(network.undo_blocking(&id, record.netns_inode, true, Vec::new()))
                }
                _ => Ok((network.records.has(&id), record)),
            }
        })
        .await?;
        let (has_file, record) = match begun {
            Err(done) => return done,
            Ok(by_cni_or_unknown) => by_cni_or_unknown,
        };
        let torn = has_file && record.is_none();
        let errors = self.undo_cni(pod, record.as_ref(), torn).await;
        let (network, id) = (self.clone(), pod.id.clone());
        let inode = record.as_ref().and_then(|record| record.netns_inode);
        blocking(move || network.undo_blocking(&id, inode, record.is_none(), errors)).await?
    }

    /// DEL with what the record and the cache know. Without either there was no ADD. With a torn record there may have
    /// been one: then the present configuration is used.
    async fn undo_cni(self: &Arc<Self>, pod: &PodIdentity, record: Option<&Record>, torn: bool) -> Vec<Error> {
        let mut attached: Vec<Attached> = record.map(|record| record.networks.clone()).unwrap_or_default();
        if torn && let Choice::Networks(networks) = self.cni.choice() {
            attached = Cni::attachments_for(&networks);
        }
        let netns = match self.pins.open_netns(&pod.id) {
            Ok(_) => self.pins.path(&pod.id).to_string_lossy().into_owned(),
            Err(_) => String::new(),
        };
        let identity = record.map_or(pod, |record| &record.pod);
        let give_up = record.is_some_and(|record| record.missing_plugin_failures >= MISSING_PLUGIN_FAILURES_MAX);
        let undone = self.cni.del(identity, &attached, &netns, give_up).await;
        if !undone.errors.is_empty()
            && undone.only_missing
            && let Some(record) = record
        {
            let counted = Record { missing_plugin_failures: record.missing_plugin_failures + 1, ..record.clone() };
            let network = self.clone();
            if let Ok(Err(error)) = blocking(move || network.records.write(&counted)).await {
                tracing::warn!(pod = %pod.id, %error, "counting failures of a plugin that is not there");
            }
        }
        undone.errors
    }

    /// What is undone without plugins. The record goes last, and only if nothing is left that it would be needed for.
    fn undo_blocking(
        &self,
        pod: &PodId,
        inode: Option<u64>,
        builtin: bool,
        mut errors: Vec<Error>,
    ) -> Result<(), Error> {
        if builtin {
            errors.extend(self.builtin.detach(pod, inode));
        }
        let unpinned = self.pins.unpin(pod);
        if let Err(error) = &unpinned {
            // The pod is stopped all the same; see `care`.
            tracing::warn!(%pod, path = %self.pins.path(pod).display(), %error, "pin cannot be removed, trying again later");
            self.stuck_pins.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.clone());
        }
        if errors.is_empty() && unpinned.is_ok() {
            errors.extend(self.records.remove(pod).err());
        }
        joined(errors)
    }

    /// Whether pods can be attached; reads memory only.
    pub fn status(&self) -> NetworkStatus {
        let not_ready = |why: String| NetworkStatus {
            ready: false,
            reason: "NetworkPluginNotReady".to_owned(),
            message: format!("Network plugin returns error: {why}"),
        };
        let ready = |message: String| NetworkStatus { ready: true, reason: String::new(), message };
        let (complaint, invalid) = self.cni.complaint();
        match self.cni.choice() {
            Choice::Unusable(why) => not_ready(format!("CNI in {}: {why}", self.conf_dir())),
            Choice::Networks(_) if complaint.is_some() => not_ready(complaint.unwrap_or_default()),
            Choice::Networks(networks) => {
                let names: Vec<&str> = networks.iter().map(|list| list.name.as_str()).collect();
                let skipped = invalid.iter().map(|why| format!("; skipped {why}")).collect::<String>();
                ready(format!("CNI network {}{skipped}", names.join(", ")))
            }
            Choice::Nothing if self.config.builtin.enabled => {
                let remarks = self.builtin.remarks().iter().map(|remark| format!("; {remark}")).collect::<String>();
                ready(format!("built-in network on {}{remarks}", self.config.builtin.bridge))
            }
            Choice::Nothing => not_ready(self.no_network()),
        }
    }

    /// Where the pod's network namespace is pinned.
    pub fn path(&self, pod: &PodId) -> PathBuf {
        self.pins.path(pod)
    }

    /// The pinned network namespace; NotFound if the pod has none.
    pub fn open_netns(&self, pod: &PodId) -> io::Result<OwnedFd> {
        self.pins.open_netns(pod)
    }

    /// What [`Network::attach`] gave, of a pod that is attached completely.
    pub async fn attachment(&self, pod: &PodId) -> Option<Attachment> {
        let (network, id) = (self.me.upgrade()?, pod.clone());
        let record = blocking(move || network.records.read(&id)).await.ok()??;
        (!record.ips.is_empty()).then(|| self.attachment_of(record))
    }

    /// Asks the CNI plugins whether a pod is attached as they left it; the built-in network has nothing to ask.
    pub async fn check(&self, pod: &PodId) -> Result<(), Error> {
        let (network, id) = (self.arc()?, pod.clone());
        let record = blocking(move || network.records.read(&id)).await?;
        let record = record.ok_or_else(|| Error::not_found("network attachment of pod", pod))?;
        let path = self.pins.path(pod);
        self.cni.check(&record.pod, &record.networks, &path.to_string_lossy()).await
    }

    /// What keeps the network from working, in sentences, found without touching a pod.
    pub async fn diagnose(&self) -> Vec<String> {
        let mut findings = self.cni.diagnose().await;
        if self.cni.choice() == Choice::Nothing && self.config.builtin.enabled {
            if let Ok(network) = self.arc() {
                let _ = blocking(move || network.builtin.repair_rules()).await;
            }
            findings.extend(self.builtin.remarks());
        }
        findings
    }

    /// Removes what pods that are not `alive` have left: pins, addresses, rules, links, CNI attachments. To be called
    /// once at start, before the first attach.
    pub async fn sweep(&self, alive: &[PodId]) -> Vec<Error> {
        let Ok(network) = self.arc() else { return Vec::new() };
        let mut errors = Vec::new();
        let mut known: HashSet<PodId> = self.builtin.addresses.holders();
        match blocking({
            let network = network.clone();
            move || network.records.pods()
        })
        .await
        .and_then(|pods| pods)
        {
            Ok(pods) => known.extend(pods),
            Err(error) => errors.push(error),
        }
        let mut dead = known.into_iter().filter(|pod| !alive.contains(pod));
        let mut sweeping = tokio::task::JoinSet::new();
        loop {
            while sweeping.len() < SWEEPING_MAX
                && let Some(pod) = dead.next()
            {
                let network = network.clone();
                sweeping.spawn(async move { network.detach(&PodIdentity::nameless(pod)).await });
            }
            match sweeping.join_next().await {
                None => break,
                Some(Ok(swept)) => errors.extend(swept.err()),
                Some(Err(panicked)) => errors.push(Error::internal(format!("sweeping: {panicked}"))),
            }
        }
        errors.extend(self.sweep_rest(&network, alive).await);
        errors
    }

    async fn sweep_rest(&self, network: &Arc<Network>, alive: &[PodId]) -> Vec<Error> {
        let (me, pods) = (network.clone(), alive.to_vec());
        let swept = blocking(move || {
            let valid: Vec<(PodId, Vec<Attached>)> =
                pods.iter().filter_map(|pod| Some((pod.clone(), me.records.read(pod)?.networks))).collect();
            (me.builtin.sweep(&pods), valid)
        });
        match swept.await {
            Ok((mut errors, valid)) => {
                errors.extend(self.cni.collect_garbage(&valid).await);
                errors
            }
            Err(error) => vec![error],
        }
    }

    /// UpdateRuntimeConfig's pod CIDRs, comma-separated: new addresses of the built-in network come from there. Kept over
    /// restarts. Pods keep their addresses; CNI plugins have their own way to learn it.
    pub async fn pod_cidr(&self, cidr: &str) -> Result<(), Error> {
        if !self.config.builtin.enabled || cidr.is_empty() {
            return Ok(());
        }
        let (network, cidr) = (self.arc()?, cidr.to_owned());
        blocking(move || {
            network.builtin.set_cidr(&cidr)?;
            let path = network.config.state_dir.join(CIDR_FILE);
            std::fs::write(&path, &cidr).map_err(|e| Error::internal(format!("writing {}: {e}", path.display())))
        })
        .await?
    }

    /// Removes bridge and table if no pod has an address any more: a daemon that ends on an empty node leaves nothing.
    pub async fn close(&self) -> Result<(), Error> {
        let network = self.arc()?;
        joined(blocking(move || network.builtin.close()).await?)
    }

    /// Links of detached pods that the kernel has not removed yet; their addresses are still taken.
    pub fn departing(&self) -> usize {
        self.builtin.departures.count()
    }

    fn retry_stuck_pins(&self) {
        let stuck = self.stuck_pins.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for pod in stuck {
            if self.pins.unpin(&pod).is_ok() && self.records.remove(&pod).is_ok() {
                self.stuck_pins.lock().unwrap_or_else(PoisonError::into_inner).remove(&pod);
            }
        }
    }
}

/// The file that remembers the last pod CIDR.
const CIDR_FILE: &str = "pod-cidr";

/// Looks at the CNI configuration folder for as long as the network lives.
async fn watch_cni(network: Weak<Network>) {
    loop {
        tokio::time::sleep(RELOAD_INTERVAL).await;
        let Some(network) = network.upgrade() else { return };
        let me = network.clone();
        if let Ok(true) = blocking(move || me.cni.reload()).await {
            network.cni_changed.notify_one();
        }
    }
}

/// Asks plugins for their STATUS, repairs rules and removes stuck pins for as long as the network lives.
async fn care(network: Weak<Network>) {
    loop {
        let Some(strong) = network.upgrade() else { return };
        strong.cni.poll_status().await;
        let me = strong.clone();
        let cared = blocking(move || {
            me.builtin.repair_rules();
            me.retry_stuck_pins();
        });
        if let Err(error) = cared.await {
            tracing::warn!(%error, "taking care of the network");
        }
        let changed = strong.cni_changed.notified();
        // Bounded by the interval, so that a network that nobody uses any more is let go.
        let _ = tokio::time::timeout(CARE_INTERVAL, changed).await;
    }
}

/// Lets work go on when its caller stops waiting.
async fn finish<T: Send + 'static>(work: impl Future<Output = Result<T, Error>> + Send + 'static) -> Result<T, Error> {
    tokio::spawn(work).await.map_err(|e| Error::internal(format!("a task of the network ended: {e}")))?
}

/// Runs work where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal(format!("a task of the network ended: {e}")))
}

/// Watches a descriptor for something to read.
///
/// Tokio deprecates the safe constructors because a type's `AsRawFd` may lie about which descriptor it owns; those that
/// come here, `OwnedFd` and our netlink socket, give the one that they close.
#[allow(deprecated)]
fn readable<T: std::os::fd::AsRawFd>(descriptor: T) -> io::Result<tokio::io::unix::AsyncFd<T>> {
    tokio::io::unix::AsyncFd::with_interest(descriptor, tokio::io::Interest::READABLE)
}

/// Makes a folder that only root may look into, unless it is there.
fn make_private_folder(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| Error::internal(format!("making {}: {e}", path.display())))
}

/// Removes what a daemon that was killed had not yet renamed: files whose names begin with a dot. One that stays is
/// replaced or passed over, so errors do not matter.
fn remove_unfinished(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Writes a file that only root may read.
fn write_private(path: &Path, content: impl AsRef<[u8]>) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content.as_ref())
}

/// All errors of a clean-up in one.
fn joined(mut errors: Vec<Error>) -> Result<(), Error> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => {
            let messages: Vec<String> = errors.iter().map(|error| error.message.clone()).collect();
            Err(Error::new(errors[0].kind, messages.join("; ")))
        }
    }
}
