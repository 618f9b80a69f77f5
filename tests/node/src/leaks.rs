//! The leak oracle: everything that a pod may leave behind on a machine, as text that can be compared.
//!
//! What takes the kernel a moment (links that go with their namespace, processes that die) is asked for again until it
//! is gone or the time is up. The image store is not looked at: images stay by intention.

use crate::tree::{self, Driver};
use crate::{Outcome, eventually};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait, waitpid};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long things may take to be gone. Links follow their network namespace after up to 5 s, when knarr deletes them
/// by name; the rest is quick.
const GONE_LIMIT: Duration = Duration::from_secs(15);

/// Bytes of a file that was left which are shown.
const CONTENT_SHOWN: usize = 300;

/// Where hierarchies are mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The daemon runs and all pods are removed: nothing but what was there before.
    Pods,
    /// The daemon has ended as well. What it keeps for its next life by intention (its bridge, its rules, its
    /// directories) may stay; processes, mounts and cgroups of pods may not.
    Daemon,
}

/// One look at the machine: kinds of things, and what there is of each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Snapshot {
    /// Looks at everything. `daemon` is the process whose descriptors are counted.
    pub fn take(directory: &Path, daemon: Option<u32>) -> Outcome<Self> {
        reap();
        let cgroup = tree::parent(directory);
        let mut things = BTreeMap::from([
            ("mount", mounts()?),
            ("link", links()?),
            ("rule", rules()),
            ("cgroup", cgroups(&cgroup)),
            ("unit", units(directory)),
            ("process", processes(daemon)?),
            ("file", files(&directory.join("node"))),
        ]);
        if let Some(daemon) = daemon {
            things.insert("descriptor", descriptors(daemon)?);
        }
        Ok(Self { things })
    }

    fn more_than(&self, before: &Self, scope: Scope) -> Vec<String> {
        let none = BTreeSet::new();
        let mut more = Vec::new();
        for (kind, things) in &self.things {
            if scope == Scope::Daemon && !["process", "mount", "cgroup", "unit"].contains(kind) {
                continue;
            }
            for thing in things.difference(before.things.get(kind).unwrap_or(&none)) {
                more.push(format!("{kind}: {thing}"));
            }
        }
        more
    }
}

/// Compares until nothing is left of what was not there before.
pub async fn nothing_left(
    before: &Snapshot,
    directory: &Path,
    daemon: impl Fn() -> Option<u32>,
    scope: Scope,
) -> Outcome {
    let mut left = Vec::new();
    let clean = eventually("the node is clean", GONE_LIMIT, async || {
        left = Snapshot::take(directory, daemon())?.more_than(before, scope);
        Ok(left.is_empty().then_some(()))
    })
    .await;
    clean.map_err(|_| {
        let described: Vec<String> = left.iter().map(|thing| describe(directory, thing)).collect();
        format!("LEAKED ({scope:?}):\n  {}", described.join("\n  ")).into()
    })
}

/// With the beginning of a file's content, which says whose it is.
fn describe(directory: &Path, thing: &str) -> String {
    let content = thing.strip_prefix("file: ").and_then(|name| fs::read(directory.join("node").join(name)).ok());
    match content {
        Some(content) => format!("{thing}: {}", String::from_utf8_lossy(&content[..content.len().min(CONTENT_SHOWN)])),
        None => thing.to_owned(),
    }
}

/// The test is process 1 of its PID namespace, or takes the place of one: orphans are its to reap.
fn reap() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

/// Mount points with what is mounted there. The numbers of mounts differ from one look to the next and are left out.
fn mounts() -> Outcome<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mut mounts = BTreeSet::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let dash = fields.iter().position(|f| *f == "-").ok_or("mountinfo without a dash")?;
        // Pins are made in a shared mount of their directory on itself, which is the node's, as `ip netns` makes it.
        if !fields[4].ends_with("/node/run/netns") {
            mounts.insert(format!("{} on {} ({})", fields[3], fields[4], fields[dash + 1]));
        }
    }
    Ok(mounts)
}

