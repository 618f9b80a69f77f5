//! One request to one host: authorization, redirects, statuses, limits.
//!
//! What is shown to a registry (its headers of hosts.toml, `Authorization`) goes to the registry's own origin and
//! nowhere else: a redirect to another scheme, host or port drops it, and nothing brings it back. What a redirect
//! leads to is believed only as far as its digest goes. Which host to ask next is `fallback`'s.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::{Response, Url};

use super::auth::{TokenKey, Tokens};
use super::challenge;
use super::error::{HostFailure, RegistryErrorKind, registry_words};
use super::health::Health;
use super::hosts::Endpoint;
use super::tls::Clients;
use crate::credentials::Credentials;
use crate::reference::Reference;

/// Redirects of one request; registries need one, their storage sometimes a second.
const REDIRECTS_MAX: usize = 10;
/// Bytes of an error's body that are read for its words.
const ERROR_BYTES_MAX: usize = 8 * 1024;
/// How long to wait for an error's body: it is a courtesy.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Headers of one response that hold challenges.
const CHALLENGE_HEADERS_MAX: usize = 8;

/// A request before it is known which host gets it.
#[derive(Debug, Clone)]
pub(super) struct Want {
    pub method: Method,
    /// Below the repository: `manifests/latest`.
    pub path: String,
    pub accept: Option<&'static str>,
    /// The first byte wanted.
    pub from: u64,
    /// Whether a digest will tell if the answer is the right one, wherever it came from.
    pub has_digest: bool,
    /// Until the response begins; `None`: for ever.
    pub answer_timeout: Option<Duration>,
}

/// A request to one address.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub method: Method,
    pub url: Url,
    /// May be seen by any host that a redirect leads to.
    pub headers: HeaderMap,
    /// For the origin of `url` only.
    pub own: HeaderMap,
    /// A form.
    pub body: Option<String>,
    /// Whether a redirect may lead from https to http: only where a digest protects the answer.
    pub may_downgrade: bool,
}

impl Ask {
    pub fn get(url: Url) -> Self {
        Self {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            own: HeaderMap::new(),
            body: None,
            may_downgrade: false,
        }
    }
}

/// What all requests share.
#[derive(Debug)]
pub(super) struct Shared<'a> {
    pub tokens: &'a Tokens,
    pub health: &'a Health,
    /// For every registry, from the configuration.
    pub headers: &'a HeaderMap,
}

/// Asks one host, on behalf of `reference`. Gives a response of success only, its body unread.
pub(super) async fn request(
    endpoint: &Endpoint,
    shared: &Shared<'_>,
    reference: &Reference,
    credentials: &Credentials,
    want: &Want,
) -> Result<Response, HostFailure> {
    let host = &endpoint.host;
    let name = host.name();
    if !host.plain_fallback {
        return authorized(endpoint, &host.base, shared, reference, credentials, want).await;
    }
    let mut plain = host.base.clone();
    plain.set_scheme("http").map_err(|()| HostFailure::invalid("cannot be reached over http"))?;
    if shared.health.is_plain(name) {
        return authorized(endpoint, &plain, shared, reference, credentials, want).await;
    }
    let secure = authorized(endpoint, &host.base, shared, reference, credentials, want).await;
    // Only a host that does not speak TLS is asked in clear; one whose certificate is wrong is not.
    let Some(failure) = secure
        .as_ref()
        .err()
        .filter(|failure| failure.speaks_no_tls || (failure.refused && host.base.port().is_none()))
    else {
        return secure;
    };
    match authorized(endpoint, &plain, shared, reference, credentials, want).await {
        // Nobody is there in clear either: what the first attempt met says more.
        Err(second) if second.dead && second.kind == RegistryErrorKind::Unavailable => Err(failure.clone()),
        answered => {
            shared.health.note_plain(name);
            answered
        }
    }
}

/// Sends the request, and once more when the host asks for authorization or no longer takes the one it got.
async fn authorized(
    endpoint: &Endpoint,
    base: &Url,
    shared: &Shared<'_>,
    reference: &Reference,
    credentials: &Credentials,
    want: &Want,
) -> Result<Response, HostFailure> {
    let nobody = Credentials::anonymous();
    let credentials = match credentials.are_for(base.authority(), &reference.registry) {
        true => credentials,
        false => &nobody,
    };
    let key = TokenKey {
        origin: base.origin().ascii_serialization(),
        repository: reference.repository.clone(),
        credentials: credentials.fingerprint(),
    };
    let mut ask = ask_for(endpoint, base, shared, reference, want)?;
    let remembered = shared.tokens.get(&key);
    if let Some(header) = &remembered {
        ask.own.insert(header::AUTHORIZATION, header.clone());
    }
    let challenges = match exchange(&endpoint.clients, &ask, want.answer_timeout).await? {
        Exchange::Success(response) => return Ok(response),
        Exchange::Refused(failure, challenges) if challenges.is_empty() => return Err(failure),
        Exchange::Refused(_, challenges) => challenges,
    };
    if let Some(header) = remembered {
        shared.tokens.forget(&key, &header);
    }
    let header = shared.tokens.answer(&endpoint.clients, key.clone(), &challenges, credentials).await?;
    ask.own.insert(header::AUTHORIZATION, header.clone());
    match exchange(&endpoint.clients, &ask, want.answer_timeout).await? {
        Exchange::Success(response) => Ok(response),
        Exchange::Refused(failure, _) => {
            if failure.kind == RegistryErrorKind::Unauthorized {
                shared.tokens.forget(&key, &header);
            }
            Err(failure)
        }
    }
}

