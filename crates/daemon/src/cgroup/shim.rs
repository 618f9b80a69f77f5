//! The cgroup of one pod's shim.

use super::group::{Group, blocking, join};
use super::names::{Driver, Slice};
use super::systemd::{Scope, properties};
use super::{Shared, apply};
use knarr_model::Error;
use knarr_model::resources::{Resources, v2_files};
use knarr_sys::cgroup as sys;
use rustix::io::Errno;
use std::time::Duration;

/// Bytes that a shim and what it forks may use. At rest it uses less than one MiB; page cache of logs is reclaimed.
const SHIM_MEMORY_MAX: i64 = 32 << 20;

/// From the shim's last answer to its end: it closes its descriptors. What takes longer is killed.
const SHIM_END: Duration = Duration::from_millis(500);

/// Outside its pod's limits, unless the configuration wants it within: in a pod that uses up its 100m of CPU a ping to
/// a shim within takes 83 ms.
#[derive(Debug, Clone)]
pub struct ShimCgroup {
    group: Group,
    /// It is a scope, which systemd makes around the shim: unit and slice.
    scope: Option<(String, Slice)>,
}

impl ShimCgroup {
    pub(super) fn new(group: Group, scope: Option<(String, Slice)>) -> Self {
        Self { group, scope }
    }

    /// Absolute path in every hierarchy.
    pub fn path(&self) -> String {
        format!("/{}", self.group.path)
    }

    /// Makes it, with its bound, and moves a running shim in. That waits for an RCU grace period in the cgroup2
    /// hierarchy (13 ms measured), so nobody may be waiting for it.
    pub async fn take_in(&self, pid: u32) -> Result<(), Error> {
        let limits = Resources { memory_limit: Some(SHIM_MEMORY_MAX), ..Resources::default() };
        let shared = &self.group.shared;
        if let Some((unit, slice)) = &self.scope {
            let properties = properties::translate(v2_files(&limits)).properties;
            let description = format!("shim of the pod in {}", slice.unit());
            let scope = Scope { unit: unit.clone(), slice: slice.clone(), description, properties };
            return shared.systemd.start_around(scope, pid).await;
        }
        let below_scope =
            shared.driver == Driver::Systemd && self.group.path.starts_with(&shared.scope_of_shims().path);
        if below_scope {
            Shared::make_scope_of_shims(shared).await?;
        }
        let group = self.group.clone();
        blocking(move || {
            if below_scope {
                group.make_below()?
            } else {
                group.make().map(drop)?
            }
            let writes = group.shared.writes(&group.path, &limits);
            apply::set(&group.shared, &writes).map_err(|e| e.context("limit the shim"))?;
            move_in(&group.shared, &group.path, pid)
        })
        .await
    }

    /// Removes it with whatever is left in it: a shim that was told to end has ended, is about to, or hangs.
    pub async fn remove(&self) -> Result<(), Error> {
        let group = self.group.clone();
        blocking(move || {
            // What goes wrong here goes wrong again in what follows, and is told there.
            let _ = sys::wait_until_empty(group.shared.tree(), &group.path, SHIM_END);
            group.remove()
        })
        .await?;
        if let Some((unit, _)) = &self.scope {
            self.group.shared.systemd.clear(unit).await;
        }
        Ok(())
    }
}

fn move_in(shared: &Shared, path: &str, pid: u32) -> Result<(), Error> {
    let error = |e: Errno| Error::internal(format!("move process {pid} to cgroup /{path}: {e}"));
    for hierarchy in &shared.hierarchies.v1 {
        // `tasks`, not `cgroup.procs`: a shim is one thread.
        sys::write(&hierarchy.root, &join(path, "tasks"), &pid.to_string()).map_err(error)?;
    }
    sys::write(shared.tree(), &join(path, "cgroup.procs"), &pid.to_string()).map_err(error)
}
