//! Talking to registries: which hosts to ask, what to show them, what to believe of the answers.
//!
//! Manifests and configurations leave this module verified. Blobs do not: they are streamed, and the caller checks
//! the digest at the end. Nothing is written to disk here.
//!
//! ```text
//! Registry::resolve ─┐             hosts ── hosts_toml      which hosts, in which order
//! Registry::config ──┼─▶ fallback ─┤
//! Registry::blob ────┘      │      health                   which of them to ask last
//!                           ▼
//!                         client ── tls                     one request to one host
//!                           └────── auth ── challenge       what to show it
//! ```

mod auth;
mod blob;
mod challenge;
mod client;
mod error;
mod fallback;
mod health;
mod hosts;
mod hosts_toml;
#[cfg(test)]
mod tests;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use self::auth::Tokens;
pub use self::blob::BlobStream;
use self::client::{Shared, Want, read_limited, request};
use self::error::HostFailure;
pub use self::error::{RegistryError, RegistryErrorKind};
use self::fallback::Turns;
use self::health::Health;
use self::hosts::{Endpoint, HostDirectory};
use self::hosts_toml::Capabilities;
use crate::credentials::Credentials;
use crate::manifest::{CONFIG_BYTES_MAX, Descriptor, Document, ImageConfig, MANIFEST_BYTES_MAX, Manifest};
use crate::platform::Platform;
use crate::reference::{Digest, Reference};

/// Indexes within indexes: one level is in use, a second would be odd.
const INDEX_DEPTH_MAX: usize = 3;
/// Until a host begins to answer a request for a manifest or configuration, and between two pieces of it. A mirror may
/// have to fetch it first.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// What a request for a manifest takes.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*";
/// A registry's own word for a manifest's digest.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// How registries are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryConfig {
    /// Directories in containerd's certs.d layout; the first one that knows a registry decides.
    pub config_path: Vec<PathBuf>,
    /// `host[:port]` that are spoken to without checking certificates, and over HTTP when HTTPS fails.
    pub insecure_registries: Vec<String>,
    /// Sent to every registry host, not to what it redirects to.
    pub headers: Vec<(String, String)>,
    /// Until a host accepted a connection, TLS included; `dial_timeout` of hosts.toml overrides it.
    pub connect_timeout: Duration,
    /// A host that sends no byte of a blob for this long has failed, and the next is asked. Zero: wait for ever.
    pub progress_timeout: Duration,
}

impl Default for RegistryConfig {
    /// containerd's directories; 15 s to connect, 5 minutes without progress.
    fn default() -> Self {
        Self {
            config_path: vec!["/etc/containerd/certs.d".into(), "/etc/docker/certs.d".into()],
            insecure_registries: Vec::new(),
            headers: Vec::new(),
            connect_timeout: Duration::from_secs(15),
            progress_timeout: Duration::from_secs(300),
        }
    }
}

/// A client for all registries; cheap to clone, all clones share connections, tokens and what is known of hosts.
#[derive(Debug, Clone)]
pub struct Registry(Arc<Client>);

#[derive(Debug)]
struct Client {
    directory: HostDirectory,
    headers: HeaderMap,
    progress_timeout: Option<Duration>,
    tokens: Tokens,
    health: Health,
}

/// What a name stands for right now, on one platform. Every byte here has been checked against its digest.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// What the name itself points to, an index or a manifest: the digest that CRI shows in `repo_digests`.
    pub manifest_digest: Digest,
    /// The chosen manifest.
    pub manifest: Manifest,
    /// The image's configuration; its digest is the image's id.
    pub config: Descriptor,
    /// Lowest first.
    pub layers: Vec<Descriptor>,
    /// The chosen manifest as it came.
    pub manifest_bytes: Vec<u8>,
    /// The index as it came, when the name points to one.
    pub index_bytes: Option<Vec<u8>>,
}

/// A manifest or index whose bytes have the digest.
struct Fetched {
    digest: Digest,
    document: Document,
    bytes: Vec<u8>,
}

