//! The machine that owns one pod: inputs in, effects and replies out. It never waits, so a Stop is heard during a
//! Start, and a retry joins the work that its predecessor began.
//!
//! ```text
//!  Run        SetUpPod ok             Stop, Remove, shim lost      every container quiet      TearDownPod ok
//! ────> SettingUp ────> Ready ──────────────────────> Stopping ──────────> TearingDown ──────────> Stopped
//!           │ failed                                                        │      ^                  │ Remove:
//!           v                                                        failed v      │ asked again      v every container
//!        (over)                                                         TearDownFailed            Deleting ──> (over)
//! ```
//!
//! A pod is READY to clients in `Ready` only, and not shown at all in `SettingUp`. What a request wants is kept as a
//! wish with its tickets ([`Wish`]); after each input [`Pod::advance`] compares wishes with phases and starts what can
//! be started. So every order of requests ends in the same few transitions, and none is written twice.

mod container;
mod record;

pub use container::{Container, ContainerPhase};
pub use record::{Found, SavedContainer, SavedPhase, SavedPod, ShimFacts};

use crate::effect::Effect;
use crate::input::{Input, Nanos, Outcome, PodNetwork, Request, Ticket, Timer};
use crate::resources::{PodResources, Resources};
use crate::spec::{ContainerSpec, PodSpec};
use crate::view::PodView;
use crate::{ContainerId, Error, ErrorKind, PodId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How long after a failed teardown it is tried again unasked: kubelet's own retry comes every minute or so.
const TEAR_DOWN_RETRY: Nanos = 30 * 1_000_000_000;

/// A pod has at most so many containers, the ended ones included: a shim holds four descriptors of each, and has 1024.
pub const CONTAINERS_MAX: usize = 240;

/// What the shell must now do, in this order: save if `changed`, start the effects, answer.
#[derive(Debug, Default)]
pub struct Step {
    /// The record differs from what was last saved.
    pub changed: bool,
    /// To be started, in this order.
    pub effects: Vec<Effect>,
    /// To be sent, each ticket once.
    pub replies: Vec<(Ticket, Result<Reply, Error>)>,
    /// Nothing is left of the pod: drop the record, the names and the task.
    pub over: bool,
}

impl Step {
    fn answer(&mut self, tickets: &mut Vec<Ticket>, answer: &Result<Reply, Error>) {
        self.replies.extend(tickets.drain(..).map(|ticket| (ticket, answer.clone())));
    }

    fn refuse(&mut self, ticket: Ticket, kind: ErrorKind, message: String) {
        self.replies.push((ticket, Err(Error::new(kind, message))));
    }
}

/// What a client hears when all went well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Stop, Remove, Start, Update, Reopen.
    Done,
    /// RunPodSandbox
    Pod(PodId),
    /// CreateContainer
    Container(ContainerId),
}

/// Something that is to become true, and who waits for it. It stays wanted when its last client goes away.
#[derive(Debug, Default)]
struct Wish {
    wanted: bool,
    waiting: Vec<Ticket>,
}

impl Wish {
    fn ask(&mut self, ticket: Ticket) {
        self.wanted = true;
        self.waiting.push(ticket);
    }
}

/// Where a pod is in its life; see the drawing above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    SettingUp,
    Ready,
    Stopping,
    TearingDown,
    TearDownFailed,
    Stopped,
    Deleting,
}

/// One pod.
#[derive(Debug)]
pub struct Pod {
    id: PodId,
    spec: Arc<PodSpec>,
    created_at: Nanos,
    phase: Phase,
    network: PodNetwork,
    resources: PodResources,
    containers: BTreeMap<ContainerId, Container>,
    /// Of containers, in the order they were made: created_at must be monotonic within a pod for kubelet.
    last_created_at: Nanos,
    run: Vec<Ticket>,
    set_up_begun: bool,
    stop: Wish,
    remove: Wish,
}

