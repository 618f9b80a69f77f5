//! How streams stand in a connection's bytes: SPDY/3.1, SPDY within WebSocket messages, or channels of a WebSocket.
//! Bytes to events and back, without I/O.

use bytes::{Bytes, BytesMut};
use knarr_wire::channel::{self, Message};
use knarr_wire::spdy::{self, GoAwayStatus, Headers, Refused, ResetStatus, Session, StreamId};
use tungstenite::protocol::frame::coding::CloseCode;

use crate::outgoing::{Head, Outgoing};
use crate::websocket::{Kind, Received, WebSocket};

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// What has come from the peer.
#[derive(Debug)]
pub(crate) enum Event {
    Opened {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    Replied {
        stream: u32,
        fin: bool,
    },
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
    Reset {
        stream: u32,
    },
    /// The peer is about to go; nothing more comes.
    Away,
}

/// The protocol of one connection.
#[derive(Debug)]
pub(crate) enum Protocol {
    Spdy { session: Box<Session>, tunnel: Option<Tunnel> },
    Channels { socket: Box<WebSocket>, protocol: channel::Protocol, role: Role },
}

/// Carries SPDY within binary messages, whose boundaries mean nothing.
#[derive(Debug)]
pub(crate) struct Tunnel {
    socket: WebSocket,
    input: BytesMut,
}

impl Role {
    fn websocket(self) -> tungstenite::protocol::Role {
        match self {
            Self::Client => tungstenite::protocol::Role::Client,
            Self::Server => tungstenite::protocol::Role::Server,
        }
    }
}

impl Protocol {
    pub(crate) fn spdy(role: Role) -> Self {
        let role = match role {
            Role::Client => spdy::Role::Client,
            Role::Server => spdy::Role::Server,
        };
        Self::Spdy { session: Box::new(Session::new(role)), tunnel: None }
    }

    pub(crate) fn tunnel(role: Role) -> Self {
        let tunnelled = Tunnel { socket: WebSocket::new(role.websocket()), input: BytesMut::new() };
        match Self::spdy(role) {
            Self::Spdy { session, .. } => Self::Spdy { session, tunnel: Some(tunnelled) },
            channels => channels,
        }
    }

    pub(crate) fn channels(protocol: channel::Protocol, role: Role) -> Self {
        Self::Channels { socket: Box::new(WebSocket::new(role.websocket())), protocol, role }
    }

    /// Takes from `input` what makes the next event; `None`: more bytes are needed. Answers of the protocol itself go
    /// to `out`.
    ///
    /// # Errors
    /// The peer violates the protocol; what tells it so is in `out`.
    pub(crate) fn read(&mut self, input: &mut BytesMut, out: &mut Outgoing) -> Result<Option<Event>, String> {
        match self {
            Self::Spdy { session, tunnel: None } => {
                let mut answers = BytesMut::new();
                let event = next_of_spdy(session, input, &mut answers);
                out.push_answer(answers.freeze());
                event.map_err(|violation| violation.to_string())
            }
            Self::Spdy { session, tunnel: Some(tunnel) } => tunnel.read(session, input, out),
            Self::Channels { socket, protocol, .. } => read_channels(socket, *protocol, input, out),
        }
    }

    /// Sends bytes of a stream, and its end; false if that stream is not open (any more).
    pub(crate) fn data(&mut self, stream: u32, bytes: Bytes, fin: bool, out: &mut Outgoing) -> bool {
        match self {
            Self::Spdy { session, tunnel } => {
                let Ok(header) = session.data_header(StreamId(stream), bytes.len(), fin) else { return false };
                let head = Head::new(&header);
                match tunnel {
                    Some(tunnel) => tunnel.socket.write(Kind::Binary, &head, bytes, out),
                    None => {
                        out.push_head(head);
                        out.push(bytes);
                    }
                }
            }
            Self::Channels { socket, protocol, role } => {
                let channel = stream as u8;
                if !bytes.is_empty() {
                    write_channel(socket, *protocol, channel, bytes, out);
                }
                // A server never sends it: Go's client takes it for a message of an unknown channel and complains.
                if fin
                    && *role == Role::Client
                    && let Some(close) = protocol.encode_close(channel)
                {
                    socket.write(Kind::Binary, &Head::new(&close), Bytes::new(), out);
                }
            }
        }
        true
    }

    /// Sends a message without content, by which a client sees that the server is there.
    pub(crate) fn greet(&mut self, channel: u8, out: &mut Outgoing) {
        if let Self::Channels { socket, protocol, .. } = self {
            write_channel(socket, *protocol, channel, Bytes::new(), out);
        }
    }

    /// Opens a stream.
    pub(crate) fn open(&mut self, headers: &[(&str, &str)], out: &mut Outgoing) -> Result<u32, Refused> {
        match self {
            Self::Spdy { session, .. } => {
                let mut bytes = BytesMut::new();
                let stream = session.open(headers, &mut bytes)?;
                self.control(bytes, out);
                Ok(stream.0)
            }
            Self::Channels { .. } => Err(Refused::TooManyStreams),
        }
    }

