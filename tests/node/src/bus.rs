//! systemd's bus through a socket of the test's own, which can be cut and comes back.

use crate::Outcome;
use std::fs;
use std::path::{Path, PathBuf};
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

/// Where the system's bus listens.
const SYSTEM: &str = "/run/dbus/system_bus_socket";

/// A socket in the test's directory that leads to the system's bus.
pub struct OwnBus {
    socket: PathBuf,
    serving: Option<JoinHandle<()>>,
}

impl OwnBus {
    /// Serves it.
    pub fn start(directory: &Path) -> Outcome<Self> {
        let mut bus = Self { socket: directory.join("bus"), serving: None };
        bus.restore()?;
        Ok(bus)
    }

    /// As DBUS_SYSTEM_BUS_ADDRESS names it.
    pub fn address(&self) -> String {
        format!("unix:path={}", self.socket.display())
    }

    /// Ends every connection and takes no other.
    pub fn cut(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
        let _ = fs::remove_file(&self.socket);
    }

    /// Takes connections again.
    pub fn restore(&mut self) -> Outcome {
        self.cut();
        let listener = UnixListener::bind(&self.socket)?;
        self.serving = Some(tokio::spawn(async move {
            // Aborted with this task.
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut bus) = UnixStream::connect(SYSTEM).await {
                        let _ = copy_bidirectional(&mut client, &mut bus).await;
                    }
                });
            }
        }));
        Ok(())
    }
}

impl Drop for OwnBus {
    fn drop(&mut self) {
        self.cut();
    }
}
