//! Exec and attach: finds the streams of a command, lets it run, and tells its end.

use std::sync::Arc;
use std::time::Duration;

use knarr_wire::channel;
use knarr_wire::remotecommand::{CommandEnd, STREAM_TYPE_HEADER, SizeDecoder, StreamType, Version};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{ClientGone, Command, CommandSession};
use crate::mux::{Event, Gone, Mux};
use crate::stream::{Incoming, SEND_BYTES, Stream};
use crate::{Receiver, ResizeReceiver, Sender, Wanted};

/// How long a command's closure may go on once its client has gone, to clean up.
const RUN_GRACE: Duration = Duration::from_secs(5);

/// The streams of a command, as far as they are there.
#[derive(Debug, Default)]
struct Streams {
    error: Option<Arc<Stream>>,
    stdin: Option<Arc<Stream>>,
    stdout: Option<Arc<Stream>>,
    stderr: Option<Arc<Stream>>,
    resize: Option<Arc<Stream>>,
}

impl Streams {
    fn slot(&mut self, stream: StreamType) -> &mut Option<Arc<Stream>> {
        match stream {
            StreamType::Error => &mut self.error,
            StreamType::Stdin => &mut self.stdin,
            StreamType::Stdout => &mut self.stdout,
            StreamType::Stderr => &mut self.stderr,
            StreamType::Resize => &mut self.resize,
        }
    }
}

/// The streams that a client must open.
fn expected(wanted: Wanted, has_resizes: bool) -> impl Iterator<Item = StreamType> {
    let all = [
        (StreamType::Error, true),
        (StreamType::Stdin, wanted.stdin),
        (StreamType::Stdout, wanted.stdout),
        (StreamType::Stderr, wanted.stderr && !wanted.tty),
        (StreamType::Resize, wanted.tty && has_resizes),
    ];
    all.into_iter().filter_map(|(stream, is_expected)| is_expected.then_some(stream))
}

fn incoming(stream: StreamType) -> Incoming {
    match stream {
        StreamType::Stdin => Incoming::Kept,
        StreamType::Resize => Incoming::Sizes(SizeDecoder::new()),
        StreamType::Error | StreamType::Stdout | StreamType::Stderr => Incoming::Dropped,
    }
}

