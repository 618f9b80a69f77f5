//! A TCP connection, with or without TLS on it.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsStream;

/// How long a peer may say nothing at all before the kernel asks whether it is still there, and how often it asks then:
/// a machine that has lost its power is noticed in a quarter of an hour, not when a session has been idle for long
/// enough.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5 * 60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// How often it is looked whether a peer has got everything.
const DELIVERY_LOOK: Duration = Duration::from_millis(250);
/// Bytes that are dropped at once while a connection closes.
const DROP_BYTES: usize = 64 << 10;

/// Bytes that the kernel holds of what we send. By itself it takes up to 4 MiB, and once that is full tells of room only
/// when a third of it is free: to a peer on a poor line we would seem to stand still for seconds, then to be in a hurry.
const SEND_BUFFER_BYTES: usize = 256 << 10;

/// A connection.
#[derive(Debug)]
pub(crate) enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Whether the peer has closed its end or the connection is broken, even if there are bytes before that which
    /// nobody reads now. It does not wait.
    pub(crate) fn is_closed_by_peer(&self) -> bool {
        // The only interest that the end of reading satisfies and bytes to be read do not.
        let ready = pin!(self.tcp().ready(Interest::PRIORITY));
        match ready.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ready) => ready.is_ok_and(|ready| ready.is_read_closed()),
            Poll::Pending => false,
        }
    }

    /// Bytes that the peer's kernel has not acknowledged; 0 for a connection that is broken.
    fn undelivered(&self) -> usize {
        knarr_sys::tcp::undelivered(self.tcp()).unwrap_or_default()
    }
}

/// Says that nothing more comes and waits until the peer has closed its end too: as long as what was said is still on
/// its way, if it moves at all within `idle`, and then for `limit`. What the peer still sends is dropped.
///
/// A connection that is closed earlier is reset by the kernel as soon as its peer sends anything, a ping for instance,
/// and the peer loses what has not reached it: all that a reader which pauses has not made room for.
pub(crate) async fn linger(io: &mut Io, limit: Duration, idle: Duration) {
    // A failure is the end that is waited for.
    if !matches!(timeout(idle, io.shutdown()).await, Ok(Ok(()))) {
        return;
    }
    let mut dropped = BytesMut::with_capacity(DROP_BYTES);
    let mut last = (io.undelivered(), Instant::now());
    loop {
        match timeout(DELIVERY_LOOK, io.read_buf(&mut dropped)).await {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(_)) => dropped.clear(),
            Err(_) => {}
        }
        let undelivered = io.undelivered();
        if undelivered != last.0 {
            last = (undelivered, Instant::now());
        }
        if last.1.elapsed() >= if undelivered == 0 { limit } else { idle } {
            return;
        }
    }
}

/// Sets up a connection as sessions need it: small pieces go out at once, and a peer that vanished is noticed.
pub(crate) fn prepare(tcp: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt::{
        set_socket_keepalive, set_socket_send_buffer_size, set_tcp_keepidle, set_tcp_keepintvl,
    };
    tcp.set_nodelay(true)?;
    set_socket_send_buffer_size(tcp, SEND_BUFFER_BYTES)?;
    set_socket_keepalive(tcp, true)?;
    set_tcp_keepidle(tcp, KEEPALIVE_IDLE)?;
    set_tcp_keepintvl(tcp, KEEPALIVE_INTERVAL)?;
    Ok(())
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
