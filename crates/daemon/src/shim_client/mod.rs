//! One pod's shim, seen from the daemon: starts it or finds it again, calls it, hears its events. It decides nothing:
//! a failed call or a lost shim is an input of the pod's task.
//!
//! A task per connection owns the socket. Calls go to it over a bounded channel and overlap; each has a deadline, and
//! a connection that is lost fails all of them with [`ErrorKind::Unavailable`] and ends [`Events`]. A call that ran
//! into its deadline may still have worked: the pod's task asks with [`ShimClient::list_containers`] or ends the
//! container's cgroup.
//!
//! An event is heard in the order in which the shim sent it, but a reply goes another way: the exit of a container can
//! be heard before its [`ShimClient::start_container`] has returned.

mod connection;
pub mod probe;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use knarr_model::plan::{ContainerPlan, ExecPlan, FdIndex, PodPlan, StartFailure};
use knarr_model::{ContainerId, Error, ErrorKind, PodId};
use knarr_sys::mount::Attributes;
use knarr_wire::shim::{
    AttachId, AttachPlan, ContainerEntry, Event, Hello, PROTOCOL_VERSION, PodIsUp, Reply, Request, ShimIs,
};
use rustix::fs::{Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::PidfdFlags;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use connection::Caller;

/// The shim's socket in the pod's run-time directory.
pub const SOCKET: &str = "shim.sock";

/// A shim answers at once unless the node is out of CPU time or memory; then it takes a while to be started, too.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Namespaces take microseconds; a network namespace waits for the clean-up of others when many end at once.
const SET_UP_DEADLINE: Duration = Duration::from_secs(30);
/// Volumes and the program may lie on a network file system; kubelet itself gives StartContainer two minutes.
const START_DEADLINE: Duration = Duration::from_secs(100);
/// Like a start, without the mounts.
const EXEC_DEADLINE: Duration = Duration::from_secs(60);
/// Everything that is memory and small files. The shim does one thing after the other: a start may be before it.
const CALL_DEADLINE: Duration = Duration::from_secs(100);

/// Events that wait for the pod's task. The shim is not read from while there are as many: nothing is lost.
const EVENTS_WAITING: usize = 64;

/// Calls that wait for the connection's task.
const CALLS_WAITING: usize = 32;

/// Connections that wait at the socket of a shim that is being started.
const BACKLOG: i32 = 4;

/// A connected shim. Clones share the connection; it closes with the last of them, and the shim goes on.
#[derive(Debug, Clone)]
pub struct ShimClient {
    caller: Caller,
    shim: ShimIs,
}

/// What the shim says unasked. It must be read all the time, by somebody who does not wait for a call meanwhile: the
/// replies come after the events that the shim sent before them, and those wait when nobody reads.
#[derive(Debug)]
pub struct Events(mpsc::Receiver<Event>);

impl Events {
    /// The next event; `None` once the connection is lost and everything before that has been heard.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

/// The pod's descriptors.
#[derive(Debug, Default)]
pub struct PodUp {
    /// its network namespace; `None` is the host's
    pub net: Option<OwnedFd>,
    /// its IPC namespace; `None` is the host's
    pub ipc: Option<OwnedFd>,
    /// its UTS namespace; `None` is the host's
    pub uts: Option<OwnedFd>,
    /// its shared PID namespace, if it has one
    pub pid: Option<OwnedFd>,
    /// a pidfd of the init of that PID namespace
    pub pid_init: Option<OwnedFd>,
    /// its user namespace; `None` is the host's
    pub user: Option<OwnedFd>,
}

/// A container that was started.
#[derive(Debug)]
pub struct StartedContainer {
    /// of its first process, in the host's PID namespace
    pub pid: u32,
    /// nanoseconds since 1970
    pub started_at: i64,
    /// of its first process
    pub pidfd: OwnedFd,
}

/// An exec that was started.
#[derive(Debug)]
pub struct StartedExec {
    /// in the host's PID namespace
    pub pid: u32,
    /// of the same process
    pub pidfd: OwnedFd,
    /// the master of its terminal, if it has one
    pub terminal: Option<OwnedFd>,
}

/// What a client of a container's standard streams got.
#[derive(Debug)]
pub struct Attached {
    /// The container has a terminal, and the input is its master.
    pub terminal: bool,
    /// The terminal's master, or the write end of the pipe to stdin, with O_NONBLOCK. Dropping it ends nothing unless
    /// the container has `stdin_once` and no terminal: then it is the only one, and the container sees the end.
    ///
    /// A master is given for its size also where stdin was not asked for or `stdin_closed` is set; then it must not be
    /// written.
    pub input: Option<OwnedFd>,
    /// Stdin was asked for and is not there (any more).
    pub stdin_closed: bool,
}

/// All that a shim knows.
#[derive(Debug)]
pub struct ShimState {
    /// The pod, once it has been set up.
    pub pod: Option<PodUp>,
    /// Every container that was started and not forgotten; with the pidfd of those that run.
    pub containers: Vec<(ContainerEntry, Option<OwnedFd>)>,
}

/// Why something was not started.
#[derive(Debug)]
pub enum StartError {
    /// The runtime could not do it; nothing of it is left.
    Failed(StartFailure),
    /// The shim did not do it or did not answer.
    Shim(Error),
}

impl From<Error> for StartError {
    fn from(error: Error) -> Self {
        Self::Shim(error)
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(failure) => failure.fmt(f),
            Self::Shim(error) => error.fmt(f),
        }
    }
}

/// A copy of the mount of `path` that nothing is mounted on and that nobody can write through, opened for executing.
///
/// A container can reach the executable of a process that joins it, as /proc/<pid>/exe: through this copy it is
/// read-only, whoever opens it.
pub fn sealed_executable(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, path, flags)?;
    let read_only = Attributes { set: knarr_sys::mount::RDONLY, ..Attributes::default() };
    knarr_sys::mount::set_attributes(&tree, false, read_only)?;
    Ok(tree)
}

