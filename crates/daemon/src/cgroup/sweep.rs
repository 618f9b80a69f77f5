//! Cgroups whose names nobody knows any more: what a crash between acting and forgetting leaves.

use super::group::{Group, blocking, join};
use super::names::{self, SHIMS};
use super::{Cgroups, sys};
use knarr_model::{ContainerId, Error, PodId};
use std::collections::BTreeSet;

/// Who is alive.
struct Alive {
    shims: BTreeSet<String>,
    pods: BTreeSet<PodId>,
    containers: BTreeSet<ContainerId>,
}

impl Cgroups {
    /// Removes what bears the id of a pod, shim or container below the default parents that is not alive, with the
    /// processes in it, whichever driver made it. Cgroups under a parent that kubelet gave are kubelet's to clean; only
    /// systemd's memory of scopes that failed there is ours.
    pub async fn sweep(&self, pods: Vec<PodId>, containers: Vec<ContainerId>) -> Vec<Error> {
        let alive = Alive {
            shims: pods.iter().map(|pod| pod.short().to_owned()).collect(),
            pods: pods.into_iter().collect(),
            containers: containers.into_iter().collect(),
        };
        let (this, systemd) = (self.clone(), self.shared.systemd.clone());
        let swept = blocking(move || {
            let forgotten = this.forgotten_directories(&alive);
            let errors: Vec<Error> = forgotten.into_iter().filter_map(|group| group.remove().err()).collect();
            let (units, more) = this.empty_forgotten_units(&alive);
            Ok((errors, units, more, alive))
        });
        let (mut errors, units, more, alive) = match swept.await {
            Ok(swept) => swept,
            Err(error) => return vec![error],
        };
        errors.extend(more);
        for unit in units {
            systemd.clear(&unit).await;
        }
        if self.shared.driver == super::Driver::Systemd {
            match systemd.failed_scopes().await {
                Ok(failed) => {
                    for unit in failed {
                        if names::container_of_scope(&unit).is_some_and(|id| !alive.containers.contains(&id)) {
                            systemd.clear(&unit).await;
                        }
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        errors
    }

    /// Below the parent of the cgroupfs driver, and shims of both.
    fn forgotten_directories(&self, alive: &Alive) -> Vec<Group> {
        let parent = &self.shared.parent_default;
        let mut forgotten = BTreeSet::new();
        for shims in [join(parent, SHIMS), self.shared.scope_of_shims().path] {
            let gone = |name: &String| name != names::KEEPER_LEAF && !alive.shims.contains(name);
            forgotten.extend(self.children(&shims).into_iter().filter(gone).map(|name| join(&shims, &name)));
        }
        for name in self.children(parent) {
            let Ok(id) = PodId::parse(&name) else { continue };
            let path = join(parent, &name);
            if !alive.pods.contains(&id) {
                forgotten.insert(path);
                continue;
            }
            for child in self.children(&path) {
                if ContainerId::parse(&child).is_ok_and(|id| !alive.containers.contains(&id)) {
                    forgotten.insert(join(&path, &child));
                }
            }
        }
        forgotten.into_iter().map(|path| self.group(path)).collect()
    }

    /// Below the slice of the systemd driver: empties what nobody knows, and gives the units that are to be cleared.
    fn empty_forgotten_units(&self, alive: &Alive) -> (Vec<String>, Vec<Error>) {
        let (slice, mut units, mut errors) = (&self.shared.slice_default, Vec::new(), Vec::new());
        for name in self.children(&slice.path()) {
            let Some(pod) = slice.pod_in(&name) else { continue };
            let path = join(&slice.path(), &name);
            let gone = !alive.pods.contains(&pod);
            for scope in self.children(&path) {
                let of = names::container_of_scope(&scope);
                if gone || of.is_some_and(|id| !alive.containers.contains(&id)) {
                    errors.extend(self.group(join(&path, &scope)).remove().err());
                    units.push(scope);
                }
            }
            if gone {
                errors.extend(self.group(path).remove().err());
                units.push(name);
            }
        }
        (units, errors)
    }

    /// Names in any hierarchy: a crash may have left a cgroup in some of them only.
    fn children(&self, path: &str) -> BTreeSet<String> {
        self.shared.roots().flat_map(|root| sys::children(root, path).unwrap_or_default()).collect()
    }
}