impl Pod {
    /// A pod that nothing has happened to yet; its first input is `Request::Run`.
    pub fn new(id: PodId, spec: Arc<PodSpec>, created_at: Nanos) -> Self {
        let resources = PodResources { overhead: spec.overhead.clone(), containers: spec.resources.clone() };
        Self {
            id,
            spec,
            created_at,
            phase: Phase::SettingUp,
            network: PodNetwork::default(),
            resources,
            containers: BTreeMap::new(),
            last_created_at: created_at,
            run: Vec::new(),
            set_up_begun: false,
            stop: Wish::default(),
            remove: Wish::default(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &PodId {
        &self.id
    }

    /// What was asked for.
    pub fn spec(&self) -> &Arc<PodSpec> {
        &self.spec
    }

    /// One of its containers.
    pub fn container(&self, id: &ContainerId) -> Option<&Container> {
        self.containers.get(id)
    }

    /// All of its containers.
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.containers.values()
    }

    /// Decides what follows from `input`.
    pub fn handle(&mut self, now: Nanos, input: Input) -> Step {
        let mut step = Step::default();
        match input {
            Input::Request(ticket, request) => self.request(now, ticket, request, &mut step),
            Input::Abandoned(ticket) => self.abandon(ticket),
            Input::Outcome(outcome) => self.outcome(now, outcome, &mut step),
            Input::Exited(id, exit, oom) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.exited(exit, oom, &mut step);
                }
            }
            Input::Timer(timer) => self.timer(now, timer, &mut step),
            Input::ShimLost => self.shim_lost(now, &mut step),
            Input::Recovered(facts) => self.recovered(now, facts, &mut step),
        }
        self.advance(now, &mut step);
        step
    }

    fn request(&mut self, now: Nanos, ticket: Ticket, request: Request, step: &mut Step) {
        match request {
            Request::Run => self.run(ticket, step),
            Request::Stop => {
                self.stop.ask(ticket);
                self.ask_again(now, step);
            }
            Request::Remove => {
                self.remove.ask(ticket);
                self.ask_again(now, step);
            }
            Request::CreateContainer(id, spec) => self.create_container(now, ticket, id, spec, step),
            Request::StartContainer(id) => {
                let ready = self.phase == Phase::Ready;
                match self.containers.get_mut(&id) {
                    Some(container) => container.start(ticket, ready, step),
                    None => step.replies.push((ticket, Err(Error::not_found("container", &id)))),
                }
            }
            Request::StopContainer(id, timeout_s) => match self.containers.get_mut(&id) {
                Some(container) => container.stop(now, ticket, timeout_s),
                None => step.replies.push((ticket, Ok(Reply::Done))),
            },
            Request::RemoveContainer(id) => match self.containers.get_mut(&id) {
                Some(container) => container.remove(now, ticket),
                None => step.replies.push((ticket, Ok(Reply::Done))),
            },
            Request::UpdateResources(id, update) => match self.containers.get_mut(&id) {
                Some(container) => container.update(ticket, update, step),
                None => step.replies.push((ticket, Err(Error::not_found("container", &id)))),
            },
            Request::ReopenLog(id) => match self.containers.get_mut(&id) {
                Some(container) => container.reopen_log(ticket, step),
                None => step.replies.push((ticket, Err(Error::not_found("container", &id)))),
            },
            Request::UpdatePodResources { overhead, containers } => {
                self.update_resources(ticket, overhead, containers, step);
            }
        }
    }

    /// Kubelet asks before it changes the pod's cgroup, and again with the old values if that fails. Nothing here stands
    /// against any values, so they are only kept.
    fn update_resources(
        &mut self,
        ticket: Ticket,
        overhead: Option<Resources>,
        containers: Option<Resources>,
        step: &mut Step,
    ) {
        if self.phase != Phase::Ready {
            return step.refuse(ticket, ErrorKind::FailedPrecondition, format!("pod {} is not ready", self.id.short()));
        }
        let old = self.resources.clone();
        self.resources = PodResources {
            overhead: overhead.unwrap_or(old.overhead),
            containers: containers.unwrap_or(old.containers),
        };
        step.changed = true;
        step.replies.push((ticket, Ok(Reply::Done)));
    }

    /// RunPodSandbox. A retry after a lost answer gets the pod that its predecessor made.
    fn run(&mut self, ticket: Ticket, step: &mut Step) {
        match self.phase {
            Phase::SettingUp => {
                // Not "nobody waits": whoever asked first may have gone away, and the work went on.
                if !self.set_up_begun {
                    self.set_up_begun = true;
                    step.changed = true;
                    step.effects.push(Effect::SetUpPod);
                }
                self.run.push(ticket);
            }
            Phase::Ready => step.replies.push((ticket, Ok(Reply::Pod(self.id.clone())))),
            Phase::Stopping | Phase::TearingDown | Phase::TearDownFailed | Phase::Stopped | Phase::Deleting => step
                .refuse(
                    ticket,
                    ErrorKind::AlreadyExists,
                    format!(
                        "pod {}/{} (uid {}, attempt {}) exists as {} and is stopped; remove it or use another attempt",
                        self.spec.namespace,
                        self.spec.name,
                        self.spec.uid,
                        self.spec.attempt,
                        self.id.short()
                    ),
                ),
        }
    }

