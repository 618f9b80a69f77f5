//! One container as the shim keeps it: its process, its pipes on their way into the log, how it ended. It starts
//! nothing and speaks to nobody.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use knarr_model::ContainerId;
use knarr_model::plan::{ContainerPlan, Exit};
use knarr_runtime::{Child, Started, Stdio};
use knarr_wire::cri_log::{Framer, Stream};
use rustix::pipe::PipeFlags;

use crate::log::Log;
use crate::supervisor::{now, unix_nanoseconds};

/// Bytes of one read of a pipe. In the worst case, all newlines, they become 45 times as many bytes of records, which
/// are in memory until the log takes them.
const READ_BYTES: usize = 16 << 10;

/// Reads of one stream before something else gets its turn: as much as a pipe holds by default.
const READS_IN_A_ROW: usize = 4;

/// A line without its end is written when nothing more has come for this long: longer than the pauses between the
/// writes of one line, shorter than a person waits for a prompt.
const REST_AFTER: Duration = Duration::from_millis(250);

/// How long the news of an exit waits for the end of the output. All that the process wrote is in the pipes when it is
/// reaped and is read at once; this bound is for what others still write, and for terminals, whose last output comes
/// to us by a kernel worker.
const DRAIN_AT_MOST: Duration = Duration::from_millis(100);

/// Our ends of a container's pipes.
pub struct Pipes {
    stdin: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
}

/// Makes what a container's process gets as standard input and output, and our ends of it.
pub fn make_pipes(plan: &ContainerPlan, null: BorrowedFd<'_>) -> io::Result<(Stdio, Pipes)> {
    let null = || rustix::io::fcntl_dupfd_cloexec(null, 3);
    if plan.process.terminal {
        // The runtime makes the terminal inside the container; what it is given here is not used.
        let stdio = Stdio { stdin: null()?, stdout: null()?, stderr: null()? };
        return Ok((stdio, Pipes { stdin: None, outputs: [None, None] }));
    }
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let (stdin, our_stdin) = if plan.stdio.stdin {
        let (read, write) = pipe()?;
        rustix::io::ioctl_fionbio(&write, true)?;
        (read, Some(write))
    } else {
        (null()?, None)
    };
    let (our_stdout, stdout) = pipe()?;
    let (our_stderr, stderr) = pipe()?;
    rustix::io::ioctl_fionbio(&our_stdout, true)?;
    rustix::io::ioctl_fionbio(&our_stderr, true)?;
    let pipes = Pipes { stdin: our_stdin, outputs: [Some(our_stdout), Some(our_stderr)] };
    Ok((Stdio { stdin, stdout, stderr }, pipes))
}

/// A container that was started and not forgotten.
pub struct Container {
    pub id: ContainerId,
    /// Tells its descriptors apart from those of all others in this shim's life.
    pub serial: u32,
    pub child: Child,
    /// nanoseconds since 1970
    pub started_at: i64,
    pub exit: Option<Exit>,
    /// The exit is known, and others are told when the output has ended or at this time.
    pub announce_by: Option<Instant>,
    log: Option<Log>,
    stdin: Option<OwnedFd>,
    outputs: [Option<Output>; 2],
}

struct Output {
    fd: OwnedFd,
    framer: Framer,
    /// When to write the line that has no end yet.
    rests_at: Option<Instant>,
    /// epoll watches it; it does not while the log is stuck.
    watched: bool,
}

impl Container {
    /// Takes what the runtime has started.
    pub fn new(plan: &ContainerPlan, serial: u32, started: Started, pipes: Pipes, log: Option<Log>) -> Self {
        let [mut stdout, stderr] = pipes.outputs;
        if let Some(terminal) = started.terminal {
            // A terminal that we would wait for must not be read at all.
            match rustix::io::ioctl_fionbio(&terminal, true) {
                Ok(()) => stdout = Some(terminal),
                Err(errno) => eprintln!("knarr-shim: use the terminal of container {}: {errno}", plan.id),
            }
        }
        let output = |fd: Option<OwnedFd>, stream| {
            fd.map(|fd| Output { fd, framer: Framer::new(stream), rests_at: None, watched: false })
        };
        Self {
            id: plan.id.clone(),
            serial,
            child: started.child,
            started_at: unix_nanoseconds(),
            exit: None,
            announce_by: None,
            log,
            stdin: pipes.stdin,
            outputs: [output(stdout, Stream::Stdout), output(stderr, Stream::Stderr)],
        }
    }

    /// It has not been reaped.
    pub fn is_running(&self) -> bool {
        self.exit.is_none()
    }

    /// The shim holds a pipe to its stdin.
    pub fn stdin_open(&self) -> bool {
        self.stdin.is_some()
    }

