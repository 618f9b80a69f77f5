//! What a container may use, and in which words the kernel is told.
//!
//! [`Resources`] is what the client asked for, echoed in status unchanged. `None` means "not said".

use crate::Error;
use std::collections::BTreeMap;

mod files;

pub use files::{Setting, cpu_weight, v1_files, v1_swap_limit_goes_first, v2_files};

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

/// What a pod as a whole may use, as last told: kubelet keeps the pod's cgroup itself, and tells it to runtimes whose
/// pods are more than a cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodResources {
    /// What the runtime itself takes.
    pub overhead: Resources,
    /// The sum of all containers.
    pub containers: Resources,
}

impl Resources {
    /// These resources with everything that `update` says put in place of what was said before. Maps are merged by
    /// key: an update names the huge page sizes and files that it means.
    #[must_use]
    pub fn merged(&self, update: &Self) -> Self {
        fn later<T: Clone>(old: &Option<T>, new: &Option<T>) -> Option<T> {
            new.clone().or_else(|| old.clone())
        }
        let mut hugepage_limits = self.hugepage_limits.clone();
        hugepage_limits.extend(update.hugepage_limits.clone());
        let mut unified = self.unified.clone();
        unified.extend(update.unified.clone());
        Self {
            cpu_period: later(&self.cpu_period, &update.cpu_period),
            cpu_quota: later(&self.cpu_quota, &update.cpu_quota),
            cpu_shares: later(&self.cpu_shares, &update.cpu_shares),
            memory_limit: later(&self.memory_limit, &update.memory_limit),
            memory_swap_limit: self.merged_swap_limit(update),
            oom_score_adj: later(&self.oom_score_adj, &update.oom_score_adj),
            cpuset_cpus: later(&self.cpuset_cpus, &update.cpuset_cpus),
            cpuset_mems: later(&self.cpuset_mems, &update.cpuset_mems),
            hugepage_limits,
            unified,
            pids_limit: later(&self.pids_limit, &update.pids_limit),
        }
    }

    /// A new memory limit alone takes the sum along where the two were equal (no swap) or the sum has no room for it.
    fn merged_swap_limit(&self, update: &Self) -> Option<i64> {
        match (update.memory_swap_limit, update.memory_limit, self.memory_swap_limit) {
            (Some(both), _, _) => Some(both),
            (None, Some(limit), Some(both)) if both >= 0 && (Some(both) == self.memory_limit || both < limit) => {
                Some(limit)
            }
            (None, Some(limit), Some(both)) if both >= 0 && limit < 0 => Some(limit),
            (None, _, both) => both,
        }
    }

    /// Refuses what no kernel could be told: a sum of memory and swap below memory, a file name that leaves the
    /// cgroup's directory. The error names the CRI field.
    pub fn check(&self) -> Result<(), Error> {
        let limit = self.memory_limit.filter(|&l| l >= 0);
        if let Some(both) = self.memory_swap_limit.filter(|&b| b >= 0) {
            match limit {
                None => {
                    return Err(Error::invalid(
                        "memory_swap_limit_in_bytes",
                        "it bounds memory plus swap, so memory_limit_in_bytes must be set too",
                    ));
                }
                Some(limit) if both < limit => {
                    return Err(Error::invalid(
                        "memory_swap_limit_in_bytes",
                        format!("{both} is less than memory_limit_in_bytes {limit}, which it includes"),
                    ));
                }
                Some(_) => {}
            }
        }
        if let Some(adj) = self.oom_score_adj.filter(|a| !(-1000..=1000).contains(a)) {
            return Err(Error::invalid("oom_score_adj", format!("{adj} is not within -1000 and 1000")));
        }
        for (field, list) in [("cpuset_cpus", &self.cpuset_cpus), ("cpuset_mems", &self.cpuset_mems)] {
            if let Some(list) = list.as_ref().filter(|l| !is_list_format(l)) {
                return Err(Error::invalid(field, format!("{list:?} is no list like \"0-3,7\"")));
            }
        }
        for size in self.hugepage_limits.keys() {
            let digits = size.strip_suffix("KB").or(size.strip_suffix("MB")).or(size.strip_suffix("GB"));
            if !digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit())) {
                return Err(Error::invalid("hugepage_limits", format!("{size:?} is no page size like \"2MB\"")));
            }
        }
        for (file, value) in &self.unified {
            check_unified(file, value)?;
        }
        Ok(())
    }
}

