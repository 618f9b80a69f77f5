//! The cgroups of pods, containers and shims: where they are, who made them, and taking them away again.
//!
//! ```text
//! the cgroupfs driver
//! <parent that kubelet gave>/<container id>                 kubelet made the parent, and removes it
//! <default parent>/<pod id>/<container id>                  no parent given: the pod's cgroup is ours
//! <default parent>/shims/<first 12 digits of the pod's id>  the pod's shim, outside the pod's limits
//!
//! the systemd driver
//! <slice that kubelet gave>/knarr-<container id>.scope/container
//! <default slice>/<its stem>-<pod id>.slice/knarr-<container id>.scope/container
//! <default slice>/<its stem>-shims.scope/<first 12 digits of the pod's id>
//!
//! both
//! <the container's>/knarr-exec-<n>                          one exec, in the cgroup2 hierarchy
//! ```
//!
//! Every path exists in the cgroup2 hierarchy, where process trees are tracked and killed, and in each v1 hierarchy
//! that the machine has. All of it follows from names alone, so that a restarted daemon finds what an older one made,
//! also under the other driver. A controller that is missing, or a file that may not be written, is said once and passed
//! over: the pod runs.
//!
//! What may wait is async and blocks no worker; what is not async takes microseconds. No process of a container is ever
//! moved: processes are born in their cgroup, or move themselves through the descriptors of [`CgroupFds`].

mod apply;
mod container;
mod group;
mod names;
mod sample;
mod shim;
mod sweep;
mod systemd;

use container::ScopeOf;
pub use container::{ContainerCgroup, DeviceAccess, ExecLeaf};
pub use names::Driver;
pub use sample::{MemorySample, Pressure, PressureLine, Sample};
pub use shim::ShimCgroup;

use group::{Group, blocking, join};
use knarr_model::resources::{Resources, Setting, v1_files, v2_files};
use knarr_model::{ContainerId, Error, ErrorKind, PodId};
use knarr_sys::cgroup as sys;
use names::{Slice, relative};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use systemd::Systemd;
use tokio::sync::Semaphore;

/// Without these a promise of CRI is broken, so their absence is said at start.
const NEEDED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// Between two looks for systemd's answer, where systemd runs and the driver is to be found out.
const DETECT_PAUSE: Duration = Duration::from_secs(1);

/// How often it is looked for: the bus may come up after us at boot, and the wrong driver is worse than a late start.
const DETECT_ATTEMPTS: u32 = 5;

/// What the configuration says about cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupConfig {
    /// who makes cgroups; `None`: systemd where it can
    pub driver: Option<Driver>,
    /// The cgroup or slice for pods that came without a parent; empty for one of the instance's name.
    pub parent: String,
    /// what no other instance on this machine has: "knarr"
    pub instance: String,
}

