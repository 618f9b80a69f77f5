//! A pod for a test: a shim in a temporary directory, a root file system that is a detached mount with one static
//! program in it, a cgroup where there is one to be had. Nothing of it is visible in the host's mount table.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use knarr_daemon::shim_client::{
    Attached, Events, PodUp, ShimClient, StartError, StartedContainer, StartedExec, sealed_executable,
};
use knarr_model::plan::{
    CgroupPlan, ContainerPlan, ExecPlan, Exit, FdIndex, Namespace, PodPlan, ProcessPlan, StdioPlan,
};
use knarr_model::{ContainerId, Error, ExecId, PodId};
use knarr_wire::cri_log::{Stream, parse};
use knarr_wire::shim::{AttachId, Event};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// How long a test waits for what must come.
pub const SOON: Duration = Duration::from_secs(20);

/// Says why a test does nothing, if so.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: starting containers needs root");
            return;
        }
    };
}

pub struct TestPod {
    pub directory: tempfile::TempDir,
    pub id: PodId,
    pub client: ShimClient,
    pub events: Events,
    /// Events that a test has heard while it waited for another.
    heard: Vec<Event>,
    shim: ShimProcess,
    cgroups: Cgroups,
}

/// A client of a container, with our ends of its pipes.
pub struct Client {
    pub id: AttachId,
    pub attached: Attached,
    pub stdout: Option<File>,
    pub stderr: Option<File>,
}

/// Which streams a client asks for: stdin, stdout, stderr.
type Streams = [bool; 3];

/// Also after a test that failed: the shim does not go on living.
struct ShimProcess {
    pid: u32,
    pod: PodId,
}

