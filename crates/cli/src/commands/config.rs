//! `knarr config`: the daemon's configuration.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use knarr_daemon::config::{Config, ConfigError};

use crate::failure::Failure;
use crate::output::print;
use crate::session::Session;

/// Options of `config`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  knarr config default > /etc/knarr/config.toml
  knarr config check --config ./new.toml
  knarr --root /srv/one config show   what an instance with this root would use")]
pub struct ConfigArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Prints a commented file with every key and its default
    Default,
    /// Reads the configuration and says what is wrong with it
    Check(FileArgs),
    /// Prints the configuration that counts, merged from all files
    Show(FileArgs),
}

#[derive(Debug, Args)]
struct FileArgs {
    /// The file to read instead of the usual one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Does what was asked for; needs no runtime.
pub fn run(args: ConfigArgs, session: &Session) -> Result<(), Failure> {
    let root = session.root.as_deref();
    match args.action {
        Action::Default => print(&Config::default_toml()),
        Action::Show(file) => {
            print(&Config::load(file.config.as_deref(), root).map_err(|error| wrong(&error))?.to_toml())
        }
        Action::Check(file) => {
            Config::load(file.config.as_deref(), root).map_err(|error| wrong(&error))?;
            let files = Config::files(file.config.as_deref(), root).map_err(|error| wrong(&error))?;
            let lines: String = files.iter().map(|file| format!("{}: good\n", file.display())).collect();
            print(if lines.is_empty() { "there is no configuration file: the defaults count\n" } else { &lines })
        }
    }
}

/// A configuration that is wrong is the user's to mend: nothing was done.
pub fn wrong(error: &ConfigError) -> Failure {
    let lines: Vec<String> = error.0.iter().map(ToString::to_string).collect();
    Failure::usage(lines.join("\nerror: "))
}
