//! The client: connects to a URL that a runtime gave, over either transport.

use std::sync::Arc;

use knarr_wire::channel;
use knarr_wire::remotecommand::{CommandEnd, STATUS_BYTES_MAX, STREAM_TYPE_HEADER, StreamType, Version};
use tokio::sync::oneshot;
use tokio::time::{Duration, timeout};

use crate::mux::Mux;
use crate::protocol::{Protocol, Role};
use crate::shared::{Held, Open, Shared};
use crate::stream::{Ended, Incoming, SEND_BYTES, Stream};
use crate::{Receiver, ResizeSender, Sender, Wanted};

mod connect;
mod port_forward;

pub use port_forward::{ForwardError, Forwarded, PortForwardClient, port_forward};

/// How long the server may take to agree to a stream: what Kubernetes' clients give it.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// How long a connection may take to close once nobody holds anything of it: what is still to be sent, and the server's
/// own end.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// How long a server that has said how the command ended may take to close a WebSocket: there the end of the connection
/// is the only end that the error channel has.
const STATUS_DEADLINE: Duration = Duration::from_secs(10);

/// How the streams travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// SPDY/3.1, which every runtime speaks.
    Spdy,
    /// WebSocket: v5 (v4 where that is refused), and SPDY tunnelled in it for ports.
    WebSocket,
}

/// Where to connect to and how.
#[derive(Debug, Clone)]
pub struct Target {
    /// `http://` or `https://`, as the runtime gave it.
    pub url: String,
    /// How.
    pub transport: Transport,
    /// For `https://`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// Why a session did not come about or broke; the text is for a person.
#[derive(Debug)]
pub struct ClientError(pub String);

impl std::fmt::Display for ClientError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ClientError {}

/// A command's streams; each is there if it was wanted. The connection is closed when the last of them is dropped.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct CommandClient {
    pub stdin: Option<Sender>,
    pub stdout: Option<Receiver>,
    pub stderr: Option<Receiver>,
    pub resizes: Option<ResizeSender>,
    pub end: CommandEnded,
}

/// How the command ends.
#[derive(Debug)]
pub struct CommandEnded {
    error: Receiver,
    shared: Arc<Shared>,
    has_status: bool,
    /// The error stream ends before the connection does.
    has_ends: bool,
}

impl CommandEnded {
    /// Waits for the status. Take the outputs first, or at the same time: they hold it back.
    ///
    /// # Errors
    /// The connection ended without one.
    pub async fn wait(mut self) -> Result<CommandEnd, ClientError> {
        let mut text = Vec::new();
        let ended = loop {
            let next = if self.has_status && !self.has_ends && !text.is_empty() {
                timeout(STATUS_DEADLINE, self.error.receive()).await.unwrap_or(Err(Ended::Finished))
            } else {
                self.error.receive().await
            };
            match next {
                // What is longer is no status; the rest is let go.
                Ok(bytes) => text.extend_from_slice(&bytes[..bytes.len().min(STATUS_BYTES_MAX - text.len())]),
                Err(ended) => break ended,
            }
        };
        if !text.is_empty() {
            return Ok(CommandEnd::decode(&text, self.has_status));
        }
        // A v1 server gives the error stream up as soon as the command runs: its end is that of the connection.
        if ended == Ended::Reset && !self.has_status {
            self.shared.gone.cancelled().await;
        }
        // Before v4 a success is told by saying nothing, but not by vanishing.
        let in_order = ended != Ended::Gone || (!self.has_ends && self.shared.is_gone_in_order());
        if !self.has_status && in_order {
            return Ok(CommandEnd::Success);
        }
        Err(ClientError(format!("the command's end was not told: {}", self.shared.why_gone())))
    }
}

/// Opens a session for a command.
///
/// # Errors
/// The server is not reached, refuses, or does not open the streams in time.
pub async fn command(target: &Target, wanted: Wanted) -> Result<CommandClient, ClientError> {
    match target.transport {
        Transport::Spdy => command_spdy(target, wanted).await,
        Transport::WebSocket => command_websocket(target, wanted).await,
    }
}

