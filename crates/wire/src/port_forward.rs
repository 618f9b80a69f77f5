//! Which two streams of a port-forward belong together: one for data, one for an error's text. It keeps no stream and
//! no time: numbers, headers and the present moment come in.
//!
//! A client opens both with the headers `streamtype` (`error` or `data`), `port` and `requestid`; streams with the same
//! request id are a pair. Clients from before 2015 send no id: there a data stream's number is two more than its error
//! stream's.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use crate::spdy::{Headers, STREAMS_OPEN_MAX, StreamId};

/// The protocol's name in X-Stream-Protocol-Version.
pub const PROTOCOL: &str = "portforward.k8s.io";

/// The header that says what a stream is for.
pub const STREAM_TYPE_HEADER: &str = "streamtype";
/// The value of it for a stream that carries the connection's bytes.
pub const DATA: &str = "data";
/// The value of it for a stream that carries an error's text, from the server.
pub const ERROR: &str = "error";
/// The header with the port in decimal digits.
pub const PORT_HEADER: &str = "port";
/// The header that both streams of a pair share.
pub const REQUEST_ID_HEADER: &str = "requestid";

/// How long a stream waits for its other one: what Kubernetes' servers give it.
pub const HALF_PAIR_WAIT: Duration = Duration::from_secs(30);

/// Streams that wait for their other one: as many pairs as streams can be open.
pub const HALF_PAIRS_MAX: usize = STREAMS_OPEN_MAX / 2;

/// Bytes of a request id: kubectl's are numbers.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

/// What to do with a stream that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// Accept it; with it this pair is complete.
    Pair(Pair),
    /// Accept it; its other one has not come yet.
    Waiting,
    /// Reset it.
    Refused(Refused),
}

/// One connection to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// Carries the connection's bytes, both ways.
    pub data: StreamId,
    /// Carries an error's text to the client.
    pub error: StreamId,
    /// The port within the pod.
    pub port: u16,
}

/// Why a stream was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The header `streamtype` is not there, or neither `data` nor `error`.
    StreamType,
    /// The header `port` is not there or no number from 1 to 65535.
    Port,
    /// The two streams of a pair have different ports: the first, and this one.
    PortsDiffer(u16, u16),
    /// A stream of this type and request waits already.
    Twice,
    /// The request id is longer than [`REQUEST_ID_BYTES_MAX`].
    RequestId,
    /// [`HALF_PAIRS_MAX`] streams wait already.
    TooMany,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("port-forward: ")?;
        match self {
            Self::StreamType => f.write_str("header streamType must be data or error"),
            Self::Port => f.write_str("header port must be a number from 1 to 65535"),
            Self::PortsDiffer(first, second) => write!(f, "port {first} and {second} in one request"),
            Self::Twice => f.write_str("second stream of this type in one request"),
            Self::RequestId => f.write_str("header requestID is too long"),
            Self::TooMany => f.write_str("too many streams wait for their other one"),
        }
    }
}

impl std::error::Error for Refused {}

/// A stream whose other one did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lone {
    /// Its number.
    pub stream: StreamId,
    /// Whether it is an error stream, on which the client can be told.
    pub is_error: bool,
    /// Its port.
    pub port: u16,
}

/// What makes two streams a pair.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Request {
    Id(String),
    /// The number of the error stream, of clients without ids.
    ErrorStream(u32),
}

#[derive(Debug)]
struct Half {
    lone: Lone,
    since: Instant,
}

/// The streams of one session that wait for their other one.
#[derive(Debug, Default)]
pub struct Pairing {
    halves: BTreeMap<Request, Half>,
}

impl Pairing {
    /// Nothing waits.
    pub fn new() -> Self {
        Self::default()
    }

    /// The client has opened a stream.
    pub fn opened(&mut self, stream: StreamId, headers: &Headers, now: Instant) -> Opened {
        self.sort_in(stream, headers, now).unwrap_or_else(Opened::Refused)
    }

    fn sort_in(&mut self, stream: StreamId, headers: &Headers, now: Instant) -> Result<Opened, Refused> {
        let is_error = match headers.get(STREAM_TYPE_HEADER) {
            Some(ERROR) => true,
            Some(DATA) => false,
            _ => return Err(Refused::StreamType),
        };
        let port = headers.get(PORT_HEADER).and_then(parse_port).ok_or(Refused::Port)?;
        let request = match headers.get(REQUEST_ID_HEADER) {
            Some(id) if id.len() > REQUEST_ID_BYTES_MAX => return Err(Refused::RequestId),
            Some(id) if !id.is_empty() => Request::Id(id.to_owned()),
            _ if is_error => Request::ErrorStream(stream.0),
            _ => Request::ErrorStream(stream.0.wrapping_sub(2)),
        };
        let lone = Lone { stream, is_error, port };
        if let Some(Half { lone: other, .. }) = self.halves.get(&request) {
            if other.is_error == is_error {
                return Err(Refused::Twice);
            }
            if other.port != port {
                return Err(Refused::PortsDiffer(other.port, port));
            }
            let (data, error) = if is_error { (other.stream, stream) } else { (stream, other.stream) };
            self.halves.remove(&request);
            return Ok(Opened::Pair(Pair { data, error, port }));
        }
        if self.halves.len() >= HALF_PAIRS_MAX {
            return Err(Refused::TooMany);
        }
        self.halves.insert(request, Half { lone, since: now });
        Ok(Opened::Waiting)
    }

