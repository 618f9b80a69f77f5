//! Starting the process that keeps a scope. What it does there is in knarr-shim's `keeper.rs`.

use knarr_model::Error;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use tokio::process::{Child, ChildStdin, Command};

/// A keeper that has not had its word yet. Dropped, it ends by itself.
#[derive(Debug)]
pub struct Keeper {
    child: Child,
    word: ChildStdin,
    pid: u32,
}

impl Keeper {
    /// Starts one; `shim` is the executable, `unit` is shown by `ps`.
    pub async fn spawn(shim: Arc<OwnedFd>, unit: String) -> Result<Self, Error> {
        // The call returns after the execve, and that may wait for a disk.
        super::super::group::blocking(move || {
            let failed = |e: std::io::Error| Error::internal(format!("start the keeper of {unit}: {e}"));
            let mut child = Command::new(format!("/proc/self/fd/{}", shim.as_raw_fd()))
                .arg0("knarr-keeper")
                .args(["--keep", &unit])
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()
                .map_err(failed)?;
            let ended = || failed(std::io::Error::other("it ended at once"));
            let (pid, word) = (child.id().ok_or_else(ended)?, child.stdin.take().ok_or_else(ended)?);
            Ok(Self { child, word, pid })
        })
        .await
    }

    /// Its number, good as long as this value lives.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets it stay, whatever becomes of the daemon. It is reaped when it ends.
    pub fn stay(self) -> Result<(), Error> {
        let Self { child, word, pid } = self;
        let written = rustix::io::write(&word, b"k");
        drop((word, child));
        written.map(drop).map_err(|e| Error::internal(format!("tell keeper {pid} to stay: {e}")))
    }
}
