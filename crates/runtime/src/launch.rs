//! The parent's side: makes a copy of the process, follows it until it executes the program, and says why if it does
//! not. What the copy does is not decided here.

use crate::step::{Outcome, Report, Step};
use crate::{Child, Started};
use knarr_model::plan::StartFailure;
use knarr_sys::fd_passing;
use knarr_sys::process::{self, Ended, InCopy};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a process may take from its making to its execve: milliseconds, except on a volume whose server is gone.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// How long a killed copy is waited for. One that hangs in the kernel is left to the caller's reaping.
const KILL_DEADLINE: Duration = Duration::from_secs(1);

/// A descriptor comes with this message: the master of a terminal, or what the copy was to fetch.
const HANDED_OVER: &[u8] = b"t";
/// What was to be made is made, and can be taken.
const MADE: &[u8] = b"m";
/// The answer to that: go on.
const GO_ON: &[u8] = b"g";
/// Asks for a volume of the host; its number follows. The answer is an errno, or the volume's descriptor.
const ASKS_FOR_VOLUME: u8 = b'v';

/// What a copy of the process works with.
pub(crate) struct Copy<'a> {
    pub(crate) report: &'a Report,
    channel: BorrowedFd<'a>,
    in_copy: InCopy,
}

impl Copy<'_> {
    /// Hands a descriptor over: the master of the process's terminal, or what the copy was to fetch.
    pub(crate) fn hand_over(&self, fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
        self.send(HANDED_OVER, &[fd])
    }

    /// Asks the caller to take the plan's mount number `index` from the host anew, which a copy in a user namespace cannot.
    pub(crate) fn ask_for_volume(&self, index: usize) -> rustix::io::Result<OwnedFd> {
        let [a, b, c, d] = (index as u32).to_le_bytes();
        self.send(&[ASKS_FOR_VOLUME, a, b, c, d], &[])?;
        let mut answer = [0; 4];
        match fd_passing::receive_small(self.channel, &mut answer)? {
            (4, Some(volume)) => Ok(volume),
            (4, None) => Err(Errno::from_raw_os_error(i32::from_le_bytes(answer) & 0xfff)),
            _ => Err(Errno::PIPE),
        }
    }

    /// Tells that what was to be made is made, and blocks until the parent has taken it (true) or is gone (false).
    pub(crate) fn made(&self) -> rustix::io::Result<bool> {
        self.send(MADE, &[])?;
        let mut answer = [0u8; 1];
        loop {
            match rustix::io::read(self.channel, &mut answer) {
                Ok(length) => return Ok(length == 1),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The exit status of a copy whose work has ended in this way; a failure is noted.
    pub(crate) fn status_of(&self, worked: rustix::io::Result<()>) -> u8 {
        self.report.status_of(worked)
    }

    /// Closes every descriptor above 2 but the channel, which execve closes.
    pub(crate) fn close_all(&self) -> rustix::io::Result<()> {
        process::close_all_but(&[self.channel], &self.in_copy)
    }

    /// Closes every descriptor.
    pub(crate) fn close_everything(&self) -> rustix::io::Result<()> {
        process::close_everything(&self.in_copy)
    }

    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
        fd_passing::send(self.channel, bytes, fds, SendFlags::empty())
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// How a copy is born.
pub(crate) struct Birth<'a> {
    /// CLONE_NEW* flags
    pub(crate) new: u64,
    /// cgroup2 directory
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// The descriptors that it needs; it closes all others first.
    pub(crate) kept: Vec<BorrowedFd<'a>>,
    /// The copy is only a helper, whose sibling goes on: see `knarr_sys::process::copy_process_as_sibling`.
    pub(crate) sibling: bool,
}

/// A copy of the process that has not been waited for yet. Dropping it kills the copy and reaps it.
pub(crate) struct Launched {
    child: Option<process::Child>,
    report: Report,
    channel: OwnedFd,
    deadline: Instant,
    handed_over: Option<OwnedFd>,
    sibling: bool,
}

/// What a copy tells while it works.
#[derive(PartialEq, Eq)]
enum Event {
    Made,
    AsksForVolume(usize),
    Gone,
}

/// Makes a copy that does `work`, which returns only if it failed (or, in a helper, when it is done).
pub(crate) fn launch(
    birth: Birth<'_>,
    work: impl FnOnce(&Copy<'_>) -> rustix::io::Result<()>,
) -> Result<Launched, StartFailure> {
    let report = Report::new().map_err(|errno| failure("allocate shared memory", errno, ""))?;
    let (channel, end) = fd_passing::socket_pair().map_err(|error| io_failure("make a socket", &error, ""))?;
    let mut kept = birth.kept;
    kept.push(end.as_fd());
    kept.sort_by_key(|fd| fd.as_raw_fd());
    let child = process::copy_process(birth.new, birth.cgroup, || {
        let worked = InCopy::prove().and_then(|in_copy| {
            process::close_all_but(&kept, &in_copy)?;
            work(&Copy { report: &report, channel: end.as_fd(), in_copy })
        });
        report.status_of(worked)
    });
    let child =
        child.map_err(|errno| failure(if birth.cgroup.is_some() { CLONE_INTO_CGROUP } else { "clone" }, errno, ""))?;
    let deadline = Instant::now() + START_DEADLINE;
    let sibling = birth.sibling;
    Ok(Launched { child: Some(child), report, channel, deadline, handed_over: None, sibling })
}

/// The step's words when a copy could not be born in its cgroup.
pub(crate) const CLONE_INTO_CGROUP: &str = "clone into cgroup";

impl Launched {
    /// Waits for the execve; `about` names the thing that a step with an index is about, `volume` takes a volume that
    /// the copy asks for.
    pub(crate) fn executed(
        mut self,
        about: impl Fn(Step, usize) -> String,
        volume: impl Fn(usize) -> Result<OwnedFd, StartFailure>,
    ) -> Result<Started, StartFailure> {
        loop {
            match self.event() {
                Ok(Event::Gone) => break,
                Ok(Event::AsksForVolume(index)) => {
                    self.answer(volume(index)).map_err(|errno| self.interrupted(Some(errno), &about))?;
                }
                other => return Err(self.interrupted(other.err(), &about)),
            }
        }
        match self.report.outcome() {
            Outcome::Ready => {
                let child = self.take_started()?;
                Ok(Started { child, terminal: self.handed_over.take() })
            }
            Outcome::Failed(errno) => {
                let (step, index) = self.report.at();
                Err(failure(step.words(), errno, about(step, index)))
            }
            Outcome::SettingUp => Err(self.died(&about)),
        }
    }

    fn answer(&self, volume: Result<OwnedFd, StartFailure>) -> Result<(), Errno> {
        let (errno, volume) = match volume {
            Ok(volume) => (0, Some(volume)),
            Err(failure) if failure.errno != 0 => (failure.errno, None),
            Err(_) => (Errno::IO.raw_os_error(), None),
        };
        let fds: Vec<_> = volume.iter().map(|fd| fd.as_fd()).collect();
        fd_passing::send(self.channel.as_fd(), &errno.to_le_bytes(), &fds, SendFlags::DONTWAIT)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    /// Waits for the descriptor that the copy was to fetch, and for its end.
    pub(crate) fn fetched(mut self, about: impl Fn(Step, usize) -> String) -> Result<OwnedFd, StartFailure> {
        let event = self.event();
        match (event, self.handed_over.take(), self.report.outcome()) {
            (Ok(Event::Gone), Some(fd), Outcome::SettingUp) => Ok(fd),
            (Ok(Event::Gone), _, Outcome::Failed(errno)) => {
                let (step, index) = self.report.at();
                Err(failure(step.words(), errno, about(step, index)))
            }
            (Ok(Event::Gone), ..) => Err(self.died(&about)),
            (other, ..) => Err(self.interrupted(other.err(), &about)),
        }
    }

    /// Waits until the copy, or the one that goes on in its place, says that it has made what it was to make. Its pid is
    /// good until it is released or dropped.
    pub(crate) fn made(&mut self, about: impl Fn(Step, usize) -> String) -> Result<u32, StartFailure> {
        match self.event() {
            Ok(Event::Made) => self.maker(),
            Ok(Event::AsksForVolume(_)) => Err(self.interrupted(None, &about)),
            Ok(Event::Gone) => match self.report.outcome() {
                Outcome::Failed(errno) => {
                    let (step, index) = self.report.at();
                    Err(failure(step.words(), errno, about(step, index)))
                }
                Outcome::SettingUp | Outcome::Ready => Err(self.died(&about)),
            },
            Err(errno) => Err(self.interrupted(Some(errno), &about)),
        }
    }

    fn maker(&self) -> Result<u32, StartFailure> {
        let Some(child) = &self.child else { return Err(failure("keep a child", Errno::CHILD, "")) };
        if !self.sibling {
            return Ok(child.pid);
        }
        // The helper ends as soon as it has said who goes on in its place, which that one may be quicker than.
        let ended = wait_readable(child.pidfd.as_fd(), PollFlags::IN, self.deadline);
        let sibling = ended.and_then(|()| self.report.sibling().ok_or(Errno::CHILD));
        sibling.map_err(|errno| failure(Step::EnterPidNamespace.words(), errno, ""))
    }

    /// Lets a copy that waits in [`Copy::made`] go on.
    pub(crate) fn proceed(&self) -> Result<(), StartFailure> {
        let (step, _) = self.report.at();
        rustix::io::write(&self.channel, GO_ON).map_err(|errno| failure(step.words(), errno, ""))?;
        Ok(())
    }

    /// [`Launched::proceed`], after which the copy, or the one that goes on in its place, is the caller's child.
    pub(crate) fn release(mut self) -> Result<Child, StartFailure> {
        self.proceed()?;
        self.take_started()
    }

    /// The next thing that the copy tells; a descriptor that it hands over is put aside.
    fn event(&mut self) -> Result<Event, Errno> {
        let (mut bytes, mut fds) = (Vec::new(), Vec::new());
        loop {
            wait_readable(self.channel.as_fd(), PollFlags::IN, self.deadline)?;
            match fd_passing::receive(self.channel.as_fd(), &mut bytes, &mut fds) {
                Ok(0) => return Ok(Event::Gone),
                Ok(_) if bytes == HANDED_OVER => self.handed_over = fds.pop(),
                Ok(_) if bytes == MADE => return Ok(Event::Made),
                Ok(_) => match bytes[..] {
                    [ASKS_FOR_VOLUME, a, b, c, d] => {
                        return Ok(Event::AsksForVolume(u32::from_le_bytes([a, b, c, d]) as usize));
                    }
                    // A copy can be taken over by a process that may trace it: what it says is then not ours.
                    _ => return Err(Errno::BADMSG),
                },
                Err(error) => match Errno::from_io_error(&error) {
                    // It died with a message of ours unread.
                    Some(Errno::CONNRESET) => return Ok(Event::Gone),
                    errno => return Err(errno.unwrap_or(Errno::IO)),
                },
            }
        }
    }

    /// The process that executed the program, once the helper is out of the way.
    fn take_started(&mut self) -> Result<Child, StartFailure> {
        let Some(child) = self.child.take() else {
            return Err(failure("keep a child", Errno::CHILD, ""));
        };
        if !self.sibling {
            return Ok(child.into());
        }
        let sibling = self.report.sibling().ok_or(Errno::CHILD);
        let opened = sibling.and_then(|pid| Ok(Child { pid, pidfd: process::open_child(pid)? }));
        reap_within(&child, KILL_DEADLINE);
        opened.map_err(|errno| failure(Step::EnterPidNamespace.words(), errno, ""))
    }

    /// Words for a copy that ended by itself without saying why.
    fn died(&mut self, about: &impl Fn(Step, usize) -> String) -> StartFailure {
        let (step, index) = self.report.at();
        let sibling = self.report.sibling().and_then(|pid| process::open_child(pid).ok());
        let watched = sibling.as_ref().or(self.child.as_ref().map(|child| &child.pidfd));
        let end = watched.and_then(|pidfd| {
            let _ = wait_readable(pidfd.as_fd(), PollFlags::IN, Instant::now() + KILL_DEADLINE);
            process::reap(pidfd, false).ok().flatten()
        });
        let how = match end {
            Some(Ended::Killed(signal)) => format!("process was killed by signal {signal} at: {}", step.words()),
            Some(Ended::Exited(status)) => format!("process exited with status {status} at: {}", step.words()),
            None => format!("process vanished at: {}", step.words()),
        };
        StartFailure { step: how, errno: 0, about: about(step, index) }
    }

    /// Words for a copy that took too long, or with which the channel broke.
    fn interrupted(&mut self, errno: Option<Errno>, about: &impl Fn(Step, usize) -> String) -> StartFailure {
        let (step, index) = self.report.at();
        failure(
            &format!("process did not start in time, it was at: {}", step.words()),
            errno.unwrap_or(Errno::BADMSG),
            about(step, index),
        )
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        // The sibling is our child too, and was born before the helper could fail or end.
        let sibling = self.report.sibling().filter(|_| self.child.is_some());
        let sibling = sibling.and_then(|pid| Some(process::Child { pid, pidfd: process::open_child(pid).ok()? }));
        for child in [self.child.take(), sibling].into_iter().flatten() {
            // ESRCH: it has ended already.
            let _ = process::send_signal(&child.pidfd, 9);
            reap_within(&child, KILL_DEADLINE);
        }
    }
}

impl From<process::Child> for Child {
    fn from(child: process::Child) -> Self {
        Self { pid: child.pid, pidfd: child.pidfd }
    }
}

/// Reaps a child that is ending; after the deadline it is left to the caller's loop.
fn reap_within(child: &process::Child, deadline: Duration) {
    let _ = wait_readable(child.pidfd.as_fd(), PollFlags::IN, Instant::now() + deadline);
    let _ = process::reap(&child.pidfd, false);
}

/// Whether the process of `pidfd` has ended, or does so in time.
pub(crate) fn ends_within(pidfd: BorrowedFd<'_>, deadline: Duration) -> bool {
    wait_readable(pidfd, PollFlags::IN, Instant::now() + deadline).is_ok()
}

fn wait_readable(fd: BorrowedFd<'_>, events: PollFlags, deadline: Instant) -> rustix::io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::from_borrowed_fd(fd, events)], Some(&timeout)) {
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// A failure in which a call failed.
pub(crate) fn failure(step: &str, errno: Errno, about: impl Into<String>) -> StartFailure {
    StartFailure { step: step.into(), errno: errno.raw_os_error(), about: about.into() }
}

/// [`failure`] for an error of the standard library.
pub(crate) fn io_failure(step: &str, error: &std::io::Error, about: impl Into<String>) -> StartFailure {
    StartFailure { step: step.into(), errno: error.raw_os_error().unwrap_or(0), about: about.into() }
}
