//! Telling systemd, when it is there, that the daemon is ready or ending.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Requests can be sent now.
pub fn ready() {
    send("READY=1\n");
}

/// The daemon ends; its pods stay.
pub fn stopping() {
    send("STOPPING=1\n");
}

fn send(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let bytes = path.as_encoded_bytes();
    // A leading @ stands for the zero byte of an abstract socket.
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abstract_address_is_understood() {
        let receiver = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(b"knarr-notify-test").unwrap()).unwrap();
        let address = SocketAddr::from_abstract_name(b"knarr-notify-test").unwrap();
        UnixDatagram::unbound().unwrap().send_to_addr(b"READY=1\n", &address).unwrap();
        let mut buffer = [0; 64];
        let count = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"READY=1\n");
    }
}
