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
//! Calls here block on the kernel for microseconds, `remove` for as long as processes take to die: use a blocking
//! thread. The systemd driver is not here, and no process is ever moved: processes are born in their cgroup, or move
//! themselves through the descriptors of [`CgroupFds`].

mod apply;
mod container;
mod sample;
mod sweep;

pub use container::{ContainerCgroup, DeviceAccess, ExecLeaf};
pub use sample::{MemorySample, Pressure, PressureLine, Sample};

use knarr_model::resources::{Resources, Setting, v1_files, v2_files};
use knarr_model::{ContainerId, Error, PodId};
use knarr_sys::cgroup as sys;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Controllers that containers are limited with; the others are passed by.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "hugetlb", "io"];

/// Without these a promise of CRI is broken, so their absence is said at start.
const NEEDED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// Longest cgroup path, in bytes: the kernel's PATH_MAX less what stands below a container.
const PATH_BYTES_MAX: usize = 3800;

/// How long killed processes may take to be gone. Longer means that they hang in the kernel, on a dead file server
/// for instance, and nobody's waiting helps.
const DEATH_LIMIT: Duration = Duration::from_secs(10);

/// How long rmdir may go on saying EBUSY after the last process is gone: v1 drops its references a little later.
const RMDIR_LIMIT: Duration = Duration::from_secs(2);

/// Bytes that a shim and what it forks may use. At rest it uses less than one MiB; page cache of logs is reclaimed.
const SHIM_MEMORY_MAX: i64 = 32 << 20;

