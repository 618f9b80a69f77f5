//! `knarr ps`: containers.

use std::collections::HashMap;

use clap::Args;
use knarr_cri_api::v1;
use serde_json::{Value, json};

use crate::client::Client;
use crate::failure::Failure;
use crate::fan_out;
use crate::filter::{self, LabelFilter};
use crate::lookup::{self, Inventory, container_attempt, container_name, pod_name, pod_namespace};
use crate::output::style::Tone;
use crate::output::table::{Cell, Table};
use crate::output::{Format, human, json, print, print_document, time};
use crate::pod_manifest::container_config::ANNOTATION_PORTS;
use crate::session::Session;

/// Options of `ps`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr ps                            the containers that run
  knarr ps -a --pod web               all containers of pod web, also those that have ended
  knarr ps -l app=web -o json         as crictl prints them
  knarr ps -aq --state exited         ids of the containers that have ended")]
pub struct PsArgs {
    /// Containers in every state, not only those that run
    #[arg(short, long)]
    all: bool,
    /// Only names that contain this, or that match it where it holds `*`
    #[arg(long, value_name = "PATTERN")]
    name: Option<String>,
    /// Only containers of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only containers in this state: created, running, exited or unknown
    #[arg(short, long)]
    state: Option<String>,
    /// Only containers with this label; may be given several times
    #[arg(short, long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<LabelFilter>,
    /// Only containers of this pod, by name or id
    #[arg(short, long)]
    pod: Option<String>,
    /// Only containers of this image, by part of its name or id
    #[arg(long)]
    image: Option<String>,
    /// Only the newest so many, in every state
    #[arg(long, value_name = "COUNT")]
    last: Option<usize>,
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// Ids and names in full
    #[arg(long)]
    no_trunc: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// How wide an image's name may be in a table.
const IMAGE_WIDTH: usize = 48;

/// Prints the containers.
pub async fn run(args: PsArgs, session: &Session) -> Result<(), Failure> {
    let client = session.connect().await?;
    let inventory = Inventory::read(&client).await?;
    let containers = select(&args, &inventory)?;
    if args.quiet {
        let lines = containers.iter().map(|one| if args.no_trunc { one.id.as_str() } else { human::short_id(&one.id) });
        return print(&lines.map(|id| format!("{id}\n")).collect::<String>());
    }
    if let Some(format) = args.output.document() {
        let all: Vec<_> = containers.iter().map(json::container).collect();
        return print_document(&json!({ "containers": all }), format);
    }
    let ended = ended_statuses(&client, &containers).await;
    let names = image_names(&client, &containers).await?;
    let wide = args.output == Format::Wide;
    let mut head = vec!["CONTAINER ID", "NAME", "POD", "NAMESPACE", "IMAGE", "STATUS", "AGE", "RESTARTS"];
    if wide {
        head.extend(["POD ID", "IMAGE ID", "PORTS"]);
    }
    let mut table = Table::new(&head);
    for container in &containers {
        table.push(row(container, &inventory, &names, ended.get(&container.id), &args, wide));
    }
    print(&table.render(session.stdout_style()))
}

fn select(args: &PsArgs, inventory: &Inventory) -> Result<Vec<v1::Container>, Failure> {
    let words = [
        ("created", v1::ContainerState::ContainerCreated),
        ("running", v1::ContainerState::ContainerRunning),
        ("exited", v1::ContainerState::ContainerExited),
        ("unknown", v1::ContainerState::ContainerUnknown),
    ];
    let state = args.state.as_deref().map(|typed| filter::state(typed, &words)).transpose()?;
    let everything = args.all || args.last.is_some();
    let state = state.or((!everything).then_some(v1::ContainerState::ContainerRunning));
    let pod = args.pod.as_deref().map(|typed| inventory.find_pod(typed)).transpose()?;
    let passes = |container: &&v1::Container| {
        let namespace = inventory.pod_of(container).map_or("", pod_namespace);
        filter::name_matches(args.name.as_deref(), container_name(container))
            && args.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
            && state.is_none_or(|wanted| wanted as i32 == container.state)
            && filter::labels_match(&args.labels, &container.labels)
            && pod.as_ref().is_none_or(|pod| pod.id == container.pod_sandbox_id)
            && args.image.as_deref().is_none_or(|wanted| is_of_image(container, wanted))
    };
    let mut found: Vec<v1::Container> = inventory.containers.iter().filter(passes).cloned().collect();
    filter::newest_first(&mut found, args.last, |container| container.created_at);
    Ok(found)
}

fn is_of_image(container: &v1::Container, wanted: &str) -> bool {
    let digits = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let id = container.image_id.strip_prefix("sha256:").unwrap_or(&container.image_id);
    shown_image(container).contains(wanted) || container.image_ref.contains(wanted) || id.starts_with(digits)
}

/// What the pod asked for says more than the id that it became.
fn shown_image(container: &v1::Container) -> &str {
    let spec = container.image.as_ref();
    let written = spec.map(|spec| spec.user_specified_image.as_str()).filter(|written| !written.is_empty());
    written.or(spec.map(|spec| spec.image.as_str())).unwrap_or_default()
}

fn is_id(image: &str) -> bool {
    let digits = image.strip_prefix("sha256:").unwrap_or(image);
    digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Names of images by their ids, asked for only where a runtime has kept nothing but an id of what the pod wrote.
async fn image_names(client: &Client, containers: &[v1::Container]) -> Result<HashMap<String, String>, Failure> {
    if !containers.iter().any(|container| is_id(shown_image(container))) {
        return Ok(HashMap::new());
    }
    let images = client.list_images("list images", v1::ListImagesRequest::default()).await?.images;
    let named = images.into_iter().filter_map(|image| {
        let name = image.repo_tags.into_iter().next()?;
        Some((image.id, name))
    });
    Ok(named.collect())
}

/// A list says that a container has ended and not how; the status does.
async fn ended_statuses(client: &Client, containers: &[v1::Container]) -> HashMap<String, v1::ContainerStatus> {
    let ended = containers.iter().filter(|one| one.state == v1::ContainerState::ContainerExited as i32);
    let questions = ended.map(|container| container.id.clone()).collect::<Vec<_>>();
    let answers = fan_out::each(questions, |id| {
        let client = client.clone();
        async move { client.container(&id).await }
    })
    .await;
    // One that was removed meanwhile, or cannot be read, is shown by what the list knows.
    answers.into_iter().flatten().flatten().flatten().map(|status| (status.id.clone(), status)).collect()
}

fn row(
    container: &v1::Container,
    inventory: &Inventory,
    image_names: &HashMap<String, String>,
    ended: Option<&v1::ContainerStatus>,
    args: &PsArgs,
    wide: bool,
) -> Vec<Cell> {
    let id = |id: &str| if args.no_trunc { id.to_owned() } else { human::short_id(id).to_owned() };
    let pod = inventory.pod_of(container);
    let image = shown_image(container);
    let named = image_names.get(image).cloned();
    let image = named.unwrap_or_else(|| if is_id(image) { id(image) } else { image.to_owned() });
    let image = if args.no_trunc { image } else { human::shorten(&image, IMAGE_WIDTH) };
    let mut row: Vec<Cell> = vec![
        id(&container.id).into(),
        container_name(container).into(),
        pod.map_or("-", pod_name).into(),
        pod.map_or("-", pod_namespace).into(),
        image.into(),
        status_cell(container, ended),
        human::age_since(container.created_at, time::now_ns()).into(),
        container_attempt(container).to_string().into(),
    ];
    if wide {
        row.extend([
            id(&container.pod_sandbox_id).into(),
            id(&container.image_id).into(),
            ports(&container.annotations).into(),
        ]);
    }
    row
}

fn status_cell(container: &v1::Container, ended: Option<&v1::ContainerStatus>) -> Cell {
    match (v1::ContainerState::try_from(container.state), ended) {
        (Ok(v1::ContainerState::ContainerRunning), _) => Cell::toned(Tone::Good, "Running"),
        (Ok(v1::ContainerState::ContainerCreated), _) => Cell::toned(Tone::Odd, "Created"),
        (Ok(v1::ContainerState::ContainerExited), Some(status)) => {
            let reason = match status.reason.as_str() {
                "" | "Completed" | "Error" => "Exited",
                reason => reason,
            };
            let tone = if status.exit_code == 0 { Tone::Dim } else { Tone::Bad };
            Cell::toned(tone, format!("{reason} ({})", status.exit_code))
        }
        (Ok(v1::ContainerState::ContainerExited), None) => Cell::toned(Tone::Dim, "Exited"),
        _ => Cell::toned(Tone::Odd, lookup::state_word(container.state)),
    }
}

/// kubelet and `knarr run` note the ports in an annotation; CRI has no other place for them.
pub fn ports(annotations: &HashMap<String, String>) -> String {
    let Some(Value::Array(ports)) = annotations.get(ANNOTATION_PORTS).and_then(|text| serde_json::from_str(text).ok())
    else {
        return String::new();
    };
    let shown = ports.iter().map(|port| {
        let number = |key: &str| port.get(key).and_then(Value::as_i64).unwrap_or(0);
        let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_lowercase();
        let container = format!("{}/{protocol}", number("containerPort"));
        let address = port.get("hostIP").and_then(Value::as_str).filter(|ip| !ip.is_empty());
        match (number("hostPort"), address) {
            (0, _) => container,
            (host, None) => format!("{host}->{container}"),
            (host, Some(ip)) => format!("{ip}:{host}->{container}"),
        }
    });
    shown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_from_the_annotation() {
        let text = r#"[{"containerPort":80,"hostPort":8080,"protocol":"TCP"},{"containerPort":53,"protocol":"UDP"},
            {"containerPort":1,"hostPort":2,"hostIP":"127.0.0.1"}]"#;
        let annotations = HashMap::from([(ANNOTATION_PORTS.to_owned(), text.to_owned())]);
        assert_eq!(ports(&annotations), "8080->80/tcp, 53/udp, 127.0.0.1:2->1/tcp");
        assert_eq!(ports(&HashMap::new()), "");
        assert_eq!(ports(&HashMap::from([(ANNOTATION_PORTS.to_owned(), "no json".to_owned())])), "");
    }
}
