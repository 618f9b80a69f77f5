//! The protocol's messages as JSON in the shape of `crictl -o json`, which scripts already read: lowerCamelCase keys,
//! enums by name, 64-bit numbers as strings, empty fields present.
//!
//! Only the messages that knarr prints are here.

use std::collections::{BTreeMap, HashMap};

use knarr_cri_api::v1;
use serde_json::{Value, json};

/// Keys in order: the same answer is printed the same way twice.
fn map(entries: &HashMap<String, String>) -> Value {
    json!(entries.iter().collect::<BTreeMap<_, _>>())
}

fn number(value: impl ToString) -> Value {
    Value::String(value.to_string())
}

fn optional<T>(value: Option<&T>, show: impl Fn(&T) -> Value) -> Value {
    value.map_or(Value::Null, show)
}

/// A known value by its name, an unknown one by its number.
fn name<T: TryFrom<i32>>(value: i32, as_str_name: impl Fn(&T) -> &'static str) -> Value {
    T::try_from(value).map_or_else(|_| json!(value), |known| json!(as_str_name(&known)))
}

fn image_spec(spec: &v1::ImageSpec) -> Value {
    json!({
        "image": spec.image,
        "annotations": map(&spec.annotations),
        "userSpecifiedImage": spec.user_specified_image,
        "runtimeHandler": spec.runtime_handler,
        "imageRef": spec.image_ref,
    })
}

fn pod_metadata(metadata: &v1::PodSandboxMetadata) -> Value {
    json!({
        "name": metadata.name,
        "uid": metadata.uid,
        "namespace": metadata.namespace,
        "attempt": metadata.attempt,
    })
}

fn container_metadata(metadata: &v1::ContainerMetadata) -> Value {
    json!({ "name": metadata.name, "attempt": metadata.attempt })
}

/// One pod of a list.
pub fn pod(pod: &v1::PodSandbox) -> Value {
    json!({
        "id": pod.id,
        "metadata": optional(pod.metadata.as_ref(), pod_metadata),
        "state": name(pod.state, v1::PodSandboxState::as_str_name),
        "createdAt": number(pod.created_at),
        "labels": map(&pod.labels),
        "annotations": map(&pod.annotations),
        "runtimeHandler": pod.runtime_handler,
    })
}

/// One container of a list.
pub fn container(container: &v1::Container) -> Value {
    json!({
        "id": container.id,
        "podSandboxId": container.pod_sandbox_id,
        "metadata": optional(container.metadata.as_ref(), container_metadata),
        "image": optional(container.image.as_ref(), image_spec),
        "imageRef": container.image_ref,
        "imageId": container.image_id,
        "state": name(container.state, v1::ContainerState::as_str_name),
        "createdAt": number(container.created_at),
        "labels": map(&container.labels),
        "annotations": map(&container.annotations),
    })
}

/// One image.
pub fn image(image: &v1::Image) -> Value {
    json!({
        "id": image.id,
        "repoTags": image.repo_tags,
        "repoDigests": image.repo_digests,
        "size": number(image.size),
        "uid": optional(image.uid.as_ref(), |uid| json!({ "value": number(uid.value) })),
        "username": image.username,
        "spec": optional(image.spec.as_ref(), image_spec),
        "pinned": image.pinned,
    })
}

fn namespaces(options: &v1::NamespaceOption) -> Value {
    let mode = |mode| name(mode, v1::NamespaceMode::as_str_name);
    json!({
        "network": mode(options.network),
        "pid": mode(options.pid),
        "ipc": mode(options.ipc),
        "targetId": options.target_id,
        "usernsOptions": optional(options.userns_options.as_ref(), |user| json!({
            "mode": mode(user.mode),
            "uids": user.uids.iter().map(id_mapping).collect::<Vec<_>>(),
            "gids": user.gids.iter().map(id_mapping).collect::<Vec<_>>(),
        })),
    })
}