/// Who makes the cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Driver {
    /// knarr, by mkdir and write.
    #[default]
    Cgroupfs,
    /// systemd, over D-Bus.
    Systemd,
}

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
    pub fn create_pod(&self, parent: &str, pod: &PodId) -> Result<PodCgroup, Error> {
        let cgroup = self.pod(parent, pod)?;
        let made = cgroup.group.make();
        if made.is_err() && !cgroup.given {
            // The first error is the one to report; what could not be removed is found by name at the next start.
            let _ = cgroup.remove();
        }
        made.map(|_| cgroup)
    }

    /// A container's cgroup by names alone.
    pub fn container(&self, pod: &PodCgroup, id: &ContainerId) -> ContainerCgroup {
        ContainerCgroup::new(self.group(format!("{}/{id}", pod.group.path)))
    }

    /// Makes a container's cgroup with its limits. One that an earlier attempt left is taken away first. On an error
    /// nothing is left.
    pub fn create_container(
        &self,
        pod: &PodCgroup,
        id: &ContainerId,
        resources: &Resources,
        devices: &DeviceAccess,
    ) -> Result<ContainerCgroup, Error> {
        resources.check()?;
        let cgroup = self.container(pod, id);
        let made = cgroup.create(resources, devices);
        if made.is_err() {
            let _ = cgroup.remove();
        }
        made.map(|()| cgroup)
    }

    /// The cgroup of a pod's shim by name alone: beside the daemon's, or a leaf of the pod's own if that is given.
    pub fn shim(&self, pod: &PodId, within: Option<&PodCgroup>) -> ShimCgroup {
        let path = match within {
            Some(cgroup) => join(&cgroup.group.path, SHIM_LEAF),
            None => format!("{}/shims/{}", self.shared.parent_default, pod.short()),
        };
        ShimCgroup { group: self.group(path) }
    }

    /// Makes the cgroup of a pod's shim. Outside the pod's limits, unless `within` is given: in a pod that uses up its
    /// 100m of CPU a ping to a shim within takes 83 ms.
    pub fn create_shim(&self, pod: &PodId, within: Option<&PodCgroup>) -> Result<ShimCgroup, Error> {
        let cgroup = self.shim(pod, within);
        cgroup.group.make()?;
        let limits = Resources { memory_limit: Some(SHIM_MEMORY_MAX), ..Resources::default() };
        let writes = self.shared.writes(&cgroup.group.path, &limits);
        apply::set(&self.shared, &writes).map_err(|e| e.context("limit the shim"))?;
        Ok(cgroup)
    }

    /// Removes the default parent if nothing is in it any more; for a daemon that goes for good.
    pub fn remove_default_parent(&self) {
        for path in [format!("{}/shims", self.shared.parent_default), self.shared.parent_default.clone()] {
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

/// One cgroup in every hierarchy.
#[derive(Debug, Clone)]
struct Group {
    shared: Arc<Shared>,
    /// relative to each root
    path: String,
}

impl Group {
    /// Makes it everywhere; says whether it is new in the cgroup2 hierarchy.
    fn make(&self) -> Result<bool, Error> {
        let error =
            |name: &str, e: Errno| Error::internal(format!("make cgroup /{} in the {name} hierarchy: {e}", self.path));
        let new = sys::make_dirs(self.shared.tree(), &self.path).map_err(|e| error("cgroup2", e))?;
        for hierarchy in &self.shared.hierarchies.v1 {
            sys::make_dirs(&hierarchy.root, &self.path).map_err(|e| error(&hierarchy.controllers.join(","), e))?;
        }
        if let Some(cpuset) = self.shared.v1_root("cpuset") {
            fill_cpusets(cpuset, &self.path).map_err(|e| error("cpuset", e))?;
        }
        self.let_controllers_through();
        Ok(new)
    }

    /// v2: every cgroup above must pass the controllers on. What is refused is said once and shows again as a missing
    /// file when a limit is written.
    fn let_controllers_through(&self) {
        let wanted = CONTROLLERS.into_iter().filter(|c| self.shared.tree_has(c));
        let wanted: Vec<&str> = wanted.collect();
        if wanted.is_empty() {
            return;
        }
        for above in ancestors(&self.path) {
            let file = join(above, "cgroup.subtree_control");
            let on = sys::read(self.shared.tree(), &file).unwrap_or_default();
            for controller in wanted.iter().filter(|c| !on.split_whitespace().any(|o| o == **c)) {
                if let Err(error) = sys::write(self.shared.tree(), &file, &format!("+{controller}")) {
                    self.shared.say_once(format!("cannot pass the {controller} controller on in /{above}: {error}"));
                }
            }
        }
    }

    fn fds(&self) -> Result<CgroupFds, Error> {
        let error = |file: &str, e: Errno| Error::internal(format!("open cgroup /{}{file}: {e}", self.path));
        let into = sys::open_dir(self.shared.tree(), &self.path).map_err(|e| error("", e))?;
        let mut v1_tasks = Vec::with_capacity(self.shared.hierarchies.v1.len());
        for hierarchy in &self.shared.hierarchies.v1 {
            let tasks = join(&self.path, "tasks");
            v1_tasks.push(sys::open_for_write(&hierarchy.root, &tasks).map_err(|e| error("/tasks", e))?);
        }
        Ok(CgroupFds { into, v1_tasks })
    }

    fn kill(&self) -> Result<(), Error> {
        sys::kill(self.shared.tree(), &self.path)
            .map_err(|e| Error::internal(format!("kill cgroup /{}: {e}", self.path)))
    }

    fn processes(&self) -> Result<Vec<u32>, Error> {
        let pids = sys::processes(self.shared.tree(), &self.path)
            .map_err(|e| Error::internal(format!("list processes of cgroup /{}: {e}", self.path)))?;
        Ok(pids.into_iter().map(|pid| pid.as_raw_nonzero().get() as u32).collect())
    }

    /// Kills what is left and removes the cgroup everywhere. Goes on after errors and tells them all.
    fn remove(&self) -> Result<(), Error> {
        let mut errors = Vec::new();
        if let Err(error) = self.kill_and_wait() {
            errors.push(error.message);
        }
        let deadline = Instant::now() + RMDIR_LIMIT;
        for root in self.shared.roots() {
            if let Err(error) = remove_patiently(root, &self.path, deadline) {
                errors.push(format!("remove cgroup /{}: {error}", self.path));
            }
        }
        errors.dedup();
        if errors.is_empty() { Ok(()) } else { Err(Error::internal(errors.join("; "))) }
    }

    fn kill_and_wait(&self) -> Result<(), Error> {
        let wait = |limit| {
            sys::wait_until_empty(self.shared.tree(), &self.path, limit)
                .map_err(|e| Error::internal(format!("wait for cgroup /{} to be empty: {e}", self.path)))
        };
        if wait(Duration::ZERO)? {
            return Ok(());
        }
        self.kill()?;
        if wait(DEATH_LIMIT / 10)? {
            return Ok(());
        }
        // A process frozen through v1 dies only when it is thawed; nothing is lost by trying.
        if let Some(freezer) = self.shared.v1_root("freezer") {
            let _ = sys::write(freezer, &join(&self.path, "freezer.state"), "THAWED");
        }
        if wait(DEATH_LIMIT)? {
            return Ok(());
        }
        let pids = self.processes().unwrap_or_default();
        Err(Error::internal(format!("cgroup /{}: processes {pids:?} do not die of SIGKILL", self.path)))
    }
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
    pub fn remove(&self) -> Result<(), Error> {
        if !self.given {
            return self.group.remove();
        }
        let shared = &self.group.shared;
        if shared.hierarchies.tree.controllers.is_empty() {
            let levels: Vec<&str> = ancestors(&self.group.path).skip(1).chain([self.group.path.as_str()]).collect();
            for path in levels.into_iter().rev() {
                // EBUSY: another pod is below, and so is everything above.
                if rustix::fs::unlinkat(shared.tree(), path, rustix::fs::AtFlags::REMOVEDIR).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// The shim's leaf in its pod's cgroup. No container's: those are ids.
const SHIM_LEAF: &str = "knarr-shim";

/// From the shim's last answer to its end: it closes its descriptors. What takes longer is killed.
const SHIM_END: Duration = Duration::from_millis(500);

/// The cgroup of one pod's shim.
#[derive(Debug, Clone)]
pub struct ShimCgroup {
    group: Group,
}

impl ShimCgroup {
    /// For a shim that is born there or moves itself while it is one thread.
    pub fn fds(&self) -> Result<CgroupFds, Error> {
        self.group.fds()
    }

    /// Moves a running shim in. Waits for an RCU grace period in the cgroup2 hierarchy (13 ms measured), so nobody may
    /// be waiting for it.
    pub fn take_in(&self, pid: u32) -> Result<(), Error> {
        let Group { shared, path } = &self.group;
        let error = |e: Errno| Error::internal(format!("move process {pid} to cgroup /{path}: {e}"));
        for hierarchy in &shared.hierarchies.v1 {
            // `tasks`, not `cgroup.procs`: a shim is one thread.
            sys::write(&hierarchy.root, &join(path, "tasks"), &pid.to_string()).map_err(error)?;
        }
        sys::write(shared.tree(), &join(path, "cgroup.procs"), &pid.to_string()).map_err(error)
    }

    /// Removes it with whatever is left in it: a shim that was told to end has ended, is about to, or hangs.
    pub fn remove(&self) -> Result<(), Error> {
        let Group { shared, path } = &self.group;
        // What goes wrong here goes wrong again in what follows, and is told there.
        let _ = sys::wait_until_empty(shared.tree(), path, SHIM_END);
        self.group.remove()
    }
}

/// A cgroup path without its leading slash, or why it is none.
fn relative(field: &str, path: &str) -> Result<String, Error> {
    let bad = |why: &str| Err(Error::invalid(field, format!("{path:?} {why}")));
    if path.len() > PATH_BYTES_MAX {
        return Err(Error::invalid(field, format!("longer than {PATH_BYTES_MAX} bytes")));
    }
    let inner = path.trim_matches('/');
    if inner.is_empty() {
        return Ok(String::new());
    }
    if inner.contains(['\0', '\n']) {
        return bad("holds a control character");
    }
    if inner.split('/').any(|part| part.is_empty() || part == "." || part == ".." || part.len() > 255) {
        return bad("is no plain path of a cgroup");
    }
    Ok(inner.to_owned())
}

/// "" (the root), then every path above `path`, downwards.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::once("").chain(path.match_indices('/').map(|(at, _)| &path[..at]))
}

/// v1 cpusets start empty, and nothing can live in an empty one: each level takes what the level above has.
fn fill_cpusets(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut above = sys::read(root, file)?;
        for level in ancestors(path).skip(1).chain([path]) {
            let name = join(level, file);
            let own = sys::read(root, &name)?;
            if own.trim().is_empty() {
                sys::write(root, &name, above.trim())?;
            } else {
                above = own;
            }
        }
    }
    Ok(())
}

/// rmdir until it works, the deadline passes or the error is not one that passes by itself.
fn remove_patiently(root: BorrowedFd<'_>, path: &str, deadline: Instant) -> rustix::io::Result<()> {
    let mut pause = Duration::from_millis(1);
    loop {
        match sys::remove_tree(root, path) {
            Err(Errno::BUSY | Errno::NOTEMPTY) if Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            outcome => return outcome,
        }
    }
}

fn join(path: &str, file: &str) -> String {
    if path.is_empty() { file.to_owned() } else { format!("{path}/{file}") }
}

#[cfg(test)]
mod tests;
