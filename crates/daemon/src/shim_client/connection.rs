//! The task that owns a shim's socket, and the way to it: requests out, replies to who asked, events into their
//! channel. It does not know what is asked or told.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use knarr_model::{Error, ErrorKind, PodId};
use knarr_wire::shim::codec::{decode, encode};
use knarr_wire::shim::{Assembler, Event, Frame, Kind, Reply, Request, split};
use rustix::net::SendFlags;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

/// Calls without a reply. Those whose caller has given up are forgotten before this is held against a new one.
const CALLS_WITHOUT_REPLY_MAX: usize = 1024;

/// Who may call.
#[derive(Debug, Clone)]
pub struct Caller {
    calls: mpsc::Sender<Call>,
    pod: PodId,
}

#[derive(Debug)]
struct Call {
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
    reply: oneshot::Sender<Answer>,
}

type Answer = Result<(Reply, Vec<OwnedFd>), Error>;

impl Caller {
    /// Starts the task of a connection; it ends with the connection or with the last `Caller`.
    pub fn start(socket: AsyncFd<OwnedFd>, pod: PodId, calls_waiting: usize, events: mpsc::Sender<Event>) -> Self {
        let (calls, receiver) = mpsc::channel(calls_waiting);
        let connection = Connection {
            socket,
            assembler: Assembler::default(),
            outgoing: VecDeque::new(),
            unanswered: HashMap::new(),
            last_id: 0,
            held: None,
        };
        let name = pod.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.run(receiver, events).await {
                tracing::debug!(pod = name.as_str(), %error, "connection to the shim lost");
            }
        });
        Self { calls, pod }
    }

    /// Sends a request and waits for its reply. [`Reply::Refused`] and [`Reply::Exhausted`] become errors.
    pub async fn call(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
        deadline: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let body = encode(&request).map_err(|error| self.error(ErrorKind::InvalidArgument, error))?;
        let (reply, answer) = oneshot::channel();
        let gone = || self.error(ErrorKind::Unavailable, "connection lost");
        let exchange = async {
            self.calls.send(Call { body, fds, reply }).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(Ok((Reply::Refused(why), _))) => Err(self.error(ErrorKind::FailedPrecondition, why)),
            Ok(Ok((Reply::Exhausted(what), _))) => Err(self.error(ErrorKind::ResourceExhausted, what)),
            Ok(result) => result,
            Err(_) => {
                let what = format!("no answer within {} s", deadline.as_secs());
                Err(self.error(ErrorKind::DeadlineExceeded, what))
            }
        }
    }

    /// The task has ended.
    pub fn is_closed(&self) -> bool {
        self.calls.is_closed()
    }

    /// The shim answered something that is no answer to this.
    pub fn unexpected(&self, reply: Reply) -> Error {
        match reply {
            Reply::StartFailed(failure) => self.error(ErrorKind::Internal, failure),
            reply => self.error(ErrorKind::Internal, format!("unexpected reply {reply:?}")),
        }
    }

    /// The shim announced descriptors that it did not send.
    pub fn lacks_descriptors(&self) -> Error {
        self.error(ErrorKind::Internal, "the reply lacks descriptors")
    }

    fn error(&self, kind: ErrorKind, what: impl std::fmt::Display) -> Error {
        Error::new(kind, format!("shim of pod {}: {what}", self.pod.short()))
    }
}

struct Connection {
    socket: AsyncFd<OwnedFd>,
    assembler: Assembler<OwnedFd>,
    outgoing: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    unanswered: HashMap<u64, oneshot::Sender<Answer>>,
    last_id: u64,
    /// An event for which the channel had no room. Nothing is read from the shim meanwhile, so one is enough.
    held: Option<Event>,
}

impl Connection {
    /// Runs until nobody calls any more (`Ok`) or the connection is lost. Whoever waits for an answer then sees the
    /// sender of it dropped.
    async fn run(mut self, mut calls: mpsc::Receiver<Call>, events: mpsc::Sender<Event>) -> io::Result<()> {
        loop {
            tokio::select! {
                // One message at a time is on its way: the rest waits in the channel, which is bounded.
                call = calls.recv(), if self.outgoing.is_empty() => match call {
                    Some(call) => self.enqueue(call),
                    None => return Ok(()),
                },
                ready = self.socket.writable(), if !self.outgoing.is_empty() => {
                    let (bytes, fds) = &self.outgoing[0];
                    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                    let send = |socket: &AsyncFd<OwnedFd>| {
                        knarr_sys::fd_passing::send(socket.as_fd(), bytes, &fds, SendFlags::empty())
                    };
                    let sent = ready?.try_io(send);
                    match sent {
                        Ok(sent) => {
                            sent?;
                            self.outgoing.pop_front();
                        }
                        Err(_would_block) => {}
                    }
                }
                ready = self.socket.readable(), if self.held.is_none() => {
                    let (mut packet, mut fds) = (Vec::new(), Vec::new());
                    let receive = |socket: &AsyncFd<OwnedFd>| {
                        knarr_sys::fd_passing::receive(socket.as_fd(), &mut packet, &mut fds)
                    };
                    let received = ready?.try_io(receive);
                    match received {
                        Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        Ok(received) => {
                            received?;
                            if let Some(frame) = self.assembler.feed(&packet, fds).map_err(io::Error::other)? {
                                self.on_frame(frame)?;
                            }
                        }
                        Err(_would_block) => {}
                    }
                }
                room = events.reserve(), if self.held.is_some() => {
                    // Nobody listening is no reason to fail calls.
                    if let (Some(event), Ok(room)) = (self.held.take(), room) {
                        room.send(event);
                    }
                }
            }
        }
    }

    fn enqueue(&mut self, call: Call) {
        if self.unanswered.len() >= CALLS_WITHOUT_REPLY_MAX {
            self.unanswered.retain(|_, reply| !reply.is_closed());
        }
        if self.unanswered.len() >= CALLS_WITHOUT_REPLY_MAX {
            let why = format!("{CALLS_WITHOUT_REPLY_MAX} calls wait for the shim");
            let _ = call.reply.send(Err(Error::new(ErrorKind::ResourceExhausted, why)));
            return;
        }
        self.last_id += 1;
        match split(Kind::Request, self.last_id, &call.body, call.fds.len()) {
            Ok(packets) => {
                let mut fds = Some(call.fds);
                self.outgoing.extend(packets.into_iter().map(|bytes| (bytes, fds.take().unwrap_or_default())));
                self.unanswered.insert(self.last_id, call.reply);
            }
            Err(error) => {
                let _ = call.reply.send(Err(Error::new(ErrorKind::InvalidArgument, error.to_string())));
            }
        }
    }

    fn on_frame(&mut self, frame: Frame<OwnedFd>) -> io::Result<()> {
        match frame.kind {
            Kind::Request => Err(io::Error::other("the shim sent a request")),
            Kind::Reply => {
                // An answer that nobody waits for any more is dropped with its descriptors.
                if let Some(reply) = self.unanswered.remove(&frame.id) {
                    let answer = decode::<Reply>(&frame.body).map(|answer| (answer, frame.fds));
                    let _ = reply.send(answer.map_err(|error| Error::internal(format!("shim's reply: {error}"))));
                }
                Ok(())
            }
            Kind::Event => {
                match decode::<Event>(&frame.body) {
                    Ok(event) => self.held = Some(event),
                    // A newer shim may tell what this daemon does not know; what matters is also in the list.
                    Err(error) => tracing::warn!(%error, "event of a shim not understood"),
                }
                Ok(())
            }
        }
    }
}