fn links() -> Outcome<BTreeSet<String>> {
    let output = Command::new("ip").args(["-o", "link"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .map(|name| name.split('@').next().unwrap_or(name).to_owned());
    // The bridge is the node's, not a pod's.
    Ok(names.filter(|name| name != "knarr0" && name != "cni-node0").collect())
}

/// What is in sets, maps and chains of a pod's own. The frame, tables and base chains, knarr's and portmap's, may stay.
fn rules() -> BTreeSet<String> {
    let Ok(output) = Command::new("nft").args(["list", "ruleset"]).output() else { return BTreeSet::new() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut rules = BTreeSet::new();
    let mut open = false;
    for line in text.lines().map(str::trim) {
        open |= line.starts_with("elements = {");
        if open || line.starts_with("chain CNI-DN-") || line.contains("dnat to") && !line.contains("map") {
            rules.insert(line.to_owned());
        }
        open &= !line.contains('}');
    }
    rules
}

/// The cgroups below a parent, in every hierarchy, but for the parent itself and the place of the shims.
fn cgroups(parent: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for top in hierarchies() {
        let start = top.join(parent.trim_start_matches('/'));
        let mut directories = vec![start.clone()];
        while let Some(directory) = directories.pop() {
            let below = fs::read_dir(&directory).into_iter().flatten().flatten();
            for entry in below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
                directories.push(entry.path());
                if entry.path() != start.join("shims") {
                    found.insert(entry.path().display().to_string());
                }
            }
        }
    }
    found
}

fn hierarchies() -> Vec<PathBuf> {
    if Path::new(CGROUP_ROOT).join("cgroup.procs").exists() {
        return vec![CGROUP_ROOT.into()];
    }
    fs::read_dir(CGROUP_ROOT).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect()
}

/// Units of systemd, in whatever state, that bear the test's word or lie in a slice that does.
fn units(directory: &Path) -> BTreeSet<String> {
    if Driver::current() != Driver::Systemd {
        return BTreeSet::new();
    }
    let word = tree::word(directory);
    let show = ["show", "--property=Id,Slice,ActiveState,Result", "knarr*.scope", "knarr*.slice"];
    let Ok(output) = Command::new("systemctl").args(show).output() else { return BTreeSet::new() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let of_test = text.split("\n\n").filter(|unit| unit.contains(&word));
    of_test.map(|unit| unit.trim().replace('\n', " ")).collect()
}

/// Takes away what [`tree::kubelets`] names, as kubelet would.
pub fn remove_kubelets(directory: &Path) {
    match Driver::current() {
        Driver::Cgroupfs => remove_cgroups(&format!("{}/kubepods", tree::parent(directory))),
        Driver::Systemd => {
            let slice = format!("{}-kubepods.slice", tree::word(directory));
            let _ = Command::new("systemctl").args(["stop", &slice]).status();
        }
    }
}

/// Forgets the units of a test that failed; what lived in them is dead.
pub fn remove_units(directory: &Path) {
    for unit in units(directory) {
        let id = unit.split(' ').find_map(|property| property.strip_prefix("Id="));
        for verb in ["stop", "reset-failed"] {
            let _ = Command::new("systemctl").args(["--quiet", verb]).args(id).output();
        }
    }
}

/// Every process that came from the test, but itself and the daemon.
fn processes(daemon: Option<u32>) -> Outcome<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for pid in descendants(std::process::id())? {
        if Some(pid) == daemon {
            continue;
        }
        let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        found.insert(format!("{command}({})", stat.split(' ').take(4).collect::<Vec<_>>().join(" ")));
    }
    Ok(found)
}

/// The processes below one, at any depth. Orphans have become children of whoever reaps them.
fn descendants(of: u32) -> Outcome<Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let (Ok(pid), Ok(stat)) = (name.parse(), fs::read_to_string(format!("/proc/{name}/stat"))) else { continue };
        // "pid (command) state parent …", and the command may hold anything.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(pid);
    }
    let mut found = Vec::new();
    let mut left = vec![of];
    while let Some(pid) = left.pop() {
        let below = children.remove(&pid).unwrap_or_default();
        found.extend(&below);
        left.extend(below);
    }
    Ok(found)
}

/// Kills and reaps what tests that are over have left to this process; `alive` are the tests that are not.
pub fn kill_orphans(alive: &[u32]) {
    let orphans = descendants(std::process::id()).unwrap_or_default();
    let of_the_living: BTreeSet<u32> = alive.iter().flat_map(|pid| descendants(*pid).unwrap_or_default()).collect();
    for pid in orphans.into_iter().filter(|pid| !alive.contains(pid) && !of_the_living.contains(pid)) {
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// Kinds of the daemon's descriptors with their numbers: which socket is which changes, how many there are must not.
fn descriptors(daemon: u32) -> Outcome<BTreeSet<String>> {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{daemon}/fd"))? {
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let target = target.display().to_string();
        let kind = match target.split_once(":[") {
            Some((kind, _)) => kind.to_owned(),
            None => target,
        };
        *kinds.entry(kind).or_default() += 1;
    }
    // "kind #1", "kind #2", …: what is more than before shows up as a number that was not there.
    Ok(kinds.into_iter().flat_map(|(kind, n)| (1..=n).map(move |i| format!("{kind} #{i}"))).collect())
}

/// Everything below the node's root but what stays by intention.
fn files(root: &Path) -> BTreeSet<String> {
    const STAYS: [&str; 4] = ["state/images", "cli", "state/network/last-address", "state/network/cni/results"];
    let mut found = BTreeSet::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            if name == STAYS[0] || name == STAYS[1] {
                continue;
            }
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                directories.push(path);
            }
            if !STAYS.contains(&name.as_str()) {
                found.insert(name);
            }
        }
    }
    found
}

/// Kills what is in a cgroup and removes it, everywhere: for tests that failed.
pub fn remove_cgroups(parent: &str) {
    for _ in 0..100 {
        let mut left = false;
        for top in hierarchies() {
            let start = top.join(parent.trim_start_matches('/'));
            let _ = fs::write(start.join("cgroup.kill"), "1");
            let mut directories: Vec<PathBuf> = cgroups_below(&start);
            directories.push(start.clone());
            for directory in &directories {
                left |= directory.exists() && fs::remove_dir(directory).is_err();
            }
        }
        if !left {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("cannot remove the cgroup {parent}");
}

/// Children before their parents.
fn cgroups_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            found.extend(cgroups_below(&entry.path()));
            found.push(entry.path());
        }
    }
    found
}
