//! A client of exec, attach and port-forward, as kubectl is one at the other end of kubelet: it gets a URL over gRPC
//! and takes the streams there.

use crate::node::{Node, STATE_LIMIT};
use crate::{Outcome, TOOL};
use bytes::Bytes;
use knarr_cri_api::v1;
use knarr_streaming::client::{self, CommandClient, Forwarded, PortForwardClient, Target, Transport};
use knarr_streaming::{CommandEnd, Receiver, Sender, Wanted};
use tonic::Status;

/// Both ways in which streams travel.
pub const TRANSPORTS: [Transport; 2] = [Transport::Spdy, Transport::WebSocket];

/// Only the outputs.
pub const OUTPUTS: Wanted = Wanted { stdin: false, stdout: true, stderr: true, tty: false };

/// All three streams.
pub const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };

/// A terminal with input.
pub const TERMINAL: Wanted = Wanted { stdin: true, stdout: true, stderr: false, tty: true };

/// What came of a command.
#[derive(Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Ended {
    pub stdout: String,
    pub stderr: String,
    pub end: CommandEnd,
}

/// A stream that must be there.
pub fn must<T>(stream: Option<T>) -> Outcome<T> {
    stream.ok_or_else(|| "a stream that was wanted is not there".into())
}

/// Waits no longer than for anything else in these tests.
pub async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> Outcome<T> {
    tokio::time::timeout(STATE_LIMIT, work).await.map_err(|_| format!("{what}: not within {STATE_LIMIT:?}").into())
}

/// Connects to a URL.
pub async fn connect(url: &str, transport: Transport, wanted: Wanted) -> Outcome<CommandClient> {
    let target = Target { url: url.to_owned(), transport, tls: None };
    let connected = in_time("the session begins", client::command(&target, wanted)).await?;
    connected.map_err(|e| format!("{url} over {transport:?}: {}", e.0).into())
}

/// Everything up to the end of a stream.
pub async fn all(receiver: &mut Option<Receiver>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(receiver) = receiver {
        match receiver.next().await {
            Some(more) => bytes.extend_from_slice(&more),
            None => break,
        }
    }
    bytes
}

/// Reads until this text has come.
pub async fn until(receiver: &mut Receiver, text: &str) -> Outcome<String> {
    let mut come = String::new();
    let reading = async {
        while !come.contains(text) {
            match receiver.next().await {
                Some(bytes) => come.push_str(&String::from_utf8_lossy(&bytes)),
                None => return false,
            }
        }
        true
    };
    match tokio::time::timeout(STATE_LIMIT, reading).await {
        Ok(true) => Ok(come),
        Ok(false) => Err(format!("the stream ended before {text:?} came: {come:?}").into()),
        Err(_) => Err(format!("{text:?} does not come: {come:?}").into()),
    }
}

/// Sends text.
pub async fn send(sender: &mut Sender, text: &str) -> Outcome {
    let sent = in_time("input is taken", sender.send(Bytes::copy_from_slice(text.as_bytes()))).await?;
    sent.map_err(|gone| format!("send {text:?}: {gone:?}").into())
}

/// Takes the outputs and the end of a command; its input stays open until then.
pub async fn finish(client: CommandClient) -> Outcome<Ended> {
    let CommandClient { stdin, mut stdout, mut stderr, resizes, end } = client;
    let taking = async { tokio::join!(all(&mut stdout), all(&mut stderr), end.wait()) };
    let (stdout, stderr, end) = in_time("the session ends", taking).await?;
    drop((stdin, resizes));
    Ok(Ended {
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        end: end.map_err(|e| e.0)?,
    })
}

impl Node {
    /// A URL for running the tool in a container.
    pub async fn exec_url(&mut self, id: &str, words: &[&str], wanted: Wanted) -> Result<String, Status> {
        let cmd = [TOOL].iter().chain(words).map(|w| (*w).to_owned()).collect();
        let Wanted { stdin, stdout, stderr, tty } = wanted;
        let request = v1::ExecRequest { container_id: id.into(), cmd, stdin, stdout, stderr, tty };
        Ok(self.runtime.exec(request).await?.into_inner().url)
    }

    /// A URL for a container's own streams.
    pub async fn attach_url(&mut self, id: &str, wanted: Wanted) -> Result<String, Status> {
        let Wanted { stdin, stdout, stderr, tty } = wanted;
        let request = v1::AttachRequest { container_id: id.into(), stdin, stdout, stderr, tty };
        Ok(self.runtime.attach(request).await?.into_inner().url)
    }

    /// Runs the tool in a container, with streams.
    pub async fn stream(
        &mut self,
        id: &str,
        words: &[&str],
        wanted: Wanted,
        transport: Transport,
    ) -> Outcome<CommandClient> {
        connect(&self.exec_url(id, words, wanted).await?, transport, wanted).await
    }

    /// Attaches to a container.
    pub async fn attach(&mut self, id: &str, wanted: Wanted, transport: Transport) -> Outcome<CommandClient> {
        connect(&self.attach_url(id, wanted).await?, transport, wanted).await
    }

    /// A connection for forwarding ports of a pod.
    pub async fn forward(&mut self, pod: &str, transport: Transport) -> Outcome<PortForwardClient> {
        let request = v1::PortForwardRequest { pod_sandbox_id: pod.into(), port: Vec::new() };
        let url = self.runtime.port_forward(request).await?.into_inner().url;
        let target = Target { url, transport, tls: None };
        let connected = in_time("forwarding begins", client::port_forward(&target)).await?;
        connected.map_err(|e| format!("{} over {transport:?}: {}", target.url, e.0).into())
    }
}

/// Opens one forwarded connection.
pub async fn open(client: &PortForwardClient, port: u16) -> Outcome<Forwarded> {
    let opened = in_time("a connection is opened", client.open(port)).await?;
    opened.map_err(|e| format!("port {port}: {}", e.0).into())
}

/// Sends bytes through a forwarded connection, ends the sending, and gives what comes back and the error's text.
pub async fn there_and_back(connection: Forwarded, bytes: Vec<u8>) -> Outcome<(Vec<u8>, Option<String>)> {
    let Forwarded { mut sender, receiver, error } = connection;
    let sending = async move {
        let bytes = Bytes::from(bytes);
        for from in (0..bytes.len()).step_by(CHUNK_BYTES) {
            // A server that is gone says why on the error stream.
            if sender.send(bytes.slice(from..bytes.len().min(from + CHUNK_BYTES))).await.is_err() {
                return;
            }
        }
        let _ = sender.finish().await;
    };
    let mut receiver = Some(receiver);
    let exchange = async { tokio::join!(sending, all(&mut receiver), error.wait()) };
    let ((), back, error) = in_time("a forwarded connection ends", exchange).await?;
    Ok((back, error))
}

/// Bytes of one send.
const CHUNK_BYTES: usize = 32 << 10;
