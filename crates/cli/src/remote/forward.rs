//! Connections to local ports, each joined to one into the pod, all over one connection to the runtime.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use knarr_streaming::client::{Forwarded, PortForwardClient};
use knarr_streaming::{Receiver, Sender};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::listen::Listener;
use crate::failure::{Failure, printable};
use crate::output::say;
use crate::signals::{Signals, exit_code_of};

/// Connections at the same time: what a browser and a load test open, within the usual 1024 descriptors of a shell.
const CONNECTIONS_MAX: usize = 256;

/// One read from a local connection.
const READ_BYTES: usize = 64 << 10;

/// Accepting fails for want of descriptors or memory; without a pause it would fail as fast as it can be called.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long what the pod wrote before an error is waited for, and an error after all has been written.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// SIGINT is how a person ends a forwarding that worked.
const SIGINT: u8 = 2;

struct Accepted {
    socket: TcpStream,
    remote: u16,
    room: OwnedSemaphorePermit,
}

/// Forwards until a signal comes; returns the exit code.
///
/// # Errors
/// The runtime has gone, or a socket does not listen.
pub async fn run(client: PortForwardClient, listeners: Vec<Listener>, mut signals: Signals) -> Result<u8, Failure> {
    let client = Arc::new(client);
    let room = Arc::new(Room { free: Arc::new(Semaphore::new(CONNECTIONS_MAX)), told: AtomicBool::new(false) });
    let (sender, mut accepted) = mpsc::channel(1);
    // Dropped at the end, and with it everything that is still under way.
    let mut tasks = JoinSet::new();
    for Listener { socket, remote, .. } in listeners {
        let socket = TcpListener::from_std(socket).map_err(|error| Failure::io("listen", &error))?;
        tasks.spawn(accept_all(socket, remote, room.clone(), sender.clone()));
    }
    loop {
        tokio::select! {
            signal = signals.next() => return Ok(if signal == SIGINT { 0 } else { exit_code_of(signal) }),
            () = client.gone() => return Err(Failure::new("the runtime has closed the connection over which ports are forwarded")),
            Some(accepted) = accepted.recv() => {
                let client = client.clone();
                tasks.spawn(async move {
                    let Accepted { socket, remote, room } = accepted;
                    if let Some(problem) = forward(&client, socket, remote).await {
                        say(&format!("error: port {remote}: {}", printable(problem.trim())));
                    }
                    drop(room);
                });
            }
            Some(_) = tasks.join_next() => {}
        }
    }
}

struct Room {
    free: Arc<Semaphore>,
    told: AtomicBool,
}

impl Room {
    /// Waits until one more connection may be open, and says that it does.
    async fn take(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.free.clone().try_acquire_owned() {
            self.told.store(false, Ordering::Relaxed);
            return Some(permit);
        }
        if !self.told.swap(true, Ordering::Relaxed) {
            say(&format!("warning: {CONNECTIONS_MAX} connections are open; further ones wait until one of them ends"));
        }
        self.free.clone().acquire_owned().await.ok()
    }
}

async fn accept_all(listener: TcpListener, remote: u16, room: Arc<Room>, to: mpsc::Sender<Accepted>) {
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                // One that was aborted in the backlog is nobody's loss.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    say(&format!("warning: cannot accept a connection for port {remote}: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let Some(room) = room.take().await else { return };
        if to.send(Accepted { socket, remote, room }).await.is_err() {
            return;
        }
    }
}

/// Joins one connection to the pod's port until both directions have ended. Returns what the runtime had against it.
async fn forward(client: &PortForwardClient, socket: TcpStream, remote: u16) -> Option<String> {
    let Forwarded { sender, receiver, error } = match client.open(remote).await {
        Ok(forwarded) => forwarded,
        Err(error) => return Some(error.0),
    };
    // A single keystroke or a small answer must not wait for the acknowledgement of the one before.
    let _ = socket.set_nodelay(true);
    let (read, write) = socket.into_split();
    let error = error.wait();
    let to_pod = to_pod(read, sender);
    let from_pod = from_pod(receiver, write);
    tokio::pin!(error, to_pod, from_pod);
    let (mut sending, mut receiving, mut blameless) = (true, true, true);
    while sending || receiving {
        tokio::select! {
            text = &mut error, if blameless => match text {
                Some(text) => {
                    // The pod may have answered before it broke off.
                    if receiving {
                        let _ = tokio::time::timeout(LAST_WORDS, from_pod).await;
                    }
                    return Some(text);
                }
                None => blameless = false,
            },
            sent = &mut to_pod, if sending => match sent {
                Ok(()) => sending = false,
                Err(_) => return None,
            },
            received = &mut from_pod, if receiving => match received {
                Ok(()) => receiving = false,
                Err(_) => return None,
            },
        }
    }
    if !blameless {
        return None;
    }
    tokio::time::timeout(LAST_WORDS, error).await.ok().flatten()
}

/// What our client writes, and then its end. An error is our client's: it has reset the connection.
async fn to_pod(from: OwnedReadHalf, mut to: Sender) -> io::Result<()> {
    loop {
        from.readable().await?;
        // Made for each read: a connection that is idle holds no buffer.
        let mut piece = BytesMut::with_capacity(READ_BYTES);
        match from.try_read_buf(&mut piece) {
            Ok(0) => {
                let _ = to.finish().await;
                return Ok(());
            }
            Ok(_) => {
                if to.send(piece.freeze()).await.is_err() {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// What the pod writes, and then its end. An error is our client's: it reads no more.
async fn from_pod(mut from: Receiver, mut to: OwnedWriteHalf) -> io::Result<()> {
    while let Some(piece) = from.next().await {
        to.write_all(&piece).await?;
    }
    to.shutdown().await
}
