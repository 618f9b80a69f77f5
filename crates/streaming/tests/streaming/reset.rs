//! A server that closes on bytes that it has not read, as containerd does: the kernel resets the connection.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use knarr_streaming::client::{self, Transport};
use knarr_streaming::{CommandEnd, Wanted};
use tokio::time::timeout;
use tungstenite::handshake::derive_accept_key;

use crate::support::{soon, target};

/// A WebSocket server that reads nothing; when told, it says on channel 3 that the command has ended, and closes.
fn deaf() -> (String, mpsc::Sender<()>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be listened on");
    let url = format!("http://{}/exec/x", listener.local_addr().expect("it has an address"));
    let (tell, told) = mpsc::channel();
    let server = thread::spawn(move || {
        let (mut connection, _) = listener.accept().expect("a client");
        let key = key_of(&mut connection);
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n",
            derive_accept_key(key.as_bytes())
        );
        connection.write_all(answer.as_bytes()).expect("the answer is sent");
        told.recv().expect("the test goes on");
        let status = br#"{"status":"Success"}"#;
        let head = [0x82, u8::try_from(status.len() + 1).expect("it is short"), 3];
        connection.write_all(&[&head[..], status].concat()).expect("the status is sent");
    });
    (url, tell, server)
}

fn key_of(connection: &mut TcpStream) -> String {
    let mut head = String::new();
    let mut byte = [0];
    while !head.ends_with("\r\n\r\n") {
        connection.read_exact(&mut byte).expect("the request comes");
        head.push(char::from(byte[0]));
    }
    let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: "));
    key.expect("the request has a key").to_owned()
}

#[tokio::test]
async fn how_a_command_ended_is_read_though_nothing_can_be_written_any_more() {
    let (url, tell, server) = deaf();
    let wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };
    let session = soon(client::command(&target(url, Transport::WebSocket), wanted)).await.expect("a session");
    let mut stdin = session.stdin.expect("it was wanted");
    let piece = Bytes::from(vec![0; 64 << 10]);
    while timeout(Duration::from_millis(200), stdin.send(piece.clone())).await.is_ok() {}
    tell.send(()).expect("the server listens");
    // It blocks this runtime's only thread: the client finds the status and the reset at the same time.
    server.join().expect("the server ends");
    assert_eq!(soon(session.end.wait()).await.expect("its end is known"), CommandEnd::Success);
}
