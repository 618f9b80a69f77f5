//! One more process in a container: started with pipes or a terminal, waited for, killed with all that it started.

use super::container::{Parts, push, push_cgroup};
use super::{PodEffects, blocking, not_started};
use crate::cgroup::ExecLeaf;
use crate::oci;
use knarr_model::input::StartError;
use knarr_model::plan::{ExecPlan, Exit};
use knarr_model::view::ContainerView;
use knarr_model::{Error, ErrorKind, ExecId};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

/// After a kill, how long the end may take to be seen.
const KILL_WAIT: Duration = Duration::from_secs(5);

static EXECS: AtomicU64 = AtomicU64::new(1);

/// What the process gets as its standard streams.
#[derive(Debug)]
pub(crate) enum ExecStdio {
    /// The process's ends of pipes; where there is none it gets /dev/null.
    Pipes { stdin: Option<OwnedFd>, stdout: Option<OwnedFd>, stderr: Option<OwnedFd> },
    /// A new terminal of this size, whose master is handed over.
    Terminal { columns: u16, rows: u16 },
}

impl PodEffects {
    /// Starts one more process in a container.
    pub(crate) async fn exec(
        self: &Arc<Self>,
        container: &ContainerView,
        cmd: &[String],
        stdio: ExecStdio,
    ) -> Result<RunningExec, Error> {
        let doing = || format!("exec in container {} ({})", container.id.short(), container.spec.name);
        let built = self.built(&Parts::of_view(container)).await?;
        let (tty, console_size) = match stdio {
            ExecStdio::Terminal { columns, rows } => (true, (columns, rows)),
            ExecStdio::Pipes { .. } => (false, (0, 0)),
        };
        let request = oci::ExecRequest { args: cmd.to_vec(), tty, console_size };
        let process = oci::exec_plan(&built.spec, &request, &built.seccomp)?;
        let id = ExecId(EXECS.fetch_add(1, Ordering::Relaxed));
        let cgroup = self.container_cgroup(&container.id)?;
        let leaf = Arc::new(blocking(move || cgroup.exec_leaf(id)).await??);
        let mut fds = Vec::new();
        let cgroup = push_cgroup(&mut fds, leaf.plan_fds()?);
        let ends = match stdio {
            ExecStdio::Terminal { .. } => [None, None, None],
            ExecStdio::Pipes { stdin, stdout, stderr } => [stdin, stdout, stderr],
        };
        let [stdin, stdout, stderr] = ends.map(|end| end.map(|end| push(&mut fds, end)));
        let plan = ExecPlan { id, container: container.id.clone(), cgroup, process, stdin, stdout, stderr };
        let (sender, ended) = oneshot::channel();
        self.live().execs.insert(id, sender);
        let mut running =
            RunningExec { pod: self.clone(), id, leaf: Some(leaf), ended: Some(ended), exit: None, terminal: None };
        match self.shim()?.exec(plan, fds).await {
            Ok(started) => {
                running.terminal = started.terminal;
                Ok(running)
            }
            Err(error) => {
                running.clean_up().await;
                let error = match not_started(error) {
                    StartError::Failed(failure) => Error::internal(failure.to_string()),
                    StartError::Other(error) => error,
                };
                Err(error.context(doing()))
            }
        }
    }
}

/// A process that [`PodEffects::exec`] started. Dropped before its end, it is killed with all that it started.
#[derive(Debug)]
pub struct RunningExec {
    pod: Arc<PodEffects>,
    id: ExecId,
    leaf: Option<Arc<ExecLeaf>>,
    ended: Option<oneshot::Receiver<Exit>>,
    exit: Option<Exit>,
    terminal: Option<OwnedFd>,
}

impl RunningExec {
    /// The master of its terminal, once.
    pub(crate) fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Waits for its end. May be called again after having been cancelled.
    pub async fn wait(&mut self) -> Result<Exit, Error> {
        if let Some(ended) = &mut self.ended {
            let lost = |_| Error::new(ErrorKind::Unavailable, "the pod's shim is gone while a command ran");
            self.exit = Some(ended.await.map_err(lost)?);
            self.ended = None;
        }
        self.exit.ok_or_else(|| Error::internal("the end of a command was not seen"))
    }

    /// Kills it and everything it started, and waits for its end, 5 s at most: whoever is told of it then finds
    /// nothing of it.
    pub async fn kill(&mut self) -> Result<Exit, Error> {
        if let Some(leaf) = self.leaf.clone() {
            let _ = blocking(move || leaf.kill()).await;
        }
        tokio::time::timeout(KILL_WAIT, self.wait()).await.unwrap_or_else(|_| {
            let message = format!("a command that was killed has not ended after {} s", KILL_WAIT.as_secs());
            Err(Error::new(ErrorKind::DeadlineExceeded, message))
        })
    }

    /// Removes its cgroup, unless something that it left behind lives there: that goes with the container.
    pub async fn clean_up(&mut self) {
        self.pod.live().execs.remove(&self.id);
        if let Some(leaf) = self.leaf.take() {
            let _ = blocking(move || leaf.remove()).await;
        }
    }

    /// Kills what is left of it and removes its cgroup.
    pub(crate) async fn end(mut self) {
        self.pod.live().execs.remove(&self.id);
        if let Some(leaf) = self.leaf.take() {
            let _ = blocking(move || leaf.end()).await;
        }
    }
}

impl Drop for RunningExec {
    fn drop(&mut self) {
        self.pod.live().execs.remove(&self.id);
        if let Some(leaf) = self.leaf.take() {
            // Its client went away in the middle: nobody is left to want it.
            tokio::task::spawn_blocking(move || leaf.end());
        }
    }
}
