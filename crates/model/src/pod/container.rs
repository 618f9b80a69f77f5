//! One container within its pod's machine.
//!
//! ```text
//!  Creating ──> Created ──> Starting ──> Running ──> Exited ──> Deleting ──> (gone)
//!     │ failed     │           │ failed: Exited(StartError)        ^
//!     v            └───────────────────────────────────────────────┘ Remove
//!  (gone)
//! ```
//!
//! An exit that overtakes the answer to Start is kept in `Starting` and takes effect when the answer comes: the code
//! is never lost and Running is never shown for a process that is over.

use super::{Reply, Step, Wish};
use crate::effect::Effect;
use crate::input::{Nanos, OomKilled, Resolved, StartError, Started, Ticket, Timer};
use crate::plan::Exit;
use crate::resources::Resources;
use crate::spec::ContainerSpec;
use crate::view::{ContainerState, ContainerView, Reason};
use crate::{ContainerId, Error, ErrorKind};
use std::collections::VecDeque;
use std::sync::Arc;

/// How long a killed process may take to be seen dead before Stop fails and says so: kubelet gives two minutes, a
/// process in an uninterruptible sleep may take for ever.
const KILL_WAIT: Nanos = 60 * 1_000_000_000;

/// The exit code of a container that never ran, as containerd reports it.
const START_ERROR_CODE: i32 = 128;

/// The exit code of a container whose end nobody saw, as containerd reports it.
const UNKNOWN_CODE: i32 = 255;

/// Where a container is in its life; see the drawing above.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum ContainerPhase {
    Creating,
    Created,
    Starting { early_exit: Option<(Exit, OomKilled)> },
    Running { pid: u32, started_at: Nanos },
    Exited { started_at: Nanos, finished_at: Nanos, code: i32, reason: Reason, message: String },
    Deleting(Box<ContainerPhase>),
}

/// A stop under way: when patience ends, and what has been done about it.
#[derive(Debug, Clone, Copy)]
struct Stopping {
    kill_at: Nanos,
    timer_at: Option<Nanos>,
    killed: bool,
}

/// One container.
#[derive(Debug)]
pub struct Container {
    pub(super) id: ContainerId,
    pub(super) spec: Arc<ContainerSpec>,
    pub(super) created_at: Nanos,
    pub(super) resolved: Resolved,
    pub(super) resources: Resources,
    pub(super) phase: ContainerPhase,
    create: Vec<Ticket>,
    start: Vec<Ticket>,
    stop: Vec<Ticket>,
    stopping: Option<Stopping>,
    pub(super) remove: Wish,
    updates: VecDeque<(Ticket, Resources)>,
    updating: Option<(Ticket, Resources)>,
    reopen: Vec<Ticket>,
}

impl Container {
    pub(super) fn new(id: ContainerId, spec: Arc<ContainerSpec>, created_at: Nanos, ticket: Ticket) -> Self {
        let resources = spec.resources.clone();
        let mut container =
            Self::restored(id, spec, created_at, Resolved::default(), resources, ContainerPhase::Creating);
        container.create.push(ticket);
        container
    }

    pub(super) fn restored(
        id: ContainerId,
        spec: Arc<ContainerSpec>,
        created_at: Nanos,
        resolved: Resolved,
        resources: Resources,
        phase: ContainerPhase,
    ) -> Self {
        Self {
            id,
            spec,
            created_at,
            resolved,
            resources,
            phase,
            create: Vec::new(),
            start: Vec::new(),
            stop: Vec::new(),
            stopping: None,
            remove: Wish::default(),
            updates: VecDeque::new(),
            updating: None,
            reopen: Vec::new(),
        }
    }

    /// What was asked for.
    pub fn spec(&self) -> &Arc<ContainerSpec> {
        &self.spec
    }

    /// What was found out when it was created.
    pub fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// Its id.
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// As last accepted.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// Where it is in its life.
    pub fn phase(&self) -> &ContainerPhase {
        &self.phase
    }

