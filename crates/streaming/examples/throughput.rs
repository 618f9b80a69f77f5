//! How fast bytes go through the server: over loopback, each way and transport, and how much of a core the server's end
//! takes for it. `cargo run --release -p knarr-streaming --example throughput`
#![allow(clippy::print_stdout)]

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use knarr_streaming::client::{CommandClient, Target, Transport, command, port_forward};
use knarr_streaming::server::{Command, CommandSession, Offer, PortForward, Server, Settings};
use knarr_streaming::{BoxFuture, CommandEnd, Receiver, Sender, Wanted};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

const BYTES: usize = 4 << 30;
const PIECE: usize = 64 << 10;
const BOTH: Wanted = Wanted { stdin: true, stdout: true, stderr: false, tty: false };

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn settings() -> Settings {
    Settings {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        base_url: None,
        tls: None,
        idle_timeout: Duration::from_secs(60),
        creation_timeout: Duration::from_secs(10),
        token_lifetime: Duration::from_secs(60),
        tokens_max: 10,
        sessions_max: 10,
    }
}

async fn fill(sender: Option<Sender>) {
    let Some(mut sender) = sender else { return };
    let piece = Bytes::from(vec![7; PIECE]);
    for _ in 0..BYTES / PIECE {
        if sender.send(piece.clone()).await.is_err() {
            return;
        }
    }
    let _ = sender.finish().await;
}

async fn drain(receiver: Option<Receiver>) -> usize {
    let Some(mut receiver) = receiver else { return 0 };
    let mut count = 0;
    while let Some(bytes) = receiver.next().await {
        count += bytes.len();
    }
    count
}

fn gives(session: CommandSession) -> BoxFuture<CommandEnd> {
    Box::pin(async {
        fill(session.stdout).await;
        CommandEnd::Success
    })
}

fn takes(session: CommandSession) -> BoxFuture<CommandEnd> {
    Box::pin(async {
        match drain(session.stdin).await {
            BYTES => CommandEnd::Success,
            count => CommandEnd::Failed(format!("{count} bytes")),
        }
    })
}

/// The server on a thread, and a core, of its own.
struct Served {
    server: Arc<Server>,
    thread: String,
}

impl Served {
    fn start() -> Self {
        let (started, starting) = mpsc::channel();
        std::thread::spawn(move || {
            runtime().block_on(async {
                let server = Arc::new(Server::bind(settings()).await.expect("loopback can be listened on"));
                let thread = std::fs::read_link("/proc/thread-self").expect("procfs");
                let _ = started.send(Self { server: server.clone(), thread: thread.display().to_string() });
                server.serve(std::future::pending()).await;
            });
        });
        starting.recv().expect("the server starts")
    }

    /// How long its thread has been on a processor.
    fn used(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", self.thread)).expect("procfs");
        let nanoseconds = text.split(' ').next().and_then(|word| word.parse().ok());
        Duration::from_nanos(nanoseconds.expect("a number"))
    }

    async fn measure(&self, what: &str, transport: Transport, offer: Offer, go: impl AsyncFnOnce(Target)) {
        let url = self.server.offer(offer).expect("a token");
        let (start, before) = (Instant::now(), self.used());
        go(Target { url, transport, tls: None }).await;
        let (took, used) = (start.elapsed().as_secs_f64(), (self.used() - before).as_secs_f64());
        let megabytes = BYTES as f64 / 1e6;
        println!(
            "{transport:?} {what}: {:.0} MB/s, {:.0} MB for a second of the server",
            megabytes / took,
            megabytes / used
        );
    }
}

async fn finish(client: CommandClient) {
    let CommandClient { stdin, stdout, end, .. } = client;
    drop(stdin);
    let (_, end) = tokio::join!(drain(stdout), end.wait());
    assert_eq!(end.expect("an end"), CommandEnd::Success);
}

/// Something inside a pod that says much, or listens long.
async fn inside(gives: bool) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("loopback can be listened on");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        let listener = listener.into_std().expect("a listener");
        runtime().block_on(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let (mut tcp, _) = listener.accept().await.expect("a connection");
            let mut piece = vec![7; PIECE];
            if gives {
                for _ in 0..BYTES / PIECE {
                    tcp.write_all(&piece).await.expect("it is read");
                }
            } else {
                while tcp.read(&mut piece).await.expect("it is written") > 0 {}
            }
        });
    });
    port
}

fn forward() -> Offer {
    let connect = Arc::new(|port| Box::pin(TcpStream::connect(("127.0.0.1", port))) as BoxFuture<_>);
    Offer::PortForward(PortForward { ports: Vec::new(), connect })
}

fn main() {
    let served = Served::start();
    runtime().block_on(async {
        for transport in [Transport::Spdy, Transport::WebSocket] {
            let offer = Offer::Exec(Command { wanted: BOTH, run: Box::new(gives) });
            served
                .measure("stdout", transport, offer, async |target| {
                    let mut client = command(&target, BOTH).await.expect("a session");
                    assert_eq!(drain(client.stdout.take()).await, BYTES);
                    finish(client).await;
                })
                .await;
            let offer = Offer::Exec(Command { wanted: BOTH, run: Box::new(takes) });
            served
                .measure("stdin", transport, offer, async |target| {
                    let mut client = command(&target, BOTH).await.expect("a session");
                    fill(client.stdin.take()).await;
                    finish(client).await;
                })
                .await;
            let port = inside(true).await;
            served
                .measure("out of a port", transport, forward(), async |target| {
                    let client = port_forward(&target).await.expect("a session");
                    let forwarded = client.open(port).await.expect("a connection");
                    assert_eq!(drain(Some(forwarded.receiver)).await, BYTES);
                })
                .await;
            let port = inside(false).await;
            served
                .measure("into a port", transport, forward(), async |target| {
                    let client = port_forward(&target).await.expect("a session");
                    let forwarded = client.open(port).await.expect("a connection");
                    fill(Some(forwarded.sender)).await;
                    assert_eq!(drain(Some(forwarded.receiver)).await, 0);
                })
                .await;
        }
    });
}
