//! What is kept of a pod across the daemon's death, and how life goes on from it.
//!
//! A record says what was meant, the shim says what is. Where the two differ, the shim is right about processes and
//! the record about everything else. Work that was half done is either taken as done (the shim knows the process) or
//! undone (a pod that was being set up, a container that was being created), so that a retry succeeds.

use super::{Container, ContainerPhase, Phase, Pod, Step};
use crate::effect::Effect;
use crate::input::{Nanos, OomKilled, PodNetwork, Resolved};
use crate::plan::Exit;
use crate::resources::{PodResources, Resources};
use crate::spec::{ContainerSpec, PodSpec};
use crate::{ContainerId, PodId};
use std::sync::Arc;

/// The part of a pod's phase that outlives the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SavedPhase {
    /// RunPodSandbox had not been answered.
    SettingUp,
    /// READY
    Ready,
    /// A stop had begun; what is torn down already is not known.
    Stopping,
    /// Torn down.
    Stopped,
}

/// A pod as its record has it.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct SavedPod {
    pub id: PodId,
    pub spec: Arc<PodSpec>,
    pub created_at: Nanos,
    pub phase: SavedPhase,
    pub network: PodNetwork,
    pub resources: PodResources,
    pub containers: Vec<SavedContainer>,
}

/// A container as its pod's record has it.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct SavedContainer {
    pub id: ContainerId,
    pub spec: Arc<ContainerSpec>,
    pub created_at: Nanos,
    pub resolved: Resolved,
    pub resources: Resources,
    pub phase: ContainerPhase,
}

/// What the shim told after the daemon came back; `None` in [`crate::input::Input::Recovered`] means that it is gone.
pub type ShimFacts = Vec<(ContainerId, Found)>;

/// What the shim knows of one container.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// of the first process
    pub pid: u32,
    /// when it was started
    pub started_at: Nanos,
    /// how it ended, if it did
    pub exit: Option<(Exit, OomKilled)>,
}

impl Pod {
    /// What must be known after a restart.
    pub fn saved(&self) -> SavedPod {
        let phase = match self.phase {
            Phase::SettingUp => SavedPhase::SettingUp,
            Phase::Ready => SavedPhase::Ready,
            Phase::Stopping | Phase::TearingDown | Phase::TearDownFailed => SavedPhase::Stopping,
            Phase::Stopped | Phase::Deleting => SavedPhase::Stopped,
        };
        let containers = self
            .containers
            .values()
            .map(|c| SavedContainer {
                id: c.id.clone(),
                spec: c.spec.clone(),
                created_at: c.created_at,
                resolved: c.resolved.clone(),
                resources: c.resources.clone(),
                phase: c.phase.clone(),
            })
            .collect();
        let (id, spec, network) = (self.id.clone(), self.spec.clone(), self.network.clone());
        let resources = self.resources.clone();
        SavedPod { id, spec, created_at: self.created_at, phase, network, resources, containers }
    }

    /// The pod of a record. Its first input must be `Input::Recovered`.
    pub fn restored(saved: SavedPod) -> Self {
        let mut pod = Pod::new(saved.id, saved.spec, saved.created_at);
        pod.network = saved.network;
        pod.resources = saved.resources;
        pod.phase = match saved.phase {
            SavedPhase::SettingUp => Phase::SettingUp,
            SavedPhase::Ready => Phase::Ready,
            SavedPhase::Stopping => Phase::Stopping,
            SavedPhase::Stopped => Phase::Stopped,
        };
        for c in saved.containers {
            pod.last_created_at = pod.last_created_at.max(c.created_at);
            let phase = match c.phase {
                ContainerPhase::Deleting(before) => *before,
                phase => phase,
            };
            let container = Container::restored(c.id.clone(), c.spec, c.created_at, c.resolved, c.resources, phase);
            pod.containers.insert(c.id, container);
        }
        pod
    }

    /// Lets the pod of a record go on from what the shim knows.
    pub(super) fn recovered(&mut self, now: Nanos, facts: Option<ShimFacts>, step: &mut Step) {
        step.changed = true;
        if self.phase == Phase::SettingUp {
            // Nobody was told its id: it is undone, and the retry makes a new one.
            self.phase = Phase::Stopping;
            self.stop.wanted = true;
            self.remove.wanted = true;
        }
        for container in self.containers.values_mut() {
            let found = facts.iter().flatten().find(|(id, _)| *id == container.id).map(|(_, found)| *found);
            container.recovered(now, found, step);
        }
        if facts.is_none() && self.phase == Phase::Ready {
            self.stop.wanted = true;
        }
    }
}

impl Container {
    fn recovered(&mut self, now: Nanos, found: Option<Found>, step: &mut Step) {
        match (&self.phase, found) {
            (ContainerPhase::Creating, _) => {
                self.phase = ContainerPhase::Created;
                self.remove.wanted = true;
            }
            (ContainerPhase::Starting { .. } | ContainerPhase::Created, Some(found)) => {
                self.phase = ContainerPhase::Running { pid: found.pid, started_at: found.started_at };
                self.exit_found(found, step);
            }
            // It never came to a process, or the process went with the shim before anyone was told of it.
            (ContainerPhase::Starting { .. }, None) => {
                step.effects.push(Effect::Kill(self.id.clone()));
                self.phase = ContainerPhase::Created;
            }
            (ContainerPhase::Running { .. }, Some(found)) => self.exit_found(found, step),
            (ContainerPhase::Running { .. }, None) => self.shim_lost(now, step),
            (ContainerPhase::Created | ContainerPhase::Exited { .. } | ContainerPhase::Deleting(_), _) => {}
        }
    }

    fn exit_found(&mut self, found: Found, step: &mut Step) {
        if let Some((exit, oom)) = found.exit {
            self.exited(exit, oom, step);
        }
    }
}
