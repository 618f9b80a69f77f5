//! The bytes of one blob, from wherever they can be had.
//!
//! A stream outlives the connections that feed it: when one breaks or goes silent, the same or the next host is asked
//! for the rest, by range. The bytes of one stream may therefore come from several hosts, and the digest at the end is
//! the only judge of them.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use reqwest::Response;

use super::Registry;
use super::client::{Want, request};
use super::error::{HostFailure, RegistryError, RegistryErrorKind};
use super::fallback::Turns;
use super::hosts::Endpoint;
use crate::credentials::Credentials;
use crate::manifest::Descriptor;
use crate::reference::Reference;

/// Connections of one stream: a link that breaks more often than this within one blob is no link. Without it, a host
/// that gives one byte at a time could keep a pull going for ever.
const CONNECTIONS_MAX: u32 = 64;

/// The bytes of one blob. A lost connection or silent host is replaced behind the scenes, from where it stopped.
pub struct BlobStream {
    registry: Registry,
    descriptor: Descriptor,
    position: u64,
    /// Hosts whose bytes were given out.
    givers: Vec<String>,
    state: State,
}

/// ```text
/// Connecting ──▶ Open ──▶ Ended
///      ▲           │        ▲
///      └─ it broke ┘        └── nobody is left, or every byte was given
/// ```
enum State {
    /// Kept here and not in `next`, so that a caller who stops waiting and comes back finds the attempt as far as it
    /// got meanwhile.
    Connecting(Pin<Box<Connecting>>),
    Open(Feed, Source),
    Ended,
}

type Connecting = dyn Future<Output = Result<(Feed, Source), RegistryError>> + Send;

/// What makes connections.
struct Feed {
    registry: Registry,
    reference: Reference,
    credentials: Credentials,
    descriptor: Descriptor,
    turns: Turns,
    /// How many were tried.
    connections: u32,
}

/// An open connection.
struct Source {
    endpoint: Arc<Endpoint>,
    response: Response,
    /// Bytes in front of `position` that the host sends although they were not asked for.
    surplus: u64,
}

impl BlobStream {
    /// Opens the first connection, so that a blob that cannot be had is known at once.
    pub(super) async fn open(
        registry: Registry,
        reference: Reference,
        credentials: Credentials,
        descriptor: Descriptor,
        offset: u64,
    ) -> Result<Self, RegistryError> {
        if offset > descriptor.size {
            let message = format!("blob {}: {offset} lies behind its end", descriptor.digest);
            return Err(RegistryError::new(RegistryErrorKind::Invalid, message));
        }
        let endpoints = registry.endpoints(&reference, |capabilities| capabilities.pull).await?;
        let what = format!("blob {} of {}", descriptor.digest, reference.name());
        let turns = Turns::new(what, endpoints, registry.health(), Some(&descriptor.digest));
        let mut stream = Self {
            registry: registry.clone(),
            descriptor: descriptor.clone(),
            position: offset,
            givers: Vec::new(),
            state: State::Ended,
        };
        if offset < descriptor.size {
            let feed = Feed { registry, reference, credentials, descriptor, turns, connections: 0 };
            let (feed, source) = feed.connect(offset).await?;
            stream.state = State::Open(feed, source);
        }
        Ok(stream)
    }

    /// How many bytes of the blob lie before what `next` gives next; the offset to resume at.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes; `None` after exactly the descriptor's size. Cancel safe: dropping the future loses neither a
    /// byte nor an attempt to connect. After an error the stream gives no more.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        while self.position < self.descriptor.size {
            match &mut self.state {
                State::Connecting(connecting) => match connecting.as_mut().await {
                    Ok((feed, source)) => self.state = State::Open(feed, source),
                    Err(error) => {
                        self.state = State::Ended;
                        return Err(error);
                    }
                },
                State::Open(_, source) => match piece(source, self.registry.progress_timeout()).await {
                    Ok(piece) => {
                        if let Some(bytes) = self.take(piece) {
                            return Ok(Some(bytes));
                        }
                    }
                    Err(failure) => self.lost(failure),
                },
                State::Ended => {
                    let message = format!("blob {}: the stream has failed before", self.descriptor.digest);
                    return Err(RegistryError::new(RegistryErrorKind::Other, message));
                }
            }
        }
        self.state = State::Ended;
        Ok(None)
    }

    /// Tells that the digest of what this stream gave was wrong: the hosts it came from are asked last for this blob
    /// for a while, so that another attempt tries the next mirror first.
    pub fn reject(self) {
        for host in &self.givers {
            self.registry.health().note_corrupt(host, &self.descriptor.digest);
        }
    }

    /// Cuts off what lies before `position`. `None`: nothing of this piece is of use.
    fn take(&mut self, mut piece: Bytes) -> Option<Bytes> {
        let State::Open(feed, source) = &mut self.state else { return None };
        let surplus = source.surplus.min(piece.len() as u64);
        source.surplus -= surplus;
        let piece = piece.split_off(usize::try_from(surplus).unwrap_or(usize::MAX));
        if piece.is_empty() {
            return None;
        }
        if piece.len() as u64 > self.descriptor.size - self.position {
            let message = format!("sends more than the {} bytes that the manifest says", self.descriptor.size);
            self.lost(HostFailure::invalid(message));
            return None;
        }
        feed.turns.progressed();
        self.position += piece.len() as u64;
        let name = source.endpoint.host.name();
        if !self.givers.iter().any(|giver| giver == name) {
            self.givers.push(name.to_owned());
        }
        Some(piece)
    }

    /// The connection is of no more use: the next call of `next` waits for another.
    fn lost(&mut self, failure: HostFailure) {
        let State::Open(mut feed, _) = std::mem::replace(&mut self.state, State::Ended) else { return };
        feed.failed(failure, self.position);
        self.state = State::Connecting(Box::pin(feed.connect(self.position)));
    }
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobStream({} at {} of {})", self.descriptor.digest, self.position, self.descriptor.size)
    }
}

