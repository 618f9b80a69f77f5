//! Everything that a pod may ask of the outside. The shell starts an effect and never waits for it; what comes of it
//! is a later [`crate::input::Outcome`].

use crate::ContainerId;
use crate::input::{Nanos, Timer};
use crate::resources::Resources;

/// One thing to do. Per container at most one of Create, Start and Delete is under way, per pod one of SetUp,
/// TearDown and Delete.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Cgroup, shim, namespaces, network. Undoes itself when it fails.
    SetUpPod,
    /// Network, namespaces, shim, cgroup. Goes on after an error and reports all of them.
    TearDownPod,
    /// The pod's directories. Its record goes when the shell is told that the pod is over ([`crate::pod::Step`]).
    DeletePod,
    /// Find the image, look up the user, make the writable layer's directory.
    CreateContainer(ContainerId),
    /// Cgroup, root file system, volumes, process.
    StartContainer(ContainerId),
    /// Send a signal to the first process.
    Signal(ContainerId, u8),
    /// SIGKILL to every process of the container's cgroup.
    Kill(ContainerId),
    /// Cgroup, writable layer, exit record. Kills what is left first.
    DeleteContainer(ContainerId),
    /// Write the changed limits; the whole wanted state is given.
    UpdateResources(ContainerId, Resources),
    /// Tell the shim to open the log anew.
    ReopenLog(ContainerId),
    /// Send `Input::Timer(timer)` at this time, or at once if it has passed. Setting a timer again moves it.
    SetTimer(Timer, Nanos),
    /// Forget a timer; nothing happens if there is none.
    ClearTimer(Timer),
}
