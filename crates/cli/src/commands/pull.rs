//! `knarr pull`: fetches images.

use std::path::PathBuf;

use clap::Args;

use crate::credentials::Credentials;
use crate::failure::Failure;
use crate::image_pull::{self, PullOrder};
use crate::output::print;
use crate::session::Session;

/// Options of `pull`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr pull registry.k8s.io/pause:3.10
  knarr pull --creds me:secret registry.example/team/app:1.2
  knarr pull --auth-file ~/.docker/config.json registry.example/team/app:1.2
  knarr pull --platform linux/arm64 alpine")]
pub struct PullArgs {
    /// Names with a tag or digest; without, `:latest` is meant
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// User and password. Others on this machine can read the command line: prefer --auth-file
    #[arg(long, value_name = "USER:PASSWORD", conflicts_with = "auth_file")]
    creds: Option<String>,
    /// A file of credentials in Docker's format
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    auth_file: Option<PathBuf>,
    /// Another platform than this machine's: os/arch[/variant]
    #[arg(long)]
    platform: Option<String>,
    /// Prints nothing but the ids
    #[arg(short, long)]
    quiet: bool,
}

/// Pulls one image after the other and prints their ids.
pub async fn run(args: PullArgs, session: &Session) -> Result<(), Failure> {
    let typed = args.creds.as_deref().map(Credentials::parse).transpose()?;
    let client = session.connect().await?;
    let mut failures = Vec::new();
    for image in &args.images {
        let credentials = match (&typed, &args.auth_file) {
            (Some(typed), _) => Some(typed.clone()),
            (None, Some(file)) => Credentials::from_file(file, image)?,
            (None, None) => None,
        };
        let order = PullOrder {
            image: image.clone(),
            credentials,
            platform: args.platform.clone().unwrap_or_default(),
            quiet: args.quiet,
        };
        match image_pull::pull(&client, &order).await {
            Ok(id) => print(&format!("{id}\n"))?,
            Err(failure) => failures.push(failure),
        }
    }
    Failure::all(failures)
}
