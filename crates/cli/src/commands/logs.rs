//! `knarr logs`: what containers wrote.

use std::time::Duration;

use clap::Args;
use knarr_cri_api::v1;
use knarr_daemon::config::Span;

use crate::client::Client;
use crate::failure::Failure;
use crate::log::{LogFile, Printer, Selection};
use crate::lookup::{Inventory, Kinds, Target, container_attempt, container_name, pod_name};
use crate::output::{say, time};
use crate::session::Session;

/// Options of `logs`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr logs web                      all containers of pod web
  knarr logs -f --tail 20 web/app     the last 20 lines of one container, and what follows
  knarr logs --since 10m -t web       the last ten minutes, with times
  knarr logs -p web/app               of the attempt before the last restart")]
pub struct LogsArgs {
    /// Pods or containers: names, ids or beginnings of ids
    #[arg(required = true, value_name = "POD|CONTAINER")]
    targets: Vec<String>,
    /// Goes on with what is written from now on, until the containers end
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines of each container
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// Only lines since then: 10m, 2h30m, or a time as 2024-05-01T12:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only lines until then
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Each line with its time
    #[arg(short, long)]
    timestamps: bool,
    /// Of the attempt before this one
    #[arg(short, long, conflicts_with = "follow")]
    previous: bool,
    /// No names before the lines of several containers
    #[arg(long)]
    no_prefix: bool,
}

/// How often files are looked at while following.
const LOG_POLL: Duration = Duration::from_millis(50);

/// Every so many looks at a file its container is asked whether it still runs.
const LOOKS_PER_STATUS: u32 = 10;

struct Source {
    id: String,
    log: LogFile,
    number: usize,
    ended: bool,
}

/// Prints the logs.
pub async fn run(args: LogsArgs, session: &Session) -> Result<(), Failure> {
    let now_ns = time::now_ns();
    let selection = Selection {
        since_ns: args.since.as_deref().map(|text| parse_time(text, now_ns, "--since")).transpose()?,
        until_ns: args.until.as_deref().map(|text| parse_time(text, now_ns, "--until")).transpose()?,
        timestamps: args.timestamps,
    };
    let client = session.connect().await?;
    let inventory = Inventory::read(&client).await?;
    let mut containers = Vec::new();
    for typed in &args.targets {
        containers.extend(wanted(&inventory, typed, args.previous)?);
    }
    let prefixed = containers.len() > 1 && !args.no_prefix;
    let mut printer = Printer::new(selection, session.stdout_style(), session.stderr_style());
    let mut sources = Vec::new();
    for container in &containers {
        let prefix = if prefixed { prefix(&inventory, container) } else { String::new() };
        let number = printer.add_source(prefix);
        if let Some(path) = log_path(&client, container).await? {
            sources.push(Source { id: container.id.clone(), log: LogFile::new(path, args.tail), number, ended: false });
        }
    }
    if args.follow {
        return follow(&client, sources, &mut printer, selection.until_ns).await;
    }
    for source in &mut sources {
        finish(source, &mut printer)?;
    }
    printer.flush()
}

/// The containers behind a name: all of a pod's, each by its newest attempt, or the attempt before.
fn wanted(inventory: &Inventory, typed: &str, previous: bool) -> Result<Vec<v1::Container>, Failure> {
    let chosen = match inventory.find(typed, Kinds::Both)? {
        Target::Container(container) => vec![container],
        Target::Pod(pod) => {
            let mut newest: Vec<v1::Container> = Vec::new();
            for container in inventory.containers_of(&pod.id) {
                match newest.iter_mut().find(|one| container_name(one) == container_name(container)) {
                    Some(known) if container_attempt(known) < container_attempt(container) => {
                        *known = container.clone()
                    }
                    Some(_) => {}
                    None => newest.push(container.clone()),
                }
            }
            if newest.is_empty() {
                return Err(Failure::not_found(format!("pod {} has no containers", pod_name(&pod))));
            }
            newest
        }
    };
    if !previous {
        return Ok(chosen);
    }
    let before: Vec<v1::Container> = chosen.iter().filter_map(|one| attempt_before(inventory, one)).cloned().collect();
    if before.is_empty() {
        return Err(Failure::not_found(format!("{typed} has no earlier attempt that is still kept")));
    }
    Ok(before)
}

