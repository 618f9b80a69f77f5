//! LinuxContainerResources to [`Resources`] and back, and the merging of an update.
//!
//! Zero and the empty text mean "not said" in the protocol. What is said is checked against what the kernel takes,
//! so that a request is refused with the name of the field and not with EINVAL while the container is being made.

use super::SETTING_BYTES_MAX;
use super::text::{at_most, one_line};
use knarr_cri_api::v1;
use knarr_model::Error;
use knarr_model::resources::Resources;
use std::collections::BTreeMap;

/// Microseconds: the kernel takes CFS periods from 1 ms to 1 s.
const CPU_PERIOD_US: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
/// Microseconds: the kernel takes no smaller CFS quota.
const CPU_QUOTA_US_MIN: i64 = 1_000;
/// The kernel's MIN_SHARES and MAX_SHARES; what is outside is moved to the edge, as the kernel itself does.
const CPU_SHARES: (i64, i64) = (2, 262_144);
/// The highest CPU or memory node number that a list may name: the kernel's largest NR_CPUS.
const CPUSET_MAX: u32 = 8191;
/// Different page sizes of one request; no machine has more than four.
const HUGEPAGE_SIZES_MAX: usize = 64;
/// Entries of `unified`.
const UNIFIED_MAX: usize = 256;

/// Parses what a request says about resources; `field` is where it stands in the request.
pub fn resources(field: &str, wanted: v1::LinuxContainerResources) -> Result<Resources, Error> {
    let at = |name: &str| format!("{field}.{name}");
    let memory_limit = limit(wanted.memory_limit_in_bytes);
    let memory_swap_limit = limit(wanted.memory_swap_limit_in_bytes);
    if let (Some(memory @ 0..), Some(swap @ 0..)) = (memory_limit, memory_swap_limit)
        && swap < memory
    {
        let why = format!("{swap} is less than memory_limit_in_bytes {memory}; it counts memory and swap together");
        return Err(Error::invalid(&at("memory_swap_limit_in_bytes"), why));
    }
    Ok(Resources {
        cpu_period: cpu_period(&at("cpu_period"), wanted.cpu_period)?,
        cpu_quota: cpu_quota(&at("cpu_quota"), wanted.cpu_quota)?,
        cpu_shares: cpu_shares(&at("cpu_shares"), wanted.cpu_shares)?,
        memory_limit,
        memory_swap_limit,
        oom_score_adj: oom_score_adj(&at("oom_score_adj"), wanted.oom_score_adj)?,
        cpuset_cpus: cpuset(&at("cpuset_cpus"), wanted.cpuset_cpus)?,
        cpuset_mems: cpuset(&at("cpuset_mems"), wanted.cpuset_mems)?,
        hugepage_limits: hugepage_limits(&at("hugepage_limits"), wanted.hugepage_limits)?,
        unified: unified(&at("unified"), wanted.unified)?,
        pids_limit: None,
    })
}

/// The resources as a status reports them.
pub fn linux_container_resources(resources: &Resources) -> v1::LinuxContainerResources {
    let signed = |value: Option<u64>| value.map_or(0, |v| i64::try_from(v).unwrap_or(i64::MAX));
    v1::LinuxContainerResources {
        cpu_period: signed(resources.cpu_period),
        cpu_quota: resources.cpu_quota.unwrap_or(0),
        cpu_shares: signed(resources.cpu_shares),
        memory_limit_in_bytes: resources.memory_limit.unwrap_or(0),
        oom_score_adj: i64::from(resources.oom_score_adj.unwrap_or(0)),
        cpuset_cpus: resources.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: resources.cpuset_mems.clone().unwrap_or_default(),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|(page_size, limit)| v1::HugepageLimit { page_size: page_size.clone(), limit: *limit })
            .collect(),
        unified: resources.unified.iter().map(|(file, value)| (file.clone(), value.clone())).collect(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit.unwrap_or(0),
    }
}

/// A limit in bytes: 0 is not said, anything negative is unlimited.
fn limit(bytes: i64) -> Option<i64> {
    match bytes {
        0 => None,
        ..0 => Some(-1),
        _ => Some(bytes),
    }
}

