//! Effects: what the pods' machines ask for, carried out. Each runs as a task of its own, under a deadline where
//! something outside is waited for, and reports how it ended as the pod's next input. Nothing here decides.

mod attach;
mod container;
mod exec;
mod image_volumes;
mod info;
mod pod;
mod spec;
mod steps;
mod world;

pub(crate) use attach::{Attachment, Ended};
pub(crate) use exec::{ExecStdio, RunningExec};
pub(crate) use pod::end_shim;
pub use world::World;

use crate::cgroup::{ContainerCgroup, PodCgroup};
use crate::pod_task::{Message, refusal};
use crate::shim_client::{Events, ShimClient, StartError as ShimStartError};
use knarr_model::effect::Effect;
use knarr_model::input::{Input, OomKilled, Outcome, StartError};
use knarr_model::plan::Exit;
use knarr_model::pod::Pod;
use knarr_model::spec::PodSpec;
use knarr_model::{ContainerId, Error, ErrorKind, ExecId, PodId};
use knarr_wire::shim::exit_record::{self, ExitRecord};
use knarr_wire::shim::{AttachId, Event};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use tokio::sync::{mpsc, oneshot};

/// The living parts of one pod: its shim, its processes, its cgroups. All of it can be rebuilt from names, records
/// and the shim.
#[derive(Debug)]
pub struct PodEffects {
    world: Arc<World>,
    id: PodId,
    spec: Arc<PodSpec>,
    inbox: OnceLock<mpsc::Sender<Message>>,
    live: Mutex<Live>,
    /// The shim's end is expected: its closed connection is no loss.
    ending: AtomicBool,
}

#[derive(Debug, Default)]
struct Live {
    shim: Option<ShimClient>,
    /// The pod's user namespace, by which the owners of image layers are mapped.
    user_ns: Option<Arc<OwnedFd>>,
    containers: HashMap<ContainerId, LiveContainer>,
    execs: HashMap<ExecId, oneshot::Sender<Exit>>,
    attaches: HashMap<AttachId, oneshot::Sender<Ended>>,
    /// The shim is being moved to its cgroup.
    placing: Option<tokio::task::JoinHandle<()>>,
}

/// What the daemon holds of one container.
#[derive(Debug, Default)]
struct LiveContainer {
    pidfd: Option<Arc<OwnedFd>>,
    cgroup: Option<Arc<ContainerCgroup>>,
    /// The OCI specification that the container was started with: exec runs under the same.
    spec: Option<Arc<spec::Built>>,
    /// Keep the layers of the image and of volumes that are images on disk.
    leases: Vec<knarr_image::store::Lease>,
}

impl PodEffects {
    /// The parts of a pod that has none yet.
    pub fn new(world: Arc<World>, id: PodId, spec: Arc<PodSpec>) -> Arc<Self> {
        let (inbox, live, ending) = (OnceLock::new(), Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { world, id, spec, inbox, live, ending })
    }

    /// Where outcomes go.
    pub(crate) fn connect(&self, inbox: mpsc::Sender<Message>) {
        let _ = self.inbox.set(inbox);
    }

    /// What all pods share.
    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// The pod.
    pub fn id(&self) -> &PodId {
        &self.id
    }

    /// Held for look-ups only, never across a wait.
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn send(&self, input: Input) {
        if let Some(inbox) = self.inbox.get() {
            // The task is gone only when the pod is over, and then nobody wants to know.
            let _ = inbox.send(Message::Input(input)).await;
        }
    }

    /// Answers an effect that must not be started, as its own failure would.
    pub(crate) fn refused(self: &Arc<Self>, effect: &Effect, error: &Error) {
        if let Some(outcome) = refusal(effect, error) {
            let this = self.clone();
            tokio::spawn(async move { this.send(Input::Outcome(outcome)).await });
        }
    }

    /// Starts an effect of `pod` and returns at once.
    pub(crate) fn start(this: &Arc<Self>, effect: Effect, pod: &Pod) {
        let effects = this.clone();
        match effect {
            Effect::SetUpPod => this.spawn(async move { Outcome::PodSetUp(effects.set_up().await) }),
            Effect::TearDownPod => this.spawn(async move { Outcome::PodTornDown(effects.tear_down().await) }),
            Effect::DeletePod => this.spawn(async move { Outcome::PodDeleted(effects.delete().await) }),
            Effect::CreateContainer(id) => {
                let Some(spec) = pod.container(&id).map(|c| c.spec().clone()) else { return };
                this.spawn(async move {
                    let result = effects.create_container(&id, &spec).await;
                    Outcome::ContainerCreated(id, result)
                });
            }
            Effect::StartContainer(id) => {
                let Some(parts) = pod.container(&id).map(container::Parts::of) else { return };
                this.spawn(async move {
                    let result = effects.start_container(parts).await;
                    Outcome::ContainerStarted(id, result)
                });
            }
            Effect::Signal(id, signal) => this.signal(&id, signal),
            Effect::Kill(id) => {
                tokio::task::spawn_blocking(move || effects.kill(&id));
            }
            Effect::DeleteContainer(id) => this.spawn(async move {
                let result = effects.delete_container(&id).await;
                Outcome::ContainerDeleted(id, result)
            }),
            Effect::UpdateResources(id, resources) => this.spawn(async move {
                let result = effects.update_resources(&id, resources).await;
                Outcome::ResourcesUpdated(id, result)
            }),
            Effect::ReopenLog(id) => this.spawn(async move {
                let result = effects.reopen_log(&id).await;
                Outcome::LogReopened(id, result)
            }),
            // The pod's task keeps its own timers.
            Effect::SetTimer(..) | Effect::ClearTimer(_) => {}
        }
    }

