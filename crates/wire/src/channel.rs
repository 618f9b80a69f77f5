//! Channels within WebSocket messages: which of Kubernetes' subprotocols is spoken, and messages to bytes of a channel
//! and back. The WebSocket itself is read elsewhere.
//!
//! | subprotocol | message | ends a channel |
//! |---|---|---|
//! | none, `channel.k8s.io`, `v4.channel.k8s.io` | channel's number, payload | no |
//! | `v5.channel.k8s.io` | channel's number, payload | 255, channel's number |
//! | `base64.channel.k8s.io`, `v4.base64.channel.k8s.io` | `0` plus channel's number, payload in base64 | no |
//!
//! Of exec and attach v4 and v5 end with a status in JSON, the others with a text in case of failure. A port-forward has
//! two channels for each port, or SPDY instead of channels ([`PortForward::Tunnel`]).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};

/// To the command.
pub const STDIN: u8 = 0;
/// From the command, or from its terminal.
pub const STDOUT: u8 = 1;
/// From the command.
pub const STDERR: u8 = 2;
/// How the command ended, from the server.
pub const ERROR: u8 = 3;
/// Sizes of the client's terminal.
pub const RESIZE: u8 = 4;
/// In v5 no channel: the next byte names a channel that its sender ends.
pub const CLOSE: u8 = 255;

/// Channels that base64 can name: `0` plus the number must stay a printing character of ASCII.
const BASE64_CHANNELS: u8 = 0x7f - b'0';

/// SPDY within binary messages, message boundaries meaning nothing.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// How channels are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Protocol {
    V1,
    V4,
    V5,
    V1Base64,
    V4Base64,
}

/// What a port-forward over a WebSocket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortForward {
    /// Two channels for each port of the request: `2n` for data, `2n + 1` for an error's text. The server first sends
    /// [`port_announcement`] on both.
    Channels(Protocol),
    /// A SPDY session of its own, as over an upgraded connection.
    Tunnel,
}

/// A message, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Bytes of a channel. They may be empty: servers open with an empty message.
    Data {
        /// Not necessarily one that means something here: such messages are to be ignored.
        channel: u8,
        /// Decoded.
        bytes: Bytes,
    },
    /// The sender has ended this channel.
    Close {
        /// Which.
        channel: u8,
    },
}

/// A message that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// The signal that ends a channel has not exactly one byte behind it.
    Close,
    /// What should be base64 is not.
    Base64,
    /// The subprotocol has no way to name this channel.
    Channel(u8),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Close => f.write_str("message that closes a channel does not name exactly one"),
            Self::Base64 => f.write_str("message is not base64"),
            Self::Channel(channel) => write!(f, "channel {channel} cannot be named in this subprotocol"),
        }
    }
}

impl std::error::Error for Malformed {}

impl Protocol {
    const ALL: [Self; 5] = [Self::V5, Self::V4, Self::V4Base64, Self::V1, Self::V1Base64];

