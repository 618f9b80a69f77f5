//! Pure tests of paths, and tests against this machine's kernel in a cgroup of their own. The latter need root.

use super::group::ancestors;
use super::*;
use knarr_model::ExecId;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Waits for what is async.
fn now<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// A default parent of its own, removed at the end of the test whatever happened.
struct Ground {
    cgroups: Cgroups,
    pod: PodId,
}

impl Ground {
    fn new(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making cgroups needs root");
            return None;
        }
        let instance = format!("knarr-test-{}-{name}", std::process::id());
        let config = CgroupConfig { driver: Some(Driver::Cgroupfs), parent: String::new(), instance };
        let (cgroups, warnings) = now(Cgroups::open(&config)).unwrap();
        eprintln!("{:?} {warnings:?}", cgroups.layout());
        Some(Self { cgroups, pod: PodId::from_bytes(&[7; 32]) })
    }

    fn container(&self, resources: &Resources) -> ContainerCgroup {
        let pod = now(self.cgroups.create_pod("", &self.pod)).unwrap();
        let id = ContainerId::from_bytes(&[9; 32]);
        now(self.cgroups.create_container(&pod, &id, resources, &DeviceAccess::All)).unwrap()
    }

    fn paths_left(&self) -> Vec<String> {
        let shared = &self.cgroups.shared;
        shared.roots().flat_map(|root| sys::children(root, &shared.parent_default).unwrap_or_default()).collect()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = self.cgroups.group(self.cgroups.shared.parent_default.clone()).remove();
    }
}

