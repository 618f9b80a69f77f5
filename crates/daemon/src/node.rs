//! The register of this node: which pods there are, by id, by name and by container. It owns no state of theirs;
//! each pod's task does.

use crate::clock::Clock;
use crate::effects::{PodEffects, World};
use crate::pod_task::{self, PodHandle};
use crate::records::{PodConfig, Records};
use crate::usage::Usage;
use knarr_model::input::{Input, Request};
use knarr_model::pod::{Pod, Reply};
use knarr_model::spec::{ContainerSpec, PodSpec};
use knarr_model::view::{ContainerView, PodView};
use knarr_model::{ContainerId, Error, ErrorKind, PodId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Pods above this are refused: every List carries all of them, and a node has 110 by default.
const PODS_MAX: usize = 4096;

/// What kubelet never gives to two living pods.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PodName {
    namespace: String,
    name: String,
    uid: String,
    attempt: u32,
}

impl From<&PodSpec> for PodName {
    fn from(spec: &PodSpec) -> Self {
        Self {
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            uid: spec.uid.clone(),
            attempt: spec.attempt,
        }
    }
}

#[derive(Debug, Default)]
struct Register {
    pods: HashMap<PodId, PodHandle>,
    names: HashMap<PodName, PodId>,
}

/// One node: its pods and what they share.
#[derive(Debug)]
pub struct Node {
    clock: Clock,
    records: Records,
    world: Arc<World>,
    usage: Usage,
    register: Mutex<Register>,
}

impl Node {
    /// A node without pods.
    pub fn new(clock: Clock, records: Records, world: Arc<World>) -> Arc<Self> {
        Arc::new(Self { clock, records, world, usage: Usage::default(), register: Mutex::default() })
    }

    /// Its clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Where pods are kept across restarts.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// What statistics remember between calls.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// What all pods share.
    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// The register is held for look-ups only, never across a wait.
    fn register(&self) -> MutexGuard<'_, Register> {
        self.register.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// RunPodSandbox: makes the pod, or joins the making of the pod that has this name.
    pub async fn run_pod(self: &Arc<Self>, config: PodConfig, spec: PodSpec) -> Result<PodId, Error> {
        let name = PodName::from(&spec);
        // A task of its own: a client that goes away must leave neither a record without a pod nor a pod that nobody
        // asked to run.
        let node = self.clone();
        let run = tokio::spawn(async move { node.find_or_make_pod(name, config, spec).await });
        run.await.map_err(|e| Error::internal(format!("run pod: {e}")))?
    }

    async fn find_or_make_pod(
        self: Arc<Self>,
        name: PodName,
        config: PodConfig,
        spec: PodSpec,
    ) -> Result<PodId, Error> {
        let existing = {
            let register = self.register();
            register.names.get(&name).and_then(|id| register.pods.get(id)).cloned()
        };
        let handle = match existing {
            Some(handle) => handle,
            None => self.make_pod(name, config, spec).await?,
        };
        match handle.ask(Request::Run).await? {
            Reply::Pod(id) => Ok(id),
            other => Err(Error::internal(format!("run pod: unexpected answer {other:?}"))),
        }
    }

    async fn make_pod(self: &Arc<Self>, name: PodName, config: PodConfig, spec: PodSpec) -> Result<PodHandle, Error> {
        let id = PodId::from_bytes(&random_bytes()?);
        let node = self.clone();
        let for_record = id.clone();
        tokio::task::spawn_blocking(move || node.records.save_pod_config(&for_record, &config))
            .await
            .map_err(|e| Error::internal(format!("write the record of the pod: {e}")))?
            .map_err(|e| Error::internal(format!("write the record of the pod: {e}")))?;
        let spec = Arc::new(spec);
        let pod = Pod::new(id.clone(), spec.clone(), self.clock.now());
        let effects = PodEffects::new(self.world.clone(), id.clone(), spec);
        let (handle, lost) = {
            let mut register = self.register();
            // Another request of the same name may have come first while the record was written: then it is joined.
            let first = register.names.get(&name).and_then(|id| register.pods.get(id)).cloned();
            match first {
                Some(first) => (first, true),
                None if register.pods.len() >= PODS_MAX => {
                    drop(register);
                    let _ = self.records.drop_pod(&id);
                    let message = format!("this node has {PODS_MAX} pods, which is the limit");
                    return Err(Error::new(ErrorKind::ResourceExhausted, message));
                }
                None => {
                    let handle = pod_task::start(self.clone(), pod, effects, Vec::new());
                    register.names.insert(name, id.clone());
                    register.pods.insert(id.clone(), handle.clone());
                    (handle, false)
                }
            }
        };
        if lost {
            let node = self.clone();
            let _ = tokio::task::spawn_blocking(move || node.records.drop_pod(&id)).await;
        }
        Ok(handle)
    }

