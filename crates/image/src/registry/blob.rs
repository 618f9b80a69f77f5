//! The bytes of one blob, from wherever they can be had.
//!
//! A stream outlives the connections that feed it: when one breaks or goes silent, the same or the next host is asked
//! for the rest, by range. The bytes of one stream may therefore come from several hosts, and the digest at the end is
//! the only judge of them.

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
#[derive(Debug)]
pub struct BlobStream {
    registry: Registry,
    reference: Reference,
    credentials: Credentials,
    descriptor: Descriptor,
    position: u64,
    turns: Option<Turns>,
    source: Option<Source>,
    connections: u32,
    /// Hosts whose bytes were given out.
    givers: Vec<String>,
}

/// An open connection.
#[derive(Debug)]
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
            registry,
            reference,
            credentials,
            descriptor,
            position: offset,
            turns: Some(turns),
            source: None,
            connections: 0,
            givers: Vec::new(),
        };
        if stream.position < stream.descriptor.size {
            stream.source = Some(stream.connect().await?);
        }
        Ok(stream)
    }

    /// How many bytes of the blob lie before what `next` gives next; the offset to resume at.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes; `None` after exactly the descriptor's size. Cancel safe: dropping the future loses nothing.
    /// After an error the stream gives no more.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        while self.position < self.descriptor.size {
            let source = match &mut self.source {
                Some(source) => source,
                None => {
                    let source = self.connect().await?;
                    self.source.insert(source)
                }
            };
            match piece(source, self.registry.progress_timeout()).await {
                Ok(piece) => {
                    let Some(bytes) = self.take(piece)? else { continue };
                    return Ok(Some(bytes));
                }
                Err(failure) => self.lost(failure)?,
            }
        }
        self.source = None;
        Ok(None)
    }

    /// Tells that the digest of what this stream gave was wrong: the hosts it came from are asked last for this blob
    /// for a while, so that another attempt tries the next mirror first.
    pub fn reject(self) {
        for host in &self.givers {
            self.registry.health().note_corrupt(host, &self.descriptor.digest);
        }
    }

    /// Cuts off what lies before `position`. `None`: nothing is left of this piece.
    fn take(&mut self, mut piece: Bytes) -> Result<Option<Bytes>, RegistryError> {
        let Some(source) = &mut self.source else { return Ok(None) };
        let surplus = source.surplus.min(piece.len() as u64);
        source.surplus -= surplus;
        let piece = piece.split_off(usize::try_from(surplus).unwrap_or(usize::MAX));
        if piece.is_empty() {
            return Ok(None);
        }
        if piece.len() as u64 > self.descriptor.size - self.position {
            let message = format!("sends more than the {} bytes that the manifest says", self.descriptor.size);
            self.lost(HostFailure::invalid(message))?;
            return Ok(None);
        }
        self.position += piece.len() as u64;
        let name = source.endpoint.host.name();
        if !self.givers.iter().any(|giver| giver == name) {
            self.givers.push(name.to_owned());
        }
        if let Some(turns) = &mut self.turns {
            turns.progressed();
        }
        Ok(Some(piece))
    }

    /// The connection is of no more use. An error when too many were not.
    fn lost(&mut self, failure: HostFailure) -> Result<(), RegistryError> {
        self.source = None;
        let Some(turns) = &mut self.turns else { return Ok(()) };
        let at = format!("at byte {} of {}", self.position, self.descriptor.size);
        turns.failed(failure.context(at), self.registry.health());
        match self.connections >= CONNECTIONS_MAX {
            true => Err(self.ended()),
            false => Ok(()),
        }
    }

    /// Asks one host after the other for what is missing.
    async fn connect(&mut self) -> Result<Source, RegistryError> {
        let want = Want {
            method: Method::GET,
            path: format!("blobs/{}", self.descriptor.digest),
            accept: None,
            from: self.position,
            has_digest: true,
            answer_timeout: self.registry.progress_timeout(),
        };
        loop {
            let endpoint = match &mut self.turns {
                Some(turns) => turns.next().await,
                None => None,
            };
            let Some(endpoint) = endpoint else { return Err(self.ended()) };
            self.connections += 1;
            let shared = self.registry.shared();
            let opened = request(&endpoint, &shared, &self.reference, &self.credentials, &want).await;
            match opened.and_then(|response| self.accept(endpoint.clone(), response)) {
                Ok(source) => {
                    self.registry.health().note_alive(endpoint.host.name());
                    return Ok(source);
                }
                Err(failure) => self.lost(failure)?,
            }
        }
    }

    /// Whether the response is the part that was asked for, or the whole.
    fn accept(&self, endpoint: Arc<Endpoint>, response: Response) -> Result<Source, HostFailure> {
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
        match self.position.checked_sub(begins) {
            Some(surplus) => Ok(Source { endpoint, response, surplus }),
            None => Err(HostFailure::invalid("sends a part that begins too late")),
        }
    }

    fn ended(&mut self) -> RegistryError {
        match self.turns.take() {
            Some(turns) => turns.into_error(),
            None => {
                let message = format!("blob {}: the stream has failed before", self.descriptor.digest);
                RegistryError::new(RegistryErrorKind::Other, message)
            }
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
