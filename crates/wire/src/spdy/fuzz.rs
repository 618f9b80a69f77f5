//! What the fuzz targets of SPDY call. Whatever the bytes are, nothing panics, no limit is passed, and how they are cut
//! makes no difference.

use bytes::{Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress};

use super::dictionary::DICTIONARY;
use super::headers::Inflater;
use super::{
    CONTROL_FRAME_BYTES_MAX, Event, FRAME_HEADER_BYTES, HEADER_BLOCK_BYTES_MAX, HEADERS_MAX, Headers, ResetStatus,
    Role, STREAMS_OPEN_MAX, Session, StreamId, Violation,
};

/// What came of some bytes: events with pieces of data put together, what was answered, and how it ended.
type Outcome = (Vec<Event>, BytesMut, Option<Violation>);

/// The first byte says which end this is and how the rest is cut, the rest is what the peer sends.
pub fn session(data: &[u8]) {
    let Some((&first, bytes)) = data.split_first() else { return };
    let role = if first & 1 == 0 { Role::Server } else { Role::Client };
    let whole = converse(role, bytes, bytes.len().max(1));
    let cut = converse(role, bytes, usize::from(first >> 1) % 64 + 1);
    assert_eq!(whole, cut);
}

fn converse(role: Role, bytes: &[u8], piece: usize) -> Outcome {
    let mut session = Session::new(role);
    let (mut input, mut output, mut events) = (BytesMut::new(), BytesMut::new(), Vec::new());
    for _ in 0..if role == Role::Client { 4 } else { 0 } {
        session.open(&[("streamtype", "any")], &mut output).expect("the first streams");
    }
    for bytes in bytes.chunks(piece) {
        input.extend_from_slice(bytes);
        loop {
            let (before, answered) = (input.len(), output.len());
            let event = session.next_event(&mut input, &mut output);
            assert!(output.len() - answered <= 2 * (before - input.len()) + 16);
            assert!(session.streams().count() <= STREAMS_OPEN_MAX);
            match event {
                Ok(Some(event)) => {
                    act(&mut session, &event, &mut output);
                    join(&mut events, event);
                }
                Ok(None) => break,
                Err(violation) => return (events, output, Some(violation)),
            }
        }
        assert!(input.len() < FRAME_HEADER_BYTES + CONTROL_FRAME_BYTES_MAX);
    }
    (events, output, None)
}

/// What a server might do; only at points that do not depend on how the bytes were cut.
fn act(session: &mut Session, event: &Event, output: &mut BytesMut) {
    let Event::Opened { stream, .. } = event else { return };
    match stream.0 / 2 % 4 {
        0 => session.reset(*stream, ResetStatus::Cancel, output),
        1 => session.reply(*stream, output).expect("just opened"),
        2 => {
            session.reply(*stream, output).expect("just opened");
            output.extend_from_slice(&session.data_header(*stream, 0, true).expect("just accepted"));
        }
        _ => {}
    }
}

/// Pieces of one stream's data that follow each other become one.
fn join(events: &mut Vec<Event>, event: Event) {
    if let (Some(Event::Data { stream: last, bytes: before, fin: false }), Event::Data { stream, bytes: after, fin }) =
        (events.last(), &event)
        && last == stream
    {
        let joined = Event::Data { stream: *stream, bytes: Bytes::from([&before[..], after].concat()), fin: *fin };
        events.pop();
        events.push(joined);
        return;
    }
    events.push(event);
}

/// `data` as a deflated block, as an inflated one, and as one that a peer with a compressor sends.
pub fn headers(data: &[u8]) {
    if let Ok(block) = Inflater::default().block(data) {
        assert!(block.len() <= HEADER_BLOCK_BYTES_MAX);
        read(&block);
    }
    read(data);

    let mut compress = Compress::new(Compression::fast(), true);
    compress.set_dictionary(DICTIONARY).expect("before the first byte");
    let mut deflated = Vec::with_capacity(data.len() + 1024);
    compress.compress_vec(data, &mut deflated, FlushCompress::Sync).expect("plain memory");
    let inflated = Inflater::default().block(&deflated);
    match data.len() {
        0..=HEADER_BLOCK_BYTES_MAX => assert_eq!(inflated.as_deref(), Ok(data)),
        _ => assert_eq!(inflated, Err(Violation::HeaderBlockTooLong)),
    }
}

/// What can be read comes out of a session of ours as it went in.
fn read(block: &[u8]) {
    let Ok(headers) = Headers::parse(block) else { return };
    let list: Vec<_> = headers.iter().collect();
    assert!(list.len() <= HEADERS_MAX);
    let mut wire = BytesMut::new();
    if Session::new(Role::Client).open(&list, &mut wire).is_err() {
        return;
    }
    let event = Session::new(Role::Server).next_event(&mut wire, &mut BytesMut::new());
    assert_eq!(event, Ok(Some(Event::Opened { stream: StreamId(1), headers, fin: false })));
}
