//! Clients of every speed at a container that writes at once what it can, in simulated time.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::OnceLock;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

/// What a container's own pipe holds.
const CONTAINER_PIPE_BYTES: usize = 64 << 10;

/// What one read of it gives.
const READ_BYTES: usize = 16 << 10;

/// Milliseconds between two looks of everybody.
const STEP: u64 = 5;

/// Bytes a millisecond by which nobody is cut off.
const ENOUGH: usize = 263;

/// A client's pipe of a test.
#[derive(Debug, Default)]
struct TestPipe {
    capacity: usize,
    /// All that came into it.
    got: Vec<u8>,
    /// How much of that was not read out of it.
    unread: usize,
    closed: bool,
}

type Shared = Rc<RefCell<TestPipe>>;

fn test_pipe(capacity: usize) -> Shared {
    Rc::new(RefCell::new(TestPipe { capacity, ..TestPipe::default() }))
}

fn write(pipe: &Shared, bytes: &[u8]) -> Result<usize, Errno> {
    let mut pipe = pipe.borrow_mut();
    if pipe.closed {
        return Err(Errno::PIPE);
    }
    // As a pipe does, and worse: it takes a part also of what it would take whole.
    let count = bytes.len().min(pipe.capacity - pipe.unread).min(5000);
    if count == 0 {
        return Err(Errno::AGAIN);
    }
    pipe.got.extend_from_slice(&bytes[..count]);
    pipe.unread += count;
    Ok(count)
}

/// What a container writes to output number `which`, by the place in it.
fn text(which: usize, range: Range<usize>) -> &'static [u8] {
    static TEXT: OnceLock<Vec<u8>> = OnceLock::new();
    let text = TEXT.get_or_init(|| (0..8_usize << 20).map(|at| (at * 7 + at / 251) as u8).collect());
    &text[range.start + which * 77..range.end + which * 77]
}

#[derive(Debug, Clone)]
struct Watcher {
    attach_at: u64,
    /// Capacities of its pipes.
    pipes: [Option<usize>; 2],
    /// Bytes a millisecond that it reads of each of its pipes, each for so many milliseconds, in turns.
    speeds: Vec<(u64, usize)>,
    /// When it closes its pipes, and whether that is seen before the next write.
    leaves: Option<(u64, bool)>,
}

impl Watcher {
    fn speed(&self, at: u64) -> usize {
        let round: u64 = self.speeds.iter().map(|(length, _)| length).sum();
        let mut at = at % round;
        for &(length, speed) in &self.speeds {
            if at < length {
                return speed;
            }
            at -= length;
        }
        unreachable!("within one round")
    }

    fn is_quick(&self) -> bool {
        self.speeds.iter().all(|(_, speed)| *speed >= ENOUGH)
    }
}

/// After so many milliseconds, so many bytes to one of the outputs.
#[derive(Debug, Clone)]
struct Burst {
    pause: u64,
    which: usize,
    length: usize,
}

fn watcher() -> impl Strategy<Value = Watcher> {
    let capacity = || option::weighted(0.8, 4096_usize..200_000);
    let speed = prop_oneof![2 => Just(0), 4 => 0..ENOUGH, 2 => ENOUGH..2000_usize, 1 => Just(1_000_000)];
    let speeds = prop_oneof![
        vec((1..4000_u64, speed), 1..5),
        vec((1..4000_u64, ENOUGH..2000_usize), 1..3),
        Just(vec![(1, 1_000_000)]),
    ];
    let leaves = option::weighted(0.2, (0..8000_u64, any::<bool>()));
    let pipes = (capacity(), capacity()).prop_filter("wants something", |pipes| pipes.0.is_some() || pipes.1.is_some());
    (0..3000_u64, pipes, speeds, leaves).prop_map(|(attach_at, pipes, speeds, leaves)| Watcher {
        attach_at,
        pipes: [pipes.0, pipes.1],
        speeds,
        leaves,
    })
}

