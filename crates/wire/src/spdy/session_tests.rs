//! Tests of sessions: each rule of the protocol, frame by frame. Whole conversations are in tests/.

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::{self, kind};
use super::headers::Storer;
use super::*;

/// One end, and a peer that says whatever a test likes.
struct Talk {
    session: Session,
    input: BytesMut,
    output: BytesMut,
    storer: Storer,
}

impl Talk {
    fn with(role: Role) -> Self {
        let (input, output) = (BytesMut::new(), BytesMut::new());
        Self { session: Session::new(role), input, output, storer: Storer::default() }
    }

    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) {
        frame::put_control_header(kind, flags, body.len(), &mut self.input);
        self.input.put_slice(body);
    }

    fn syn_stream(&mut self, stream: u32, flags: u8, headers: &[(&str, &str)]) {
        let headers = Headers::new(headers).unwrap();
        frame::put_control_header(kind::SYN_STREAM, flags, 10 + self.storer.bytes(&headers), &mut self.input);
        self.input.put_u32(stream);
        self.input.put_bytes(0, 6);
        self.storer.put(&headers, &mut self.input);
    }

    fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        self.input.put_slice(&frame::data_header(StreamId(stream), bytes.len(), fin));
        self.input.put_slice(bytes);
    }

    fn ping(&mut self, id: u32) {
        self.control(kind::PING, 0, &id.to_be_bytes());
    }

    fn next(&mut self) -> Result<Option<Event>, Violation> {
        self.session.next_event(&mut self.input, &mut self.output)
    }

    /// Everything that happens until more bytes are needed.
    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.next().expect("no violation")).collect()
    }

    fn violation(&mut self) -> Violation {
        loop {
            match self.next() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("no violation"),
                Err(violation) => return violation,
            }
        }
    }

    /// What the session has answered by itself, as type and two words.
    fn answers(&mut self) -> Vec<(u16, u32, u32)> {
        let mut answers = Vec::new();
        let output = self.output.split();
        let mut rest = &output[..];
        while let Some((head, tail)) = rest.split_first_chunk() {
            let Head::Control { kind, length, .. } = Head::parse(*head) else { panic!("data nobody sent") };
            let (body, tail) = tail.split_at(length);
            answers.push((kind, frame::word(body, 0), frame::word(body, 4)));
            rest = tail;
        }
        answers
    }

    fn resets(&mut self) -> Vec<(u32, ResetStatus)> {
        let answers = self.answers().into_iter();
        answers
            .map(|(kind, stream, status)| {
                assert_eq!(kind, kind::RST_STREAM);
                (stream, ResetStatus::from_code(status))
            })
            .collect()
    }
}

use super::frame::Head;

fn server() -> Talk {
    Talk::with(Role::Server)
}

/// A server to which stream 1 has been opened, and which has accepted it.
fn server_with_stream() -> Talk {
    let mut talk = server();
    talk.syn_stream(1, 0, &[("streamtype", "stdin")]);
    assert_eq!(talk.events().len(), 1);
    talk.session.reply(StreamId(1), &mut talk.output).unwrap();
    talk.output.clear();
    talk
}

fn data(stream: u32, bytes: &'static [u8], fin: bool) -> Event {
    Event::Data { stream: StreamId(stream), bytes: Bytes::from_static(bytes), fin }
}

fn reset(stream: u32, status: ResetStatus) -> Event {
    Event::Reset { stream: StreamId(stream), status }
}

#[test]
fn a_stream_is_opened_accepted_used_and_forgotten() {
    let mut talk = server_with_stream();
    talk.data(1, b"in", false);
    talk.data(1, b"", true);
    assert_eq!(talk.events(), [data(1, b"in", false), data(1, b"", true)]);
    assert!(talk.session.can_send(StreamId(1)) && !talk.session.can_receive(StreamId(1)));
    assert_eq!(talk.session.data_header(StreamId(1), 3, true), Ok([0, 0, 0, 1, 1, 0, 0, 3]));
    assert_eq!(talk.session.streams().count(), 0);
    assert_eq!(talk.session.data_header(StreamId(1), 3, true), Err(NotOpen::Closed));
}

