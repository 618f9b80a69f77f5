//! Limits in systemd's words: which property of a scope says what a cgroup file says.
//!
//! systemd writes a unit's cgroup files anew whenever it reloads or somebody sets a property of the unit, so what it
//! has a word for must be said in its words. What it has none for is given back, to be written into the files.
//! Nothing here asks systemd or the kernel.

use knarr_model::resources::Setting;
use knarr_sys::device_filter::{MKNOD, READ, Rule, WRITE};
use zbus::Variant;

/// "No limit", in every property that is a number.
const INFINITY: u64 = u64::MAX;

/// Microseconds in a second: quotas are CPU time per second.
const SECOND_US: u64 = 1_000_000;

/// One percent of a CPU per second, in microseconds: what a unit's file on disk can say.
const PERCENT_US: u64 = SECOND_US / 100;

/// Most CPUs or memory nodes that a list may name: the largest that Linux can be built for is below this.
const CPUS_MAX: usize = 1 << 16;

/// The process that keeps a scope counts too, and the container may not have one process less for it.
const KEEPERS: u64 = 1;

/// A property and its value.
pub type Property = (&'static str, Variant<'static>);

/// Settings for one scope.
#[derive(Debug, Default)]
pub struct Translated {
    /// What systemd has words for.
    pub properties: Vec<Property>,
    /// What it has none for.
    pub rest: Vec<Setting>,
}

/// Translates the settings of a container, of which a later one wins over an earlier one of the same file.
pub fn translate(settings: Vec<Setting>) -> Translated {
    let mut out = Translated::default();
    for setting in settings {
        match property(&setting) {
            Some(properties) => {
                for (name, value) in properties {
                    out.properties.retain(|(known, _)| *known != name);
                    out.properties.push((name, value));
                }
            }
            None => out.rest.push(setting),
        }
    }
    out
}

/// What a scope is given beyond its limits: accounting as cgroupfs has it, and no limit of processes where the
/// container has none, which is not systemd's own default.
pub fn defaults(properties: &[Property]) -> Vec<Property> {
    let mut all: Vec<Property> = ["CPUAccounting", "IOAccounting", "MemoryAccounting", "TasksAccounting"]
        .map(|n| (n, Variant::new(true)))
        .into();
    if !properties.iter().any(|(name, _)| *name == "TasksMax") {
        all.push(("TasksMax", Variant::new(INFINITY)));
    }
    all
}

/// `None` where systemd has no word for the file, or not for this value.
fn property(setting: &Setting) -> Option<Vec<Property>> {
    let value = setting.value.trim();
    let number = |name| Some(vec![(name, Variant::new(limit(value)?))]);
    match setting.file.as_str() {
        "cpu.weight" => number("CPUWeight"),
        // A weight of nothing is how systemd spells an idle group; the files of one that is not idle say so anyway.
        "cpu.idle" if value == "1" => Some(vec![("CPUWeight", Variant::new(0u64))]),
        "cpu.max" => quota(value),
        "cpuset.cpus" => Some(vec![("AllowedCPUs", Variant::new(mask(value)?))]),
        "cpuset.mems" => Some(vec![("AllowedMemoryNodes", Variant::new(mask(value)?))]),
        "io.weight" => {
            Some(vec![("IOWeight", Variant::new(value.strip_prefix("default ").unwrap_or(value).parse::<u64>().ok()?))])
        }
        "memory.min" => number("MemoryMin"),
        "memory.low" => number("MemoryLow"),
        "memory.high" => number("MemoryHigh"),
        "memory.max" => number("MemoryMax"),
        "memory.swap.max" => number("MemorySwapMax"),
        "pids.max" => {
            let tasks = limit(value)?;
            Some(vec![("TasksMax", Variant::new(tasks.saturating_add(KEEPERS)))])
        }
        _ => None,
    }
}

fn limit(value: &str) -> Option<u64> {
    if value == "max" { Some(INFINITY) } else { value.parse().ok() }
}