fn burst() -> impl Strategy<Value = Burst> {
    let length = prop_oneof![1..200_usize, 1..400_000_usize];
    (0..600_u64, 0..2_usize, length).prop_map(|(pause, which, length)| Burst { pause, which, length })
}

/// A client as the test sees it.
struct Seen {
    pipes: [Option<Shared>; 2],
    /// How much had been read of each output when it came.
    from: [usize; 2],
    /// How long it was owed something while nothing else held the container back.
    owed_for: Duration,
    end: Option<Option<bool>>,
}

impl Seen {
    fn got(&self, which: usize) -> usize {
        self.pipes[which].as_ref().map_or(0, |pipe| pipe.borrow().got.len())
    }

    /// What was read of the container and it has not got.
    fn lacks(&self, which: usize, logged: [usize; 2]) -> usize {
        self.pipes[which].as_ref().map_or(0, |_| logged[which] - self.from[which] - self.got(which))
    }
}

struct World {
    begin: Instant,
    /// Milliseconds are whole except at a client's deadline.
    now: Instant,
    clients: Clients<Shared>,
    watchers: Vec<Watcher>,
    seen: Vec<Option<Seen>>,
    bursts: Vec<Burst>,
    /// The container's next burst, and when it begins at the earliest.
    next: usize,
    begins: Instant,
    /// How much the container has written, and how much of it was read and is in the log.
    written: [usize; 2],
    logged: [usize; 2],
    log_is_stuck: Range<u64>,
    has_ended: bool,
}

impl World {
    fn new(watchers: Vec<Watcher>, bursts: Vec<Burst>, log_is_stuck: Range<u64>) -> Self {
        let begin = Instant::now();
        Self {
            begin,
            now: begin,
            clients: Clients::new([true; 2]),
            seen: watchers.iter().map(|_| None).collect(),
            watchers,
            begins: begin + Duration::from_millis(bursts[0].pause),
            bursts,
            next: 0,
            written: [0; 2],
            logged: [0; 2],
            log_is_stuck,
            has_ended: false,
        }
    }

    fn millis(&self) -> u64 {
        (self.now - self.begin).as_millis() as u64
    }

    fn is_stuck(&self) -> bool {
        self.log_is_stuck.contains(&self.millis())
    }

    /// Until everybody's end.
    fn run(&mut self) {
        let mut next_step = self.begin;
        while !self.has_ended || self.clients.count() > 0 {
            assert!(self.millis() < 200_000, "it does not end");
            let until = self.clients.next_time().map_or(next_step, |at| at.min(next_step));
            let passed = until - self.now;
            if !self.is_stuck() {
                for seen in self.seen.iter_mut().flatten().filter(|seen| seen.end.is_none()) {
                    let lacks = (0..2).any(|which| seen.lacks(which, self.logged) > 0);
                    seen.owed_for += if lacks { passed } else { Duration::ZERO };
                }
            }
            self.now = until;
            self.clients.set_charging(!self.is_stuck(), self.now);
            if until == next_step {
                next_step += Duration::from_millis(STEP);
                self.clients_read();
            }
            self.clients.on_time(self.now, write);
            self.let_go();
            assert!(self.clients.next_time().is_none_or(|at| at > self.now), "what was due is done");
            while self.container_writes() | self.shim_reads() {}
            self.check();
            self.let_go();
            self.end_if_all_is_written();
        }
    }