#[test]
fn a_peer_may_send_before_it_is_answered_but_we_may_not() {
    let mut talk = server();
    talk.syn_stream(1, 0, &[]);
    talk.data(1, b"early", false);
    assert_eq!(talk.events()[1], data(1, b"early", false));
    assert_eq!(talk.session.data_header(StreamId(1), 1, false), Err(NotOpen::Reply));
    talk.session.reply(StreamId(1), &mut talk.output).unwrap();
    assert_eq!(talk.session.reply(StreamId(1), &mut talk.output), Err(NotOpen::Reply));
    assert!(talk.session.data_header(StreamId(1), DATA_FRAME_BYTES_MAX, false).is_ok());
    assert_eq!(talk.session.data_header(StreamId(1), DATA_FRAME_BYTES_MAX + 1, false), Err(NotOpen::TooLong));
}

#[test]
fn an_answerer_may_not_send_before_it_has_accepted() {
    let mut talk = Talk::with(Role::Client);
    let stream = talk.session.open(&[("streamType", "stdout")], &mut talk.output).unwrap();
    assert_eq!(talk.session.reply(stream, &mut talk.output), Err(NotOpen::Reply));
    talk.output.clear();
    talk.data(1, b"early", false);
    assert_eq!(talk.events(), [reset(1, ResetStatus::ProtocolError)]);
    assert_eq!(talk.resets(), [(1, ResetStatus::ProtocolError)]);
}

#[test]
fn a_data_frame_comes_in_pieces_that_are_not_copied() {
    let mut talk = server_with_stream();
    talk.input.put_slice(&frame::data_header(StreamId(1), DATA_FRAME_BYTES_MAX, true));
    assert_eq!(talk.events(), []);
    let mut left = DATA_FRAME_BYTES_MAX;
    while left > 0 {
        talk.input.put_bytes(b'x', left.min(100_000));
        let place = talk.input.as_ptr();
        let Some(Event::Data { bytes, fin, .. }) = talk.next().unwrap() else { panic!("a piece") };
        assert!(bytes.as_ptr() == place && bytes.len() == left.min(100_000));
        left -= bytes.len();
        assert_eq!((fin, talk.input.len()), (left == 0, 0));
    }
}

#[test]
fn a_reset_within_a_frame_drops_the_rest_of_it() {
    let mut talk = server_with_stream();
    talk.data(1, b"0123456789", false);
    let rest = talk.input.split_off(13);
    assert_eq!(talk.events(), [data(1, b"01234", false)]);
    talk.session.reset(StreamId(1), ResetStatus::Cancel, &mut talk.output);
    talk.session.reset(StreamId(1), ResetStatus::Cancel, &mut talk.output);
    talk.input.unsplit(rest);
    talk.ping(3);
    assert_eq!(talk.events(), []);
    assert_eq!(talk.answers(), [(kind::RST_STREAM, 1, 5), (kind::PING, 3, 0)]);
}

#[test]
fn data_on_a_half_that_has_ended_resets_the_stream() {
    let mut talk = server_with_stream();
    talk.data(1, b"", true);
    talk.data(1, b"more", false);
    talk.data(1, b"and more", false);
    assert_eq!(talk.events(), [data(1, b"", true), reset(1, ResetStatus::StreamAlreadyClosed)]);
    assert_eq!(talk.resets(), [(1, ResetStatus::StreamAlreadyClosed)]);
}

#[test]
fn a_stream_that_never_was_is_reset_and_one_that_has_been_is_dropped() {
    let mut talk = server_with_stream();
    talk.session.reset(StreamId(1), ResetStatus::Cancel, &mut talk.output);
    talk.output.clear();
    talk.data(1, b"was on its way", true);
    talk.data(7, b"x", false);
    talk.data(4, b"x", false);
    talk.control(kind::RST_STREAM, 0, &[0, 0, 0, 9, 0, 0, 0, 5]);
    assert_eq!(talk.events(), []);
    assert_eq!(talk.resets(), [(7, ResetStatus::InvalidStream), (4, ResetStatus::InvalidStream)]);
}