/// The way to all cgroups; cheap to clone.
#[derive(Debug, Clone)]
pub struct Cgroups {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hierarchies: sys::Hierarchies,
    driver: Driver,
    /// for pods without a parent, of the cgroupfs driver; without the leading slash
    parent_default: String,
    /// for pods without a parent, of the systemd driver
    slice_default: Slice,
    /// Pods that the other driver made may be there.
    other_driver_was_here: bool,
    systemd: Arc<Systemd>,
    /// One makes the shims' scope at a time.
    shims_turn: Semaphore,
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
    /// Finds the hierarchies and the driver, makes the default parent and says what this machine lacks.
    pub async fn open(config: &CgroupConfig) -> Result<(Self, Vec<String>), Error> {
        let hierarchies =
            sys::Hierarchies::detect().map_err(|e| Error::internal(format!("find the cgroup hierarchies: {e}")))?;
        let (systemd, mut warnings) = (Arc::new(Systemd::new()), Vec::new());
        let driver = choose_driver(config.driver, hierarchies.layout, &systemd, &mut warnings).await?;
        let CgroupConfig { parent, instance, .. } = config;
        if !parent.is_empty() && Driver::of_parent(parent) != driver {
            return Err(Error::invalid("cgroup.parent", wrong_parent(parent, driver, "cgroup.driver")));
        }
        let given = |of: Driver| Some(parent.as_str()).filter(|p| !p.is_empty() && Driver::of_parent(p) == of);
        let parent_default = relative("cgroup.parent", given(Driver::Cgroupfs).unwrap_or(instance))?;
        if parent_default.is_empty() {
            return Err(Error::invalid("cgroup.parent", "the root cgroup cannot hold pods"));
        }
        let slice_default = format!("{instance}.slice");
        let slice_default = Slice::parse("cgroup.parent", given(Driver::Systemd).unwrap_or(&slice_default))?;
        let mut shared = Shared {
            hierarchies,
            driver,
            parent_default,
            slice_default,
            other_driver_was_here: false,
            systemd,
            shims_turn: Semaphore::new(1),
            said: Mutex::default(),
        };
        let other = match driver {
            Driver::Cgroupfs => shared.slice_default.path(),
            Driver::Systemd => shared.parent_default.clone(),
        };
        shared.other_driver_was_here = sys::open_dir(shared.tree(), &other).is_ok();
        if driver == Driver::Cgroupfs {
            shared.make_default_parent(&mut warnings)?;
        }
        shared.complain_of_controllers(&mut warnings);
        Ok((Self { shared: Arc::new(shared) }, warnings))
    }

    /// Who makes cgroups.
    pub fn driver(&self) -> Driver {
        self.shared.driver
    }

    /// Where processes that keep scopes are started from.
    pub fn set_shim(&self, shim: OwnedFd) {
        self.shared.systemd.set_shim(shim);
    }

    /// Absolute path of the cgroup for shims and for pods that came without a parent.
    pub fn parent(&self) -> String {
        match self.shared.driver {
            Driver::Cgroupfs => format!("/{}", self.shared.parent_default),
            Driver::Systemd => format!("/{}", self.shared.slice_default.path()),
        }
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
        let path = relative("cgroup_parent", parent)?;
        Ok(match Driver::of_parent(parent) {
            _ if path.is_empty() => self.pod_without_parent(pod),
            Driver::Systemd => self.pod_of_slice(Slice::parse("cgroup_parent", parent)?, true),
            Driver::Cgroupfs => PodCgroup { group: self.group(path), slice: None, given: true },
        })
    }

    fn pod_without_parent(&self, pod: &PodId) -> PodCgroup {
        let of = |driver| match driver {
            Driver::Cgroupfs => {
                let path = join(&self.shared.parent_default, pod.as_str());
                PodCgroup { group: self.group(path), slice: None, given: false }
            }
            Driver::Systemd => self.pod_of_slice(self.shared.slice_default.of_pod(pod), false),
        };
        let ours = of(self.shared.driver);
        if self.shared.other_driver_was_here && !ours.group.exists() {
            let other = of(self.shared.driver.other());
            if other.group.exists() {
                return other;
            }
        }
        ours
    }

    fn pod_of_slice(&self, slice: Slice, given: bool) -> PodCgroup {
        PodCgroup { group: self.group(slice.path()), slice: Some(slice), given }
    }

