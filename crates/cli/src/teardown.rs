//! Stops and removes pods and containers. It never ends at the first error: what can be stopped or removed is, and all that
//! could not be is reported.

use std::collections::HashMap;
use std::path::Path;

use knarr_cri_api::v1;

use crate::client::Client;
use crate::failure::Failure;
use crate::fan_out;
use crate::lookup::{container_name, pod_name};
use crate::pod_files::PodFiles;
use crate::pod_manifest::container_config::{ANNOTATION_GRACE, ANNOTATION_ORDER, ANNOTATION_ROLE};
use crate::pod_manifest::sandbox_config::{LABEL_MADE_BY, LABEL_POD_UID, MADE_BY_RUN};

/// How long a container has to end by itself where neither the command line nor its pod says.
pub const USUAL_GRACE_S: i64 = 10;

/// The grace period of one container: what was typed, else what its pod was made with.
pub fn grace_s(typed: Option<i64>, annotations: &HashMap<String, String>) -> i64 {
    let of_pod = || annotations.get(ANNOTATION_GRACE).and_then(|text| text.parse().ok());
    typed.or_else(of_pod).unwrap_or(USUAL_GRACE_S)
}

/// The place of a container in its pod's order of starting.
pub fn order_of(container: &v1::Container) -> usize {
    container.annotations.get(ANNOTATION_ORDER).and_then(|text| text.parse().ok()).unwrap_or(usize::MAX)
}

/// Whether the container was made as a sidecar by `knarr run`.
pub fn is_sidecar(container: &v1::Container) -> bool {
    container.annotations.get(ANNOTATION_ROLE).is_some_and(|role| role == "sidecar")
}

fn is_running(container: &v1::Container) -> bool {
    container.state == v1::ContainerState::ContainerRunning as i32
}

/// Stops a container. One that has gone is stopped.
pub async fn stop_container(client: &Client, id: &str, name: &str, grace_s: i64) -> Result<(), Failure> {
    match client.stop_container(format!("stop container {name}"), id, grace_s).await {
        Err(failure) if failure.is_not_found() => Ok(()),
        outcome => outcome,
    }
}

/// Stops a pod: its containers politely and all at once, then its sidecars in the reverse order of their start, then what
/// is left of it.
pub async fn stop_pod(client: &Client, pod_id: &str, name: &str, typed_grace_s: Option<i64>) -> Vec<Failure> {
    let mut failures = Vec::new();
    match client.containers(Some(pod_id)).await {
        Err(failure) => failures.push(failure),
        Ok(containers) => {
            let (mut sidecars, others): (Vec<_>, Vec<_>) =
                containers.into_iter().filter(is_running).partition(is_sidecar);
            let stops = fan_out::each(others, |container| {
                let client = client.clone();
                async move { stop_one(&client, &container, typed_grace_s).await }
            });
            failures.extend(stops.await.into_iter().flatten().filter_map(Result::err));
            sidecars.sort_by_key(|sidecar| std::cmp::Reverse(order_of(sidecar)));
            for sidecar in sidecars {
                failures.extend(stop_one(client, &sidecar, typed_grace_s).await.err());
            }
        }
    }
    let message = v1::StopPodSandboxRequest { pod_sandbox_id: pod_id.to_owned() };
    match client.stop_pod_sandbox(format!("stop pod {name}"), message).await {
        Err(failure) if !failure.is_not_found() => failures.push(failure),
        _ => {}
    }
    failures
}

async fn stop_one(client: &Client, container: &v1::Container, typed_grace_s: Option<i64>) -> Result<(), Failure> {
    let grace_s = grace_s(typed_grace_s, &container.annotations);
    stop_container(client, &container.id, container_name(container), grace_s).await
}

/// Removes a pod, whatever its state, and the files that `knarr run` made for it.
pub async fn remove_pod(client: &Client, cli_dir: &Path, pod: &v1::PodSandbox) -> Vec<Failure> {
    let name = pod_name(pod);
    let mut failures = Vec::new();
    let stop = v1::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    match client.stop_pod_sandbox(format!("stop pod {name}"), stop).await {
        Err(failure) if !failure.is_not_found() => failures.push(failure),
        _ => {}
    }
    let remove = v1::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    match client.remove_pod_sandbox(format!("remove pod {name}"), remove).await {
        Err(failure) if !failure.is_not_found() => failures.push(failure),
        _ => {}
    }
    // Volumes are taken away only from under a pod that has gone: a container could still be writing to them.
    if failures.is_empty() && is_ours(pod) {
        failures.extend(remove_files(cli_dir, uid_of(pod)).err());
    }
    failures
}

/// Removes every sandbox with this uid and then the pod's files: also one that was being made when we stopped waiting for it.
pub async fn remove_by_uid(client: &Client, cli_dir: &Path, uid: &str) -> Vec<Failure> {
    let filter = v1::PodSandboxFilter {
        label_selector: HashMap::from([(LABEL_POD_UID.to_owned(), uid.to_owned())]),
        ..v1::PodSandboxFilter::default()
    };
    let message = v1::ListPodSandboxRequest { filter: Some(filter) };
    let pods = match client.list_pod_sandbox("list the pods to remove", message).await {
        Ok(response) => response.items,
        Err(failure) => return vec![failure],
    };
    let mut failures = Vec::new();
    for pod in &pods {
        failures.extend(remove_pod(client, cli_dir, pod).await);
    }
    if failures.is_empty() {
        failures.extend(remove_files(cli_dir, uid).err());
    }
    failures
}

fn remove_files(cli_dir: &Path, uid: &str) -> Result<(), Failure> {
    let Some(files) = PodFiles::of(cli_dir, uid) else { return Ok(()) };
    files.remove().map_err(|error| Failure::io(format!("remove the files of pod {uid}"), &error))
}

/// Whether `knarr run` or `knarr create` made the pod.
pub fn is_ours(pod: &v1::PodSandbox) -> bool {
    pod.labels.get(LABEL_MADE_BY).is_some_and(|value| value == MADE_BY_RUN)
}

/// The uid in the pod's metadata.
pub fn uid_of(pod: &v1::PodSandbox) -> &str {
    pod.metadata.as_ref().map_or("", |metadata| &metadata.uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grace_period_is_what_was_typed_else_what_the_pod_says() {
        let annotated = HashMap::from([(ANNOTATION_GRACE.to_owned(), "45".to_owned())]);
        assert_eq!(grace_s(Some(3), &annotated), 3);
        assert_eq!(grace_s(None, &annotated), 45);
        assert_eq!(grace_s(None, &HashMap::new()), USUAL_GRACE_S);
        let nonsense = HashMap::from([(ANNOTATION_GRACE.to_owned(), "soon".to_owned())]);
        assert_eq!(grace_s(None, &nonsense), USUAL_GRACE_S);
    }
}
