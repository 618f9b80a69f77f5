//! What pods and containers use, in CRI's messages.
//!
//! Numbers come from [`crate::cgroup`], the writable layer's from the caller; this file only arranges them, and keeps
//! the one thing that needs two samples: CPU use per second. Nothing runs in the background for it.

use crate::cgroup::{MemorySample, Pressure, PressureLine, Sample};
use knarr_cri_api::v1;
use std::collections::HashMap;
use std::time::Duration;

/// Two samples closer than this give a rate that is mostly noise; the last rate is told again.
const RATE_INTERVAL_MIN: Duration = Duration::from_millis(500);

/// After this long without a question the rate starts anew: an average over an hour is not what was asked for.
const RATE_INTERVAL_MAX: Duration = Duration::from_secs(120);

/// What the caller knows of a container's writable layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerUsage {
    /// when it was counted, nanoseconds since 1970
    pub timestamp: i64,
    /// mount point of the file system that holds it
    pub mountpoint: String,
    /// bytes
    pub used_bytes: u64,
    /// files and directories
    pub inodes_used: u64,
}

/// One interface's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct InterfaceUsage {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_errors: u64,
    pub tx_bytes: u64,
    pub tx_errors: u64,
}

/// The last sample of each cgroup's CPU time. One entry per living container and pod; the owner calls
/// [`CpuRates::retain`] so that it stays so.
#[derive(Debug, Default)]
pub struct CpuRates {
    last: HashMap<String, CpuSample>,
}

#[derive(Debug, Clone, Copy)]
struct CpuSample {
    at: i64,
    usage_ns: u64,
    nano_cores: Option<u64>,
}

impl CpuRates {
    /// Takes note of a sample and gives the use in billionths of a core since the one before; `None` for the first.
    /// `at` is in nanoseconds since 1970.
    pub fn note(&mut self, id: &str, at: i64, usage_ns: u64) -> Option<u64> {
        let fresh = CpuSample { at, usage_ns, nano_cores: None };
        let Some(last) = self.last.get_mut(id) else {
            self.last.insert(id.to_owned(), fresh);
            return None;
        };
        let elapsed = Duration::from_nanos(u64::try_from(at.saturating_sub(last.at)).unwrap_or(0));
        // The counter falls when the cgroup was made anew.
        if usage_ns < last.usage_ns || elapsed > RATE_INTERVAL_MAX {
            *last = fresh;
            return None;
        }
        if elapsed < RATE_INTERVAL_MIN {
            return last.nano_cores;
        }
        let used = u128::from(usage_ns - last.usage_ns) * 1_000_000_000 / elapsed.as_nanos();
        *last = CpuSample { nano_cores: Some(u64::try_from(used).unwrap_or(u64::MAX)), ..fresh };
        last.nano_cores
    }

    /// Forgets all ids that `alive` does not know.
    pub fn retain(&mut self, alive: impl Fn(&str) -> bool) {
        self.last.retain(|id, _| alive(id));
    }
}

/// One container's statistics. `at` is the time of the sample in nanoseconds since 1970.
pub fn container_stats(
    attributes: v1::ContainerAttributes,
    at: i64,
    sample: &Sample,
    layer: Option<LayerUsage>,
    rates: &mut CpuRates,
) -> v1::ContainerStats {
    let cpu = cpu_usage(&attributes.id, at, sample, rates);
    v1::ContainerStats {
        attributes: Some(attributes),
        cpu,
        memory: sample.memory.map(|memory| memory_usage(at, &memory, sample.memory_pressure)),
        writable_layer: layer.map(|layer| v1::FilesystemUsage {
            timestamp: layer.timestamp,
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: layer.mountpoint }),
            used_bytes: value(layer.used_bytes),
            inodes_used: value(layer.inodes_used),
        }),
        swap: sample.memory.and_then(|memory| swap_usage(at, &memory)),
        io: sample.io_pressure.map(|pressure| v1::IoUsage { timestamp: at, psi: Some(psi(pressure)) }),
    }
}

