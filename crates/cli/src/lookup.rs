//! Finds what a person means by "3f2", "web", "web/app" or "prod/web/app".
//!
//! The rules are applied here and not left to the runtime, so that they are the same on every runtime:
//! a full id, then a name, then an unambiguous beginning of an id. Of several attempts of one pod or container the newest
//! is meant. Where both a pod and a container have the name, the pod is meant; `pod/container` names the container.

use std::collections::HashMap;

use knarr_cri_api::v1;

use crate::client::Client;
use crate::failure::Failure;
use crate::output::human;

/// What a name can stand for in this command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinds {
    /// Pods only.
    Pods,
    /// Containers only.
    Containers,
    /// Either.
    Both,
}

/// What it stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// A pod.
    Pod(v1::PodSandbox),
    /// A container.
    Container(v1::Container),
}

/// Pods and containers as they are now; asked once for all names of a command line.
#[derive(Debug, Default)]
pub struct Inventory {
    /// All pods, ready or not.
    pub pods: Vec<v1::PodSandbox>,
    /// All containers in every state.
    pub containers: Vec<v1::Container>,
}

impl Inventory {
    /// Asks the runtime.
    pub async fn read(client: &Client) -> Result<Self, Failure> {
        let (pods, containers) = tokio::join!(client.pods(), client.containers(None));
        Ok(Self { pods: pods?, containers: containers? })
    }

    /// The pod of a container.
    pub fn pod_of(&self, container: &v1::Container) -> Option<&v1::PodSandbox> {
        self.pods.iter().find(|pod| pod.id == container.pod_sandbox_id)
    }

    /// The containers of a pod, oldest first.
    pub fn containers_of(&self, pod_id: &str) -> Vec<&v1::Container> {
        let mut found: Vec<_> = self.containers.iter().filter(|one| one.pod_sandbox_id == pod_id).collect();
        found.sort_by_key(|container| container.created_at);
        found
    }

    /// Finds the one thing that `typed` names.
    ///
    /// # Errors
    /// Nothing has this name, or several things have; then all are listed.
    pub fn find(&self, typed: &str, kinds: Kinds) -> Result<Target, Failure> {
        let mut candidates = Vec::new();
        if kinds != Kinds::Containers {
            candidates.extend(self.pods.iter().map(pod_candidate));
        }
        if kinds != Kinds::Pods {
            let pods: HashMap<&str, &v1::PodSandbox> = self.pods.iter().map(|pod| (pod.id.as_str(), pod)).collect();
            let container = |one| container_candidate(one, &pods);
            candidates.extend(self.containers.iter().map(container));
        }
        match select(typed, &candidates) {
            Ok(chosen) => Ok(chosen.target.clone()),
            Err(several) if several.is_empty() => Err(nothing(typed, kinds)),
            Err(several) => Err(ambiguous(typed, &several)),
        }
    }

    /// [`Inventory::find`] for a command that takes pods only.
    pub fn find_pod(&self, typed: &str) -> Result<v1::PodSandbox, Failure> {
        match self.find(typed, Kinds::Pods)? {
            Target::Pod(pod) => Ok(pod),
            Target::Container(_) => Err(nothing(typed, Kinds::Pods)),
        }
    }

    /// [`Inventory::find`] for a command that takes containers only. A pod's name stands for its container if it has
    /// just one.
    pub fn find_container(&self, typed: &str) -> Result<v1::Container, Failure> {
        let missed = match self.find(typed, Kinds::Containers) {
            Ok(Target::Container(container)) => return Ok(container),
            Ok(Target::Pod(_)) => nothing(typed, Kinds::Containers),
            Err(missed) if missed.is_not_found() => missed,
            Err(ambiguous) => return Err(ambiguous),
        };
        let Ok(pod) = self.find_pod(typed) else { return Err(missed) };
        let running: Vec<_> = self
            .containers_of(&pod.id)
            .into_iter()
            .filter(|one| one.state == v1::ContainerState::ContainerRunning as i32)
            .collect();
        match running.as_slice() {
            [only] => Ok((*only).clone()),
            [] => Err(Failure::not_found(format!("pod {typed} has no running container"))),
            several => {
                let names: Vec<String> =
                    several.iter().map(|one| format!("{}/{}", pod_name(&pod), container_name(one))).collect();
                Err(Failure::usage(format!("pod {typed} has several containers: {}", names.join(", ")))
                    .with_hint("name one of them"))
            }
        }
    }
}

