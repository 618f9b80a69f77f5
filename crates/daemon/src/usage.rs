//! ContainerStats: samples of cgroups and of writable layers, gathered for many containers in one go.
//!
//! CPU and memory are read afresh at each call. Counting a writable layer walks its files, so its figure may be some
//! seconds old (`stats.disk_usage_max_age`).

use crate::effects::PodEffects;
use crate::node::Node;
use crate::stats::{self, CpuRates, LayerUsage};
use knarr_cri_api::v1;
use knarr_model::view::ContainerView;
use knarr_model::{ContainerId, Error};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// What is remembered between calls.
#[derive(Debug, Default)]
pub struct Usage {
    rates: Mutex<CpuRates>,
    layers: Mutex<HashMap<ContainerId, LayerUsage>>,
}

/// Statistics of these containers, in this order.
pub async fn of_containers(
    node: Arc<Node>,
    asked: Vec<(Arc<PodEffects>, ContainerView)>,
) -> Result<Vec<v1::ContainerStats>, Error> {
    let gathered = tokio::task::spawn_blocking(move || {
        let of = |(pod, container): &(Arc<PodEffects>, ContainerView)| of_container(&node, pod, container);
        let stats = asked.iter().map(of).collect();
        forget_removed(&node);
        stats
    });
    gathered.await.map_err(|e| Error::internal(format!("gather statistics: {e}")))
}

fn of_container(node: &Node, pod: &PodEffects, container: &ContainerView) -> v1::ContainerStats {
    let usage = node.usage();
    let attributes = v1::ContainerAttributes {
        id: container.id.to_string(),
        metadata: Some(v1::ContainerMetadata { name: container.spec.name.clone(), attempt: container.spec.attempt }),
        labels: container.spec.labels.clone().into_iter().collect(),
        annotations: container.spec.annotations.clone().into_iter().collect(),
    };
    let layer = layer_usage(node, &container.id);
    let sample = pod.sample(&container.id);
    let mut rates = usage.rates.lock().unwrap_or_else(PoisonError::into_inner);
    stats::container_stats(attributes, node.clock().now(), &sample, Some(layer), &mut rates)
}

fn forget_removed(node: &Node) {
    let alive: std::collections::HashSet<ContainerId> = node
        .handles()
        .iter()
        .flat_map(|p| p.view().containers.iter().map(|c| c.id.clone()).collect::<Vec<_>>())
        .collect();
    let usage = node.usage();
    usage.layers.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| alive.contains(id));
    let known = |id: &str| ContainerId::parse(id).is_ok_and(|id| alive.contains(&id));
    usage.rates.lock().unwrap_or_else(PoisonError::into_inner).retain(known);
}

fn layer_usage(node: &Node, id: &ContainerId) -> LayerUsage {
    let usage = node.usage();
    let max_age = node.world().config.stats.disk_usage_max_age.0.as_nanos() as i64;
    let now = node.clock().now();
    if let Some(known) = usage.layers.lock().unwrap_or_else(PoisonError::into_inner).get(id)
        && now - known.timestamp < max_age
    {
        return known.clone();
    }
    let uppers = &node.world().paths.uppers;
    let (used_bytes, inodes_used) = disk_usage(&uppers.join(id.as_str()).join("upper"));
    let fresh = LayerUsage { timestamp: now, mountpoint: uppers.display().to_string(), used_bytes, inodes_used };
    usage.layers.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), fresh.clone());
    fresh
}

/// Bytes on disk and inodes below a directory, itself included. Files that vanish meanwhile count for nothing, those
/// with several links count once for each link.
fn disk_usage(dir: &Path) -> (u64, u64) {
    let (mut bytes, mut inodes) = (0, 0);
    let mut waiting = vec![dir.to_owned()];
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        bytes += metadata.blocks() * 512;
        inodes += 1;
        if metadata.is_dir() {
            waiting.extend(std::fs::read_dir(&path).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())));
        }
    }
    (bytes, inodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_usage_counts_what_is_there_and_nothing_behind_links() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), [1; 5000]).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        let (bytes, inodes) = disk_usage(dir.path());
        assert_eq!(inodes, 3);
        assert!((8192..64 << 10).contains(&bytes), "{bytes}");
        assert_eq!(disk_usage(&dir.path().join("nothing")), (0, 0));
    }
}
