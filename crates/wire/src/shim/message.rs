//! The requests, replies and events, and what descriptors go with each. It says nothing of packets or sockets.
//!
//! | request | descriptors | reply | descriptors |
//! |---|---|---|---|
//! | [`Request::Hello`] | | [`Reply::ShimIs`] | |
//! | [`Request::SetUpPod`] | those of the plan | [`Reply::PodIsUp`] | as its flags say, in order |
//! | [`Request::StartContainer`] | those of the plan | [`Reply::Started`] | pidfd |
//! | [`Request::Exec`] | those of the plan | [`Reply::ExecStarted`] | pidfd, then the terminal if there is one |
//! | [`Request::ListContainers`] | | [`Reply::Containers`] | the pod's as its flags say, then a pidfd of each running container |
//! | [`Request::Attach`] | those of the plan | [`Reply::Attached`] | the input as its flag says |
//! | the others | | [`Reply::Done`] | |
//!
//! Every request can be answered by [`Reply::Refused`]; the three that start something also by [`Reply::StartFailed`],
//! and an attach by [`Reply::Exhausted`].

use knarr_model::plan::{ContainerPlan, ExecPlan, Exit, FdIndex, PodPlan, StartFailure};
use knarr_model::{ContainerId, ExecId, PodId};

use super::codec::{Malformed, Reader, Wire, Writer, wire_struct};

/// What the daemon asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Says which version the daemon speaks; the first request of a connection.
    Hello(Hello),
    /// Makes the pod's namespaces; once in a shim's life.
    SetUpPod(PodPlan),
    /// Starts a container.
    StartContainer(ContainerPlan),
    /// Starts one more process in a container. It belongs to this connection and ends some seconds after it.
    Exec(ExecPlan),
    /// Opens the container's log at its path again. When this fails, no new file was made.
    ReopenLog(ContainerId),
    /// All that the shim knows: for a daemon that has just started.
    ListContainers,
    /// Drops what is known of a container that has ended, its exit record and what is left of its log pipes.
    ForgetContainer(ContainerId),
    /// Ends the shim, and the pod's init with it. The reply comes when nothing is left.
    Shutdown {
        /// Kill the containers that still run; without it the request is refused while there are any.
        force: bool,
    },
    /// Nothing but an answer.
    Ping,
    /// Lets a client see what a running container writes from now on, and write to its stdin.
    Attach(AttachPlan),
}

/// Introduces the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// [`super::PROTOCOL_VERSION`] of the daemon.
    pub protocol_version: u32,
    /// The daemon's release, for a person.
    pub release: String,
}

/// Names an attach in [`Event::AttachEnded`]. Its daemon chooses it; none is used twice on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttachId(pub u64);

/// One client of a container's standard streams.
///
/// `stdout` and `stderr` are write ends of pipes that the daemon reads, without O_NONBLOCK or with it: the shim sets
/// it. The pipe is all the buffer there is. A client whose pipe does not take everything at once is cut off there, and
/// what it could read until then has no hole. When the last reader of one of the pipes closes, the attach is over, and
/// nothing is told. An attach without outputs leaves nothing behind in the shim: it has no end either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachPlan {
    /// For its end.
    pub attach: AttachId,
    /// Which container; it must run.
    pub container: ContainerId,
    /// The client wants to write to stdin.
    pub stdin: bool,
    /// Takes what the container writes to stdout or to its terminal.
    pub stdout: Option<FdIndex>,
    /// Takes what it writes to stderr; refused when it has a terminal.
    pub stderr: Option<FdIndex>,
}

/// What the shim answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It is done.
    Done,
    /// It is not done, and why. Nothing has changed.
    Refused(String),
    /// To [`Request::Hello`].
    ShimIs(ShimIs),
    /// To [`Request::SetUpPod`].
    PodIsUp(PodIsUp),
    /// To [`Request::StartContainer`].
    Started {
        /// in the host's PID namespace
        pid: u32,
        /// nanoseconds since 1970
        started_at: i64,
    },
    /// To [`Request::Exec`].
    ExecStarted {
        /// in the host's PID namespace
        pid: u32,
        /// the master of its terminal follows the pidfd
        terminal: bool,
    },
    /// A pod, container or exec could not be started; what was begun is undone.
    StartFailed(StartFailure),
    /// To [`Request::ListContainers`].
    Containers(ContainerList),
    /// To [`Request::Attach`].
    Attached(Attached),
    /// It is not done because the shim has as many as it can have, and of what. Nothing has changed.
    Exhausted(String),
}

