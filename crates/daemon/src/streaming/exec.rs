//! One exec with a client at its streams: a process with pipes or a terminal, and what ends it.

use super::descriptor::{Descriptor, pipe};
use super::place::Place;
use super::pump::{Unwanted, carry_in, carry_out, carry_sizes};
use crate::effects::{ExecStdio, RunningExec};
use knarr_model::Error;
use knarr_model::plan::Exit;
use knarr_streaming::server::{ClientGone, CommandSession};
use knarr_streaming::{CommandEnd, Receiver, ResizeReceiver, Sender};
use std::io;
use std::time::Duration;
use tokio::sync::watch;

/// How long a process may go on whose client has gone, to do what it does on SIGHUP, at the end of its input or on
/// SIGPIPE. Then it is killed with all that it started: nobody could end it any more.
const CLIENT_GONE_GRACE: Duration = Duration::from_secs(2);

/// What is asked for.
#[derive(Debug)]
pub(super) struct Exec {
    pub place: Place,
    pub cmd: Vec<String>,
    pub tty: bool,
    /// How long the streams may stay open after the process has ended.
    pub drain: Duration,
}

/// The daemon's ends of the process's streams, each with the client's.
#[derive(Default)]
struct Ends {
    stdin: Option<(Receiver, Descriptor)>,
    stdout: Option<(Descriptor, Option<Sender>)>,
    stderr: Option<(Descriptor, Option<Sender>)>,
    terminal: Option<(Descriptor, Option<ResizeReceiver>)>,
}

impl Exec {
    /// Runs it to its end.
    pub(super) async fn run(self, mut session: CommandSession) -> CommandEnd {
        let client = session.client.clone();
        // Not given up when the client goes away meanwhile: what is being started could not be killed yet.
        match self.start(&mut session).await {
            Ok((running, ends)) => self.attend(running, ends, client).await,
            Err(error) => CommandEnd::Failed(error.message),
        }
    }

    async fn start(&self, session: &mut CommandSession) -> Result<(RunningExec, Ends), Error> {
        let failed = |e: io::Error| Error::internal(format!("streams of an exec: {e}"));
        let container = self.place.running()?;
        let pod = self.place.pod.effects();
        if self.tty {
            let size = session.resizes.as_mut().and_then(ResizeReceiver::latest);
            let (columns, rows) = size.map_or((0, 0), |size| (size.columns, size.rows));
            let mut running = pod.exec(&container, &self.cmd, ExecStdio::Terminal { columns, rows }).await?;
            let master = running.take_terminal().ok_or_else(|| Error::internal("exec: the shim gave no terminal"))?;
            let master = Descriptor::new(master).map_err(failed)?;
            let ends = Ends {
                stdin: session.stdin.take().map(|stdin| (stdin, master.clone())),
                stdout: Some((master.clone(), session.stdout.take())),
                stderr: None,
                terminal: Some((master, session.resizes.take())),
            };
            return Ok((running, ends));
        }
        let mut ends = Ends::default();
        let mut stdin = None;
        if let Some(client) = session.stdin.take() {
            let (read, write) = pipe().map_err(failed)?;
            stdin = Some(read);
            ends.stdin = Some((client, Descriptor::new(write).map_err(failed)?));
        }
        let output = |client: Option<Sender>| {
            let Some(client) = client else { return Ok((None, None)) };
            let (read, write) = pipe()?;
            Ok((Some(write), Some((Descriptor::new(read)?, Some(client)))))
        };
        let (stdout, stderr);
        (stdout, ends.stdout) = output(session.stdout.take()).map_err(failed)?;
        (stderr, ends.stderr) = output(session.stderr.take()).map_err(failed)?;
        let running = pod.exec(&container, &self.cmd, ExecStdio::Pipes { stdin, stdout, stderr }).await?;
        Ok((running, ends))
    }

    /// Carries bytes until the process has ended and its output is delivered, or the client has gone.
    async fn attend(&self, mut running: RunningExec, ends: Ends, client: ClientGone) -> CommandEnd {
        let ended = tokio::select! {
            biased;
            ended = self.carry(&mut running, ends) => Some(ended),
            () = client.gone() => None,
        };
        // Without a client: its ends are closed by now.
        let Some(ended) = ended else {
            if tokio::time::timeout(CLIENT_GONE_GRACE, running.wait()).await.is_err() {
                let _ = running.kill().await;
            }
            running.end().await;
            return CommandEnd::Failed("the client has gone".into());
        };
        running.clean_up().await;
        match ended {
            Ok(exit) => end_of(exit),
            Err(error) => CommandEnd::Failed(error.message),
        }
    }

    async fn carry(&self, running: &mut RunningExec, ends: Ends) -> Result<Exit, Error> {
        let (tell, told) = watch::channel(false);
        let unwanted = if self.tty { Unwanted::Discard } else { Unwanted::Close };
        let output = |end: Option<(Descriptor, Option<Sender>)>| {
            let told = told.clone();
            async move {
                if let Some((from, to)) = end {
                    carry_out(from, to, unwanted, told, self.drain).await;
                }
            }
        };
        let outputs = async { tokio::join!(output(ends.stdout), output(ends.stderr)) };
        let life = async {
            let ended = tokio::select! {
                ended = running.wait() => Some(ended),
                () = self.place.container_over() => None,
            };
            let ended = match ended {
                Some(ended) => ended,
                // Its processes end with it, but for one in a PID namespace that is not the container's own.
                None => running.kill().await,
            };
            tell.send_replace(true);
            ended
        };
        let stdin = async {
            if let Some((from, to)) = ends.stdin {
                carry_in(from, to).await;
            }
        };
        // Held to the end: a terminal hangs up when its master is closed.
        let _terminal = ends.terminal.as_ref().map(|(master, _)| master.clone());
        let sizes = async {
            if let Some((master, Some(sizes))) = ends.terminal {
                carry_sizes(sizes, master).await;
            }
        };
        let inputs = async {
            tokio::join!(stdin, sizes);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            (ended, _) = async { tokio::join!(life, outputs) } => ended,
            () = inputs => Err(Error::internal("an exec had no end")),
        }
    }
}

/// How the client is told of an exit.
fn end_of(exit: Exit) -> CommandEnd {
    match u8::try_from(exit.code) {
        Ok(0) => CommandEnd::Success,
        Ok(code) => CommandEnd::Exited(code),
        Err(_) => CommandEnd::Failed(format!("exit code {} is none", exit.code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_told_as_it_is() {
        let end = |code| end_of(Exit { code, signal: None, finished_at: 0 });
        assert_eq!(end(0), CommandEnd::Success);
        assert_eq!(end(137), CommandEnd::Exited(137));
        assert_eq!(end(255), CommandEnd::Exited(255));
        assert!(matches!(end(256), CommandEnd::Failed(_)));
        assert!(matches!(end(-1), CommandEnd::Failed(_)));
    }
}