    /// Accepts a stream that the peer has opened.
    pub(crate) fn reply(&mut self, stream: u32, out: &mut Outgoing) {
        if let Self::Spdy { session, .. } = self {
            let mut bytes = BytesMut::new();
            // It fails for a stream that has been reset meanwhile, of which the next event tells.
            let _ = session.reply(StreamId(stream), &mut bytes);
            self.control(bytes, out);
        }
    }

    /// Ends a stream in both directions, where the protocol can.
    pub(crate) fn reset(&mut self, stream: u32, refused: bool, out: &mut Outgoing) {
        if let Self::Spdy { session, .. } = self {
            let mut bytes = BytesMut::new();
            let status = if refused { ResetStatus::RefusedStream } else { ResetStatus::Cancel };
            session.reset(StreamId(stream), status, &mut bytes);
            self.control(bytes, out);
        }
    }

    /// Says good-bye, the last thing to send: streams that still go are reset.
    pub(crate) fn farewell(&mut self, out: &mut Outgoing) {
        match self {
            Self::Spdy { session, .. } => {
                let mut bytes = BytesMut::new();
                let open: Vec<_> = session.streams().filter(|stream| session.can_send(*stream)).collect();
                for stream in open {
                    session.reset(stream, ResetStatus::Cancel, &mut bytes);
                }
                session.go_away(GoAwayStatus::Ok, &mut bytes);
                self.control(bytes, out);
                if let Self::Spdy { tunnel: Some(tunnel), .. } = self {
                    tunnel.socket.close(CloseCode::Normal, out);
                }
            }
            Self::Channels { socket, .. } => socket.close(CloseCode::Normal, out),
        }
    }

    /// Sends frames of SPDY that are whole.
    fn control(&mut self, bytes: BytesMut, out: &mut Outgoing) {
        match self {
            Self::Spdy { tunnel: Some(tunnel), .. } if !bytes.is_empty() => {
                tunnel.socket.write(Kind::Binary, &Head::default(), bytes.freeze(), out);
            }
            _ => out.push(bytes.freeze()),
        }
    }
}

impl Tunnel {
    fn read(
        &mut self,
        session: &mut Session,
        input: &mut BytesMut,
        out: &mut Outgoing,
    ) -> Result<Option<Event>, String> {
        loop {
            let mut answers = BytesMut::new();
            let event = next_of_spdy(session, &mut self.input, &mut answers);
            if !answers.is_empty() {
                self.socket.write_answer(answers.freeze(), out);
            }
            match event {
                Err(violation) => {
                    self.socket.close(CloseCode::Protocol, out);
                    return Err(violation.to_string());
                }
                Ok(Some(event)) => return Ok(Some(event)),
                Ok(None) => {}
            }
            match self.socket.read(input, out)? {
                Some(Received::Message(bytes)) => self.input.extend_from_slice(&bytes),
                Some(Received::Closed) => return Ok(Some(Event::Away)),
                None => return Ok(None),
            }
        }
    }
}

fn next_of_spdy(
    session: &mut Session,
    input: &mut BytesMut,
    answers: &mut BytesMut,
) -> Result<Option<Event>, spdy::Violation> {
    while let Some(event) = session.next_event(input, answers)? {
        return Ok(Some(match event {
            spdy::Event::Opened { stream, headers, fin } => Event::Opened { stream: stream.0, headers, fin },
            spdy::Event::Replied { stream, fin } => Event::Replied { stream: stream.0, fin },
            spdy::Event::Data { stream, bytes, fin } => Event::Data { stream: stream.0, bytes, fin },
            spdy::Event::Reset { stream, .. } => Event::Reset { stream: stream.0 },
            spdy::Event::GoAway { .. } => Event::Away,
            spdy::Event::Pong(_) => continue,
        }));
    }
    Ok(None)
}

fn read_channels(
    socket: &mut WebSocket,
    protocol: channel::Protocol,
    input: &mut BytesMut,
    out: &mut Outgoing,
) -> Result<Option<Event>, String> {
    loop {
        let bytes = match socket.read(input, out)? {
            Some(Received::Message(bytes)) => bytes,
            Some(Received::Closed) => return Ok(Some(Event::Away)),
            None => return Ok(None),
        };
        return match protocol.decode(bytes) {
            Ok(Some(Message::Data { channel, bytes })) => {
                Ok(Some(Event::Data { stream: channel.into(), bytes, fin: false }))
            }
            Ok(Some(Message::Close { channel })) => {
                Ok(Some(Event::Data { stream: channel.into(), bytes: Bytes::new(), fin: true }))
            }
            Ok(None) => continue,
            Err(malformed) => {
                socket.close(CloseCode::Invalid, out);
                Err(malformed.to_string())
            }
        };
    }
}

fn write_channel(socket: &mut WebSocket, protocol: channel::Protocol, channel: u8, bytes: Bytes, out: &mut Outgoing) {
    if protocol.is_text() {
        let mut text = BytesMut::new();
        if protocol.encode(channel, &bytes, &mut text).is_ok() {
            socket.write(Kind::Text, &Head::default(), text.freeze(), out);
        }
    } else {
        socket.write(Kind::Binary, &Head::new(&[channel]), bytes, out);
    }
}