fn cpu_period(field: &str, period_us: i64) -> Result<Option<u64>, Error> {
    if period_us == 0 {
        return Ok(None);
    }
    if !CPU_PERIOD_US.contains(&period_us) {
        return Err(Error::invalid(field, format!("{period_us} µs is not between 1000 and 1000000")));
    }
    Ok(Some(period_us.unsigned_abs()))
}

fn cpu_quota(field: &str, quota_us: i64) -> Result<Option<i64>, Error> {
    match quota_us {
        0 => Ok(None),
        ..0 => Ok(Some(-1)),
        CPU_QUOTA_US_MIN.. => Ok(Some(quota_us)),
        _ => Err(Error::invalid(field, format!("{quota_us} µs is less than {CPU_QUOTA_US_MIN}"))),
    }
}

fn cpu_shares(field: &str, shares: i64) -> Result<Option<u64>, Error> {
    match shares {
        0 => Ok(None),
        ..0 => Err(Error::invalid(field, format!("{shares} is negative"))),
        _ => Ok(Some(shares.clamp(CPU_SHARES.0, CPU_SHARES.1).unsigned_abs())),
    }
}

fn oom_score_adj(field: &str, score: i64) -> Result<Option<i32>, Error> {
    match i32::try_from(score) {
        Ok(0) => Ok(None),
        Ok(score @ -1000..=1000) => Ok(Some(score)),
        _ => Err(Error::invalid(field, format!("{score} is not between -1000 and 1000"))),
    }
}

/// The kernel's list format without strides: "0-3,7".
fn cpuset(field: &str, list: String) -> Result<Option<String>, Error> {
    if list.is_empty() {
        return Ok(None);
    }
    at_most(field, list.len(), SETTING_BYTES_MAX, "bytes")?;
    let number = |text: &str| -> Option<u32> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|n| digits && *n <= CPUSET_MAX)
    };
    for part in list.split(',') {
        let good = match part.split_once('-') {
            Some((first, last)) => matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last),
            None => number(part).is_some(),
        };
        if !good {
            return Err(Error::invalid(field, format!("{part:?} is no number or range of numbers up to {CPUSET_MAX}")));
        }
    }
    Ok(Some(list))
}

/// Kubelet names every page size of the node, with limit 0 for those that are not used: zero is a limit here.
fn hugepage_limits(field: &str, limits: Vec<v1::HugepageLimit>) -> Result<BTreeMap<String, u64>, Error> {
    at_most(field, limits.len(), HUGEPAGE_SIZES_MAX, "page sizes")?;
    let mut by_size = BTreeMap::new();
    for limit in limits {
        if !is_page_size(&limit.page_size) {
            return Err(Error::invalid(field, format!("{:?} is no page size like \"2MB\"", limit.page_size)));
        }
        if by_size.insert(limit.page_size.clone(), limit.limit).is_some() {
            return Err(Error::invalid(field, format!("page size {} is there twice", limit.page_size)));
        }
    }
    Ok(by_size)
}

/// As in the names of the kernel's files: "64KB", "2MB", "1GB".
fn is_page_size(text: &str) -> bool {
    let digits = text.strip_suffix("KB").or(text.strip_suffix("MB")).or(text.strip_suffix("GB"));
    digits.is_some_and(|digits| {
        (1..=7).contains(&digits.len()) && !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit())
    })
}

/// A key is one file of a controller. The `cgroup.*` files are not a container's to set: `cgroup.procs` moves
/// processes, `cgroup.kill` kills them.
fn unified(field: &str, files: std::collections::HashMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
    at_most(field, files.len(), UNIFIED_MAX, "files")?;
    for (file, value) in &files {
        let charset = file.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        let controller = file.split_once('.').map(|(controller, rest)| (controller, !rest.is_empty()));
        let good = charset
            && file.len() <= 255
            && !file.contains("..")
            && matches!(controller, Some((c, true)) if !c.is_empty());
        if !good || file.starts_with("cgroup.") {
            return Err(Error::invalid(field, format!("{file:?} is no file of a controller, like \"memory.high\"")));
        }
        at_most(&format!("{field}[{file}]"), value.len(), SETTING_BYTES_MAX, "bytes")?;
        one_line(&format!("{field}[{file}]"), value)?;
    }
    Ok(files.into_iter().collect())
}
