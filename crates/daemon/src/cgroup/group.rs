//! One cgroup by its path: made, emptied and taken away in every hierarchy at once.
//!
//! Calls here block on the kernel for microseconds, `remove` for as long as processes take to die. Which path it is and
//! whose, is the callers' affair; so is asking systemd, where that makes the cgroup.

use super::{CgroupFds, Shared};
use knarr_model::Error;
use knarr_sys::cgroup as sys;
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Controllers that containers are limited with; the others are passed by.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "hugetlb", "io"];

/// How long killed processes may take to be gone. Longer means that they hang in the kernel, on a dead file server
/// for instance, and nobody's waiting helps.
const DEATH_LIMIT: Duration = Duration::from_secs(10);

/// How long rmdir may go on saying EBUSY after the last process is gone: v1 drops its references a little later.
const RMDIR_LIMIT: Duration = Duration::from_secs(2);

/// One cgroup in every hierarchy.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) shared: Arc<Shared>,
    /// relative to each root
    pub(super) path: String,
}

impl Group {
    /// Makes it everywhere; says whether it is new in the cgroup2 hierarchy.
    pub(super) fn make(&self) -> Result<bool, Error> {
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

    /// Makes it in a cgroup2 cgroup that is there: one that has gone meanwhile must not come back as a mere directory.
    pub(super) fn make_below(&self) -> Result<(), Error> {
        let made = rustix::fs::mkdirat(self.shared.tree(), self.path.as_str(), rustix::fs::Mode::from_raw_mode(0o755));
        made.map_err(|e| Error::internal(format!("make cgroup /{}: {e}", self.path)))?;
        self.let_controllers_through();
        Ok(())
    }

    /// Whether it is there, in the cgroup2 hierarchy.
    pub(super) fn exists(&self) -> bool {
        sys::open_dir(self.shared.tree(), &self.path).is_ok()
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

    pub(super) fn fds(&self) -> Result<CgroupFds, Error> {
        let error = |file: &str, e: Errno| Error::internal(format!("open cgroup /{}{file}: {e}", self.path));
        let into = sys::open_dir(self.shared.tree(), &self.path).map_err(|e| error("", e))?;
        let mut v1_tasks = Vec::with_capacity(self.shared.hierarchies.v1.len());
        for hierarchy in &self.shared.hierarchies.v1 {
            let tasks = join(&self.path, "tasks");
            v1_tasks.push(sys::open_for_write(&hierarchy.root, &tasks).map_err(|e| error("/tasks", e))?);
        }
        Ok(CgroupFds { into, v1_tasks })
    }

    pub(super) fn kill(&self) -> Result<(), Error> {
        sys::kill(self.shared.tree(), &self.path)
            .map_err(|e| Error::internal(format!("kill cgroup /{}: {e}", self.path)))
    }

    pub(super) fn processes(&self) -> Result<Vec<u32>, Error> {
        let pids = sys::processes(self.shared.tree(), &self.path)
            .map_err(|e| Error::internal(format!("list processes of cgroup /{}: {e}", self.path)))?;
        Ok(pids.into_iter().map(|pid| pid.as_raw_nonzero().get() as u32).collect())
    }

    /// Kills what is left and removes the cgroup everywhere. Goes on after errors and tells them all.
    pub(super) fn remove(&self) -> Result<(), Error> {
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

    /// For a cgroup that is another's: only where the cgroup2 hierarchy has no controllers, and the other therefore
    /// does not know it, the empty directories that we made there are taken away.
    pub(super) fn remove_phantoms(&self) -> Result<(), Error> {
        if self.shared.hierarchies.tree.controllers.is_empty() {
            let levels: Vec<&str> = ancestors(&self.path).skip(1).chain([self.path.as_str()]).collect();
            for path in levels.into_iter().rev() {
                // EBUSY: another pod is below, and so is everything above.
                if rustix::fs::unlinkat(self.shared.tree(), path, rustix::fs::AtFlags::REMOVEDIR).is_err() {
                    break;
                }
            }
        }
        Ok(())
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

/// "" (the root), then every path above `path`, downwards.
pub(super) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
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

pub(super) fn join(path: &str, file: &str) -> String {
    if path.is_empty() { file.to_owned() } else { format!("{path}/{file}") }
}

/// Runs what may block, away from the async workers.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal(format!("worker: {e}")))?
}