/// The pod's name; empty where a runtime does not tell.
pub fn pod_name(pod: &v1::PodSandbox) -> &str {
    pod.metadata.as_ref().map_or("", |metadata| &metadata.name)
}

/// The pod's namespace.
pub fn pod_namespace(pod: &v1::PodSandbox) -> &str {
    pod.metadata.as_ref().map_or("", |metadata| &metadata.namespace)
}

/// The container's name within its pod.
pub fn container_name(container: &v1::Container) -> &str {
    container.metadata.as_ref().map_or("", |metadata| &metadata.name)
}

/// How often the container was started before.
pub fn container_attempt(container: &v1::Container) -> u32 {
    container.metadata.as_ref().map_or(0, |metadata| metadata.attempt)
}

struct Candidate {
    id: String,
    names: Vec<String>,
    /// Attempts of one thing share it; the newest of a group stands for the group.
    group: String,
    /// The greatest of a group is its newest.
    newest: (u32, i64),
    /// Pods go before containers where both have the name.
    is_pod: bool,
    label: String,
    target: Target,
}

fn pod_candidate(pod: &v1::PodSandbox) -> Candidate {
    let (name, namespace) = (pod_name(pod), pod_namespace(pod));
    let ready = pod.state == v1::PodSandboxState::SandboxReady as i32;
    Candidate {
        id: pod.id.clone(),
        names: vec![name.to_owned(), format!("{namespace}/{name}")],
        group: format!("{namespace}/{name}"),
        // A living pod is meant rather than a dead one that was made later.
        newest: (u32::from(ready), pod.created_at),
        is_pod: true,
        label: format!("pod {namespace}/{name} ({})", if ready { "ready" } else { "not ready" }),
        target: Target::Pod(pod.clone()),
    }
}

fn container_candidate(container: &v1::Container, pods: &HashMap<&str, &v1::PodSandbox>) -> Candidate {
    let name = container_name(container);
    let pod = pods.get(container.pod_sandbox_id.as_str());
    let (pod, namespace) = pod.map_or(("?", "?"), |pod| (pod_name(pod), pod_namespace(pod)));
    Candidate {
        id: container.id.clone(),
        names: vec![name.to_owned(), format!("{pod}/{name}"), format!("{namespace}/{pod}/{name}")],
        group: format!("{}/{name}", container.pod_sandbox_id),
        newest: (container_attempt(container), container.created_at),
        is_pod: false,
        label: format!("container {namespace}/{pod}/{name} ({})", state_word(container.state)),
        target: Target::Container(container.clone()),
    }
}

/// A container's state as a person says it.
pub fn state_word(state: i32) -> &'static str {
    match v1::ContainerState::try_from(state) {
        Ok(v1::ContainerState::ContainerCreated) => "created",
        Ok(v1::ContainerState::ContainerRunning) => "running",
        Ok(v1::ContainerState::ContainerExited) => "exited",
        Ok(v1::ContainerState::ContainerUnknown) | Err(_) => "unknown",
    }
}