/// Runs a shell in a cgroup, the way the shim's child enters it on v1 and, for want of clone3 here, on v2 as well.
fn shell_in(fds: CgroupFds, leaf: &str, script: &str) -> Child {
    let mut enter: Vec<String> = vec![format!("echo 0 > {leaf}/cgroup.procs")];
    let fds_v1: Vec<_> = fds.v1_tasks.iter().map(|fd| rustix::io::dup(fd).unwrap()).collect();
    for fd in &fds_v1 {
        use std::os::fd::AsRawFd;
        enter.push(format!("echo 0 > /proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()));
    }
    let script = format!("{}; {script}", enter.join("; "));
    let child = Command::new("/bin/sh")
        .args(["-ec", &script])
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The descriptors must be open while the child writes through /proc.
    std::mem::forget(fds_v1);
    child
}

fn tree_path(cgroups: &Cgroups, path: &str) -> String {
    let tree = &cgroups.shared.hierarchies.tree;
    format!("{}{path}", tree.mount_point.as_ref().unwrap().display())
}

fn read(cgroups: &Cgroups, controller: &str, path: &str, v1: &str, v2: &str) -> Option<String> {
    let shared = &cgroups.shared;
    let file = if shared.tree_has(controller) { v2 } else { v1 };
    let root = shared.place_of(controller)?;
    Some(sys::read(root, &join(path.trim_start_matches('/'), file)).unwrap().trim().to_owned())
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn ancestors_are_listed_from_the_root_down() {
    assert_eq!(ancestors("a/b/c").collect::<Vec<_>>(), ["", "a", "a/b"]);
    assert_eq!(ancestors("a").collect::<Vec<_>>(), [""]);
}

#[test]
fn limits_read_back_as_they_were_set() {
    let Some(ground) = Ground::new("limits") else { return };
    let cgroup = ground.container(&Resources {
        cpu_shares: Some(512),
        cpu_period: Some(50_000),
        cpu_quota: Some(25_000),
        memory_limit: Some(64 << 20),
        memory_swap_limit: Some(64 << 20),
        pids_limit: Some(33),
        cpuset_cpus: Some("0".into()),
        hugepage_limits: [("2MB".into(), 0), ("3MB".into(), 0)].into(),
        ..Default::default()
    });
    let get = |controller, v1, v2| read(&ground.cgroups, controller, &cgroup.path(), v1, v2);
    if let Some(shares) = get("cpu", "cpu.shares", "cpu.weight") {
        assert!(["512", "59"].contains(&shares.as_str()), "{shares}");
        assert!(["25000", "25000 50000"].contains(&get("cpu", "cpu.cfs_quota_us", "cpu.max").unwrap().as_str()));
    }
    if let Some(limit) = get("memory", "memory.limit_in_bytes", "memory.max") {
        assert_eq!(limit, (64 << 20).to_string());
    }
    if let Some(limit) = get("pids", "pids.max", "pids.max") {
        assert_eq!(limit, "33");
    }
    if let Some(cpus) = get("cpuset", "cpuset.cpus", "cpuset.cpus") {
        assert_eq!(cpus, "0");
        assert!(!get("cpuset", "cpuset.mems", "cpuset.mems.effective").unwrap().is_empty());
    }
    now(cgroup.remove()).unwrap();
    now(cgroup.remove()).unwrap();
}

#[test]
fn limits_are_raised_and_lowered_and_a_refused_change_changes_nothing() {
    let Some(ground) = Ground::new("update") else { return };
    let mut wanted = Resources {
        memory_limit: Some(64 << 20),
        cpu_period: Some(100_000),
        cpu_quota: Some(50_000),
        ..Default::default()
    };
    let cgroup = ground.container(&wanted);
    let limit = || read(&ground.cgroups, "memory", &cgroup.path(), "memory.limit_in_bytes", "memory.max");
    for mib in [128i64, 32, 64] {
        wanted.memory_limit = Some(mib << 20);
        now(cgroup.update(&wanted)).unwrap();
        if let Some(limit) = limit() {
            assert_eq!(limit, (mib << 20).to_string());
        }
    }
    let before = limit();
    let refused = Resources { memory_limit: Some(96 << 20), cpuset_cpus: Some("100000".into()), ..wanted.clone() };
    if ground.cgroups.has("cpuset") {
        let error = now(cgroup.update(&refused)).unwrap_err();
        assert!(error.message.contains("cpuset.cpus") && error.message.contains("100000"), "{error}");
        assert_eq!(limit(), before);
    }
}

#[test]
fn a_tree_that_forks_is_killed_whole_and_removed() {
    let Some(ground) = Ground::new("kill") else { return };
    let cgroup = ground.container(&Resources::default());
    let path = tree_path(&ground.cgroups, &cgroup.path());
    let mut child =
        shell_in(cgroup.plan_fds().unwrap(), &path, "(setsid sleep 1000 &); trap '' TERM; sleep 1000 & sleep 1000");
    wait_for("four processes", || cgroup.processes().unwrap().len() >= 3);
    cgroup.kill().unwrap();
    wait_for("no process", || cgroup.processes().unwrap().iter().all(|&pid| pid == child.id()));
    child.wait().unwrap();
    now(cgroup.remove()).unwrap();
    let pod = ground.cgroups.pod("", &ground.pod).unwrap();
    now(pod.remove()).unwrap();
    now(pod.remove()).unwrap();
    assert_eq!(ground.paths_left(), Vec::<String>::new());
}

#[test]
fn removal_kills_what_is_left_and_what_lives_in_cgroups_below() {
    let Some(ground) = Ground::new("remove") else { return };
    let cgroup = ground.container(&Resources::default());
    let leaf = cgroup.exec_leaf(ExecId(1)).unwrap();
    let leaf_path = format!("{}/knarr-exec-1", tree_path(&ground.cgroups, &cgroup.path()));
    let mut child = shell_in(leaf.plan_fds().unwrap(), &leaf_path, "sleep 1000");
    wait_for("the exec runs", || leaf.is_populated());
    leaf.remove();
    assert!(leaf.is_populated(), "a leaf with a process in it stays");
    // Somebody must reap the child, or v1 keeps its cgroup.
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    now(cgroup.remove()).unwrap();
    reaper.join().unwrap();
    assert!(cgroup.exec_leaf(ExecId(2)).unwrap_err().message.contains("not running"));
}

#[test]
fn an_exec_is_killed_without_its_container() {
    let Some(ground) = Ground::new("exec") else { return };
    let cgroup = ground.container(&Resources::default());
    let path = tree_path(&ground.cgroups, &cgroup.path());
    let mut init = shell_in(cgroup.plan_fds().unwrap(), &path, "sleep 1000");
    let leaf = cgroup.exec_leaf(ExecId(3)).unwrap();
    let mut exec = shell_in(leaf.plan_fds().unwrap(), &format!("{path}/knarr-exec-3"), "sleep 1000 & sleep 1000");
    wait_for("both run", || leaf.is_populated() && cgroup.processes().unwrap().len() >= 4);
    leaf.kill().unwrap();
    exec.wait().unwrap();
    wait_for("the exec is gone", || !leaf.is_populated());
    assert!(init.try_wait().unwrap().is_none(), "the container goes on");
    leaf.remove();
    let again = cgroup.exec_leaf(ExecId(3)).unwrap();
    again.remove();
    cgroup.kill().unwrap();
    init.wait().unwrap();
}

#[test]
fn a_second_exec_of_the_same_number_gets_a_leaf_of_its_own() {
    let Some(ground) = Ground::new("twice") else { return };
    let cgroup = ground.container(&Resources::default());
    let first = cgroup.exec_leaf(ExecId(0)).unwrap();
    let second = cgroup.exec_leaf(ExecId(0)).unwrap();
    assert_ne!(first.path(), second.path());
}

#[test]
fn the_oom_killer_is_counted() {
    let Some(ground) = Ground::new("oom") else { return };
    if !ground.cgroups.has("memory") {
        eprintln!("skipped: no memory controller");
        return;
    }
    let cgroup = ground.container(&Resources { memory_limit: Some(16 << 20), ..Default::default() });
    assert_eq!(cgroup.oom_kills(), 0);
    let path = tree_path(&ground.cgroups, &cgroup.path());
    let mut child = shell_in(cgroup.plan_fds().unwrap(), &path, "exec tail /dev/zero");
    child.wait().unwrap();
    assert!(cgroup.oom_kills() >= 1);
    let by_name =
        ground.cgroups.container(&ground.cgroups.pod("", &ground.pod).unwrap(), &ContainerId::from_bytes(&[9; 32]));
    assert_eq!(by_name.oom_kills(), cgroup.oom_kills());
}

#[test]
fn use_is_sampled() {
    let Some(ground) = Ground::new("sample") else { return };
    let cgroup = ground.container(&Resources { memory_limit: Some(64 << 20), ..Default::default() });
    let path = tree_path(&ground.cgroups, &cgroup.path());
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 1000";
    let mut child = shell_in(cgroup.plan_fds().unwrap(), &path, script);
    wait_for("CPU time", || cgroup.sample().cpu_usage_ns.is_some_and(|ns| ns > 1_000_000));
    let sample = cgroup.sample();
    if let Some(memory) = sample.memory {
        assert!(memory.usage > 0 && memory.working_set <= memory.usage, "{memory:?}");
        assert_eq!(memory.limit, Some(64 << 20));
        // The kernel adds up the counters of memory.stat every two seconds.
        wait_for("page faults", || cgroup.sample().memory.is_some_and(|memory| memory.page_faults > 0));
    }
    let started = Instant::now();
    for _ in 0..40 {
        std::hint::black_box(cgroup.sample());
    }
    eprintln!("40 samples: {:?}", started.elapsed());
    cgroup.kill().unwrap();
    child.wait().unwrap();
    now(cgroup.remove()).unwrap();
    assert_eq!(cgroup.sample(), Sample::default());
}

#[test]
fn devices_are_denied_unless_they_are_listed() {
    let Some(ground) = Ground::new("devices") else { return };
    let Some(root) = ground.cgroups.shared.v1_root("devices") else {
        eprintln!("skipped: no v1 devices controller");
        return;
    };
    let pod = now(ground.cgroups.create_pod("", &ground.pod)).unwrap();
    let id = ContainerId::from_bytes(&[3; 32]);
    let only = DeviceAccess::Only(vec!["c 1:3 rwm".into()]);
    let cgroup = now(ground.cgroups.create_container(&pod, &id, &Resources::default(), &only)).unwrap();
    let list = sys::read(root, &join(cgroup.path().trim_start_matches('/'), "devices.list")).unwrap();
    assert_eq!(list.trim(), "c 1:3 rwm");
    let bad = DeviceAccess::Only(vec!["nonsense".into()]);
    let id = ContainerId::from_bytes(&[4; 32]);
    assert!(now(ground.cgroups.create_container(&pod, &id, &Resources::default(), &bad)).is_err());
    assert!(sys::read(root, &format!("{}/{id}/devices.list", pod.group.path)).is_err(), "nothing is left");
}

#[test]
fn a_given_parent_is_used_and_left() {
    let Some(ground) = Ground::new("given") else { return };
    let parent = format!("/{}/burstable/pod1", ground.cgroups.shared.parent_default);
    let pod = now(ground.cgroups.create_pod(&parent, &ground.pod)).unwrap();
    assert_eq!(pod.path(), parent);
    let id = ContainerId::from_bytes(&[5; 32]);
    let cgroup = now(ground.cgroups.create_container(&pod, &id, &Resources::default(), &DeviceAccess::All)).unwrap();
    assert_eq!(cgroup.path(), format!("{parent}/{id}"));
    assert!(!cgroup.v1_paths().is_empty() || ground.cgroups.layout() == sys::Layout::Unified);
    now(cgroup.remove()).unwrap();
    now(pod.remove()).unwrap();
    if let Some(memory) = ground.cgroups.shared.place_of("memory") {
        assert!(sys::open_dir(memory, &parent[1..]).is_ok(), "kubelet's cgroup is kubelet's");
    }
    assert!(now(ground.cgroups.create_pod("/kubepods.slice/kubepods-pod1.slice", &ground.pod)).is_err());
}

#[test]
fn a_shim_has_a_bound_of_its_own() {
    let Some(ground) = Ground::new("shim") else { return };
    let shim = ground.cgroups.shim(&ground.pod, None);
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    now(shim.take_in(child.id())).unwrap();
    if let Some(limit) = read(&ground.cgroups, "memory", &shim.path(), "memory.limit_in_bytes", "memory.max") {
        assert_eq!(limit, (32 << 20).to_string());
    }
    let processes = sys::processes(ground.cgroups.shared.tree(), &shim.path()[1..]).unwrap();
    assert_eq!(processes, [rustix::process::Pid::from_child(&child)]);
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    now(shim.remove()).unwrap();
    reaper.join().unwrap();
    now(ground.cgroups.close());
    for root in ground.cgroups.shared.roots() {
        assert!(sys::open_dir(root, &ground.cgroups.shared.parent_default).is_err());
    }
}
