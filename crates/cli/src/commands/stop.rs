//! `knarr stop`: stops pods and containers.

use clap::Args;
use knarr_cri_api::v1;

use crate::failure::Failure;
use crate::fan_out;
use crate::lookup::{Inventory, Kinds, Target, container_name, pod_name};
use crate::output::{human, print};
use crate::session::Session;
use crate::teardown;

/// Options of `stop`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr stop web                      a pod: its containers, then its sidecars, then its network
  knarr stop -t 0 web/app             kill one container
  knarr stop -a                       every pod")]
pub struct StopArgs {
    /// Pods or containers: names, ids or beginnings of ids
    #[arg(value_name = "POD|CONTAINER", required_unless_present = "all")]
    targets: Vec<String>,
    /// Seconds until what has not ended is killed; by default the pod's terminationGracePeriodSeconds, else 10
    #[arg(short, long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(0..))]
    time: Option<i64>,
    /// Every pod
    #[arg(short, long, conflicts_with = "targets")]
    all: bool,
}

/// Stops what was asked for, all at the same time, and prints the ids of what was stopped.
pub async fn run(args: StopArgs, session: &Session) -> Result<(), Failure> {
    let client = session.connect().await?;
    let inventory = Inventory::read(&client).await?;
    let mut failures = Vec::new();
    let mut targets = Vec::new();
    if args.all {
        let ready = |pod: &&v1::PodSandbox| pod.state == v1::PodSandboxState::SandboxReady as i32;
        targets.extend(inventory.pods.iter().filter(ready).cloned().map(Target::Pod));
    }
    for typed in &args.targets {
        match inventory.find(typed, Kinds::Both) {
            Ok(target) => targets.push(target),
            Err(failure) => failures.push(failure),
        }
    }
    let time = args.time;
    let outcomes = fan_out::each(targets, |target| {
        let client = client.clone();
        async move {
            match target {
                Target::Pod(pod) => {
                    let failures = teardown::stop_pod(&client, &pod.id, pod_name(&pod), time).await;
                    (pod.id, failures)
                }
                Target::Container(container) => {
                    let grace_s = teardown::grace_s(time, &container.annotations);
                    let name = container_name(&container);
                    let outcome = teardown::stop_container(&client, &container.id, name, grace_s).await;
                    (container.id, outcome.err().into_iter().collect())
                }
            }
        }
    })
    .await;
    for (id, failed) in outcomes.into_iter().flatten() {
        if failed.is_empty() {
            print(&format!("{}\n", human::short_id(&id)))?;
        }
        failures.extend(failed);
    }
    Failure::all(failures)
}
