//! A client at a running container's own streams: the shim copies what the container writes into pipes of ours, and
//! hands its input over.

use super::PodEffects;
use crate::shim_client::Attached;
use knarr_model::Error;
use knarr_model::view::ContainerView;
use knarr_wire::shim::AttachId;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::oneshot;

/// None is used twice, as the shim demands of each connection.
static ATTACHES: AtomicU64 = AtomicU64::new(1);

/// Why the shim ended an attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The container's outputs have ended, or the container has.
    WithContainer,
    /// A pipe was full and more came.
    FellBehind,
    /// The shim is gone.
    ShimLost,
}

/// One client's hold on a container's streams. Dropping it detaches once its pipes are closed as well.
#[derive(Debug)]
pub(crate) struct Attachment {
    pod: Arc<PodEffects>,
    id: AttachId,
    ending: oneshot::Receiver<Ended>,
    ended: Option<Ended>,
}

impl PodEffects {
    /// Attaches to a container; `stdout` and `stderr` are write ends of pipes.
    pub(crate) async fn attach(
        self: &Arc<Self>,
        container: &ContainerView,
        stdin: bool,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> Result<(Attachment, Attached), Error> {
        let id = AttachId(ATTACHES.fetch_add(1, Ordering::Relaxed));
        let (sender, ending) = oneshot::channel();
        // Before the call: its end can overtake the answer.
        self.live().attaches.insert(id, sender);
        let attachment = Attachment { pod: self.clone(), id, ending, ended: None };
        let attached = self.shim()?.attach(container.id.clone(), id, stdin, stdout, stderr).await;
        let doing = || format!("attach to container {} ({})", container.id.short(), container.spec.name);
        attached.map(|attached| (attachment, attached)).map_err(|error| error.context(doing()))
    }
}

impl Attachment {
    /// Waits until the shim says why it has ended; an attach without outputs has no end.
    pub(crate) async fn ended(&mut self) -> Ended {
        match self.ended {
            Some(ended) => ended,
            None => *self.ended.insert((&mut self.ending).await.unwrap_or(Ended::ShimLost)),
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.pod.live().attaches.remove(&self.id);
    }
}