impl ShimClient {
    /// Starts the shim of `pod` and connects to it.
    ///
    /// `exe` is what [`sealed_executable`] gave. `run_dir` is the pod's run-time directory, 0700; the socket is made
    /// in it; where a shim listens already, the call fails. `log` takes what the shim has to complain about; nothing in it is needed later.
    pub async fn spawn(
        exe: BorrowedFd<'_>,
        pod: &PodId,
        run_dir: &Path,
        log: Option<File>,
    ) -> Result<(Self, Events), Error> {
        let failed = |error: io::Error| unavailable(pod, format_args!("start: {error}"));
        let exe = exe.try_clone_to_owned().map_err(failed)?;
        let (id, directory) = (pod.clone(), run_dir.to_owned());
        // posix_spawn returns after the execve, and that may wait for a disk.
        let spawned = tokio::task::spawn_blocking(move || spawn_blocking(&exe, &id, &directory, log)).await;
        let (child, pidfd) = spawned.map_err(|error| failed(error.into()))?.map_err(failed)?;
        let pidfd = watched(pidfd).map_err(failed)?;
        tokio::spawn(reap(child, pidfd, pod.clone()));
        Self::connect(pod, run_dir).await
    }

    /// Connects to the shim of `pod` that an earlier daemon has left. Takes the place of whoever is connected.
    pub async fn connect(pod: &PodId, run_dir: &Path) -> Result<(Self, Events), Error> {
        let failed = |error: io::Error| unavailable(pod, format_args!("connect: {error}"));
        let socket = connect(run_dir).map_err(failed)?;
        let socket = watched(socket).map_err(failed)?;
        let (events, receiver) = mpsc::channel(EVENTS_WAITING);
        let caller = Caller::start(socket, pod.clone(), CALLS_WAITING, events);
        let hello = Hello { protocol_version: PROTOCOL_VERSION, release: env!("CARGO_PKG_VERSION").to_owned() };
        match caller.call(Request::Hello(hello), Vec::new(), HELLO_DEADLINE).await? {
            (Reply::ShimIs(shim), _) => Ok((Self { caller, shim }, Events(receiver))),
            (reply, _) => Err(caller.unexpected(reply)),
        }
    }

    /// Who the shim says it is.
    pub fn shim(&self) -> &ShimIs {
        &self.shim
    }

    /// The connection is lost; every call fails.
    pub fn is_closed(&self) -> bool {
        self.caller.is_closed()
    }

    /// Makes the pod's namespaces; once in a shim's life.
    pub async fn set_up_pod(&self, plan: PodPlan, fds: Vec<OwnedFd>) -> Result<PodUp, StartError> {
        match self.caller.call(Request::SetUpPod(plan), fds, SET_UP_DEADLINE).await? {
            (Reply::PodIsUp(flags), fds) => {
                let mut fds = fds.into_iter();
                let pod = pod_up(flags, &mut fds);
                pod.ok_or_else(|| self.caller.lacks_descriptors().into())
            }
            (reply, _) => Err(self.not_started(reply)),
        }
    }

