//! What a pod's task has published, as CRI's messages.
//!
//! Labels and annotations come out byte for byte as they went in: kubelet has no other store for them.

use super::pod::namespace_options;
use super::resources::linux_container_resources;
use super::signal::signal_to_cri;
use crate::oci::pod::log_path;
use knarr_cri_api::v1;
use knarr_model::spec::{ContainerSpec, Mount, MountSource, PodSpec, Propagation};
use knarr_model::view::{ContainerState, ContainerView, PodView, Reason};
use knarr_model::{IdMap, PodId};
use std::collections::{BTreeMap, HashMap};

/// A pod in ListPodSandbox.
pub fn pod_sandbox(pod: &PodView) -> v1::PodSandbox {
    v1::PodSandbox {
        id: pod.id.to_string(),
        metadata: Some(pod_metadata(&pod.spec)),
        state: pod_state(pod.ready) as i32,
        created_at: pod.created_at,
        labels: hash_map(&pod.spec.labels),
        annotations: hash_map(&pod.spec.annotations),
        runtime_handler: pod.spec.handler.clone(),
    }
}

/// A pod in PodSandboxStatus.
///
/// Kubelet makes a new pod as soon as the network mode here differs from what it asked for, or a ready pod that is
/// not on the host's network has no address: both must be the truth.
pub fn pod_sandbox_status(pod: &PodView) -> v1::PodSandboxStatus {
    v1::PodSandboxStatus {
        id: pod.id.to_string(),
        metadata: Some(pod_metadata(&pod.spec)),
        state: pod_state(pod.ready) as i32,
        created_at: pod.created_at,
        network: Some(network(pod)),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace { options: Some(namespace_options(pod.spec.namespaces)) }),
        }),
        labels: hash_map(&pod.spec.labels),
        annotations: hash_map(&pod.spec.annotations),
        runtime_handler: pod.spec.handler.clone(),
    }
}

/// A container in ListContainers.
pub fn container(pod: &PodId, container: &ContainerView) -> v1::Container {
    let spec = &container.spec;
    v1::Container {
        id: container.id.to_string(),
        pod_sandbox_id: pod.to_string(),
        metadata: Some(container_metadata(spec)),
        image: Some(image_spec(spec)),
        image_ref: container.resolved.image_id.clone(),
        state: container_state(&container.state) as i32,
        created_at: container.created_at,
        labels: hash_map(&spec.labels),
        annotations: hash_map(&spec.annotations),
        image_id: container.resolved.image_id.clone(),
    }
}

/// A container in ContainerStatus. `image_ref` is the name by digest under which the image is known; empty if there
/// is none, then its id stands there: kubelet refuses an empty one.
pub fn container_status(pod: &PodView, container: &ContainerView, image_ref: &str) -> v1::ContainerStatus {
    let spec = &container.spec;
    let resolved = &container.resolved;
    let life = life(&container.state);
    v1::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(container_metadata(spec)),
        state: container_state(&container.state) as i32,
        created_at: container.created_at,
        started_at: life.started_at,
        finished_at: life.finished_at,
        exit_code: life.code,
        image: Some(image_spec(spec)),
        image_ref: if image_ref.is_empty() { resolved.image_id.clone() } else { image_ref.to_owned() },
        reason: life.reason.to_owned(),
        message: life.message.to_owned(),
        labels: hash_map(&spec.labels),
        annotations: hash_map(&spec.annotations),
        mounts: mounts(spec, &resolved.volume_images),
        log_path: log_path(&pod.spec, spec),
        resources: Some(v1::ContainerResources {
            linux: Some(linux_container_resources(&container.resources)),
            windows: None,
        }),
        image_id: resolved.image_id.clone(),
        user: Some(v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: i64::from(resolved.uid),
                gid: i64::from(resolved.gid),
                supplemental_groups: resolved.groups.iter().map(|group| i64::from(*group)).collect(),
            }),
        }),
        stop_signal: signal_to_cri(resolved.stop_signal) as i32,
    }
}

