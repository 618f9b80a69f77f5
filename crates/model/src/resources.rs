//! What a container may use, and in which words the kernel is told.
//!
//! [`Resources`] is what the client asked for, echoed in status unchanged. `None` means "not said".

use std::collections::BTreeMap;

/// LinuxContainerResources after parsing; 0 and "" of the protocol are `None` here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// microseconds
    pub cpu_period: Option<u64>,
    /// microseconds per period; negative is unlimited
    pub cpu_quota: Option<i64>,
    /// 2..=262144, relative weight
    pub cpu_shares: Option<u64>,
    /// bytes; negative is unlimited
    pub memory_limit: Option<i64>,
    /// bytes, memory plus swap as cgroup v1 counts; negative is unlimited
    pub memory_swap_limit: Option<i64>,
    /// -1000..=1000
    pub oom_score_adj: Option<i32>,
    /// list format: "0-3,7"
    pub cpuset_cpus: Option<String>,
    /// list format
    pub cpuset_mems: Option<String>,
    /// page size ("2MB") to bytes
    pub hugepage_limits: BTreeMap<String, u64>,
    /// cgroup v2 file to value, written as given after everything else
    pub unified: BTreeMap<String, String>,
    /// Processes; CRI has no field for it, configuration and `unified` do.
    pub pids_limit: Option<i64>,
}

impl Resources {
    /// These resources after an update that says only what changes.
    #[must_use]
    pub fn merged(&self, update: &Self) -> Self {
        let mut merged = self.clone();
        macro_rules! take {
            ($($field:ident),*) => { $(if update.$field.is_some() { merged.$field = update.$field.clone(); })* };
        }
        take!(cpu_period, cpu_quota, cpu_shares, memory_limit, memory_swap_limit, oom_score_adj);
        take!(cpuset_cpus, cpuset_mems, pids_limit);
        merged.hugepage_limits.extend(update.hugepage_limits.iter().map(|(k, v)| (k.clone(), *v)));
        merged.unified.extend(update.unified.iter().map(|(k, v)| (k.clone(), v.clone())));
        merged
    }
}
