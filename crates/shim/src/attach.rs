//! The clients that watch a container's output, each with pipes of its own. What is read of the container is written
//! to all of them without waiting for any. What a pipe does not take is held, and the container is not read meanwhile;
//! a client that makes it wait for too long is cut off.
//!
//! It decides who is owed what, who is cut off and why; it watches no descriptor, tells nobody, knows no container and
//! no clock. `F` is a descriptor in earnest and a buffer in tests.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use knarr_wire::shim::{AttachId, Event};
use rustix::fs::FileType;
use rustix::io::Errno;

/// Attached clients with outputs in one pod: each costs the shim up to two descriptors, and every read as many writes.
/// People and scripts that watch one pod are a handful.
pub const ATTACHES_MAX: usize = 256;

/// How long a client that takes nothing holds its container back before it is cut off, once in all. A stall of a
/// network that works is shorter (TCP sends again after 200 ms, then 400, then 800); a container that writes its log
/// into a pipe of 64 KiB is not stopped for longer by somebody who looks on.
const HOLD_MAX: Duration = Duration::from_secs(2);

/// What a client must take to hold its container back for [`EARNED_TIME`] more: whoever takes 256 KiB a second, which
/// is what a poor line carries, is never cut off.
const EARNING_BYTES: u32 = 64 << 10;

/// See [`EARNING_BYTES`].
const EARNED_TIME: Duration = Duration::from_millis(250);

/// Bytes of one output that are held for the client that is furthest behind. While the container runs it is what one
/// read gave. When it has ended nothing waits for clients, and what its pipe had, 64 KiB by default, comes on top.
const HELD_BYTES_MAX: usize = 80 << 10;

/// One client.
pub struct Client<F> {
    /// Tells it apart from all others in this shim's life.
    pub serial: u64,
    /// The name that its daemon gave it.
    pub id: AttachId,
    /// The number of the connection that asked for it: on another, the name may be another client's.
    pub connection: u64,
    /// Its pipes for stdout and stderr. They stay open until it is let go, even where the container's own output has
    /// ended: whoever reads to the end of a pipe has been told why before.
    outputs: [Option<Pipe<F>>; 2],
    /// How long it may still hold the container back.
    credit: Duration,
    /// It is owed something, and its credit is used up to this time.
    charged_at: Option<Instant>,
    end: Option<End>,
}

struct Pipe<F> {
    end: F,
    /// How many of the last bytes that were read of the container are not in it.
    owed: usize,
    /// It is known that somebody waits until it takes more.
    watched: bool,
}

/// Why a client is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It has held the container back for too long and misses what it is owed.
    FellBehind,
    /// Nothing more will come.
    OutputsEnded,
    /// It does not read any more, and does not want to be told.
    ReaderGone,
}

impl<F> Client<F> {
    /// A client that has missed nothing yet.
    pub fn new(serial: u64, id: AttachId, connection: u64, outputs: [Option<F>; 2]) -> Self {
        let outputs = outputs.map(|end| end.map(|end| Pipe { end, owed: 0, watched: false }));
        Self { serial, id, connection, outputs, credit: HOLD_MAX, charged_at: None, end: None }
    }

    /// Its pipes.
    pub fn pipes(&self) -> impl Iterator<Item = &F> {
        self.outputs.iter().flatten().map(|pipe| &pipe.end)
    }

    /// What is to be told of its end before its pipes are closed.
    pub fn farewell(&self) -> Option<Event> {
        let fell_behind = match self.end? {
            End::FellBehind => true,
            End::OutputsEnded => false,
            End::ReaderGone => return None,
        };
        Some(Event::AttachEnded { attach: self.id, fell_behind })
    }

    fn owed(&self, which: usize) -> usize {
        self.outputs.get(which).and_then(Option::as_ref).map_or(0, |pipe| pipe.owed)
    }

    fn is_owed(&self) -> bool {
        self.outputs.iter().flatten().any(|pipe| pipe.owed > 0)
    }