    /// Makes a pod's cgroup, or finds the one that kubelet made, and lets its controllers reach the containers. systemd
    /// makes a slice with the first scope in it.
    pub async fn create_pod(&self, parent: &str, pod: &PodId) -> Result<PodCgroup, Error> {
        let cgroup = self.pod(parent, pod)?;
        if cgroup.driver() != self.shared.driver {
            return Err(Error::invalid(
                "cgroup_parent",
                wrong_parent(parent, self.shared.driver, "kubelet's cgroupDriver"),
            ));
        }
        if cgroup.slice.is_some() {
            return Ok(cgroup);
        }
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
        let Some(slice) = &pod.slice else {
            return ContainerCgroup::new(self.group(join(&pod.group.path, id.as_str())), None);
        };
        let unit = names::scope_of(id);
        let group = self.group(join(&pod.group.path, &unit));
        let inner = self.group(join(&group.path, names::CONTAINER_LEAF));
        ContainerCgroup::new(inner, Some(ScopeOf { unit, slice: slice.clone(), group }))
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

    /// The cgroup of a pod's shim by name alone: beside the daemon's, or within the pod's own if that is given.
    pub fn shim(&self, pod: &PodId, within: Option<&PodCgroup>) -> ShimCgroup {
        let of = |driver| match driver {
            Driver::Cgroupfs => self.group(format!("{}/{}/{}", self.shared.parent_default, names::SHIMS, pod.short())),
            Driver::Systemd => self.group(join(&self.shared.scope_of_shims().path, pod.short())),
        };
        match within {
            None => {
                let (ours, other) = (of(self.shared.driver), of(self.shared.driver.other()));
                let is_others = self.shared.other_driver_was_here && !ours.exists() && other.exists();
                ShimCgroup::new(if is_others { other } else { ours }, None)
            }
            Some(PodCgroup { group, slice: None, .. }) => {
                ShimCgroup::new(self.group(join(&group.path, names::SHIM_LEAF)), None)
            }
            Some(PodCgroup { group, slice: Some(slice), .. }) => {
                let unit = names::scope_of_shim(pod);
                ShimCgroup::new(self.group(join(&group.path, &unit)), Some((unit, slice.clone())))
            }
        }
    }

    /// Makes what shims need, so that the first pod does not wait for it. Without it they stay where they are.
    pub async fn prepare_for_shims(&self) -> Result<(), Error> {
        match self.shared.driver {
            Driver::Cgroupfs => Ok(()),
            Driver::Systemd => Shared::make_scope_of_shims(&self.shared).await,
        }
    }

    /// Takes the empty default parent away; for a daemon that ends. What is still in use stays.
    pub async fn close(&self) {
        let shared = &self.shared;
        if shared.driver == Driver::Systemd {
            return self.close_slice().await;
        }
        for path in [join(&shared.parent_default, names::SHIMS), shared.parent_default.clone()] {
            for root in shared.roots() {
                // Whatever is still in use stays, which is what is wanted.
                let _ = rustix::fs::unlinkat(root, path.as_str(), rustix::fs::AtFlags::REMOVEDIR);
            }
        }
    }

    async fn close_slice(&self) {
        let (shared, scope) = (&self.shared, self.shared.scope_of_shims());
        let children = |path: &str| sys::children(shared.tree(), path).unwrap_or_default();
        if children(&scope.path).iter().all(|name| name == names::KEEPER_LEAF) && scope.exists() {
            let _ = blocking(move || scope.remove()).await;
            shared.systemd.clear(&shared.slice_default.scope_of_shims()).await;
        }
        if children(&shared.slice_default.path()).is_empty() {
            shared.systemd.clear(&shared.slice_default.unit()).await;
        }
    }

    fn group(&self, path: String) -> Group {
        Group { shared: self.shared.clone(), path }
    }
}

/// The driver that the configuration names, or the one that suits the machine.
async fn choose_driver(
    configured: Option<Driver>,
    layout: sys::Layout,
    systemd: &Systemd,
    warnings: &mut Vec<String>,
) -> Result<Driver, Error> {
    let unable = if let Err(why) = systemd::is_init() {
        Some(why)
    } else if layout != sys::Layout::Unified {
        Some("this machine's cgroup controllers are not in the unified hierarchy (cgroup v2)")
    } else {
        None
    };
    match (configured, unable) {
        (Some(Driver::Cgroupfs), _) | (None, Some(_)) => return Ok(Driver::Cgroupfs),
        (Some(Driver::Systemd), Some(why)) => {
            return Err(Error::invalid("cgroup.driver", format!("\"systemd\" cannot work: {why}; use \"cgroupfs\"")));
        }
        (Some(Driver::Systemd) | None, None) => {}
    }
    let mut attempt = 1;
    while let Err(error) = systemd.answers().await {
        if configured.is_some() && error.kind == ErrorKind::Unavailable {
            warnings.push(format!("no container can be started until it can be done: {error}"));
            break;
        }
        if configured.is_some() {
            return Err(Error::invalid("cgroup.driver", format!("\"systemd\" cannot work: {error}")));
        }
        if attempt == DETECT_ATTEMPTS || error.kind != ErrorKind::Unavailable {
            warnings
                .push(format!("cgroup.driver \"auto\" is \"cgroupfs\", although systemd runs this machine: {error}"));
            return Ok(Driver::Cgroupfs);
        }
        attempt += 1;
        tokio::time::sleep(DETECT_PAUSE).await;
    }
    Ok(Driver::Systemd)
}

fn wrong_parent(parent: &str, driver: Driver, key: &str) -> String {
    let is = match driver {
        Driver::Cgroupfs => "is a slice of systemd",
        Driver::Systemd => "is no slice of systemd, such as \"/kubepods.slice/kubepods-pod1.slice\"",
    };
    format!("{parent:?} {is}, but knarr uses the {driver} driver; the two must agree: set {key} to fit")
}

impl Shared {
    fn make_default_parent(&mut self, warnings: &mut Vec<String>) -> Result<(), Error> {
        let parent = &self.parent_default;
        sys::make_dirs(&self.hierarchies.tree.root, parent)
            .map_err(|e| Error::internal(format!("make /{parent} in the cgroup2 hierarchy: {e} (is it read-only?)")))?;
        self.hierarchies.v1.retain(|hierarchy| match sys::make_dirs(&hierarchy.root, parent) {
            Ok(_) => true,
            Err(error) => {
                let names = hierarchy.controllers.join(",");
                warnings.push(format!("cannot make cgroups in the {names} hierarchy ({error}): it is not used"));
                false
            }
        });
        Ok(())
    }

