//! One connection of a client, from its acceptance to its end: TLS, one HTTP request, and the session that it asks for.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::http::{self, CommandProtocol, ForwardProtocol, Upgrade};
use super::{Inner, command, port_forward};
use crate::io::{self, Io, linger};
use crate::mux::Mux;
use crate::protocol::{Protocol, Role};

/// Bytes of a request's line and headers: a client behind the API server brings its own, some with long tokens.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 100;
/// How long a client that was refused may take to read why.
const REFUSED_LINGER: std::time::Duration = std::time::Duration::from_secs(2);

/// Serves one connection until its end. `has_room` is false for one that is only told so.
pub(super) async fn serve(server: Arc<Inner>, tcp: TcpStream, has_room: bool, stop: CancellationToken) {
    let creation = server.settings.creation_timeout;
    let asked = tokio::select! {
        asked = timeout(creation, ask(&server, tcp, has_room)) => asked,
        () = stop.cancelled() => return,
    };
    let (mut io, input, upgrade) = match asked {
        Ok(Ok(asked)) => asked,
        Ok(Err(error)) => return tracing::debug!("streaming: {error}"),
        Err(_) => return tracing::debug!("streaming: no request within {creation:?}"),
    };
    let mux = |io, protocol| Mux::new(io, input, protocol, Role::Server, Some(server.settings.idle_timeout));
    match upgrade {
        None => linger(&mut io, REFUSED_LINGER, REFUSED_LINGER).await,
        Some(Upgrade::Command(offer, CommandProtocol::Spdy(version))) => {
            let mux = mux(io, Protocol::spdy(Role::Server));
            command::serve_spdy(mux, offer, version, creation, &stop).await;
        }
        Some(Upgrade::Command(offer, CommandProtocol::Channels(protocol))) => {
            let mux = mux(io, Protocol::channels(protocol, Role::Server));
            command::serve_channels(mux, offer, protocol, &stop).await;
        }
        Some(Upgrade::PortForward(offer, protocol)) => {
            let idle = server.settings.idle_timeout;
            match protocol {
                ForwardProtocol::Spdy => {
                    let mux = mux(io, Protocol::spdy(Role::Server));
                    port_forward::serve_spdy(mux, offer, idle, &stop).await;
                }
                ForwardProtocol::Tunnel => {
                    let mux = mux(io, Protocol::tunnel(Role::Server));
                    port_forward::serve_spdy(mux, offer, idle, &stop).await;
                }
                ForwardProtocol::Channels(protocol, ports) => {
                    let mux = mux(io, Protocol::channels(protocol, Role::Server));
                    port_forward::serve_channels(mux, offer, &ports, idle, &stop).await;
                }
            }
        }
    }
}

/// TLS and the one request. Gives the connection back, with what the client has sent already behind its request.
async fn ask(server: &Inner, tcp: TcpStream, has_room: bool) -> Result<(Io, Bytes, Option<Upgrade>), String> {
    io::prepare(&tcp).map_err(|error| format!("set up a connection: {error}"))?;
    let io = match &server.settings.tls {
        None => Io::Plain(tcp),
        Some(config) => {
            let tls = TlsAcceptor::from(config.clone()).accept(tcp).await;
            Io::Tls(Box::new(tls.map_err(|error| format!("TLS handshake: {error}"))?.into()))
        }
    };
    let upgrade = Mutex::new(None);
    let tokens = has_room.then_some(&server.tokens);
    let service = service_fn(|request: Request<Incoming>| {
        let answer = match http::answer(&request, &server.base_path, tokens) {
            Ok((answer, wanted)) => {
                *upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(wanted);
                answer
            }
            Err(refusal) => refusal,
        };
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let connection = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(io), service);
    let parts = connection.without_shutdown().await.map_err(|error| format!("HTTP: {error}"))?;
    Ok((parts.io.into_inner(), parts.read_buf, upgrade.into_inner().unwrap_or_else(PoisonError::into_inner)))
}