fn id_mapping(mapping: &v1::IdMapping) -> Value {
    json!({ "hostId": mapping.host_id, "containerId": mapping.container_id, "length": mapping.length })
}

/// All of one pod.
pub fn pod_status(status: &v1::PodSandboxStatus) -> Value {
    json!({
        "id": status.id,
        "metadata": optional(status.metadata.as_ref(), pod_metadata),
        "state": name(status.state, v1::PodSandboxState::as_str_name),
        "createdAt": number(status.created_at),
        "network": optional(status.network.as_ref(), |network| json!({
            "ip": network.ip,
            "additionalIps": network.additional_ips.iter().map(|ip| json!({ "ip": ip.ip })).collect::<Vec<_>>(),
        })),
        "linux": optional(status.linux.as_ref(), |linux| json!({
            "namespaces": optional(linux.namespaces.as_ref(), |namespace| json!({
                "options": optional(namespace.options.as_ref(), namespaces),
            })),
        })),
        "labels": map(&status.labels),
        "annotations": map(&status.annotations),
        "runtimeHandler": status.runtime_handler,
    })
}

fn mount(mount: &v1::Mount) -> Value {
    json!({
        "containerPath": mount.container_path,
        "hostPath": mount.host_path,
        "readonly": mount.readonly,
        "selinuxRelabel": mount.selinux_relabel,
        "propagation": name(mount.propagation, v1::MountPropagation::as_str_name),
        "uidMappings": mount.uid_mappings.iter().map(id_mapping).collect::<Vec<_>>(),
        "gidMappings": mount.gid_mappings.iter().map(id_mapping).collect::<Vec<_>>(),
        "recursiveReadOnly": mount.recursive_read_only,
        "image": optional(mount.image.as_ref(), image_spec),
        "imageSubPath": mount.image_sub_path,
    })
}

fn resources(resources: &v1::LinuxContainerResources) -> Value {
    json!({
        "cpuPeriod": number(resources.cpu_period),
        "cpuQuota": number(resources.cpu_quota),
        "cpuShares": number(resources.cpu_shares),
        "memoryLimitInBytes": number(resources.memory_limit_in_bytes),
        "oomScoreAdj": number(resources.oom_score_adj),
        "cpusetCpus": resources.cpuset_cpus,
        "cpusetMems": resources.cpuset_mems,
        "hugepageLimits": resources.hugepage_limits.iter()
            .map(|limit| json!({ "pageSize": limit.page_size, "limit": number(limit.limit) }))
            .collect::<Vec<_>>(),
        "unified": map(&resources.unified),
        "memorySwapLimitInBytes": number(resources.memory_swap_limit_in_bytes),
    })
}

/// All of one container.
pub fn container_status(status: &v1::ContainerStatus) -> Value {
    let linux = status.resources.as_ref().and_then(|all| all.linux.as_ref());
    let user = status.user.as_ref().and_then(|user| user.linux.as_ref());
    json!({
        "id": status.id,
        "metadata": optional(status.metadata.as_ref(), container_metadata),
        "state": name(status.state, v1::ContainerState::as_str_name),
        "createdAt": number(status.created_at),
        "startedAt": number(status.started_at),
        "finishedAt": number(status.finished_at),
        "exitCode": status.exit_code,
        "image": optional(status.image.as_ref(), image_spec),
        "imageRef": status.image_ref,
        "imageId": status.image_id,
        "reason": status.reason,
        "message": status.message,
        "labels": map(&status.labels),
        "annotations": map(&status.annotations),
        "mounts": status.mounts.iter().map(mount).collect::<Vec<_>>(),
        "logPath": status.log_path,
        "resources": { "linux": optional(linux, resources) },
        "user": { "linux": optional(user, |user| json!({
            "uid": number(user.uid),
            "gid": number(user.gid),
            "supplementalGroups": user.supplemental_groups.iter().map(number).collect::<Vec<_>>(),
        })) },
        "stopSignal": name(status.stop_signal, v1::Signal::as_str_name),
    })
}

