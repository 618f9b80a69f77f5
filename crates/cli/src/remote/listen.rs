//! What `port-forward` listens on: the ports and addresses of its command line, and the sockets made of them.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::str::FromStr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

use crate::failure::Failure;

/// How often another free port is tried where the one that was free on the first address is taken on the next.
const FREE_PORT_TRIES: usize = 16;

/// Connections that wait to be accepted; net.core.somaxconn caps it.
const BACKLOG: i32 = 128;

/// One `[LOCAL:]REMOTE` of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortPair {
    /// 0 takes a free one.
    pub local: u16,
    /// Within the pod.
    pub remote: u16,
}

impl FromStr for PortPair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, remote) = match text.split_once(':') {
            None => (text, text),
            Some(("", remote)) => ("0", remote),
            Some(pair) => pair,
        };
        let port = |digits: &str| {
            let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u16>().ok());
            number.flatten().ok_or_else(|| format!("{digits:?} is no port from 0 to 65535"))
        };
        let pair = Self { local: port(local)?, remote: port(remote)? };
        if pair.remote == 0 {
            return Err("the pod has no port 0".to_owned());
        }
        Ok(pair)
    }
}

/// One `--address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// 127.0.0.1 and ::1, or one of them on a machine that has no other.
    Localhost,
    /// Just this.
    Ip(IpAddr),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "localhost" {
            return Ok(Self::Localhost);
        }
        text.parse().map(Self::Ip).map_err(|_| format!("{text:?} is neither an IP address nor localhost"))
    }
}

/// A socket that listens for one port of the pod.
pub struct Listener {
    /// The socket, not blocking.
    pub socket: TcpListener,
    /// Where.
    pub address: SocketAddr,
    /// The pod's port behind it.
    pub remote: u16,
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Forwarding from {} -> {}", self.address, self.remote)
    }
}

/// Listens for each pair on each address; all or nothing.
///
/// # Errors
/// The first address and port that cannot be listened on.
pub fn listen_on(addresses: &[Address], pairs: &[PortPair]) -> Result<Vec<Listener>, Failure> {
    let mut wanted: Vec<(IpAddr, bool)> = Vec::new();
    for address in addresses {
        let new = match address {
            Address::Localhost => vec![(Ipv4Addr::LOCALHOST.into(), true), (Ipv6Addr::LOCALHOST.into(), true)],
            Address::Ip(ip) => vec![(*ip, false)],
        };
        for (ip, dispensable) in new {
            match wanted.iter_mut().find(|(known, _)| *known == ip) {
                Some(known) => known.1 &= dispensable,
                None => wanted.push((ip, dispensable)),
            }
        }
    }
    let mut listeners = Vec::new();
    for pair in pairs {
        listeners.extend(listen_for(*pair, &wanted)?);
    }
    Ok(listeners)
}

fn listen_for(pair: PortPair, addresses: &[(IpAddr, bool)]) -> Result<Vec<Listener>, Failure> {
    let mut tries = if pair.local == 0 { FREE_PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        match listen_once(pair, addresses) {
            Err((_, error)) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err((at, error)) => return Err(cannot_listen(at, &error)),
            Ok(listeners) => return Ok(listeners),
        }
    }
}

fn cannot_listen(at: SocketAddr, error: &io::Error) -> Failure {
    let failure = Failure::new(format!("cannot listen on {at}: {error}"));
    match error.kind() {
        io::ErrorKind::AddrInUse => failure.with_hint("`:PORT` takes a free local port"),
        io::ErrorKind::PermissionDenied => failure.with_hint("ports below 1024 take root; `:PORT` takes a free one"),
        _ => failure,
    }
}

