//! The scene of a test: a host in a private mount namespace, with cgroups, pods and root file systems made on demand.

use knarr_model::plan::{
    Capabilities, CgroupPlan, ContainerPlan, DevicePlan, ExecPlan, FdIndex, MountKind, MountPlan, Namespace, PodPlan,
    ProcessPlan, StartFailure, StdioPlan,
};
use knarr_model::{ContainerId, ExecId, IdMap, PodId, UserNamespace};
use knarr_runtime::{Child, PodNamespaces, PodUser, Started, Stdio};
use knarr_sys::mount::{self, Attributes};
use knarr_sys::process::{Ended, become_subreaper, copy_process, forbid_dumps, reap, reap_any, send_signal};
use knarr_sys::{namespace, thread};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub const MS_RDONLY: u64 = 1;
pub const MS_NOSUID: u64 = 2;
pub const MS_NODEV: u64 = 4;
pub const MS_NOEXEC: u64 = 8;
pub const MS_PRIVATE: u64 = 1 << 18;
pub const MS_SLAVE: u64 = 1 << 19;
pub const MS_SHARED: u64 = 1 << 20;

/// Start of the names of all cgroups that tests make.
const CGROUP_PREFIX: &str = "knarr-runtime-test-";

/// v1 hierarchies that tests put containers into, where the host has them.
const V1: [&str; 3] = ["pids", "memory", "devices"];

/// Default capabilities of a container, as the field has them.
pub const DEFAULT_CAPABILITIES: u64 = 0x0000_0000_a804_25fb;

/// Who is who in the pods of tests that have a user namespace; different for users and groups, to tell them apart.
pub const IDS: UserNamespace = UserNamespace {
    uids: IdMap { host: 100_000, container: 0, length: 65_536 },
    gids: IdMap { host: 200_000, container: 0, length: 65_536 },
};

pub struct Node {
    /// A tmpfs of this test's own.
    pub dir: PathBuf,
    probe: PathBuf,
    base: OwnedFd,
    unified: PathBuf,
    v1: Vec<PathBuf>,
    next: u64,
}

/// A container or an exec that has been started.
pub struct Running {
    pub child: Child,
    pub terminal: Option<OwnedFd>,
    stdout: Option<File>,
}

/// A container's plan with its descriptors.
pub struct Container {
    pub plan: ContainerPlan,
    pub fds: Vec<OwnedFd>,
    pub cgroup: String,
}

impl Node {
    pub fn new(probe: &Path) -> Self {
        forbid_dumps().unwrap();
        become_subreaper().unwrap();
        thread::enter_private_mount_namespace().unwrap();
        let dir = PathBuf::from("/mnt");
        let tmpfs = mount::new_filesystem(c"tmpfs", [(c"mode", c"0755")], Attributes::default()).unwrap();
        mount::place(tmpfs, mount::open_path(c"/mnt").unwrap()).unwrap();
        let name = format!("{CGROUP_PREFIX}{}", std::process::id());
        let unified = cgroup2().expect("cgroup2 is mounted").join(&name);
        fs::create_dir(&unified).unwrap();
        let v1: Vec<PathBuf> = V1
            .iter()
            .map(|controller| Path::new("/sys/fs/cgroup").join(controller))
            .filter(|path| path.join("tasks").exists())
            .map(|path| path.join(&name))
            .collect();
        v1.iter().for_each(|path| fs::create_dir(path).unwrap());
        let base = namespace::make_base_mount_ns().unwrap();
        wait_for_one_thread();
        Self { dir, probe: probe.to_owned(), base, unified, v1, next: 0 }
    }

    pub fn is_v1(&self) -> bool {
        !self.v1.is_empty()
    }

    fn next_id(&mut self) -> [u8; 32] {
        self.next += 1;
        let mut id = [0; 32];
        // In the first digits, by which cgroups are named.
        id[..4].copy_from_slice(&(self.next as u32).to_be_bytes());
        id
    }

    pub fn pod_plan(&mut self) -> PodPlan {
        PodPlan {
            id: PodId::from_bytes(&self.next_id()),
            base_mount_ns: FdIndex(0),
            run_dir: FdIndex(1),
            new_net: true,
            new_ipc: true,
            new_uts: true,
            shared_pid: false,
            hostname: b"pod-host".to_vec(),
            sysctls: Vec::new(),
            shm_size: 1 << 20,
            files: vec![(b"resolv.conf".to_vec(), b"nameserver 192.0.2.1\n".to_vec())],
            shim_oom_score_adj: 0,
            user: None,
        }
    }

