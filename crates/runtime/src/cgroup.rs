//! Getting a process into its cgroup. Making cgroups and setting their limits is the daemon's work.

use crate::Attempt;
use crate::launch::Copy;
use crate::step::Step;
use knarr_model::plan::CgroupPlan;
use rustix::io::Result;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Where a process is put.
pub(crate) struct Cgroup<'a> {
    /// cgroup2: the process is born in it.
    pub(crate) into: BorrowedFd<'a>,
    tasks: Vec<BorrowedFd<'a>>,
}

impl<'a> Cgroup<'a> {
    pub(crate) fn prepare(plan: &CgroupPlan, fds: &'a [OwnedFd]) -> Attempt<Self> {
        let tasks = plan.v1_tasks.iter().map(|&index| crate::descriptor(fds, index));
        Ok(Self { into: crate::descriptor(fds, plan.into)?, tasks: tasks.collect::<Attempt<_>>()? })
    }

    /// The message's descriptors that the copy needs.
    pub(crate) fn kept(&self) -> Vec<BorrowedFd<'a>> {
        self.tasks.clone()
    }

    /// Joins the hierarchies of version 1. A thread that moves itself by `tasks` does not wait for the grace period that
    /// `cgroup.procs` costs (13 to 19 ms); and this process has one thread only.
    pub(crate) fn join(&self, copy: &Copy<'_>) -> Result<()> {
        for (index, tasks) in self.tasks.iter().enumerate() {
            copy.report.step_of(Step::JoinCgroup, index);
            rustix::io::write(tasks, b"0")?;
        }
        Ok(())
    }
}
