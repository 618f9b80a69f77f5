//! The clients that watch a container's output, each with pipes of its own. What is read of the container is written
//! to all of them without waiting for any: the pipe is the only buffer, and a client whose pipe is full is cut off.
//!
//! It decides who is cut off and why; it watches no descriptor, tells nobody and knows no container. `F` is a
//! descriptor in earnest and a buffer in tests.

use std::os::fd::OwnedFd;

use knarr_wire::shim::{AttachId, Event};
use rustix::fs::FileType;
use rustix::io::Errno;

/// Attached clients with outputs in one pod: each costs the shim up to two descriptors, and every read as many writes.
/// People and scripts that watch one pod are a handful.
pub const ATTACHES_MAX: usize = 256;

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
    outputs: [Option<F>; 2],
    end: Option<End>,
}

/// Why a client is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its pipe did not take all that there was.
    FellBehind,
    /// Nothing more will come.
    OutputsEnded,
    /// It does not read any more, and does not want to be told.
    ReaderGone,
}

impl<F> Client<F> {
    /// A client that has missed nothing yet.
    pub fn new(serial: u64, id: AttachId, connection: u64, outputs: [Option<F>; 2]) -> Self {
        Self { serial, id, connection, outputs, end: None }
    }

    /// Its pipes.
    pub fn pipes(&self) -> impl Iterator<Item = &F> {
        self.outputs.iter().flatten()
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
}

/// The clients of one container.
pub struct Clients<F>(Vec<Client<F>>);

impl<F> Clients<F> {
    /// Nobody watches.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Client<F>> {
        self.0.iter()
    }

    /// One more, which gets all that is passed on from now on.
    pub fn add(&mut self, client: Client<F>) {
        self.0.push(client);
    }

    /// Gives `bytes` of output number `which` to everybody who wants it.
    ///
    /// `write` does not wait. It is asked until it has taken all or gives an error; whoever did not take all is never
    /// written to again, so that what each can read has no hole.
    pub fn pass_on(&mut self, which: usize, bytes: &[u8], mut write: impl FnMut(&F, &[u8]) -> Result<usize, Errno>) {
        for client in self.0.iter_mut().filter(|client| client.end.is_none()) {
            let Some(pipe) = client.outputs.get(which).and_then(Option::as_ref) else { continue };
            client.end = match write_all(bytes, |bytes| write(pipe, bytes)) {
                Ok(()) => None,
                Err(Errno::PIPE) => Some(End::ReaderGone),
                Err(_) => Some(End::FellBehind),
            };
        }
    }

    /// Only the outputs for which `open` is set can still give something: whoever waits for none of these is at its
    /// end.
    pub fn keep_for(&mut self, open: [bool; 2]) {
        for client in self.0.iter_mut().filter(|client| client.end.is_none()) {
            let waits = client.outputs.iter().zip(open).any(|(pipe, open)| open && pipe.is_some());
            client.end = (!waits).then_some(End::OutputsEnded);
        }
    }

    /// Nobody reads what client `serial` is given.
    pub fn reader_gone(&mut self, serial: u64) {
        for client in self.0.iter_mut().filter(|client| client.serial == serial) {
            client.end.get_or_insert(End::ReaderGone);
        }
    }

    /// Gives those away whose end has come, for their farewell and for closing their pipes.
    pub fn take_ended(&mut self) -> Vec<Client<F>> {
        let ended = self.0.extract_if(.., |client| client.end.is_some()).collect();
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
        ended
    }
}

