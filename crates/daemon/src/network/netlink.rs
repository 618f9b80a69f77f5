//! Netlink as far as the network needs it: building messages, reading attributes, one synchronous socket.
//!
//! A request is carried out by the kernel inside `send`, in the order of the messages, so that its answers lie in the
//! socket's queue when `send` returns: there is no task that sorts replies and nothing to wait for but dumps.
//! What the messages mean is not known here; see `builtin::links`, `builtin::nftables` and `builtin::conntrack`.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

pub(super) use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

pub(super) const NLM_F_REQUEST: u16 = 0x001;
pub(super) const NLM_F_ACK: u16 = 0x004;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_REPLACE: u16 = 0x100;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Bytes of a message's and of an attribute's header.
const MESSAGE_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;

/// Bytes received at once: the kernel fills at most 32 KiB per dump datagram.
const RECEIVE_BYTES: usize = 64 * 1024;

/// How long an answer may take. All answers but a dump's are there when `send` returns; this only keeps a thread from
/// hanging for ever if the kernel drops one.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// One netlink message being built.
#[derive(Debug, Clone)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// A request of `kind`; `header` is the family's fixed header (ifinfomsg, nfgenmsg, …).
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(header);
        let mut message = Self(bytes);
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Appends an attribute.
    #[must_use]
    pub fn attr(mut self, kind: u16, payload: &[u8]) -> Self {
        let length = u16::try_from(payload.len() + ATTRIBUTE_HEADER).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.pad();
        self
    }

    /// Appends a text that ends with NUL.
    #[must_use]
    pub fn text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Appends a number in the machine's order (rtnetlink).
    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends a number in network order (nfnetlink).
    #[must_use]
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Appends an attribute made of what `content` appends. A nest that passes 64 KiB, which callers avoid, is refused
    /// by the kernel as malformed.
    #[must_use]
    pub fn nest(mut self, kind: u16, content: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        self = content(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Appends bytes that are no attribute: the header of a link inside a link (veth's peer).
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// The attributes built so far, for use inside another message; there must be no fixed header.
    pub fn content(&self) -> &[u8] {
        &self.0[MESSAGE_HEADER..]
    }

    fn finish(&mut self, sequence: u32) -> &[u8] {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.0
    }

    fn wants_ack(&self) -> bool {
        u16::from_ne_bytes([self.0[6], self.0[7]]) & NLM_F_ACK != 0
    }
}

/// One received message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub kind: u16,
    flags: u16,
    sequence: u32,
    /// Fixed header and attributes.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The attributes behind a fixed header of `header` bytes.
    pub fn attributes(&self, header: usize) -> Attributes<'a> {
        Attributes(self.payload.get(header..).unwrap_or(&[]))
    }
}

/// The messages of one datagram; ends at the first one whose length cannot be.
#[derive(Debug)]
pub(super) struct Frames<'a>(pub &'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        let head = self.0.get(..MESSAGE_HEADER)?;
        let length = u32_at(head, 0)? as usize;
        let payload = self.0.get(MESSAGE_HEADER..length)?;
        let frame = Frame { kind: u16_at(head, 4)?, flags: u16_at(head, 6)?, sequence: u32_at(head, 8)?, payload };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(frame)
    }
}

/// Attributes as (kind, payload); ends at the first one whose length cannot be.
#[derive(Debug, Clone)]
pub(super) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The payload of the first attribute of that kind.
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find(|(found, _)| *found == kind).map(|(_, payload)| payload)
    }

    /// The attributes inside the first attribute of that kind.
    pub fn inside(&self, kind: u16) -> Attributes<'a> {
        Attributes(self.get(kind).unwrap_or(&[]))
    }

    /// The text in the first attribute of that kind, without its NUL.
    pub fn text(&self, kind: u16) -> Option<&'a str> {
        let bytes = self.get(kind)?;
        std::str::from_utf8(bytes.split(|b| *b == 0).next()?).ok()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & NLA_TYPE_MASK;
        let payload = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, payload))
    }
}

/// The number in the machine's order at `offset`.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

/// The number in the machine's order at `offset`.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

/// The number in network order at `offset`.
pub(super) fn be32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

/// Why the kernel did not do what a message asked.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Which message of the request, counted from 0.
    pub index: usize,
    /// The errno.
    pub cause: io::Error,
    /// The kernel's own words, often empty.
    pub words: String,
}

impl Refusal {
    /// Whether the errno is that one.
    pub fn is(&self, errno: rustix::io::Errno) -> bool {
        self.cause.raw_os_error() == Some(errno.raw_os_error())
    }
}

impl From<io::Error> for Refusal {
    fn from(cause: io::Error) -> Self {
        Self { index: 0, cause, words: String::new() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.words.is_empty() { write!(f, "{}", self.cause) } else { write!(f, "{} ({})", self.cause, self.words) }
    }
}

impl std::error::Error for Refusal {}

/// A netlink socket in the network namespace of the thread that opened it, for ever.
#[derive(Debug)]
pub(super) struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
}

