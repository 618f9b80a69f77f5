//! One forwarded connection: a stream of the client on one side, a connection inside the pod on the other.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep_until, timeout};

use super::Connect;
use crate::stream::{Ended, Stream};
use crate::{Receiver, Sender};

/// How long connecting inside the pod may take: it is the pod's loopback, but a full backlog drops what comes.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of a forwarded connection that are read at once.
const READ_BYTES: usize = 32 << 10;

/// One forwarded connection.
pub(super) struct Joined {
    pub(super) data: Arc<Stream>,
    pub(super) error: Arc<Stream>,
    /// The end of one direction can be told.
    pub(super) half_close: bool,
    pub(super) idle: Duration,
}

/// Whether bytes move.
struct Moves {
    start: Instant,
    /// When one did last, in milliseconds since the start.
    last_ms: AtomicU64,
    /// One direction has ended.
    half: AtomicBool,
    up_is_over: AtomicBool,
}

impl Moves {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            last_ms: AtomicU64::new(0),
            half: AtomicBool::new(false),
            up_is_over: AtomicBool::new(false),
        }
    }

    fn note(&self) {
        self.last_ms.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn end_half(&self) {
        self.half.store(true, Ordering::Relaxed);
        self.note();
    }

    /// Resolves when one direction has ended and nothing has moved in the other for `limit`. While both are open the
    /// client's connection alone is watched.
    async fn stuck(&self, limit: Duration) {
        loop {
            let last = self.last_ms.load(Ordering::Relaxed);
            sleep_until(self.start + Duration::from_millis(last) + limit).await;
            if last != self.last_ms.load(Ordering::Relaxed) {
                continue;
            }
            if self.half.load(Ordering::Relaxed) {
                return;
            }
            self.note();
        }
    }
}

/// How one direction ended.
enum Over {
    /// It has said all that it had to say.
    Finished,
    /// The connection is of no use any more.
    Broken,
}

impl Joined {
    pub(super) async fn run(self, connect: Connect, port: u16) {
        // The client has nothing to say there.
        self.error.drop_incoming();
        let (receiver, sender) = (Receiver::new(self.data.clone()), Sender::new(self.data.clone()));
        match timeout(CONNECT_DEADLINE, connect(port)).await {
            Ok(Ok(tcp)) => {
                self.join(tcp, receiver, sender).await;
                // The last to end: a client waits for it.
                self.error.finish();
            }
            Ok(Err(error)) => self.fail(&format!("forward port {port}: {error}")),
            Err(_) => self.fail(&format!("forward port {port}: not connected within {CONNECT_DEADLINE:?}")),
        }
    }

    pub(super) fn fail(&self, text: &str) {
        self.error.push(Bytes::copy_from_slice(text.as_bytes()));
        // Both are given up, as Kubernetes' servers do; the client's connection stays for others.
        self.error.reset();
        self.data.reset();
    }

    /// Copies both ways. The end of one direction is passed on and does not end the other, which goes on while bytes
    /// move.
    async fn join(&self, mut tcp: TcpStream, receiver: Receiver, mut sender: Sender) {
        // Interactive protocols are forwarded too; if it fails, they are slower.
        let _ = tcp.set_nodelay(true);
        let (mut read, mut write) = tcp.split();
        let moves = Moves::new();
        let over = {
            let up = async {
                let over = copy_up(receiver, &mut write, &moves).await;
                moves.up_is_over.store(true, Ordering::Relaxed);
                moves.end_half();
                over
            };
            let down = async {
                let over = copy_down(&mut read, &mut sender, &moves).await;
                moves.end_half();
                if let Over::Finished = over {
                    // Now, not when both are over: the client may wait for it before it ends its own half.
                    self.data.finish();
                }
                over
            };
            let both = async {
                tokio::pin!(up, down);
                tokio::select! {
                    over = &mut up => match over { Over::Finished => down.await, Over::Broken => Over::Broken },
                    over = &mut down => match over {
                        Over::Finished if self.half_close => up.await,
                        over => over,
                    },
                }
            };
            // What the client sent before it went still goes in; then nothing holds the pod's end.
            let left = async {
                self.data.shared().gone.cancelled().await;
                if !moves.up_is_over.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
                Over::Broken
            };
            tokio::select! {
                over = both => over,
                () = moves.stuck(self.idle) => Over::Broken,
                over = left => over,
            }
        };
        // A client whose half is open would go on sending to nobody.
        if matches!(over, Over::Broken) || self.data.ended().is_none() {
            self.data.reset();
        }
    }
}

/// From the client into the pod.
async fn copy_up(mut receiver: Receiver, write: &mut WriteHalf<'_>, moves: &Moves) -> Over {
    loop {
        let bytes = match receiver.receive().await {
            Ok(bytes) => bytes,
            Err(Ended::Finished) => {
                // It fails where the pod has closed both ways: the other direction sees it too.
                let _ = write.shutdown().await;
                return Over::Finished;
            }
            Err(Ended::Reset | Ended::Gone) => return Over::Broken,
        };
        if write.write_all(&bytes).await.is_err() {
            // The pod does not listen any more, but may still have something to say.
            return Over::Finished;
        }
        moves.note();
    }
}

/// From the pod to the client.
async fn copy_down(read: &mut ReadHalf<'_>, sender: &mut Sender, moves: &Moves) -> Over {
    let mut buffer = BytesMut::new();
    loop {
        // A buffer is held while there is something to put into it, not while a connection is silent.
        let count = match read.readable().await {
            Ok(()) => {
                buffer.reserve(READ_BYTES);
                read.try_read_buf(&mut buffer)
            }
            Err(error) => Err(error),
        };
        match count {
            Ok(0) => return Over::Finished,
            Ok(count) => {
                moves.note();
                // A short piece does not hold the buffer of a long one.
                let bytes = if count < READ_BYTES / 4 {
                    let bytes = Bytes::copy_from_slice(&buffer);
                    buffer.clear();
                    bytes
                } else {
                    buffer.split().freeze()
                };
                if sender.send(bytes).await.is_err() {
                    return Over::Broken;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => buffer = BytesMut::new(),
            Err(_) => return Over::Broken,
        }
    }
}