    fn complain_of_controllers(&self, warnings: &mut Vec<String>) {
        for controller in NEEDED.into_iter().filter(|c| self.place_of(c).is_none()) {
            let why = match self.hierarchies.unreachable.iter().any(|u| u == controller) {
                true => "its v1 hierarchy is not mounted here",
                false => "the kernel or whoever delegated this cgroup tree does not offer it",
            };
            warnings.push(format!("no {controller} controller: {why}; its limits are not applied"));
        }
    }

    fn scope_of_shims(self: &Arc<Self>) -> Group {
        let path = join(&self.slice_default.path(), &self.slice_default.scope_of_shims());
        Group { shared: self.clone(), path }
    }

    /// Makes the scope of the shims, unless it is there.
    async fn make_scope_of_shims(self: &Arc<Self>) -> Result<(), Error> {
        let group = self.scope_of_shims();
        let _turn = self.shims_turn.acquire().await;
        if group.exists() {
            return Ok(());
        }
        let scope = systemd::Scope {
            unit: self.slice_default.scope_of_shims(),
            slice: self.slice_default.clone(),
            description: "shims of knarr's pods".into(),
            properties: Vec::new(),
        };
        self.systemd.start_kept(scope, &group).await
    }

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

    /// What must be written into the cgroup at `path` of the cgroup2 hierarchy.
    fn tree_writes(&self, path: &str, settings: Vec<Setting>) -> Vec<apply::Write<'_>> {
        let there = settings.into_iter().filter(|setting| self.tree_has(&setting.controller));
        there.map(|setting| apply::Write::new(self.tree(), path, setting)).collect()
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
    /// Where systemd made it, or will.
    slice: Option<Slice>,
    given: bool,
}

impl PodCgroup {
    /// Absolute path in every hierarchy.
    pub fn path(&self) -> String {
        format!("/{}", self.group.path)
    }

    fn driver(&self) -> Driver {
        if self.slice.is_some() { Driver::Systemd } else { Driver::Cgroupfs }
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
        blocking(move || if given { group.remove_phantoms() } else { group.remove() }).await?;
        if let Some(slice) = self.slice.as_ref().filter(|_| !given) {
            self.group.shared.systemd.clear(&slice.unit()).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
