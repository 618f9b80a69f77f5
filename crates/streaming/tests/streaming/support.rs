//! A server whose commands are closures, clients to it, and who looks at what is left.
#![allow(dead_code, reason = "each of the two test programs uses a part")]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use knarr_streaming::client::{self, CommandClient, Target, Transport};
use knarr_streaming::server::{Command, CommandSession, Connect, Offer, PortForward, Server, Settings};
use knarr_streaming::{CommandEnd, Receiver, Sender, Wanted};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// No test waits longer for anything.
pub const LONG: Duration = Duration::from_secs(60);

pub const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };
pub const TTY: Wanted = Wanted { stdin: true, stdout: true, stderr: false, tty: true };

pub struct TestServer {
    pub server: Arc<Server>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

pub fn settings() -> Settings {
    Settings {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        base_url: None,
        tls: None,
        idle_timeout: Duration::from_secs(60),
        creation_timeout: Duration::from_secs(10),
        token_lifetime: Duration::from_secs(60),
        tokens_max: 1000,
        sessions_max: 1000,
    }
}

impl TestServer {
    pub async fn start(settings: Settings) -> Self {
        let server = Arc::new(Server::bind(settings).await.expect("loopback can be listened on"));
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn({
            let server = server.clone();
            async move {
                let stopped = async {
                    let _ = stopped.await;
                };
                server.serve(stopped).await;
            }
        });
        Self { server, stop: Some(stop), task }
    }

    pub fn exec<F>(&self, wanted: Wanted, run: impl FnOnce(CommandSession) -> F + Send + 'static) -> String
    where
        F: Future<Output = CommandEnd> + Send + 'static,
    {
        let run = Box::new(move |session| Box::pin(run(session)) as knarr_streaming::BoxFuture<CommandEnd>);
        self.server.offer(Offer::Exec(Command { wanted, run })).expect("a token")
    }

    pub fn forward(&self, ports: &[u16], connect: Connect) -> String {
        self.server.offer(Offer::PortForward(PortForward { ports: ports.to_vec(), connect })).expect("a token")
    }

    /// Runs a command at once.
    pub async fn run<F>(
        &self,
        transport: Transport,
        wanted: Wanted,
        run: impl FnOnce(CommandSession) -> F + Send + 'static,
    ) -> CommandClient
    where
        F: Future<Output = CommandEnd> + Send + 'static,
    {
        let url = self.exec(wanted, run);
        soon(client::command(&target(url, transport), wanted)).await.expect("a session")
    }

    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        soon(&mut self.task).await.expect("the server ends");
    }
}

pub fn target(url: String, transport: Transport) -> Target {
    Target { url, transport, tls: None }
}

pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(LONG, future).await.expect("it comes in time")
}

/// Connects to this machine's own loopback.
pub fn local() -> Connect {
    Arc::new(|port| Box::pin(tokio::net::TcpStream::connect(("127.0.0.1", port))))
}

/// Everything that comes.
pub async fn all(receiver: &mut Receiver) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(bytes) = receiver.next().await {
        all.extend_from_slice(&bytes);
    }
    all
}

/// Bytes that differ everywhere, cheap to make and to compare.
pub fn pattern(length: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// Sends in pieces of odd sizes.
pub async fn send_odd(sender: &mut Sender, mut bytes: Bytes) -> Result<(), knarr_streaming::Gone> {
    let sizes = [1, 7, 100, 4095, 4096, 4097, 65_535, 65_536, 65_537, 200_001, 333];
    for size in sizes.into_iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        sender.send(bytes.split_to(size.min(bytes.len()))).await?;
    }
    Ok(())
}

/// Asks until it is so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + LONG;
    while !is_so() {
        assert!(tokio::time::Instant::now() < end, "it never came true: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

pub fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Counts how many have begun, and how many have been dropped.
#[derive(Clone, Default)]
pub struct Counted {
    pub begun: Arc<AtomicUsize>,
    pub dropped: Arc<AtomicUsize>,
}

pub struct OnDrop(Arc<AtomicUsize>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Counted {
    pub fn begin(&self) -> OnDrop {
        self.begun.fetch_add(1, Ordering::SeqCst);
        OnDrop(self.dropped.clone())
    }

    /// Counts when it is called, which for some clients it never is.
    pub fn begin_later(&self) -> impl FnOnce() -> OnDrop + Send + use<> {
        let counted = self.clone();
        move || counted.begin()
    }

    pub fn is_over(&self) -> bool {
        self.begun.load(Ordering::SeqCst) == self.dropped.load(Ordering::SeqCst)
    }
}

/// Reads, writes, and goes when its client does.
pub async fn busy(session: CommandSession, counted: OnDrop) -> CommandEnd {
    let _counted = counted;
    let (stdin, stdout, client) = (session.stdin, session.stdout, session.client);
    let work = async {
        let read = async {
            if let Some(mut stdin) = stdin {
                while stdin.next().await.is_some() {}
            }
        };
        let write = async {
            if let Some(mut stdout) = stdout {
                while stdout.send(vec![1; 5000].into()).await.is_ok() {
                    sleep(Duration::from_micros(200)).await;
                }
            }
        };
        tokio::join!(read, write);
    };
    tokio::select! {
        () = work => {}
        () = client.gone() => {}
    }
    CommandEnd::Success
}
