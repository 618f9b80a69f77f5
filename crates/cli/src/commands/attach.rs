//! `knarr attach`: a running container's own input and output.

use std::collections::HashMap;
use std::time::Duration;

use clap::Args;
use knarr_cri_api::v1;
use knarr_streaming::{CommandEnd, Wanted};
use serde_json::Value;

use crate::client::Client;
use crate::failure::Failure;
use crate::lookup::{Inventory, container_name};
use crate::output::say;
use crate::remote::command::{self, Outcome};
use crate::remote::detach::{DetachKeys, USUAL_KEYS};
use crate::remote::target::StreamArgs;
use crate::session::Session;
use crate::signals::exit_code_of;

/// Options of `attach`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr attach web                    to the only container of pod web
  knarr attach --no-stdin web/app     only look at what it writes
  knarr attach --detach-keys ctrl-x,x web/shell

Shows what the container writes from now on; `knarr logs` shows what it wrote before. Where the container's input is open, \
                  what is typed or piped in goes to it. What becomes of the end of what is piped in is the runtime's \
                  choice: it may close the container's input (stdinOnce) or end the attachment.

Where the container has a terminal, every key goes to it, and the detach keys leave it; one without is left by Ctrl-C. Either \
                  goes on running.

The exit code is that of the container if it ends meanwhile and 0 if it goes on running; 125 says that it could not be \
                  attached to.")]
pub struct AttachArgs {
    /// The container: name, pod/name, id or beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Passes no input on
    #[arg(long)]
    no_stdin: bool,
    /// The keys that leave the container; empty for none
    #[arg(long, value_name = "KEYS", default_value = USUAL_KEYS)]
    detach_keys: DetachKeys,
    /// The container has a terminal, where the runtime does not tell
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    streams: StreamArgs,
}

/// How long a runtime may take to see that a container has ended whose output has ended.
const END_WAIT: Duration = Duration::from_secs(2);

/// How often it is asked meanwhile.
const END_POLL: Duration = Duration::from_millis(50);

/// Attaches, and returns the container's exit code.
pub async fn run(args: AttachArgs, session: &Session) -> Result<u8, Failure> {
    attach(args, session).await.map_err(Failure::own)
}

async fn attach(args: AttachArgs, session: &Session) -> Result<u8, Failure> {
    let streams = args.streams.prepare()?;
    let client = session.connect().await?;
    let container = Inventory::read(&client).await?.find_container(&args.container)?;
    let name = container_name(&container);
    let message = v1::ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
    let status = client.container_status(format!("inspect container {name}"), message).await?;
    let known = Console::of(&status.info);
    let tty = args.tty || known.tty;
    // Where the runtime does not tell, it is asked for: it ignores or refuses what is not there.
    let stdin = !args.no_stdin && known.stdin.unwrap_or(true);
    let mut wanted = Wanted { stdin, stdout: true, stderr: !tty, tty };
    let action = format!("attach to container {name}");
    let url = match url(&client, &action, &container.id, wanted).await {
        Err(failure) if stdin && known.stdin.is_none() && failure.is_invalid_argument() => {
            wanted.stdin = false;
            url(&client, &action, &container.id, wanted).await
        }
        answer => answer,
    }?;
    let target = streams.target(&url)?;
    match command::run(&action, &target, wanted, args.detach_keys).await? {
        Outcome::Detached => {
            say(&format!("\ndetached from container {name}, which goes on running"));
            Ok(0)
        }
        Outcome::Signalled(signal) => Ok(exit_code_of(signal)),
        Outcome::Ended(CommandEnd::Exited(code)) => Ok(code),
        Outcome::Ended(CommandEnd::Failed(text)) => {
            Err(Failure::new(format!("the attachment to container {name} has broken: {}", text.trim())))
        }
        Outcome::Ended(CommandEnd::Success) => after_the_end(&client, &container).await,
    }
}

async fn url(client: &Client, action: &str, id: &str, wanted: Wanted) -> Result<String, Failure> {
    let Wanted { stdin, stdout, stderr, tty } = wanted;
    let message = v1::AttachRequest { container_id: id.to_owned(), stdin, tty, stdout, stderr };
    Ok(client.attach(action, message).await?.url)
}

/// The end of the streams is the end of the container or of the attachment alone; the runtime knows which.
async fn after_the_end(client: &Client, container: &v1::Container) -> Result<u8, Failure> {
    let ended = async {
        loop {
            match client.container(&container.id).await? {
                // It has been removed since, and its code with it.
                None => return Ok(0),
                Some(status) if status.state == v1::ContainerState::ContainerExited as i32 => {
                    return Ok(exit_code(status.exit_code));
                }
                Some(_) => tokio::time::sleep(END_POLL).await,
            }
        }
    };
    match tokio::time::timeout(END_WAIT, ended).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let name = container_name(container);
            say(&format!("the runtime has ended the attachment to container {name}, which goes on running"));
            Ok(0)
        }
    }
}

/// Programs see the low eight bits only; what is not 0 must not become 0.
fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// What is known of a container's input and output. CRI's status does not tell; what runtimes add to it does.
#[derive(Debug, PartialEq, Eq)]
struct Console {
    tty: bool,
    stdin: Option<bool>,
}

impl Console {
    fn of(info: &HashMap<String, String>) -> Self {
        let info: Value = info.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        // containerd shows the request; what is false is left out of it.
        let config = &info["config"];
        let spec = &info["runtimeSpec"];
        // CRI-O notes it in annotations of the specification.
        let noted = |key: &str| spec["annotations"][format!("io.kubernetes.cri-o.{key}")].as_str();
        Self {
            tty: config["tty"] == true || spec["process"]["terminal"] == true || noted("TTY") == Some("true"),
            stdin: match config {
                Value::Object(_) => Some(config["stdin"] == true),
                _ => noted("Stdin").map(|text| text == "true"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(info: &str) -> (bool, Option<bool>) {
        let console = Console::of(&HashMap::from([("info".to_owned(), info.to_owned())]));
        (console.tty, console.stdin)
    }

    #[test]
    fn runtimes_tell_of_terminal_and_input_each_in_its_way() {
        assert_eq!(console(r#"{"config":{"tty":true,"stdin":true}}"#), (true, Some(true)));
        assert_eq!(console(r#"{"config":{"metadata":{"name":"x"}}}"#), (false, Some(false)));
        assert_eq!(console(r#"{"runtimeSpec":{"process":{"terminal":true}}}"#), (true, None));
        let cri_o = |tty, stdin| {
            format!(
                r#"{{"runtimeSpec":{{"annotations":{{"io.kubernetes.cri-o.TTY":"{tty}","io.kubernetes.cri-o.Stdin":"{stdin}"}}}}}}"#
            )
        };
        assert_eq!(console(&cri_o(true, false)), (true, Some(false)));
        assert_eq!(console(&cri_o(false, true)), (false, Some(true)));
        assert_eq!(console("{}"), (false, None));
        assert_eq!(console("no json"), (false, None));
        assert_eq!(Console::of(&HashMap::new()), Console { tty: false, stdin: None });
    }

    #[test]
    fn a_code_that_no_process_can_end_with_is_not_taken_for_success() {
        assert_eq!((exit_code(0), exit_code(137), exit_code(-1), exit_code(256)), (0, 137, 255, 255));
    }
}