    fn refuse_in_state(&self, ticket: Ticket, wanted: &str, step: &mut Step) {
        let message =
            format!("container {} ({}) is {}, not {wanted}", self.id.short(), self.spec.name, self.phase_word());
        step.refuse(ticket, ErrorKind::FailedPrecondition, message);
    }

    fn phase_word(&self) -> &'static str {
        match self.phase {
            ContainerPhase::Creating => "being created",
            ContainerPhase::Created => "created",
            ContainerPhase::Starting { .. } => "starting",
            ContainerPhase::Running { .. } => "running",
            ContainerPhase::Exited { .. } => "exited",
            ContainerPhase::Deleting(_) => "being removed",
        }
    }

    // Requests.

    /// CreateContainer for a name that this container has. A retry with the same content gets this container.
    pub(super) fn create_again(&mut self, ticket: Ticket, spec: &ContainerSpec, step: &mut Step) {
        let same = *self.spec == *spec;
        match self.phase {
            ContainerPhase::Creating if same => self.create.push(ticket),
            ContainerPhase::Created if same && !self.remove.wanted => {
                step.replies.push((ticket, Ok(Reply::Container(self.id.clone()))));
            }
            _ => step.refuse(
                ticket,
                ErrorKind::AlreadyExists,
                format!(
                    "container {} attempt {} exists as {} and is {}",
                    spec.name,
                    spec.attempt,
                    self.id.short(),
                    self.phase_word()
                ),
            ),
        }
    }

    pub(super) fn start(&mut self, ticket: Ticket, pod_is_ready: bool, step: &mut Step) {
        match self.phase {
            ContainerPhase::Starting { .. } => self.start.push(ticket),
            ContainerPhase::Created if !pod_is_ready => {
                step.refuse(ticket, ErrorKind::FailedPrecondition, "the container's pod is not ready".into());
            }
            ContainerPhase::Created if !self.remove.wanted => {
                self.start.push(ticket);
                self.phase = ContainerPhase::Starting { early_exit: None };
                step.changed = true;
                step.effects.push(Effect::StartContainer(self.id.clone()));
            }
            _ => self.refuse_in_state(ticket, "created", step),
        }
    }

    /// StopContainer. The shortest patience of all callers counts; the signal is sent once.
    pub(super) fn stop(&mut self, now: Nanos, ticket: Ticket, timeout_s: i64) {
        self.stop.push(ticket);
        self.kill_again(now);
        self.want_killed(now.saturating_add(timeout_s.max(0).saturating_mul(1_000_000_000)));
    }

    pub(super) fn remove(&mut self, now: Nanos, ticket: Ticket) {
        self.remove.ask(ticket);
        self.kill_again(now);
        self.want_killed(now);
    }

    /// The container is to be dead at `kill_at` at the latest.
    pub(super) fn want_killed(&mut self, kill_at: Nanos) {
        if !matches!(self.phase, ContainerPhase::Starting { .. } | ContainerPhase::Running { .. }) {
            return;
        }
        let stopping = self.stopping.get_or_insert(Stopping { kill_at, timer_at: None, killed: false });
        stopping.kill_at = stopping.kill_at.min(kill_at);
    }

    pub(super) fn want_removed(&mut self) {
        self.remove.wanted = true;
    }

    /// A new request for a process that survived its kill tries once more.
    pub(super) fn kill_again(&mut self, now: Nanos) {
        if let Some(stopping) = &mut self.stopping
            && stopping.killed
            && self.stop.len() + self.remove.waiting.len() <= 1
        {
            *stopping = Stopping { kill_at: now, timer_at: None, killed: false };
        }
    }

    pub(super) fn update(&mut self, ticket: Ticket, update: Resources, step: &mut Step) {
        match self.phase {
            ContainerPhase::Created | ContainerPhase::Starting { .. } | ContainerPhase::Running { .. } => {
                self.updates.push_back((ticket, update));
            }
            ContainerPhase::Creating | ContainerPhase::Exited { .. } | ContainerPhase::Deleting(_) => {
                self.refuse_in_state(ticket, "created or running", step);
            }
        }
    }

    pub(super) fn reopen_log(&mut self, ticket: Ticket, step: &mut Step) {
        if !matches!(self.phase, ContainerPhase::Running { .. }) {
            return self.refuse_in_state(ticket, "running", step);
        }
        if self.reopen.is_empty() {
            step.effects.push(Effect::ReopenLog(self.id.clone()));
        }
        self.reopen.push(ticket);
    }

    pub(super) fn abandon(&mut self, ticket: Ticket) {
        let lists = [&mut self.create, &mut self.start, &mut self.stop, &mut self.remove.waiting];
        for list in lists {
            list.retain(|t| *t != ticket);
        }
        // Tickets of updates and reopens stay: their effects are under way and are over in moments.
    }

    // What came of it.

    pub(super) fn created(&mut self, resolved: Resolved, step: &mut Step) {
        if self.phase == ContainerPhase::Creating {
            self.phase = ContainerPhase::Created;
            self.resolved = resolved;
            step.changed = true;
            step.answer(&mut self.create, &Ok(Reply::Container(self.id.clone())));
        }
    }

    pub(super) fn started(&mut self, now: Nanos, result: Result<Started, StartError>, step: &mut Step) {
        let ContainerPhase::Starting { early_exit } = &mut self.phase else { return };
        let early_exit = early_exit.take();
        step.changed = true;
        match result {
            Ok(started) => {
                self.phase = ContainerPhase::Running { pid: started.pid, started_at: started.started_at };
                if let Some((exit, oom)) = early_exit {
                    self.exited(exit, oom, step);
                }
                step.answer(&mut self.start, &Ok(Reply::Done));
            }
            Err(error) => {
                let error = match error {
                    StartError::Failed(failure) => Error::internal(failure.to_string()),
                    StartError::Other(error) => error,
                };
                self.phase = ContainerPhase::Exited {
                    started_at: 0,
                    finished_at: now,
                    code: START_ERROR_CODE,
                    reason: Reason::StartError,
                    message: error.message.clone(),
                };
                let error = error.context(format_args!("start container {} ({})", self.id.short(), self.spec.name));
                step.answer(&mut self.start, &Err(error));
            }
        }
    }

    pub(super) fn exited(&mut self, exit: Exit, oom: OomKilled, step: &mut Step) {
        match &mut self.phase {
            ContainerPhase::Starting { early_exit } => *early_exit = Some((exit, oom)),
            ContainerPhase::Running { started_at, .. } => {
                let reason = match (oom.0, exit.code) {
                    (true, _) => Reason::OomKilled,
                    (false, 0) => Reason::Completed,
                    (false, _) => Reason::Error,
                };
                let started_at = *started_at;
                // A clock that was set back between the two must not make a container end before it began.
                let finished_at = exit.finished_at.max(started_at);
                let message = String::new();
                self.phase = ContainerPhase::Exited { started_at, finished_at, code: exit.code, reason, message };
                step.changed = true;
            }
            // A second report of the same end, as after a restart.
            ContainerPhase::Creating
            | ContainerPhase::Created
            | ContainerPhase::Exited { .. }
            | ContainerPhase::Deleting(_) => {}
        }
    }

    /// Nobody can tell how it ended: it is killed and reported as such.
    pub(super) fn shim_lost(&mut self, now: Nanos, step: &mut Step) {
        let started_at = match self.phase {
            ContainerPhase::Running { started_at, .. } => started_at,
            // The effect that waits for the shim fails by itself.
            _ => return,
        };
        step.effects.push(Effect::Kill(self.id.clone()));
        step.changed = true;
        self.phase = ContainerPhase::Exited {
            started_at,
            finished_at: now.max(started_at),
            code: UNKNOWN_CODE,
            reason: Reason::Unknown,
            message: "the process that watched over the container is gone; how the container ended is not known".into(),
        };
    }

    pub(super) fn delete_failed(&mut self, error: &Error, step: &mut Step) {
        if let ContainerPhase::Deleting(before) = &self.phase {
            self.phase = (**before).clone();
            self.remove.wanted = false;
            step.answer(&mut self.remove.waiting, &Err(error.clone()));
        }
    }

    /// It is no more: whoever waits for anything of it hears `answer`.
    pub(super) fn gone(mut self, answer: &Result<Reply, Error>, step: &mut Step) {
        step.answer(&mut self.create, answer);
        step.answer(&mut self.start, answer);
        step.answer(&mut self.remove.waiting, &Ok(Reply::Done));
        step.answer(&mut self.stop, &Ok(Reply::Done));
        // Effects of these may still be under way; their outcomes find nobody any more.
        let removed = || Err(Error::not_found("container", self.id.short()));
        let updates = self.updating.take().into_iter().chain(self.updates.drain(..)).map(|(ticket, _)| ticket);
        step.replies.extend(updates.chain(self.reopen.drain(..)).map(|ticket| (ticket, removed())));
    }

    pub(super) fn updated(&mut self, result: Result<(), Error>, step: &mut Step) {
        let Some((ticket, wanted)) = self.updating.take() else { return };
        if result.is_ok() {
            self.resources = wanted;
            step.changed = true;
        }
        step.replies.push((ticket, result.map(|()| Reply::Done)));
    }

    pub(super) fn log_reopened(&mut self, result: Result<(), Error>, step: &mut Step) {
        step.answer(&mut self.reopen, &result.map(|()| Reply::Done));
    }

    pub(super) fn grace_is_over(&mut self, now: Nanos) {
        if let Some(stopping) = &mut self.stopping {
            stopping.kill_at = stopping.kill_at.min(now);
            stopping.timer_at = None;
        }
    }

    /// Killed, and still not dead: whoever waits hears it now. The container goes on being watched.
    pub(super) fn survived_kill(&mut self, step: &mut Step) -> Option<Error> {
        if !matches!(self.phase, ContainerPhase::Running { .. }) || !self.stopping.is_some_and(|s| s.killed) {
            return None;
        }
        let seconds = KILL_WAIT / 1_000_000_000;
        let message = format!(
            "container {} ({}) was killed and is still there after {seconds} s: a process of it may hang in the kernel",
            self.id.short(),
            self.spec.name
        );
        let error = Error::new(ErrorKind::DeadlineExceeded, message);
        step.answer(&mut self.stop, &Err(error.clone()));
        self.remove.wanted = false;
        step.answer(&mut self.remove.waiting, &Err(error.clone()));
        Some(error)
    }

    /// Nothing of it runs and no effect that could make it run is under way.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.phase, ContainerPhase::Created | ContainerPhase::Exited { .. } | ContainerPhase::Deleting(_))
    }

    /// Starts whatever wishes and phase now allow.
    pub(super) fn advance(&mut self, now: Nanos, step: &mut Step) {
        self.advance_updates(step);
        match self.phase {
            ContainerPhase::Creating | ContainerPhase::Starting { .. } | ContainerPhase::Deleting(_) => {}
            ContainerPhase::Running { .. } => self.advance_stop(now, step),
            ContainerPhase::Created | ContainerPhase::Exited { .. } => {
                if let Some(stopping) = self.stopping.take() {
                    if stopping.timer_at.is_some() {
                        step.effects.push(Effect::ClearTimer(Timer::StopContainer(self.id.clone())));
                    }
                    if stopping.killed {
                        step.effects.push(Effect::ClearTimer(Timer::KillContainer(self.id.clone())));
                    }
                }
                step.answer(&mut self.stop, &Ok(Reply::Done));
                if self.remove.wanted {
                    self.phase = ContainerPhase::Deleting(Box::new(self.phase.clone()));
                    step.effects.push(Effect::DeleteContainer(self.id.clone()));
                }
            }
        }
    }

    fn advance_stop(&mut self, now: Nanos, step: &mut Step) {
        if self.remove.wanted {
            self.want_killed(now);
        }
        let Some(stopping) = &mut self.stopping else { return };
        if stopping.killed {
            return;
        }
        if stopping.kill_at <= now {
            stopping.killed = true;
            if stopping.timer_at.take().is_some() {
                step.effects.push(Effect::ClearTimer(Timer::StopContainer(self.id.clone())));
            }
            step.effects.push(Effect::Kill(self.id.clone()));
            step.effects.push(Effect::SetTimer(Timer::KillContainer(self.id.clone()), now + KILL_WAIT));
            return;
        }
        match stopping.timer_at {
            Some(at) if at <= stopping.kill_at => {}
            Some(_) => {
                stopping.timer_at = Some(stopping.kill_at);
                step.effects.push(Effect::SetTimer(Timer::StopContainer(self.id.clone()), stopping.kill_at));
            }
            None => {
                stopping.timer_at = Some(stopping.kill_at);
                step.effects.push(Effect::Signal(self.id.clone(), self.resolved.stop_signal));
                step.effects.push(Effect::SetTimer(Timer::StopContainer(self.id.clone()), stopping.kill_at));
            }
        }
    }

    /// One update at a time: each is built on what the one before it left.
    fn advance_updates(&mut self, step: &mut Step) {
        while self.updating.is_none() {
            match self.phase {
                ContainerPhase::Created => {
                    let Some((ticket, update)) = self.updates.pop_front() else { return };
                    let wanted = self.resources.merged(&update);
                    let checked = wanted.check();
                    if checked.is_ok() {
                        self.resources = wanted;
                        step.changed = true;
                    }
                    step.replies.push((ticket, checked.map(|()| Reply::Done)));
                }
                ContainerPhase::Running { .. } => {
                    let Some((ticket, update)) = self.updates.pop_front() else { return };
                    let wanted = self.resources.merged(&update);
                    step.effects.push(Effect::UpdateResources(self.id.clone(), wanted.clone()));
                    self.updating = Some((ticket, wanted));
                }
                ContainerPhase::Creating | ContainerPhase::Starting { .. } => return,
                ContainerPhase::Exited { .. } | ContainerPhase::Deleting(_) => {
                    let Some((ticket, _)) = self.updates.pop_front() else { return };
                    self.refuse_in_state(ticket, "created or running", step);
                }
            }
        }
    }

    pub(super) fn view(&self) -> Option<ContainerView> {
        let state = match &self.phase {
            ContainerPhase::Creating => return None,
            ContainerPhase::Deleting(before) => state_of(before),
            phase => state_of(phase),
        };
        Some(ContainerView {
            id: self.id.clone(),
            spec: self.spec.clone(),
            resolved: self.resolved.clone(),
            resources: self.resources.clone(),
            created_at: self.created_at,
            state,
        })
    }
}

fn state_of(phase: &ContainerPhase) -> ContainerState {
    match phase {
        ContainerPhase::Creating | ContainerPhase::Created | ContainerPhase::Starting { .. } => ContainerState::Created,
        ContainerPhase::Running { pid, started_at } => ContainerState::Running { pid: *pid, started_at: *started_at },
        ContainerPhase::Exited { started_at, finished_at, code, reason, message } => ContainerState::Exited {
            started_at: *started_at,
            finished_at: *finished_at,
            code: *code,
            reason: *reason,
            message: message.clone(),
        },
        ContainerPhase::Deleting(before) => state_of(before),
    }
}
