//! Port-forward: pairs of streams, or of channels, each joined to one connection inside the pod.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use knarr_wire::channel;
use knarr_wire::port_forward::{Opened, Pairing};
use knarr_wire::spdy::{Headers, StreamId};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::forwarded::Joined;
use super::{Connect, PortForward};
use crate::mux::{Event, Gone, Mux};
use crate::stream::{Ended, FORWARD_SEND_BYTES, Incoming, Stream};

/// Connections forwarded at once over one connection of a client; each holds some 100 KiB when its client does not
/// read. More are refused, one by one.
const FORWARDED_MAX: usize = 512;
/// How long forwarded connections may go on once their client has gone, to take what it has sent.
const FORWARD_GRACE: Duration = Duration::from_secs(5);

/// Serves forwarding over SPDY, tunnelled or not.
pub(super) async fn serve_spdy(mux: Mux, forward: PortForward, idle: Duration, stop: &CancellationToken) {
    let mut forwarding = Forwarding {
        mux,
        pairing: Pairing::new(),
        waiting: Vec::new(),
        forwarded: JoinSet::new(),
        connect: forward.connect,
        idle,
    };
    let gone = loop {
        let expiry = forwarding.pairing.next_expiry().map(Instant::from_std);
        tokio::select! {
            event = forwarding.mux.event() => match event {
                Event::Opened { stream, headers, fin } => forwarding.opened(stream, &headers, fin),
                Event::Gone(gone) => break gone,
            },
            Some(_) = forwarding.forwarded.join_next() => {}
            () = sleep_until(expiry.unwrap_or_else(Instant::now)), if expiry.is_some() => forwarding.expire(),
            () = stop.cancelled() => break Gone::Stopped,
        }
    };
    tracing::debug!("streaming: the client of a port-forward has gone: {gone}");
    end(forwarding.mux, gone, forwarding.forwarded).await;
}

/// One client's connection with what it forwards.
struct Forwarding {
    mux: Mux,
    pairing: Pairing,
    /// Streams whose other one has not come.
    waiting: Vec<Arc<Stream>>,
    forwarded: JoinSet<()>,
    connect: Connect,
    idle: Duration,
}

impl Forwarding {
    fn opened(&mut self, id: u32, headers: &Headers, fin: bool) {
        let pairing = &mut self.pairing;
        self.waiting.retain(|stream| {
            let is_there = !matches!(stream.ended(), Some(Ended::Reset | Ended::Gone));
            if !is_there {
                pairing.ended(StreamId(stream.id));
            }
            is_there
        });
        match pairing.opened(StreamId(id), headers, Instant::now().into_std()) {
            Opened::Refused(_) => self.mux.refuse(id),
            // Bytes may come before the other stream does.
            Opened::Waiting => self.waiting.push(self.mux.accept(id, fin, Incoming::Kept, FORWARD_SEND_BYTES)),
            Opened::Pair(pair) => {
                let stream = self.mux.accept(id, fin, Incoming::Kept, FORWARD_SEND_BYTES);
                let other = if pair.data.0 == id { pair.error } else { pair.data };
                let Some(other) = self.take_waiting(other.0) else { return stream.reset() };
                let (data, error) = if pair.data.0 == id { (stream, other) } else { (other, stream) };
                let joined = Joined { data, error, half_close: true, idle: self.idle };
                if self.forwarded.len() >= FORWARDED_MAX {
                    let text = format!("forward port {}: {FORWARDED_MAX} connections are forwarded already", pair.port);
                    return joined.fail(&text);
                }
                self.forwarded.spawn(joined.run(self.connect.clone(), pair.port));
            }
        }
    }

    fn take_waiting(&mut self, id: u32) -> Option<Arc<Stream>> {
        let at = self.waiting.iter().position(|stream| stream.id == id)?;
        Some(self.waiting.swap_remove(at))
    }

    /// Gives up streams whose other one did not come in time.
    fn expire(&mut self) {
        for lone in self.pairing.expired(Instant::now().into_std()) {
            let Some(stream) = self.take_waiting(lone.stream.0) else { continue };
            if lone.is_error {
                let text = format!("forward port {}: the data stream of the request did not come in time", lone.port);
                stream.push(text.into());
            }
            stream.reset();
        }
    }
}

/// Serves forwarding over channels, where the ports are known from the beginning and cannot be ended one by one.
pub(super) async fn serve_channels(
    mut mux: Mux,
    forward: PortForward,
    ports: &[u16],
    idle: Duration,
    stop: &CancellationToken,
) {
    let mut forwarded = JoinSet::new();
    for (channel, port) in (0_u8..).step_by(2).zip(ports) {
        let data = mux.channel(channel, Incoming::Kept, FORWARD_SEND_BYTES);
        let error = mux.channel(channel + 1, Incoming::Dropped, FORWARD_SEND_BYTES);
        for stream in [&data, &error] {
            stream.push(Bytes::copy_from_slice(&channel::port_announcement(*port)));
        }
        let joined = Joined { data, error, half_close: false, idle };
        forwarded.spawn(joined.run(forward.connect.clone(), *port));
    }
    let gone = loop {
        tokio::select! {
            event = mux.event() => match event {
                Event::Opened { stream, .. } => mux.refuse(stream),
                Event::Gone(gone) => break Some(gone),
            },
            over = forwarded.join_next() => if over.is_none() { break None },
            () = stop.cancelled() => break Some(Gone::Stopped),
        }
    };
    match gone {
        Some(gone) => end(mux, gone, forwarded).await,
        None => tokio::select! {
            () = mux.close() => {}
            () = stop.cancelled() => {}
        },
    }
}

/// Lets forwarded connections take what their client has sent before it went.
async fn end(mut mux: Mux, gone: Gone, mut forwarded: JoinSet<()>) {
    mux.end(gone);
    let _ = timeout(FORWARD_GRACE, async { while forwarded.join_next().await.is_some() {} }).await;
    forwarded.shutdown().await;
    mux.dismiss().await;
}