#[test]
fn the_peers_reset_ends_a_stream() {
    let mut talk = server_with_stream();
    talk.control(kind::RST_STREAM, 0, &[0, 0, 0, 1, 0, 0, 0, 5]);
    assert_eq!(talk.events(), [reset(1, ResetStatus::Cancel)]);
    assert_eq!((talk.session.streams().count(), talk.output.len()), (0, 0));
}

#[test]
fn replies_are_told_once_and_only_for_own_streams() {
    let mut talk = Talk::with(Role::Client);
    for _ in 0..2 {
        talk.session.open(&[], &mut talk.output).unwrap();
    }
    talk.output.clear();
    let block = b"\x78\x01\x00\x04\x00\xfb\xff\0\0\0\0\0\0\0\xff\xff";
    talk.control(kind::SYN_REPLY, 1, &[&[0, 0, 0, 1], &block[..]].concat());
    talk.control(kind::SYN_REPLY, 0, &[&[0, 0, 0, 3], &block[2..]].concat());
    talk.control(kind::SYN_REPLY, 0, &[&[0, 0, 0, 3], &block[2..]].concat());
    talk.control(kind::SYN_REPLY, 0, &[&[0, 0, 0, 5], &block[2..]].concat());
    let replied = |stream, fin| Event::Replied { stream: StreamId(stream), fin };
    assert_eq!(talk.events(), [replied(1, true), replied(3, false), reset(3, ResetStatus::StreamInUse)]);
    assert_eq!(talk.resets(), [(3, ResetStatus::StreamInUse), (5, ResetStatus::InvalidStream)]);
    assert!(!talk.session.can_receive(StreamId(1)) && talk.session.can_send(StreamId(1)));
}

#[test]
fn pings_are_echoed_and_only_the_latest_of_ours_is_heard() {
    let mut talk = server();
    talk.ping(1);
    talk.ping(0xffff_ffff);
    assert_eq!(talk.events(), []);
    assert_eq!(talk.answers(), [(kind::PING, 1, 0), (kind::PING, 0xffff_ffff, 0)]);
    let ids = [talk.session.ping(&mut talk.output), talk.session.ping(&mut talk.output)];
    assert_eq!(ids, [2, 4]);
    for id in [2, 4, 4, 6] {
        talk.ping(id);
    }
    assert_eq!(talk.events(), [Event::Pong(4)]);
}

#[test]
fn frames_without_meaning_here_are_passed_over() {
    let mut talk = server();
    for kind in [4, 5, 9, 10, 11, 0xffff] {
        talk.control(kind, 0xff, &[0xee; 100]);
        talk.control(kind, 0, &[]);
    }
    talk.ping(1);
    // Byte by byte: not even their bodies are kept.
    let mut bytes = std::mem::take(&mut talk.input);
    while !bytes.is_empty() {
        talk.input.unsplit(bytes.split_to(1));
        assert_eq!(talk.next(), Ok(None));
        assert!(talk.input.len() < 12);
    }
    assert_eq!(talk.answers(), [(kind::PING, 1, 0)]);
}

#[test]
fn later_headers_are_inflated_and_may_end_a_half() {
    let mut talk = server_with_stream();
    let headers = Headers::new(&[("more", "of them")]).unwrap();
    let mut body = BytesMut::from(&[0, 0, 0, 1][..]);
    talk.storer.put(&headers, &mut body);
    talk.control(kind::HEADERS, 1, &body);
    // Had the block not gone through, this one would not either.
    talk.syn_stream(3, 1, &[("streamtype", "data")]);
    let headers = Headers::new(&[("streamtype", "data")]).unwrap();
    assert_eq!(talk.events(), [data(1, b"", true), Event::Opened { stream: StreamId(3), headers, fin: true }]);
}

#[test]
fn stream_numbers_must_grow_and_be_the_peers() {
    for (numbers, bad) in [(&[1, 3, 3][..], 3), (&[5, 3], 3), (&[2], 2), (&[0], 0), (&[0x7fff_ffff, 1], 1)] {
        let mut talk = server();
        for &number in numbers {
            talk.syn_stream(number, 0, &[]);
        }
        assert_eq!(talk.violation(), Violation::StreamNumber(bad));
        let last_good = numbers[..numbers.len() - 1].last().copied().unwrap_or(0);
        assert_eq!(talk.answers(), [(kind::GOAWAY, last_good, 1)]);
    }
    let mut talk = Talk::with(Role::Client);
    talk.syn_stream(1, 0, &[]);
    assert_eq!(talk.violation(), Violation::StreamNumber(1));
}