impl Registry {
    /// Makes a client; fails when the configuration holds what cannot be sent. Files are read when they are needed.
    pub fn new(config: RegistryConfig) -> Result<Self, RegistryError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            let bad = |_| RegistryError::new(RegistryErrorKind::Other, format!("registry header {name:?}: bad name"));
            let parsed = HeaderName::try_from(name.as_str()).map_err(bad)?;
            let bad = |_| RegistryError::new(RegistryErrorKind::Other, format!("registry header {name:?}: bad value"));
            let mut value = HeaderValue::try_from(value.as_str()).map_err(bad)?;
            value.set_sensitive(true);
            headers.append(parsed, value);
        }
        let progress_timeout = Some(config.progress_timeout).filter(|timeout| !timeout.is_zero());
        let directory = HostDirectory::new(config);
        let (tokens, health) = (Tokens::default(), Health::default());
        Ok(Self(Arc::new(Client { directory, headers, progress_timeout, tokens, health })))
    }

    /// Asks for the digest of a name without fetching it (HEAD), to learn whether a stored image is still current.
    /// `None` when the registry does not say.
    pub async fn digest_of(
        &self,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Option<Digest>, RegistryError> {
        let want = Want { method: Method::HEAD, ..manifest_want(reference.manifest_name(), false) };
        let mut turns = self.turns(format!("digest of {reference}"), reference, None, |can| can.resolve).await?;
        while let Some(endpoint) = turns.next().await {
            match request(&endpoint, &self.shared(), reference, credentials, &want).await {
                Ok(response) => {
                    self.health().note_alive(endpoint.host.name());
                    return Ok(said_digest(response.headers()));
                }
                Err(failure) => turns.failed(failure, self.health()),
            }
        }
        Err(turns.into_error())
    }

    /// Finds the manifest for `platform`.
    pub async fn resolve(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        platform: &Platform,
    ) -> Result<ResolvedImage, RegistryError> {
        let digest = self.pin(reference, credentials).await?;
        let mut fetched = self.manifest(reference, credentials, digest.as_ref(), None).await?;
        let manifest_digest = fetched.digest.clone();
        let mut index_bytes = None;
        for _ in 0..=INDEX_DEPTH_MAX {
            let index = match fetched.document {
                Document::Manifest(manifest) => {
                    return Ok(ResolvedImage {
                        manifest_digest,
                        config: manifest.config.clone(),
                        layers: manifest.layers.clone(),
                        manifest,
                        manifest_bytes: fetched.bytes,
                        index_bytes,
                    });
                }
                Document::Index(index) => index,
            };
            let chosen = platform.choose(&index).map_err(|error| {
                RegistryError::new(RegistryErrorKind::NotFound, format!("manifest of {reference}: {error}"))
            })?;
            index_bytes.get_or_insert(fetched.bytes);
            fetched = self.manifest(reference, credentials, Some(&chosen.digest), Some(chosen)).await?;
        }
        let message = format!("manifest of {reference}: indexes within indexes, more than {INDEX_DEPTH_MAX} deep");
        Err(RegistryError::new(RegistryErrorKind::Invalid, message))
    }

    /// Fetches and verifies the image configuration that `descriptor` names; also gives its bytes as they came.
    pub async fn config(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        descriptor: &Descriptor,
    ) -> Result<(ImageConfig, Vec<u8>), RegistryError> {
        let digest = &descriptor.digest;
        let what = format!("image configuration {digest} of {}", reference.name());
        let bytes_max = usize::try_from(descriptor.size).unwrap_or(usize::MAX);
        if bytes_max > CONFIG_BYTES_MAX {
            let message = format!("{what}: has more than {CONFIG_BYTES_MAX} bytes");
            return Err(RegistryError::new(RegistryErrorKind::Invalid, message));
        }
        let want = Want {
            method: Method::GET,
            path: format!("blobs/{digest}"),
            accept: None,
            from: 0,
            has_digest: true,
            answer_timeout: Some(DOCUMENT_TIMEOUT),
        };
        let mut turns = self.turns(what.clone(), reference, Some(digest), |can| can.pull).await?;
        while let Some(endpoint) = turns.next().await {
            match self.document(&endpoint, reference, credentials, &want, bytes_max).await {
                Ok((_, bytes)) if digest.matches(&bytes) => {
                    self.health().note_alive(endpoint.host.name());
                    let config = ImageConfig::parse(&bytes)
                        .map_err(|error| RegistryError::new(RegistryErrorKind::Invalid, format!("{what}: {error}")))?;
                    return Ok((config, bytes));
                }
                Ok(_) => {
                    self.health().note_corrupt(endpoint.host.name(), digest);
                    turns.failed(HostFailure::invalid("its bytes have another digest"), self.health());
                }
                Err(failure) => turns.failed(failure, self.health()),
            }
        }
        Err(turns.into_error())
    }

    /// Opens the blob that `descriptor` names, from byte `offset` on. The caller checks the digest. Foreign layers are
    /// asked of the registry like any other: their `urls` are not followed.
    pub async fn blob(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        BlobStream::open(self.clone(), reference.clone(), credentials.clone(), descriptor.clone(), offset).await
    }

    /// The digest to ask for, when there is one. A mirror that may give blobs but not say what a tag means is asked by
    /// digest, so the tag is looked up first where there is such a mirror.
    async fn pin(&self, reference: &Reference, credentials: &Credentials) -> Result<Option<Digest>, RegistryError> {
        if reference.digest.is_some() {
            return Ok(reference.digest.clone());
        }
        match self.endpoints(reference, |can| can.pull && !can.resolve).await?.is_empty() {
            true => Ok(None),
            false => self.digest_of(reference, credentials).await,
        }
    }

    async fn manifest(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        digest: Option<&Digest>,
        entry: Option<&Descriptor>,
    ) -> Result<Fetched, RegistryError> {
        let name = digest.map_or(reference.manifest_name(), Digest::as_str);
        let want = manifest_want(name, digest.is_some());
        let what = match entry {
            Some(_) => format!("manifest {name} of {reference}"),
            None => format!("manifest of {reference}"),
        };
        let may = |can: Capabilities| if digest.is_some() { can.pull } else { can.resolve };
        let mut turns = self.turns(what, reference, digest, may).await?;
        while let Some(endpoint) = turns.next().await {
            let host = endpoint.host.name();
            let answer = self.document(&endpoint, reference, credentials, &want, MANIFEST_BYTES_MAX).await;
            match answer.and_then(|(headers, bytes)| check_manifest(&headers, bytes, digest, entry)) {
                Ok(fetched) => {
                    self.health().note_alive(host);
                    return Ok(fetched);
                }
                Err(failure) => {
                    if let Some(digest) = digest.filter(|_| failure.kind == RegistryErrorKind::Invalid) {
                        self.health().note_corrupt(host, digest);
                    }
                    turns.failed(failure, self.health());
                }
            }
        }
        Err(turns.into_error())
    }

    /// One host's answer, read to its end.
    async fn document(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        credentials: &Credentials,
        want: &Want,
        bytes_max: usize,
    ) -> Result<(HeaderMap, Vec<u8>), HostFailure> {
        let response = request(endpoint, &self.shared(), reference, credentials, want).await?;
        let headers = response.headers().clone();
        Ok((headers, read_limited(response, bytes_max, Some(DOCUMENT_TIMEOUT)).await?))
    }

    async fn turns(
        &self,
        what: String,
        reference: &Reference,
        digest: Option<&Digest>,
        may: impl Fn(Capabilities) -> bool,
    ) -> Result<Turns, RegistryError> {
        Ok(Turns::new(what, self.endpoints(reference, may).await?, self.health(), digest))
    }

    /// The hosts for a reference that may be asked.
    async fn endpoints(
        &self,
        reference: &Reference,
        may: impl Fn(Capabilities) -> bool,
    ) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
        let (client, registry) = (self.0.clone(), reference.registry.clone());
        let read = tokio::task::spawn_blocking(move || client.directory.endpoints(&registry)).await;
        let other = |why: String| {
            RegistryError::new(RegistryErrorKind::Other, format!("hosts of registry {}: {why}", reference.registry))
        };
        let mut endpoints = read.map_err(|error| other(error.to_string()))?.map_err(other)?;
        endpoints.retain(|endpoint| may(endpoint.host.capabilities));
        Ok(endpoints)
    }

    fn health(&self) -> &Health {
        &self.0.health
    }

    fn progress_timeout(&self) -> Option<Duration> {
        self.0.progress_timeout
    }

    fn shared(&self) -> Shared<'_> {
        Shared { tokens: &self.0.tokens, health: &self.0.health, headers: &self.0.headers }
    }
}

