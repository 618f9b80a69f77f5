//! `knarr pods`: pod sandboxes.

use std::collections::HashMap;

use clap::Args;
use knarr_cri_api::v1;
use serde_json::json;

use super::ps::ports;
use crate::client::Client;
use crate::failure::Failure;
use crate::fan_out;
use crate::filter::{self, LabelFilter};
use crate::lookup::{Inventory, pod_name, pod_namespace};
use crate::output::style::Tone;
use crate::output::table::{Cell, Table};
use crate::output::{Format, human, json, print, print_document, time};
use crate::session::Session;

/// Options of `pods`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr pods                          all pods with their addresses
  knarr pods -n kube-system --state ready
  knarr pods -o wide                  with handler, all addresses and ports
  knarr pods -q -l app=web            ids of the pods with a label")]
pub struct PodsArgs {
    /// Only names that contain this, or that match it where it holds `*`
    #[arg(long, value_name = "PATTERN")]
    name: Option<String>,
    /// Only pods of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only pods in this state: ready or notready
    #[arg(short, long)]
    state: Option<String>,
    /// Only pods with this label; may be given several times
    #[arg(short, long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<LabelFilter>,
    /// Only the newest so many
    #[arg(long, value_name = "COUNT")]
    last: Option<usize>,
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// Ids in full
    #[arg(long)]
    no_trunc: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Prints the pods.
pub async fn run(args: PodsArgs, session: &Session) -> Result<(), Failure> {
    let client = session.connect().await?;
    let words = [("ready", v1::PodSandboxState::SandboxReady), ("notready", v1::PodSandboxState::SandboxNotready)];
    let state = args.state.as_deref().map(|typed| filter::state(typed, &words)).transpose()?;
    let mut inventory = Inventory::read(&client).await?;
    let mut pods = std::mem::take(&mut inventory.pods);
    pods.retain(|pod| {
        filter::name_matches(args.name.as_deref(), pod_name(pod))
            && args.namespace.as_deref().is_none_or(|wanted| wanted == pod_namespace(pod))
            && state.is_none_or(|wanted| wanted as i32 == pod.state)
            && filter::labels_match(&args.labels, &pod.labels)
    });
    filter::newest_first(&mut pods, args.last, |pod| pod.created_at);
    let id = |id: &str| if args.no_trunc { id.to_owned() } else { human::short_id(id).to_owned() };
    if args.quiet {
        return print(&pods.iter().map(|pod| format!("{}\n", id(&pod.id))).collect::<String>());
    }
    if let Some(format) = args.output.document() {
        let all: Vec<_> = pods.iter().map(json::pod).collect();
        return print_document(&json!({ "items": all }), format);
    }
    let addresses = addresses(&client, &pods).await;
    let wide = args.output == Format::Wide;
    let mut head = vec!["POD ID", "NAME", "NAMESPACE", "STATE", "CONTAINERS", "IP", "AGE"];
    if wide {
        head.extend(["ATTEMPT", "HANDLER", "MORE IPS", "PORTS"]);
    }
    let mut table = Table::new(&head);
    for pod in &pods {
        let containers = inventory.containers_of(&pod.id);
        let running = containers.iter().filter(|one| one.state == v1::ContainerState::ContainerRunning as i32).count();
        let ips = addresses.get(&pod.id).map(Vec::as_slice).unwrap_or_default();
        let mut row: Vec<Cell> = vec![
            id(&pod.id).into(),
            pod_name(pod).into(),
            pod_namespace(pod).into(),
            state_cell(pod.state),
            format!("{running}/{}", containers.len()).into(),
            ips.first().map_or("-", String::as_str).into(),
            human::age_since(pod.created_at, time::now_ns()).into(),
        ];
        if wide {
            let attempt = pod.metadata.as_ref().map_or(0, |metadata| metadata.attempt);
            let all_ports: Vec<String> =
                containers.iter().map(|one| ports(&one.annotations)).filter(|ports| !ports.is_empty()).collect();
            row.extend([
                attempt.to_string().into(),
                if pod.runtime_handler.is_empty() { "default" } else { pod.runtime_handler.as_str() }.into(),
                ips.get(1..).unwrap_or_default().join(", ").into(),
                all_ports.join(", ").into(),
            ]);
        }
        table.push(row);
    }
    print(&table.render(session.stdout_style()))
}

fn state_cell(state: i32) -> Cell {
    match v1::PodSandboxState::try_from(state) {
        Ok(v1::PodSandboxState::SandboxReady) => Cell::toned(Tone::Good, "Ready"),
        Ok(v1::PodSandboxState::SandboxNotready) => Cell::toned(Tone::Dim, "NotReady"),
        Err(_) => Cell::toned(Tone::Odd, "Unknown"),
    }
}

/// A list knows no addresses; the status of each living pod does.
async fn addresses(client: &Client, pods: &[v1::PodSandbox]) -> HashMap<String, Vec<String>> {
    let ready = pods.iter().filter(|pod| pod.state == v1::PodSandboxState::SandboxReady as i32);
    let questions: Vec<String> = ready.map(|pod| pod.id.clone()).collect();
    let answers = fan_out::each(questions, |id| {
        let client = client.clone();
        async move { client.pod(&id).await }
    })
    .await;
    let found = answers.into_iter().flatten().flatten().flatten().map(|status| {
        let network = status.network.unwrap_or_default();
        let all = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
        (status.id, all.filter(|ip| !ip.is_empty()).collect())
    });
    found.collect()
}
