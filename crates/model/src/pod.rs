//! The machine that owns one pod.

use crate::effect::Effect;
use crate::input::{Input, Nanos, Ticket};
use crate::spec::PodSpec;
use crate::view::PodView;
use crate::{ContainerId, Error, PodId};
use std::sync::Arc;

/// What the shell must now do, in this order: save if `changed`, start the effects, answer.
#[derive(Debug, Default)]
pub struct Step {
    /// The record differs from what was last saved.
    pub changed: bool,
    /// To be started, in this order.
    pub effects: Vec<Effect>,
    /// To be sent, each ticket once.
    pub replies: Vec<(Ticket, Result<Reply, Error>)>,
    /// Nothing is left of the pod: drop the record, the names and the task.
    pub over: bool,
}

/// What a client hears when all went well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Stop, Remove, Start, Update, Reopen.
    Done,
    /// RunPodSandbox
    Pod(PodId),
    /// CreateContainer
    Container(ContainerId),
}

/// One pod.
#[derive(Debug)]
pub struct Pod {
    id: PodId,
    spec: Arc<PodSpec>,
    created_at: Nanos,
}

impl Pod {
    /// A pod that nothing has happened to yet.
    pub fn new(id: PodId, spec: Arc<PodSpec>, created_at: Nanos) -> Self {
        Self { id, spec, created_at }
    }

    /// Decides what follows from `input`.
    pub fn handle(&mut self, now: Nanos, input: Input) -> Step {
        let _ = (now, input);
        Step::default()
    }

    /// What List and Status may see now.
    pub fn view(&self) -> PodView {
        PodView {
            id: self.id.clone(),
            spec: self.spec.clone(),
            created_at: self.created_at,
            ready: false,
            hidden: true,
            network: Default::default(),
            containers: Vec::new(),
        }
    }
}