/// The one candidate that is meant, or all that could be.
fn select<'a>(typed: &str, candidates: &'a [Candidate]) -> Result<&'a Candidate, Vec<&'a Candidate>> {
    if let Some(exact) = candidates.iter().find(|candidate| candidate.id == typed) {
        return Ok(exact);
    }
    let named: Vec<_> =
        candidates.iter().filter(|candidate| candidate.names.iter().any(|name| name == typed)).collect();
    let named_pods: Vec<_> = named.iter().copied().filter(|candidate| candidate.is_pod).collect();
    let named = if named_pods.is_empty() { named } else { named_pods };
    if !named.is_empty() {
        return one(newest_of_each_group(named));
    }
    let digits = !typed.is_empty() && typed.bytes().all(|byte| byte.is_ascii_hexdigit());
    one(candidates.iter().filter(|candidate| digits && candidate.id.starts_with(typed)).collect())
}

fn one(mut candidates: Vec<&Candidate>) -> Result<&Candidate, Vec<&Candidate>> {
    match candidates.len() {
        1 => Ok(candidates.remove(0)),
        _ => Err(candidates),
    }
}

fn newest_of_each_group(candidates: Vec<&Candidate>) -> Vec<&Candidate> {
    let mut newest: HashMap<&str, &Candidate> = HashMap::new();
    for candidate in candidates {
        let best = newest.entry(&candidate.group).or_insert(candidate);
        if candidate.newest > best.newest {
            *best = candidate;
        }
    }
    let mut found: Vec<_> = newest.into_values().collect();
    found.sort_by(|a, b| a.label.cmp(&b.label));
    found
}

fn nothing(typed: &str, kinds: Kinds) -> Failure {
    let (what, hint) = match kinds {
        Kinds::Pods => ("pod", "`knarr pods` lists all"),
        Kinds::Containers => ("container", "`knarr ps -a` lists all"),
        Kinds::Both => ("pod or container", "`knarr pods` and `knarr ps -a` list all"),
    };
    Failure::not_found(format!("no {what} has the name or id {typed:?}")).with_hint(hint)
}

/// How many candidates an error lists before it says that there are more.
const LISTED_MAX: usize = 10;

fn ambiguous(typed: &str, candidates: &[&Candidate]) -> Failure {
    let mut message = format!("{typed:?} is ambiguous; it may be");
    for candidate in candidates.iter().take(LISTED_MAX) {
        message.push_str(&format!("\n  {}  {}", human::short_id(&candidate.id), candidate.label));
    }
    if candidates.len() > LISTED_MAX {
        message.push_str(&format!("\n  and {} more", candidates.len() - LISTED_MAX));
    }
    Failure::usage(message).with_hint("give more digits of the id, or a name as namespace/pod/container")
}