/// What one file system is used for.
pub fn filesystem(usage: &v1::FilesystemUsage) -> Value {
    let value = |value: &v1::UInt64Value| json!({ "value": number(value.value) });
    json!({
        "timestamp": number(usage.timestamp),
        "fsId": optional(usage.fs_id.as_ref(), |id| json!({ "mountpoint": id.mountpoint })),
        "usedBytes": optional(usage.used_bytes.as_ref(), value),
        "inodesUsed": optional(usage.inodes_used.as_ref(), value),
    })
}

/// The runtime's conditions, handlers and features.
pub fn runtime_status(response: &v1::StatusResponse) -> Value {
    let conditions: Vec<Value> = response
        .status
        .iter()
        .flat_map(|status| &status.conditions)
        .map(|condition| {
            json!({
                "type": condition.r#type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message,
            })
        })
        .collect();
    let handlers: Vec<Value> = response
        .runtime_handlers
        .iter()
        .map(|handler| {
            json!({
                "name": handler.name,
                "features": optional(handler.features.as_ref(), |features| json!({
                    "recursiveReadOnlyMounts": features.recursive_read_only_mounts,
                    "userNamespaces": features.user_namespaces,
                })),
            })
        })
        .collect();
    json!({
        "status": { "conditions": conditions },
        "runtimeHandlers": handlers,
        "features": optional(response.features.as_ref(), |features| json!({
            "supplementalGroupsPolicy": features.supplemental_groups_policy,
            "userNamespacesHostNetwork": features.user_namespaces_host_network,
        })),
    })
}

/// Who the runtime is.
pub fn version(version: &v1::VersionResponse) -> Value {
    json!({
        "version": version.version,
        "runtimeName": version.runtime_name,
        "runtimeVersion": version.runtime_version,
        "runtimeApiVersion": version.runtime_api_version,
    })
}

/// A status with what the runtime tells beyond it: each entry of `info` that is JSON stands beside it as JSON.
pub fn with_info(mut document: Value, info: &HashMap<String, String>) -> Value {
    if let Value::Object(object) = &mut document {
        for (key, text) in info {
            let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()));
            object.entry(key.clone()).or_insert(value);
        }
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_shape_that_scripts_read() {
        let value = container(&v1::Container {
            id: "ab".into(),
            pod_sandbox_id: "cd".into(),
            metadata: Some(v1::ContainerMetadata { name: "web".into(), attempt: 2 }),
            state: v1::ContainerState::ContainerRunning as i32,
            created_at: 1_700_000_000_000_000_000,
            ..v1::Container::default()
        });
        assert_eq!(value["podSandboxId"], "cd");
        assert_eq!(value["metadata"], json!({ "name": "web", "attempt": 2 }));
        assert_eq!(value["state"], "CONTAINER_RUNNING");
        assert_eq!(value["createdAt"], "1700000000000000000");
        assert_eq!(value["labels"], json!({}));
        assert_eq!(value["image"], Value::Null);
    }

    #[test]
    fn a_value_of_a_newer_protocol_is_shown_by_number() {
        let value = pod(&v1::PodSandbox { state: 77, ..v1::PodSandbox::default() });
        assert_eq!(value["state"], 77);
    }

    #[test]
    fn info_stands_beside_the_status_and_replaces_nothing() {
        let info = HashMap::from([
            ("info".to_owned(), "{\"pid\":7}".to_owned()),
            ("note".to_owned(), "no json".to_owned()),
            ("status".to_owned(), "{}".to_owned()),
        ]);
        let value = with_info(json!({ "status": { "id": "ab" } }), &info);
        assert_eq!(value["info"]["pid"], 7);
        assert_eq!(value["note"], "no json");
        assert_eq!(value["status"]["id"], "ab");
    }
}