    /// A stream has ended: if it waited, it does not any more.
    pub fn ended(&mut self, stream: StreamId) {
        self.halves.retain(|_, half| half.lone.stream != stream);
    }

    /// Takes out the streams that have waited for [`HALF_PAIR_WAIT`].
    pub fn expired(&mut self, now: Instant) -> Vec<Lone> {
        let is_over = |half: &Half| now.saturating_duration_since(half.since) >= HALF_PAIR_WAIT;
        let over = self.halves.values().filter(|half| is_over(half)).map(|half| half.lone).collect();
        self.halves.retain(|_, half| !is_over(half));
        over
    }

    /// When [`Pairing::expired`] is worth asking next.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.halves.values().map(|half| half.since + HALF_PAIR_WAIT).min()
    }
}

/// A port in decimal digits, as Go's ParseUint takes it: no sign.
pub fn parse_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0)
}

/// The fuzz target: each four bytes are a stream that is opened, with headers picked from a few, or one that has ended,
/// and how many seconds go by.
#[cfg(any(test, feature = "fuzzing"))]
pub fn fuzz(data: &[u8]) {
    let mut pairing = Pairing::new();
    let mut now = Instant::now();
    let mut stream = 1;
    for &[what, port, id, seconds] in data.as_chunks().0 {
        now += Duration::from_secs(u64::from(seconds % 8));
        let due = pairing.next_expiry();
        let expired = pairing.expired(now);
        assert_eq!(due.is_some_and(|due| due <= now), !expired.is_empty());
        if what & 0x80 != 0 {
            pairing.ended(StreamId(u32::from(id)));
            continue;
        }
        let id = id.to_string();
        let mut headers =
            vec![(PORT_HEADER, ["80", "81", "0", "65535", "65536", "+1", "", "x"][usize::from(port % 8)])];
        headers.extend([(STREAM_TYPE_HEADER, DATA), (STREAM_TYPE_HEADER, ERROR)].get(usize::from(what % 3)));
        headers.extend((what & 4 != 0).then_some((REQUEST_ID_HEADER, &*id)));
        let headers = Headers::new(&headers).expect("short headers");
        match pairing.opened(StreamId(stream), &headers, now) {
            Opened::Pair(pair) => assert!(pair.data != pair.error && pair.port > 0),
            Opened::Waiting | Opened::Refused(_) => {}
        }
        assert!(pairing.halves.len() <= HALF_PAIRS_MAX);
        stream += 2;
    }
    let waiting = pairing.halves.len();
    assert_eq!(pairing.expired(now + HALF_PAIR_WAIT).len(), waiting);
    assert_eq!(pairing.next_expiry(), None);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn headers(kind: &str, port: &str, id: &str) -> Headers {
        Headers::new(&[("streamType", kind), ("port", port), ("requestID", id)]).unwrap()
    }

    fn pair(error: u32, data: u32, port: u16) -> Opened {
        Opened::Pair(Pair { data: StreamId(data), error: StreamId(error), port })
    }

    /// Opens streams 1, 3, 5, … of these types, ports and ids, all at one moment.
    fn open(streams: &[(&str, &str, &str)]) -> Vec<Opened> {
        let (mut pairing, now) = (Pairing::new(), Instant::now());
        let numbers = (1..).step_by(2).map(StreamId);
        numbers.zip(streams).map(|(n, (kind, port, id))| pairing.opened(n, &headers(kind, port, id), now)).collect()
    }

    #[test]
    fn streams_of_one_request_are_a_pair_in_either_order() {
        assert_eq!(open(&[("error", "80", "0"), ("data", "80", "0")]), [Opened::Waiting, pair(1, 3, 80)]);
        assert_eq!(open(&[("data", "80", "a"), ("error", "80", "a")]), [Opened::Waiting, pair(3, 1, 80)]);
        let mixed = [("error", "1", "0"), ("error", "2", "1"), ("data", "2", "1"), ("data", "1", "0")];
        assert_eq!(open(&mixed)[2..], [pair(3, 5, 2), pair(1, 7, 1)]);
    }

    #[test]
    fn without_request_ids_neighbours_are_a_pair() {
        let streams = [("error", "80", ""), ("data", "80", ""), ("error", "80", ""), ("data", "80", "")];
        assert_eq!(open(&streams), [Opened::Waiting, pair(1, 3, 80), Opened::Waiting, pair(5, 7, 80)]);
        // The number of a stream is no request id.
        assert_eq!(open(&[("error", "80", ""), ("data", "80", "1")])[1], Opened::Waiting);
    }

    #[test]
    fn an_id_can_be_used_again_when_its_pair_is_complete() {
        let streams = [("error", "80", "0"), ("data", "80", "0"), ("data", "81", "0"), ("error", "81", "0")];
        assert_eq!(open(&streams)[2..], [Opened::Waiting, pair(7, 5, 81)]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        let long = "1".repeat(REQUEST_ID_BYTES_MAX + 1);
        for (kind, port, id, why) in [
            ("stdin", "80", "0", Refused::StreamType),
            ("", "80", "0", Refused::StreamType),
            ("data", "0", "0", Refused::Port),
            ("data", "65536", "0", Refused::Port),
            ("data", "+80", "0", Refused::Port),
            ("data", " 80", "0", Refused::Port),
            ("data", "", "0", Refused::Port),
            ("data", "80", &long, Refused::RequestId),
        ] {
            assert_eq!(open(&[(kind, port, id)]), [Opened::Refused(why)]);
        }
        let none = Headers::new(&[]).unwrap();
        let opened = Pairing::new().opened(StreamId(1), &none, Instant::now());
        assert_eq!(opened, Opened::Refused(Refused::StreamType));
        // The first goes on waiting.
        let twice = open(&[("data", "80", "0"), ("data", "80", "0"), ("error", "80", "0")]);
        assert_eq!(twice, [Opened::Waiting, Opened::Refused(Refused::Twice), pair(5, 1, 80)]);
        let differ = open(&[("data", "80", "0"), ("error", "81", "0"), ("error", "80", "0")]);
        assert_eq!(differ[1..], [Opened::Refused(Refused::PortsDiffer(80, 81)), pair(5, 1, 80)]);
    }

    #[test]
    fn a_stream_waits_thirty_seconds_for_its_other_one() {
        let (mut pairing, start) = (Pairing::new(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pairing.next_expiry(), None);
        pairing.opened(StreamId(1), &headers("error", "80", "0"), at(0));
        pairing.opened(StreamId(3), &headers("data", "81", "1"), at(10));
        pairing.opened(StreamId(5), &headers("data", "82", "2"), at(20));
        pairing.ended(StreamId(5));
        assert_eq!(pairing.next_expiry(), Some(at(30)));
        assert_eq!(pairing.expired(at(29)), []);
        assert_eq!(pairing.expired(at(30)), [Lone { stream: StreamId(1), is_error: true, port: 80 }]);
        assert_eq!(pairing.opened(StreamId(7), &headers("error", "81", "1"), at(39)), pair(7, 3, 81));
        assert_eq!(pairing.expired(at(1000)), []);
    }

    #[test]
    fn only_so_many_streams_wait() {
        let (mut pairing, now) = (Pairing::new(), Instant::now());
        for n in 0..=HALF_PAIRS_MAX as u32 {
            let opened = pairing.opened(StreamId(2 * n + 1), &headers("data", "80", &n.to_string()), now);
            let full = n as usize == HALF_PAIRS_MAX;
            assert_eq!(opened, if full { Opened::Refused(Refused::TooMany) } else { Opened::Waiting });
        }
        // Their other ones still find them.
        assert_eq!(pairing.opened(StreamId(9999), &headers("error", "80", "0"), now), pair(9999, 1, 80));
    }

    proptest! {
        #[test]
        fn whatever_the_order_each_finds_its_own(
            order in (1_usize..40).prop_flat_map(|n| Just((0..2 * n).collect::<Vec<_>>()).prop_shuffle()),
        ) {
            let (mut pairing, now) = (Pairing::new(), Instant::now());
            let mut opened_as = std::collections::BTreeMap::new();
            let mut pairs = 0;
            for (number, which) in (1..).step_by(2).zip(&order) {
                let (request, is_error) = (which / 2, which % 2 == 0);
                let stream = StreamId(number);
                opened_as.insert((request, is_error), stream);
                let headers = headers(
                    if is_error { ERROR } else { DATA }, &(request + 1).to_string(), &request.to_string(),
                );
                match (pairing.opened(stream, &headers, now), opened_as.get(&(request, !is_error))) {
                    (Opened::Pair(Pair { data, error, port }), Some(_)) => {
                        prop_assert_eq!(data, opened_as[&(request, false)]);
                        prop_assert_eq!(error, opened_as[&(request, true)]);
                        prop_assert_eq!(usize::from(port), request + 1);
                        pairs += 1;
                    }
                    (Opened::Waiting, None) => {}
                    (other, _) => prop_assert!(false, "{other:?}"),
                }
            }
            prop_assert_eq!(pairs, order.len() / 2);
            prop_assert_eq!(pairing.next_expiry(), None);
        }

        #[test]
        fn any_order_of_anything_is_survived(data in vec(any::<u8>(), 0..400)) {
            fuzz(&data);
        }
    }
}