    fn clients_read(&mut self) {
        let at = self.millis();
        for number in 0..self.watchers.len() {
            let watcher = &self.watchers[number];
            if at >= watcher.attach_at && self.seen[number].is_none() && !self.has_ended {
                let pipes = watcher.pipes.map(|capacity| capacity.map(test_pipe));
                let id = AttachId(number as u64 + 1000);
                self.clients.add(Client::new(number as u64, id, 1, pipes.clone()));
                self.seen[number] = Some(Seen { pipes, from: self.logged, owed_for: Duration::ZERO, end: None });
            }
            let Some(seen) = &self.seen[number] else { continue };
            let mut takes_more = false;
            for pipe in seen.pipes.iter().flatten() {
                let mut pipe = pipe.borrow_mut();
                let count = pipe.unread.min(watcher.speed(at) * STEP as usize);
                pipe.unread -= count;
                takes_more |= count > 0;
                pipe.closed |= watcher.leaves.is_some_and(|(when, _)| when <= at);
            }
            match watcher.leaves {
                Some((when, true)) if when <= at => self.clients.reader_gone(number as u64),
                _ if takes_more => self.clients.go_on(number as u64, self.now, write),
                _ => {}
            }
        }
        self.let_go();
    }

    /// Whether it has written something.
    fn container_writes(&mut self) -> bool {
        let Some(burst) = self.bursts.get_mut(self.next).filter(|_| self.begins <= self.now) else { return false };
        let room = CONTAINER_PIPE_BYTES - (self.written[burst.which] - self.logged[burst.which]);
        let count = burst.length.min(room);
        self.written[burst.which] += count;
        burst.length -= count;
        if burst.length == 0 {
            self.next += 1;
            let pause = self.bursts.get(self.next).map_or(0, |next| next.pause);
            self.begins = self.now + Duration::from_millis(pause);
            return true;
        }
        count > 0
    }

    /// Whether it has read something.
    fn shim_reads(&mut self) -> bool {
        if self.is_stuck() {
            return false;
        }
        let mut has_read = false;
        for which in 0..2 {
            if self.has_ended || !self.clients.is_owed(which) {
                has_read |= self.read_once(which);
            }
        }
        has_read
    }

    fn read_once(&mut self, which: usize) -> bool {
        let start = self.logged[which];
        let end = self.written[which].min(start + READ_BYTES);
        if start < end {
            self.logged[which] = end;
            self.clients.pass_on(which, text(which, start..end), self.now, write);
        }
        start < end
    }

    /// The process ends when it has written everything; what is in its pipes then is read whoever waits.
    fn end_if_all_is_written(&mut self) {
        if self.has_ended || self.next < self.bursts.len() || self.is_stuck() {
            return;
        }
        self.has_ended = true;
        for which in 0..2 {
            while self.read_once(which) {
                self.check();
            }
            self.clients.close(which);
        }
        self.let_go();
        assert_eq!(self.logged, self.written, "the log has everything before the exit is told");
    }

    fn let_go(&mut self) {
        for client in self.clients.take_ended() {
            let seen = self.seen[client.serial as usize].as_mut().unwrap();
            let fell_behind = client.farewell().map(|told| match told {
                Event::AttachEnded { attach, fell_behind } if attach.0 == client.serial + 1000 => fell_behind,
                other => panic!("{other:?}"),
            });
            assert!(seen.end.replace(fell_behind).is_none(), "an end comes once");
            let lacks = (0..2).any(|which| seen.lacks(which, self.logged) > 0);
            match fell_behind {
                Some(true) => assert!(lacks, "it is not cut off when it has everything"),
                Some(false) => assert!(!lacks && self.has_ended, "it has everything, and nothing more can come"),
                None => assert!(self.watchers[client.serial as usize].leaves.is_some(), "nobody read its pipes"),
            }
        }
        // Nobody watches for room in a pipe that could take everything.
        for (serial, pipe, watched) in self.clients.watch_changes() {
            let seen = self.seen[serial as usize].as_ref().unwrap();
            let which = seen.pipes.iter().position(|p| p.as_ref().is_some_and(|p| Rc::ptr_eq(p, pipe))).unwrap();
            assert_eq!(watched, seen.lacks(which, self.logged) > 0);
        }
    }

