//! Reading what a cgroup uses: a handful of small files, no state.
//!
//! What is not there (a controller, pressure accounting, the cgroup itself) is `None`, never zero: a client that gets
//! nothing knows that nothing is known.

use super::Shared;
use super::group::join;
use knarr_sys::cgroup as sys;
use rustix::fd::BorrowedFd;

/// v1 shows "no limit" as the largest multiple of a page below 2^63; nothing near it is a limit.
const UNLIMITED_FROM: u64 = 1 << 62;

/// What a cgroup uses.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// CPU time since the cgroup was made, in nanoseconds.
    pub cpu_usage_ns: Option<u64>,
    /// memory controller
    pub memory: Option<MemorySample>,
    /// processes and threads
    pub pids: Option<u64>,
    /// waiting for CPU
    pub cpu_pressure: Option<Pressure>,
    /// waiting for memory
    pub memory_pressure: Option<Pressure>,
    /// waiting for block devices
    pub io_pressure: Option<Pressure>,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemorySample {
    /// All that is charged, page cache included.
    pub usage: u64,
    /// `usage` less the page cache that was not used lately: what eviction decides by.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// The tightest limit known; `None` for none.
    pub limit: Option<u64>,
    /// Swapped out; `None` where swap is not counted.
    pub swap: Option<u64>,
    /// What swap may become; `None` for no limit or where swap is not counted.
    pub swap_limit: Option<u64>,
    /// Page faults since the cgroup was made.
    pub page_faults: u64,
    /// Those of them that read from a disk.
    pub major_page_faults: u64,
}

/// Pressure stall information of one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// at least one task waited
    pub some: PressureLine,
    /// all of them waited
    pub full: PressureLine,
}

/// Percentages over 10, 60 and 300 seconds, and the total.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(missing_docs)]
pub struct PressureLine {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    /// microseconds
    pub total_us: u64,
}

/// Reads everything about the cgroup at `path`.
pub(super) fn take(shared: &Shared, path: &str) -> Sample {
    let tree = Files { root: shared.tree(), path };
    let cpu_usage_ns = if shared.tree_has("cpu") || shared.v1_root("cpuacct").is_none() {
        // Without the controller, cgroup2 still counts CPU time.
        tree.text("cpu.stat").and_then(|t| value_of(&t, "usage_usec")).map(|us| us.saturating_mul(1000))
    } else {
        shared.v1_root("cpuacct").and_then(|root| Files { root, path }.number("cpuacct.usage"))
    };
    let memory = if shared.tree_has("memory") {
        memory_v2(&tree)
    } else {
        shared.v1_root("memory").and_then(|root| memory_v1(&Files { root, path }))
    };
    let pids = shared.place_of("pids").and_then(|root| Files { root, path }.number("pids.current"));
    let pressure = |file| tree.text(file).map(|text| parse_pressure(&text));
    Sample {
        cpu_usage_ns,
        memory,
        pids,
        cpu_pressure: pressure("cpu.pressure"),
        memory_pressure: pressure("memory.pressure"),
        io_pressure: pressure("io.pressure"),
    }
}

struct Files<'a> {
    root: BorrowedFd<'a>,
    path: &'a str,
}

impl Files<'_> {
    fn text(&self, file: &str) -> Option<String> {
        sys::read(self.root, &join(self.path, file)).ok()
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.text(file)?.trim().parse().ok()
    }
}

fn memory_v2(files: &Files<'_>) -> Option<MemorySample> {
    let usage = files.number("memory.current")?;
    let stat = files.text("memory.stat")?;
    let of = |key| value_of(&stat, key).unwrap_or(0);
    Some(MemorySample {
        usage,
        working_set: usage.saturating_sub(of("inactive_file")),
        rss: of("anon"),
        // "max" does not parse, which is what no limit is.
        limit: files.number("memory.max"),
        swap: files.number("memory.swap.current"),
        swap_limit: files.number("memory.swap.max"),
        page_faults: of("pgfault"),
        major_page_faults: of("pgmajfault"),
    })
}

fn memory_v1(files: &Files<'_>) -> Option<MemorySample> {
    let usage = files.number("memory.usage_in_bytes")?;
    let stat = files.text("memory.stat")?;
    let of = |key| value_of(&stat, key).unwrap_or(0);
    let limit_of = |key| value_of(&stat, key).filter(|&l| l < UNLIMITED_FROM);
    let limit = limit_of("hierarchical_memory_limit");
    Some(MemorySample {
        usage,
        working_set: usage.saturating_sub(of("total_inactive_file")),
        rss: of("total_rss"),
        limit,
        swap: value_of(&stat, "total_swap"),
        swap_limit: limit_of("hierarchical_memsw_limit").map(|both| both.saturating_sub(limit.unwrap_or(0))),
        page_faults: of("total_pgfault"),
        major_page_faults: of("total_pgmajfault"),
    })
}

/// The number after `key` in lines of "key number".
fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// "some avg10=0.00 avg60=0.02 avg300=0.36 total=57095942", and the same for "full". Unknown words are passed over.
fn parse_pressure(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split(' ');
        let slot = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => slot.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => slot.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => slot.avg300 = value.parse().unwrap_or(0.0),
                "total" => slot.total_us = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    pressure
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;
    use rustix::fs::{CWD, Mode, OFlags, openat};

    #[test]
    fn keys_are_whole_words() {
        let text = "inactive_file 5\ninactive 7\nfile 9\n";
        assert_eq!(value_of(text, "inactive"), Some(7));
        assert_eq!(value_of(text, "file"), Some(9));
        assert_eq!(value_of(text, "act"), None);
    }

    #[test]
    fn pressure_is_read_as_the_kernel_writes_it() {
        let pressure = parse_pressure(
            "some avg10=1.50 avg60=0.02 avg300=0.36 total=57095942\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
        );
        assert_eq!(pressure.some.avg10, 1.5);
        assert_eq!(pressure.some.total_us, 57_095_942);
        assert_eq!(pressure.full.total_us, 9);
        assert_eq!(parse_pressure("nonsense\nsome x=y"), Pressure::default());
    }

    #[test]
    fn memory_of_v2_and_v1_is_read_from_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = openat(CWD, dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let files = Files { root: root.as_fd(), path: "" };
        assert_eq!(memory_v2(&files), None);
        put("memory.current", "1000\n");
        put("memory.max", "max\n");
        put("memory.stat", "anon 300\nfile 600\ninactive_file 400\npgfault 7\npgmajfault 2\n");
        let v2 = memory_v2(&files).unwrap();
        assert_eq!((v2.usage, v2.working_set, v2.rss, v2.limit, v2.swap), (1000, 600, 300, None, None));
        assert_eq!((v2.page_faults, v2.major_page_faults), (7, 2));
        put("memory.max", "4096\n");
        assert_eq!(memory_v2(&files).unwrap().limit, Some(4096));

        put("memory.usage_in_bytes", "1000\n");
        let v1_stat = "rss 1\ninactive_file 1\nhierarchical_memory_limit 8192\n\
                       hierarchical_memsw_limit 9223372036854771712\ntotal_rss 200\ntotal_inactive_file 1500\n\
                       total_swap 5\ntotal_pgfault 3\n";
        put("memory.stat", v1_stat);
        let v1 = memory_v1(&files).unwrap();
        assert_eq!((v1.working_set, v1.rss, v1.limit, v1.swap, v1.swap_limit), (0, 200, Some(8192), Some(5), None));
    }
}
