//! The cgroups of pods, containers and shims: where they are, who made them, and taking them away again.
//!
//! ```text
//! <parent that kubelet gave>/<container id>                 kubelet made the parent, and removes it
//! <default parent>/<pod id>/<container id>                  no parent given: the pod's cgroup is ours
//! <…>/<container id>/knarr-exec-<n>                         one exec, in the cgroup2 hierarchy
//! <default parent>/shims/<first 12 digits of the pod's id>  the pod's shim, outside the pod's limits
//! ```
//!
//! Every path exists in the cgroup2 hierarchy, where process trees are tracked and killed, and in each v1 hierarchy
//! that the machine has. All of it follows from names alone, so that a restarted daemon finds what an older one made.
//! A controller that is missing, or a file that may not be written, is said once and passed over: the pod runs.
//!
//! What may wait is async and blocks no worker; what is not async takes microseconds. The systemd driver is not here,
//! and no process is ever moved: processes are born in their cgroup, or move themselves through the descriptors of
//! [`CgroupFds`].

mod apply;
mod container;
mod group;
mod names;
mod sample;
mod shim;
mod sweep;

pub use container::{ContainerCgroup, DeviceAccess, ExecLeaf};
pub use names::Driver;
pub use sample::{MemorySample, Pressure, PressureLine, Sample};
pub use shim::ShimCgroup;

use group::{Group, blocking, join};
use knarr_model::resources::{Resources, Setting, v1_files, v2_files};
use knarr_model::{ContainerId, Error, PodId};
use knarr_sys::cgroup as sys;
use names::relative;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Without these a promise of CRI is broken, so their absence is said at start.
const NEEDED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// What the configuration says about cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupConfig {
    /// Absolute path of the cgroup for the shims and for pods that came without a parent.
    pub parent_default: String,
    /// who makes cgroups
    pub driver: Driver,
}

impl Default for CgroupConfig {
    fn default() -> Self {
        Self { parent_default: "/knarr".into(), driver: Driver::Cgroupfs }
    }
}

/// The way to all cgroups; cheap to clone.
#[derive(Debug, Clone)]
pub struct Cgroups {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hierarchies: sys::Hierarchies,
    /// without the leading slash
    parent_default: String,
    said: Mutex<BTreeSet<String>>,
}

/// Descriptors for a plan: where clone3 puts a process, and where a v1 child writes 0 while it is one thread. Never
/// `cgroup.procs`: moving a whole process waits for an RCU grace period, 13–19 ms.
#[derive(Debug)]
pub struct CgroupFds {
    /// Directory in the cgroup2 hierarchy, for CLONE_INTO_CGROUP.
    pub into: OwnedFd,
    /// `tasks`, one for each v1 hierarchy.
    pub v1_tasks: Vec<OwnedFd>,
}

impl Cgroups {
    /// Finds the hierarchies, makes the default parent and says what this machine lacks.
    pub fn open(config: &CgroupConfig) -> Result<(Self, Vec<String>), Error> {
        if config.driver == Driver::Systemd {
            return Err(Error::invalid(
                "cgroup.driver",
                "this version makes cgroups itself; set it to \"cgroupfs\", as kubelet's cgroupDriver",
            ));
        }
        let parent_default = relative("cgroup.parent", &config.parent_default)?;
        if parent_default.is_empty() {
            return Err(Error::invalid("cgroup.parent", "the root cgroup cannot hold pods"));
        }
        let mut hierarchies =
            sys::Hierarchies::detect().map_err(|e| Error::internal(format!("find the cgroup hierarchies: {e}")))?;
        let mut warnings = Vec::new();
        sys::make_dirs(&hierarchies.tree.root, &parent_default).map_err(|e| {
            Error::internal(format!("make /{parent_default} in the cgroup2 hierarchy: {e} (is it read-only?)"))
        })?;
        hierarchies.v1.retain(|hierarchy| match sys::make_dirs(&hierarchy.root, &parent_default) {
            Ok(_) => true,
            Err(error) => {
                let names = hierarchy.controllers.join(",");
                warnings.push(format!("cannot make cgroups in the {names} hierarchy ({error}): it is not used"));
                false
            }
        });
        let shared = Shared { hierarchies, parent_default, said: Mutex::default() };
        for controller in NEEDED.into_iter().filter(|c| shared.place_of(c).is_none()) {
            let why = match shared.hierarchies.unreachable.iter().any(|u| u == controller) {
                true => "its v1 hierarchy is not mounted here",
                false => "the kernel or whoever delegated this cgroup tree does not offer it",
            };
            warnings.push(format!("no {controller} controller: {why}; its limits are not applied"));
        }
        let cgroups = Self { shared: Arc::new(shared) };
        Ok((cgroups, warnings))
    }

    /// Absolute path of the cgroup for shims and for pods that came without a parent.
    pub fn parent(&self) -> String {
        format!("/{}", self.shared.parent_default)
    }

    /// Whether the machine is pure v2, hybrid or pure v1.
    pub fn layout(&self) -> sys::Layout {
        self.shared.hierarchies.layout
    }

    /// Whether limits of this controller can be set on this machine.
    pub fn has(&self, controller: &str) -> bool {
        self.shared.place_of(controller).is_some()
    }

    /// A pod's cgroup by names alone. `parent` is CRI's cgroup_parent, "" for none.
    pub fn pod(&self, parent: &str, pod: &PodId) -> Result<PodCgroup, Error> {
        let (path, given) = match relative("cgroup_parent", parent)? {
            path if path.is_empty() => (format!("{}/{pod}", self.shared.parent_default), false),
            path if path.ends_with(".slice") => {
                return Err(Error::invalid(
                    "cgroup_parent",
                    format!(
                        "{parent:?} is a slice of systemd, but knarr uses the cgroupfs driver; set kubelet's cgroupDriver to cgroupfs"
                    ),
                ));
            }
            path => (path, true),
        };
        Ok(PodCgroup { group: self.group(path), given })
    }

