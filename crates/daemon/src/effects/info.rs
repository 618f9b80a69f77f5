//! The verbose answers: what a person debugging a pod wants to see, as JSON under the keys that crictl's users know.

use super::{PodEffects, World};
use knarr_model::resources::Resources;
use knarr_model::view::{ContainerState, ContainerView, PodView};
use serde_json::json;
use std::collections::HashMap;

/// crictl and its scripts read everything below this key.
const KEY: &str = "info";

impl PodEffects {
    /// PodSandboxStatusResponse.info. `pid` is that of the oldest running container: the shim's own would lead
    /// `nsenter` into the host's network.
    pub fn info(&self, view: &PodView) -> HashMap<String, String> {
        let running = view.containers.iter().find_map(|c| match c.state {
            ContainerState::Running { pid, .. } => Some(pid),
            _ => None,
        });
        let netns = (!view.spec.namespaces.host_network).then(|| self.world.network.path(&self.id));
        let shim = self.live().shim.as_ref().map(|s| s.shim().pid);
        let info = json!({
            "pid": running,
            "netns": netns,
            "shimPid": shim,
            "runDir": self.run_dir(),
            "cgroup": self.pod_cgroup().map(|c| c.path()).ok(),
            "overhead": resources(&view.resources.overhead),
            "resources": resources(&view.resources.containers),
        });
        HashMap::from([(KEY.to_owned(), info.to_string())])
    }

    /// ContainerStatusResponse.info.
    pub fn container_info(&self, view: &PodView, container: &ContainerView) -> HashMap<String, String> {
        let pid = match container.state {
            ContainerState::Running { pid, .. } => Some(pid),
            _ => None,
        };
        let spec = self.live().containers.get(&container.id).and_then(|c| c.spec.clone());
        let info = json!({
            "sandboxID": view.id.as_str(),
            "pid": pid,
            "privileged": container.spec.security.privileged,
            "writableLayer": self.world.paths.uppers.join(container.id.as_str()),
            "cgroup": self.container_cgroup(&container.id).map(|c| c.path()).ok(),
            "runtimeSpec": spec.map(|s| s.spec.clone()),
        });
        HashMap::from([(KEY.to_owned(), info.to_string())])
    }
}

/// Under CRI's names; what was not said is left out.
fn resources(resources: &Resources) -> serde_json::Value {
    let all = [
        ("cpuPeriod", resources.cpu_period.map(Into::into)),
        ("cpuQuota", resources.cpu_quota.map(Into::into)),
        ("cpuShares", resources.cpu_shares.map(Into::into)),
        ("memoryLimitInBytes", resources.memory_limit.map(Into::into)),
        ("memorySwapLimitInBytes", resources.memory_swap_limit.map(Into::into)),
        ("oomScoreAdj", resources.oom_score_adj.map(Into::into)),
        ("cpusetCpus", resources.cpuset_cpus.clone().map(Into::into)),
        ("cpusetMems", resources.cpuset_mems.clone().map(Into::into)),
        ("hugepageLimits", (!resources.hugepage_limits.is_empty()).then(|| json!(resources.hugepage_limits))),
        ("unified", (!resources.unified.is_empty()).then(|| json!(resources.unified))),
    ];
    let said = all.into_iter().filter_map(|(name, value): (_, Option<serde_json::Value>)| Some((name, value?)));
    said.map(|(name, value)| (name.to_owned(), value)).collect::<serde_json::Map<_, _>>().into()
}

impl World {
    /// StatusResponse.info.
    pub fn info(&self) -> HashMap<String, String> {
        let config = json!({
            "stateDir": self.paths.state_dir,
            "runDir": self.paths.run_dir,
            "socket": self.paths.socket,
            "cgroupDriver": self.cgroups.driver().as_str(),
            "cgroupParent": self.cgroups.parent(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        HashMap::from([("config".to_owned(), config.to_string())])
    }
}
