//! `knarr serve`: the daemon.

use std::path::PathBuf;

use clap::Args;
use knarr_daemon::config::Config;

use super::config::wrong;
use crate::failure::Failure;
use crate::session::Session;

/// Options of `serve`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr serve                         with /etc/knarr/config.toml and config.d
  knarr serve --config ./test.toml
  knarr --root /srv/one serve         a second instance with everything below /srv/one")]
pub struct ServeArgs {
    /// The configuration file; by default /etc/knarr/config.toml, or config.toml below --root
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Serves until a signal ends it.
pub fn run(args: &ServeArgs, session: &Session) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), session.root.as_deref()).map_err(|error| wrong(&error))?;
    knarr_daemon::serve::run(config).map_err(Failure::new)
}