    /// Takes a pod over that was read from its record.
    pub fn adopt(self: &Arc<Self>, pod: Pod, effects: Arc<PodEffects>, facts: Vec<Input>) {
        let mut register = self.register();
        register.names.insert(PodName::from(&**pod.spec()), pod.id().clone());
        let id = pod.id().clone();
        let handle = pod_task::start(self.clone(), pod, effects, facts);
        register.pods.insert(id, handle);
    }

    /// The pod is over; its name is free.
    pub fn forget(&self, id: &PodId, spec: &PodSpec) {
        let mut register = self.register();
        register.pods.remove(id);
        let name = PodName::from(spec);
        if register.names.get(&name) == Some(id) {
            register.names.remove(&name);
        }
    }

    /// The pod of an id or of a unique beginning of one.
    pub fn pod(&self, id: &str) -> Result<PodHandle, Error> {
        let register = self.register();
        if let Ok(id) = PodId::parse(id)
            && let Some(handle) = register.pods.get(&id)
        {
            return Ok(handle.clone());
        }
        let matches = register.pods.iter().filter(|(full, _)| is_prefix(id, full.as_str()));
        one_of(matches.map(|(full, handle)| (full.to_string(), handle.clone())), "pod", id)
    }

    /// The pod and the container of an id or of a unique beginning of one.
    pub fn container(&self, id: &str) -> Result<(PodHandle, ContainerView), Error> {
        let handles: Vec<PodHandle> = self.register().pods.values().cloned().collect();
        let mut matches = Vec::new();
        for handle in handles {
            let view = handle.view();
            for container in &view.containers {
                if container.id.as_str() == id {
                    return Ok((handle, container.clone()));
                }
                if is_prefix(id, container.id.as_str()) {
                    matches.push((container.id.to_string(), (handle.clone(), container.clone())));
                }
            }
        }
        one_of(matches.into_iter(), "container", id)
    }

    /// All pods that clients may see, newest first.
    pub fn views(&self) -> Vec<Arc<PodView>> {
        let mut views: Vec<_> = self.register().pods.values().map(PodHandle::view).filter(|v| !v.hidden).collect();
        views.sort_by_key(|v| std::cmp::Reverse(v.created_at));
        views
    }

    /// All pods, those being made included.
    pub fn handles(&self) -> Vec<PodHandle> {
        self.register().pods.values().cloned().collect()
    }

    /// CreateContainer. It goes on when its client goes away: else a record could stay without a container.
    pub async fn create_container(
        self: &Arc<Self>,
        pod: PodHandle,
        config: knarr_cri_api::v1::ContainerConfig,
        spec: ContainerSpec,
    ) -> Result<ContainerId, Error> {
        let node = self.clone();
        let created = tokio::spawn(async move { node.record_and_create(&pod, config, spec).await });
        created.await.map_err(|e| Error::internal(format!("create the container: {e}")))?
    }

    async fn record_and_create(
        &self,
        pod: &PodHandle,
        config: knarr_cri_api::v1::ContainerConfig,
        spec: ContainerSpec,
    ) -> Result<ContainerId, Error> {
        let id = ContainerId::from_bytes(&random_bytes()?);
        let pod_id = pod.view().id.clone();
        let (records, dir, container) = (self.records.clone(), pod_id.clone(), id.clone());
        tokio::task::spawn_blocking(move || records.save_container_config(&dir, &container, &config))
            .await
            .map_err(|e| Error::internal(format!("write the record of the container: {e}")))?
            .map_err(|e| Error::internal(format!("write the record of the container: {e}")))?;
        let answer = pod.ask(Request::CreateContainer(id.clone(), Arc::new(spec))).await;
        let got = match answer {
            Ok(Reply::Container(got)) => Ok(got),
            Ok(other) => Err(Error::internal(format!("create container: unexpected answer {other:?}"))),
            Err(error) => Err(error),
        };
        if got.as_ref() != Ok(&id) {
            // Refused, or joined to a predecessor that has a record of its own.
            self.records.drop_container_config(&pod_id, &id);
        }
        got
    }
}

/// Beginnings shorter than this are refused: one digit is more likely a slip than an id.
const PREFIX_DIGITS_MIN: usize = 3;

fn is_prefix(text: &str, full: &str) -> bool {
    text.len() >= PREFIX_DIGITS_MIN && full.starts_with(text)
}

fn one_of<T>(mut matches: impl Iterator<Item = (String, T)>, what: &str, id: &str) -> Result<T, Error> {
    let Some((first, found)) = matches.next() else { return Err(Error::not_found(what, format!("{id:?}"))) };
    match matches.next() {
        None => Ok(found),
        Some((second, _)) => Err(Error::invalid(
            &format!("{what}_id"),
            format!("{id:?} is the beginning of more than one id, of {} and {}", &first[..16], &second[..16]),
        )),
    }
}

fn random_bytes() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .map_err(|e| Error::internal(format!("getrandom: {e}")))?;
    }
    Ok(bytes)
}