    /// Writes what it has not got of `bytes`, the last that were read of output number `which`, without waiting.
    fn take(&mut self, which: usize, bytes: &[u8], write: &mut impl FnMut(&F, &[u8]) -> Result<usize, Errno>) {
        let Some(pipe) = self.outputs.get_mut(which).and_then(Option::as_mut) else { return };
        while pipe.owed > 0 && self.end.is_none() {
            match write(&pipe.end, bytes.get(bytes.len().saturating_sub(pipe.owed)..).unwrap_or_default()) {
                Ok(0) | Err(Errno::AGAIN) => return,
                Ok(count) => {
                    pipe.owed = pipe.owed.saturating_sub(count);
                    let earned = EARNED_TIME * u32::try_from(count).unwrap_or(u32::MAX) / EARNING_BYTES;
                    self.credit = (self.credit + earned).min(HOLD_MAX);
                }
                Err(Errno::INTR) => {}
                Err(Errno::PIPE) => self.end = Some(End::ReaderGone),
                // It can be written to no more, and misses the rest.
                Err(_) => self.end = Some(End::FellBehind),
            }
        }
    }

    /// Uses its credit for the time since the last charge.
    fn charge(&mut self, now: Instant) {
        if let Some(since) = &mut self.charged_at {
            self.credit = self.credit.saturating_sub(now.saturating_duration_since(*since));
            *since = now;
        }
    }

    /// After it has taken what it takes now: what comes of what it is still owed.
    fn judge(&mut self, now: Instant, charging: bool) {
        let charged = charging && self.is_owed();
        if charged && self.credit.is_zero() {
            self.end.get_or_insert(End::FellBehind);
        }
        self.charged_at = charged.then_some(now);
    }
}

/// The clients of one container.
pub struct Clients<F> {
    clients: Vec<Client<F>>,
    /// The last bytes that were read of each output: as many as the client is owed that is furthest behind.
    held: [Vec<u8>; 2],
    /// More may come of these outputs.
    open: [bool; 2],
    /// The container waits for those who are owed something, and for nothing else.
    charging: bool,
}

