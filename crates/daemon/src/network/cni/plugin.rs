//! Runs one plugin once: environment, input, output, and an end by a deadline.
//!
//! The plugin leads a process group of its own, which is killed as a whole. Its leader is not reaped before that, so
//! that the group's number cannot have been given to others.

use super::result::Refused;
use knarr_model::{Error, ErrorKind};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Bytes of a plugin's answer; a result has a few hundred.
const OUTPUT_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of a plugin's complaints that are kept; the rest is read and dropped.
const COMPLAINT_BYTES_MAX: u64 = 16 * 1024;
/// Characters of rubbish that are shown in an error.
const SHOWN_CHARACTERS: usize = 300;
/// How long something that a plugin left behind may keep its output open after it has ended.
const DRAIN_TIME: Duration = Duration::from_secs(1);
/// How long a killed plugin gets to be gone; one in an uninterruptible wait is left to the kernel.
const REAP_TIME: Duration = Duration::from_secs(2);
/// An executable that is being replaced cannot be started for a moment (ETXTBSY).
const BUSY_RETRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// What a plugin is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        })
    }
}

/// Which attachment a call is about; GC, STATUS and VERSION are about none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub container_id: &'a str,
    /// Empty when the namespace is gone.
    pub netns: &'a str,
    pub interface: &'a str,
    pub args: &'a str,
}

/// One call.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub verb: Verb,
    pub plugin: &'a str,
    pub bin_dirs: &'a [PathBuf],
    pub subject: Option<Subject<'a>>,
    /// The plugin's configuration, on its standard input.
    pub input: Vec<u8>,
    pub timeout: Duration,
    /// Ends the plugin early.
    pub cancel: &'a CancellationToken,
}

/// Why a call failed.
#[derive(Debug)]
pub(super) struct Failure {
    plugin: String,
    verb: Verb,
    pub cause: Cause,
}

/// What went wrong with a plugin.
#[derive(Debug)]
pub(super) enum Cause {
    /// No such executable in any folder.
    Missing(Vec<PathBuf>),
    Start(io::Error),
    TimedOut(Duration),
    Cancelled,
    TooMuchOutput,
    Refused(Refused),
    /// It failed without an error object, or succeeded with something that is no result.
    Rubbish {
        status: ExitStatus,
        shown: String,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CNI plugin {:?} {}: ", self.plugin, self.verb)?;
        match &self.cause {
            Cause::Missing(folders) => {
                let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
                write!(f, "no such executable in {}", folders.join(", "))
            }
            Cause::Start(error) => write!(f, "cannot be started: {error}"),
            Cause::TimedOut(after) => write!(f, "no answer after {after:?}, killed"),
            Cause::Cancelled => write!(f, "killed, the pod is being stopped"),
            Cause::TooMuchOutput => write!(f, "more than {OUTPUT_BYTES_MAX} bytes of output, killed"),
            Cause::Refused(Refused { code, msg, details }) => {
                write!(f, "{} (code {code})", shown(msg))?;
                if details.is_empty() { Ok(()) } else { write!(f, ": {}", shown(details)) }
            }
            Cause::Rubbish { status, shown } => write!(f, "{status}, and no JSON but {shown:?}"),
        }
    }
}

impl Failure {
    /// The same for the client.
    pub fn into_error(self) -> Error {
        /// "Try again later" in CNI's list of codes.
        const TRY_AGAIN: u32 = 11;
        let kind = match &self.cause {
            Cause::TimedOut(_) => ErrorKind::DeadlineExceeded,
            Cause::Cancelled => ErrorKind::Cancelled,
            Cause::Refused(Refused { code: TRY_AGAIN, .. }) => ErrorKind::Unavailable,
            Cause::Missing(_) | Cause::Start(_) | Cause::TooMuchOutput | Cause::Refused(_) | Cause::Rubbish { .. } => {
                ErrorKind::Internal
            }
        };
        Error::new(kind, self.to_string())
    }
}

/// A plugin's words without what a terminal would obey.
fn shown(text: &str) -> String {
    let mut shown: String = text.trim().chars().take(SHOWN_CHARACTERS).collect();
    shown.retain(|c| !c.is_control() || c == '\n');
    shown
}

/// Finds a plugin's executable.
pub(super) async fn find(plugin: &str, bin_dirs: &[PathBuf]) -> Option<PathBuf> {
    for folder in bin_dirs {
        let path = folder.join(plugin);
        if tokio::fs::metadata(&path).await.is_ok_and(|metadata| metadata.is_file()) {
            return Some(path);
        }
    }
    None
}

