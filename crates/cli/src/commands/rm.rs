//! `knarr rm`: removes pods and containers.

use clap::Args;
use knarr_cri_api::v1;

use crate::client::Client;
use crate::failure::Failure;
use crate::lookup::{Inventory, Kinds, Target, container_name, pod_name};
use crate::output::{human, print};
use crate::session::Session;
use crate::teardown;

/// Options of `rm`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr rm web                        a pod that has been stopped, with all that `knarr run` made for it
  knarr rm -f web                     kill it first
  knarr rm web/app                    one container of a pod
  knarr rm -a                         every pod and container that has ended")]
pub struct RmArgs {
    /// Pods or containers: names, ids or beginnings of ids
    #[arg(value_name = "POD|CONTAINER", required_unless_present = "all")]
    targets: Vec<String>,
    /// Kills what runs
    #[arg(short, long)]
    force: bool,
    /// Every pod and container that has ended; with --force, every one
    #[arg(short, long, conflicts_with = "targets")]
    all: bool,
}

/// Removes what was asked for, and goes on after a failure.
pub async fn run(args: RmArgs, session: &Session) -> Result<(), Failure> {
    let client = session.connect().await?;
    let inventory = Inventory::read(&client).await?;
    let mut failures = Vec::new();
    let targets = if args.all {
        everything(&inventory, args.force)
    } else {
        let found = args.targets.iter().map(|typed| inventory.find(typed, Kinds::Both));
        let (found, missing): (Vec<_>, Vec<_>) = found.partition(Result::is_ok);
        failures.extend(missing.into_iter().filter_map(Result::err));
        found.into_iter().flatten().collect()
    };
    for target in targets {
        let (id, outcome) = match target {
            Target::Pod(pod) => (pod.id.clone(), remove_pod(&client, session, &pod, args.force).await),
            Target::Container(container) => {
                (container.id.clone(), remove_container(&client, &container, args.force).await)
            }
        };
        if outcome.is_empty() {
            print(&format!("{}\n", human::short_id(&id)))?;
        }
        failures.extend(outcome);
    }
    Failure::all(failures)
}

/// Pods first; the containers that are left belong to pods that stay.
fn everything(inventory: &Inventory, force: bool) -> Vec<Target> {
    let gone = |pod: &&v1::PodSandbox| force || pod.state != v1::PodSandboxState::SandboxReady as i32;
    let pods: Vec<v1::PodSandbox> = inventory.pods.iter().filter(gone).cloned().collect();
    let left = inventory.containers.iter().filter(|container| {
        let ended = container.state == v1::ContainerState::ContainerExited as i32;
        ended && !pods.iter().any(|pod| pod.id == container.pod_sandbox_id)
    });
    let left: Vec<Target> = left.cloned().map(Target::Container).collect();
    pods.into_iter().map(Target::Pod).chain(left).collect()
}

async fn remove_pod(client: &Client, session: &Session, pod: &v1::PodSandbox, force: bool) -> Vec<Failure> {
    if pod.state == v1::PodSandboxState::SandboxReady as i32 && !force {
        let failure = Failure::new(format!("pod {} is running", pod_name(pod)));
        return vec![failure.with_hint("stop it with `knarr stop`, or kill it with --force")];
    }
    teardown::remove_pod(client, &session.cli_dir(), pod).await
}

async fn remove_container(client: &Client, container: &v1::Container, force: bool) -> Vec<Failure> {
    let name = container_name(container);
    if container.state == v1::ContainerState::ContainerRunning as i32 {
        if !force {
            let failure = Failure::new(format!("container {name} is running"));
            return vec![failure.with_hint("stop it with `knarr stop`, or kill it with --force")];
        }
        if let Err(failure) = teardown::stop_container(client, &container.id, name, 0).await {
            return vec![failure];
        }
    }
    let message = v1::RemoveContainerRequest { container_id: container.id.clone() };
    match client.remove_container(format!("remove container {name}"), message).await {
        Err(failure) if !failure.is_not_found() => vec![failure],
        _ => Vec::new(),
    }
}