/// "20000 100000", "max", "max 50000". The unit's file holds whole percents of a CPU: a quota between two is rounded
/// up, and the container's own cgroup, within, has the exact one.
fn quota(value: &str) -> Option<Vec<Property>> {
    let mut words = value.split_whitespace();
    let (quota, period) = (words.next()?, words.next().unwrap_or("100000").parse::<u64>().ok()?);
    let per_second = match quota {
        "max" => INFINITY,
        quota => {
            let quota: u64 = quota.parse().ok()?;
            let exact = u128::from(quota) * u128::from(SECOND_US) / u128::from(period.max(1));
            u64::try_from(exact).ok()?.max(1).checked_next_multiple_of(PERCENT_US)?
        }
    };
    Some(vec![("CPUQuotaPeriodUSec", Variant::new(period)), ("CPUQuotaPerSecUSec", Variant::new(per_second))])
}

/// "0-3,7" as bits, the lowest first.
fn mask(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= CPUS_MAX {
            return None;
        }
        if bits.len() <= last / 8 {
            bits.resize(last / 8 + 1, 0);
        }
        (first..=last).for_each(|cpu| bits[cpu / 8] |= 1 << (cpu % 8));
    }
    Some(bits)
}

/// The devices of a container, which may use these and no others. `major_names` is /proc/devices.
///
/// `None` where a rule cannot be said in systemd's words: then none may be, because systemd would forbid what the
/// container is to have. The filter in the container's own cgroup has them all in any case.
pub fn devices(rules: &[Rule], major_names: &str) -> Option<Vec<Property>> {
    let allowed: Option<Vec<(String, String)>> = rules
        .iter()
        .map(|rule| {
            let ways = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
            let access: String = ways.iter().filter(|(bit, _)| rule.access & bit != 0).map(|(_, way)| way).collect();
            Some((device(rule, major_names)?, access))
        })
        .collect();
    Some(vec![("DevicePolicy", Variant::new("strict")), ("DeviceAllow", Variant::new(allowed?))])
}

fn device(rule: &Rule, major_names: &str) -> Option<String> {
    let (kind, heading) = if rule.block { ("block", "Block devices:") } else { ("char", "Character devices:") };
    match (rule.major, rule.minor) {
        (Some(major), Some(minor)) => Some(format!("/dev/{kind}/{major}:{minor}")),
        (None, None) => Some(format!("{kind}-*")),
        (None, Some(_)) => None,
        (Some(major), None) => {
            let of_kind = major_names.lines().skip_while(|line| *line != heading).skip(1);
            let mut lines = of_kind.take_while(|line| !line.is_empty()).filter_map(|l| l.trim().split_once(' '));
            let (_, name) = lines.find(|(number, name)| number.parse() == Ok(major) && is_plain(name))?;
            // A name that stands for another number as well would allow that, too.
            let others = major_names.lines().filter_map(|l| l.trim().split_once(' '));
            let unique = others.filter(|(_, other)| *other == name).count() == 1;
            unique.then(|| format!("{kind}-{name}"))
        }
    }
}

