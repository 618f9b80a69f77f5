//! A registry on loopback that serves from memory and misbehaves on demand.
//!
//! It speaks the pulling half of the distribution spec: `/v2/`, manifests, blobs with ranges, Basic and Bearer
//! challenges, a token endpoint with both its forms. Every request is recorded, so that a test can say what was asked
//! and, as often, what was never asked. It ends when it is dropped.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::image::{Image, OCI_INDEX, sha256};

/// The authority that signed the certificates below; PEM.
pub const CA_CERTIFICATE: &str = include_str!("../data/ca.crt");
/// For 127.0.0.1, ::1 and localhost; PEM. Good for nothing but tests: the key is public.
pub const SERVER_CERTIFICATE: &str = include_str!("../data/server.crt");
/// Its key; PEM.
pub const SERVER_KEY: &str = include_str!("../data/server.key");
/// A certificate that a registry asking for one accepts; PEM.
pub const CLIENT_CERTIFICATE: &str = include_str!("../data/client.crt");
/// Its key; PEM.
pub const CLIENT_KEY: &str = include_str!("../data/client.key");

/// A running registry.
#[derive(Debug)]
pub struct FakeRegistry {
    address: SocketAddr,
    tls: bool,
    state: Arc<Mutex<State>>,
    server: AbortHandle,
}

/// What to ask a client for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Anyone may pull.
    Open,
    /// Basic with this user and password.
    Basic(String, String),
    /// A token of this registry's own `/token`, which is given to whoever asks.
    AnonymousToken,
    /// A token, for this user and password (or for the refresh token of the same name as the password).
    Token(String, String),
    /// Exactly this bearer token; none is given out.
    Bearer(String),
}

/// How to misbehave, instead of answering as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// This status, with these headers.
    Status(u16, Vec<(String, String)>),
    /// A redirect to the same path and query below this base, `http://host:port`.
    RedirectTo(String),
    /// One bit of the body is wrong.
    WrongBytes,
    /// The body ends after so many bytes, though more were announced.
    Truncate(usize),
    /// The body stops after so many bytes and the connection stays open.
    Stall(usize),
    /// No answer at all; the connection stays open.
    Silent,
    /// The connection is closed instead of an answer.
    Hangup,
    /// A range that was asked for is not honoured: the whole is sent with 200.
    IgnoreRange,
    /// The body comes in pieces of so many bytes with a pause before each.
    Drip(usize, Duration),
    /// This many zero bytes more than there should be.
    Excess(usize),
}

/// A request as it was received.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `GET`.
    pub method: String,
    /// `/v2/…`.
    pub path: String,
    /// Without the question mark.
    pub query: String,
    /// All of them.
    pub headers: HeaderMap,
    /// Of a POST.
    pub body: String,
    /// What was answered; 0 when nothing was.
    pub status: u16,
}

impl Seen {
    /// A header as text; empty when there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

#[derive(Debug, Default)]
struct State {
    blobs: HashMap<String, Bytes>,
    /// (repository, tag or digest) → (media type, bytes)
    manifests: HashMap<(String, String), (String, Bytes)>,
    access: Option<Access>,
    token_life_s: u64,
    tokens_given: u64,
    /// tokens numbered below this are no longer taken
    tokens_revoked: u64,
    faults: Vec<Planned>,
    seen: Vec<Seen>,
}

#[derive(Debug)]
struct Planned {
    path_part: String,
    times: usize,
    fault: Fault,
}

impl FakeRegistry {
    /// Plain HTTP on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        Self::serve(None).await
    }