fn attempt_before<'a>(inventory: &'a Inventory, container: &v1::Container) -> Option<&'a v1::Container> {
    let siblings = inventory.containers.iter().filter(|one| {
        one.pod_sandbox_id == container.pod_sandbox_id
            && container_name(one) == container_name(container)
            && container_attempt(one) < container_attempt(container)
    });
    siblings.max_by_key(|one| container_attempt(one))
}

fn prefix(inventory: &Inventory, container: &v1::Container) -> String {
    let name = container_name(container);
    match inventory.pod_of(container) {
        Some(pod) => format!("[{}/{name}]", pod_name(pod)),
        None => format!("[{name}]"),
    }
}

async fn log_path(client: &Client, container: &v1::Container) -> Result<Option<String>, Failure> {
    let name = container_name(container);
    let Some(status) = client.container(&container.id).await? else {
        return Err(Failure::not_found(format!("container {name} has just been removed")));
    };
    if status.log_path.is_empty() {
        say(&format!("warning: container {name} was made without a log file"));
        return Ok(None);
    }
    Ok(Some(status.log_path))
}

fn finish(source: &mut Source, printer: &mut Printer) -> Result<(), Failure> {
    let number = source.number;
    source.log.finish(&mut |line| printer.take(number, line)).map_err(|error| reading_failed(&source.log, &error))?;
    printer.end_source(number);
    Ok(())
}

fn reading_failed(log: &LogFile, error: &std::io::Error) -> Failure {
    Failure::io(format!("read {}", log.path().display()), error)
}

async fn follow(
    client: &Client,
    mut sources: Vec<Source>,
    printer: &mut Printer,
    until_ns: Option<i64>,
) -> Result<(), Failure> {
    let mut looks = 0_u32;
    let mut runtime_is_silent = false;
    while sources.iter().any(|source| !source.ended) {
        // The state is asked for before the file is read: what a container wrote before its end is then read too.
        let ask = looks.is_multiple_of(LOOKS_PER_STATUS);
        for source in sources.iter_mut().filter(|source| !source.ended) {
            if ask {
                match has_ended(client, &source.id).await {
                    Ok(ended) => {
                        source.ended = ended;
                        runtime_is_silent = false;
                    }
                    // The shim goes on writing while the daemon is away.
                    Err(failure) if !runtime_is_silent => {
                        runtime_is_silent = true;
                        say(&format!("warning: {failure}; following the file goes on"));
                    }
                    Err(_) => {}
                }
            }
            if source.ended {
                finish(source, printer)?;
                continue;
            }
            let number = source.number;
            let read = source.log.read_new(&mut |line| printer.take(number, line));
            read.map_err(|error| reading_failed(&source.log, &error))?;
        }
        printer.flush()?;
        if until_ns.is_some_and(|until| time::now_ns() > until) {
            return Ok(());
        }
        looks = looks.wrapping_add(1);
        tokio::time::sleep(LOG_POLL).await;
    }
    Ok(())
}

async fn has_ended(client: &Client, id: &str) -> Result<bool, Failure> {
    let status = client.container(id).await?;
    Ok(status.is_none_or(|status| status.state == v1::ContainerState::ContainerExited as i32))
}

/// "10m" is ten minutes ago.
fn parse_time(text: &str, now_ns: i64, option: &str) -> Result<i64, Failure> {
    if let Some(ns) = time::parse_rfc3339(text) {
        return Ok(ns);
    }
    let ago = text.parse::<Span>().map_err(|_| {
        Failure::usage(format!("{option}: {text:?} is neither a span as 10m nor a time as 2024-05-01T12:00:00Z"))
    })?;
    Ok(now_ns.saturating_sub(i64::try_from(ago.as_nanos()).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_spans_before_now_or_points() {
        assert_eq!(parse_time("10s", 20_000_000_000, "").unwrap(), 10_000_000_000);
        assert_eq!(parse_time("1970-01-01T00:00:05Z", 0, "").unwrap(), 5_000_000_000);
        assert!(parse_time("yesterday", 0, "--since").unwrap_err().to_string().starts_with("--since: "));
    }
}