/// systemd takes names as patterns.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_model::resources::{Resources, v2_files};

    fn unified(files: &[(&str, &str)]) -> Resources {
        let unified = files.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect();
        Resources { unified, ..Resources::default() }
    }

    #[test]
    fn what_kubelet_sends_is_said_in_properties() {
        let resources = Resources {
            cpu_shares: Some(512),
            cpu_period: Some(100_000),
            cpu_quota: Some(20_000),
            memory_limit: Some(64 << 20),
            memory_swap_limit: Some(64 << 20),
            cpuset_cpus: Some("0-1,9".into()),
            pids_limit: Some(100),
            ..unified(&[("memory.oom.group", "1"), ("memory.high", "60000000")])
        };
        let translated = translate(v2_files(&resources));
        assert_eq!(translated.rest.iter().map(|s| s.file.as_str()).collect::<Vec<_>>(), ["memory.oom.group"]);
        let expected: [Property; 8] = [
            ("CPUWeight", Variant::new(59u64)),
            ("CPUQuotaPeriodUSec", Variant::new(100_000u64)),
            ("CPUQuotaPerSecUSec", Variant::new(200_000u64)),
            ("AllowedCPUs", Variant::new(vec![0b11u8, 0b10])),
            ("MemoryMax", Variant::new(64u64 << 20)),
            ("MemorySwapMax", Variant::new(0u64)),
            ("TasksMax", Variant::new(101u64)),
            ("MemoryHigh", Variant::new(60_000_000u64)),
        ];
        assert_eq!(translated.properties, expected);
    }

    #[test]
    fn no_limit_is_infinity() {
        let resources =
            Resources { cpu_quota: Some(-1), memory_limit: Some(-1), pids_limit: Some(-1), ..Resources::default() };
        let properties = translate(v2_files(&resources)).properties;
        for name in ["CPUQuotaPerSecUSec", "MemoryMax", "TasksMax"] {
            let value = &properties.iter().find(|(n, _)| *n == name).unwrap().1;
            assert_eq!(*value, Variant::new(u64::MAX), "{name}");
        }
        let value_of = |of: &[Property]| defaults(of).into_iter().find(|(n, _)| *n == "TasksMax").map(|(_, v)| v);
        assert_eq!(value_of(&[]), Some(Variant::new(u64::MAX)), "systemd's own default is a share of the machine");
        assert_eq!(value_of(&properties), None);
    }

    #[test]
    fn a_quota_between_two_percents_is_rounded_up() {
        let per_second = |value: &str| quota(value).unwrap()[1].1.clone();
        assert_eq!(per_second("12345 100000"), Variant::new(130_000u64));
        assert_eq!(per_second("1000 100000"), Variant::new(10_000u64));
        assert_eq!(per_second("1 100000"), Variant::new(10_000u64));
        assert_eq!(per_second("250000"), Variant::new(2_500_000u64));
        assert_eq!(per_second("max 5000"), Variant::new(u64::MAX));
        assert!(quota("much").is_none());
    }

    #[test]
    fn a_file_that_the_client_names_wins_and_is_said_once() {
        let resources = Resources { memory_limit: Some(1 << 30), ..unified(&[("memory.max", "max")]) };
        let properties = translate(v2_files(&resources)).properties;
        let of_memory: Vec<_> = properties.iter().filter(|(n, _)| *n == "MemoryMax").collect();
        assert_eq!(of_memory, [&("MemoryMax", Variant::new(u64::MAX))]);
    }

    #[test]
    fn what_cannot_be_said_is_left_to_the_files() {
        for (file, value) in [("cpu.idle", "0"), ("io.weight", "8:0 50"), ("memory.max", "10G"), ("cpu.max.burst", "1")]
        {
            let translated = translate(v2_files(&unified(&[(file, value)])));
            assert!(translated.properties.is_empty(), "{file}");
            assert_eq!(translated.rest.len(), 1, "{file}");
        }
        assert_eq!(mask("3-1"), None);
        assert_eq!(mask("70000"), None);
    }

    const MAJORS: &str = "Character devices:\n  1 mem\n  4 /dev/vc/0\n  4 tty\n136 pts\n200 both\n\n\
                          Block devices:\n  8 sd\n201 both\n";

    fn rule(block: bool, major: Option<u32>, minor: Option<u32>) -> Rule {
        Rule { block, major, minor, access: READ | MKNOD }
    }

    #[test]
    fn devices_are_named_as_systemd_names_them() {
        let named = |block, major, minor| device(&rule(block, major, minor), MAJORS);
        assert_eq!(named(false, Some(1), Some(3)).unwrap(), "/dev/char/1:3");
        assert_eq!(named(true, None, None).unwrap(), "block-*");
        assert_eq!(named(false, Some(136), None).unwrap(), "char-pts");
        assert_eq!(named(false, Some(4), None).unwrap(), "char-tty", "a path is no name");
        assert_eq!(named(true, Some(8), None).unwrap(), "block-sd");
        for (block, major, minor) in [(true, Some(1), None), (false, None, Some(3)), (true, Some(201), None)] {
            assert_eq!(named(block, major, minor), None);
        }
        let properties = devices(&[rule(false, Some(1), Some(3))], MAJORS).unwrap();
        assert_eq!(properties[1].1, Variant::new(vec![("/dev/char/1:3".to_owned(), "rm".to_owned())]));
        assert!(devices(&[rule(false, Some(1), Some(3)), rule(false, Some(99), None)], MAJORS).is_none());
    }
}