    /// What holds at every moment.
    fn check(&self) {
        let present = || self.seen.iter().flatten().filter(|seen| seen.end.is_none());
        for which in 0..2 {
            let lacking = present().map(|seen| seen.lacks(which, self.logged)).max().unwrap_or(0);
            let left = present().any(|seen| seen.pipes.iter().flatten().any(|pipe| pipe.borrow().closed));
            let held = &self.clients.held[which];
            // One whose reader has gone lacks what nobody owes it any more.
            assert!(held.len() == lacking || left, "{} held, {lacking} owed", held.len());
            assert_eq!(self.clients.is_owed(which), !held.is_empty(), "nothing is kept back when nobody is behind");
            assert!(held.len() <= if self.has_ended { HELD_BYTES_MAX } else { READ_BYTES });
            assert!(held == text(which, self.logged[which] - held.len()..self.logged[which]));
        }
        let waits = self.begins <= self.now && self.next < self.bursts.len() && !self.is_stuck();
        let is_owed = self.clients.is_owed(0) || self.clients.is_owed(1);
        assert!(!waits || is_owed, "the container waits for nothing but a client");
    }

    /// What holds at the end.
    fn check_all(&self) {
        for (seen, watcher) in self.seen.iter().zip(&self.watchers) {
            let Some(seen) = seen else { continue };
            let mut taken = 0;
            for which in 0..2 {
                let Some(pipe) = &seen.pipes[which] else { continue };
                let got = &pipe.borrow().got;
                let from = seen.from[which];
                assert!(got == text(which, from..from + got.len()), "a slice of the output without a hole");
                taken += got.len() as u32;
            }
            let earned = EARNED_TIME * (taken / 1024) / (EARNING_BYTES / 1024);
            let bound = HOLD_MAX + earned + Duration::from_millis(4);
            assert!(seen.owed_for <= bound, "held back for {:?}, {taken} bytes taken", seen.owed_for);
            assert!(!(watcher.is_quick() && seen.end == Some(Some(true))), "who is quick enough is never cut off");
        }
    }
}

proptest! {
    #[test]
    fn each_client_sees_what_it_has_time_for_and_the_log_has_everything(
        watchers in vec(watcher(), 0..5),
        bursts in vec(burst(), 1..16),
        stuck in (0..4000_u64, prop_oneof![3 => Just(0), 1 => 0..6000_u64]),
    ) {
        let mut world = World::new(watchers, bursts, stuck.0..stuck.0 + stuck.1);
        world.run();
        world.check_all();
    }
}

#[test]
fn one_that_takes_nothing_holds_the_others_for_two_seconds_and_is_cut_off() {
    let (dead, quick) = (test_pipe(4), test_pipe(100));
    let mut clients = Clients::new([true; 2]);
    let begin = Instant::now();
    let at = |ms| begin + Duration::from_millis(ms);
    clients.add(Client::new(1, AttachId(7), 3, [Some(dead.clone()), None]));
    clients.add(Client::new(2, AttachId(8), 3, [Some(quick.clone()), None]));
    clients.pass_on(0, b"abc", at(0), write);
    assert_eq!((clients.is_owed(0), clients.next_time()), (false, None));
    clients.pass_on(0, b"def", at(1000), write);
    assert_eq!((clients.is_owed(0), clients.is_owed(1)), (true, false), "what comes of the other is read");
    assert_eq!(clients.watch_changes().map(|(serial, _, watch)| (serial, watch)).collect::<Vec<_>>(), [(1, true)]);
    assert_eq!(clients.next_time(), Some(at(3000)));
    clients.on_time(at(2999), write);
    assert!(clients.take_ended().is_empty());
    clients.on_time(at(3000), write);
    let ended = clients.take_ended();
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].farewell(), Some(Event::AttachEnded { attach: AttachId(7), fell_behind: true }));
    clients.pass_on(0, b"ghi", at(3000), write);
    assert_eq!((&dead.borrow().got[..], &quick.borrow().got[..]), (&b"abcd"[..], &b"abcdefghi"[..]));
    assert_eq!((clients.count(), clients.is_owed(0), clients.held[0].capacity()), (1, false, 0));
}