/// Finds an image by name, digest, id or an unambiguous beginning of an id.
pub async fn image(client: &Client, typed: &str) -> Result<(v1::Image, HashMap<String, String>), Failure> {
    if let Some(found) = client.image(typed).await? {
        return Ok(found);
    }
    let digits = typed.strip_prefix("sha256:").unwrap_or(typed);
    let all = client.list_images("list images", v1::ListImagesRequest::default()).await?.images;
    let hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let matching: Vec<&v1::Image> = all
        .iter()
        .filter(|image| hex && image.id.strip_prefix("sha256:").unwrap_or(&image.id).starts_with(digits))
        .collect();
    match matching.as_slice() {
        [] => Err(Failure::not_found(format!("no image has the name or id {typed:?}"))
            .with_hint("`knarr images` lists all; `knarr pull` fetches one")),
        [only] => client
            .image(&only.id)
            .await?
            .ok_or_else(|| Failure::not_found(format!("image {typed} has just been removed"))),
        several => {
            let ids: Vec<String> = several
                .iter()
                .map(|image| {
                    let name = image.repo_tags.first().or(image.repo_digests.first()).map_or("", String::as_str);
                    format!("\n  {}  {name}", human::short_id(&image.id))
                })
                .collect();
            Err(Failure::usage(format!("{typed:?} is ambiguous; it may be{}", ids.concat())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{EXIT_NOT_FOUND, EXIT_USAGE};

    fn pod(id: &str, namespace: &str, name: &str, created_at: i64, ready: bool) -> v1::PodSandbox {
        v1::PodSandbox {
            id: id.into(),
            metadata: Some(v1::PodSandboxMetadata {
                name: name.into(),
                namespace: namespace.into(),
                ..v1::PodSandboxMetadata::default()
            }),
            state: i32::from(!ready),
            created_at,
            ..v1::PodSandbox::default()
        }
    }

    fn container(id: &str, pod_id: &str, name: &str, attempt: u32) -> v1::Container {
        v1::Container {
            id: id.into(),
            pod_sandbox_id: pod_id.into(),
            metadata: Some(v1::ContainerMetadata { name: name.into(), attempt }),
            state: v1::ContainerState::ContainerRunning as i32,
            ..v1::Container::default()
        }
    }

    fn inventory() -> Inventory {
        Inventory {
            pods: vec![
                pod("aa11", "default", "web", 5, true),
                pod("aa22", "default", "db", 1, true),
                pod("bb33", "prod", "db", 2, true),
                pod("cc44", "default", "web", 9, false),
            ],
            containers: vec![
                container("dd01", "aa11", "web", 0),
                container("dd02", "aa11", "side", 0),
                container("dd03", "aa22", "main", 0),
                container("dd04", "aa22", "main", 1),
                container("ab05", "bb33", "main", 0),
            ],
        }
    }

    fn found(typed: &str, kinds: Kinds) -> String {
        match inventory().find(typed, kinds) {
            Ok(Target::Pod(pod)) => pod.id,
            Ok(Target::Container(container)) => container.id,
            Err(failure) => format!("{failure}"),
        }
    }

    #[test]
    fn names_ids_and_beginnings_of_ids_are_understood() {
        assert_eq!(found("aa11", Kinds::Both), "aa11");
        assert_eq!(found("bb", Kinds::Both), "bb33");
        assert_eq!(found("side", Kinds::Both), "dd02");
        assert_eq!(found("web/side", Kinds::Both), "dd02");
        assert_eq!(found("prod/db", Kinds::Both), "bb33");
        assert_eq!(found("prod/db/main", Kinds::Both), "ab05");
    }

    #[test]
    fn a_pod_is_meant_before_a_container_of_the_same_name() {
        assert_eq!(found("web", Kinds::Both), "aa11");
        assert_eq!(found("web", Kinds::Containers), "dd01");
        assert_eq!(found("web/web", Kinds::Both), "dd01");
    }

    #[test]
    fn the_living_and_then_the_newest_attempt_is_meant() {
        assert_eq!(found("web", Kinds::Pods), "aa11");
        assert_eq!(found("default/db/main", Kinds::Both), "dd04");
    }

    #[test]
    fn what_is_ambiguous_is_listed() {
        let failure = inventory().find("db", Kinds::Both).unwrap_err();
        assert_eq!(
            failure.to_string(),
            "\"db\" is ambiguous; it may be\n  aa22  pod default/db (ready)\n  bb33  pod prod/db (ready)"
        );
        assert_eq!(failure.exit_code(), EXIT_USAGE);
        assert!(found("a", Kinds::Both).contains("ambiguous"));
        assert!(found("main", Kinds::Both).contains("ambiguous"));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let failure = inventory().find("nope", Kinds::Containers).unwrap_err();
        assert_eq!(failure.to_string(), "no container has the name or id \"nope\"");
        assert_eq!(failure.exit_code(), EXIT_NOT_FOUND);
        assert!(inventory().find("", Kinds::Both).is_err());
    }

    #[test]
    fn a_pod_stands_for_its_only_running_container() {
        assert_eq!(inventory().find_container("prod/db").unwrap().id, "ab05");
        let failure = inventory().find_container("default/web").unwrap_err();
        assert!(failure.to_string().contains("several containers: web/web, web/side"), "{failure}");
    }
}
