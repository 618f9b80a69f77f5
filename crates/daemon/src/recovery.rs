//! Start after a stop: records and living shims become the pods' first inputs. There is no logic of its own here;
//! `model::pod` decides what a pod makes of the facts.

use crate::effects::{PodEffects, World, end_shim};
use crate::node::Node;
use crate::records::{Loaded, Records};
use knarr_model::input::Input;
use knarr_model::pod::{Pod, SavedPhase, SavedPod};
use knarr_model::{ContainerId, PodId};
use std::collections::HashSet;
use std::sync::Arc;

/// Reads what there is; gives it with the newest time in it, after which the clock must start.
pub fn load(records: &Records) -> Result<(Vec<Loaded>, i64), String> {
    let loaded = records.load().map_err(|e| format!("read the records: {e}"))?;
    let newest = |saved: &SavedPod| {
        let containers = saved.containers.iter().map(|c| c.created_at);
        containers.chain([saved.created_at]).max().unwrap_or(0)
    };
    let newest = loaded.iter().map(|l| match l {
        Loaded::Pod(saved) => newest(saved),
        Loaded::Broken(..) => 0,
    });
    let newest = newest.max().unwrap_or(0);
    Ok((loaded, newest))
}

/// Takes every recorded pod over and clears away what belongs to none.
pub async fn recover(node: &Arc<Node>, loaded: Vec<Loaded>) {
    let mut pods = HashSet::new();
    let mut networked = Vec::new();
    let mut containers = HashSet::new();
    let mut adoptions = Vec::new();
    for item in loaded {
        match item {
            Loaded::Pod(saved) => {
                pods.insert(saved.id.clone());
                // A stopped pod gave its network back, but its address returns only when its link was seen to go, which
                // the daemon may not have lived to see.
                if saved.phase != SavedPhase::Stopped {
                    networked.push(saved.id.clone());
                }
                containers.extend(saved.containers.iter().map(|c| c.id.clone()));
                adoptions.push(tokio::spawn(adopt(node.clone(), *saved)));
            }
            Loaded::Broken(id, error) => {
                tracing::error!(pod = id.as_str(), %error, "the record is damaged; what the pod had is cleared away");
                if let Err(error) = node.records().drop_pod(&id) {
                    tracing::warn!(pod = id.as_str(), %error, "cannot remove the damaged record");
                }
            }
        }
    }
    for adoption in adoptions {
        if let Err(error) = adoption.await {
            tracing::error!(%error, "taking a pod over failed");
        }
    }
    clear_orphans(node.world(), &pods, &networked, &containers).await;
}

async fn adopt(node: Arc<Node>, saved: SavedPod) {
    let effects = PodEffects::new(node.world().clone(), saved.id.clone(), saved.spec.clone());
    let facts = effects.reconnect(&saved).await;
    let mut inputs = Vec::new();
    if facts.is_none() {
        tracing::warn!(pod = saved.id.as_str(), "its shim is gone");
        inputs = effects.recorded_exits().await;
    }
    inputs.push(Input::Recovered(facts));
    node.adopt(Pod::restored(saved), effects, inputs);
}

/// Whatever bears an id that no record knows: a crash between acting and forgetting leaves such things.
async fn clear_orphans(
    world: &Arc<World>,
    pods: &HashSet<PodId>,
    networked: &[PodId],
    containers: &HashSet<ContainerId>,
) {
    for id in names_in(&world.paths.pods_run_dir).into_iter().filter_map(|n| PodId::parse(&n).ok()) {
        if !pods.contains(&id) {
            let dir = world.paths.pods_run_dir.join(id.as_str());
            end_shim(&id, &dir).await;
            remove(&dir);
        }
    }
    let alive: Vec<PodId> = pods.iter().cloned().collect();
    for error in world.network.sweep(networked).await {
        tracing::warn!(%error, "clearing the network of forgotten pods");
    }
    for error in world.cgroups.sweep(alive, containers.iter().cloned().collect()).await {
        tracing::warn!(%error, "clearing the cgroups of forgotten pods");
    }
    for id in names_in(&world.paths.uppers).into_iter().filter_map(|n| ContainerId::parse(&n).ok()) {
        if !containers.contains(&id) {
            remove(&world.paths.uppers.join(id.as_str()));
        }
    }
}

fn names_in(dir: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()
}

fn remove(dir: &std::path::Path) {
    if let Err(error) = std::fs::remove_dir_all(dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "cannot remove what a forgotten pod left");
    }
}