/// What a client got with its attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attached {
    /// The container has a terminal: the input is its master, for writing and for its size.
    pub terminal: bool,
    /// The input follows: the terminal's master, or the write end of the pipe to stdin. It has O_NONBLOCK. The master
    /// is given whether stdin was asked for or not; where it was not, or `stdin_closed` is set, it must not be written.
    pub input: bool,
    /// Stdin was asked for and is not there: the container was started without, has closed it with its terminal, or
    /// has a `stdin_once` that another client took.
    pub stdin_closed: bool,
}

/// Introduces the shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShimIs {
    /// [`super::PROTOCOL_VERSION`] of the shim.
    pub protocol_version: u32,
    /// The shim's release, for a person.
    pub release: String,
    /// The shim's process.
    pub pid: u32,
    /// The pod, once it has been set up.
    pub pod: Option<PodId>,
}

/// Which descriptors of the pod follow, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodIsUp {
    /// its network namespace
    pub net: bool,
    /// its IPC namespace
    pub ipc: bool,
    /// its UTS namespace
    pub uts: bool,
    /// its shared PID namespace
    pub pid: bool,
    /// a pidfd of the init of that PID namespace
    pub pid_init: bool,
    /// its user namespace
    pub user: bool,
}

impl PodIsUp {
    /// How many descriptors the flags announce.
    pub fn fds(&self) -> usize {
        [self.net, self.ipc, self.uts, self.pid, self.pid_init, self.user].into_iter().filter(|&there| there).count()
    }
}

/// All that the shim knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerList {
    /// The pod has been set up.
    pub is_up: bool,
    /// Its descriptors.
    pub pod: PodIsUp,
    /// Every container that was started and not forgotten.
    pub containers: Vec<ContainerEntry>,
}

/// One container as the shim knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEntry {
    /// which
    pub id: ContainerId,
    /// of its first process, in the host's PID namespace
    pub pid: u32,
    /// nanoseconds since 1970
    pub started_at: i64,
    /// how it ended; `None` while it runs, and then its pidfd follows
    pub exit: Option<Exit>,
    /// the shim holds a pipe to its stdin
    pub stdin_open: bool,
}

/// What the shim says unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A container's first process has ended. Its exit record is on disk, and its output in the log unless something
    /// else still holds the pipe.
    Exited {
        /// which
        container: ContainerId,
        /// how
        exit: Exit,
    },
    /// An exec of this connection has ended.
    ExecExited {
        /// which
        exec: ExecId,
        /// how
        exit: Exit,
    },
    /// The init of the pod's PID namespace has ended, and everything in that namespace with it.
    PodInitExited {
        /// how
        exit: Exit,
    },
    /// The shim has ended an attach that was asked for on this connection. What its pipes hold is still to be read;
    /// they are closed after this was sent.
    AttachEnded {
        /// which
        attach: AttachId,
        /// The container has waited for it for too long, and it misses what comes after what its pipes hold. Otherwise
        /// the container's outputs have ended, or the container has, and everything is in the pipes.
        fell_behind: bool,
    },
}

wire_struct!(Hello { protocol_version, release });
wire_struct!(AttachPlan { attach, container, stdin, stdout, stderr });
wire_struct!(Attached { terminal, input, stdin_closed });
wire_struct!(ShimIs { protocol_version, release, pid, pod });
wire_struct!(PodIsUp { net, ipc, uts, pid, pid_init, user });
wire_struct!(ContainerList { is_up, pod, containers });
wire_struct!(ContainerEntry { id, pid, started_at, exit, stdin_open });

impl Wire for AttachId {
    fn put(&self, out: &mut Writer) {
        self.0.put(out);
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self(u64::take(input)?))
    }
}