    /// As it stands in Sec-WebSocket-Protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
            Self::V5 => "v5.channel.k8s.io",
            Self::V1Base64 => "base64.channel.k8s.io",
            Self::V4Base64 => "v4.base64.channel.k8s.io",
        }
    }

    /// By its name; no name is v1.
    pub fn from_name(name: &str) -> Option<Self> {
        if name.is_empty() {
            return Some(Self::V1);
        }
        Self::ALL.into_iter().find(|protocol| protocol.name() == name)
    }

    /// For exec and attach: the first of the client's that is known; v1 if it offers none, and then the answer must not
    /// name one.
    pub fn choose(offered: &[&str]) -> Option<Self> {
        if offered.is_empty() {
            return Some(Self::V1);
        }
        offered.iter().find_map(|name| Self::from_name(name))
    }

    /// Whether messages are text.
    pub fn is_text(self) -> bool {
        matches!(self, Self::V1Base64 | Self::V4Base64)
    }

    /// Whether a command's end is told in JSON rather than by a text in case of failure.
    pub fn has_status(self) -> bool {
        matches!(self, Self::V4 | Self::V5 | Self::V4Base64)
    }

    /// Whether a channel can be ended while others go on.
    pub fn has_close(self) -> bool {
        self == Self::V5
    }

    /// Channels are numbered from 0 to below this.
    pub fn channels(self) -> u8 {
        if self.is_text() { BASE64_CHANNELS } else { CLOSE }
    }

    /// Appends a message with `payload` for `channel` to `output`.
    ///
    /// # Errors
    /// [`Malformed::Channel`], if the number is not below [`Protocol::channels`].
    pub fn encode(self, channel: u8, payload: &[u8], output: &mut BytesMut) -> Result<(), Malformed> {
        if channel >= self.channels() {
            return Err(Malformed::Channel(channel));
        }
        if !self.is_text() {
            output.extend_from_slice(&[channel]);
            output.extend_from_slice(payload);
            return Ok(());
        }
        output.extend_from_slice(&[b'0' + channel]);
        output.extend_from_slice(STANDARD.encode(payload).as_bytes());
        Ok(())
    }

    /// The message that ends our half of `channel`; `None` where the subprotocol has none. It is for clients: Kubernetes'
    /// own client takes one from a server for data of an unknown channel, and complains. A server ends all by closing
    /// the WebSocket.
    pub fn encode_close(self, channel: u8) -> Option<[u8; 2]> {
        self.has_close().then_some([CLOSE, channel])
    }

    /// Decodes a whole message; `None` if it is empty, which means nothing.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn decode(self, message: Bytes) -> Result<Option<Message>, Malformed> {
        Decoder::new(self).feed(message, true)
    }
}

impl PortForward {
    /// As it stands in Sec-WebSocket-Protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Channels(protocol) => protocol.name(),
            Self::Tunnel => TUNNEL,
        }
    }

    /// The first of the client's that is known; channels in binary if it offers none, and then the answer must not name
    /// one.
    pub fn choose(offered: &[&str]) -> Option<Self> {
        if offered.is_empty() {
            return Some(Self::Channels(Protocol::V4));
        }
        offered.iter().find_map(|&name| match name {
            TUNNEL => Some(Self::Tunnel),
            "" => Some(Self::Channels(Protocol::V4)),
            _ => [Protocol::V4, Protocol::V4Base64].into_iter().find(|p| p.name() == name).map(Self::Channels),
        })
    }
}

/// What a server sends first on both channels of a port: its number, the small end first.
pub fn port_announcement(port: u16) -> [u8; 2] {
    port.to_le_bytes()
}

/// Decodes messages that come in pieces, so that no message needs to be held: there is no limit to their length.
#[derive(Debug)]
pub struct Decoder {
    protocol: Protocol,
    state: State,
}

#[derive(Debug)]
enum State {
    /// At the begin of a message.
    Begin,
    /// In a message for this channel.
    Channel { channel: u8, base64: Base64 },
    /// Behind [`CLOSE`].
    Close { channel: Option<u8> },
}

impl Decoder {
    /// At the begin of a message.
    pub fn new(protocol: Protocol) -> Self {
        Self { protocol, state: State::Begin }
    }