    pub fn set_up(&self, plan: &PodPlan) -> Result<PodNamespaces, StartFailure> {
        let fds = [self.base.try_clone().unwrap(), open(&self.dir)];
        knarr_runtime::set_up_pod(plan, &fds)
    }

    pub fn pod(&mut self) -> PodNamespaces {
        let plan = self.pod_plan();
        self.set_up(&plan).unwrap()
    }

    pub fn pod_with_shared_pid(&mut self) -> PodNamespaces {
        let plan = PodPlan { shared_pid: true, ..self.pod_plan() };
        self.set_up(&plan).unwrap()
    }

    /// A pod with a user namespace.
    pub fn user_pod(&mut self) -> PodNamespaces {
        let plan = PodPlan { user: Some(IDS), ..self.pod_plan() };
        self.set_up(&plan).unwrap()
    }

    /// A container for a pod: if that has a user namespace, the files of its root are root's there.
    pub fn container_of(&mut self, pod: &PodNamespaces, commands: &[&str]) -> Container {
        let container = self.container(commands);
        let id_map = pod.user.as_ref().map(|user| user.namespace.as_fd());
        mount::set_attributes(&container.fds[0], true, Attributes { id_map, ..Attributes::default() }).unwrap();
        container
    }

    /// A new directory with the probe and what an image usually has.
    pub fn rootfs(&mut self) -> PathBuf {
        self.next += 1;
        let root = self.dir.join(format!("rootfs-{}", self.next));
        for dir in ["etc", "tmp", "bin"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::copy(&self.probe, root.join("bin/probe")).unwrap();
        fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/probe\n").unwrap();
        root
    }

    pub fn container(&mut self, commands: &[&str]) -> Container {
        let root = self.rootfs();
        self.container_on(&root, commands)
    }

    /// A container as kubelet would have it, on a root file system of the test's own.
    pub fn container_on(&mut self, root: &Path, commands: &[&str]) -> Container {
        let id = ContainerId::from_bytes(&self.next_id());
        let cgroup = id.short().to_owned();
        let mut fds = vec![mount::clone_of(open(root), true).unwrap()];
        let cgroup_plan = self.cgroup(&cgroup, &mut fds);
        let v1 = self.v1.iter().map(|path| {
            let name = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
            (name.as_bytes().to_vec(), path.join(&cgroup).to_str().unwrap().as_bytes().to_vec())
        });
        let plan = ContainerPlan {
            id,
            pid_ns: Namespace::Own,
            net_ns: Namespace::Pod,
            ipc_ns: Namespace::Pod,
            uts_ns: Namespace::Pod,
            new_cgroup_ns: true,
            rootfs: FdIndex(0),
            read_only_rootfs: false,
            mounts: default_mounts(v1.collect()),
            devices: default_devices(),
            links: default_links(),
            masked_paths: strings(&["/proc/kcore", "/proc/acpi", "/proc/timer_list", "/sys/firmware", "/proc/none"]),
            readonly_paths: strings(&["/proc/bus", "/proc/sys", "/proc/sysrq-trigger", "/proc/nowhere"]),
            cgroup: cgroup_plan,
            process: process(commands),
            stdio: StdioPlan::default(),
            user_ns: Namespace::Pod,
        };
        Container { plan, fds, cgroup }
    }

    /// A new cgroup `name` below the test's, with its descriptors put into `fds`.
    pub fn cgroup(&self, name: &str, fds: &mut Vec<OwnedFd>) -> CgroupPlan {
        let mut push = |fd: OwnedFd| {
            fds.push(fd);
            FdIndex(fds.len() as u32 - 1)
        };
        let dir = self.unified.join(name);
        fs::create_dir(&dir).unwrap();
        let into = push(open(&dir));
        let v1_tasks = self.v1.iter().map(|path| {
            fs::create_dir(path.join(name)).unwrap();
            push(File::options().write(true).open(path.join(name).join("tasks")).unwrap().into())
        });
        CgroupPlan { into, v1_tasks: v1_tasks.collect() }
    }

    /// Forbids a device to a container that has not been started; false where the host has no hierarchy for it.
    pub fn deny_device(&self, container: &Container, rule: &str) -> bool {
        let devices = self.v1.iter().find(|path| path.parent().is_some_and(|top| top.ends_with("devices")));
        let Some(devices) = devices else { return false };
        fs::write(devices.join(&container.cgroup).join("devices.deny"), rule).unwrap();
        true
    }

    /// Freezes the cgroup of a container that has not been started.
    pub fn freeze(&self, container: &Container) {
        fs::write(self.unified.join(&container.cgroup).join("cgroup.freeze"), "1").unwrap();
    }

    pub fn try_start(
        &self,
        pod: &PodNamespaces,
        container: &Container,
        target: Option<&Child>,
    ) -> Result<Running, StartFailure> {
        let (stdio, stdout) = stdio();
        let target = target.map(|child| child.pidfd.as_fd());
        let started = knarr_runtime::start_container(pod, &container.plan, &container.fds, stdio, target)?;
        Ok(Running::new(started, stdout))
    }

    pub fn start(&self, pod: &PodNamespaces, container: &Container) -> Running {
        self.try_start(pod, container, None).unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// Starts a container in a pod of its own and gives the lines it printed.
    pub fn lines(&mut self, container: &Container) -> Vec<String> {
        let pod = self.pod();
        self.start(&pod, container).lines()
    }

    pub fn failure(&mut self, container: &Container) -> StartFailure {
        let pod = self.pod();
        match self.try_start(&pod, container, None) {
            Ok(running) => panic!("it started: {:?}", running.lines()),
            Err(failure) => failure,
        }
    }

    pub fn exec_plan(&mut self, container: &Container, process: ProcessPlan) -> (ExecPlan, Vec<OwnedFd>) {
        self.next += 1;
        let mut fds = Vec::new();
        let cgroup = self.cgroup(&format!("{}/knarr-exec-{}", container.cgroup, self.next), &mut fds);
        let container = container.plan.id.clone();
        let id = ExecId(self.next);
        (ExecPlan { id, container, cgroup, process, stdin: None, stdout: None, stderr: None }, fds)
    }

    pub fn try_exec(
        &mut self,
        container: &Container,
        first: &Child,
        process: ProcessPlan,
    ) -> Result<Running, StartFailure> {
        self.try_exec_in(None, container, first, process)
    }

    pub fn try_exec_in(
        &mut self,
        user: Option<&PodUser>,
        container: &Container,
        first: &Child,
        process: ProcessPlan,
    ) -> Result<Running, StartFailure> {
        let (plan, fds) = self.exec_plan(container, process);
        let (stdio, stdout) = stdio();
        Ok(Running::new(knarr_runtime::exec(user, first.pidfd.as_fd(), &plan, &fds, stdio)?, stdout))
    }

    pub fn exec(&mut self, container: &Container, first: &Child, process: ProcessPlan) -> Running {
        self.try_exec(container, first, process).unwrap_or_else(|failure| panic!("{failure}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::write(self.unified.join("cgroup.kill"), "1");
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::read_to_string(self.unified.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"))
            && Instant::now() < deadline
        {
            while matches!(reap_any(), Ok(Some(_))) {}
            std::thread::sleep(Duration::from_millis(2));
        }
        while matches!(reap_any(), Ok(Some(_))) {}
        for top in self.v1.iter().chain([&self.unified]) {
            remove_cgroup(top);
        }
    }
}

impl Running {
    fn new(started: Started, stdout: File) -> Self {
        Self { child: started.child, terminal: started.terminal, stdout: Some(stdout) }
    }

    /// Everything it prints until all of its kind have closed their output.
    pub fn output(&mut self) -> String {
        let mut text = String::new();
        self.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// What it prints up to the end of the first line, while it goes on.
    pub fn first_line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        let stdout = self.stdout.as_mut().unwrap();
        while stdout.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    pub fn ended(&self) -> Ended {
        reap(&self.child.pidfd, true).unwrap().unwrap()
    }

    /// The lines it printed, once it has ended with status 0.
    pub fn lines(mut self) -> Vec<String> {
        let text = self.output();
        assert_eq!(self.ended(), Ended::Exited(0), "it printed: {text}");
        text.lines().map(str::to_owned).collect()
    }

    pub fn kill(self) -> Ended {
        send_signal(&self.child.pidfd, 9).unwrap();
        self.ended()
    }
}

/// stdin is /dev/null, stdout and stderr one pipe whose other end is given.
fn stdio() -> (Stdio, File) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stderr = write.try_clone().unwrap();
    (Stdio { stdin: File::open("/dev/null").unwrap().into(), stdout: write, stderr }, read.into())
}

pub fn process(commands: &[&str]) -> ProcessPlan {
    let mut args = strings(&["/bin/probe"]);
    args.extend(strings(commands));
    ProcessPlan {
        args,
        env: strings(&["PATH=/usr/bin:/bin", "NAME=value"]),
        cwd: b"/".to_vec(),
        umask: 0o022,
        capabilities: capabilities(DEFAULT_CAPABILITIES),
        ..ProcessPlan::default()
    }
}

pub fn capabilities(mask: u64) -> Capabilities {
    Capabilities { bounding: mask, effective: mask, permitted: mask, ambient: 0 }
}

pub fn strings(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()
}

pub fn bind(source: &Path, target: &str) -> MountPlan {
    let source = source.to_str().unwrap().as_bytes().to_vec();
    let kind = MountKind::Bind { source, propagation: MS_PRIVATE, recursive_flags: false, id_mapped: false };
    MountPlan { target: target.as_bytes().to_vec(), kind, flags: 0 }
}

pub fn new_mount(fstype: &str, target: &str, options: &str, flags: u64) -> MountPlan {
    let kind = MountKind::New { fstype: fstype.as_bytes().to_vec(), options: options.as_bytes().to_vec() };
    MountPlan { target: target.as_bytes().to_vec(), kind, flags }
}

fn default_mounts(v1: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<MountPlan> {
    let strict = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    let of_pod = |target: &str, kind| MountPlan { target: target.as_bytes().to_vec(), kind, flags: strict };
    vec![
        new_mount("proc", "/proc", "", strict),
        new_mount("tmpfs", "/dev", "mode=755,size=65536k", MS_NOSUID),
        new_mount("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620,gid=5", MS_NOSUID | MS_NOEXEC),
        new_mount("mqueue", "/dev/mqueue", "", strict),
        new_mount("sysfs", "/sys", "", strict | MS_RDONLY),
        MountPlan { target: b"/sys/fs/cgroup".to_vec(), kind: MountKind::Cgroup { v1 }, flags: strict | MS_RDONLY },
        of_pod("/dev/shm", MountKind::PodShm),
        of_pod("/etc/resolv.conf", MountKind::PodFile(b"resolv.conf".to_vec())),
    ]
}

fn default_devices() -> Vec<DevicePlan> {
    let numbers = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    let device = |&(name, major, minor): &(&str, u32, u32)| DevicePlan {
        path: format!("/dev/{name}").into_bytes(),
        kind: b'c',
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    numbers.iter().map(device).collect()
}

fn default_links() -> Vec<(Vec<u8>, Vec<u8>)> {
    let links = [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ];
    links.iter().map(|(path, target)| (path.as_bytes().to_vec(), target.as_bytes().to_vec())).collect()
}

/// Every name below a directory with what it is, its mode and its content: to see that nothing has changed.
pub fn tree(path: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for entry in entries {
        let meta = fs::symlink_metadata(&entry).unwrap();
        let content = if meta.is_file() { fs::read(&entry).unwrap() } else { Vec::new() };
        all.push(format!("{} {:o} {:?}", entry.display(), meta.permissions().mode(), content));
        if meta.is_dir() {
            all.extend(tree(&entry));
        }
    }
    all
}

/// A thread that has been joined counts as one of the process for a moment more, during which no copy can be made.
fn wait_for_one_thread() {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match copy_process(0, None, || 0) {
            Ok(copy) => return assert_eq!(reap(&copy.pidfd, true).unwrap(), Some(Ended::Exited(0))),
            Err(errno) => assert!(Instant::now() < deadline, "a second thread is still there: {errno}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Where the cgroup2 hierarchy is mounted, be it beside others or alone.
pub fn cgroup2() -> Option<PathBuf> {
    let both = [Path::new("/sys/fs/cgroup/unified"), Path::new("/sys/fs/cgroup")];
    let found = both.iter().find(|path| path.join("cgroup.procs").exists() && path.join("cgroup.controllers").exists());
    found.map(|path| path.to_path_buf())
}

fn remove_cgroup(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    // Busy for a moment after its last process was reaped.
    for _ in 0..200 {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(5));
            }
            _ => return,
        }
    }
}

pub fn cgroups_of_tests() -> Vec<String> {
    let tops = V1.iter().map(|controller| Path::new("/sys/fs/cgroup").join(controller)).chain(cgroup2());
    let mut found: Vec<String> = tops
        .flat_map(|top| fs::read_dir(top).into_iter().flatten().flatten())
        .map(|entry| entry.path().display().to_string())
        .filter(|path| path.contains(CGROUP_PREFIX))
        .collect();
    found.sort();
    found
}

pub fn processes_of_tests() -> Vec<String> {
    let names = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some(name.trim().to_owned())
    });
    names.filter(|name| name == "probe" || name == "knarr-init").collect()
}
