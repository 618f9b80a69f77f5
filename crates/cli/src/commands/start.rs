//! `knarr start`: starts containers that were created.

use clap::Args;
use knarr_cri_api::v1;

use crate::client::Client;
use crate::failure::Failure;
use crate::lookup::{Inventory, Kinds, Target, container_name, pod_name};
use crate::output::{human, print};
use crate::pod_manifest::container_config::ANNOTATION_ROLE;
use crate::pod_run::wait_for_exit;
use crate::session::Session;
use crate::teardown;

/// Options of `start`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr create web.yaml               make pod web without starting it
  knarr start web                     start its containers in their order; init containers are waited for
  knarr start web/app                 start one container")]
pub struct StartArgs {
    /// Pods or containers: names, ids or beginnings of ids
    #[arg(required = true, value_name = "POD|CONTAINER")]
    targets: Vec<String>,
}

/// Starts what was asked for and prints the ids of what was started.
pub async fn run(args: StartArgs, session: &Session) -> Result<(), Failure> {
    let client = session.connect().await?;
    let inventory = Inventory::read(&client).await?;
    let mut failures = Vec::new();
    for typed in &args.targets {
        let outcome = match inventory.find(typed, Kinds::Both) {
            Ok(Target::Pod(pod)) => start_pod(&client, &inventory, &pod).await.map(|()| pod.id),
            Ok(Target::Container(container)) => start(&client, &container).await.map(|()| container.id),
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(id) => print(&format!("{}\n", human::short_id(&id)))?,
            Err(failure) => failures.push(failure),
        }
    }
    Failure::all(failures)
}

/// A CRI container is started once in its life, so only created ones are; which of them must end before the next was
/// noted by `knarr create`.
async fn start_pod(client: &Client, inventory: &Inventory, pod: &v1::PodSandbox) -> Result<(), Failure> {
    let mut containers = inventory.containers_of(&pod.id);
    containers.retain(|one| one.state == v1::ContainerState::ContainerCreated as i32);
    if containers.is_empty() {
        return Err(Failure::new(format!("pod {} has no container that waits to be started", pod_name(pod)))
            .with_hint("a container starts only once: `knarr run --replace` makes the pod anew"));
    }
    containers.sort_by_key(|container| teardown::order_of(container));
    for container in containers {
        start(client, container).await?;
        if container.annotations.get(ANNOTATION_ROLE).is_some_and(|role| role == "init") {
            let named = format!("init container {}", container_name(container));
            let code = wait_for_exit(client, &container.id, &named).await?;
            if code != 0 {
                return Err(Failure::new(format!("{named} failed with exit code {code}; the rest was not started")));
            }
        }
    }
    Ok(())
}

async fn start(client: &Client, container: &v1::Container) -> Result<(), Failure> {
    let message = v1::StartContainerRequest { container_id: container.id.clone() };
    client.start_container(format!("start container {}", container_name(container)), message).await.map(|_| ())
}
