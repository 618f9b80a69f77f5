//! `knarr inspect`: all that the runtime knows of a pod, a container or an image.

use clap::{Args, ValueEnum};
use knarr_cri_api::v1;
use serde_json::{Value, json};

use crate::client::Client;
use crate::failure::Failure;
use crate::lookup::{self, Inventory, Kinds, Target, container_name, pod_name};
use crate::output::{DocumentFormat, json, print_document};
use crate::session::Session;

/// Options of `inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr inspect web                   pod web, else a container or an image of this name
  knarr inspect web/app | jq .info.pid
  knarr inspect --type image -o yaml busybox:latest")]
pub struct InspectArgs {
    /// Pods, containers or images: names, ids or beginnings of ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// What the names stand for
    #[arg(long = "type", value_enum, default_value = "auto")]
    kind: Kind,
    /// How to print
    #[arg(short, long, value_enum, default_value = "json")]
    output: DocumentFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A pod, else a container, else an image
    Auto,
    /// Pods
    Pod,
    /// Containers
    Container,
    /// Images
    Image,
}

/// Prints one document, or a list of them for several names.
pub async fn run(args: InspectArgs, session: &Session) -> Result<(), Failure> {
    let client = session.connect().await?;
    let inventory = if args.kind == Kind::Image { Inventory::default() } else { Inventory::read(&client).await? };
    let mut documents = Vec::new();
    let mut failures = Vec::new();
    for name in &args.names {
        match inspect(&client, &inventory, name, args.kind).await {
            Ok(document) => documents.push(document),
            Err(failure) => failures.push(failure),
        }
    }
    match documents.as_slice() {
        [] => {}
        [only] if args.names.len() == 1 => print_document(only, args.output)?,
        several => print_document(&json!(several), args.output)?,
    }
    Failure::all(failures)
}

async fn inspect(client: &Client, inventory: &Inventory, name: &str, kind: Kind) -> Result<Value, Failure> {
    let kinds = match kind {
        Kind::Image => return image(client, name).await,
        Kind::Pod => Kinds::Pods,
        Kind::Container => Kinds::Containers,
        Kind::Auto => Kinds::Both,
    };
    match inventory.find(name, kinds) {
        Ok(Target::Pod(pod)) => self::pod(client, &pod).await,
        Ok(Target::Container(found)) => container(client, &found).await,
        Err(failure) if kind == Kind::Auto && failure.is_not_found() => image(client, name).await.map_err(|failure| {
            if failure.is_not_found() {
                return Failure::not_found(format!("no pod, container or image has the name or id {name:?}"));
            }
            failure
        }),
        Err(failure) => Err(failure),
    }
}

async fn pod(client: &Client, pod: &v1::PodSandbox) -> Result<Value, Failure> {
    let message = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let response = client.pod_sandbox_status(format!("inspect pod {}", pod_name(pod)), message).await?;
    let status = response.status.as_ref().map_or(Value::Null, json::pod_status);
    // Not every runtime tells them here.
    let containers: Vec<Value> = response.containers_statuses.iter().map(json::container_status).collect();
    Ok(json::with_info(json!({ "status": status, "containersStatuses": containers }), &response.info))
}

async fn container(client: &Client, container: &v1::Container) -> Result<Value, Failure> {
    let message = v1::ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
    let action = format!("inspect container {}", container_name(container));
    let response = client.container_status(action, message).await?;
    let status = response.status.as_ref().map_or(Value::Null, json::container_status);
    Ok(json::with_info(json!({ "status": status }), &response.info))
}

async fn image(client: &Client, name: &str) -> Result<Value, Failure> {
    let (image, info) = lookup::image(client, name).await?;
    Ok(json::with_info(json!({ "status": json::image(&image) }), &info))
}