/// Serves a command over SPDY, where the client opens the streams.
pub(super) async fn serve_spdy(
    mut mux: Mux,
    command: Command,
    version: Version,
    creation: Duration,
    stop: &CancellationToken,
) {
    let expected: Vec<_> = expected(command.wanted, version.has_resizes()).collect();
    let mut streams = Streams::default();
    let gathered = tokio::select! {
        gathered = timeout(creation, gather(&mut mux, &expected, &mut streams)) => gathered,
        () = stop.cancelled() => return,
    };
    match gathered {
        Ok(Ok(())) => {
            if version == Version::V1 {
                // As Kubernetes' servers do: a v1 client leaves with the first word on the error stream, whatever
                // output it has not read, and does not need the stream's end.
                streams.error.take().iter().for_each(Stream::reset);
                streams.stdin.iter().for_each(Stream::finish);
            }
            serve(mux, streams, command, version.has_status(), stop).await;
        }
        Ok(Err(gone)) => {
            tracing::debug!("streaming: the client's streams: {gone}");
            mux.dismiss().await;
        }
        Err(_) => {
            let missing: Vec<_> =
                expected.iter().filter(|stream| streams.slot(**stream).is_none()).map(|stream| stream.name()).collect();
            let text = format!("the client has not opened {} within {creation:?}", missing.join(", "));
            let end = CommandEnd::Failed(text);
            tokio::select! {
                _ = conclude(mux, &streams, &end, version.has_status()) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

/// Agrees to streams until all are there.
async fn gather(mux: &mut Mux, expected: &[StreamType], streams: &mut Streams) -> Result<(), Gone> {
    while expected.iter().any(|stream| streams.slot(*stream).is_none()) {
        let (stream, headers, fin) = match mux.event().await {
            Event::Opened { stream, headers, fin } => (stream, headers, fin),
            Event::Gone(gone) => return Err(gone),
        };
        let kind = headers.get(STREAM_TYPE_HEADER).and_then(StreamType::from_name);
        match kind {
            Some(kind) if streams.slot(kind).is_none() => {
                if expected.contains(&kind) {
                    *streams.slot(kind) = Some(mux.accept(stream, fin, incoming(kind), SEND_BYTES));
                } else {
                    // Nothing will come on it, which is what its end says.
                    let unused = mux.accept(stream, fin, Incoming::Dropped, SEND_BYTES);
                    unused.finish();
                    *streams.slot(kind) = Some(unused);
                }
            }
            _ => mux.refuse(stream),
        }
    }
    Ok(())
}

/// Serves a command over a WebSocket, where the channels are there from the beginning.
pub(super) async fn serve_channels(
    mut mux: Mux,
    command: Command,
    protocol: channel::Protocol,
    stop: &CancellationToken,
) {
    let mut streams = Streams::default();
    for kind in expected(command.wanted, true) {
        let number = match kind {
            StreamType::Stdin => channel::STDIN,
            StreamType::Stdout => channel::STDOUT,
            StreamType::Stderr => channel::STDERR,
            StreamType::Error => channel::ERROR,
            StreamType::Resize => channel::RESIZE,
        };
        *streams.slot(kind) = Some(mux.channel(number, incoming(kind), SEND_BYTES));
    }
    let lowest = [&streams.stdout, &streams.stderr, &streams.error].into_iter().flatten().next();
    if let Some(lowest) = lowest {
        mux.greet(lowest.id as u8);
    }
    serve(mux, streams, command, protocol.has_status(), stop).await;
}

/// Lets the command run and tells how it ended.
async fn serve(mut mux: Mux, streams: Streams, command: Command, has_status: bool, stop: &CancellationToken) {
    let wanted = command.wanted;
    let session = CommandSession {
        stdin: streams.stdin.clone().filter(|_| wanted.stdin).map(Receiver::new),
        stdout: streams.stdout.clone().filter(|_| wanted.stdout).map(Sender::new),
        stderr: streams.stderr.clone().filter(|_| wanted.stderr && !wanted.tty).map(Sender::new),
        resizes: streams.resize.clone().filter(|_| wanted.tty).map(ResizeReceiver::new),
        client: ClientGone(mux.shared().gone.clone()),
    };
    let mut run = (command.run)(session);
    let end = loop {
        tokio::select! {
            biased;
            end = &mut run => break Ok(end),
            event = mux.event() => match event {
                Event::Opened { stream, .. } => mux.refuse(stream),
                Event::Gone(gone) => break Err(gone),
            },
            () = stop.cancelled() => break Err(Gone::Stopped),
        }
    };
    match end {
        Ok(end) => {
            // Whatever it holds of the session ends with it.
            drop(run);
            tokio::select! {
                ended = conclude(mux, &streams, &end, has_status) => {
                    if let Err(gone) = ended {
                        tracing::debug!("streaming: the command's end was not taken: {gone}");
                    }
                }
                () = stop.cancelled() => {}
            }
        }
        Err(gone) => {
            tracing::debug!("streaming: the client of a command has gone: {gone}");
            mux.end(gone);
            // Its end is nobody's any more.
            let _ = timeout(RUN_GRACE, &mut run).await;
            drop(run);
            mux.dismiss().await;
        }
    }
}

/// Ends the outputs, then says how the command ended, then closes: a client takes the end of the error stream for the
/// end of everything. It takes as long as the client takes to read, if it reads at all.
async fn conclude(mut mux: Mux, streams: &Streams, end: &CommandEnd, has_status: bool) -> Result<(), Gone> {
    let outputs = [&streams.stdout, &streams.stderr];
    outputs.into_iter().flatten().for_each(Stream::finish);
    mux.until(|_| outputs.into_iter().flatten().all(|output| output.is_sent())).await?;
    if let Some(error) = &streams.error {
        let text = end.encode(has_status);
        if !text.is_empty() {
            error.push(text.into());
        }
        error.finish();
        mux.until(|_| error.is_sent()).await?;
    }
    mux.close().await;
    Ok(())
}
