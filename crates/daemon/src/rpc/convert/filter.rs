//! The filters of the List RPCs: parsed once, then asked for each pod or container. All conditions must hold.

use super::view::{container_state, pod_state};
use knarr_cri_api::v1;
use knarr_model::Error;
use knarr_model::view::{ContainerView, PodView};
use std::collections::{BTreeMap, HashMap};

/// Which pods a list shall show. The default shows all.
#[derive(Debug, Clone, Default)]
pub struct PodFilter {
    /// How the id begins: clients may shorten ids.
    id: String,
    state: Option<v1::PodSandboxState>,
    labels: HashMap<String, String>,
}

impl PodFilter {
    /// Parses ListPodSandbox's filter.
    pub fn parse(filter: Option<v1::PodSandboxFilter>) -> Result<Self, Error> {
        let filter = filter.unwrap_or_default();
        let state = filter.state.map(|wanted| {
            v1::PodSandboxState::try_from(wanted.state)
                .map_err(|_| Error::invalid("filter.state", format!("{} is no state of a pod", wanted.state)))
        });
        Ok(Self { id: filter.id, state: state.transpose()?, labels: filter.label_selector })
    }

    /// The filter of ListPodSandboxStats.
    pub fn of_stats(filter: Option<v1::PodSandboxStatsFilter>) -> Self {
        let filter = filter.unwrap_or_default();
        Self { id: filter.id, state: None, labels: filter.label_selector }
    }

    /// Whether `pod` is to be shown; pods that are still being set up never are.
    pub fn matches(&self, pod: &PodView) -> bool {
        !pod.hidden
            && pod.id.as_str().starts_with(&self.id)
            && self.state.is_none_or(|state| state == pod_state(pod.ready))
            && selected(&self.labels, &pod.spec.labels)
    }
}

/// Which containers a list shall show. The default shows all.
#[derive(Debug, Clone, Default)]
pub struct ContainerFilter {
    /// How the id begins.
    id: String,
    /// How the pod's id begins.
    pod: String,
    state: Option<v1::ContainerState>,
    labels: HashMap<String, String>,
}

impl ContainerFilter {
    /// Parses ListContainers' filter.
    pub fn parse(filter: Option<v1::ContainerFilter>) -> Result<Self, Error> {
        let filter = filter.unwrap_or_default();
        let state = filter.state.map(|wanted| {
            v1::ContainerState::try_from(wanted.state)
                .map_err(|_| Error::invalid("filter.state", format!("{} is no state of a container", wanted.state)))
        });
        Ok(Self { id: filter.id, pod: filter.pod_sandbox_id, state: state.transpose()?, labels: filter.label_selector })
    }

    /// The filter of ListContainerStats.
    pub fn of_stats(filter: Option<v1::ContainerStatsFilter>) -> Self {
        let filter = filter.unwrap_or_default();
        Self { id: filter.id, pod: filter.pod_sandbox_id, state: None, labels: filter.label_selector }
    }

    /// Whether any container of `pod` can match: spares looking at them one by one.
    pub fn matches_pod(&self, pod: &PodView) -> bool {
        !pod.hidden && pod.id.as_str().starts_with(&self.pod)
    }

    /// Whether `container`, one of `pod`, is to be shown.
    pub fn matches(&self, pod: &PodView, container: &ContainerView) -> bool {
        self.matches_pod(pod)
            && container.id.as_str().starts_with(&self.id)
            && self.state.is_none_or(|state| state == container_state(&container.state))
            && selected(&self.labels, &container.spec.labels)
    }
}

/// Equality is the only operator that CRI's selectors have.
fn selected(selector: &HashMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
