//! Connections to ports of a pod: to its own loopback, whichever network it is on.

use crate::network::netns;
use crate::pod_task::PodHandle;
use knarr_model::{Error, ErrorKind};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};

/// How long a connection may take to come about. Within one kernel it is there or refused at once, unless the program
/// that listens is behind with accepting; then the kernel tries again after 1, 3 and 7 s.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Where programs of a pod listen that want no others: the addresses of its loopback, tried in this order.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Connects to a port of the pod's loopback.
///
/// # Errors
/// The text says what was dialled and in which pod.
pub(super) async fn connect(pod: &PodHandle, port: u16) -> io::Result<TcpStream> {
    let refused =
        |error: Error| io::Error::other(dial_error(LOOPBACK[0], port, pod.effects().id().short(), &error.message));
    let sockets = sockets(pod).await.map_err(refused)?;
    let deadline = tokio::time::Instant::now() + CONNECT_DEADLINE;
    let mut first = None;
    for (socket, address) in sockets.into_iter().zip(LOOPBACK) {
        // A kernel without IPv6 has no socket of it.
        let connecting = async { from_std(socket?)?.connect(SocketAddr::new(address, port)).await };
        let connected = tokio::time::timeout_at(deadline, connecting).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok(stream),
            Err(error) => first = first.or(Some((address, error))),
        }
    }
    let (address, error) = first.unwrap_or((LOOPBACK[0], io::ErrorKind::AddrNotAvailable.into()));
    let text = dial_error(address, port, pod.effects().id().short(), &cause(&error));
    Err(io::Error::new(error.kind(), text))
}

/// A socket of each family of [`LOOPBACK`], in the pod's network.
async fn sockets(pod: &PodHandle) -> Result<[io::Result<OwnedFd>; 2], Error> {
    let view = pod.view();
    if !view.ready {
        return Err(Error::new(ErrorKind::FailedPrecondition, "the pod is not ready"));
    }
    if view.spec.namespaces.host_network {
        return Ok(LOOPBACK.map(socket_for));
    }
    let world = pod.effects().world().clone();
    let id = view.id.clone();
    let netns = tokio::task::spawn_blocking(move || world.network.open_netns(&id)).await;
    let netns = netns.map_err(io::Error::from).flatten();
    let netns = netns.map_err(|e| Error::internal(format!("open the pod's network namespace: {e}")))?;
    netns::inside(netns, || LOOPBACK.map(socket_for)).await
}

fn socket_for(address: IpAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

fn from_std(socket: OwnedFd) -> io::Result<TcpSocket> {
    // The conversion is of a socket that is not connected yet, for which this is the documented way.
    Ok(TcpSocket::from_std_stream(StdTcpStream::from(socket)))
}

fn cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::TimedOut => format!("no connection within {} s", CONNECT_DEADLINE.as_secs()),
        _ => error.to_string(),
    }
}

fn dial_error(address: IpAddr, port: u16, pod: &str, cause: &str) -> String {
    format!("dial {} in pod {pod}: {cause}", SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_was_dialled_and_why_it_failed() {
        let refused = io::Error::from_raw_os_error(rustix::io::Errno::CONNREFUSED.raw_os_error());
        assert_eq!(
            dial_error(LOOPBACK[0], 81, "0123abcd", &cause(&refused)),
            "dial 127.0.0.1:81 in pod 0123abcd: connection refused"
        );
        assert!(dial_error(LOOPBACK[1], 1, "x", "y").starts_with("dial [::1]:1 in pod x"));
    }

    #[tokio::test]
    async fn a_socket_that_was_made_elsewhere_is_connected() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = from_std(socket_for(LOOPBACK[0]).unwrap()).unwrap();
        let stream = socket.connect(listener.local_addr().unwrap()).await.unwrap();
        let (_, peer) = listener.accept().await.unwrap();
        assert_eq!(stream.local_addr().unwrap(), peer);
    }
}