/// cgroup.* files shape the tree itself (kill, freeze, delegate), which is the runtime's business.
fn check_unified(file: &str, value: &str) -> Result<(), Error> {
    let fits = file.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && file.split_once('.').is_some_and(|(controller, rest)| !controller.is_empty() && !rest.is_empty());
    if !fits || file.starts_with("cgroup.") {
        return Err(Error::invalid("unified", format!("{file:?} is no file of a cgroup v2 controller")));
    }
    if value.contains('\0') {
        return Err(Error::invalid("unified", format!("the value for {file} holds a NUL")));
    }
    Ok(())
}

/// Numbers and ranges with commas between them. That a range is in order and in the machine is the kernel's to say.
fn is_list_format(list: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit());
    list.split(',').all(|part| match part.split_once('-') {
        Some((first, last)) => number(first) && number(last),
        None => number(part),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_replaces_only_what_it_names() {
        let old = Resources {
            cpu_shares: Some(512),
            memory_limit: Some(100),
            hugepage_limits: [("2MB".into(), 1), ("1GB".into(), 2)].into(),
            ..Default::default()
        };
        let update =
            Resources { memory_limit: Some(200), hugepage_limits: [("2MB".into(), 3)].into(), ..Default::default() };
        let merged = old.merged(&update);
        assert_eq!(merged.cpu_shares, Some(512));
        assert_eq!(merged.memory_limit, Some(200));
        assert_eq!(merged.hugepage_limits, [("2MB".into(), 3), ("1GB".into(), 2)].into());
        assert_eq!(old.merged(&Resources::default()), old);
    }

    #[test]
    fn a_new_memory_limit_alone_leaves_a_sum_that_fits() {
        let with = |limit, both| Resources { memory_limit: limit, memory_swap_limit: both, ..Default::default() };
        let sum = |old: Resources, limit| {
            let merged = old.merged(&with(Some(limit), None));
            merged.check().unwrap();
            merged.memory_swap_limit
        };
        assert_eq!(sum(with(Some(100), Some(100)), 200), Some(200));
        assert_eq!(sum(with(Some(100), Some(100)), 50), Some(50));
        assert_eq!(sum(with(Some(100), Some(150)), 120), Some(150));
        assert_eq!(sum(with(Some(100), Some(150)), 200), Some(200));
        assert_eq!(sum(with(Some(100), Some(150)), -1), Some(-1));
        assert_eq!(sum(with(Some(100), Some(-1)), 200), Some(-1));
        assert_eq!(sum(with(Some(100), None), 200), None);
    }

    #[test]
    fn a_sum_of_memory_and_swap_needs_room_for_memory() {
        let with = |limit, both| Resources { memory_limit: limit, memory_swap_limit: both, ..Default::default() };
        assert!(with(Some(100), Some(100)).check().is_ok());
        assert!(with(Some(100), Some(-1)).check().is_ok());
        assert!(with(None, Some(-1)).check().is_ok());
        for bad in [with(None, Some(100)), with(Some(-1), Some(100)), with(Some(100), Some(99))] {
            assert!(bad.check().unwrap_err().message.starts_with("memory_swap_limit_in_bytes:"), "{bad:?}");
        }
    }

    #[test]
    fn no_name_leaves_the_cgroups_directory() {
        for bad in ["../x.y", "memory/max", "memory", ".max", "memory.", "", "cgroup.kill", "cgroup.procs", "a.b\n"] {
            let r = Resources { unified: [(bad.into(), "1".into())].into(), ..Default::default() };
            assert!(r.check().is_err(), "{bad:?}");
        }
        let r = Resources { unified: [("memory.oom.group".into(), "1".into())].into(), ..Default::default() };
        assert!(r.check().is_ok());
        for bad in ["2M", "MB", "../2MB", "2MB.x", ""] {
            let r = Resources { hugepage_limits: [(bad.into(), 1)].into(), ..Default::default() };
            assert!(r.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn cpu_lists_are_lists() {
        for (list, fits) in [("0", true), ("0-3,7", true), ("", false), ("0-", false), ("a", false), ("0\n1", false)] {
            let r = Resources { cpuset_cpus: Some(list.into()), ..Default::default() };
            assert_eq!(r.check().is_ok(), fits, "{list:?}");
        }
    }
}
