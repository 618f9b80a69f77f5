//! ExecSync: one more process in a container, its output gathered, everything bounded: bytes, time, and what it
//! leaves behind.

use crate::effects::{ExecStdio, PodEffects};
use knarr_model::view::ContainerView;
use knarr_model::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

/// One read; a pipe holds 64 KiB.
const READ_BYTES: usize = 16 << 10;

/// Both streams together, in bytes: the answer must fit into the 16 MiB message that kubelet's client takes, with its
/// framing and exit code. Else the caller would get an error in place of a cut output.
const ANSWER_BYTES_MAX: usize = (16 << 20) - 1024;

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
    let stdio = ExecStdio::Pipes { stdin: None, stdout: Some(stdout_end), stderr: Some(stderr_end) };
    let mut exec = pod.exec(container, cmd, stdio).await?;
    let ended = match timeout {
        Some(limit) => tokio::time::timeout(limit, exec.wait()).await.ok(),
        None => Some(exec.wait().await),
    };
    let Some(ended) = ended else {
        // Its end is waited for so that the client finds nothing of it.
        let _ = exec.kill().await;
        exec.end().await;
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
    /// Tells the task to take what lies in the pipe and to end.
    stop: Option<oneshot::Sender<()>>,
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
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(gather(receiver, stopped, Kept { bytes: Arc::clone(&bytes), max: bytes_max }));
        Ok((write, Self { task, stop: Some(stop), bytes }))
    }

    /// What came until the pipe's end, or until the drain's time is up. What the process wrote before it ended is
    /// always in it: on a busy machine the drain's time can pass before the task has read anything.
    async fn drained(mut self, limit: Duration) -> Vec<u8> {
        if tokio::time::timeout(limit, &mut self.task).await.is_err() {
            drop(self.stop.take());
            // It waits for nothing any more.
            let _ = (&mut self.task).await;
        }
        std::mem::take(&mut self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The first `max` bytes of a stream.
struct Kept {
    bytes: Arc<Mutex<Vec<u8>>>,
    max: usize,
}

impl Kept {
    fn add(&self, read: &[u8]) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let room = self.max.saturating_sub(bytes.len());
        bytes.extend_from_slice(&read[..read.len().min(room)]);
    }
}

async fn gather(mut pipe: pipe::Receiver, mut stopped: oneshot::Receiver<()>, kept: Kept) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        tokio::select! {
            read = pipe.read(&mut buffer) => match read {
                Ok(count) if count > 0 => kept.add(&buffer[..count]),
                _ => return,
            },
            _ = &mut stopped => return take_the_rest(&pipe, &mut buffer, &kept),
        }
    }
}

/// Reads what lies in the pipe, and no more than fits into it: a process that was left behind may write for ever.
fn take_the_rest(pipe: &pipe::Receiver, buffer: &mut [u8], kept: &Kept) {
    let mut left = rustix::pipe::fcntl_getpipe_size(pipe).unwrap_or(0);
    while left > 0 {
        // Not by the receiver's own read, which asks the kernel only after an event has told that there is something.
        match rustix::io::read(pipe, &mut *buffer) {
            Ok(count) if count > 0 => {
                kept.add(&buffer[..count]);
                left = left.saturating_sub(count);
            }
            Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
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

    #[tokio::test]
    async fn what_lies_in_the_pipe_is_kept_when_the_drain_has_no_time() {
        for left_behind in [false, true] {
            let (write, gathering) = Gathering::start(1 << 20).unwrap();
            let written = vec![b'x'; 40 << 10];
            assert_eq!(rustix::io::write(&write, &written).unwrap(), written.len());
            let _held = left_behind.then_some(write);
            // On this one thread the gathering has not read anything yet.
            assert_eq!(gathering.drained(Duration::ZERO).await.len(), written.len());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_process_that_writes_for_ever_does_not_hold_the_answer_up() {
        let (write, gathering) = Gathering::start(1 << 20).unwrap();
        let writer = std::thread::spawn(move || while rustix::io::write(&write, &[b'y'; 4096]).is_ok() {});
        let drained = tokio::time::timeout(Duration::from_secs(20), gathering.drained(Duration::from_millis(5))).await;
        assert!(drained.unwrap().len() <= 1 << 20);
        writer.join().unwrap();
    }
}