/// What a state knows of a container's life, with the protocol's zeros for what has not happened.
struct Life<'a> {
    started_at: i64,
    finished_at: i64,
    code: i32,
    reason: &'a str,
    message: &'a str,
}

fn life(state: &ContainerState) -> Life<'_> {
    let none = Life { started_at: 0, finished_at: 0, code: 0, reason: "", message: "" };
    match state {
        ContainerState::Created => none,
        ContainerState::Running { started_at, .. } => Life { started_at: *started_at, ..none },
        ContainerState::Exited { started_at, finished_at, code, reason, message } => {
            Life { started_at: *started_at, finished_at: *finished_at, code: *code, reason: reason.as_str(), message }
        }
        ContainerState::Unknown { started_at } => {
            Life { started_at: *started_at, reason: Reason::Unknown.as_str(), ..none }
        }
    }
}

/// CRI's state of a container.
pub(super) fn container_state(state: &ContainerState) -> v1::ContainerState {
    match state {
        ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => v1::ContainerState::ContainerRunning,
        ContainerState::Exited { .. } => v1::ContainerState::ContainerExited,
        ContainerState::Unknown { .. } => v1::ContainerState::ContainerUnknown,
    }
}

/// CRI's state of a pod.
pub(super) fn pod_state(ready: bool) -> v1::PodSandboxState {
    if ready { v1::PodSandboxState::SandboxReady } else { v1::PodSandboxState::SandboxNotready }
}

fn pod_metadata(spec: &PodSpec) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: spec.name.clone(),
        uid: spec.uid.clone(),
        namespace: spec.namespace.clone(),
        attempt: spec.attempt,
    }
}

fn container_metadata(spec: &ContainerSpec) -> v1::ContainerMetadata {
    v1::ContainerMetadata { name: spec.name.clone(), attempt: spec.attempt }
}

/// The name that the user wrote where kubelet passed one on, else what was asked for: it is shown to people.
fn image_spec(spec: &ContainerSpec) -> v1::ImageSpec {
    let image = if spec.user_image.is_empty() { &spec.image } else { &spec.user_image };
    v1::ImageSpec { image: image.clone(), user_specified_image: spec.user_image.clone(), ..v1::ImageSpec::default() }
}

/// The primary address first; no address is named twice.
fn network(pod: &PodView) -> v1::PodSandboxNetworkStatus {
    let mut ips: Vec<String> = Vec::new();
    for ip in &pod.network.ips {
        let ip = ip.to_string();
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    let mut ips = ips.into_iter();
    v1::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
    }
}

/// The volumes; those that are images with the id of the image, which kubelet shows to users.
fn mounts(spec: &ContainerSpec, volume_images: &[String]) -> Vec<v1::Mount> {
    let mut ids = volume_images.iter();
    let with_id = |given: &Mount| {
        let id = matches!(given.source, MountSource::Image { .. }).then(|| ids.next()).flatten();
        mount(given, id.cloned().unwrap_or_default())
    };
    spec.mounts.iter().map(with_id).collect()
}

fn mount(mount: &Mount, image_ref: String) -> v1::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => v1::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
    };
    let (host_path, image, image_sub_path) = match &mount.source {
        MountSource::Host(path) => (path.clone(), None, String::new()),
        MountSource::Image { image, sub_path } => {
            let image = v1::ImageSpec { image: image.clone(), image_ref, ..v1::ImageSpec::default() };
            (String::new(), Some(image), sub_path.clone())
        }
    };
    v1::Mount {
        container_path: mount.container_path.clone(),
        host_path,
        readonly: mount.read_only,
        selinux_relabel: mount.selinux_relabel,
        propagation: propagation as i32,
        uid_mappings: mount.uid_mappings.iter().map(id_mapping).collect(),
        gid_mappings: mount.gid_mappings.iter().map(id_mapping).collect(),
        recursive_read_only: mount.recursive_read_only,
        image,
        image_sub_path,
    }
}

pub(super) fn id_mapping(map: &IdMap) -> v1::IdMapping {
    v1::IdMapping { host_id: map.host, container_id: map.container, length: map.length }
}

fn hash_map(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}
