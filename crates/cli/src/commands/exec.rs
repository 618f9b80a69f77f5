//! `knarr exec`: one command in a running container.

use std::io::Write;

use clap::Args;

use crate::failure::Failure;
use crate::lookup::{Inventory, container_name};
use crate::session::Session;

/// Options of `exec`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr exec web -- ls -l /srv        in the only container of pod web
  knarr exec web/app cat /etc/hosts   in container app of pod web
  knarr exec --timeout 5 web -- wget -qO- localhost:80

The exit code is that of the command; 125 says that it could not be run.")]
pub struct ExecArgs {
    /// The container: name, pod/name, id or beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Seconds until the command is killed; 0 for never
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    timeout: i64,
    /// Not in this version: standard input comes with streaming
    #[arg(short, long)]
    interactive: bool,
    /// Not in this version: terminals come with streaming
    #[arg(short, long)]
    tty: bool,
}

/// Runs the command, passes on what it wrote and returns its exit code.
pub async fn run(args: ExecArgs, session: &Session) -> Result<u8, Failure> {
    if args.interactive || args.tty {
        return Err(Failure::usage("exec -i and -t are not in this version: they come with streaming")
            .with_hint("until then `crictl exec -it` does it on runtimes that stream"));
    }
    execute(&args, session).await.map_err(Failure::own)
}

async fn execute(args: &ExecArgs, session: &Session) -> Result<u8, Failure> {
    let client = session.connect().await?;
    let container = Inventory::read(&client).await?.find_container(&args.container)?;
    let action = format!("run {:?} in container {}", args.command[0], container_name(&container));
    let response = client.exec_sync(action, &container.id, &args.command, args.timeout).await?;
    write(&mut std::io::stdout().lock(), &response.stdout)?;
    write(&mut std::io::stderr().lock(), &response.stderr)?;
    // Some runtimes say -1 for a command that was killed at its timeout.
    Ok(u8::try_from(response.exit_code).unwrap_or(u8::MAX))
}

fn write(stream: &mut dyn Write, bytes: &[u8]) -> Result<(), Failure> {
    stream.write_all(bytes).and_then(|()| stream.flush()).map_err(|error| Failure::output(&error))
}
