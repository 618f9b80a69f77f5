//! Clients that are not ours: bytes on a connection, a SPDY session by hand, and tungstenite's own WebSocket.
#![allow(dead_code, reason = "each of the two test programs uses a part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::BytesMut;
use knarr_wire::spdy::{Event, Role, Session, StreamId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::soon;

/// Address and path of a URL.
pub fn place(url: &str) -> (SocketAddr, String) {
    let rest = url.strip_prefix("http://").expect("a URL");
    let (address, path) = rest.split_once('/').expect("a path");
    (address.parse().expect("an address"), format!("/{path}"))
}

/// Sends a request as it is and gives the whole answer, up to the end of the connection.
pub async fn ask(address: SocketAddr, request: &[u8]) -> String {
    soon(async {
        let mut tcp = TcpStream::connect(address).await.expect("it listens");
        let _ = tcp.write_all(request).await;
        let mut answer = Vec::new();
        let _ = tcp.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    })
    .await
}

/// A request that would be upgraded.
pub fn request(path: &str, headers: &[(&str, &str)]) -> String {
    let mut request = format!("POST {path} HTTP/1.1\r\nHost: x\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    request
}

pub fn spdy_request(path: &str, version: &str) -> String {
    let headers = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", version)];
    request(path, &headers)
}

/// Connects, sends `request` and whatever follows it, and gives the head of the answer and what came behind it.
pub async fn upgrade(url: &str, request: &[u8]) -> (TcpStream, String, BytesMut) {
    let (address, _) = place(url);
    upgrade_on(TcpStream::connect(address).await.expect("it listens"), request).await
}

/// The same on a connection that is there.
pub async fn upgrade_on(mut tcp: TcpStream, request: &[u8]) -> (TcpStream, String, BytesMut) {
    tcp.write_all(request).await.expect("it is taken");
    let mut input = BytesMut::new();
    let end = loop {
        if let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        assert!(soon(tcp.read_buf(&mut input)).await.expect("an answer") > 0, "no whole answer: {input:?}");
    };
    let head = input.split_to(end);
    (tcp, String::from_utf8_lossy(&head).into_owned(), input)
}

/// A SPDY client that does what it is told.
pub struct Spdy {
    pub tcp: TcpStream,
    pub session: Session,
    pub input: BytesMut,
}

/// What came on one stream.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Came {
    pub replied: bool,
    pub bytes: Vec<u8>,
    pub fin: bool,
    pub reset: bool,
}

impl Spdy {
    /// Upgrades, and sends the opening of these streams in the same write as the request.
    pub async fn connect(url: &str, version: &str, streams: &[&[(&str, &str)]]) -> (Self, Vec<StreamId>) {
        let (_, path) = place(url);
        let mut session = Session::new(Role::Client);
        let mut out = BytesMut::new();
        out.extend_from_slice(spdy_request(&path, version).as_bytes());
        let ids = streams.iter().map(|headers| session.open(headers, &mut out).expect("a stream")).collect();
        let (tcp, head, input) = upgrade(url, &out).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.to_lowercase().contains(&format!("x-stream-protocol-version: {version}\r\n")), "{head}");
        (Self { tcp, session, input }, ids)
    }

    pub async fn send(&mut self, stream: StreamId, bytes: &[u8], fin: bool) {
        let header = self.session.data_header(stream, bytes.len(), fin).expect("an open stream");
        self.tcp.write_all(&header).await.expect("it is taken");
        self.tcp.write_all(bytes).await.expect("it is taken");
    }

    /// Everything that comes until the connection ends.
    pub async fn rest(&mut self) -> BTreeMap<u32, Came> {
        self.until(|_| false).await
    }

    /// Everything that comes until it is so, or the connection ends.
    pub async fn until(&mut self, is_so: impl Fn(&BTreeMap<u32, Came>) -> bool) -> BTreeMap<u32, Came> {
        let mut came = BTreeMap::<u32, Came>::new();
        soon(async {
            let mut out = BytesMut::new();
            loop {
                while let Some(event) = self.session.next_event(&mut self.input, &mut out).expect("SPDY") {
                    match event {
                        Event::Replied { stream, .. } => came.entry(stream.0).or_default().replied = true,
                        Event::Data { stream, bytes, fin } => {
                            let entry = came.entry(stream.0).or_default();
                            entry.bytes.extend_from_slice(&bytes);
                            entry.fin |= fin;
                        }
                        Event::Reset { stream, .. } => came.entry(stream.0).or_default().reset = true,
                        _ => {}
                    }
                    if is_so(&came) {
                        return;
                    }
                }
                let _ = self.tcp.write_all(&out.split()).await;
                match self.tcp.read_buf(&mut self.input).await {
                    Ok(count) if count > 0 => {}
                    _ => return,
                }
            }
        })
        .await;
        came
    }
}