impl<F> Clients<F> {
    /// Nobody watches. The container has the outputs for which `open` is set.
    pub fn new(open: [bool; 2]) -> Self {
        Self { clients: Vec::new(), held: [Vec::new(), Vec::new()], open, charging: true }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.clients.len()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Client<F>> {
        self.clients.iter()
    }

    /// One more, which gets all that is read from now on. Where nothing more can come, it is at its end at once.
    pub fn add(&mut self, client: Client<F>) {
        self.clients.push(client);
        self.find_ends();
    }

    /// Somebody is owed bytes of output number `which`: no more should be read of it while the container runs.
    pub fn is_owed(&self, which: usize) -> bool {
        self.most_owed(which) > 0
    }

    fn most_owed(&self, which: usize) -> usize {
        let owed = self.clients.iter().filter(|client| client.end.is_none()).map(|client| client.owed(which));
        owed.max().unwrap_or(0)
    }

    /// Gives `bytes`, just read of output number `which`, to everybody who wants it.
    ///
    /// `write` does not wait; it is asked until it has taken all, gives 0 or an error. What it does not take is held.
    pub fn pass_on(
        &mut self,
        which: usize,
        bytes: &[u8],
        now: Instant,
        mut write: impl FnMut(&F, &[u8]) -> Result<usize, Errno>,
    ) {
        if !self.open.get(which).is_some_and(|open| *open) {
            return;
        }
        for client in self.clients.iter_mut().filter(|client| client.end.is_none()) {
            let Some(pipe) = client.outputs.get_mut(which).and_then(Option::as_mut) else { continue };
            let was_owed = pipe.owed > 0;
            pipe.owed += bytes.len();
            let is_too_much = was_owed && pipe.owed > HELD_BYTES_MAX;
            client.charge(now);
            if is_too_much {
                client.end = Some(End::FellBehind);
            } else if !was_owed {
                client.take(which, bytes, &mut write);
            }
            client.judge(now, self.charging);
        }
        self.hold(which, bytes);
        self.find_ends();
    }

    /// Keeps of what was held and of `bytes`, which follow it, as much as somebody is owed.
    fn hold(&mut self, which: usize, bytes: &[u8]) {
        let owed = self.most_owed(which);
        let Some(held) = self.held.get_mut(which) else { return };
        if owed == 0 {
            // With its memory: most clients are behind once and not again.
            *held = Vec::new();
            return;
        }
        let of_held = owed.saturating_sub(bytes.len()).min(held.len());
        held.drain(..held.len() - of_held);
        held.extend_from_slice(bytes.get(bytes.len().saturating_sub(owed)..).unwrap_or_default());
    }

    /// The pipes of client `serial` may take more.
    pub fn go_on(&mut self, serial: u64, now: Instant, mut write: impl FnMut(&F, &[u8]) -> Result<usize, Errno>) {
        self.give_held(now, |client| client.serial == serial, &mut write);
    }

    /// When to call [`Clients::on_time`].
    pub fn next_time(&self) -> Option<Instant> {
        self.clients.iter().filter_map(|client| Some(client.charged_at? + client.credit)).min()
    }

    /// Cuts off whose credit is used up. Each is asked a last time before: it may be we who come late.
    pub fn on_time(&mut self, now: Instant, mut write: impl FnMut(&F, &[u8]) -> Result<usize, Errno>) {
        let is_due = |client: &Client<F>| client.charged_at.is_some_and(|at| at + client.credit <= now);
        self.give_held(now, is_due, &mut write);
    }

    fn give_held(
        &mut self,
        now: Instant,
        to: impl Fn(&Client<F>) -> bool,
        write: &mut impl FnMut(&F, &[u8]) -> Result<usize, Errno>,
    ) {
        for client in self.clients.iter_mut().filter(|client| client.end.is_none() && to(client)) {
            // First: what is earned now was not there to be used before.
            client.charge(now);
            for (which, held) in self.held.iter().enumerate() {
                client.take(which, held, write);
            }
            client.judge(now, self.charging);
        }
        for which in 0..self.held.len() {
            self.hold(which, &[]);
        }
        self.find_ends();
    }

    /// Whether the container waits for clients where one is owed something. While it would wait anyhow, for its log,
    /// nobody's credit is used.
    pub fn set_charging(&mut self, charging: bool, now: Instant) {
        if charging == self.charging {
            return;
        }
        self.charging = charging;
        for client in self.clients.iter_mut().filter(|client| client.end.is_none()) {
            client.charge(now);
            client.judge(now, charging);
        }
    }

    /// Nothing more will come of output number `which`: whoever waits for no other is at its end, as soon as it has
    /// what it is owed.
    pub fn close(&mut self, which: usize) {
        if let Some(open) = self.open.get_mut(which) {
            *open = false;
        }
        self.find_ends();
    }

    fn find_ends(&mut self) {
        for client in self.clients.iter_mut().filter(|client| client.end.is_none()) {
            let waits = client.outputs.iter().zip(self.open).any(|(pipe, open)| open && pipe.is_some());
            client.end = (!waits && !client.is_owed()).then_some(End::OutputsEnded);
        }
    }

    /// Lets all go, whatever they are owed.
    pub fn give_up(&mut self) {
        for client in &mut self.clients {
            client.end.get_or_insert(if client.is_owed() { End::FellBehind } else { End::OutputsEnded });
        }
    }

    /// Nobody reads what client `serial` is given.
    pub fn reader_gone(&mut self, serial: u64) {
        for client in self.clients.iter_mut().filter(|client| client.serial == serial) {
            client.end.get_or_insert(End::ReaderGone);
        }
    }

    /// Gives those away whose end has come, for their farewell and for closing their pipes. To be asked after every
    /// call that changes something.
    pub fn take_ended(&mut self) -> Vec<Client<F>> {
        let ended: Vec<_> = self.clients.extract_if(.., |client| client.end.is_some()).collect();
        if self.clients.is_empty() {
            self.clients = Vec::new();
        }
        if !ended.is_empty() {
            (0..self.held.len()).for_each(|which| self.hold(which, &[]));
        }
        ended
    }

    /// The pipes of which it should be known from now on that they take more, or no longer: serial of the client, pipe
    /// and which of the two. To be asked after [`Clients::take_ended`].
    pub fn watch_changes(&mut self) -> impl Iterator<Item = (u64, &F, bool)> {
        self.clients.iter_mut().flat_map(|client| {
            client.outputs.iter_mut().flatten().filter_map(|pipe| {
                let changes = pipe.watched != (pipe.owed > 0);
                pipe.watched = pipe.owed > 0;
                changes.then_some((client.serial, &pipe.end, pipe.watched))
            })
        })
    }
}

/// Makes sure that a write to `fd` takes what there is room for and returns: it is a pipe, and one that does not wait.
pub fn as_pipe(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::Fifo {
        return Err(Errno::INVAL);
    }
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

#[cfg(test)]
mod tests;
