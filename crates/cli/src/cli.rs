//! The command line: what can be typed, in one tree from which help, completions and docs/cli.md are made.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use knarr_daemon::config::Span;

use crate::commands;
use crate::endpoint;
use crate::failure::Failure;
use crate::output::style::When;
use crate::session::Session;

/// A container runtime for Kubernetes, and for a machine without it.
#[derive(Debug, Parser)]
#[command(
    name = "knarr",
    version,
    disable_help_subcommand = true,
    after_help = "Pods and containers are named by name, by pod/container, by namespace/pod/container, by id, or by an unambiguous \
                  beginning of an id.

Exit codes: 0 done; 1 failed; 2 the command line or a file given on it is wrong, and nothing was done; 3 something that was \
                  named does not exist. `exec`, `attach` and `run` exit with the code of what they ran, and with 125 where they \
                  could not run it."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// The runtime's socket; any CRI runtime's will do. Without it: knarr.sock below --root, else what
    /// CONTAINER_RUNTIME_ENDPOINT says, else /run/knarr/knarr.sock
    #[arg(short = 'r', long, value_name = "unix://PATH", global = true)]
    runtime_endpoint: Option<String>,
    /// The root of an instance of knarr: its socket, its configuration and its state lie below
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,
    /// How long each call to the runtime may take, as 30s or 5m; by default two minutes, and as long as it takes for pulls
    #[arg(long, value_name = "SPAN")]
    timeout: Option<Span>,
    /// When to colour
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN", global = true)]
    color: When,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves CRI: the daemon
    Serve(commands::serve::ServeArgs),
    /// Runs the pods of a Kubernetes manifest
    Run(commands::run::RunArgs),
    /// Makes the pods of a manifest without starting their containers
    Create(commands::create::CreateArgs),
    /// Starts created pods or containers
    Start(commands::start::StartArgs),
    /// Stops pods or containers
    Stop(commands::stop::StopArgs),
    /// Removes pods or containers
    Rm(commands::rm::RmArgs),
    /// Lists containers
    Ps(commands::ps::PsArgs),
    /// Lists pods
    Pods(commands::pods::PodsArgs),
    /// Shows what containers wrote
    Logs(commands::logs::LogsArgs),
    /// Runs a command in a container
    Exec(commands::exec::ExecArgs),
    /// Joins the terminal to a running container's own input and output
    Attach(commands::attach::AttachArgs),
    /// Forwards local ports to a pod
    PortForward(commands::port_forward::PortForwardArgs),
    /// Shows all that is known of a pod, a container or an image
    Inspect(commands::inspect::InspectArgs),
    /// Lists images
    Images(commands::images::ImagesArgs),
    /// Fetches images from a registry
    Pull(commands::pull::PullArgs),
    /// Takes images from an archive
    Import(commands::import::ImportArgs),
    /// Writes images into an archive
    Export(commands::export::ExportArgs),
    /// Removes images
    Rmi(commands::rmi::RmiArgs),
    /// Shows the runtime's state
    Info(commands::info::InfoArgs),
    /// Shows the versions of this program and of the runtime
    Version(commands::version::VersionArgs),
    /// Prints or checks the daemon's configuration
    Config(commands::config::ConfigArgs),
    /// Prints completions for a shell
    Completion(commands::completion::CompletionArgs),
}

impl Cli {
    /// What the global options mean, with the environment asked once and here only.
    pub fn session(&self) -> Result<Session, Failure> {
        let root = self.global.root.as_deref().map(std::path::absolute).transpose();
        let root = root.map_err(|error| Failure::usage(format!("--root: {error}")))?;
        let variable = std::env::var(endpoint::ENDPOINT_VARIABLE).ok();
        let socket = endpoint::choose(self.global.runtime_endpoint.as_deref(), root.as_deref(), variable.as_deref())?;
        let timeout: Option<Duration> = self.global.timeout.map(|span| span.0);
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(Failure::usage("--timeout: must be longer than 0"));
        }
        Ok(Session { socket, root, timeout, color: self.global.color })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_tree_of_options_holds_together() {
        Cli::command().debug_assert();
    }
}