    /// Takes the next piece of a message; `last` says that the message ends with it. `None` if nothing can be said of
    /// it yet.
    ///
    /// # Errors
    /// See [`Malformed`]. After one the decoder is worth nothing.
    pub fn feed(&mut self, mut piece: Bytes, last: bool) -> Result<Option<Message>, Malformed> {
        let mut begins = false;
        if let State::Begin = self.state {
            if piece.is_empty() {
                return Ok(None);
            }
            begins = true;
            let first = piece.get_u8();
            self.state = match first {
                CLOSE if self.protocol.has_close() => State::Close { channel: None },
                // Go's servers take any byte, and ignore channels that they do not have.
                _ if self.protocol.is_text() => {
                    State::Channel { channel: first.wrapping_sub(b'0'), base64: Base64::default() }
                }
                channel => State::Channel { channel, base64: Base64::default() },
            };
        }
        let message = match &mut self.state {
            State::Close { channel } => {
                for byte in piece {
                    if channel.replace(byte).is_some() {
                        return Err(Malformed::Close);
                    }
                }
                match (last, *channel) {
                    (true, None) => return Err(Malformed::Close),
                    (true, Some(channel)) => Some(Message::Close { channel }),
                    (false, _) => None,
                }
            }
            State::Channel { channel, base64 } => {
                let bytes = if self.protocol.is_text() { base64.decode(&piece, last)? } else { piece };
                let tells = !bytes.is_empty() || (begins && last);
                tells.then_some(Message::Data { channel: *channel, bytes })
            }
            State::Begin => None,
        };
        if last {
            self.state = State::Begin;
        }
        Ok(message)
    }
}

/// Base64 that comes in pieces: what does not fill a group of four characters waits for the next.
#[derive(Debug, Default)]
struct Base64 {
    held: [u8; 4],
    length: usize,
    /// Padding has come, and nothing may follow it.
    padded: bool,
}

impl Base64 {
    fn decode(&mut self, text: &[u8], last: bool) -> Result<Bytes, Malformed> {
        let mut decoded = Vec::with_capacity((self.length + text.len()) / 4 * 3);
        // Line breaks within base64 are allowed, as in Go's decoder.
        for &character in text.iter().filter(|c| !matches!(c, b'\r' | b'\n')) {
            if self.padded {
                return Err(Malformed::Base64);
            }
            self.held[self.length] = character;
            self.length += 1;
            if self.length == self.held.len() {
                let mut group = [0; 3];
                let count = STANDARD.decode_slice(self.held, &mut group).map_err(|_| Malformed::Base64)?;
                decoded.extend_from_slice(&group[..count]);
                self.length = 0;
                self.padded = count < group.len();
            }
        }
        if last && self.length > 0 {
            return Err(Malformed::Base64);
        }
        Ok(decoded.into())
    }
}