    /// HTTPS with `SERVER_CERTIFICATE`; with `ask_client`, only for clients that show `CLIENT_CERTIFICATE`.
    pub async fn start_tls(ask_client: bool) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions");
        let builder = if ask_client {
            let mut roots = rustls::RootCertStore::empty();
            let ca = CertificateDer::from_pem_slice(CA_CERTIFICATE.as_bytes()).expect("our own certificate");
            roots.add(ca).expect("our own certificate");
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .expect("there is a root");
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let certificate = CertificateDer::from_pem_slice(SERVER_CERTIFICATE.as_bytes()).expect("our own certificate");
        let key = PrivateKeyDer::from_pem_slice(SERVER_KEY.as_bytes()).expect("our own key");
        let config = builder.with_single_cert(vec![certificate], key).expect("the key fits the certificate");
        Self::serve(Some(tokio_rustls::TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn serve(acceptor: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = Arc::new(Mutex::new(State { token_life_s: 300, ..State::default() }));
        let tls = acceptor.is_some();
        let served = state.clone();
        let server = tokio::spawn(async move {
            // Dropping the set ends every connection with the registry.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve_connection(stream, acceptor.clone(), served.clone(), address));
            }
        });
        Self { address, tls, state, server: server.abort_handle() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// `127.0.0.1:<port>`: the registry part of an image name.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `http://127.0.0.1:<port>` or `https://…`.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }

    /// Keeps a blob; gives its digest.
    pub fn put_blob(&self, bytes: impl Into<Bytes>) -> String {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        self.state().blobs.insert(digest.clone(), bytes);
        digest
    }

    /// Keeps bytes under a digest that need not be theirs.
    pub fn put_blob_as(&self, digest: &str, bytes: impl Into<Bytes>) {
        self.state().blobs.insert(digest.to_owned(), bytes.into());
    }

    /// Keeps a manifest under its digest and, unless it is empty, under `tag`; gives its digest.
    pub fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: impl Into<Bytes>) -> String {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        let mut state = self.state();
        for name in [tag, &digest] {
            if !name.is_empty() {
                let key = (repository.to_owned(), name.to_owned());
                state.manifests.insert(key, (media_type.to_owned(), bytes.clone()));
            }
        }
        digest
    }

    /// Keeps an image with all its parts; gives its manifest's digest.
    pub fn put_image(&self, repository: &str, tag: &str, image: &Image) -> String {
        for layer in &image.layers {
            self.put_blob(layer.blob.clone());
        }
        self.put_blob(image.config.clone());
        self.put_manifest(repository, tag, &image.media_type, image.manifest.clone())
    }

    /// Keeps the images and an index of them; gives the index' digest.
    pub fn put_index(&self, repository: &str, tag: &str, images: &[(&str, &str, &Image)]) -> String {
        for (_, _, image) in images {
            self.put_image(repository, "", image);
        }
        self.put_manifest(repository, tag, OCI_INDEX, crate::image::index_of(images))
    }

    /// From now on, ask for this.
    pub fn set_access(&self, access: Access) {
        self.state().access = Some(access);
    }

    /// What the token endpoint says of the life of its tokens.
    pub fn set_token_life(&self, seconds: u64) {
        self.state().token_life_s = seconds;
    }

    /// All tokens given so far are no longer taken.
    pub fn revoke_tokens(&self) {
        let mut state = self.state();
        state.tokens_revoked = state.tokens_given;
    }

    /// The next `times` requests whose path contains `path_part` meet `fault`; earlier faults go first.
    pub fn fault(&self, path_part: &str, times: usize, fault: Fault) {
        self.state().faults.push(Planned { path_part: path_part.to_owned(), times, fault });
    }

    /// Forgets all faults that were not met.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Every request so far, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// The requests so far whose path contains `path_part`.
    pub fn seen_of(&self, path_part: &str) -> Vec<Seen> {
        self.state().seen.iter().filter(|seen| seen.path.contains(path_part)).cloned().collect()
    }

    /// Forgets the requests so far.
    pub fn clear_seen(&self) {
        self.state().seen.clear();
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

type Body = BoxBody<Bytes, std::io::Error>;

async fn serve_connection(
    stream: TcpStream,
    acceptor: Option<tokio_rustls::TlsAcceptor>,
    state: Arc<Mutex<State>>,
    address: SocketAddr,
) {
    let tls = acceptor.is_some();
    let service =
        hyper::service::service_fn(move |request: Request<Incoming>| answer(request, state.clone(), address, tls));
    // A client that goes away, or refuses our certificate, is part of what is tested.
    match acceptor {
        None => drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await),
        Some(acceptor) => {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    tls: bool,
) -> Result<Response<Body>, std::io::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or("").to_owned(),
        headers: parts.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
        status: 0,
    };
    let scheme = if tls { "https" } else { "http" };
    let (fault, plain) = {
        let mut state = lock(&state);
        let fault = state.faults.iter_mut().find(|p| p.times > 0 && seen.path.contains(&p.path_part)).map(|planned| {
            planned.times -= 1;
            planned.fault.clone()
        });
        let plain = state.respond(&seen, &parts.method, &format!("{scheme}://{address}"), fault.as_ref());
        seen.status = match fault {
            Some(Fault::Silent | Fault::Hangup) => 0,
            _ => plain.status().as_u16(),
        };
        state.seen.push(seen);
        (fault, plain)
    };
    match fault {
        Some(Fault::Silent) => std::future::pending().await,
        Some(Fault::Hangup) => Err(std::io::Error::other("asked to hang up")),
        fault => Ok(deliver(plain, fault)),
    }
}

/// Turns a whole response into one that arrives as `fault` says.
fn deliver(plain: Response<Bytes>, fault: Option<Fault>) -> Response<Body> {
    let (mut parts, bytes) = plain.into_parts();
    let announced = bytes.len();
    let (pieces, end): (Vec<Bytes>, End) = match fault {
        Some(Fault::Truncate(after)) => (vec![bytes.slice(..after.min(announced))], End::Broken),
        Some(Fault::Stall(after)) => (vec![bytes.slice(..after.min(announced))], End::Never),
        Some(Fault::Drip(piece, pause)) => {
            (bytes.chunks(piece.max(1)).map(Bytes::copy_from_slice).collect(), End::After(pause))
        }
        _ => return Response::from_parts(parts, Full::new(bytes).map_err(|never: Infallible| match never {}).boxed()),
    };
    parts.headers.insert(http::header::CONTENT_LENGTH, announced.into());
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for piece in pieces {
            if let End::After(pause) = end {
                tokio::time::sleep(pause).await;
            }
            if sender.send(Ok(Frame::data(piece))).await.is_err() {
                return;
            }
        }
        match end {
            End::After(_) => {}
            End::Never => sender.closed().await,
            End::Broken => drop(sender.send(Err(std::io::Error::other("asked to break off"))).await),
        }
    });
    Response::from_parts(parts, BodyExt::boxed(StreamBody::new(ReceiverStream::new(receiver))))
}

#[derive(Clone, Copy)]
enum End {
    After(Duration),
    Never,
    Broken,
}

fn response(status: StatusCode, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    for (name, value) in headers {
        let name = http::HeaderName::try_from(*name).expect("a header's name");
        response.headers_mut().append(name, http::HeaderValue::try_from(*value).expect("a header's value"));
    }
    response
}

fn problem(status: StatusCode, code: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
    let body = json!({ "errors": [{ "code": code, "message": format!("the fake registry says {code}") }] });
    response(status, headers, body.to_string())
}

impl State {
    fn respond(&mut self, seen: &Seen, method: &Method, own_url: &str, fault: Option<&Fault>) -> Response<Bytes> {
        match fault {
            Some(Fault::Status(status, headers)) => {
                let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                return problem(StatusCode::from_u16(*status).expect("a status"), "FAULT", &headers);
            }
            Some(Fault::RedirectTo(base)) => {
                let query = if seen.query.is_empty() { String::new() } else { format!("?{}", seen.query) };
                let target = format!("{base}{}{query}", seen.path);
                return response(StatusCode::TEMPORARY_REDIRECT, &[("location", &target)], Bytes::new());
            }
            _ => {}
        }
        if seen.path == "/token" {
            return self.token(seen, method);
        }
        if let Some(refusal) = self.refuse(seen, own_url) {
            return refusal;
        }
        let Some(rest) = seen.path.strip_prefix("/v2/") else {
            return problem(StatusCode::NOT_FOUND, "UNSUPPORTED", &[]);
        };
        if let Some((repository, name)) = rest.rsplit_once("/manifests/") {
            return self.manifest(repository, name, method, fault);
        }
        if let Some((_, digest)) = rest.rsplit_once("/blobs/") {
            return self.blob(digest, seen, fault);
        }
        response(StatusCode::OK, &[], "{}")
    }

    fn refuse(&self, seen: &Seen, own_url: &str) -> Option<Response<Bytes>> {
        let shown = seen.header("authorization");
        let basic = |user: &str, password: &str| format!("Basic {}", base64(&format!("{user}:{password}")));
        let bearer_challenge = || {
            let repository = seen.path.trim_start_matches("/v2/");
            let repository = repository.split("/manifests/").next().unwrap_or("");
            let repository = repository.split("/blobs/").next().unwrap_or("");
            format!("Bearer realm=\"{own_url}/token\",service=\"fake registry\",scope=\"repository:{repository}:pull\"")
        };
        let (good, challenge) = match self.access.as_ref().unwrap_or(&Access::Open) {
            Access::Open => return None,
            Access::Basic(user, password) => (shown == basic(user, password), "Basic realm=\"fake\"".to_owned()),
            Access::Bearer(token) => (shown == format!("Bearer {token}"), bearer_challenge()),
            Access::AnonymousToken | Access::Token(..) => {
                let number = shown.strip_prefix("Bearer token-").and_then(|number| number.parse::<u64>().ok());
                (number.is_some_and(|n| n >= self.tokens_revoked && n < self.tokens_given), bearer_challenge())
            }
        };
        if good {
            return None;
        }
        Some(problem(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", &[("www-authenticate", &challenge)]))
    }

    fn token(&mut self, seen: &Seen, method: &Method) -> Response<Bytes> {
        let allowed = match self.access.as_ref().unwrap_or(&Access::Open) {
            Access::Token(user, password) if method == Method::POST => {
                let field = |name: &str, value: &str| {
                    seen.body.split('&').any(|pair| pair.split_once('=') == Some((name, value)))
                };
                let refresh = field("grant_type", "refresh_token") && field("refresh_token", password);
                let login = field("grant_type", "password") && field("username", user) && field("password", password);
                refresh || login
            }
            Access::Token(user, password) => {
                seen.header("authorization") == format!("Basic {}", base64(&format!("{user}:{password}")))
            }
            Access::AnonymousToken => true,
            Access::Open | Access::Basic(..) | Access::Bearer(_) => false,
        };
        if !allowed {
            return problem(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", &[]);
        }
        let name = if method == Method::POST { "access_token" } else { "token" };
        let body = json!({ name: format!("token-{}", self.tokens_given), "expires_in": self.token_life_s });
        self.tokens_given += 1;
        response(StatusCode::OK, &[("content-type", "application/json")], body.to_string())
    }

    fn manifest(&self, repository: &str, name: &str, method: &Method, fault: Option<&Fault>) -> Response<Bytes> {
        let Some((media_type, bytes)) = self.manifests.get(&(repository.to_owned(), name.to_owned())) else {
            return problem(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", &[]);
        };
        let length = bytes.len().to_string();
        let digest = sha256(bytes);
        let headers =
            [("content-type", media_type.as_str()), ("docker-content-digest", &digest), ("content-length", &length)];
        match method == Method::HEAD {
            true => response(StatusCode::OK, &headers, Bytes::new()),
            false => response(StatusCode::OK, &headers[..2], spoil(bytes.clone(), fault)),
        }
    }

    fn blob(&self, digest: &str, seen: &Seen, fault: Option<&Fault>) -> Response<Bytes> {
        let Some(bytes) = self.blobs.get(digest) else {
            return problem(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", &[]);
        };
        let bytes = spoil(bytes.clone(), fault);
        let from: Option<usize> =
            seen.header("range").strip_prefix("bytes=").and_then(|range| range.split('-').next()?.parse().ok());
        match from {
            Some(from) if from >= bytes.len() => problem(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", &[]),
            Some(from) if fault != Some(&Fault::IgnoreRange) => {
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                response(StatusCode::PARTIAL_CONTENT, &[("content-range", &range)], bytes.slice(from..))
            }
            _ => response(StatusCode::OK, &[("content-type", "application/octet-stream")], bytes),
        }
    }
}

fn spoil(bytes: Bytes, fault: Option<&Fault>) -> Bytes {
    let mut spoiled = bytes.to_vec();
    match fault {
        Some(Fault::WrongBytes) => {
            let middle = spoiled.len() / 2;
            if let Some(byte) = spoiled.get_mut(middle) {
                *byte ^= 1;
            }
        }
        Some(Fault::Excess(more)) => spoiled.resize(spoiled.len() + more, 0),
        _ => return bytes,
    }
    spoiled.into()
}

/// Standard base64, written out here because what is tested uses a library for it.
fn base64(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place)) & 63;
            encoded.push(if place <= chunk.len() { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_pads_as_the_rfc_says() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("a:b", "YTpi")];
        for (text, encoded) in cases {
            assert_eq!(base64(text), encoded);
        }
    }
}