    /// Starts a container.
    pub async fn start_container(
        &self,
        plan: ContainerPlan,
        fds: Vec<OwnedFd>,
    ) -> Result<StartedContainer, StartError> {
        match self.caller.call(Request::StartContainer(plan), fds, START_DEADLINE).await? {
            (Reply::Started { pid, started_at }, fds) => {
                let pidfd = fds.into_iter().next().ok_or_else(|| self.caller.lacks_descriptors())?;
                Ok(StartedContainer { pid, started_at, pidfd })
            }
            (reply, _) => Err(self.not_started(reply)),
        }
    }

    /// Starts one more process in a container. It is ended some seconds after this connection.
    pub async fn exec(&self, plan: ExecPlan, fds: Vec<OwnedFd>) -> Result<StartedExec, StartError> {
        match self.caller.call(Request::Exec(plan), fds, EXEC_DEADLINE).await? {
            (Reply::ExecStarted { pid, terminal: has_terminal }, fds) => {
                let mut fds = fds.into_iter();
                let pidfd = fds.next().ok_or_else(|| self.caller.lacks_descriptors())?;
                let terminal = fds.next();
                if has_terminal && terminal.is_none() {
                    return Err(self.caller.lacks_descriptors().into());
                }
                Ok(StartedExec { pid, pidfd, terminal })
            }
            (reply, _) => Err(self.not_started(reply)),
        }
    }