fn manifest_want(name: &str, has_digest: bool) -> Want {
    Want {
        method: Method::GET,
        path: format!("manifests/{name}"),
        accept: Some(MANIFEST_TYPES),
        from: 0,
        has_digest,
        answer_timeout: Some(DOCUMENT_TIMEOUT),
    }
}

fn said_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(CONTENT_DIGEST)?.to_str().ok().and_then(|text| Digest::parse(text.trim()).ok())
}

fn check_manifest(
    headers: &HeaderMap,
    bytes: Vec<u8>,
    digest: Option<&Digest>,
    entry: Option<&Descriptor>,
) -> Result<Fetched, HostFailure> {
    let digest = match digest {
        Some(digest) if digest.matches(&bytes) => digest.clone(),
        Some(_) => return Err(HostFailure::invalid("its bytes have another digest")),
        None => match said_digest(headers) {
            Some(said) if !said.matches(&bytes) => {
                return Err(HostFailure::invalid("its bytes have another digest than it says itself"));
            }
            Some(said) => said,
            None => Digest::sha256_of(&bytes),
        },
    };
    if let Some(entry) = entry
        && entry.size != bytes.len() as u64
    {
        let message = format!("has {} bytes where the index says {}", bytes.len(), entry.size);
        return Err(HostFailure::invalid(message));
    }
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let parse =
        |said: Option<&str>| Document::parse(&bytes, said).map_err(|error| HostFailure::invalid(error.to_string()));
    let document = parse(content_type)?;
    if let Some(entry) = entry {
        parse(Some(&entry.media_type))?;
    }
    Ok(Fetched { digest, document, bytes })
}
