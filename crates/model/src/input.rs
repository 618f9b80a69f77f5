//! Everything that can happen to a pod. One closed enum: `pod::Pod::handle` decides every case, none falls through.

use crate::plan::{Exit, StartFailure};
use crate::pod::ShimFacts;
use crate::resources::Resources;
use crate::spec::ContainerSpec;
use crate::{ContainerId, Error};
use std::net::IpAddr;
use std::sync::Arc;

/// Nanoseconds since 1970, as CRI counts. The shell guarantees that it never goes back within one pod.
pub type Nanos = i64;

/// Names one waiting client, so that a reply finds it. Drawn by the shell; a ticket is answered exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What can happen.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A client asks.
    Request(Ticket, Request),
    /// A client went away; its ticket gets no answer any more. The work it started goes on.
    Abandoned(Ticket),
    /// Something that an effect started has ended.
    Outcome(Outcome),
    /// A container's first process ended.
    Exited(ContainerId, Exit, OomKilled),
    /// A timer that [`crate::effect::Effect::SetTimer`] set.
    Timer(Timer),
    /// The shim is gone without being told to; what it watched can no longer be known from it.
    ShimLost,
    /// The first input of a pod that was read from its record: what its shim knows, or `None` if there is no shim.
    Recovered(Option<ShimFacts>),
}

/// Whether the kernel's OOM killer hit the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OomKilled(pub bool);

/// What a client may ask of a pod. ExecSync, Exec, Attach and Status do not pass here: they change nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// RunPodSandbox: the first input of a new pod; a retry with the same metadata joins.
    Run,
    /// StopPodSandbox
    Stop,
    /// RemovePodSandbox
    Remove,
    /// CreateContainer, with the id that the container will get unless this is a retry that joins.
    CreateContainer(ContainerId, Arc<ContainerSpec>),
    /// StartContainer
    StartContainer(ContainerId),
    /// StopContainer; seconds, 0 or less kills at once
    StopContainer(ContainerId, i64),
    /// RemoveContainer
    RemoveContainer(ContainerId),
    /// UpdateContainerResources; `None` fields mean unchanged
    UpdateResources(ContainerId, Resources),
    /// ReopenContainerLog
    ReopenLog(ContainerId),
    /// UpdatePodSandboxResources; `None` leaves what was told before
    UpdatePodResources {
        /// what the runtime itself takes
        overhead: Option<Resources>,
        /// the sum of all containers
        containers: Option<Resources>,
    },
}

/// How an effect ended. An `Err` of a teardown means that something is left and a later try may succeed.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// of SetUpPod
    PodSetUp(Result<PodNetwork, Error>),
    /// of TearDownPod
    PodTornDown(Result<(), Error>),
    /// of DeletePod
    PodDeleted(Result<(), Error>),
    /// of CreateContainer
    ContainerCreated(ContainerId, Result<Resolved, Error>),
    /// of StartContainer
    ContainerStarted(ContainerId, Result<Started, StartError>),
    /// of DeleteContainer
    ContainerDeleted(ContainerId, Result<(), Error>),
    /// of UpdateResources: the resources as they now hold
    ResourcesUpdated(ContainerId, Result<(), Error>),
    /// of ReopenLog
    LogReopened(ContainerId, Result<(), Error>),
}

/// The addresses that a pod got; empty on the host's network. The first is the primary one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct PodNetwork {
    pub ips: Vec<IpAddr>,
}

/// What is known of a container once its image was found and its user looked up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolved {
    /// The image's id: the same text as PullImageResponse.image_ref.
    pub image_id: String,
    /// uid of the first process
    pub uid: u32,
    /// gid of the first process
    pub gid: u32,
    /// its supplementary groups
    pub groups: Vec<u32>,
    /// The ids of the images among its volumes, in the order of those volumes.
    pub volume_images: Vec<String>,
    /// The signal that asks it to stop: the request's, the image's, or SIGTERM.
    pub stop_signal: u8,
}

/// A container's first process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Started {
    pub pid: u32,
    pub started_at: Nanos,
}

/// Why a container did not start.
#[derive(Debug, Clone, PartialEq)]
pub enum StartError {
    /// The shim tried; the program or its surroundings were at fault.
    Failed(StartFailure),
    /// It did not come to that.
    Other(Error),
}

/// What a deadline was for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// The grace period of a StopContainer ends: kill.
    StopContainer(ContainerId),
    /// Killed, yet no exit was seen: give up waiting and say so.
    KillContainer(ContainerId),
    /// A teardown that failed is tried again.
    RetryTearDown,
}