async fn command_spdy(target: &Target, wanted: Wanted) -> Result<CommandClient, ClientError> {
    let upgraded = connect::upgrade(target, &Version::ALL.map(Version::name)).await?;
    let version = Version::from_name(&upgraded.protocol).unwrap_or(Version::V1);
    let mux = Mux::new(upgraded.io, upgraded.input, Protocol::spdy(Role::Client), Role::Client, None);
    let shared = mux.shared().clone();
    let held = shared.hold();
    drive(mux);
    let open = async |stream: StreamType, is_wanted: bool| match is_wanted {
        true => {
            let headers = vec![(STREAM_TYPE_HEADER, stream.name().to_owned())];
            open(&shared, headers, incoming(stream), SEND_BYTES).await.map(Some)
        }
        false => Ok(None),
    };
    let (error, stdin, stdout, stderr, resize) = tokio::try_join!(
        open(StreamType::Error, true),
        open(StreamType::Stdin, wanted.stdin),
        open(StreamType::Stdout, wanted.stdout),
        open(StreamType::Stderr, wanted.stderr && !wanted.tty),
        open(StreamType::Resize, wanted.tty && version.has_resizes()),
    )?;
    let error = error.ok_or_else(|| ClientError("no error stream".to_owned()))?;
    let streams = [stdin, stdout, stderr, resize];
    Ok(CommandClient::new(error, streams, version.has_status(), true, held))
}

async fn command_websocket(target: &Target, wanted: Wanted) -> Result<CommandClient, ClientError> {
    let offered = [channel::Protocol::V5, channel::Protocol::V4];
    let upgraded = connect::upgrade(target, &offered.map(channel::Protocol::name)).await?;
    let protocol = channel::Protocol::from_name(&upgraded.protocol).unwrap_or(channel::Protocol::V4);
    let mut mux = Mux::new(upgraded.io, upgraded.input, Protocol::channels(protocol, Role::Client), Role::Client, None);
    let mut channel =
        |number, stream, is_wanted: bool| is_wanted.then(|| mux.channel(number, incoming(stream), SEND_BYTES));
    let streams = [
        channel(channel::STDIN, StreamType::Stdin, wanted.stdin),
        channel(channel::STDOUT, StreamType::Stdout, wanted.stdout),
        channel(channel::STDERR, StreamType::Stderr, wanted.stderr && !wanted.tty),
        channel(channel::RESIZE, StreamType::Resize, wanted.tty),
    ];
    let error = mux.channel(channel::ERROR, incoming(StreamType::Error), SEND_BYTES);
    let held = mux.shared().hold();
    drive(mux);
    Ok(CommandClient::new(error, streams, protocol.has_status(), false, held))
}

fn incoming(stream: StreamType) -> Incoming {
    match stream {
        StreamType::Error | StreamType::Stdout | StreamType::Stderr => Incoming::Kept,
        StreamType::Stdin | StreamType::Resize => Incoming::Dropped,
    }
}

impl CommandClient {
    /// `streams` are stdin, stdout, stderr and resize.
    fn new(
        error: Arc<Stream>,
        streams: [Option<Arc<Stream>>; 4],
        has_status: bool,
        has_ends: bool,
        held: Held,
    ) -> Self {
        let [stdin, stdout, stderr, resize] = streams;
        let shared = error.shared().clone();
        let client = Self {
            stdin: stdin.map(Sender::holding),
            stdout: stdout.map(Receiver::holding),
            stderr: stderr.map(Receiver::holding),
            resizes: resize.map(ResizeSender::holding),
            end: CommandEnded { error: Receiver::holding(error), shared, has_status, has_ends },
        };
        drop(held);
        client
    }
}

/// Drives a client's connection in a task of its own, until it is over or nobody holds anything of it.
fn drive(mut mux: Mux) {
    tokio::spawn(async move {
        let shared = mux.shared().clone();
        if mux.until(|_| shared.is_abandoned()).await.is_ok() {
            let _ = timeout(CLOSE_DEADLINE, mux.close()).await;
        }
    });
}

/// Opens one stream and waits for the server to agree.
async fn open(
    shared: &Arc<Shared>,
    headers: Vec<(&'static str, String)>,
    incoming: Incoming,
    send_bytes: usize,
) -> Result<Arc<Stream>, ClientError> {
    let what = headers.first().map(|(_, value)| value.clone()).unwrap_or_default();
    let (opened, answer) = oneshot::channel();
    shared.open(Open { headers, send_bytes, incoming, opened });
    match timeout(OPEN_DEADLINE, answer).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(_)) if shared.gone.is_cancelled() => {
            Err(ClientError(format!("open stream {what}: {}", shared.why_gone())))
        }
        Ok(Err(_)) => Err(ClientError(format!("open stream {what}: the server refused it"))),
        Err(_) => Err(ClientError(format!("open stream {what}: the server did not agree within {OPEN_DEADLINE:?}"))),
    }
}
