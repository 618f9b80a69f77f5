//! The shim's side of the socket: whole messages in, messages out without ever waiting for the daemon. It knows
//! neither requests nor replies.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use knarr_wire::shim::codec::{Wire, encode};
use knarr_wire::shim::{Assembler, Frame, Kind, split};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags};

/// Bytes of packets that wait for the daemon to read. Every reply and event is smaller than a KiB but a list of many
/// containers: a daemon that lets this much pile up has stopped reading.
const QUEUE_BYTES_MAX: usize = 1 << 20;

/// Why a connection is over: to be logged unless the daemon just went away.
pub type Gone = Option<String>;

/// One daemon that is connected.
pub struct Connection {
    /// Counts up over the shim's life.
    pub number: u64,
    socket: OwnedFd,
    assembler: Assembler<OwnedFd>,
    queue: VecDeque<Packet>,
    queued_bytes: usize,
    /// epoll was told to wake us when the socket takes more.
    pub watched_for_writing: bool,
}

struct Packet {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Connection {
    /// Takes the next daemon that waits at the socket, if it may.
    ///
    /// The socket is in a directory of mode 0700; the check holds should someone pass it on.
    pub fn accept(listener: BorrowedFd<'_>, number: u64) -> io::Result<Option<Self>> {
        let socket = match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let uid = rustix::net::sockopt::socket_peercred(&socket)?.uid;
        if !uid.is_root() && uid != rustix::process::geteuid() {
            return Err(io::Error::other(format!("user {} may not connect", uid.as_raw())));
        }
        let assembler = Assembler::default();
        Ok(Some(Self {
            number,
            socket,
            assembler,
            queue: VecDeque::new(),
            queued_bytes: 0,
            watched_for_writing: false,
        }))
    }

    /// For epoll.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads packets until they make a message; `Ok(None)` when the daemon has sent no more.
    pub fn receive(&mut self) -> Result<Option<Frame<OwnedFd>>, Gone> {
        let mut packet = Vec::new();
        loop {
            let mut fds = Vec::new();
            match knarr_sys::fd_passing::receive(self.socket.as_fd(), &mut packet, &mut fds) {
                Ok(0) => return Err(None),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(None),
                Err(error) => return Err(Some(format!("receive: {error}"))),
            }
            match self.assembler.feed(&packet, fds) {
                Ok(None) => {}
                Ok(Some(frame)) if frame.kind == Kind::Request => return Ok(Some(frame)),
                Ok(Some(_)) => return Err(Some("the daemon sent something that is no request".into())),
                Err(error) => return Err(Some(error.to_string())),
            }
        }
    }

    /// Sends a message, or as much of it as the socket takes now; the rest goes with [`Connection::flush`].
    pub fn send<T: Wire>(&mut self, kind: Kind, id: u64, message: &T, fds: Vec<OwnedFd>) -> Result<(), Gone> {
        let packets = encode(message).and_then(|body| split(kind, id, &body, fds.len()));
        let mut fds = Some(fds);
        for bytes in packets.map_err(|error| Some(format!("encode: {error}")))? {
            self.queued_bytes += bytes.len();
            self.queue.push_back(Packet { bytes, fds: fds.take().unwrap_or_default() });
        }
        self.flush()?;
        if self.queued_bytes > QUEUE_BYTES_MAX {
            return Err(Some(format!("the daemon does not read: {} bytes wait for it", self.queued_bytes)));
        }
        Ok(())
    }

    /// Sends what waits, as far as the socket takes it.
    pub fn flush(&mut self) -> Result<(), Gone> {
        while let Some(packet) = self.queue.front() {
            let fds: Vec<BorrowedFd<'_>> = packet.fds.iter().map(AsFd::as_fd).collect();
            match knarr_sys::fd_passing::send(self.socket.as_fd(), &packet.bytes, &fds, SendFlags::empty()) {
                Ok(()) => {
                    self.queued_bytes -= packet.bytes.len();
                    self.queue.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(None),
                Err(error) => return Err(Some(format!("send: {error}"))),
            }
        }
        Ok(())
    }

    /// Something waits that the socket did not take.
    pub fn is_behind(&self) -> bool {
        !self.queue.is_empty()
    }
}
