//! Resources in the kernel's words: which cgroup file gets which value.
//!
//! Pure translation for both versions. Which of the two a controller is in, whether a file is there and what to do
//! when the kernel refuses is the daemon's part.

use super::Resources;

/// The period that the kernel uses when none is given, in microseconds.
const CPU_PERIOD_DEFAULT_US: u64 = 100_000;

/// One value for one file of a container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The controller that the file belongs to ("memory").
    pub controller: String,
    /// The file's name in the cgroup's directory.
    pub file: String,
    /// What is written.
    pub value: String,
    /// A kernel without the file does what the value asks anyway (no swap, no huge pages of that size).
    pub optional: bool,
}

impl Setting {
    fn new(controller: &str, file: impl Into<String>, value: impl ToString) -> Self {
        Self { controller: controller.into(), file: file.into(), value: value.to_string(), optional: false }
    }

    fn optional(mut self) -> Self {
        self.optional = true;
        self
    }
}

/// The files of cgroup v2, in the order in which they are to be written: `unified` last, so that it wins.
/// Takes resources that [`Resources::check`] has passed.
pub fn v2_files(resources: &Resources) -> Vec<Setting> {
    let r = resources;
    let mut out = Vec::new();
    if let Some(shares) = r.cpu_shares {
        out.push(Setting::new("cpu", "cpu.weight", cpu_weight(shares)));
    }
    if r.cpu_quota.is_some() || r.cpu_period.is_some() {
        let period = r.cpu_period.unwrap_or(CPU_PERIOD_DEFAULT_US);
        let quota = match r.cpu_quota {
            Some(quota) if quota >= 0 => quota.to_string(),
            _ => "max".to_owned(),
        };
        out.push(Setting::new("cpu", "cpu.max", format!("{quota} {period}")));
    }
    push_cpuset(r, &mut out);
    if let Some(limit) = r.memory_limit {
        out.push(Setting::new("memory", "memory.max", or_max(limit)));
    }
    if let Some(swap) = v2_swap(r) {
        out.push(Setting::new("memory", "memory.swap.max", or_max(swap)).optional());
    }
    if let Some(limit) = r.pids_limit {
        out.push(Setting::new("pids", "pids.max", or_max(limit)));
    }
    for (size, limit) in &r.hugepage_limits {
        // The page limit alone does not bound what a process reserves by mmap and is killed for at its first touch.
        for file in [format!("hugetlb.{size}.max"), format!("hugetlb.{size}.rsvd.max")] {
            out.push(Setting::new("hugetlb", file, limit).optional());
        }
    }
    for (file, value) in &r.unified {
        let controller = file.split('.').next().unwrap_or_default();
        let setting = Setting::new(controller, file.as_str(), value);
        // Kubelet says that a container has no swap also on a kernel that has none to give.
        let needless = file == "memory.swap.max" && value == "0";
        out.push(if needless { setting.optional() } else { setting });
    }
    out
}

/// The files of cgroup v1, in order. The two memory limits stand side by side in the order that suits lowering; see
/// [`v1_swap_limit_goes_first`]. `unified` has no meaning there.
/// Takes resources that [`Resources::check`] has passed.
pub fn v1_files(resources: &Resources) -> Vec<Setting> {
    let r = resources;
    let mut out = Vec::new();
    if let Some(shares) = r.cpu_shares {
        out.push(Setting::new("cpu", "cpu.shares", shares));
    }
    if let Some(period) = r.cpu_period {
        out.push(Setting::new("cpu", "cpu.cfs_period_us", period));
    }
    if let Some(quota) = r.cpu_quota {
        out.push(Setting::new("cpu", "cpu.cfs_quota_us", quota.max(-1)));
    }
    push_cpuset(r, &mut out);
    if let Some(limit) = r.memory_limit {
        out.push(Setting::new("memory", "memory.limit_in_bytes", limit.max(-1)));
        // Memory plus swap equal to memory is "no swap".
        let both = r.memory_swap_limit.unwrap_or(limit).max(-1);
        out.push(Setting::new("memory", "memory.memsw.limit_in_bytes", both).optional());
    }
    if let Some(limit) = r.pids_limit {
        out.push(Setting::new("pids", "pids.max", or_max(limit)));
    }
    for (size, limit) in &r.hugepage_limits {
        for file in [format!("hugetlb.{size}.limit_in_bytes"), format!("hugetlb.{size}.rsvd.limit_in_bytes")] {
            out.push(Setting::new("hugetlb", file, limit).optional());
        }
    }
    out
}

/// Whether memory.memsw.limit_in_bytes must be written before memory.limit_in_bytes: the kernel refuses any moment in
/// which memory alone may be more than memory plus swap. `current_both` is what the first file holds now.
pub fn v1_swap_limit_goes_first(current_both: u64, new_limit: i64) -> bool {
    u64::try_from(new_limit).map_or(true, |limit| limit > current_both)
}

/// Translates cpu.shares (2..=262144, default 1024) to cpu.weight (1..=10000, default 100), so that both ends and the
/// default meet: 10^((log2(shares)^2 + 125 log2(shares)) / 612 − 7/34), rounded up. The straight line between the ends
/// that was in use before gave 1024 shares a weight of 39 and so made containers lose against the node's services.
pub fn cpu_weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // Powers of ten that are meant to be whole may come out a hair above, and rounding up would add one.
    ((10f64.powf(exponent) - 1e-9).ceil() as u64).clamp(1, 10_000)
}