#[test]
fn one_whose_time_is_up_gets_a_last_chance_and_what_it_took_counts() {
    let pipe = test_pipe(65_536);
    let mut clients = Clients::new([true; 2]);
    let begin = Instant::now();
    clients.add(Client::new(1, AttachId(7), 3, [Some(pipe.clone()), None]));
    clients.pass_on(0, text(0, 0..70_000), begin, write);
    // The shim is late, and the pipe was read meanwhile in part.
    let late = begin + Duration::from_secs(5);
    pipe.borrow_mut().unread -= 4096;
    clients.on_time(late, write);
    assert!(clients.take_ended().is_empty());
    // 4096 bytes are a sixteenth of 64 KiB.
    assert_eq!(clients.next_time(), Some(late + Duration::from_millis(250) / 16));
    pipe.borrow_mut().unread = 0;
    clients.go_on(1, late, write);
    assert_eq!((clients.next_time(), clients.is_owed(0)), (None, false));
    assert!(pipe.borrow().got == text(0, 0..70_000));
}

#[test]
fn nobodys_time_runs_while_the_log_is_stuck() {
    let mut clients = Clients::new([true; 2]);
    let begin = Instant::now();
    let at = |ms| begin + Duration::from_millis(ms);
    clients.add(Client::new(1, AttachId(7), 3, [None, Some(test_pipe(1))]));
    clients.pass_on(1, b"ab", at(0), write);
    clients.set_charging(false, at(500));
    assert_eq!(clients.next_time(), None);
    clients.on_time(at(60_000), write);
    clients.set_charging(true, at(60_000));
    assert!(clients.take_ended().is_empty());
    assert_eq!(clients.next_time(), Some(at(61_500)));
}

#[test]
fn who_is_owed_something_at_the_end_of_the_outputs_gets_it_first() {
    let (slow, dead) = (test_pipe(2), test_pipe(2));
    let mut clients = Clients::new([true, false]);
    let now = Instant::now();
    clients.add(Client::new(1, AttachId(7), 3, [Some(slow.clone()), None]));
    clients.add(Client::new(2, AttachId(8), 3, [Some(dead.clone()), Some(test_pipe(2))]));
    clients.pass_on(0, b"abc", now, write);
    clients.pass_on(0, b"de", now, write);
    clients.close(0);
    clients.pass_on(0, b"what others write", now, write);
    assert!(clients.take_ended().is_empty());
    for _ in 0..2 {
        slow.borrow_mut().unread = 0;
        clients.go_on(1, now, write);
    }
    let fell_behind = |client: Client<Shared>| match client.farewell() {
        Some(Event::AttachEnded { fell_behind, .. }) => (client.serial, fell_behind),
        other => panic!("{other:?}"),
    };
    assert_eq!(clients.take_ended().into_iter().map(fell_behind).collect::<Vec<_>>(), [(1, false)]);
    assert_eq!((&slow.borrow().got[..], &clients.held[0][..]), (&b"abcde"[..], &b"cde"[..]));
    clients.give_up();
    assert_eq!(clients.take_ended().into_iter().map(fell_behind).collect::<Vec<_>>(), [(2, true)]);
    // A client of outputs that have ended before.
    clients.add(Client::new(3, AttachId(9), 3, [Some(test_pipe(2)), Some(test_pipe(2))]));
    assert_eq!(clients.take_ended().into_iter().map(fell_behind).collect::<Vec<_>>(), [(3, false)]);
}

#[test]
fn only_a_pipe_is_taken_and_it_does_not_wait() {
    let (read, end) = rustix::pipe::pipe().unwrap();
    let end = as_pipe(end).unwrap();
    while rustix::io::write(&end, &[0; 4096]) != Err(Errno::AGAIN) {}
    drop(read);
    let file = tempfile::tempfile().unwrap();
    assert_eq!(as_pipe(file.into()).unwrap_err(), Errno::INVAL);
}