fn ask_for(
    endpoint: &Endpoint,
    base: &Url,
    shared: &Shared<'_>,
    reference: &Reference,
    want: &Want,
) -> Result<Ask, HostFailure> {
    let base = base.as_str().trim_end_matches('/');
    let mut url = Url::parse(&format!("{base}/{}/{}", reference.repository, want.path))
        .map_err(|error| HostFailure::invalid(error.to_string()))?;
    if let Some(namespace) = &endpoint.host.namespace {
        url.query_pairs_mut().append_pair("ns", namespace);
    }
    let mut ask = Ask { method: want.method.clone(), may_downgrade: want.has_digest, ..Ask::get(url) };
    if let Some(accept) = want.accept {
        ask.headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
    }
    if want.from > 0 {
        let range = HeaderValue::try_from(format!("bytes={}-", want.from));
        ask.headers.insert(header::RANGE, range.map_err(|error| HostFailure::invalid(error.to_string()))?);
    }
    for headers in [shared.headers, &endpoint.host.headers] {
        for name in headers.keys() {
            ask.own.remove(name);
            for value in headers.get_all(name) {
                ask.own.append(name, value.clone());
            }
        }
    }
    Ok(ask)
}

enum Exchange {
    Success(Response),
    /// With the challenges of a 401 by the host itself.
    Refused(HostFailure, Vec<challenge::Challenge>),
}

async fn exchange(clients: &Clients, ask: &Ask, timeout: Option<Duration>) -> Result<Exchange, HostFailure> {
    let (response, is_own) = follow(clients, ask, timeout).await?;
    let status = response.status();
    if status.is_success() {
        return Ok(Exchange::Success(response));
    }
    let mut challenges = Vec::new();
    if status == StatusCode::UNAUTHORIZED && is_own {
        for value in response.headers().get_all(header::WWW_AUTHENTICATE).iter().take(CHALLENGE_HEADERS_MAX) {
            challenges.extend(value.to_str().map(challenge::parse).unwrap_or_default());
        }
    }
    Ok(Exchange::Refused(refusal(response, is_own).await, challenges))
}

/// Sends a request that needs no authorization of a registry's kind; anything but success is a failure.
pub(super) async fn send(clients: &Clients, ask: &Ask, timeout: Option<Duration>) -> Result<Response, HostFailure> {
    match exchange(clients, ask, timeout).await? {
        Exchange::Success(response) => Ok(response),
        Exchange::Refused(failure, _) => Err(failure),
    }
}

/// Follows redirects by hand. Also gives whether the response came from the origin that was asked.
async fn follow(clients: &Clients, ask: &Ask, timeout: Option<Duration>) -> Result<(Response, bool), HostFailure> {
    let origin = ask.url.origin();
    let mut url = ask.url.clone();
    let mut is_own = true;
    for _ in 0..=REDIRECTS_MAX {
        let mut request = clients.for_url(&url).request(ask.method.clone(), url.clone()).headers(ask.headers.clone());
        if is_own {
            request = request.headers(ask.own.clone());
        }
        if let Some(form) = &ask.body {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.clone());
        }
        let response = within(timeout, request.send()).await?.map_err(HostFailure::of_request)?;
        let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
        // A form is never sent on: it holds a token.
        if !is_redirect || ask.body.is_some() {
            return Ok((response, is_own));
        }
        let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
        let location = location.ok_or_else(|| HostFailure::invalid("redirects to nowhere"))?;
        let next = url.join(location).map_err(|error| HostFailure::invalid(format!("redirects wrongly: {error}")))?;
        if !matches!(next.scheme(), "http" | "https") || !next.username().is_empty() || next.password().is_some() {
            return Err(HostFailure::invalid("redirects to something that is not a plain http or https address"));
        }
        if url.scheme() == "https" && next.scheme() == "http" && !ask.may_downgrade {
            return Err(HostFailure::invalid("redirects from https to http what no digest protects"));
        }
        is_own &= next.origin() == origin;
        url = next;
    }
    Err(HostFailure::invalid(format!("redirects more than {REDIRECTS_MAX} times")))
}

async fn refusal(response: Response, is_own: bool) -> HostFailure {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    // Words of a host that a redirect chose stay out of messages: it may be one that only this node can reach.
    let words = if is_own {
        let body = read_beginning(response);
        registry_words(&tokio::time::timeout(ERROR_BODY_TIMEOUT, body).await.unwrap_or_default())
    } else {
        "by the host that it redirects to".to_owned()
    };
    HostFailure::of_status(status, &words, retry_after)
}

async fn read_beginning(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        body.extend_from_slice(&piece[..piece.len().min(ERROR_BYTES_MAX - body.len())]);
        if body.len() == ERROR_BYTES_MAX {
            break;
        }
    }
    body
}

/// Seconds; the other form, a date, needs a clock that agrees with the server's and is not worth its parser.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Reads a body of at most `bytes_max`; `timeout` is for each piece of it.
pub(super) async fn read_limited(
    mut response: Response,
    bytes_max: usize,
    timeout: Option<Duration>,
) -> Result<Vec<u8>, HostFailure> {
    let too_long = || HostFailure::invalid(format!("the answer has more than {bytes_max} bytes"));
    if response.content_length().is_some_and(|length| length > bytes_max as u64) {
        return Err(too_long());
    }
    let mut body = Vec::new();
    while let Some(piece) = within(timeout, response.chunk()).await?.map_err(HostFailure::of_request)? {
        if body.len() + piece.len() > bytes_max {
            return Err(too_long());
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

async fn within<T>(timeout: Option<Duration>, doing: impl Future<Output = T>) -> Result<T, HostFailure> {
    match timeout {
        None => Ok(doing.await),
        Some(timeout) => tokio::time::timeout(timeout, doing).await.map_err(|_| HostFailure::silent(timeout)),
    }
}
