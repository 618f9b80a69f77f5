//! `knarr info`: the runtime's state.

use clap::Args;
use knarr_cri_api::v1;
use serde_json::json;

use crate::failure::{Failure, printable};
use crate::output::style::Tone;
use crate::output::{Format, human, json, print, print_document};
use crate::session::Session;

/// Options of `info`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr info                          is the runtime ready, and if not, why
  knarr info -o json | jq .status.conditions")]
pub struct InfoArgs {
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Prints what the runtime says of itself.
pub async fn run(args: InfoArgs, session: &Session) -> Result<(), Failure> {
    let client = session.connect().await?;
    let version = client.version("ask the runtime's version", v1::VersionRequest { version: "v1".into() }).await?;
    let status = client.status("read the runtime's status", v1::StatusRequest { verbose: true }).await?;
    let usage = client.image_fs_info("read what images take", v1::ImageFsInfoRequest {}).await?;
    let driver = match client.runtime_config("read the runtime's configuration", v1::RuntimeConfigRequest {}).await {
        Ok(config) => config.linux.map(|linux| linux.cgroup_driver),
        // Older runtimes do not tell.
        Err(failure) if failure.is_unimplemented() => None,
        Err(failure) => return Err(failure),
    };
    let driver = driver.and_then(|driver| v1::CgroupDriver::try_from(driver).ok());
    if let Some(format) = args.output.document() {
        let mut document = json::runtime_status(&status);
        document["version"] = json::version(&version);
        document["imageFilesystems"] = json!(usage.image_filesystems.iter().map(json::filesystem).collect::<Vec<_>>());
        document["containerFilesystems"] =
            json!(usage.container_filesystems.iter().map(json::filesystem).collect::<Vec<_>>());
        document["cgroupDriver"] = json!(driver.map(|driver| driver.as_str_name()));
        return print_document(&json::with_info(document, &status.info), format);
    }
    let style = session.stdout_style();
    let mut text = String::new();
    let mut line =
        |name: &str, value: &str| text.push_str(&format!("{:<22}{}\n", format!("{name}:"), printable(value)));
    line(
        "Runtime",
        &format!("{} {} (CRI {})", version.runtime_name, version.runtime_version, version.runtime_api_version),
    );
    line("Socket", &session.socket.display().to_string());
    for condition in status.status.iter().flat_map(|status| &status.conditions) {
        let word = if condition.status { style.paint(Tone::Good, "yes") } else { style.paint(Tone::Bad, "no") };
        let why = match (condition.reason.as_str(), condition.message.as_str()) {
            ("", "") => String::new(),
            (reason, "") | ("", reason) => format!(" ({})", printable(reason)),
            (reason, message) => format!(" ({}: {})", printable(reason), printable(message)),
        };
        // Painted text is ours; the rest of the line has been made printable.
        text.push_str(&format!("{:<22}{word}{why}\n", format!("{}:", printable(&condition.r#type))));
    }
    let mut line =
        |name: &str, value: &str| text.push_str(&format!("{:<22}{}\n", format!("{name}:"), printable(value)));
    line(
        "Cgroup driver",
        driver.map_or("not told", |driver| match driver {
            v1::CgroupDriver::Systemd => "systemd",
            v1::CgroupDriver::Cgroupfs => "cgroupfs",
        }),
    );
    for handler in &status.runtime_handlers {
        let features = handler.features.unwrap_or_default();
        let mut words = Vec::new();
        words.extend(features.recursive_read_only_mounts.then_some("recursive read-only mounts"));
        words.extend(features.user_namespaces.then_some("user namespaces"));
        let name = if handler.name.is_empty() { "default" } else { &handler.name };
        line("Handler", &if words.is_empty() { name.to_owned() } else { format!("{name}: {}", words.join(", ")) });
    }
    for (name, filesystems) in [("Images", &usage.image_filesystems), ("Containers", &usage.container_filesystems)] {
        for filesystem in filesystems {
            let place = filesystem.fs_id.as_ref().map_or("", |id| id.mountpoint.as_str());
            let bytes = filesystem.used_bytes.map_or(0, |bytes| bytes.value);
            let inodes = filesystem.inodes_used.map_or(0, |inodes| inodes.value);
            line(name, &format!("{} and {inodes} inodes in {place}", human::size(bytes)));
        }
    }
    print(&text)
}
