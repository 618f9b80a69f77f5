//! Real pipes and terminals, and clients that are slow, gone, or too fast.

use super::*;
use crate::streaming::descriptor::pipe;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

/// Nothing here takes a second, unless it hangs.
const HANG: Duration = Duration::from_secs(20);

const LONG: Duration = Duration::from_secs(3600);

/// A client that takes what it gets, after a pause each, until it has had enough.
#[derive(Clone, Default)]
struct Client {
    got: Arc<Mutex<Vec<u8>>>,
    pause: Duration,
    enough: Option<usize>,
}

impl Client {
    fn got(&self) -> Vec<u8> {
        self.got.lock().unwrap().clone()
    }
}

impl Sink for Client {
    async fn send(&mut self, bytes: Bytes) -> bool {
        tokio::time::sleep(self.pause).await;
        let mut got = self.got.lock().unwrap();
        got.extend_from_slice(&bytes);
        self.enough.is_none_or(|enough| got.len() < enough)
    }
}

/// A client that sends its chunks and then, unless it stays, no more.
struct Typing {
    chunks: VecDeque<Bytes>,
    taken: Arc<Mutex<usize>>,
}

impl Typing {
    fn of(count: usize, chunk: &'static [u8]) -> Self {
        Self { chunks: (0..count).map(|_| Bytes::from_static(chunk)).collect(), taken: Arc::default() }
    }
}

impl Source for Typing {
    async fn next(&mut self) -> Option<Bytes> {
        *self.taken.lock().unwrap() += 1;
        self.chunks.pop_front()
    }
}

fn read_end() -> (Descriptor, OwnedFd) {
    let (read, write) = pipe().unwrap();
    (Descriptor::new(read).unwrap(), write)
}

fn has_ended(ended: bool) -> watch::Receiver<bool> {
    // Its sender is gone, which changes nothing of what was said.
    watch::channel(ended).1
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG, work).await.expect("it hangs")
}