    /// Lets a client see what a container writes from now on and, with `stdin`, write to it.
    ///
    /// `stdout` and `stderr` are write ends of pipes. Once one is full the container waits for it, within bounds, and
    /// then the client is cut off. Ask for no `stderr` of a container with a terminal. `attach` must not have been used
    /// on this connection before: [`Event::AttachEnded`] with it says that the shim has ended the attach, and is heard
    /// before the pipes end. It can be heard before this has returned. The daemon ends an attach by closing its read
    /// ends.
    ///
    /// [`ErrorKind::FailedPrecondition`] when the container does not run, [`ErrorKind::ResourceExhausted`] when the
    /// pod has as many attached clients as a shim takes.
    pub async fn attach(
        &self,
        container: ContainerId,
        attach: AttachId,
        stdin: bool,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> Result<Attached, Error> {
        let mut fds = Vec::with_capacity(2);
        let mut place = |end: Option<OwnedFd>| {
            end.map(|end| {
                fds.push(end);
                FdIndex(fds.len() as u32 - 1)
            })
        };
        let (stdout, stderr) = (place(stdout), place(stderr));
        let plan = AttachPlan { attach, container, stdin, stdout, stderr };
        match self.caller.call(Request::Attach(plan), fds, CALL_DEADLINE).await? {
            (Reply::Attached(attached), fds) => {
                let input = fds.into_iter().next();
                if attached.input != input.is_some() {
                    return Err(self.caller.lacks_descriptors());
                }
                Ok(Attached { terminal: attached.terminal, input, stdin_closed: attached.stdin_closed })
            }
            (reply, _) => Err(self.caller.unexpected(reply)),
        }
    }

    /// Opens a container's log at its path again. When this fails, no new file was made.
    pub async fn reopen_log(&self, container: ContainerId) -> Result<(), Error> {
        self.done(Request::ReopenLog(container)).await
    }

    /// All that the shim knows: after [`ShimClient::connect`].
    pub async fn list_containers(&self) -> Result<ShimState, Error> {
        match self.caller.call(Request::ListContainers, Vec::new(), CALL_DEADLINE).await? {
            (Reply::Containers(list), fds) => {
                let mut fds = fds.into_iter();
                let pod = pod_up(list.pod, &mut fds).ok_or_else(|| self.caller.lacks_descriptors())?;
                let mut containers = Vec::with_capacity(list.containers.len());
                for entry in list.containers {
                    let pidfd = if entry.exit.is_none() { fds.next() } else { None };
                    if entry.exit.is_none() && pidfd.is_none() {
                        return Err(self.caller.lacks_descriptors());
                    }
                    containers.push((entry, pidfd));
                }
                Ok(ShimState { pod: list.is_up.then_some(pod), containers })
            }
            (reply, _) => Err(self.caller.unexpected(reply)),
        }
    }

    /// Drops what the shim knows of a container that has ended, and its exit record.
    pub async fn forget_container(&self, container: ContainerId) -> Result<(), Error> {
        self.done(Request::ForgetContainer(container)).await
    }

    /// Ends the shim; returns when it has reaped everything. Refused ([`ErrorKind::FailedPrecondition`]) while
    /// containers run, unless `force`, which kills them.
    pub async fn shutdown(&self, force: bool) -> Result<(), Error> {
        self.done(Request::Shutdown { force }).await
    }

    /// Returns when the shim has answered.
    pub async fn ping(&self) -> Result<(), Error> {
        self.done(Request::Ping).await
    }

    async fn done(&self, request: Request) -> Result<(), Error> {
        match self.caller.call(request, Vec::new(), CALL_DEADLINE).await? {
            (Reply::Done, _) => Ok(()),
            (reply, _) => Err(self.caller.unexpected(reply)),
        }
    }

    fn not_started(&self, reply: Reply) -> StartError {
        match reply {
            Reply::StartFailed(failure) => StartError::Failed(failure),
            reply => StartError::Shim(self.caller.unexpected(reply)),
        }
    }
}

fn pod_up(flags: PodIsUp, fds: &mut impl Iterator<Item = OwnedFd>) -> Option<PodUp> {
    let mut take = |there: bool| if there { fds.next().map(Some) } else { Some(None) };
    Some(PodUp {
        net: take(flags.net)?,
        ipc: take(flags.ipc)?,
        uts: take(flags.uts)?,
        pid: take(flags.pid)?,
        pid_init: take(flags.pid_init)?,
        user: take(flags.user)?,
    })
}

fn unavailable(pod: &PodId, what: std::fmt::Arguments<'_>) -> Error {
    Error::new(ErrorKind::Unavailable, format!("shim of pod {}: {what}", pod.short()))
}

/// Makes the socket and executes the shim, which is listening from its first instruction on: there is no time at which
/// a connection fails because it is not ready.
///
/// Nothing runs in the child before the execve but what posix_spawn does: this process has many threads, and a fork of
/// it could only deadlock.
fn spawn_blocking(exe: &OwnedFd, pod: &PodId, run_dir: &Path, log: Option<File>) -> io::Result<(Child, OwnedFd)> {
    let (_directory, address) = address(run_dir)?;
    // Two shims of one pod would each know half of it.
    if connect(run_dir).is_ok() {
        return Err(io::Error::other("there is one already"));
    }
    match rustix::fs::unlink(run_dir.join(SOCKET)) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&listener, &address)?;
    rustix::net::listen(&listener, BACKLOG)?;
    let child = Command::new(format!("/proc/self/fd/{}", exe.as_raw_fd()))
        .arg0("knarr-shim")
        .args(["--pod", pod.as_str()])
        .env_clear()
        .current_dir(run_dir)
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(log.map_or_else(Stdio::null, Stdio::from))
        .spawn()?;
    let pid = rustix::process::Pid::from_child(&child);
    // Nobody else waits for this child, so its pid is still its own.
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
    Ok((child, pidfd))
}

/// The address of the socket in `run_dir`, as long as the descriptor is kept: an address has room for 108 bytes of
/// path, which a run-time directory of one's own choice can pass.
fn address(run_dir: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(run_dir, flags, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))?;
    Ok((directory, address))
}

fn connect(run_dir: &Path) -> io::Result<OwnedFd> {
    let (_directory, address) = address(run_dir)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Hands a descriptor to the reactor.
#[expect(
    deprecated,
    reason = "its successor is an unsafe fn only because a type could change its descriptor; an OwnedFd cannot"
)]
pub(crate) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

/// Takes the exit status of a shim that this daemon has started: else it would stay a zombie.
async fn reap(mut child: Child, pidfd: AsyncFd<OwnedFd>, pod: PodId) {
    loop {
        let Ok(mut ready) = pidfd.readable().await else { return };
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return,
            Ok(Some(status)) => return tracing::warn!(pod = pod.as_str(), %status, "shim ended"),
            Ok(None) => ready.clear_ready(),
            Err(error) => return tracing::warn!(pod = pod.as_str(), %error, "wait for shim"),
        }
    }
}