#[test]
fn a_violation_is_for_ever_and_said_once() {
    let mut talk = server();
    talk.data(0, b"", false);
    talk.ping(1);
    assert_eq!(talk.violation(), Violation::StreamZero);
    assert_eq!(talk.violation(), Violation::StreamZero);
    assert_eq!(talk.answers(), [(kind::GOAWAY, 0, 1)]);
    assert_eq!(talk.session.open(&[], &mut talk.output), Err(Refused::GoneAway));
}

#[test]
fn control_frames_have_bounds() {
    let mut talk = server();
    frame::put_control_header(kind::SYN_STREAM, 0, CONTROL_FRAME_BYTES_MAX + 1, &mut talk.input);
    assert_eq!(talk.violation(), Violation::FrameTooLong(1, CONTROL_FRAME_BYTES_MAX + 1));
    // What is not read is not waited for either.
    let mut talk = server();
    frame::put_control_header(4, 0, 0xff_ffff, &mut talk.input);
    assert_eq!(talk.violation(), Violation::FrameTooLong(4, 0xff_ffff));
    for (kind, length) in [(1, 9), (2, 3), (3, 7), (3, 9), (6, 3), (6, 5), (7, 4), (7, 12), (8, 3)] {
        let mut talk = server();
        talk.control(kind, 0, &vec![0; length]);
        assert_eq!(talk.violation(), Violation::FrameLength(kind, length));
    }
    let mut talk = server();
    talk.input.put_slice(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(talk.events(), [], "that is a data frame of stream 0x47455420, which never was");
    let mut talk = server();
    talk.input.put_slice(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
    assert_eq!(talk.violation(), Violation::Version(2));
}

#[test]
fn streams_have_a_limit_and_ended_ones_make_room() {
    let mut talk = server();
    for n in 0..=STREAMS_OPEN_MAX as u32 {
        talk.syn_stream(2 * n + 1, 0, &[]);
    }
    assert_eq!(talk.events().len(), STREAMS_OPEN_MAX);
    let last = 2 * STREAMS_OPEN_MAX as u32 + 1;
    assert_eq!(talk.resets(), [(last, ResetStatus::RefusedStream)]);
    assert_eq!(talk.session.open(&[], &mut talk.output), Err(Refused::TooManyStreams));
    talk.session.reset(StreamId(1), ResetStatus::Cancel, &mut talk.output);
    talk.syn_stream(last + 2, 0, &[]);
    assert_eq!(talk.events().len(), 1);
}

#[test]
fn a_long_session_does_not_grow() {
    let mut talk = server();
    for n in 0..50_000 {
        let stream = 2 * n + 1;
        talk.syn_stream(stream, 0, &[("port", "80")]);
        talk.data(stream, b"x", true);
        assert_eq!(talk.events().len(), 2);
        match n % 3 {
            0 => {
                talk.session.reply(StreamId(stream), &mut talk.output).unwrap();
                talk.session.data_header(StreamId(stream), 0, true).unwrap();
            }
            1 => talk.session.reset(StreamId(stream), ResetStatus::Cancel, &mut talk.output),
            _ => {
                talk.control(kind::RST_STREAM, 0, &[&stream.to_be_bytes()[..], &[0, 0, 0, 5]].concat());
                assert_eq!(talk.events().len(), 1);
            }
        }
        talk.output.clear();
        assert_eq!(talk.session.streams().count(), 0);
    }
}

#[test]
fn streams_of_one_direction_are_refused() {
    let mut talk = server();
    talk.syn_stream(1, frame::UNIDIRECTIONAL, &[]);
    assert_eq!(talk.events(), []);
    assert_eq!(talk.resets(), [(1, ResetStatus::RefusedStream)]);
}

#[test]
fn bad_names_end_their_stream_and_not_the_session() {
    let mut talk = server();
    let block = |headers: &[(&[u8], &[u8])]| {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
            plain.extend_from_slice(text);
        }
        let length = (plain.len() as u16).to_le_bytes();
        let not = (!(plain.len() as u16)).to_le_bytes();
        [&[0][..], &length, &not, &plain, &[0, 0, 0, 0xff, 0xff]].concat()
    };
    let cases: [&[(&[u8], &[u8])]; 5] = [
        &[(b"a", b"1"), (b"a", b"2")],
        &[(b"streamType", b"stdin")],
        &[(b"", b"x")],
        &[(b"a\xff", b"x")],
        &[(b"a", b"\xff")],
    ];
    for (n, headers) in (0..).zip(cases) {
        let stream = 2 * n + 1_u32;
        let start: &[u8] = if n == 0 { &[0x78, 0x01] } else { &[] };
        talk.control(kind::SYN_STREAM, 0, &[&stream.to_be_bytes()[..], &[0; 6], start, &block(headers)].concat());
        assert_eq!(talk.events(), []);
        assert_eq!(talk.resets(), [(stream, ResetStatus::ProtocolError)]);
    }
    talk.control(kind::SYN_STREAM, 0, &[&[0, 0, 0, 99], &[0; 6][..], &block(&[(b"a", b""), (b"b", b"x\0y")])].concat());
    let [Event::Opened { headers, .. }] = &talk.events()[..] else { panic!("a stream") };
    assert_eq!((headers.get("A"), headers.get("b"), headers.get("c")), (Some(""), Some("x"), None));
}

#[test]
fn after_our_go_away_new_streams_are_ignored_and_old_ones_go_on() {
    let mut talk = server_with_stream();
    talk.session.go_away(GoAwayStatus::Ok, &mut talk.output);
    talk.session.go_away(GoAwayStatus::InternalError, &mut talk.output);
    assert_eq!(talk.answers(), [(kind::GOAWAY, 1, 0)]);
    talk.syn_stream(3, 0, &[]);
    talk.data(3, b"lost", true);
    talk.data(1, b"here", false);
    assert_eq!(talk.events(), [data(1, b"here", false)]);
    assert_eq!(talk.output.len(), 0);
    assert_eq!(talk.session.open(&[], &mut talk.output), Err(Refused::GoneAway));
}

#[test]
fn after_the_peers_go_away_nothing_is_opened() {
    let mut talk = Talk::with(Role::Client);
    talk.session.open(&[], &mut talk.output).unwrap();
    talk.control(kind::GOAWAY, 0, &[0, 0, 0, 1, 0, 0, 0, 2]);
    let event = Event::GoAway { last_good: StreamId(1), status: GoAwayStatus::InternalError };
    assert_eq!(talk.events(), [event]);
    assert_eq!(talk.session.open(&[], &mut talk.output), Err(Refused::GoneAway));
}

#[test]
fn headers_to_send_have_limits() {
    let mut talk = Talk::with(Role::Client);
    let (name, value) = ("n".repeat(HEADER_NAME_BYTES_MAX), "v".repeat(HEADER_VALUE_BYTES_MAX));
    assert!(talk.session.open(&[(&name, &value)], &mut talk.output).is_ok());
    for headers in [
        &[(&*(name.clone() + "n"), "")][..],
        &[("a", &*(value.clone() + "v"))],
        &[("a", &value), ("b", &value)],
        &[("a", ""), ("A", "")],
        &[("", "")],
    ] {
        assert_eq!(talk.session.open(headers, &mut talk.output), Err(Refused::Headers));
    }
    let names: Vec<String> = (0..=HEADERS_MAX).map(|n| format!("h{n}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "")).collect();
    assert!(talk.session.open(&many[1..], &mut talk.output).is_ok());
    assert_eq!(talk.session.open(&many, &mut talk.output), Err(Refused::Headers));
    // Whatever goes out, another session takes.
    let mut peer = server();
    peer.input = talk.output;
    assert_eq!(peer.events().len(), 2);
}

#[test]
fn a_session_can_move_to_another_thread() {
    fn moves<T: Send + 'static>() {}
    moves::<Session>();
}
