//! WebSocket frames, without I/O: tungstenite reads out of a buffer and writes into one. Frames of data that a server
//! sends are put together here, because they need no mask and so no copy of their payload.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use tungstenite::Error;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig, WebSocketContext};

use crate::outgoing::{Head, Outgoing};

/// Bytes of one message from the peer. Clients send what they have read at once, 32 KiB; one that pastes a file whole
/// gets this far.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes that are taken out of the connection's buffer at once.
const READ_BYTES: usize = 64 << 10;
/// Bytes of our messages that tungstenite may hold: it writes into memory and so never holds any, but asks for more than
/// none.
const WRITE_BYTES_MAX: usize = 1 << 10;

/// One end of a WebSocket connection.
#[derive(Debug)]
pub(crate) struct WebSocket {
    context: WebSocketContext,
    role: Role,
}

/// What bytes and what kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Binary,
    Text,
}

/// What has come.
#[derive(Debug)]
pub(crate) enum Received {
    Message(Bytes),
    /// The peer wants to close; the answer has been queued.
    Closed,
}

impl WebSocket {
    pub(crate) fn new(role: Role) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(MESSAGE_BYTES_MAX + WRITE_BYTES_MAX)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        Self { context: WebSocketContext::new(role, Some(config)), role }
    }

    /// Takes from `input` what makes the next message; `None`: more bytes are needed. Pings are answered into `out`.
    ///
    /// # Errors
    /// The peer violates the protocol; a close frame that says so is in `out`.
    pub(crate) fn read(&mut self, input: &mut BytesMut, out: &mut Outgoing) -> Result<Option<Received>, String> {
        let mut written = Vec::new();
        let result = loop {
            match self.context.read(&mut Memory { input, written: &mut written }) {
                Ok(Message::Binary(bytes)) => break Ok(Some(Received::Message(bytes))),
                Ok(Message::Text(text)) => break Ok(Some(Received::Message(text.into()))),
                Ok(Message::Close(_)) => break Ok(Some(Received::Closed)),
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => break Ok(None),
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => break Ok(Some(Received::Closed)),
                Err(error) => break Err(error),
            }
        };
        // The answer to a ping or a close is written with the next call, which may be long in coming.
        let _ = self.context.flush(&mut Memory { input: &mut BytesMut::new(), written: &mut written });
        out.push_answer(written.into());
        result.map_err(|error| {
            let code = match error {
                Error::Capacity(_) => CloseCode::Size,
                Error::Utf8(_) => CloseCode::Invalid,
                _ => CloseCode::Protocol,
            };
            self.close(code, out);
            format!("WebSocket: {error}")
        })
    }

    /// Sends one message: a head of the payload that stands in another buffer, and the rest of the payload.
    pub(crate) fn write(&mut self, kind: Kind, head: &Head, body: Bytes, out: &mut Outgoing) {
        if let Some(body) = self.frame(kind, head, body, out) {
            out.push(body);
        }
    }

    /// Sends one message which answers what came, and is counted as such.
    pub(crate) fn write_answer(&mut self, body: Bytes, out: &mut Outgoing) {
        if let Some(body) = self.frame(Kind::Binary, &Head::default(), body, out) {
            out.push_answer(body);
        }
    }

    /// Puts the head of a frame into `out` and gives what goes behind it; nothing if nothing may be sent any more.
    fn frame(&mut self, kind: Kind, head: &Head, body: Bytes, out: &mut Outgoing) -> Option<Bytes> {
        if !self.context.can_write() {
            return None;
        }
        if self.role == Role::Server {
            let opcode = OpCode::Data(if kind == Kind::Text { Data::Text } else { Data::Binary });
            let header = FrameHeader { opcode, ..FrameHeader::default() };
            let mut frame = Writer(Head::default());
            // Writing into a head cannot fail.
            let _ = header.format((head.len() + body.len()) as u64, &mut frame);
            let mut frame = frame.0;
            frame.push(head.as_slice());
            out.push_head(frame);
            return Some(body);
        }
        // A client's frames are masked byte by byte, in a copy.
        let mut message = Vec::with_capacity(head.len() + body.len());
        message.extend_from_slice(head.as_slice());
        message.extend_from_slice(&body);
        let message = match kind {
            Kind::Binary => Message::Binary(message.into()),
            Kind::Text => Message::Text(String::from_utf8(message).ok()?.into()),
        };
        let mut written = Vec::new();
        // Into memory alone, and open for writing: it cannot fail.
        let _ = self.context.write(&mut Memory { input: &mut BytesMut::new(), written: &mut written }, message);
        Some(written.into())
    }

    /// Sends a close frame, unless that has been done.
    pub(crate) fn close(&mut self, code: CloseCode, out: &mut Outgoing) {
        let mut written = Vec::new();
        let frame = CloseFrame { code, reason: "".into() };
        let _ = self.context.close(&mut Memory { input: &mut BytesMut::new(), written: &mut written }, Some(frame));
        out.push(written.into());
    }
}

/// A connection that is only memory: reading what is not there would block, writing never does.
struct Memory<'a> {
    input: &'a mut BytesMut,
    written: &'a mut Vec<u8>,
}

impl Read for Memory<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let length = buffer.len().min(self.input.len());
        self.input.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

impl Write for Memory<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Writer(Head);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
