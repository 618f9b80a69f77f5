//! From a URL to an upgraded connection: name, TCP, TLS, one HTTP request. Each has a deadline, and an answer that is no
//! upgrade becomes an error with what the server said.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tungstenite::handshake::{client::generate_key, derive_accept_key};

use super::{ClientError, Target, Transport};
use crate::io::{self, Io};
use crate::server::{PROTOCOL_VERSION, SPDY};

/// How long one address may take to answer.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long TLS and the answer to the request may take: the server may have to ask a shim first.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(30);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;
/// Bytes of an answer's headers.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Bytes of an error answer's body that are repeated.
const BODY_BYTES_MAX: usize = 8 << 10;

/// An upgraded connection: what came behind the answer already, and the protocol that the server chose.
pub(super) struct Upgraded {
    pub(super) io: Io,
    pub(super) input: Bytes,
    pub(super) protocol: String,
}

/// Connects and upgrades, offering `protocols`, the best first.
pub(super) async fn upgrade(target: &Target, protocols: &[&str]) -> Result<Upgraded, ClientError> {
    let url: Uri = target.url.parse().map_err(|error| ClientError(format!("URL {:?}: {error}", target.url)))?;
    let io = connect(&url, target).await?;
    match timeout(UPGRADE_DEADLINE, ask(io, &url, target, protocols)).await {
        Ok(result) => result,
        Err(_) => Err(ClientError(format!("{}: no answer within {UPGRADE_DEADLINE:?}", place(&url)))),
    }
}

/// Host and port, for messages: the path is a secret.
fn place(url: &Uri) -> String {
    url.authority().map_or_else(String::new, |authority| authority.as_str().to_owned())
}

async fn connect(url: &Uri, target: &Target) -> Result<Io, ClientError> {
    let tls = match url.scheme_str() {
        Some("http") => None,
        Some("https") => match &target.tls {
            Some(config) => Some(config.clone()),
            None => return Err(ClientError(format!("{}: https needs TLS to be set up", place(url)))),
        },
        other => return Err(ClientError(format!("URL scheme {:?} is none of http and https", other.unwrap_or("")))),
    };
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let tcp =
        connect_tcp(&host, port).await.map_err(|text| ClientError(format!("connect to {}: {text}", place(url))))?;
    io::prepare(&tcp).map_err(|error| ClientError(format!("set up the connection to {}: {error}", place(url))))?;
    let Some(config) = tls else { return Ok(Io::Plain(tcp)) };
    let name = ServerName::try_from(host).map_err(|error| ClientError(format!("{}: {error}", place(url))))?;
    match timeout(UPGRADE_DEADLINE, TlsConnector::from(config).connect(name, tcp)).await {
        Ok(Ok(tls)) => Ok(Io::Tls(Box::new(tls.into()))),
        Ok(Err(error)) => Err(ClientError(format!("TLS handshake with {}: {error}", place(url)))),
        Err(_) => Err(ClientError(format!("TLS handshake with {}: not done within {UPGRADE_DEADLINE:?}", place(url)))),
    }
}

async fn connect_tcp(host: &str, port: u16) -> Result<TcpStream, String> {
    let addresses = match timeout(CONNECT_DEADLINE, lookup_host((host, port))).await {
        Ok(addresses) => addresses.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("its name was not resolved within {CONNECT_DEADLINE:?}")),
    };
    let mut last = "its name has no address".to_owned();
    for address in addresses.take(ADDRESSES_MAX) {
        match timeout(CONNECT_DEADLINE, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = format!("no answer within {CONNECT_DEADLINE:?}"),
        }
    }
    Err(last)
}

async fn ask(io: Io, url: &Uri, target: &Target, protocols: &[&str]) -> Result<Upgraded, ClientError> {
    let fail = |text: String| ClientError(format!("{}: {text}", place(url)));
    let key = generate_key();
    let request = request(url, target.transport, protocols, &key).map_err(|error| fail(error.to_string()))?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| fail(error.to_string()))?;
    let connection = connection.without_shutdown();
    tokio::pin!(connection);
    let answering = sender.send_request(request);
    tokio::pin!(answering);
    let mut parts = None;
    let mut answer = loop {
        tokio::select! {
            biased;
            answer = &mut answering => break answer.map_err(|error| fail(format!("HTTP: {error}")))?,
            done = &mut connection, if parts.is_none() => {
                parts = Some(done.map_err(|error| fail(format!("HTTP: {error}")))?);
            }
        }
    };
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let said = async {
            let body = body(&mut answer).await;
            fail(format!("the server answered {}{body}", answer.status()))
        };
        tokio::pin!(said);
        return Err(tokio::select! {
            biased;
            error = &mut said => error,
            _ = &mut connection, if parts.is_none() => said.await,
        });
    }
    let protocol = chosen(&answer, target.transport, protocols, &key).map_err(fail)?;
    let parts = match parts {
        Some(parts) => parts,
        None => connection.await.map_err(|error| fail(format!("HTTP: {error}")))?,
    };
    Ok(Upgraded { io: parts.io.into_inner(), input: parts.read_buf, protocol })
}

fn request(
    url: &Uri,
    transport: Transport,
    protocols: &[&str],
    key: &str,
) -> Result<Request<Empty<Bytes>>, http::Error> {
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::builder().uri(path).header(HOST, place(url)).header(CONNECTION, "Upgrade");
    match transport {
        Transport::Spdy => {
            let request = request.method(Method::POST).header(UPGRADE, SPDY);
            protocols.iter().fold(request, |request, name| request.header(PROTOCOL_VERSION, *name))
        }
        Transport::WebSocket => request
            .method(Method::GET)
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, key)
            .header(SEC_WEBSOCKET_PROTOCOL, protocols.join(", ")),
    }
    .body(Empty::new())
}

/// What an error answer says, cut where it grows long.
async fn body(answer: &mut Response<Incoming>) -> String {
    let body = Limited::new(answer.body_mut(), BODY_BYTES_MAX);
    match body.collect().await {
        Ok(body) => {
            let body = body.to_bytes();
            let text = String::from_utf8_lossy(&body);
            let text = text.trim();
            if text.is_empty() { String::new() } else { format!(": {text}") }
        }
        Err(_) => " and more than can be repeated".to_owned(),
    }
}

/// The protocol that the server has chosen, if its answer is one to our request.
fn chosen(answer: &Response<Incoming>, transport: Transport, protocols: &[&str], key: &str) -> Result<String, String> {
    let headers = answer.headers();
    let name = match transport {
        Transport::Spdy => PROTOCOL_VERSION,
        Transport::WebSocket => {
            let accept = value(headers, SEC_WEBSOCKET_ACCEPT);
            if accept != Some(derive_accept_key(key.as_bytes()).as_str()) {
                return Err("the server's answer does not fit our WebSocket key".to_owned());
            }
            SEC_WEBSOCKET_PROTOCOL
        }
    };
    match value(headers, name) {
        Some(name) if protocols.contains(&name) => Ok(name.to_owned()),
        Some(name) => Err(format!("the server chose protocol {name:?}, which was not offered")),
        None => Err("the server chose no protocol".to_owned()),
    }
}

fn value(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}
