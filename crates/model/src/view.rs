//! What List and Status may see: a snapshot that the pod's task publishes after each step. Readers never ask the task.

use crate::input::{Nanos, PodNetwork, Resolved};
use crate::resources::{PodResources, Resources};
use crate::spec::{ContainerSpec, PodSpec};
use crate::{ContainerId, PodId};
use std::sync::Arc;

/// One pod at one moment.
#[derive(Debug, Clone)]
pub struct PodView {
    /// its id
    pub id: PodId,
    /// what was asked for
    pub spec: Arc<PodSpec>,
    /// nanoseconds since 1970, never the same for two pods
    pub created_at: Nanos,
    /// SANDBOX_READY, else SANDBOX_NOTREADY
    pub ready: bool,
    /// Still being set up: List and Status do not show it.
    pub hidden: bool,
    /// Empty once the network is torn down.
    pub network: PodNetwork,
    /// as last told
    pub resources: PodResources,
    /// oldest first; containers still being created are not in it
    pub containers: Vec<ContainerView>,
}

/// One container at one moment.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// its id
    pub id: ContainerId,
    /// what was asked for
    pub spec: Arc<ContainerSpec>,
    /// what was found out
    pub resolved: Resolved,
    /// as last accepted
    pub resources: Resources,
    /// nanoseconds since 1970
    pub created_at: Nanos,
    /// where it is in its life
    pub state: ContainerState,
}

/// A container's state as CRI has it, with what each state knows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ContainerState {
    Created,
    Running {
        pid: u32,
        started_at: Nanos,
    },
    Exited {
        started_at: Nanos,
        finished_at: Nanos,
        code: i32,
        reason: Reason,
        message: String,
    },
    /// The shim is lost and nothing is known of the process.
    Unknown {
        started_at: Nanos,
    },
}

/// Why a container is over, in the words that kubelet matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// exit code 0
    Completed,
    /// any other exit code
    Error,
    /// the OOM killer
    OomKilled,
    /// it never ran: exit code 128
    StartError,
    /// its end was not seen: exit code 255
    Unknown,
}

impl Reason {
    /// The text of ContainerStatus.reason.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "Unknown",
        }
    }
}
