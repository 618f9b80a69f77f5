//! What holds for a whole run of the command: where to connect, how long to wait, whether to colour.

use std::path::PathBuf;
use std::time::Duration;

use knarr_daemon::config;

use crate::client::Client;
use crate::failure::Failure;
use crate::output::style::{Style, When};

/// The meaning of the global options.
#[derive(Debug, Clone)]
pub struct Session {
    /// The runtime's socket.
    pub socket: PathBuf,
    /// `--root`, absolute.
    pub root: Option<PathBuf>,
    /// `--timeout`: replaces each call's usual deadline.
    pub timeout: Option<Duration>,
    /// `--color`.
    pub color: When,
}

impl Session {
    /// Connects to the runtime.
    pub async fn connect(&self) -> Result<Client, Failure> {
        Client::connect(&self.socket, self.timeout).await
    }

    /// How to colour what goes to standard output.
    pub fn stdout_style(&self) -> Style {
        Style::of_stdout(self.color)
    }

    /// How to colour what goes to standard error.
    pub fn stderr_style(&self) -> Style {
        Style::of_stderr(self.color)
    }

    /// Where this command keeps logs and volumes of the pods that it made.
    pub fn cli_dir(&self) -> PathBuf {
        config::cli_dir(self.root.as_deref())
    }
}
