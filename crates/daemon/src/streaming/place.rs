//! The container that a session is about, looked at anew when the session begins: its URL may have waited.

use crate::pod_task::PodHandle;
use knarr_model::view::{ContainerState, ContainerView, PodView};
use knarr_model::{ContainerId, Error, ErrorKind};

/// A container of a pod.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub pod: PodHandle,
    pub container: ContainerId,
}

impl Place {
    /// The container, if it runs.
    pub(super) fn running(&self) -> Result<ContainerView, Error> {
        let view = self.pod.view();
        let container = view.containers.iter().find(|c| c.id == self.container);
        let container = container.ok_or_else(|| Error::not_found("container", self.container.short()))?;
        must_run(container)?;
        Ok(container.clone())
    }

    /// Resolves once the container does not run any more.
    pub(super) async fn container_over(&self) {
        self.pod.view_is(|view| !runs(view, &self.container)).await;
    }
}

/// Refuses what does not run.
pub(crate) fn must_run(container: &ContainerView) -> Result<(), Error> {
    match container.state {
        ContainerState::Running { .. } => Ok(()),
        _ => {
            let message = format!("container {} ({}) is not running", container.id.short(), container.spec.name);
            Err(Error::new(ErrorKind::FailedPrecondition, message))
        }
    }
}

fn runs(view: &PodView, id: &ContainerId) -> bool {
    view.containers.iter().any(|c| c.id == *id && matches!(c.state, ContainerState::Running { .. }))
}