/// One pod's statistics. `sample` is of the pod's own cgroup, `interfaces` are those of its network, the default one
/// first; empty on the host's network.
pub fn pod_stats(
    attributes: v1::PodSandboxAttributes,
    at: i64,
    sample: &Sample,
    interfaces: Vec<InterfaceUsage>,
    containers: Vec<v1::ContainerStats>,
    rates: &mut CpuRates,
) -> v1::PodSandboxStats {
    let cpu = cpu_usage(&attributes.id, at, sample, rates);
    let mut interfaces = interfaces.into_iter().map(|i| v1::NetworkInterfaceUsage {
        name: i.name,
        rx_bytes: value(i.rx_bytes),
        rx_errors: value(i.rx_errors),
        tx_bytes: value(i.tx_bytes),
        tx_errors: value(i.tx_errors),
    });
    let network = interfaces.next().map(|default_interface| v1::NetworkUsage {
        timestamp: at,
        default_interface: Some(default_interface),
        interfaces: interfaces.collect(),
    });
    v1::PodSandboxStats {
        attributes: Some(attributes),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu,
            memory: sample.memory.map(|memory| memory_usage(at, &memory, sample.memory_pressure)),
            network,
            process: sample.pids.map(|pids| v1::ProcessUsage { timestamp: at, process_count: value(pids) }),
            containers,
            io: sample.io_pressure.map(|pressure| v1::IoUsage { timestamp: at, psi: Some(psi(pressure)) }),
        }),
        ..Default::default()
    }
}

fn cpu_usage(id: &str, at: i64, sample: &Sample, rates: &mut CpuRates) -> Option<v1::CpuUsage> {
    let usage_ns = sample.cpu_usage_ns?;
    Some(v1::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: value(usage_ns),
        usage_nano_cores: rates.note(id, at, usage_ns).and_then(value),
        psi: sample.cpu_pressure.map(psi),
    })
}

fn memory_usage(at: i64, memory: &MemorySample, pressure: Option<Pressure>) -> v1::MemoryUsage {
    v1::MemoryUsage {
        timestamp: at,
        working_set_bytes: value(memory.working_set),
        available_bytes: memory.limit.and_then(|limit| value(limit.saturating_sub(memory.working_set))),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: pressure.map(psi),
    }
}

fn swap_usage(at: i64, memory: &MemorySample) -> Option<v1::SwapUsage> {
    let used = memory.swap?;
    Some(v1::SwapUsage {
        timestamp: at,
        swap_available_bytes: memory.swap_limit.and_then(|limit| value(limit.saturating_sub(used))),
        swap_usage_bytes: value(used),
    })
}

fn psi(pressure: Pressure) -> v1::PsiStats {
    // CRI counts the total in nanoseconds, the kernel in microseconds.
    let data = |line: PressureLine| v1::PsiData {
        total: line.total_us.saturating_mul(1000),
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    v1::PsiStats { full: Some(data(pressure.full)), some: Some(data(pressure.some)) }
}

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_rate_needs_two_samples_some_time_apart() {
        let mut rates = CpuRates::default();
        assert_eq!(rates.note("a", 0, 0), None);
        assert_eq!(rates.note("a", SECOND / 10, 1_000_000), None);
        assert_eq!(rates.note("a", SECOND, 500_000_000), Some(500_000_000));
        assert_eq!(rates.note("a", SECOND + 1, 900_000_000), Some(500_000_000));
        assert_eq!(rates.note("a", 2 * SECOND, 2_500_000_000), Some(2_000_000_000));
    }

    #[test]
    fn a_counter_that_fell_and_an_old_sample_start_anew() {
        let mut rates = CpuRates::default();
        rates.note("a", 0, 100);
        assert_eq!(rates.note("a", SECOND, 50), None);
        assert_eq!(rates.note("a", 2 * SECOND, 50 + 1_000_000_000), Some(1_000_000_000));
        assert_eq!(rates.note("a", 1000 * SECOND, 2_000_000_000), None);
        assert_eq!(rates.note("a", 0, 2_000_000_000), None, "a clock that went back gives no rate");
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut rates = CpuRates::default();
        rates.note("a", 0, 0);
        rates.note("b", 0, 0);
        rates.retain(|id| id == "b");
        assert_eq!(rates.note("a", SECOND, 1), None);
        assert!(rates.note("b", SECOND, 1).is_some());
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let mut rates = CpuRates::default();
        let stats = container_stats(v1::ContainerAttributes::default(), 5, &Sample::default(), None, &mut rates);
        assert_eq!(stats.cpu, None);
        assert_eq!(stats.memory, None);
        assert_eq!(stats.swap, None);
        assert_eq!(stats.writable_layer, None);
    }

    #[test]
    fn available_is_what_the_limit_leaves() {
        let memory = MemorySample { usage: 100, working_set: 60, limit: Some(200), ..Default::default() };
        let usage = memory_usage(1, &memory, None);
        assert_eq!(usage.available_bytes, value(140));
        let usage = memory_usage(1, &MemorySample { limit: None, ..memory }, None);
        assert_eq!(usage.available_bytes, None);
    }
}
