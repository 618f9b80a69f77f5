//! One session of exec or attach: this process's standard streams joined to those of a command elsewhere, until the
//! command ends, a person leaves, or a signal asks for the end.

use std::io;
use std::os::fd::AsFd;

use bytes::Bytes;
use knarr_streaming::client::{self, ClientError, CommandClient, Target};
use knarr_streaming::{CommandEnd, Receiver, Sender, Wanted};

use super::detach::{DetachFilter, DetachKeys};
use super::stdio::{Input, Output};
use crate::failure::Failure;
use crate::terminal::{Event, SessionTerminal};

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command's own end, or as much of it as the runtime tells.
    Ended(CommandEnd),
    /// By the detach keys.
    Detached,
    /// By this signal to us.
    Signalled(u8),
}

/// Runs a session; `action` says in the infinitive what for ("attach to container web"). The terminal, if it was made raw for it, is as before when this returns.
///
/// # Errors
/// The session did not come about, it broke, or one of our own streams failed. A reader of ours that has gone ends it
/// without a word.
pub async fn run(action: &str, target: &Target, wanted: Wanted, keys: DetachKeys) -> Result<Outcome, Failure> {
    let broke = |error: ClientError| Failure::new(format!("cannot {action}: {}", error.0));
    // Until here the terminal is as usual: Ctrl-C ends what waits for a runtime that hangs.
    let session = client::command(target, wanted).await.map_err(broke)?;
    let mut terminal = SessionTerminal::new(wanted.tty, wanted.stdin)?;
    // Only a raw terminal gives single keys. Two bytes of a file that is piped in are not keys.
    let keys = if terminal.is_raw() { keys } else { DetachKeys::none() };
    join(session, &mut terminal, keys, broke).await
}

async fn join(
    session: CommandClient,
    terminal: &mut SessionTerminal,
    keys: DetachKeys,
    broke: impl Fn(ClientError) -> Failure,
) -> Result<Outcome, Failure> {
    let CommandClient { stdin, stdout, stderr, resizes, end } = session;
    let tell_size = |terminal: &SessionTerminal| {
        if let (Some(resizes), Some(size)) = (&resizes, terminal.size()) {
            resizes.send(size);
        }
    };
    // The size goes first: a program asks for it when it starts.
    tell_size(terminal);
    let input = pass_on_input(stdin, keys);
    let rest = async {
        let ended = async { end.wait().await.map_err(broke) };
        let stdout = pass_on_output(stdout, io::stdout(), "standard output");
        let stderr = pass_on_output(stderr, io::stderr(), "standard error");
        tokio::try_join!(ended, stdout, stderr).map(|(end, (), ())| end)
    };
    tokio::pin!(input, rest);
    let mut reading = true;
    loop {
        tokio::select! {
            end = &mut rest => return end.map(Outcome::Ended),
            detached = &mut input, if reading => {
                if detached? {
                    return Ok(Outcome::Detached);
                }
                reading = false;
            }
            event = terminal.next() => match event {
                Event::Resized => tell_size(terminal),
                Event::Ended(signal) => return Ok(Outcome::Signalled(signal)),
            },
        }
    }
}

/// Passes on what is typed or piped in. Returns whether the detach keys were among it.
async fn pass_on_input(to: Option<Sender>, keys: DetachKeys) -> Result<bool, Failure> {
    let Some(mut to) = to else { return Ok(false) };
    let failed = |error: &io::Error| Failure::io("read standard input", error);
    let mut input = Input::open(io::stdin()).map_err(|error| failed(&error))?;
    let mut filter = (!keys.is_none()).then(|| DetachFilter::new(keys));
    while let Some(piece) = input.next().await {
        let mut piece = piece.map_err(|error| failed(&error))?;
        let mut detached = false;
        if let Some(filter) = &mut filter {
            let (passed, found) = filter.take(&piece);
            (piece, detached) = (Bytes::from(passed), found);
        }
        // A command that reads no more may still write and will end by itself.
        if !piece.is_empty() && to.send(piece).await.is_err() {
            return Ok(detached);
        }
        if detached {
            return Ok(true);
        }
    }
    if let Some(filter) = &mut filter {
        let held = filter.finish();
        if !held.is_empty() && to.send(Bytes::from(held)).await.is_err() {
            return Ok(false);
        }
    }
    let _ = to.finish().await;
    Ok(false)
}

async fn pass_on_output(from: Option<Receiver>, to: impl AsFd, name: &str) -> Result<(), Failure> {
    let Some(mut from) = from else { return Ok(()) };
    let failed = |error: &io::Error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::output(error),
        _ => Failure::io(format!("write to {name}"), error),
    };
    let mut output = Output::open(to).map_err(|error| failed(&error))?;
    loop {
        tokio::select! {
            piece = from.next() => match piece {
                Some(piece) => output.write(piece).await.map_err(|error| failed(&error))?,
                None => break,
            },
            error = output.failed() => return Err(failed(&error)),
        }
    }
    output.finish().await.map_err(|error| failed(&error))
}