impl Drop for ShimProcess {
    fn drop(&mut self) {
        let line = std::fs::read_to_string(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        if line.contains(self.pod.as_str())
            && let Some(pid) = rustix::process::Pid::from_raw(self.pid as i32)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Nor does what it started.
#[derive(Default)]
struct Cgroups(Vec<PathBuf>);

impl Drop for Cgroups {
    fn drop(&mut self) {
        for cgroup in &self.0 {
            let _ = std::fs::write(cgroup.join("cgroup.kill"), "1");
            let deadline = Instant::now() + SOON;
            while std::fs::remove_dir(cgroup).is_err() && cgroup.exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

impl TestPod {
    /// A shim with its pod set up.
    pub async fn start() -> Self {
        let pod = Self::without_pod().await;
        pod.set_up().await.unwrap();
        pod
    }

    /// A shim, connected, and nothing more.
    pub async fn without_pod() -> Self {
        Self::of_executable(Path::new(env!("CARGO_BIN_EXE_knarr-shim"))).await
    }

    /// A shim that is executed from `path`.
    pub async fn of_executable(path: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let id = PodId::from_bytes(&unique());
        let exe = sealed_executable(path).unwrap();
        let log = File::create(directory.path().join("shim.log")).unwrap();
        let (client, events) = ShimClient::spawn(exe.as_fd(), &id, directory.path(), Some(log)).await.unwrap();
        let shim = ShimProcess { pid: client.shim().pid, pod: id.clone() };
        Self { directory, id, client, events, heard: Vec::new(), shim, cgroups: Cgroups::default() }
    }

    pub async fn set_up(&self) -> Result<PodUp, StartError> {
        self.set_up_with(|_| ()).await
    }

    pub async fn set_up_with(&self, change: impl FnOnce(&mut PodPlan)) -> Result<PodUp, StartError> {
        let run_dir = File::open(self.directory.path()).unwrap();
        let base_mount_ns = knarr_sys::namespace::make_base_mount_ns().unwrap();
        let mut plan = PodPlan {
            id: self.id.clone(),
            base_mount_ns: FdIndex(0),
            run_dir: FdIndex(1),
            new_net: true,
            new_ipc: true,
            new_uts: true,
            shared_pid: false,
            hostname: b"pod".to_vec(),
            sysctls: vec![],
            shm_size: 1 << 20,
            files: vec![],
            shim_oom_score_adj: 0,
            user: None,
        };
        change(&mut plan);
        self.client.set_up_pod(plan, vec![base_mount_ns, run_dir.into()]).await
    }

    /// Gives the connection up and takes a new one, as a daemon does that was started again.
    pub async fn reconnect(self) -> Self {
        self.reconnect_when("nothing", || true).await
    }

    /// The same, with nobody connected until `condition` holds.
    pub async fn reconnect_when(self, what: &str, condition: impl FnMut() -> bool) -> Self {
        let Self { directory, id, client, events, heard, shim, cgroups } = self;
        drop((client, events, heard));
        until(what, condition).await;
        let (client, events) = ShimClient::connect(&id, directory.path()).await.unwrap();
        Self { directory, id, client, events, heard: Vec::new(), shim, cgroups }
    }

    /// A container that runs the program with `args` and logs to [`TestPod::log_path`].
    pub fn plan(&self, args: &[&str]) -> ContainerPlan {
        let id = ContainerId::from_bytes(&unique());
        let log_path = self.log_path(&id).into_os_string().into_encoded_bytes();
        ContainerPlan {
            pid_ns: Namespace::Own,
            net_ns: Namespace::Pod,
            ipc_ns: Namespace::Pod,
            uts_ns: Namespace::Pod,
            new_cgroup_ns: false,
            rootfs: FdIndex(0),
            read_only_rootfs: false,
            mounts: vec![
                mount(b"/proc", b"proc", b""),
                mount(b"/dev", b"tmpfs", b""),
                mount(b"/dev/pts", b"devpts", b"newinstance,ptmxmode=0666,mode=0620"),
            ],
            devices: vec![],
            links: vec![(b"/dev/ptmx".to_vec(), b"pts/ptmx".to_vec())],
            masked_paths: vec![],
            readonly_paths: vec![],
            cgroup: CgroupPlan { into: FdIndex(1), v1_tasks: vec![] },
            process: process(args),
            stdio: StdioPlan { log_path, stdin: false, stdin_once: false },
            user_ns: Namespace::Pod,
            id,
        }
    }

    pub fn log_path(&self, id: &ContainerId) -> PathBuf {
        self.directory.path().join(format!("{id}.log"))
    }

    /// Starts what [`TestPod::plan`] gave.
    pub async fn start_container(&mut self, plan: &ContainerPlan) -> Result<StartedContainer, StartError> {
        let fds = vec![root_file_system(), self.cgroup(plan.id.short())];
        self.client.start_container(plan.clone(), fds).await
    }

    /// Starts a container that runs the program with `args`.
    pub async fn run(&mut self, args: &[&str]) -> (ContainerId, StartedContainer) {
        let plan = self.plan(args);
        let started = self.start_container(&plan).await.unwrap();
        (plan.id, started)
    }

    /// Runs the program with `args` in a container; gives our ends of its input and output.
    pub async fn exec(&mut self, container: &ContainerId, args: &[&str]) -> (ExecId, StartedExec, File, File) {
        let (stdin, our_stdin) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (our_stdout, stdout) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut plan = self.exec_plan(container, args);
        (plan.stdin, plan.stdout) = (Some(FdIndex(1)), Some(FdIndex(2)));
        let fds = vec![self.cgroup(&format!("exec-{}", plan.id.0)), stdin, stdout, root_file_system()];
        let started = self.client.exec(plan.clone(), fds).await.unwrap();
        (plan.id, started, our_stdin.into(), our_stdout.into())
    }

    /// Attaches to a container.
    pub async fn attach(&self, container: &ContainerId, streams: Streams) -> Result<Client, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = AttachId(NEXT.fetch_add(1, Ordering::Relaxed));
        let pipe =
            |wanted: bool| wanted.then(|| rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()).unzip();
        let (our_stdout, stdout) = pipe(streams[1]);
        let (our_stderr, stderr) = pipe(streams[2]);
        let attached = self.client.attach(container.clone(), id, streams[0], stdout, stderr).await?;
        let (stdout, stderr) = (our_stdout.map(File::from), our_stderr.map(File::from));
        Ok(Client { id, attached, stdout, stderr })
    }

    /// Waits until the shim has ended an attach; gives whether the client fell behind.
    pub async fn end_of(&mut self, id: AttachId) -> bool {
        let wanted = |event: &Event| match event {
            Event::AttachEnded { attach, fell_behind } if *attach == id => Some(*fell_behind),
            _ => None,
        };
        self.hear(wanted).await
    }

    /// How many descriptors the shim has.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.shim.pid)).unwrap().count()
    }

    /// The same when it has closed what went with requests and replies before.
    pub async fn settled_descriptors(&self) -> usize {
        self.client.ping().await.unwrap();
        self.descriptors()
    }

    pub fn exec_plan(&self, container: &ContainerId, args: &[&str]) -> ExecPlan {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        ExecPlan {
            id: ExecId(NEXT.fetch_add(1, Ordering::Relaxed)),
            container: container.clone(),
            cgroup: CgroupPlan { into: FdIndex(0), v1_tasks: vec![] },
            process: process(args),
            stdin: None,
            stdout: None,
            stderr: None,
        }
    }

    /// A cgroup of the test's own. It lies in the cgroup2 hierarchy, which every host has.
    pub fn cgroup(&mut self, name: &str) -> OwnedFd {
        let hierarchy = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .find(|path| Path::new(path).join("cgroup.procs").exists())
            .expect("a cgroup2 hierarchy");
        let path = Path::new(hierarchy).join(format!("knarr-shim-test-{}-{name}", self.id.short()));
        std::fs::create_dir(&path).unwrap();
        let directory = File::open(&path).unwrap();
        self.cgroups.0.push(path);
        directory.into()
    }

    /// Waits for the end of a container.
    pub async fn exit_of(&mut self, container: &ContainerId) -> Exit {
        let wanted = |event: &Event| match event {
            Event::Exited { container: id, exit } if id == container => Some(*exit),
            _ => None,
        };
        self.hear(wanted).await
    }

    /// Waits for the end of the pod's init.
    pub async fn exit_of_pod_init(&mut self) -> Exit {
        let wanted = |event: &Event| match event {
            Event::PodInitExited { exit } => Some(*exit),
            _ => None,
        };
        self.hear(wanted).await
    }

    /// Waits for the end of an exec.
    pub async fn exec_exit_of(&mut self, id: ExecId) -> Exit {
        let wanted = |event: &Event| match event {
            Event::ExecExited { exec, exit } if *exec == id => Some(*exit),
            _ => None,
        };
        self.hear(wanted).await
    }

    /// What has been heard so far: everything that was sent before what was waited for last.
    pub fn heard(&self) -> &[Event] {
        &self.heard
    }

    async fn hear<T>(&mut self, wanted: impl Fn(&Event) -> Option<T>) -> T {
        if let Some(found) = self.heard.iter().find_map(&wanted) {
            return found;
        }
        loop {
            let event = tokio::time::timeout(SOON, self.events.next()).await.expect("an event").expect("a connection");
            let found = wanted(&event);
            self.heard.push(event);
            if let Some(found) = found {
                return found;
            }
        }
    }

    pub fn log(&self, container: &ContainerId) -> Vec<u8> {
        std::fs::read(self.log_path(container)).unwrap()
    }

    /// Ends the shim, whatever runs, and with it the test.
    pub async fn stop(mut self) {
        // The answer comes after the events: both are waited for.
        let events = async { while self.events.next().await.is_some() {} };
        let (answer, end) = tokio::join!(self.client.shutdown(true), tokio::time::timeout(SOON, events));
        answer.unwrap();
        end.expect("the shim closes its connection");
        let process = PathBuf::from(format!("/proc/{}", self.shim.pid));
        until("the shim is reaped", || !process.exists()).await;
        let log = std::fs::read_to_string(self.directory.path().join("shim.log")).unwrap();
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a container wrote to one of its outputs, as a reader of its log sees it.
pub fn output(log: &[u8], stream: Stream) -> String {
    let mut text = Vec::new();
    for line in log.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let record = parse(line).unwrap_or_else(|| panic!("no record: {:?}", String::from_utf8_lossy(line)));
        if record.stream == stream {
            text.extend_from_slice(record.content);
            if !record.partial {
                text.push(b'\n');
            }
        }
    }
    String::from_utf8(text).unwrap()
}

/// A tmpfs that is mounted nowhere.
pub fn detached_tmpfs(size: &str) -> OwnedFd {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    rustix::mount::fsconfig_set_string(&context, "size", size).unwrap();
    rustix::mount::fsconfig_set_string(&context, "mode", "0755").unwrap();
    rustix::mount::fsconfig_create(&context).unwrap();
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
}

/// A root file system with `/program` in it.
pub fn root_file_system() -> OwnedFd {
    let root = detached_tmpfs("8m");
    for directory in ["proc", "dev", "tmp"] {
        rustix::fs::mkdirat(&root, directory, Mode::from_raw_mode(0o755)).unwrap();
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(&root, "program", flags, Mode::from_raw_mode(0o755)).unwrap());
    file.write_all(program()).unwrap();
    root
}

/// A path of a descriptor of this process that another process can open.
pub fn path_of(fd: &OwnedFd) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()).into()
}

fn program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        compile(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shim/program.c"), &program);
        std::fs::read(&program).unwrap()
    })
}

/// Compiles a static program.
pub fn compile(source: &str, program: &Path) {
    let mut compiler = std::process::Command::new("cc");
    let shim = format!("-DSHIM=\"{}\"", env!("CARGO_BIN_EXE_knarr-shim"));
    compiler.args(["-static", "-O1", "-s", &shim, "-o"]).arg(program).arg(source);
    assert!(compiler.status().expect("a C compiler").success());
}

fn process(args: &[&str]) -> ProcessPlan {
    let args = std::iter::once("/program").chain(args.iter().copied()).map(|arg| arg.as_bytes().to_vec());
    ProcessPlan {
        args: args.collect(),
        env: vec![b"PATH=/".to_vec()],
        cwd: b"/".to_vec(),
        umask: 0o022,
        ..ProcessPlan::default()
    }
}

fn mount(target: &[u8], fstype: &[u8], options: &[u8]) -> knarr_model::plan::MountPlan {
    knarr_model::plan::MountPlan {
        target: target.to_vec(),
        kind: knarr_model::plan::MountKind::New { fstype: fstype.to_vec(), options: options.to_vec() },
        flags: 0,
    }
}

/// 32 bytes that no other call in any test process gives.
fn unique() -> [u8; 32] {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    bytes[8..12].copy_from_slice(&std::process::id().to_be_bytes());
    // The first digits are what people see: they must differ, too.
    bytes.rotate_left(6);
    bytes
}
