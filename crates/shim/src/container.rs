//! One container as the shim keeps it: its process, its pipes on their way into the log and to the clients that watch,
//! how it ended. It starts nothing and speaks to nobody.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use knarr_model::ContainerId;
use knarr_model::plan::{ContainerPlan, Exit};
use knarr_runtime::{Child, Started, Stdio};
use knarr_wire::cri_log::{Framer, Stream};
use knarr_wire::shim::Attached;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::attach::Clients;
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
    /// Who watches its output.
    pub clients: Clients<OwnedFd>,
    /// It has one, and that is output 0 and its stdin.
    pub has_terminal: bool,
    log: Option<Log>,
    stdin: Option<OwnedFd>,
    /// It was asked for: a terminal may be written to.
    stdin_given: bool,
    /// The pipe to it is for one client.
    stdin_once: bool,
    outputs: [Option<Output>; 2],
    /// Outputs that have ended and that epoll may still watch: it would for ever while somebody else has a duplicate,
    /// as a client of a terminal has.
    ended_outputs: Vec<OwnedFd>,
}

struct Output {
    fd: OwnedFd,
    framer: Framer,
    /// When to write the line that has no end yet.
    rests_at: Option<Instant>,
    /// epoll watches it; it does not while the log is stuck or a client must take what was read before.
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
            clients: Clients::new([stdout.is_some(), stderr.is_some()]),
            has_terminal: plan.process.terminal,
            log,
            stdin: pipes.stdin,
            stdin_given: plan.stdio.stdin,
            stdin_once: plan.stdio.stdin_once,
            outputs: [output(stdout, Stream::Stdout), output(stderr, Stream::Stderr)],
            ended_outputs: Vec::new(),
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

    /// What a client gets to write to, and to size a terminal with. A pipe to a stdin that is for one client is given
    /// away and not copied: with that client, or with the daemon that it came through, stdin closes whatever happens.
    pub fn input(&mut self, stdin_wanted: bool) -> Result<(Attached, Option<OwnedFd>), Errno> {
        let duplicate = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3);
        let input = if self.has_terminal {
            self.outputs[0].as_ref().map(|terminal| duplicate(terminal.fd.as_fd())).transpose()?
        } else if !stdin_wanted {
            None
        } else if self.stdin_once {
            self.stdin.take()
        } else {
            self.stdin.as_ref().map(|stdin| duplicate(stdin.as_fd())).transpose()?
        };
        let attached = Attached {
            terminal: self.has_terminal,
            input: input.is_some(),
            stdin_closed: stdin_wanted && !(self.stdin_given && input.is_some()),
        };
        Ok((attached, input))
    }

    /// Gives the outputs that have ended and are to be closed once epoll does not watch them any more. To be asked
    /// after every call that reads.
    pub fn take_ended_outputs(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.ended_outputs)
    }

    /// Ends every output, whatever it might still give.
    pub fn end_outputs(&mut self) {
        for which in 0..self.outputs.len() {
            self.end_output(which);
        }
    }

    fn end_output(&mut self, which: usize) {
        let output = self.outputs.get_mut(which).and_then(Option::take);
        self.ended_outputs.extend(output.filter(|output| output.watched).map(|output| output.fd));
        self.clients.close(which);
    }

    /// The outputs that epoll should begin or cease to watch: number, descriptor and which of the two. To be asked
    /// after every call that reads or writes.
    pub fn watch_changes(&mut self) -> impl Iterator<Item = (u32, BorrowedFd<'_>, bool)> {
        let reads = [self.may_read(0), self.may_read(1)];
        self.outputs.iter_mut().enumerate().zip(reads).filter_map(|((which, output), reads)| {
            let output = output.as_mut()?;
            if output.watched == reads {
                return None;
            }
            output.watched = reads;
            Some((which as u32, output.fd.as_fd(), output.watched))
        })
    }

    /// What was read before is where it belongs. Of a container that has ended the rest is read whatever its clients
    /// are owed: the log and the news of the exit wait for nobody.
    fn may_read(&self, which: usize) -> bool {
        !self.is_stuck() && (self.exit.is_some() || !self.clients.is_owed(which))
    }

    /// Reads what output number `which` has, logs it and passes it on; at most [`READS_IN_A_ROW`] reads, so that no
    /// container keeps the others waiting.
    pub fn read_output(&mut self, which: usize, scratch: &mut Scratch) {
        for _ in 0..READS_IN_A_ROW {
            if !self.may_read(which) || !self.read_once(which, scratch) {
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
            Err(Errno::INTR) => return true,
            Err(Errno::AGAIN) => return false,
            // EIO: nobody has the terminal open any more.
            Err(_) => None,
        };
        scratch.records.clear();
        if let Some(count) = read {
            output.framer.feed(&scratch.input[..count], unix_nanoseconds(), &mut scratch.records);
            output.rests_at = output.framer.holds().then(|| now() + REST_AFTER);
        } else {
            output.framer.flush(unix_nanoseconds(), &mut scratch.records);
        }
        if let Some(log) = &mut self.log {
            log.append(&scratch.records, now());
        }
        match read {
            // After the log, which is for everybody. One that is stuck has taken these bytes into its keeping.
            Some(count) => self.clients.pass_on(which, &scratch.input[..count], now(), write),
            None => self.end_output(which),
        }
        scratch.shrink();
        read.is_some()
    }

    /// The pipes of client `serial` may take more.
    pub fn go_on_with_client(&mut self, serial: u64) {
        self.clients.go_on(serial, now(), write);
    }

    /// To be called after everything that could have made the log stuck, or not stuck any more.
    pub fn charge_clients(&mut self) {
        self.clients.set_charging(!self.is_stuck(), now());
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
        rests.chain(retry).chain(self.announce_by).chain(self.clients.next_time()).min()
    }

    /// Does what was due by `now`.
    pub fn on_time(&mut self, now: Instant, scratch: &mut Scratch) {
        self.clients.on_time(now, write);
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

/// Does not wait: see [`crate::attach::as_pipe`].
fn write(pipe: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    rustix::io::write(pipe, bytes)
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
