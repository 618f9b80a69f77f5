//! One client at a container's own streams. It can come and go without the container noticing, and hold it back only
//! as long as the shim lets it: what the container writes goes into the log in any case.

use super::backlog::{Carried, carry_ahead};
use super::descriptor::{Descriptor, pipe};
use super::place::Place;
use super::pump::{carry_in, carry_sizes, discard, resize};
use crate::effects::{Attachment, Ended};
use knarr_model::Error;
use knarr_streaming::server::CommandSession;
use knarr_streaming::{CommandEnd, Receiver, ResizeReceiver, Sender};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Bytes that the pipe of one stream holds: two of the shim's reads, so that one can be taken while the other is
/// written. What lies in it is charged to the shim, whose cgroup has 32 MiB: the pipes of as many clients as it takes,
/// 256 with two streams each, are half of that.
const PIPE_BYTES: usize = 32 << 10;

/// How long the news of why an attach ended may take after the end of its pipes. It is sent before they are closed.
const REASON_WAIT: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Debug)]
pub(super) struct Attach {
    pub place: Place,
}

/// The daemon's ends of the container's streams, each with the client's.
struct Ends {
    attachment: Attachment,
    stdin: Option<(Receiver, Option<Descriptor>)>,
    outputs: [Option<(Descriptor, Sender)>; 2],
    terminal: Option<(Descriptor, Option<ResizeReceiver>)>,
}

impl Attach {
    /// Runs until the container has ended or the client has gone.
    pub(super) async fn run(self, mut session: CommandSession) -> CommandEnd {
        let client = session.client.clone();
        match self.start(&mut session).await {
            Ok(ends) => {
                tokio::select! {
                    biased;
                    ended = self.carry(ends) => ended,
                    () = client.gone() => CommandEnd::Failed("the client has gone".into()),
                }
            }
            Err(error) => CommandEnd::Failed(error.message),
        }
    }

    async fn start(&self, session: &mut CommandSession) -> Result<Ends, Error> {
        let failed = |e: io::Error| Error::internal(format!("streams of an attach: {e}"));
        let container = self.place.running()?;
        let output = |client: Option<Sender>| {
            let Some(client) = client else { return Ok((None, None)) };
            let (read, write) = narrow_pipe()?;
            Ok((Some(write), Some((Descriptor::new(read)?, client))))
        };
        let (stdout_end, stdout) = output(session.stdout.take()).map_err(failed)?;
        // A terminal has one output; the client's other stream ends at once.
        let client = session.stderr.take().filter(|_| !container.spec.tty);
        let (stderr_end, stderr) = output(client).map_err(failed)?;
        let pod = self.place.pod.effects();
        let asked = pod.attach(&container, session.stdin.is_some(), stdout_end, stderr_end).await;
        let (attachment, attached) = asked?;
        let input = attached.input.map(Descriptor::new).transpose().map_err(failed)?;
        let terminal = input.clone().filter(|_| attached.terminal);
        if let (Some(master), Some(sizes)) = (&terminal, &mut session.resizes)
            && let Some(size) = sizes.latest()
        {
            resize(master, size);
        }
        let input = input.filter(|_| !attached.stdin_closed);
        Ok(Ends {
            attachment,
            stdin: session.stdin.take().map(|client| (client, input)),
            outputs: [stdout, stderr],
            terminal: terminal.map(|master| (master, session.resizes.take())),
        })
    }

    async fn carry(&self, ends: Ends) -> CommandEnd {
        let Ends { mut attachment, stdin, outputs, terminal } = ends;
        let has_outputs = outputs.iter().any(Option::is_some);
        let [stdout, stderr] = outputs.map(|output| async {
            match output {
                Some((from, to)) => carry_ahead(from, to).await,
                None => Carried::All,
            }
        });
        let over = async {
            if !has_outputs {
                self.place.container_over().await;
                return CommandEnd::Success;
            }
            if tokio::join!(stdout, stderr) != (Carried::All, Carried::All) {
                return CommandEnd::Failed("the client has closed its output".into());
            }
            let reason = tokio::time::timeout(REASON_WAIT, attachment.ended()).await;
            end_of(reason.ok(), &self.place)
        };
        let stdin = async {
            match stdin {
                // Closing our descriptor closes the container's stdin if it is the only one, as for `stdin_once`.
                Some((client, Some(input))) => carry_in(client, input).await,
                Some((client, None)) => discard(client).await,
                None => {}
            }
        };
        let sizes = async {
            if let Some((master, Some(sizes))) = terminal {
                carry_sizes(sizes, master).await;
            }
        };
        let inputs = async {
            tokio::join!(stdin, sizes);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            end = over => end,
            () = inputs => CommandEnd::Success,
        }
    }
}

/// A pipe that costs the shim no more than [`PIPE_BYTES`].
fn narrow_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe()?;
    rustix::pipe::fcntl_setpipe_size(&write, PIPE_BYTES)?;
    Ok((read, write))
}

/// What the client is told.
fn end_of(reason: Option<Ended>, place: &Place) -> CommandEnd {
    let container = place.container.short();
    match reason {
        Some(Ended::WithContainer) => CommandEnd::Success,
        Some(Ended::FellBehind) => CommandEnd::Failed(format!(
            "attach to container {container}: the client took less than 256 KiB a second while the container waited \
             for it, and is cut off; the container's log has everything"
        )),
        Some(Ended::ShimLost) => CommandEnd::Failed(format!("attach to container {container}: the pod's shim is gone")),
        None => CommandEnd::Failed(format!("attach to container {container}: the shim does not say why it ended")),
    }
}
