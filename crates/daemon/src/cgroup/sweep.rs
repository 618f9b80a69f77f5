//! Cgroups whose names nobody knows any more: what a crash between acting and forgetting leaves.

use super::group::{blocking, join};
use super::names::SHIMS;
use super::{Cgroups, sys};
use knarr_model::{ContainerId, Error, PodId};
use std::collections::BTreeSet;

impl Cgroups {
    /// Removes what bears the id of a pod, shim or container below the default parent that is not alive, with the
    /// processes in it. Cgroups under a parent that kubelet gave are kubelet's to clean.
    pub async fn sweep(&self, pods: Vec<PodId>, containers: Vec<ContainerId>) -> Vec<Error> {
        let this = self.clone();
        blocking(move || Ok(this.sweep_directories(&pods, &containers))).await.unwrap_or_else(|error| vec![error])
    }

    fn sweep_directories(&self, pods: &[PodId], containers: &[ContainerId]) -> Vec<Error> {
        let alive_shims: BTreeSet<&str> = pods.iter().map(PodId::short).collect();
        let parent = &self.shared.parent_default;
        let shims = join(parent, SHIMS);
        let mut forgotten = BTreeSet::new();
        for name in self.children(&shims) {
            if !alive_shims.contains(name.as_str()) {
                forgotten.insert(join(&shims, &name));
            }
        }
        for name in self.children(parent) {
            let Ok(id) = PodId::parse(&name) else { continue };
            let path = join(parent, &name);
            if !pods.contains(&id) {
                forgotten.insert(path);
                continue;
            }
            for child in self.children(&path) {
                if ContainerId::parse(&child).is_ok_and(|id| !containers.contains(&id)) {
                    forgotten.insert(join(&path, &child));
                }
            }
        }
        forgotten.into_iter().filter_map(|path| self.group(path).remove().err()).collect()
    }

    /// Names in any hierarchy: a crash may have left a cgroup in some of them only.
    fn children(&self, path: &str) -> BTreeSet<String> {
        self.shared.roots().flat_map(|root| sys::children(root, path).unwrap_or_default()).collect()
    }
}