impl Feed {
    /// Asks one host after the other for what follows `position`.
    async fn connect(mut self, position: u64) -> Result<(Self, Source), RegistryError> {
        let want = Want {
            method: Method::GET,
            path: format!("blobs/{}", self.descriptor.digest),
            accept: None,
            from: position,
            has_digest: true,
            answer_timeout: self.registry.progress_timeout(),
        };
        while self.connections < CONNECTIONS_MAX {
            let Some(endpoint) = self.turns.next().await else { break };
            self.connections += 1;
            let shared = self.registry.shared();
            let opened = request(&endpoint, &shared, &self.reference, &self.credentials, &want).await;
            match opened.and_then(|response| self.accept(endpoint.clone(), response, position)) {
                Ok(source) => {
                    self.registry.health().note_alive(endpoint.host.name());
                    return Ok((self, source));
                }
                Err(failure) => self.failed(failure, position),
            }
        }
        Err(self.turns.into_error())
    }

    fn failed(&mut self, failure: HostFailure, position: u64) {
        let at = format!("at byte {position} of {}", self.descriptor.size);
        self.turns.failed(failure.context(at), self.registry.health());
    }

    /// Whether the response is the part that was asked for, or the whole.
    fn accept(&self, endpoint: Arc<Endpoint>, response: Response, position: u64) -> Result<Source, HostFailure> {
        let size = self.descriptor.size;
        let (begins, ends) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
                let (begins, whole) =
                    range.and_then(content_range).ok_or_else(|| HostFailure::invalid("sends a part, not which"))?;
                (begins, whole.unwrap_or(size))
            }
            // What was asked for by range comes as a whole: some hosts know no ranges.
            StatusCode::OK => (0, response.content_length().unwrap_or(size)),
            status => return Err(HostFailure::invalid(format!("answers {status} to a request for a blob"))),
        };
        if ends != size {
            return Err(HostFailure::invalid(format!("has {ends} bytes where the manifest says {size}")));
        }
        match position.checked_sub(begins) {
            Some(surplus) => Ok(Source { endpoint, response, surplus }),
            None => Err(HostFailure::invalid("sends a part that begins too late")),
        }
    }
}

async fn piece(source: &mut Source, timeout: Option<Duration>) -> Result<Bytes, HostFailure> {
    let waiting = source.response.chunk();
    let received = match timeout {
        None => waiting.await,
        Some(timeout) => match tokio::time::timeout(timeout, waiting).await {
            Ok(received) => received,
            Err(_) => return Err(HostFailure { transient: true, ..HostFailure::silent(timeout) }),
        },
    };
    match received {
        Ok(Some(piece)) => Ok(piece),
        Ok(None) => Err(HostFailure::broken_off(RegistryErrorKind::Unavailable, "the connection ended early")),
        Err(error) => Err(HostFailure::of_request(error)),
    }
}

/// `bytes 5-9/10` → (5, Some(10)); `*` for the whole size is `None`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, whole) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let whole = if whole.trim() == "*" { None } else { Some(whole.trim().parse().ok()?) };
    (first <= last && whole.is_none_or(|whole| last < whole)).then_some((first, whole))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn content_ranges_are_read_or_refused() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 0-0/*"), Some((0, None)));
        for text in ["", "bytes 9-5/10", "bytes 5-10/10", "bytes */10", "items 0-1/2", "bytes -5/10", "bytes 1-2"] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_content_range_is_survived(text in "(bytes )?[0-9*/ -]{0,40}") {
            if let Some((first, Some(whole))) = content_range(&text) {
                prop_assert!(first < whole);
            }
        }
    }
}