    /// A Stop or Remove that comes after a failure tries again what failed.
    fn ask_again(&mut self, now: Nanos, step: &mut Step) {
        if self.phase == Phase::TearDownFailed {
            step.effects.push(Effect::ClearTimer(Timer::RetryTearDown));
            self.phase = Phase::Stopping;
        }
        for container in self.containers.values_mut() {
            container.kill_again(now);
        }
    }

    fn create_container(
        &mut self,
        now: Nanos,
        ticket: Ticket,
        id: ContainerId,
        spec: Arc<ContainerSpec>,
        step: &mut Step,
    ) {
        if self.phase != Phase::Ready {
            let message = format!("pod {} is not ready", self.id.short());
            return step.refuse(ticket, ErrorKind::FailedPrecondition, message);
        }
        let holder = self.containers.values_mut().find(|c| c.spec.name == spec.name && c.spec.attempt == spec.attempt);
        if let Some(holder) = holder {
            return holder.create_again(ticket, &spec, step);
        }
        if self.containers.len() >= CONTAINERS_MAX {
            let message = format!("pod {} has {CONTAINERS_MAX} containers, which is the limit", self.id.short());
            return step.refuse(ticket, ErrorKind::ResourceExhausted, message);
        }
        // Two containers made within one tick of the clock must still be told apart by age.
        self.last_created_at = now.max(self.last_created_at + 1);
        let container = Container::new(id.clone(), spec, self.last_created_at, ticket);
        self.containers.insert(id.clone(), container);
        step.changed = true;
        step.effects.push(Effect::CreateContainer(id));
    }

    fn abandon(&mut self, ticket: Ticket) {
        let lists = [&mut self.run, &mut self.stop.waiting, &mut self.remove.waiting];
        for list in lists {
            list.retain(|t| *t != ticket);
        }
        for container in self.containers.values_mut() {
            container.abandon(ticket);
        }
    }

