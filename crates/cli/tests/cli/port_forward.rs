//! `port-forward`: what it prints, what goes through, what fails alone, how it ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Child, ChildStderr, ChildStdout, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::Fixture;
use crate::lists::node;
use crate::streams::{DEADLINE, eventually};

/// A pod's server: reads all, and answers with it in capitals and then closes.
fn shouting() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            std::thread::spawn(move || {
                let mut connection = connection.unwrap();
                let mut heard = Vec::new();
                let _ = connection.read_to_end(&mut heard);
                let _ = connection.write_all(&heard.to_ascii_uppercase());
            });
        }
    });
    address
}

struct Forwarding {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Forwarding {
    fn start(node: &Fixture, args: &[&str]) -> Self {
        let mut command = node.command(&[&["port-forward"], args].concat());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    fn local_port(&mut self) -> u16 {
        let line = self.line();
        let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split_once(' '));
        port.unwrap_or_else(|| panic!("{line:?}")).0.parse().unwrap()
    }

    fn end(mut self, signal: Signal) -> i32 {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let mut code = None;
        eventually("it ends", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        code.and_then(|status| status.code()).unwrap_or(-1)
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(address: impl std::net::ToSocketAddrs) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn say(mut stream: TcpStream, text: &[u8]) -> Vec<u8> {
    stream.write_all(text).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

fn with_server() -> Fixture {
    let node = node();
    node.tables.lock().unwrap().pod_ports.insert(80, shouting());
    node
}

#[test]
fn each_half_of_each_connection_goes_through() {
    let node = with_server();
    for transport in ["spdy", "websocket"] {
        let mut forwarding = Forwarding::start(&node, &["--transport", transport, "aa11", ":80"]);
        let port = forwarding.local_port();
        let large = vec![b'a'; 1_000_000];
        let long = connect(("127.0.0.1", port));
        let short = connect(("127.0.0.1", port));
        assert_eq!(say(short, b"quiet"), b"QUIET", "{transport}");
        assert!(say(long, &large) == large.to_ascii_uppercase(), "{transport}");
        assert_eq!(forwarding.end(Signal::INT), 0, "{transport}");
    }
    assert!(node.calls()[0].ends_with(" [80]"), "{:?}", node.calls());
}

#[test]
fn localhost_is_both_families_and_each_is_told() {
    let node = with_server();
    let mut forwarding = Forwarding::start(&node, &["aa11", ":80", "0:80"]);
    let first = forwarding.local_port();
    let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if has_ipv6 {
        assert_eq!(forwarding.line(), format!("Forwarding from [::1]:{first} -> 80\n"));
        assert_eq!(say(connect((Ipv6Addr::LOCALHOST, first)), b"six"), b"SIX");
    }
    let second = forwarding.local_port();
    assert_ne!(first, second);
    assert_eq!(say(connect(("127.0.0.1", second)), b"four"), b"FOUR");
}

#[test]
fn a_port_where_nobody_listens_does_not_end_the_others() {
    let node = with_server();
    let mut forwarding = Forwarding::start(&node, &["--address", "127.0.0.1", "aa11", ":80", ":81"]);
    let (good, bad) = (forwarding.local_port(), forwarding.local_port());
    let mut answer = Vec::new();
    // Closed or reset: in either case nothing has come.
    let _ = connect(("127.0.0.1", bad)).read_to_end(&mut answer);
    assert_eq!(answer, b"");
    let mut told = String::new();
    forwarding.stderr.read_line(&mut told).unwrap();
    assert!(told.starts_with("error: port 81: "), "{told:?}");
    assert!(told.contains("nobody listens on port 81"), "{told:?}");
    assert_eq!(say(connect(("127.0.0.1", good)), b"still"), b"STILL");
    assert_eq!(forwarding.end(Signal::TERM), 143);
}

#[test]
fn what_cannot_be_listened_on_is_told_before_anything_is_forwarded() {
    let node = with_server();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let pair = format!("{}:80", taken.local_addr().unwrap().port());
    let outcome = node.knarr(&["port-forward", "aa11", &pair]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("cannot listen on 127.0.0.1:"), "{outcome:?}");
    assert!(node.calls().is_empty());
    for bad in ["0", "80:0", "http", "70000"] {
        assert_eq!(node.knarr(&["port-forward", "aa11", bad]).code, 2, "{bad}");
    }
    assert_eq!(node.knarr(&["port-forward", "nope", "80"]).code, 3);
}
