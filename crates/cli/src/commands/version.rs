//! `knarr version`: of this program and of the runtime behind the endpoint.

use clap::Args;
use knarr_cri_api::v1;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::{Format, json, print, print_document};
use crate::session::Session;

/// Options of `version`.
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// Of this program only; asks no runtime
    #[arg(long)]
    client: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

const OWN: &str = env!("CARGO_PKG_VERSION");

/// Prints both versions. Where no runtime answers, this program's is printed all the same, and then the failure.
pub async fn run(args: VersionArgs, session: &Session) -> Result<(), Failure> {
    let server = if args.client { None } else { Some(ask(session).await) };
    if let Some(format) = args.output.document() {
        let of_server = match &server {
            Some(Ok(version)) => json::version(version),
            Some(Err(_)) | None => Value::Null,
        };
        print_document(&json!({ "client": { "version": OWN }, "server": of_server }), format)?;
    } else {
        let mut text = format!("{:<12}knarr {OWN}\n", "Client:");
        if let Some(Ok(version)) = &server {
            let runtime = format!("{} {}", version.runtime_name, version.runtime_version);
            text.push_str(&format!("{:<12}{runtime} (CRI {})\n", "Server:", version.runtime_api_version));
        }
        print(&text)?;
    }
    match server {
        Some(Err(failure)) => Err(failure),
        Some(Ok(_)) | None => Ok(()),
    }
}

async fn ask(session: &Session) -> Result<v1::VersionResponse, Failure> {
    let client = session.connect().await?;
    client.version("ask the runtime's version", v1::VersionRequest { version: "v1".into() }).await
}