fn listen_once(pair: PortPair, addresses: &[(IpAddr, bool)]) -> Result<Vec<Listener>, (SocketAddr, io::Error)> {
    let mut listeners: Vec<Listener> = Vec::new();
    let mut missing = None;
    for (ip, dispensable) in addresses {
        // The free port of the first address is that of all.
        let port = listeners.first().map_or(pair.local, |first| first.address.port());
        let at = SocketAddr::new(*ip, port);
        match open(at).and_then(|socket| Ok((socket.local_addr()?, socket))) {
            Ok((address, socket)) => listeners.push(Listener { socket, address, remote: pair.remote }),
            Err(error) if *dispensable && is_not_there(&error) => missing = Some((at, error)),
            Err(error) => return Err((at, error)),
        }
    }
    match missing {
        Some(missing) if listeners.is_empty() => Err(missing),
        _ => Ok(listeners),
    }
}

/// The machine does not have this address, or not its family.
fn is_not_there(error: &io::Error) -> bool {
    [Errno::ADDRNOTAVAIL, Errno::AFNOSUPPORT].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn open(at: SocketAddr) -> io::Result<TcpListener> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    // A port is free again as soon as its listener has gone, whatever its old connections are at.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if at.is_ipv6() {
        // `::` is IPv6 alone, so that 0.0.0.0 can be given beside it.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &at)?;
    listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_local_and_remote_or_both_in_one() {
        let pair = |text: &str| text.parse::<PortPair>().map(|pair| (pair.local, pair.remote));
        assert_eq!(pair("80"), Ok((80, 80)));
        assert_eq!(pair("8080:80"), Ok((8080, 80)));
        assert_eq!(pair(":80"), Ok((0, 80)));
        assert_eq!(pair("0:65535"), Ok((0, 65535)));
        for bad in ["", ":", "80:", "0", "0:0", "65536", "80:65536", "+80", "-1", "http", "1:2:3", " 80", "80:80/tcp"] {
            assert!(pair(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_numbers_or_localhost() {
        assert_eq!("localhost".parse(), Ok(Address::Localhost));
        assert_eq!("::".parse(), Ok(Address::Ip(Ipv6Addr::UNSPECIFIED.into())));
        assert_eq!("10.0.0.1".parse(), Ok(Address::Ip(Ipv4Addr::new(10, 0, 0, 1).into())));
        for bad in ["", "example.org", "127.0.0.1:80", "[::1]"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_free_port_is_the_same_on_all_addresses() {
        let pairs = [PortPair { local: 0, remote: 80 }, PortPair { local: 0, remote: 81 }];
        let listeners = listen_on(&[Address::Localhost, Address::Localhost], &pairs).unwrap();
        let of_80: Vec<u16> = listeners.iter().filter(|one| one.remote == 80).map(|one| one.address.port()).collect();
        assert!(!of_80.is_empty() && of_80.len() <= 2, "{of_80:?}");
        assert!(of_80.iter().all(|port| *port == of_80[0] && *port != 0), "{of_80:?}");
        assert_eq!(listeners[0].to_string(), format!("Forwarding from 127.0.0.1:{} -> 80", of_80[0]));
        assert!(listeners.iter().all(|one| one.address.ip().is_loopback()));
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = taken.local_addr().unwrap();
        let pair = PortPair { local: address.port(), remote: 80 };
        let Err(failure) = listen_on(&[Address::Localhost], &[pair]) else { panic!("{address} is taken") };
        assert!(failure.to_string().starts_with(&format!("cannot listen on {address}: ")), "{failure}");
        assert!(failure.hint().is_some());
    }

    #[test]
    fn both_families_can_be_listened_on_at_once() {
        let addresses = ["0.0.0.0", "::"].map(|text| text.parse().unwrap());
        match listen_on(&addresses, &[PortPair { local: 0, remote: 80 }]) {
            Ok(listeners) => assert_eq!(listeners.len(), 2),
            // Where the kernel has no IPv6 an address that was asked for by name is missed.
            Err(failure) => assert!(failure.to_string().starts_with("cannot listen on [::]"), "{failure}"),
        }
    }
}