impl Wire for Request {
    fn put(&self, out: &mut Writer) {
        match self {
            Self::Hello(hello) => out.variant(0, |out| hello.put(out)),
            Self::SetUpPod(plan) => out.variant(1, |out| plan.put(out)),
            Self::StartContainer(plan) => out.variant(2, |out| plan.put(out)),
            Self::Exec(plan) => out.variant(3, |out| plan.put(out)),
            Self::ReopenLog(container) => out.variant(4, |out| container.put(out)),
            Self::ListContainers => out.variant(5, |_| ()),
            Self::ForgetContainer(container) => out.variant(6, |out| container.put(out)),
            Self::Shutdown { force } => out.variant(7, |out| force.put(out)),
            Self::Ping => out.variant(8, |_| ()),
            Self::Attach(plan) => out.variant(9, |out| plan.put(out)),
        }
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (tag, mut fields) = input.variant()?;
        match tag {
            0 => Ok(Self::Hello(fields.field()?)),
            1 => Ok(Self::SetUpPod(fields.field()?)),
            2 => Ok(Self::StartContainer(fields.field()?)),
            3 => Ok(Self::Exec(fields.field()?)),
            4 => Ok(Self::ReopenLog(fields.field()?)),
            5 => Ok(Self::ListContainers),
            6 => Ok(Self::ForgetContainer(fields.field()?)),
            7 => Ok(Self::Shutdown { force: fields.field()? }),
            8 => Ok(Self::Ping),
            9 => Ok(Self::Attach(fields.field()?)),
            tag => Err(Malformed::Variant(tag)),
        }
    }
}

impl Wire for Reply {
    fn put(&self, out: &mut Writer) {
        match self {
            Self::Done => out.variant(0, |_| ()),
            Self::Refused(why) => out.variant(1, |out| why.put(out)),
            Self::ShimIs(shim) => out.variant(2, |out| shim.put(out)),
            Self::PodIsUp(pod) => out.variant(3, |out| pod.put(out)),
            Self::Started { pid, started_at } => out.variant(4, |out| {
                pid.put(out);
                started_at.put(out);
            }),
            Self::ExecStarted { pid, terminal } => out.variant(5, |out| {
                pid.put(out);
                terminal.put(out);
            }),
            Self::StartFailed(failure) => out.variant(6, |out| failure.put(out)),
            Self::Containers(list) => out.variant(7, |out| list.put(out)),
            Self::Attached(attached) => out.variant(8, |out| attached.put(out)),
            Self::Exhausted(what) => out.variant(9, |out| what.put(out)),
        }
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (tag, mut fields) = input.variant()?;
        match tag {
            0 => Ok(Self::Done),
            1 => Ok(Self::Refused(fields.field()?)),
            2 => Ok(Self::ShimIs(fields.field()?)),
            3 => Ok(Self::PodIsUp(fields.field()?)),
            4 => Ok(Self::Started { pid: fields.field()?, started_at: fields.field()? }),
            5 => Ok(Self::ExecStarted { pid: fields.field()?, terminal: fields.field()? }),
            6 => Ok(Self::StartFailed(fields.field()?)),
            7 => Ok(Self::Containers(fields.field()?)),
            8 => Ok(Self::Attached(fields.field()?)),
            9 => Ok(Self::Exhausted(fields.field()?)),
            tag => Err(Malformed::Variant(tag)),
        }
    }
}

impl Wire for Event {
    fn put(&self, out: &mut Writer) {
        match self {
            Self::Exited { container, exit } => out.variant(0, |out| {
                container.put(out);
                exit.put(out);
            }),
            Self::ExecExited { exec, exit } => out.variant(1, |out| {
                exec.put(out);
                exit.put(out);
            }),
            Self::PodInitExited { exit } => out.variant(2, |out| exit.put(out)),
            Self::AttachEnded { attach, fell_behind } => out.variant(3, |out| {
                attach.put(out);
                fell_behind.put(out);
            }),
        }
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (tag, mut fields) = input.variant()?;
        match tag {
            0 => Ok(Self::Exited { container: fields.field()?, exit: fields.field()? }),
            1 => Ok(Self::ExecExited { exec: fields.field()?, exit: fields.field()? }),
            2 => Ok(Self::PodInitExited { exit: fields.field()? }),
            3 => Ok(Self::AttachEnded { attach: fields.field()?, fell_behind: fields.field()? }),
            tag => Err(Malformed::Variant(tag)),
        }
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
