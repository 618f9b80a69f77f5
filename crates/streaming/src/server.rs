//! The server: an address, tokens, and sessions of clients that bring one back.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use knarr_wire::remotecommand::CommandEnd;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{BoxFuture, Receiver, ResizeReceiver, Sender, Wanted};

mod command;
mod connection;
mod forwarded;
mod http;
mod port_forward;
mod tokens;

pub(crate) use http::{PROTOCOL_VERSION, SPDY};

/// Connections beyond `sessions_max` that are told so (503) at the same time; further ones are closed without a word.
const REFUSED_MAX: usize = 16;
/// How long nothing is accepted after accepting failed: the usual cause, too many open descriptors, does not go away at
/// once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long sessions may take to end when the server is stopped, before they are dropped.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// How the server is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens; port 0 takes a free one.
    pub address: SocketAddr,
    /// What clients are told to connect to, when it is not `address`: a base URL without a slash at its end.
    pub base_url: Option<String>,
    /// Serve TLS with this.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// A session without any byte in either direction for this long is ended.
    pub idle_timeout: Duration,
    /// How long a client may take to create its streams, and to finish its HTTP request.
    pub creation_timeout: Duration,
    /// How long a token is good for.
    pub token_lifetime: Duration,
    /// Tokens that nobody has used yet.
    pub tokens_max: usize,
    /// Connections at the same time. More are refused at once, with 503 and without using up their token.
    pub sessions_max: usize,
}

/// What is served to whoever brings the token.
pub enum Offer {
    /// `/exec/<token>`.
    Exec(Command),
    /// `/attach/<token>`.
    Attach(Command),
    /// `/portforward/<token>`.
    PortForward(PortForward),
}

/// A command with its streams.
pub struct Command {
    /// The streams that the CRI request asked for.
    pub wanted: Wanted,
    /// Runs once the client has made its streams. The server then ends the outputs, sends the status, and closes.
    /// Dropped before its end when the client goes away, some seconds after `client` of the session has resolved.
    pub run: Box<dyn FnOnce(CommandSession) -> BoxFuture<CommandEnd> + Send>,
}

/// The streams of one session; each is there if it was wanted. `resizes` is there for a terminal, unless the client
/// speaks a version that has no sizes (v1, v2).
#[derive(Debug)]
#[allow(missing_docs)]
pub struct CommandSession {
    pub stdin: Option<Receiver>,
    pub stdout: Option<Sender>,
    pub stderr: Option<Sender>,
    pub resizes: Option<ResizeReceiver>,
    pub client: ClientGone,
}

/// Tells when the client has gone.
#[derive(Debug, Clone)]
pub struct ClientGone(CancellationToken);

impl ClientGone {
    /// Resolves when the client has closed its connection, or it broke, or was idle for too long.
    pub async fn gone(&self) {
        self.0.cancelled().await;
    }
}

/// Connections into a pod.
pub struct PortForward {
    /// The ports of the CRI request: those that a WebSocket client without ports in its own request gets.
    pub ports: Vec<u16>,
    /// Connects to a port inside.
    pub connect: Connect,
}

/// Connects to a port of a pod's loopback. The error's text is told to the client.
pub type Connect = Arc<dyn Fn(u16) -> BoxFuture<io::Result<TcpStream>> + Send + Sync>;

/// So many tokens are waiting for their clients that no more are given.
#[derive(Debug)]
pub struct TooManyTokens(pub usize);

impl std::fmt::Display for TooManyTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} streaming tokens wait for their clients already", self.0)
    }
}

impl std::error::Error for TooManyTokens {}

/// The streaming server.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    base_url: String,
    sessions: Arc<Semaphore>,
    refused: Arc<Semaphore>,
    inner: Arc<Inner>,
}

/// What every connection needs.
struct Inner {
    settings: Settings,
    tokens: tokens::Tokens,
    /// The path of the base URL, below which clients may ask.
    base_path: String,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .field("base_url", &self.base_url)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn bind(settings: Settings) -> io::Result<Self> {
        let listener = TcpListener::bind(settings.address).await?;
        let address = listener.local_addr()?;
        let scheme = if settings.tls.is_some() { "https" } else { "http" };
        let base_url = match &settings.base_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("{scheme}://{address}"),
        };
        let base_path = base_url.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
        let base_path = base_path.unwrap_or_default().to_owned();
        let tokens = tokens::Tokens::new(settings.token_lifetime, settings.tokens_max);
        Ok(Self {
            listener,
            address,
            base_url,
            sessions: Arc::new(Semaphore::new(settings.sessions_max)),
            refused: Arc::new(Semaphore::new(REFUSED_MAX)),
            inner: Arc::new(Inner { settings, tokens, base_path }),
        })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives a URL at which `offer` is served once, to the first who asks within the tokens' lifetime.
    ///
    /// # Errors
    /// Too many tokens have been given and not been used.
    pub fn offer(&self, offer: Offer) -> Result<String, TooManyTokens> {
        let kind = match &offer {
            Offer::Exec(_) => "exec",
            Offer::Attach(_) => "attach",
            Offer::PortForward(_) => "portforward",
        };
        let token = self.inner.tokens.insert(offer)?;
        Ok(format!("{}/{kind}/{token}", self.base_url))
    }

    /// Serves until `stop` resolves; then sessions are ended: their clients are gone for them.
    pub async fn serve(&self, stop: impl Future<Output = ()> + Send) {
        let mut connections = JoinSet::new();
        let stopping = CancellationToken::new();
        tokio::pin!(stop);
        let expiring = self.inner.tokens.expire();
        tokio::pin!(expiring);
        loop {
            tokio::select! {
                () = &mut stop => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((tcp, _)) => self.start(tcp, &mut connections, &stopping),
                    Err(error) => {
                        tracing::warn!("streaming: accept a connection: {error}");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = &mut expiring => {}
            }
        }
        stopping.cancel();
        let _ = timeout(STOP_GRACE, async { while connections.join_next().await.is_some() {} }).await;
        connections.shutdown().await;
    }

    fn start(&self, tcp: TcpStream, connections: &mut JoinSet<()>, stopping: &CancellationToken) {
        let (inner, stopping) = (self.inner.clone(), stopping.clone());
        let (permit, has_room) = match self.sessions.clone().try_acquire_owned() {
            Ok(permit) => (permit, true),
            Err(_) => match self.refused.clone().try_acquire_owned() {
                Ok(permit) => (permit, false),
                Err(_) => return,
            },
        };
        connections.spawn(async move {
            connection::serve(inner, tcp, has_room, stopping).await;
            drop(permit);
        });
    }
}