/// The fuzz target: the first byte says which subprotocol, the second how the message is cut, the rest is the message.
#[cfg(any(test, feature = "fuzzing"))]
pub fn fuzz(data: &[u8]) {
    let &[which, cut, ref message @ ..] = data else { return };
    let protocol = Protocol::ALL[usize::from(which) % Protocol::ALL.len()];
    let whole = protocol.decode(Bytes::copy_from_slice(message));

    let mut decoder = Decoder::new(protocol);
    let mut joined = Ok(None);
    let pieces: Vec<&[u8]> = message.chunks(usize::from(cut).max(1)).collect();
    for (at, piece) in pieces.iter().enumerate() {
        joined = match (joined, decoder.feed(Bytes::copy_from_slice(piece), at + 1 == pieces.len())) {
            (Ok(Some(Message::Data { channel, bytes })), Ok(Some(Message::Data { channel: same, bytes: more }))) => {
                assert_eq!(channel, same);
                Ok(Some(Message::Data { channel, bytes: [&bytes[..], &more].concat().into() }))
            }
            (Ok(before), Ok(None)) => Ok(before),
            (_, now) => now,
        };
        if joined.is_err() {
            break;
        }
    }
    match (&whole, &joined) {
        // Nothing of the payload came: cut, that is seen only at its end, and the channel alone told before.
        (Ok(Some(Message::Data { bytes, .. })), Ok(None)) => assert!(bytes.is_empty()),
        _ => assert_eq!(whole, joined),
    }

    if let Ok(Some(Message::Data { channel, bytes })) = whole
        && channel < protocol.channels()
    {
        let mut again = BytesMut::new();
        protocol.encode(channel, &bytes, &mut again).expect("a channel that has a name");
        assert_eq!(protocol.decode(again.freeze()), Ok(Some(Message::Data { channel, bytes })));
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::remotecommand::CommandEnd;

    fn decode(protocol: Protocol, message: &'static [u8]) -> Result<Option<Message>, Malformed> {
        protocol.decode(Bytes::from_static(message))
    }

    fn data(channel: u8, bytes: &'static [u8]) -> Result<Option<Message>, Malformed> {
        Ok(Some(Message::Data { channel, bytes: Bytes::from_static(bytes) }))
    }

    #[test]
    fn the_clients_first_known_subprotocol_is_chosen() {
        assert_eq!(Protocol::choose(&[]), Some(Protocol::V1));
        assert_eq!(Protocol::choose(&["x", "v4.channel.k8s.io", "v5.channel.k8s.io"]), Some(Protocol::V4));
        assert_eq!(Protocol::choose(&["v5.channel.k8s.io", "v4.channel.k8s.io"]), Some(Protocol::V5));
        assert_eq!(Protocol::choose(&["v3.channel.k8s.io", "V4.channel.k8s.io"]), None);
        for protocol in Protocol::ALL {
            assert_eq!(Protocol::choose(&[protocol.name()]), Some(protocol));
        }
    }

    #[test]
    fn a_port_forward_is_tunnelled_or_has_channels() {
        let channels = |protocol| Some(PortForward::Channels(protocol));
        assert_eq!(PortForward::choose(&[]), channels(Protocol::V4));
        assert_eq!(PortForward::choose(&["v4.base64.channel.k8s.io"]), channels(Protocol::V4Base64));
        assert_eq!(PortForward::choose(&["SPDY/3.1+portforward.k8s.io"]), Some(PortForward::Tunnel));
        assert_eq!(PortForward::choose(&["channel.k8s.io", "v5.channel.k8s.io", "portforward.k8s.io"]), None);
    }

    /// As client-go 0.36.1 sent it over v5 for stdin "typed" on a terminal, and what it was seen to take.
    #[test]
    fn messages_of_kubernetes_client_are_understood() {
        let v5 = |message| decode(Protocol::V5, message);
        assert_eq!(v5(b"\x04{\"Width\":80,\"Height\":24}\n"), data(RESIZE, b"{\"Width\":80,\"Height\":24}\n"));
        assert_eq!(v5(b"\x00typed"), data(STDIN, b"typed"));
        assert_eq!(v5(b"\xff\x00"), Ok(Some(Message::Close { channel: STDIN })));

        let mut message = BytesMut::new();
        Protocol::V5.encode(ERROR, &CommandEnd::Success.encode(true), &mut message).unwrap();
        assert_eq!(&message[..], b"\x03{\"status\":\"Success\"}");
        assert_eq!(Protocol::V5.encode_close(STDOUT), Some([255, 1]));
    }

    /// As k8s.io/cri-streaming 0.36.3 sent it: a command with stderr that exits with 42, and a forwarded port 80.
    #[test]
    fn messages_of_kubernetes_server_are_understood() {
        let base64 = |message| decode(Protocol::V4Base64, message);
        assert_eq!(base64(b"1"), data(STDOUT, b""));
        assert_eq!(base64(b"2dG8gc3RkZXJyCg=="), data(STDERR, b"to stderr\n"));
        let status =
            b"3eyJzdGF0dXMiOiJGYWlsdXJlIiwibWVzc2FnZSI6ImNvbW1hbmQgdGVybWluYXRlZCB3aXRoIG5vbi16ZXJvIGV4aXQgY29\
            kZTogZXhpdCBzdGF0dXMgNDIiLCJyZWFzb24iOiJOb25aZXJvRXhpdENvZGUiLCJkZXRhaWxzIjp7ImNhdXNlcyI6W3sicmVhc29uIjoiRX\
            hpdENvZGUiLCJtZXNzYWdlIjoiNDIifV19fQ==";
        let Ok(Some(Message::Data { channel: ERROR, bytes })) = base64(status) else { panic!("a status") };
        assert_eq!(CommandEnd::decode(&bytes, true), CommandEnd::Exited(42));
        assert_eq!(CommandEnd::Exited(42).encode(true), bytes);
        assert_eq!(base64(b"0UAA="), data(0, b"\x50\x00"));
        assert_eq!(port_announcement(80), *b"\x50\x00");
        assert_eq!(decode(Protocol::V1, b"\x01"), data(STDOUT, b""));
    }

    #[test]
    fn an_empty_message_says_nothing() {
        for protocol in Protocol::ALL {
            assert_eq!(decode(protocol, b""), Ok(None));
        }
    }

    #[test]
    fn only_v5_closes_and_then_exactly_one_channel() {
        for bad in [&b"\xff"[..], b"\xff\x00\x01"] {
            assert_eq!(decode(Protocol::V5, bad), Err(Malformed::Close));
        }
        assert_eq!(decode(Protocol::V4, b"\xff\x00"), data(255, b"\x00"));
        assert_eq!(Protocol::V4.encode_close(0), None);
        assert_eq!(Protocol::V5.encode(CLOSE, b"", &mut BytesMut::new()), Err(Malformed::Channel(CLOSE)));
    }

    #[test]
    fn base64_is_whole_and_ends_with_its_padding() {
        let base64 = |message| decode(Protocol::V1Base64, message);
        assert_eq!(base64(b"0YQ==\r\n"), data(STDIN, b"a"));
        assert_eq!(base64(b"0YW\nJj"), data(STDIN, b"abc"));
        for bad in [&b"0Y"[..], b"0YQ", b"0YQ=", b"0YQ==YQ==", b"0Y!==", b"0=", b"0YR=="] {
            assert_eq!(base64(bad), Err(Malformed::Base64), "{}", bad.escape_ascii());
        }
        assert_eq!(decode(Protocol::V4Base64, b"/"), data(255, b""));
        assert_eq!(Protocol::V4Base64.encode(79, b"", &mut BytesMut::new()), Err(Malformed::Channel(79)));
        let mut last = BytesMut::new();
        Protocol::V4Base64.encode(78, b"", &mut last).unwrap();
        assert_eq!(&last[..], b"~");
    }

    #[test]
    fn a_message_that_comes_in_pieces_is_passed_on_in_pieces() {
        let mut decoder = Decoder::new(Protocol::V4);
        let mut feed = |piece, last| decoder.feed(Bytes::from_static(piece), last);
        assert_eq!(feed(b"\x00", false), Ok(None));
        assert_eq!(feed(b"ab", false), data(STDIN, b"ab"));
        assert_eq!(feed(b"\xff", false), data(STDIN, b"\xff"));
        assert_eq!(feed(b"", true), Ok(None));
        assert_eq!(feed(b"\x01", true), data(STDOUT, b""));
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(which in 0_usize..5, channel: u8, payload in vec(any::<u8>(), 0..300)) {
            let protocol = Protocol::ALL[which];
            let mut message = BytesMut::new();
            let encoded = protocol.encode(channel, &payload, &mut message);
            prop_assert_eq!(encoded.is_ok(), channel < protocol.channels());
            prop_assert!(encoded.is_ok() || message.is_empty());
            if encoded.is_ok() {
                prop_assert!(!protocol.is_text() || message.is_ascii());
                let bytes = Bytes::from(payload);
                prop_assert_eq!(protocol.decode(message.freeze()), Ok(Some(Message::Data { channel, bytes })));
            }
        }

        #[test]
        fn any_message_is_the_same_however_it_is_cut(data in vec(any::<u8>(), 0..60), text in "[0-4][A-Za-z0-9+/]{0,40}={0,3}") {
            fuzz(&data);
            for which in 0..5 {
                fuzz(&[&[which, data.len() as u8][..], text.as_bytes()].concat());
                fuzz(&[&[which, 1, 255], &data[..]].concat());
            }
        }
    }
}