#[tokio::test]
async fn a_slow_client_gets_everything_that_the_process_wrote() {
    for left_behind in [false, true] {
        let (read, write) = read_end();
        let written: Vec<u8> = (0..read.capacity()).map(|n| (n % 251) as u8).collect();
        assert_eq!(rustix::io::write(&write, &written).unwrap(), written.len());
        let _held = left_behind.then_some(write);
        let client = Client { pause: Duration::from_millis(50), ..Client::default() };
        in_time(carry_out(read, Some(client.clone()), Unwanted::Close, has_ended(true), Duration::ZERO)).await;
        assert!(client.got() == written, "{} of {} bytes", client.got().len(), written.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_writes_for_ever_does_not_hold_the_end_up() {
    let (read, write) = read_end();
    let writer = std::thread::spawn(move || while rustix::io::write(&write, &[b'y'; 4096]).is_ok() {});
    let client = Client::default();
    let capacity = read.capacity();
    let drain = Duration::from_millis(20);
    in_time(carry_out(read, Some(client.clone()), Unwanted::Close, has_ended(true), drain)).await;
    assert!(client.got().len() >= capacity / 2);
    writer.join().unwrap();
}

#[tokio::test]
async fn a_child_that_says_nothing_is_waited_for_as_long_as_the_drain() {
    let (read, _write) = read_end();
    let started = std::time::Instant::now();
    let drain = Duration::from_millis(80);
    in_time(carry_out(read, Some(Client::default()), Unwanted::Close, has_ended(true), drain)).await;
    assert!(started.elapsed() >= drain);
}

#[tokio::test]
async fn what_a_child_says_within_the_drain_is_delivered() {
    let (read, write) = read_end();
    let client = Client::default();
    let carrying = carry_out(read, Some(client.clone()), Unwanted::Close, has_ended(true), LONG);
    let child = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        rustix::io::write(&write, b"late").unwrap();
        drop(write);
    };
    in_time(async { tokio::join!(carrying, child) }).await;
    assert_eq!(client.got(), b"late");
}

#[tokio::test]
async fn a_process_learns_that_its_client_reads_no_more() {
    let (read, write) = read_end();
    let client = Client { enough: Some(3), ..Client::default() };
    rustix::io::write(&write, b"enough").unwrap();
    in_time(carry_out(read, Some(client), Unwanted::Close, has_ended(false), LONG)).await;
    assert_eq!(rustix::io::write(&write, b"x").unwrap_err(), rustix::io::Errno::PIPE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_nobody_wants_is_taken_so_that_its_process_goes_on() {
    let (read, write) = read_end();
    let writer = std::thread::spawn(move || {
        for _ in 0..64 {
            assert_eq!(rustix::io::write(&write, &[b'z'; 16 << 10]).unwrap(), 16 << 10);
        }
    });
    let client = Client { enough: Some(1), ..Client::default() };
    in_time(carry_out(read, Some(client.clone()), Unwanted::Discard, has_ended(false), LONG)).await;
    writer.join().unwrap();
    assert!(client.got().len() <= 64 << 10);
}

#[tokio::test]
async fn the_end_of_the_input_closes_the_pipe() {
    let (read, write) = pipe().unwrap();
    let write = Descriptor::new(write).unwrap();
    in_time(carry_in(Typing::of(3, b"abc"), write)).await;
    let mut text = [0; 32];
    assert_eq!(rustix::io::read(&read, &mut text).unwrap(), 9);
    assert_eq!(&text[..9], b"abcabcabc");
    assert_eq!(rustix::io::read(&read, &mut text).unwrap(), 0);
}

#[tokio::test]
async fn input_that_a_process_does_not_want_is_taken_and_dropped() {
    let (read, write) = pipe().unwrap();
    drop(read);
    let typing = Typing::of(100, b"nobody reads this");
    let taken = typing.taken.clone();
    in_time(carry_in(typing, Descriptor::new(write).unwrap())).await;
    assert_eq!(*taken.lock().unwrap(), 101);
}

#[tokio::test]
async fn input_that_a_process_does_not_read_waits() {
    let (_read, write) = pipe().unwrap();
    let typing = Typing::of(1000, &[b'i'; 4096]);
    let taken = typing.taken.clone();
    let carrying = carry_in(typing, Descriptor::new(write).unwrap());
    assert!(tokio::time::timeout(Duration::from_millis(100), carrying).await.is_err());
    // A pipe's content, and one chunk in hand.
    assert_eq!(*taken.lock().unwrap(), 17);
}

/// A terminal of the machine's own devpts, if it has one.
fn terminal() -> Option<(Descriptor, OwnedFd)> {
    let devpts = std::fs::File::open("/dev/pts").ok()?;
    let (master, slave) = knarr_sys::terminal::open_pair(&devpts).ok()?;
    Some((Descriptor::new(master).unwrap(), slave))
}

#[tokio::test]
async fn a_terminal_that_nobody_has_open_any_more_is_an_end() {
    let Some((master, slave)) = terminal() else {
        eprintln!("skipped: no /dev/pts");
        return;
    };
    rustix::io::write(&slave, b"last words").unwrap();
    drop(slave);
    let client = Client::default();
    in_time(carry_out(master, Some(client.clone()), Unwanted::Discard, has_ended(false), LONG)).await;
    assert_eq!(client.got(), b"last words");
}

#[tokio::test]
async fn everything_written_to_a_terminal_before_the_end_is_delivered_though_it_stays_open() {
    let Some((master, slave)) = terminal() else {
        eprintln!("skipped: no /dev/pts");
        return;
    };
    let mut written = 0;
    rustix::io::ioctl_fionbio(&slave, true).unwrap();
    while let Ok(count) = rustix::io::write(&slave, &[b't'; 512]) {
        written += count;
    }
    let client = Client { pause: Duration::from_millis(5), ..Client::default() };
    in_time(carry_out(master, Some(client.clone()), Unwanted::Discard, has_ended(true), Duration::ZERO)).await;
    assert_eq!(client.got().len(), written);
}

#[tokio::test]
async fn a_terminal_keeps_its_size_when_its_client_does_not_know_one() {
    let Some((master, slave)) = terminal() else {
        eprintln!("skipped: no /dev/pts");
        return;
    };
    for (columns, rows) in [(132, 43), (0, 10), (10, 0)] {
        resize(&master, TerminalSize { columns, rows });
        let size = rustix::termios::tcgetwinsize(&slave).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (132, 43));
    }
}