    /// The outputs that epoll should begin or cease to watch: number, descriptor and which of the two. To be asked
    /// after every call that reads or writes.
    pub fn watch_changes(&mut self) -> impl Iterator<Item = (u32, BorrowedFd<'_>, bool)> {
        let stuck = self.is_stuck();
        self.outputs.iter_mut().enumerate().filter_map(move |(which, output)| {
            let output = output.as_mut()?;
            if output.watched != stuck {
                return None;
            }
            output.watched = !stuck;
            Some((which as u32, output.fd.as_fd(), output.watched))
        })
    }

    /// Reads what output number `which` has and logs it; at most [`READS_IN_A_ROW`] reads, so that no container keeps
    /// the others waiting.
    pub fn read_output(&mut self, which: usize, scratch: &mut Scratch) {
        for _ in 0..READS_IN_A_ROW {
            if self.is_stuck() || !self.read_once(which, scratch) {
                return;
            }
        }
    }

    /// Returns whether there may be more.
    fn read_once(&mut self, which: usize, scratch: &mut Scratch) -> bool {
        let Some(output) = self.outputs.get_mut(which).and_then(Option::as_mut) else { return false };
        let read = match rustix::io::read(&output.fd, &mut *scratch.input) {
            Ok(0) => None,
            Ok(count) => Some(count),
            Err(rustix::io::Errno::INTR) => return true,
            Err(rustix::io::Errno::AGAIN) => return false,
            // EIO: nobody has the terminal open any more.
            Err(_) => None,
        };
        scratch.records.clear();
        if let Some(count) = read {
            output.framer.feed(&scratch.input[..count], unix_nanoseconds(), &mut scratch.records);
            output.rests_at = output.framer.holds().then(|| now() + REST_AFTER);
        } else {
            output.framer.flush(unix_nanoseconds(), &mut scratch.records);
            self.outputs[which] = None;
        }
        if let Some(log) = &mut self.log {
            log.append(&scratch.records, now());
        }
        scratch.shrink();
        read.is_some()
    }

    /// The process has ended: reads what it left, and holds the news back for a moment if more may come.
    pub fn end(&mut self, exit: Exit, scratch: &mut Scratch) {
        self.exit = Some(exit);
        self.announce_by = Some(now() + DRAIN_AT_MOST);
        self.stdin = None;
        for which in 0..self.outputs.len() {
            self.read_output(which, scratch);
        }
    }

    /// Nothing is left to wait for before others are told of the exit.
    pub fn may_announce(&self, now: Instant) -> bool {
        self.announce_by.is_some_and(|by| by <= now || (self.outputs.iter().all(Option::is_none) && !self.is_stuck()))
    }

    /// The next time at which [`Container::on_time`] or an announcement has something to do.
    pub fn next_time(&self) -> Option<Instant> {
        let stuck = self.is_stuck();
        let rests = self.outputs.iter().flatten().filter_map(|output| output.rests_at).filter(move |_| !stuck);
        let retry = self.log.iter().filter_map(Log::retry_at);
        rests.chain(retry).chain(self.announce_by).min()
    }

    /// Does what was due by `now`.
    pub fn on_time(&mut self, now: Instant, scratch: &mut Scratch) {
        if let Some(log) = &mut self.log
            && log.retry_at().is_some_and(|at| at <= now)
        {
            log.retry(now);
        }
        if self.is_stuck() {
            return;
        }
        for output in self.outputs.iter_mut().flatten() {
            if output.rests_at.is_some_and(|at| at <= now) {
                output.rests_at = None;
                scratch.records.clear();
                output.framer.flush(unix_nanoseconds(), &mut scratch.records);
                if let Some(log) = &mut self.log {
                    log.append(&scratch.records, now);
                }
            }
        }
    }

    /// Goes on with a new log file at the same path.
    pub fn reopen_log(&mut self) -> Result<(), String> {
        let log = self.log.as_mut().ok_or("the container has no log")?;
        log.reopen(now()).map_err(|error| format!("open log: {error}"))
    }

    fn is_stuck(&self) -> bool {
        self.log.as_ref().is_some_and(Log::is_stuck)
    }
}

/// Memory that every read uses again: there is one per shim, not one per container.
pub struct Scratch {
    /// What is read.
    input: Box<[u8]>,
    /// What becomes of it.
    records: Vec<u8>,
}

impl Scratch {
    /// Bytes that are kept for the next read; what one read of many short lines took beyond is given back.
    const KEEP_BYTES: usize = 64 << 10;

    /// Nothing is read yet.
    pub fn new() -> Self {
        Self { input: vec![0; READ_BYTES].into_boxed_slice(), records: Vec::new() }
    }

    fn shrink(&mut self) {
        if self.records.capacity() > Self::KEEP_BYTES {
            self.records = Vec::new();
        }
    }
}
