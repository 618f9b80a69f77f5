//! `knarr exec`: one command in a running container, with its output as it comes, or in one piece from ExecSync.

use std::io::{IsTerminal, Write};

use clap::Args;
use knarr_cri_api::v1;
use knarr_streaming::{CommandEnd, Wanted};

use crate::client::Client;
use crate::failure::Failure;
use crate::lookup::{Inventory, container_name};
use crate::output::say;
use crate::remote::command::{self, Outcome};
use crate::remote::detach::DetachKeys;
use crate::remote::target::{StreamArgs, Streams};
use crate::session::Session;
use crate::signals::exit_code_of;

/// Options of `exec`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr exec web -- ls -l /srv        in the only container of pod web
  knarr exec -it web/app sh           a shell in container app of pod web
  tar c . | knarr exec -i web -- tar x -C /srv
  knarr exec --timeout 5 web -- wget -qO- localhost:80

Output comes as it is written. With --sync or --timeout it comes at the command's end, from ExecSync, as of probes; \
                  runtimes then cut it at 16 MiB.

With -it every key goes to the command, Ctrl-C too; where standard input is no terminal, -it warns and goes on without one. \
                  -t alone gives the command a terminal on which nobody types, and Ctrl-C ends knarr.

The exit code is that of the command; 125 says that it could not be run, or that its end is not known.")]
pub struct ExecArgs {
    /// The container: name, pod/name, id or beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Passes standard input on to the command
    #[arg(short, long)]
    interactive: bool,
    /// Gives the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Runs it by ExecSync: without input and terminal, its output at its end
    #[arg(long, conflicts_with_all = ["interactive", "tty"])]
    sync: bool,
    /// Seconds until the command is killed, 0 for never; by ExecSync, as only that has a timeout
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(0..), conflicts_with_all = ["interactive", "tty"])]
    timeout: Option<i64>,
    #[command(flatten)]
    streams: StreamArgs,
}

/// Runs the command, passes on what it wrote and returns its exit code.
pub async fn run(args: ExecArgs, session: &Session) -> Result<u8, Failure> {
    execute(&args, session).await.map_err(Failure::own)
}

async fn execute(args: &ExecArgs, session: &Session) -> Result<u8, Failure> {
    let streams = args.streams.prepare()?;
    let client = session.connect().await?;
    let container = Inventory::read(&client).await?.find_container(&args.container)?;
    if args.sync || args.timeout.is_some() {
        return at_its_end(args, &client, &container).await;
    }
    as_it_comes(args, &client, &container, &streams).await
}

fn action(args: &ExecArgs, container: &v1::Container) -> String {
    format!("run {:?} in container {}", args.command[0], container_name(container))
}

async fn at_its_end(args: &ExecArgs, client: &Client, container: &v1::Container) -> Result<u8, Failure> {
    let timeout_s = args.timeout.unwrap_or(0);
    let response = client.exec_sync(action(args, container), &container.id, &args.command, timeout_s).await?;
    write(&mut std::io::stdout().lock(), &response.stdout)?;
    write(&mut std::io::stderr().lock(), &response.stderr)?;
    // Some runtimes say -1 for a command that was killed at its timeout.
    Ok(u8::try_from(response.exit_code).unwrap_or(u8::MAX))
}

fn write(stream: &mut dyn Write, bytes: &[u8]) -> Result<(), Failure> {
    stream.write_all(bytes).and_then(|()| stream.flush()).map_err(|error| Failure::output(&error))
}

async fn as_it_comes(
    args: &ExecArgs,
    client: &Client,
    container: &v1::Container,
    streams: &Streams,
) -> Result<u8, Failure> {
    let wanted = wanted(args.interactive, args.tty, std::io::stdin().is_terminal());
    if args.tty && !wanted.tty {
        say("warning: standard input is no terminal, and so the command gets none");
    }
    let message = v1::ExecRequest {
        container_id: container.id.clone(),
        cmd: args.command.clone(),
        tty: wanted.tty,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
    };
    let answer = client.exec(action(args, container), message).await.map_err(|failure| {
        if failure.is_unimplemented() {
            return failure.with_hint("this runtime does not stream; --sync runs commands without input and terminal");
        }
        failure
    })?;
    let target = streams.target(&answer.url)?;
    match command::run(&action(args, container), &target, wanted, DetachKeys::none()).await? {
        Outcome::Ended(CommandEnd::Success) | Outcome::Detached => Ok(0),
        Outcome::Ended(CommandEnd::Exited(code)) => Ok(code),
        Outcome::Ended(CommandEnd::Failed(text)) => {
            Err(Failure::new(format!("cannot {}: {}", action(args, container), text.trim())))
        }
        Outcome::Signalled(signal) => Ok(exit_code_of(signal)),
    }
}

/// A terminal is given where its keys can be typed, or where none are passed on.
fn wanted(interactive: bool, tty: bool, stdin_is_terminal: bool) -> Wanted {
    let tty = tty && (stdin_is_terminal || !interactive);
    Wanted { stdin: interactive, stdout: true, stderr: !tty, tty }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_one_output_and_needs_keys_if_any_are_passed_on() {
        let wanted = |interactive, tty, terminal| {
            let wanted = wanted(interactive, tty, terminal);
            assert!(wanted.stdout && wanted.stderr != wanted.tty && wanted.stdin == interactive);
            wanted.tty
        };
        assert!(wanted(true, true, true));
        assert!(!wanted(true, true, false));
        assert!(wanted(false, true, false));
        assert!(!wanted(true, false, true));
    }
}
