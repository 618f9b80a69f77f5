//! The `state` file's layout. These types are apart from the model's on purpose: they change only by added fields
//! with a default, the model's change as they like.

use knarr_model::input::{PodNetwork, Resolved};
use knarr_model::pod::{ContainerPhase, SavedContainer, SavedPhase, SavedPod};
use knarr_model::resources::{PodResources, Resources};
use knarr_model::spec::{ContainerSpec, PodSpec};
use knarr_model::view::Reason;
use knarr_model::{ContainerId, Error, PodId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    created_at: i64,
    phase: PodPhase,
    #[serde(default)]
    ips: Vec<IpAddr>,
    /// Absent in records from before pods were told of changes: then the request says it.
    #[serde(default)]
    overhead: Option<SavedResources>,
    #[serde(default)]
    resources: Option<SavedResources>,
    #[serde(default)]
    containers: Vec<Container>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PodPhase {
    SettingUp,
    Ready,
    Stopping,
    Stopped,
}

#[derive(Debug, Serialize, Deserialize)]
struct Container {
    id: String,
    created_at: i64,
    phase: Phase,
    #[serde(default)]
    image_id: String,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default)]
    groups: Vec<u32>,
    #[serde(default)]
    volume_images: Vec<String>,
    #[serde(default)]
    stop_signal: u8,
    #[serde(default)]
    resources: SavedResources,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    Creating,
    Created,
    Starting,
    Running { pid: u32, started_at: i64 },
    Exited { started_at: i64, finished_at: i64, code: i32, reason: String, message: String },
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SavedResources {
    cpu_period: Option<u64>,
    cpu_quota: Option<i64>,
    cpu_shares: Option<u64>,
    memory_limit: Option<i64>,
    memory_swap_limit: Option<i64>,
    oom_score_adj: Option<i32>,
    cpuset_cpus: Option<String>,
    cpuset_mems: Option<String>,
    hugepage_limits: BTreeMap<String, u64>,
    unified: BTreeMap<String, String>,
    pids_limit: Option<i64>,
}

impl From<&SavedPod> for State {
    fn from(pod: &SavedPod) -> Self {
        let phase = match pod.phase {
            SavedPhase::SettingUp => PodPhase::SettingUp,
            SavedPhase::Ready => PodPhase::Ready,
            SavedPhase::Stopping => PodPhase::Stopping,
            SavedPhase::Stopped => PodPhase::Stopped,
        };
        let containers = pod.containers.iter().map(Container::from).collect();
        Self {
            created_at: pod.created_at,
            phase,
            ips: pod.network.ips.clone(),
            overhead: Some(SavedResources::from(&pod.resources.overhead)),
            resources: Some(SavedResources::from(&pod.resources.containers)),
            containers,
        }
    }
}

impl From<&SavedContainer> for Container {
    fn from(c: &SavedContainer) -> Self {
        Self {
            id: c.id.to_string(),
            created_at: c.created_at,
            phase: Phase::from(&c.phase),
            image_id: c.resolved.image_id.clone(),
            uid: c.resolved.uid,
            gid: c.resolved.gid,
            groups: c.resolved.groups.clone(),
            volume_images: c.resolved.volume_images.clone(),
            stop_signal: c.resolved.stop_signal,
            resources: SavedResources::from(&c.resources),
        }
    }
}

impl From<&ContainerPhase> for Phase {
    fn from(phase: &ContainerPhase) -> Self {
        match phase {
            ContainerPhase::Creating => Self::Creating,
            ContainerPhase::Created => Self::Created,
            ContainerPhase::Starting { .. } => Self::Starting,
            ContainerPhase::Running { pid, started_at } => Self::Running { pid: *pid, started_at: *started_at },
            ContainerPhase::Exited { started_at, finished_at, code, reason, message } => Self::Exited {
                started_at: *started_at,
                finished_at: *finished_at,
                code: *code,
                reason: reason.as_str().to_owned(),
                message: message.clone(),
            },
            ContainerPhase::Deleting(before) => Self::from(&**before),
        }
    }
}

impl From<&Resources> for SavedResources {
    fn from(r: &Resources) -> Self {
        Self {
            cpu_period: r.cpu_period,
            cpu_quota: r.cpu_quota,
            cpu_shares: r.cpu_shares,
            memory_limit: r.memory_limit,
            memory_swap_limit: r.memory_swap_limit,
            oom_score_adj: r.oom_score_adj,
            cpuset_cpus: r.cpuset_cpus.clone(),
            cpuset_mems: r.cpuset_mems.clone(),
            hugepage_limits: r.hugepage_limits.clone(),
            unified: r.unified.clone(),
            pids_limit: r.pids_limit,
        }
    }
}

impl From<SavedResources> for Resources {
    fn from(r: SavedResources) -> Self {
        Self {
            cpu_period: r.cpu_period,
            cpu_quota: r.cpu_quota,
            cpu_shares: r.cpu_shares,
            memory_limit: r.memory_limit,
            memory_swap_limit: r.memory_swap_limit,
            oom_score_adj: r.oom_score_adj,
            cpuset_cpus: r.cpuset_cpus,
            cpuset_mems: r.cpuset_mems,
            hugepage_limits: r.hugepage_limits,
            unified: r.unified,
            pids_limit: r.pids_limit,
        }
    }
}

impl State {
    pub(super) fn into_saved(
        self,
        id: &PodId,
        spec: Arc<PodSpec>,
        config_of: impl Fn(&ContainerId) -> Result<Arc<ContainerSpec>, Error>,
    ) -> Result<SavedPod, Error> {
        let phase = match self.phase {
            PodPhase::SettingUp => SavedPhase::SettingUp,
            PodPhase::Ready => SavedPhase::Ready,
            PodPhase::Stopping => SavedPhase::Stopping,
            PodPhase::Stopped => SavedPhase::Stopped,
        };
        let mut containers = Vec::with_capacity(self.containers.len());
        for c in self.containers {
            let id = ContainerId::parse(&c.id).map_err(|e| Error::internal(format!("container {:?}: {e}", c.id)))?;
            containers.push(SavedContainer {
                spec: config_of(&id)?,
                id,
                created_at: c.created_at,
                resolved: Resolved {
                    image_id: c.image_id,
                    uid: c.uid,
                    gid: c.gid,
                    groups: c.groups,
                    volume_images: c.volume_images,
                    stop_signal: c.stop_signal,
                },
                resources: c.resources.into(),
                phase: c.phase.into(),
            });
        }
        let network = PodNetwork { ips: self.ips };
        let or_as_asked = |saved: Option<SavedResources>, asked: &Resources| saved.map_or(asked.clone(), Into::into);
        let resources = PodResources {
            overhead: or_as_asked(self.overhead, &spec.overhead),
            containers: or_as_asked(self.resources, &spec.resources),
        };
        Ok(SavedPod { id: id.clone(), spec, created_at: self.created_at, phase, network, resources, containers })
    }
}

impl From<Phase> for ContainerPhase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Creating => Self::Creating,
            Phase::Created => Self::Created,
            Phase::Starting => Self::Starting { early_exit: None },
            Phase::Running { pid, started_at } => Self::Running { pid, started_at },
            Phase::Exited { started_at, finished_at, code, reason, message } => {
                let known = [Reason::Completed, Reason::Error, Reason::OomKilled, Reason::StartError, Reason::Unknown];
                let reason = known.into_iter().find(|r| r.as_str() == reason).unwrap_or(Reason::Unknown);
                Self::Exited { started_at, finished_at, code, reason, message }
            }
        }
    }
}