    fn outcome(&mut self, now: Nanos, outcome: Outcome, step: &mut Step) {
        match outcome {
            Outcome::PodSetUp(result) => self.set_up(result, step),
            Outcome::PodTornDown(result) => self.torn_down(now, result, step),
            Outcome::PodDeleted(result) => self.deleted(result, step),
            Outcome::ContainerCreated(id, Ok(resolved)) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.created(resolved, step);
                }
            }
            Outcome::ContainerCreated(id, Err(error)) => {
                if let Some(container) = self.containers.remove(&id) {
                    container.gone(&Err(error), step);
                    step.changed = true;
                }
            }
            Outcome::ContainerStarted(id, result) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.started(now, result, step);
                }
            }
            Outcome::ContainerDeleted(id, Ok(())) => {
                if let Some(container) = self.containers.remove(&id) {
                    container.gone(&Ok(Reply::Done), step);
                    step.changed = true;
                }
            }
            Outcome::ContainerDeleted(id, Err(error)) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.delete_failed(&error, step);
                }
                self.give_up_remove(error, step);
            }
            Outcome::ResourcesUpdated(id, result) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.updated(result, step);
                }
            }
            Outcome::LogReopened(id, result) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.log_reopened(result, step);
                }
            }
        }
    }

    fn set_up(&mut self, result: Result<PodNetwork, Error>, step: &mut Step) {
        if self.phase != Phase::SettingUp {
            return;
        }
        step.changed = true;
        match result {
            Ok(network) => {
                self.network = network;
                self.phase = Phase::Ready;
                if self.stop.wanted || self.remove.wanted {
                    let message = format!("pod {} was stopped while it was being set up", self.id.short());
                    step.answer(&mut self.run, &Err(Error::new(ErrorKind::Cancelled, message)));
                } else {
                    step.answer(&mut self.run, &Ok(Reply::Pod(self.id.clone())));
                }
            }
            // The effect has undone what it did: nothing is left that a Stop could be for.
            Err(error) => {
                step.answer(&mut self.run, &Err(error));
                step.answer(&mut self.stop.waiting, &Ok(Reply::Done));
                step.answer(&mut self.remove.waiting, &Ok(Reply::Done));
                step.over = true;
            }
        }
    }

    fn torn_down(&mut self, now: Nanos, result: Result<(), Error>, step: &mut Step) {
        if self.phase != Phase::TearingDown {
            return;
        }
        step.changed = true;
        match result {
            Ok(()) => {
                self.phase = Phase::Stopped;
                self.network = PodNetwork::default();
            }
            Err(error) => {
                self.phase = Phase::TearDownFailed;
                step.effects.push(Effect::SetTimer(Timer::RetryTearDown, now + TEAR_DOWN_RETRY));
                step.answer(&mut self.stop.waiting, &Err(error.clone()));
                step.answer(&mut self.remove.waiting, &Err(error));
            }
        }
    }

    fn deleted(&mut self, result: Result<(), Error>, step: &mut Step) {
        if self.phase != Phase::Deleting {
            return;
        }
        match result {
            Ok(()) => {
                step.answer(&mut self.remove.waiting, &Ok(Reply::Done));
                step.answer(&mut self.stop.waiting, &Ok(Reply::Done));
                step.over = true;
            }
            Err(error) => {
                self.phase = Phase::Stopped;
                self.give_up_remove(error, step);
            }
        }
    }

    /// Something in the way of a removal failed: whoever waits hears it, and the next Remove starts over.
    fn give_up_remove(&mut self, error: Error, step: &mut Step) {
        if self.remove.wanted {
            self.remove.wanted = false;
            step.answer(&mut self.remove.waiting, &Err(error));
        }
    }

    fn timer(&mut self, now: Nanos, timer: Timer, step: &mut Step) {
        match timer {
            Timer::StopContainer(id) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.grace_is_over(now);
                }
            }
            Timer::KillContainer(id) => {
                if let Some(container) = self.containers.get_mut(&id)
                    && let Some(error) = container.survived_kill(step)
                {
                    step.answer(&mut self.stop.waiting, &Err(error.clone()));
                    step.answer(&mut self.remove.waiting, &Err(error));
                }
            }
            Timer::RetryTearDown => {
                if self.phase == Phase::TearDownFailed {
                    self.phase = Phase::Stopping;
                }
            }
        }
    }

    /// Without its shim nobody reaps, logs or answers: what still runs is killed and the pod is torn down, so that
    /// kubelet makes a new one.
    fn shim_lost(&mut self, now: Nanos, step: &mut Step) {
        for container in self.containers.values_mut() {
            container.shim_lost(now, step);
        }
        if matches!(self.phase, Phase::Ready | Phase::Stopping) {
            self.stop.wanted = true;
            step.changed = true;
        }
    }

    /// Starts whatever wishes and phases now allow.
    fn advance(&mut self, now: Nanos, step: &mut Step) {
        if step.over {
            return;
        }
        if (self.stop.wanted || self.remove.wanted) && self.phase == Phase::Ready {
            self.phase = Phase::Stopping;
            step.changed = true;
        }
        let stopping = self.phase == Phase::Stopping;
        let deleting = self.phase == Phase::Stopped && self.remove.wanted;
        for container in self.containers.values_mut() {
            if stopping {
                container.want_killed(now);
            }
            if deleting {
                container.want_removed();
            }
            container.advance(now, step);
        }
        if stopping && self.containers.values().all(Container::is_quiet) {
            self.phase = Phase::TearingDown;
            step.changed = true;
            step.effects.push(Effect::TearDownPod);
        }
        if self.phase == Phase::Stopped {
            step.answer(&mut self.stop.waiting, &Ok(Reply::Done));
            if self.remove.wanted && self.containers.is_empty() {
                self.phase = Phase::Deleting;
                step.effects.push(Effect::DeletePod);
            }
        }
    }

    /// What List and Status may see now.
    pub fn view(&self) -> PodView {
        let mut containers: Vec<_> = self.containers.values().filter_map(Container::view).collect();
        containers.sort_by_key(|c| c.created_at);
        PodView {
            id: self.id.clone(),
            spec: self.spec.clone(),
            created_at: self.created_at,
            ready: self.phase == Phase::Ready,
            hidden: self.phase == Phase::SettingUp,
            network: self.network.clone(),
            resources: self.resources.clone(),
            containers,
        }
    }
}

#[cfg(test)]
mod tests;
