//! The client's end of port-forward.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use knarr_wire::channel;
use knarr_wire::port_forward::{DATA, ERROR, PORT_HEADER, PROTOCOL, REQUEST_ID_HEADER, STREAM_TYPE_HEADER};
use knarr_wire::remotecommand::STATUS_BYTES_MAX;

use super::{ClientError, Target, Transport, connect, drive, open};
use crate::mux::Mux;
use crate::protocol::{Protocol, Role};
use crate::shared::{Held, Shared};
use crate::stream::{FORWARD_SEND_BYTES, Incoming, Stream};
use crate::{Receiver, Sender};

/// One connection over which ports are forwarded. It is closed when this and all that was opened on it is dropped.
#[derive(Debug)]
pub struct PortForwardClient {
    shared: Arc<Shared>,
    next_request: AtomicU64,
    _held: Held,
}

/// One forwarded connection. It is given up when the receiver is dropped before its end: the pod would go on writing to
/// nobody.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Forwarded {
    pub sender: Sender,
    pub receiver: Receiver,
    pub error: ForwardError,
}

/// What the server had to say of a forwarded connection.
#[derive(Debug)]
pub struct ForwardError(Receiver);

impl ForwardError {
    /// Waits for the end of the error stream: its text, or `None` if there was none.
    pub async fn wait(mut self) -> Option<String> {
        let mut text = Vec::new();
        while let Some(bytes) = self.0.next().await {
            text.extend_from_slice(&bytes[..bytes.len().min(STATUS_BYTES_MAX - text.len())]);
        }
        (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
    }
}

/// Opens a connection for forwarding.
///
/// # Errors
/// The server is not reached or refuses.
pub async fn port_forward(target: &Target) -> Result<PortForwardClient, ClientError> {
    let (name, protocol) = match target.transport {
        Transport::Spdy => (PROTOCOL, Protocol::spdy(Role::Client)),
        Transport::WebSocket => (channel::PortForward::Tunnel.name(), Protocol::tunnel(Role::Client)),
    };
    let upgraded = connect::upgrade(target, &[name]).await?;
    let mux = Mux::new(upgraded.io, upgraded.input, protocol, Role::Client, None);
    let shared = mux.shared().clone();
    let held = shared.hold();
    drive(mux);
    Ok(PortForwardClient { shared, next_request: AtomicU64::new(0), _held: held })
}

impl PortForwardClient {
    /// Opens one more connection to `port` of the pod.
    ///
    /// # Errors
    /// The connection is gone, or the server refuses.
    pub async fn open(&self, port: u16) -> Result<Forwarded, ClientError> {
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let stream = |kind: &str| {
            let headers = vec![
                (STREAM_TYPE_HEADER, kind.to_owned()),
                (PORT_HEADER, port.to_string()),
                (REQUEST_ID_HEADER, request.to_string()),
            ];
            open(&self.shared, headers, Incoming::Kept, FORWARD_SEND_BYTES)
        };
        let (error, data) = match tokio::join!(stream(ERROR), stream(DATA)) {
            (Ok(error), Ok(data)) => (error, data),
            (Err(error), other) | (other, Err(error)) => {
                // The server would wait for the one that it refused.
                other.iter().for_each(Stream::reset);
                return Err(error);
            }
        };
        // Nothing is said to the server on it.
        error.finish();
        Ok(Forwarded {
            sender: Sender::holding(data.clone()),
            receiver: Receiver::holding(data).giving_up(),
            error: ForwardError(Receiver::holding(error)),
        })
    }

    /// Resolves when the server has gone.
    pub async fn gone(&self) {
        self.shared.gone.cancelled().await;
    }
}