fn write_all(mut bytes: &[u8], mut write: impl FnMut(&[u8]) -> Result<usize, Errno>) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(bytes) {
            Ok(0) => return Err(Errno::AGAIN),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
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
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A pipe of a test: what its reader has not taken, and what it has.
    #[derive(Debug, Default)]
    struct Pipe {
        capacity: usize,
        held: Vec<u8>,
        read: Vec<u8>,
        closed: bool,
    }

    type Shared = Rc<RefCell<Pipe>>;

    fn write(pipe: &Shared, bytes: &[u8]) -> Result<usize, Errno> {
        let mut pipe = pipe.borrow_mut();
        if pipe.closed {
            return Err(Errno::PIPE);
        }
        // As a pipe does, and worse: it takes a part also of what it would take whole.
        let count = bytes.len().min(pipe.capacity - pipe.held.len()).min(5);
        if count == 0 {
            return Err(Errno::AGAIN);
        }
        pipe.held.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    #[derive(Debug, Clone)]
    enum Step {
        Attach {
            stdout: Option<usize>,
            stderr: Option<usize>,
        },
        /// The container writes.
        Output {
            which: usize,
            length: usize,
        },
        /// A client reads so much of one of its pipes.
        Read {
            client: prop::sample::Index,
            which: usize,
            length: usize,
        },
        /// A client closes one of its pipes; epoll may be later than the next write.
        Close {
            client: prop::sample::Index,
            which: usize,
            noticed: bool,
        },
        /// The container closes one of its outputs.
        End(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let capacity = || proptest::option::of(1_usize..60);
        let client = any::<prop::sample::Index>;
        prop_oneof![
            2 => (capacity(), capacity()).prop_map(|(stdout, stderr)| Step::Attach { stdout, stderr }),
            8 => (0..2_usize, 0..40_usize).prop_map(|(which, length)| Step::Output { which, length }),
            8 => (client(), 0..2_usize, 0..60_usize)
                .prop_map(|(client, which, length)| Step::Read { client, which, length }),
            1 => (client(), 0..2_usize, any::<bool>())
                .prop_map(|(client, which, noticed)| Step::Close { client, which, noticed }),
            1 => (0..2_usize).prop_map(Step::End),
        ]
    }

    /// A client as the test sees it.
    struct Seen {
        pipes: [Option<Shared>; 2],
        /// How much the container had written to each output when it came.
        from: [usize; 2],
        /// What it was told, and how much the container had written then.
        end: Option<(Option<Event>, [usize; 2])>,
    }

    #[derive(Default)]
    struct World {
        written: [Vec<u8>; 2],
        ended: [bool; 2],
        seen: Vec<Seen>,
    }

    impl World {
        fn take(&mut self, clients: &mut Clients<Shared>, step: Step) {
            match step {
                Step::Attach { stdout, stderr } => {
                    let pipe = |capacity: usize| Rc::new(RefCell::new(Pipe { capacity, ..Pipe::default() }));
                    let pipes = [stdout.map(pipe), stderr.map(pipe)];
                    let serial = self.seen.len() as u64;
                    clients.add(Client::new(serial, AttachId(serial + 1000), 1, pipes.clone()));
                    let from = [self.written[0].len(), self.written[1].len()];
                    self.seen.push(Seen { pipes, from, end: None });
                    clients.keep_for(self.ended.map(|ended| !ended));
                }
                Step::Output { which, length } if !self.ended[which] => {
                    let start = self.written[which].len();
                    let bytes: Vec<u8> = (start..start + length).map(|at| (at * 7 + at / 251) as u8).collect();
                    self.written[which].extend_from_slice(&bytes);
                    clients.pass_on(which, &bytes, write);
                }
                Step::Read { client, which, length } if !self.seen.is_empty() => {
                    if let Some(pipe) = &client.get(&self.seen).pipes[which] {
                        let mut pipe = pipe.borrow_mut();
                        let count = length.min(pipe.held.len());
                        let bytes: Vec<u8> = pipe.held.drain(..count).collect();
                        pipe.read.extend(bytes);
                    }
                }
                Step::Close { client, which, noticed } if !self.seen.is_empty() => {
                    let serial = client.index(self.seen.len());
                    if let Some(pipe) = &self.seen[serial].pipes[which] {
                        pipe.borrow_mut().closed = true;
                        if noticed {
                            clients.reader_gone(serial as u64);
                        }
                    }
                }
                Step::End(which) => {
                    self.ended[which] = true;
                    clients.keep_for(self.ended.map(|ended| !ended));
                }
                _ => {}
            }
        }

        /// Every byte of every client is where it should be.
        fn check(&self) {
            for seen in &self.seen {
                let until = seen.end.as_ref().map_or([self.written[0].len(), self.written[1].len()], |(_, at)| *at);
                let behind = matches!(seen.end, Some((Some(Event::AttachEnded { fell_behind: true, .. }), _)));
                let mut is_whole = true;
                for (which, pipe) in seen.pipes.iter().enumerate() {
                    let Some(pipe) = pipe.as_ref().map(|pipe| pipe.borrow()) else { continue };
                    let got = [&pipe.read[..], &pipe.held[..]].concat();
                    let due = &self.written[which][seen.from[which]..until[which]];
                    assert!(due.starts_with(&got), "a slice of the output without a hole");
                    is_whole &= got.len() == due.len();
                }
                let reader_gone = matches!(seen.end, Some((None, _)));
                assert!(is_whole != behind || reader_gone, "a part is missing if and only if that was told");
                let waits = (0..2).any(|which| seen.pipes[which].is_some() && !self.ended[which]);
                assert!(seen.end.is_some() || waits, "nobody waits for what cannot come");
            }
        }
    }

    proptest! {
        #[test]
        fn each_client_sees_the_output_from_its_attach_to_its_end(steps in vec(step(), 0..80)) {
            let mut clients = Clients::new();
            let mut world = World::default();
            for step in steps {
                world.take(&mut clients, step);
                for client in clients.take_ended() {
                    let told = client.farewell();
                    if let Some(Event::AttachEnded { attach, .. }) = told {
                        prop_assert_eq!(attach, AttachId(client.serial + 1000));
                    }
                    let seen = &mut world.seen[client.serial as usize];
                    prop_assert!(seen.end.is_none(), "an end comes once");
                    seen.end = Some((told, [world.written[0].len(), world.written[1].len()]));
                }
                world.check();
                prop_assert_eq!(clients.count(), world.seen.iter().filter(|seen| seen.end.is_none()).count());
            }
        }
    }

    #[test]
    fn one_that_stalls_is_cut_off_and_the_others_are_not() {
        let pipe = |capacity| Rc::new(RefCell::new(Pipe { capacity, ..Pipe::default() }));
        let (slow, quick) = (pipe(4), pipe(100));
        let mut clients = Clients::new();
        clients.add(Client::new(1, AttachId(7), 3, [Some(slow.clone()), None]));
        clients.add(Client::new(2, AttachId(8), 3, [Some(quick.clone()), None]));
        clients.pass_on(0, b"abc", write);
        clients.pass_on(0, b"def", write);
        // Room that comes later is too late: "ef" would be a hole.
        slow.borrow_mut().held.clear();
        clients.pass_on(0, b"ghi", write);
        let ended = clients.take_ended();
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].farewell(), Some(Event::AttachEnded { attach: AttachId(7), fell_behind: true }));
        assert_eq!((slow.borrow().held.as_slice(), quick.borrow().held.as_slice()), (&b""[..], &b"abcdefghi"[..]));
        assert_eq!(clients.count(), 1);
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
}