/// Calls a plugin and gives what it wrote on its standard output.
pub(super) async fn run(call: Call<'_>) -> Result<Vec<u8>, Failure> {
    let failure = |cause| Failure { plugin: call.plugin.to_owned(), verb: call.verb, cause };
    let Some(executable) = find(call.plugin, call.bin_dirs).await else {
        return Err(failure(Cause::Missing(call.bin_dirs.to_vec())));
    };
    let deadline = Instant::now() + call.timeout;
    let mut running = start(&executable, &call).await.map_err(|e| failure(Cause::Start(e)))?;
    let ended = running.converse(&call, deadline).await;
    let (status, output, complaints) = match ended {
        Ok(ended) => ended,
        Err(cause) => {
            running.kill().await;
            return Err(failure(cause));
        }
    };
    if !complaints.is_empty() {
        let complaints = String::from_utf8_lossy(&complaints);
        tracing::debug!(plugin = call.plugin, verb = %call.verb, stderr = %shown(&complaints), "CNI plugin's words");
    }
    if status.success() {
        return Ok(output);
    }
    if let Some(refused) = Refused::parse(&output) {
        return Err(failure(Cause::Refused(refused)));
    }
    let words = if output.trim_ascii().is_empty() { &complaints } else { &output };
    let shown = shown(&String::from_utf8_lossy(words));
    Err(failure(Cause::Rubbish { status, shown }))
}

/// A result is a JSON object: anything else is rubbish, with the same words as a failure without an error object.
pub(super) fn parse_object(verb: Verb, plugin: &str, output: &[u8]) -> Result<serde_json::Value, Failure> {
    match serde_json::from_slice(output) {
        Ok(value @ serde_json::Value::Object(_)) => Ok(value),
        _ => {
            let shown = shown(&String::from_utf8_lossy(output));
            let cause = Cause::Rubbish { status: ExitStatus::default(), shown };
            Err(Failure { plugin: plugin.to_owned(), verb, cause })
        }
    }
}

async fn start(executable: &Path, call: &Call<'_>) -> io::Result<Running> {
    let mut command = Command::new(executable);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    for stale in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_NETNS_OVERRIDE"] {
        command.env_remove(stale);
    }
    let path = std::env::join_paths(call.bin_dirs).map_err(io::Error::other)?;
    command.env("CNI_COMMAND", call.verb.to_string()).env("CNI_PATH", path);
    if let Some(subject) = call.subject {
        command
            .env("CNI_CONTAINERID", subject.container_id)
            .env("CNI_NETNS", subject.netns)
            .env("CNI_IFNAME", subject.interface)
            .env("CNI_ARGS", subject.args);
    }
    let mut tries = 0;
    loop {
        // Starting blocks until the new process has executed the file, which may lie on a slow disk.
        let spawn = move || (command.spawn(), command);
        let (spawned, again) = tokio::task::spawn_blocking(spawn).await.map_err(io::Error::other)?;
        match spawned {
            Ok(child) => return Running::new(child),
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_RETRIES => {
                tries += 1;
                command = again;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A plugin that has been started and not been reaped; dropping it kills its process group.
#[derive(Debug)]
struct Running {
    child: Child,
    group: Option<Pid>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

impl Running {
    fn new(child: Child) -> io::Result<Self> {
        let group = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        Ok(Self { child, group })
    }

    /// Gives the plugin its input and takes its output until it has ended.
    async fn converse(&mut self, call: &Call<'_>, deadline: Instant) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), Cause> {
        let (mut output, mut complaints) = (Vec::new(), Vec::new());
        let pid = self.group.ok_or_else(|| Cause::Start(io::ErrorKind::NotFound.into()))?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(io::Error::from)
            .and_then(crate::network::readable)
            .map_err(Cause::Start)?;
        let (stdin, stdout, stderr) = (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take());
        let give = async {
            if let Some(mut stdin) = stdin {
                // A plugin that ends without reading breaks the pipe; its status says what happened.
                let _ = stdin.write_all(&call.input).await;
            }
        };
        let take = async {
            if let Some(stdout) = stdout {
                let _ = stdout.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut output).await;
            }
            if output.len() as u64 > OUTPUT_BYTES_MAX { Err(Cause::TooMuchOutput) } else { Ok(()) }
        };
        let listen = async {
            if let Some(mut stderr) = stderr {
                let _ = (&mut stderr).take(COMPLAINT_BYTES_MAX).read_to_end(&mut complaints).await;
                let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
            }
        };
        let talk = async {
            let quiet = async {
                tokio::join!(give, listen);
                Ok(())
            };
            tokio::try_join!(take, quiet).map(|_| ())
        };
        // Ended means a zombie here: only `wait` reaps it.
        let left_behind = async {
            let _ = pidfd.readable().await;
            tokio::time::sleep(DRAIN_TIME).await;
        };
        tokio::select! {
            talked = talk => talked?,
            () = left_behind => {}
            () = tokio::time::sleep_until(deadline) => return Err(Cause::TimedOut(call.timeout)),
            () = call.cancel.cancelled() => return Err(Cause::Cancelled),
        }
        tokio::select! {
            status = self.child.wait() => {
                let status = status.map_err(Cause::Start)?;
                self.group = None;
                Ok((status, output, complaints))
            }
            () = tokio::time::sleep_until(deadline) => Err(Cause::TimedOut(call.timeout)),
            () = call.cancel.cancelled() => Err(Cause::Cancelled),
        }
    }

    async fn kill(mut self) {
        if let Some(group) = self.group {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        if let Ok(Ok(_)) = tokio::time::timeout(REAP_TIME, self.child.wait()).await {
            self.group = None;
        }
    }
}
