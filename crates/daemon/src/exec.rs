//! ExecSync: one more process in a container, its output gathered, everything bounded: bytes, time, and what it
//! leaves behind.

use crate::effects::PodEffects;
use knarr_model::view::ContainerView;
use knarr_model::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// One read; a pipe holds 64 KiB.
const READ_BYTES: usize = 16 << 10;

/// Both streams together, in bytes: the answer must fit into the 16 MiB message that kubelet's client takes, with its
/// framing and exit code. Else the caller would get an error in place of a cut output.
const ANSWER_BYTES_MAX: usize = (16 << 20) - 1024;

/// After the kill at the timeout, how long the end may take to be seen.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// What an exec gave.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

/// Runs `cmd` in a running container and waits for its end.
///
/// Each stream keeps `limits.exec_output_bytes`; the rest is read and dropped. After the process has ended, output of
/// its children is gathered for `limits.exec_drain` only: a daemon that a probe left behind keeps the pipe open for
/// ever.
pub async fn run_sync(
    pod: &Arc<PodEffects>,
    container: &ContainerView,
    cmd: &[String],
    timeout: Option<Duration>,
) -> Result<Output, Error> {
    let limits = &pod.world().config.limits;
    let (bytes_max, drain) = (limits.exec_output_bytes.0 as usize, limits.exec_drain.0);
    let (stdout_end, stdout) = Gathering::start(bytes_max)?;
    let (stderr_end, stderr) = Gathering::start(bytes_max)?;
    let mut exec = pod.exec(container, cmd, stdout_end, stderr_end).await?;
    let ended = match timeout {
        Some(limit) => tokio::time::timeout(limit, exec.wait()).await.ok(),
        None => Some(exec.wait().await),
    };
    let Some(ended) = ended else {
        exec.kill().await;
        // The tree is dead or dying; its end is waited for so that the client finds nothing of it.
        let _ = tokio::time::timeout(KILL_WAIT, exec.wait()).await;
        exec.clean_up().await;
        let seconds = timeout.unwrap_or_default().as_secs();
        let message = format!("exec in container {}: command timed out after {seconds} s", container.id.short());
        return Err(Error::new(ErrorKind::DeadlineExceeded, message));
    };
    let (mut stdout, mut stderr) = tokio::join!(stdout.drained(drain), stderr.drained(drain));
    exec.clean_up().await;
    let (stdout_max, stderr_max) = shares(stdout.len(), stderr.len(), ANSWER_BYTES_MAX);
    stdout.truncate(stdout_max);
    stderr.truncate(stderr_max);
    Ok(Output { stdout, stderr, exit_code: ended?.code })
}

/// How much of each stream is kept: what one leaves of its half, the other may have.
fn shares(stdout: usize, stderr: usize, sum_max: usize) -> (usize, usize) {
    let half = sum_max / 2;
    match (stdout <= half, stderr <= half) {
        (true, _) => (stdout, stderr.min(sum_max - stdout)),
        (false, true) => (stdout.min(sum_max - stderr), stderr),
        (false, false) => (half, half),
    }
}

/// One output stream being read. Dropped, it stops reading.
struct Gathering {
    task: tokio::task::JoinHandle<()>,
    /// Shared, so that what has come is not lost when the drain's time is up.
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Gathering {
    /// Gives the end for the process and starts to read the other.
    fn start(bytes_max: usize) -> Result<(OwnedFd, Self), Error> {
        let failed = |e: std::io::Error| Error::internal(format!("pipe for the output of an exec: {e}"));
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        rustix::io::ioctl_fionbio(&read, true).map_err(|e| failed(e.into()))?;
        let receiver = pipe::Receiver::from_owned_fd(read).map_err(failed)?;
        let bytes = Arc::default();
        let task = tokio::spawn(gather(receiver, Arc::clone(&bytes), bytes_max));
        Ok((write, Self { task, bytes }))
    }

    /// What came until the pipe's end, or until the drain's time is up.
    async fn drained(mut self, limit: Duration) -> Vec<u8> {
        let _ = tokio::time::timeout(limit, &mut self.task).await;
        std::mem::take(&mut self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn gather(mut pipe: pipe::Receiver, bytes: Arc<Mutex<Vec<u8>>>, bytes_max: usize) {
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(count) = pipe.read(&mut buffer).await {
        if count == 0 {
            return;
        }
        let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let room = bytes_max.saturating_sub(bytes.len());
        bytes.extend_from_slice(&buffer[..count.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_may_have_what_the_other_leaves() {
        assert_eq!(shares(3, 4, 10), (3, 4));
        assert_eq!(shares(20, 4, 10), (6, 4));
        assert_eq!(shares(1, 20, 10), (1, 9));
        assert_eq!(shares(20, 20, 10), (5, 5));
        assert_eq!(shares(0, 0, 10), (0, 0));
    }
}
