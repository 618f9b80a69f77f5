//! What is asked of the server before it speaks SPDY or WebSocket: method, path, token, headers. A request is answered
//! with 101 and what to do then, or with an error and a text that says what is wrong.
//!
//! The token is used up by whatever request brings it, even if that is refused: what a client got wrong once it gets
//! wrong again, and a token that was shown is no secret any more. Only a wrong method and a server without room leave it
//! as it is.

use bytes::Bytes;
use http::header::{
    ALLOW, CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use knarr_wire::remotecommand;
use knarr_wire::{channel, port_forward};
use tungstenite::handshake::derive_accept_key;

use super::tokens::Tokens;
use super::{Command, Offer, PortForward};

/// Ports of one forwarding over channels, which a client names in its request: two channels each, numbered by one byte.
const PORTS_MAX: usize = 100;
/// Characters of a client's words that are repeated to it.
const QUOTED_MAX: usize = 200;

/// The header in which versions are offered and chosen.
pub(crate) const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// The header in which a refusal says what would have been accepted.
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
/// What `Upgrade` says.
pub(crate) const SPDY: &str = "SPDY/3.1";

pub(super) type Answer = Response<Full<Bytes>>;

/// What to do once the connection has been upgraded.
pub(super) enum Upgrade {
    Command(Command, CommandProtocol),
    PortForward(PortForward, ForwardProtocol),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CommandProtocol {
    Spdy(remotecommand::Version),
    Channels(channel::Protocol),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ForwardProtocol {
    Spdy,
    Tunnel,
    Channels(channel::Protocol, Vec<u16>),
}

/// Answers a request. `base` is the path below which the server's own paths are known outside.
pub(super) fn answer<B>(
    request: &Request<B>,
    base: &str,
    tokens: Option<&Tokens>,
) -> Result<(Answer, Upgrade), Answer> {
    let Some(tokens) = tokens else {
        return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, "as many sessions as the server has room for are open"));
    };
    if !matches!(*request.method(), Method::GET | Method::POST) {
        let mut answer =
            refuse(StatusCode::METHOD_NOT_ALLOWED, &format!("method {} is none of GET and POST", request.method()));
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
        return Err(answer);
    }
    let path = request.uri().path();
    // A proxy may have taken the base away, or not.
    let path = path.strip_prefix(base).filter(|rest| rest.starts_with('/')).unwrap_or(path);
    let (kind, token) = path
        .strip_prefix('/')
        .and_then(|path| path.split_once('/'))
        .filter(|(kind, _)| matches!(*kind, "exec" | "attach" | "portforward"))
        .ok_or_else(|| {
            let text = "the path is none of /exec/<token>, /attach/<token> and /portforward/<token>";
            refuse(StatusCode::NOT_FOUND, text)
        })?;
    let offer = tokens.take(token);
    if request.version() != Version::HTTP_11 {
        return Err(refuse(StatusCode::BAD_REQUEST, "only HTTP/1.1 can be upgraded"));
    }
    match (kind, offer) {
        ("exec", Some(Offer::Exec(command))) | ("attach", Some(Offer::Attach(command))) => {
            let (answer, protocol) = upgrade_command(request)?;
            Ok((answer, Upgrade::Command(command, protocol)))
        }
        ("portforward", Some(Offer::PortForward(forward))) => {
            let (answer, protocol) = upgrade_forward(request, &forward.ports)?;
            Ok((answer, Upgrade::PortForward(forward, protocol)))
        }
        _ => Err(refuse(
            StatusCode::NOT_FOUND,
            &format!("the token is not known, not for {kind}, has been used, or is too old"),
        )),
    }
}

fn upgrade_command<B>(request: &Request<B>) -> Result<(Answer, CommandProtocol), Answer> {
    if is_websocket(request.headers()) {
        let (answer, protocol) = accept_websocket(request, |offered| {
            channel::Protocol::choose(offered).map(|protocol| (protocol, protocol.name()))
        })?;
        return Ok((answer, CommandProtocol::Channels(protocol)));
    }
    let (answer, version) = accept_spdy(
        request.headers(),
        |offered| remotecommand::Version::choose(offered).map(|version| (version, version.name())),
        &remotecommand::Version::ALL.map(remotecommand::Version::name),
    )?;
    Ok((answer, CommandProtocol::Spdy(version)))
}

fn upgrade_forward<B>(request: &Request<B>, offered: &[u16]) -> Result<(Answer, ForwardProtocol), Answer> {
    if !is_websocket(request.headers()) {
        let known = port_forward::PROTOCOL;
        let (answer, ()) =
            accept_spdy(request.headers(), |offered| offered.contains(&known).then_some(((), known)), &[known])?;
        return Ok((answer, ForwardProtocol::Spdy));
    }
    let (answer, protocol) = accept_websocket(request, |offered| {
        channel::PortForward::choose(offered).map(|protocol| (protocol, protocol.name()))
    })?;
    Ok(match protocol {
        channel::PortForward::Tunnel => (answer, ForwardProtocol::Tunnel),
        channel::PortForward::Channels(protocol) => {
            let ports = ports(request.uri().query().unwrap_or_default(), offered)?;
            let most = PORTS_MAX.min(usize::from(protocol.channels()) / 2);
            if ports.len() > most {
                let text = format!("{} ports; {} can carry {most}", ports.len(), protocol.name());
                return Err(refuse(StatusCode::BAD_REQUEST, &text));
            }
            (answer, ForwardProtocol::Channels(protocol, ports))
        }
    })
}

/// The ports that a request names (`port=80&port=443`, `port=80,443`), or else those of the CRI request.
fn ports(query: &str, offered: &[u16]) -> Result<Vec<u16>, Answer> {
    let query = query.replace("%2C", ",").replace("%2c", ",");
    let named = query.split('&').filter_map(|pair| pair.strip_prefix("port="));
    let mut ports = Vec::new();
    for text in named.flat_map(|value| value.split(',')) {
        let port = port_forward::parse_port(text).ok_or_else(|| {
            let text = format!("query parameter port: {} is no number from 1 to 65535", quoted(text));
            refuse(StatusCode::BAD_REQUEST, &text)
        })?;
        ports.push(port);
    }
    if ports.is_empty() {
        ports.extend_from_slice(offered);
    }
    if ports.is_empty() {
        let text = "query parameter port is missing, and the request for the token named no port";
        return Err(refuse(StatusCode::BAD_REQUEST, text));
    }
    Ok(ports)
}

fn is_websocket(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    upgrade && says_upgrade(headers)
}

fn says_upgrade(headers: &HeaderMap) -> bool {
    words(headers, CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade"))
}

/// The words of a header that may be there several times and hold several, separated by commas.
fn words(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

fn accept_spdy<T>(
    headers: &HeaderMap,
    choose: impl FnOnce(&[&str]) -> Option<(T, &'static str)>,
    known: &[&'static str],
) -> Result<(Answer, T), Answer> {
    let offered: Vec<_> = words(headers, PROTOCOL_VERSION).collect();
    if offered.is_empty() {
        let text = "unable to upgrade: header X-Stream-Protocol-Version is missing or names no version";
        return Err(refuse(StatusCode::BAD_REQUEST, text));
    }
    let Some((chosen, name)) = choose(&offered) else {
        let text = format!(
            "unable to upgrade: the client speaks {}, the server {}",
            quoted(&offered.join(", ")),
            known.join(", ")
        );
        let mut answer = refuse(StatusCode::FORBIDDEN, &text);
        for name in known {
            answer.headers_mut().append(ACCEPTED_VERSIONS, HeaderValue::from_static(name));
        }
        return Err(answer);
    };
    if !says_upgrade(headers) || !words(headers, UPGRADE).any(|word| word.eq_ignore_ascii_case(SPDY)) {
        let text = "unable to upgrade: headers Connection: Upgrade and Upgrade: SPDY/3.1 or websocket are missing";
        return Err(refuse(StatusCode::BAD_REQUEST, text));
    }
    let mut answer = switch(SPDY);
    answer.headers_mut().insert(PROTOCOL_VERSION, HeaderValue::from_static(name));
    Ok((answer, chosen))
}

fn accept_websocket<B, T>(
    request: &Request<B>,
    choose: impl FnOnce(&[&str]) -> Option<(T, &'static str)>,
) -> Result<(Answer, T), Answer> {
    let headers = request.headers();
    if request.method() != Method::GET {
        return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "a WebSocket begins with GET"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let mut answer = refuse(StatusCode::BAD_REQUEST, "header Sec-WebSocket-Version is not 13");
        answer.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(answer);
    }
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
        return Err(refuse(StatusCode::BAD_REQUEST, "header Sec-WebSocket-Key is missing"));
    };
    let offered: Vec<_> = words(headers, SEC_WEBSOCKET_PROTOCOL).collect();
    let Some((chosen, name)) = choose(&offered) else {
        let text = format!("none of the subprotocols {} is spoken here", quoted(&offered.join(", ")));
        return Err(refuse(StatusCode::FORBIDDEN, &text));
    };
    let mut answer = switch("websocket");
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        answer.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    // Who offers none must not get one back.
    if !offered.is_empty() {
        answer.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok((answer, chosen))
}

fn switch(to: &'static str) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    answer
}

fn refuse(status: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::from(format!("{text}\n")));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // One request a connection: there is nothing more to ask for.
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTED_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}