impl Socket {
    /// Opens a socket for requests.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        let timeout = rustix::net::sockopt::Timeout::Recv;
        rustix::net::sockopt::set_socket_timeout(&socket, timeout, Some(RECEIVE_TIMEOUT))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Opens a socket that hears notifications of a group and does not block.
    pub fn listen(protocol: isize, group: u32, buffer_bytes: usize) -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(protocol)?;
        // A larger buffer than net.core.rmem_max is a favour; without it an overflow only costs a resynchronisation.
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, buffer_bytes).is_err() {
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket, buffer_bytes)?;
        }
        socket.bind_auto()?;
        socket.add_membership(group)?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Receives one datagram into `buffer`, replacing its content.
    pub fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.clear();
        buffer.reserve(RECEIVE_BYTES);
        loop {
            match self.socket.recv(buffer, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends the messages in one datagram and waits until each that wants an acknowledgement has one.
    ///
    /// Route netlink carries out the messages behind a refused one; nfnetlink does all of a batch or nothing.
    pub fn execute(&mut self, mut messages: Vec<Message>) -> Result<(), Refusal> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::with_capacity(messages.len() * 256);
        for message in &mut messages {
            self.sequence = self.sequence.wrapping_add(1);
            datagram.extend_from_slice(message.finish(self.sequence));
        }
        self.socket.send(&datagram, 0)?;
        let mut open = messages.iter().filter(|message| message.wants_ack()).count();
        let mut buffer = Vec::new();
        while open > 0 {
            self.receive(&mut buffer)?;
            for frame in Frames(&buffer) {
                let index = frame.sequence.wrapping_sub(first) as usize;
                if frame.kind != NLMSG_ERROR || index >= messages.len() {
                    continue;
                }
                if let Some(refusal) = refusal(&frame, index) {
                    return Err(refusal);
                }
                open = open.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Sends one message that is answered with one message, and gives that answer's fixed header and attributes.
    pub fn get(&mut self, mut message: Message) -> Result<Vec<u8>, Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(message.finish(self.sequence), 0)?;
        let mut buffer = Vec::new();
        loop {
            self.receive(&mut buffer)?;
            for frame in Frames(&buffer).filter(|frame| frame.sequence == self.sequence) {
                match refusal(&frame, 0) {
                    Some(refusal) => return Err(refusal),
                    None if frame.kind == NLMSG_ERROR => {}
                    None => return Ok(frame.payload.to_vec()),
                }
            }
        }
    }

    /// Sends a dump request and shows every message of the answer to `visit`.
    pub fn dump(&mut self, mut message: Message, mut visit: impl FnMut(&Frame<'_>)) -> Result<(), Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(message.finish(self.sequence), 0)?;
        let mut buffer = Vec::new();
        loop {
            self.receive(&mut buffer)?;
            for frame in Frames(&buffer).filter(|frame| frame.sequence == self.sequence) {
                if let Some(refusal) = refusal(&frame, 0) {
                    return Err(refusal);
                }
                if frame.kind == NLMSG_DONE {
                    return Ok(());
                }
                visit(&frame);
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The errno in an error message or at the end of a dump, if it is one.
fn refusal(frame: &Frame<'_>, index: usize) -> Option<Refusal> {
    if frame.kind != NLMSG_ERROR && frame.kind != NLMSG_DONE {
        return None;
    }
    let errno = i32::from_ne_bytes(frame.payload.get(..4)?.try_into().ok()?);
    if errno >= 0 {
        return None;
    }
    // With NETLINK_CAP_ACK the request's header follows the errno, and nothing of its payload.
    let behind = if frame.kind == NLMSG_DONE { 4 } else { 4 + MESSAGE_HEADER };
    let words = match frame.flags & NLM_F_ACK_TLVS {
        0 => String::new(),
        _ => frame.attributes(behind).text(NLMSGERR_ATTR_MSG).unwrap_or_default().to_owned(),
    };
    Some(Refusal { index, cause: io::Error::from_raw_os_error(-errno), words })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_built_can_be_read() {
        let mut message = Message::new(16, NLM_F_ACK, &[0; 16])
            .text(3, "eth0")
            .nest(18, |inner| inner.text(1, "veth").nest(2, |data| data.u32(7, 0xdead)));
        let bytes = message.finish(5).to_vec();
        let frame = Frames(&bytes).next().unwrap();
        assert_eq!((frame.kind, frame.sequence), (16, 5));
        let attributes = frame.attributes(16);
        assert_eq!(attributes.text(3), Some("eth0"));
        assert_eq!(attributes.inside(18).text(1), Some("veth"));
        assert_eq!(u32_at(attributes.inside(18).inside(2).get(7).unwrap(), 0), Some(0xdead));
    }

    #[test]
    fn refusals_carry_the_kernels_words() {
        let mut socket = Socket::open(NETLINK_ROUTE).unwrap();
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let refusal = socket.get(Message::new(18, 0, &header)).unwrap_err();
        assert!(refusal.is(rustix::io::Errno::NODEV), "{refusal}");
    }

    proptest! {
        #[test]
        fn hostile_bytes_end_the_iteration(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let frames: usize = Frames(&bytes).map(|frame| 16 + frame.payload.len()).sum();
            prop_assert!(frames <= bytes.len());
            let attributes: usize = Attributes(&bytes).map(|(_, payload)| 4 + payload.len()).sum();
            prop_assert!(attributes <= bytes.len());
        }
    }
}