/// memory.swap.max counts swap alone, where the request counts memory plus swap. A limit on memory with no word about
/// swap means none: a container must not escape its limit to the disk.
fn v2_swap(r: &Resources) -> Option<i64> {
    match (r.memory_limit, r.memory_swap_limit) {
        (_, Some(both)) if both < 0 => Some(-1),
        (Some(limit), Some(both)) if limit >= 0 => Some((both - limit).max(0)),
        (Some(limit), None) if limit >= 0 => Some(0),
        (Some(_), None) => Some(-1),
        // `check` refuses a bound on the sum where memory itself has none.
        (_, Some(_)) | (None, None) => None,
    }
}

fn push_cpuset(r: &Resources, out: &mut Vec<Setting>) {
    if let Some(cpus) = &r.cpuset_cpus {
        out.push(Setting::new("cpuset", "cpuset.cpus", cpus));
    }
    if let Some(mems) = &r.cpuset_mems {
        out.push(Setting::new("cpuset", "cpuset.mems", mems));
    }
}

fn or_max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(settings: &[Setting]) -> Vec<String> {
        settings.iter().map(|s| format!("{}{}={}", if s.optional { "?" } else { "" }, s.file, s.value)).collect()
    }

    #[test]
    fn both_ends_and_the_default_of_shares_meet_those_of_weight() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000), (102, 17)] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
    }

    #[test]
    fn nothing_said_is_nothing_written() {
        assert_eq!(v2_files(&Resources::default()), []);
        assert_eq!(v1_files(&Resources::default()), []);
    }

    #[test]
    fn a_usual_container_on_v2() {
        let r = Resources {
            cpu_period: Some(100_000),
            cpu_quota: Some(50_000),
            cpu_shares: Some(512),
            memory_limit: Some(100 << 20),
            pids_limit: Some(64),
            cpuset_cpus: Some("0-1".into()),
            hugepage_limits: [("2MB".into(), 0)].into(),
            unified: [("memory.oom.group", "1"), ("memory.max", "7"), ("memory.swap.max", "0")]
                .map(|(file, value)| (file.to_owned(), value.to_owned()))
                .into(),
            ..Default::default()
        };
        assert_eq!(
            lines(&v2_files(&r)),
            [
                "cpu.weight=59",
                "cpu.max=50000 100000",
                "cpuset.cpus=0-1",
                "memory.max=104857600",
                "?memory.swap.max=0",
                "pids.max=64",
                "?hugetlb.2MB.max=0",
                "?hugetlb.2MB.rsvd.max=0",
                "memory.max=7",
                "memory.oom.group=1",
                "?memory.swap.max=0",
            ]
        );
    }

    #[test]
    fn a_usual_container_on_v1() {
        let r = Resources {
            cpu_period: Some(100_000),
            cpu_quota: Some(-5),
            cpu_shares: Some(512),
            memory_limit: Some(100),
            pids_limit: Some(-1),
            cpuset_mems: Some("0".into()),
            hugepage_limits: [("1GB".into(), 5)].into(),
            unified: [("memory.high".into(), "1".into())].into(),
            ..Default::default()
        };
        assert_eq!(
            lines(&v1_files(&r)),
            [
                "cpu.shares=512",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=-1",
                "cpuset.mems=0",
                "memory.limit_in_bytes=100",
                "?memory.memsw.limit_in_bytes=100",
                "pids.max=max",
                "?hugetlb.1GB.limit_in_bytes=5",
                "?hugetlb.1GB.rsvd.limit_in_bytes=5",
            ]
        );
    }

    #[test]
    fn swap_is_what_memory_leaves_of_the_sum() {
        let swap =
            |limit, both| v2_swap(&Resources { memory_limit: limit, memory_swap_limit: both, ..Default::default() });
        assert_eq!(swap(Some(100), Some(150)), Some(50));
        assert_eq!(swap(Some(100), Some(100)), Some(0));
        assert_eq!(swap(Some(100), None), Some(0));
        assert_eq!(swap(Some(100), Some(-1)), Some(-1));
        assert_eq!(swap(Some(-1), None), Some(-1));
        assert_eq!(swap(None, Some(-1)), Some(-1));
        assert_eq!(swap(None, None), None);
    }

    #[test]
    fn only_a_period_leaves_the_quota_unlimited() {
        let r = Resources { cpu_period: Some(20_000), ..Default::default() };
        assert_eq!(lines(&v2_files(&r)), ["cpu.max=max 20000"]);
        let r = Resources { cpu_quota: Some(20_000), ..Default::default() };
        assert_eq!(lines(&v2_files(&r)), ["cpu.max=20000 100000"]);
    }

    #[test]
    fn the_sum_is_raised_first_and_lowered_last() {
        assert!(v1_swap_limit_goes_first(100, 200));
        assert!(v1_swap_limit_goes_first(100, -1));
        assert!(!v1_swap_limit_goes_first(100, 100));
        assert!(!v1_swap_limit_goes_first(u64::MAX, 100));
    }

    proptest! {
        #[test]
        fn weight_never_falls_as_shares_rise(a in 0u64..300_000, b in 0u64..300_000) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(cpu_weight(low) <= cpu_weight(high));
            prop_assert!((1..=10_000).contains(&cpu_weight(a)));
        }

        #[test]
        fn at_no_moment_is_memory_above_the_sum(
            old_limit in 0u64..1000, old_more in 0u64..1000, limit in 0i64..1000, more in 0i64..1000,
        ) {
            let (old_both, both) = (old_limit + old_more, limit + more);
            let between = if v1_swap_limit_goes_first(old_both, limit) {
                (old_limit, both as u64)
            } else {
                (limit as u64, old_both)
            };
            prop_assert!(between.0 <= between.1);
        }
    }
}