    /// Makes a pod's cgroup, or finds the one that kubelet made, and lets its controllers reach the containers.
    pub async fn create_pod(&self, parent: &str, pod: &PodId) -> Result<PodCgroup, Error> {
        let cgroup = self.pod(parent, pod)?;
        let group = cgroup.group.clone();
        let made = blocking(move || group.make()).await;
        if made.is_err() && !cgroup.given {
            // The first error is the one to report; what could not be removed is found by name at the next start.
            let _ = cgroup.remove().await;
        }
        made.map(|_| cgroup)
    }

    /// A container's cgroup by names alone.
    pub fn container(&self, pod: &PodCgroup, id: &ContainerId) -> ContainerCgroup {
        ContainerCgroup::new(self.group(format!("{}/{id}", pod.group.path)))
    }

    /// Makes a container's cgroup with its limits. One that an earlier attempt left is taken away first. On an error
    /// nothing is left.
    pub async fn create_container(
        &self,
        pod: &PodCgroup,
        id: &ContainerId,
        resources: &Resources,
        devices: &DeviceAccess,
    ) -> Result<ContainerCgroup, Error> {
        resources.check()?;
        let cgroup = self.container(pod, id);
        let made = cgroup.create(resources.clone(), devices.clone()).await;
        if made.is_err() {
            let _ = cgroup.remove().await;
        }
        made.map(|()| cgroup)
    }

    /// The cgroup of a pod's shim by name alone: beside the daemon's, or a leaf of the pod's own if that is given.
    pub fn shim(&self, pod: &PodId, within: Option<&PodCgroup>) -> ShimCgroup {
        let path = match within {
            Some(cgroup) => join(&cgroup.group.path, names::SHIM_LEAF),
            None => format!("{}/{}/{}", self.shared.parent_default, names::SHIMS, pod.short()),
        };
        ShimCgroup::new(self.group(path))
    }

    /// Takes the empty default parent away; for a daemon that ends. What is still in use stays.
    pub fn close(&self) {
        let parent = &self.shared.parent_default;
        for path in [join(parent, names::SHIMS), parent.clone()] {
            for root in self.shared.roots() {
                // Whatever is still in use stays, which is what is wanted.
                let _ = rustix::fs::unlinkat(root, path.as_str(), rustix::fs::AtFlags::REMOVEDIR);
            }
        }
    }

    fn group(&self, path: String) -> Group {
        Group { shared: self.shared.clone(), path }
    }
}

impl Shared {
    /// The root of every hierarchy, cgroup2 first.
    fn roots(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let v1 = self.hierarchies.v1.iter().map(|h| h.root.as_fd());
        std::iter::once(self.hierarchies.tree.root.as_fd()).chain(v1)
    }

    fn tree(&self) -> BorrowedFd<'_> {
        self.hierarchies.tree.root.as_fd()
    }

    fn tree_has(&self, controller: &str) -> bool {
        self.hierarchies.tree.controllers.iter().any(|c| c == controller)
    }

    /// The root of the v1 hierarchy that has this controller.
    fn v1_root(&self, controller: &str) -> Option<BorrowedFd<'_>> {
        let has = |h: &&sys::Hierarchy| h.controllers.iter().any(|c| c == controller);
        self.hierarchies.v1.iter().find(has).map(|h| h.root.as_fd())
    }

    /// The root of the hierarchy that has this controller, whichever version it is.
    fn place_of(&self, controller: &str) -> Option<BorrowedFd<'_>> {
        if self.tree_has(controller) { Some(self.tree()) } else { self.v1_root(controller) }
    }

    /// What must be written into the cgroup at `path` for these resources, each in the version its controller has.
    fn writes<'a>(&'a self, path: &str, resources: &Resources) -> Vec<apply::Write<'a>> {
        let mut out = Vec::new();
        for setting in v2_files(resources) {
            if self.tree_has(&setting.controller) {
                out.push(apply::Write::new(self.tree(), path, setting));
            } else if self.v1_root(&setting.controller).is_none() || resources.unified.contains_key(&setting.file) {
                self.say_once(no_controller(&setting));
            }
        }
        for setting in v1_files(resources) {
            if let Some(root) = self.v1_root(&setting.controller) {
                out.push(apply::Write::new(root, path, setting));
            }
        }
        out
    }

    /// Logs a condition of this machine the first time it is met.
    fn say_once(&self, text: String) {
        let new = self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(text.clone());
        if new {
            tracing::warn!("{text}");
        }
    }
}

fn no_controller(setting: &Setting) -> String {
    format!("{} is not set: this machine has no cgroup v2 {} controller", setting.file, setting.controller)
}

/// The cgroup that a pod's containers are in.
#[derive(Debug, Clone)]
pub struct PodCgroup {
    group: Group,
    given: bool,
}

impl PodCgroup {
    /// Absolute path in every hierarchy.
    pub fn path(&self) -> String {
        format!("/{}", self.group.path)
    }

    /// What the whole pod uses.
    pub fn sample(&self) -> Sample {
        sample::take(&self.group.shared, &self.group.path)
    }

    /// Removes it, with whatever is left in it, if it is ours. A parent that kubelet gave is kubelet's to remove;
    /// only where the cgroup2 hierarchy has no controllers, and kubelet therefore does not know it, the empty
    /// directories that we made there for it are taken away.
    pub async fn remove(&self) -> Result<(), Error> {
        let (group, given) = (self.group.clone(), self.given);
        blocking(move || if given { group.remove_phantoms() } else { group.remove() }).await
    }
}

#[cfg(test)]
mod tests;