    fn spawn(self: &Arc<Self>, work: impl Future<Output = Outcome> + Send + 'static) {
        let this = self.clone();
        tokio::spawn(async move {
            let outcome = work.await;
            this.send(Input::Outcome(outcome)).await;
        });
    }

    /// The pod's cgroup, by names alone.
    fn pod_cgroup(&self) -> Result<PodCgroup, Error> {
        self.world.cgroups.pod(&self.spec.cgroup_parent, &self.id)
    }

    /// A container's cgroup: the one it was started in, or by names alone.
    fn container_cgroup(&self, id: &ContainerId) -> Result<Arc<ContainerCgroup>, Error> {
        if let Some(known) = self.live().containers.get(id).and_then(|c| c.cgroup.clone()) {
            return Ok(known);
        }
        Ok(Arc::new(self.world.cgroups.container(&self.pod_cgroup()?, id)))
    }

    fn shim(&self) -> Result<ShimClient, Error> {
        self.live().shim.clone().ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, format!("the shim of pod {} is not there", self.id.short()))
        })
    }

    /// Turns what the shim tells into inputs, until its connection ends.
    fn follow(self: &Arc<Self>, mut events: Events) {
        let this = self.clone();
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Event::Exited { container, exit } => {
                        let oom = this.oom_killed(&container).await;
                        this.send(Input::Exited(container, exit, oom)).await;
                    }
                    // Everything in the pod's PID namespace has died with it; the containers' exits say so themselves.
                    Event::PodInitExited { .. } if this.ending.load(Ordering::Acquire) => {}
                    Event::PodInitExited { exit } => {
                        tracing::warn!(
                            pod = this.id.as_str(),
                            code = exit.code,
                            "the init of the pod's PID namespace is gone"
                        );
                    }
                    Event::AttachEnded { attach, fell_behind } => {
                        let waiting = this.live().attaches.remove(&attach);
                        if let Some(waiting) = waiting {
                            let ended = if fell_behind { Ended::FellBehind } else { Ended::WithContainer };
                            // Its client may have gone away in the same moment.
                            let _ = waiting.send(ended);
                        }
                    }
                    Event::ExecExited { exec, exit } => {
                        let waiting = this.live().execs.remove(&exec);
                        if let Some(waiting) = waiting {
                            // Whoever waited may have given up at its deadline.
                            let _ = waiting.send(exit);
                        }
                    }
                }
            }
            if !this.ending.load(Ordering::Acquire) {
                tracing::error!(pod = this.id.as_str(), "the shim is gone");
                this.live().shim = None;
                this.live().execs.clear();
                this.live().attaches.clear();
                for exited in this.recorded_exits().await {
                    this.send(exited).await;
                }
                this.send(Input::ShimLost).await;
            }
        });
    }

    /// What a shim that is gone has left in writing: the exits that it saw. An exit that is known already is heard
    /// twice, which does no harm.
    pub(crate) async fn recorded_exits(&self) -> Vec<Input> {
        let dir = self.run_dir().join(exit_record::DIRECTORY);
        let records = blocking(move || {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let records = entries.filter_map(|entry| {
                let container = ContainerId::parse(entry.file_name().to_str()?).ok()?;
                let length = entry.metadata().ok()?.len();
                let text =
                    (length <= exit_record::RECORD_BYTES_MAX as u64).then(|| std::fs::read(entry.path()))?.ok()?;
                Some((container, ExitRecord::parse(&text)?.exit))
            });
            records.collect::<Vec<_>>()
        });
        let mut inputs = Vec::new();
        for (container, exit) in records.await.unwrap_or_default() {
            let oom = self.oom_killed(&container).await;
            inputs.push(Input::Exited(container, exit, oom));
        }
        inputs
    }

    async fn oom_killed(&self, container: &ContainerId) -> OomKilled {
        let cgroup = self.live().containers.get(container).and_then(|c| c.cgroup.clone());
        let Some(cgroup) = cgroup else { return OomKilled(false) };
        let kills = tokio::task::spawn_blocking(move || cgroup.oom_kills()).await;
        OomKilled(kills.unwrap_or(0) > 0)
    }
}

/// What the shim or the runtime said of a process that did not start.
fn not_started(error: ShimStartError) -> StartError {
    match error {
        ShimStartError::Failed(failure) => StartError::Failed(failure),
        ShimStartError::Shim(error) => StartError::Other(error),
    }
}

/// An I/O error with the step that met it.
fn failed(step: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Error {
    move |error| Error::internal(format!("{step}: {error}"))
}

/// Runs what may block, away from the async workers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal(format!("worker: {e}")))
}
