//! One task per pod: the only owner of its machine. It turns requests, outcomes, shim events and deadlines into
//! inputs, and what the machine decides into a saved record, started effects, a published view and answers, in that
//! order. It waits for nothing but its inbox, its timers and its own record.

use crate::effects::PodEffects;
use crate::node::Node;
use knarr_model::effect::Effect;
use knarr_model::input::{Input, Outcome, Request, StartError, Ticket, Timer};
use knarr_model::pod::{Pod, Reply, SavedPod, Step};
use knarr_model::view::PodView;
use knarr_model::{Error, PodId};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// Messages that may wait for one pod. Kubelet has a handful under way; effects and events wait for room.
const INBOX_MESSAGES: usize = 256;

/// What a pod's task is sent.
#[derive(Debug)]
pub enum Message {
    /// A client asks; the answer goes to the sender.
    Ask(Ticket, Request, oneshot::Sender<Result<Reply, Error>>),
    /// Something happened.
    Input(Input),
}

/// What others hold of a pod.
#[derive(Debug, Clone)]
pub struct PodHandle {
    inbox: mpsc::Sender<Message>,
    view: watch::Receiver<Arc<PodView>>,
    effects: Arc<PodEffects>,
}

static TICKETS: AtomicU64 = AtomicU64::new(1);

/// Tells the pod that its client went away before the answer came.
struct Asking<'a> {
    inbox: &'a mpsc::Sender<Message>,
    ticket: Option<Ticket>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            // With a full inbox the ticket stays and its answer goes nowhere, which harms nobody.
            let _ = self.inbox.try_send(Message::Input(Input::Abandoned(ticket)));
        }
    }
}

impl PodHandle {
    /// What List and Status may see now.
    pub fn view(&self) -> Arc<PodView> {
        self.view.borrow().clone()
    }

    /// Resolves once `is` holds of what List and Status may see, or the pod is over.
    pub async fn view_is(&self, is: impl Fn(&PodView) -> bool) {
        let _ = self.view.clone().wait_for(|view| is(view)).await;
    }

    /// The pod's living parts, for what does not change its state: exec, stats.
    pub fn effects(&self) -> &Arc<PodEffects> {
        &self.effects
    }

    /// Asks and waits for the answer. The caller's own deadline or its going away ends the waiting, not the work.
    pub async fn ask(&self, request: Request) -> Result<Reply, Error> {
        let ticket = Ticket(TICKETS.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = oneshot::channel();
        let over = || Error::not_found("pod", self.view.borrow().id.short().to_owned());
        self.inbox.send(Message::Ask(ticket, request, sender)).await.map_err(|_| over())?;
        let mut asking = Asking { inbox: &self.inbox, ticket: Some(ticket) };
        let answer = receiver.await;
        asking.ticket = None;
        answer.map_err(|_| over())?
    }

    /// Waits until the task is over, as after a Remove.
    pub async fn ended(&self) {
        self.inbox.closed().await;
    }
}

/// Starts the task of a pod. `first` are its first inputs: a Run is asked by the handle, a recovered pod is told what
/// its shim knows.
pub fn start(node: Arc<Node>, pod: Pod, effects: Arc<PodEffects>, first: Vec<Input>) -> PodHandle {
    let (sender, inbox) = mpsc::channel(INBOX_MESSAGES);
    let (publisher, view) = watch::channel(Arc::new(pod.view()));
    effects.connect(sender.clone());
    let handle = PodHandle { inbox: sender, view, effects: effects.clone() };
    let mut task = PodTask { node, pod, effects, inbox, publisher, timers: HashMap::new(), waiting: HashMap::new() };
    tokio::spawn(async move {
        for input in first {
            let now = task.node.clock().now();
            let step = task.pod.handle(now, input);
            if task.take_step(step).await {
                return task.end().await;
            }
        }
        task.run().await;
    });
    handle
}

struct PodTask {
    node: Arc<Node>,
    pod: Pod,
    effects: Arc<PodEffects>,
    inbox: mpsc::Receiver<Message>,
    publisher: watch::Sender<Arc<PodView>>,
    timers: HashMap<Timer, i64>,
    waiting: HashMap<Ticket, oneshot::Sender<Result<Reply, Error>>>,
}

impl PodTask {
    async fn run(mut self) {
        let mut ready = Vec::new();
        loop {
            let next_timer = self.timers.values().min().map(|at| self.instant_of(*at));
            let sleep = async {
                match next_timer {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // Everything that is ready is taken at once: a Stop that came with a Start's outcome is seen with it.
            tokio::select! {
                count = self.inbox.recv_many(&mut ready, INBOX_MESSAGES) => if count == 0 { return },
                () = sleep => {}
            }
            let step = self.handle_all(&mut ready);
            if self.take_step(step).await {
                return self.end().await;
            }
        }
    }

    fn instant_of(&self, at: i64) -> Instant {
        let wait = at.saturating_sub(self.node.clock().now()).max(0) as u64;
        Instant::now() + std::time::Duration::from_nanos(wait)
    }

    fn handle_all(&mut self, ready: &mut Vec<Message>) -> Step {
        let mut all = Step::default();
        let mut inputs: Vec<Input> = Vec::with_capacity(ready.len());
        for message in ready.drain(..) {
            inputs.push(match message {
                Message::Input(input) => {
                    if let Input::Abandoned(ticket) = input {
                        self.waiting.remove(&ticket);
                    }
                    input
                }
                Message::Ask(ticket, request, answer) => {
                    self.waiting.insert(ticket, answer);
                    Input::Request(ticket, request)
                }
            });
        }
        let now = self.node.clock().now();
        let due: Vec<Timer> = self.timers.iter().filter(|(_, at)| **at <= now).map(|(t, _)| t.clone()).collect();
        for timer in due {
            self.timers.remove(&timer);
            inputs.push(Input::Timer(timer));
        }
        for input in inputs {
            let step = self.pod.handle(self.node.clock().now(), input);
            all.changed |= step.changed;
            all.effects.extend(step.effects);
            all.replies.extend(step.replies);
            all.over |= step.over;
            if all.over {
                break;
            }
        }
        all
    }

    /// Persist, then act, then answer. Gives whether the pod is over.
    async fn take_step(&mut self, step: Step) -> bool {
        let mut unsaved = None;
        if step.changed && !step.over {
            let saved = self.pod.saved();
            if let Err(error) = save(&self.node, saved).await {
                tracing::error!(pod = self.pod.id().as_str(), %error, "cannot write the record");
                unsaved = Some(error);
            }
        }
        for effect in step.effects {
            match (&effect, &unsaved) {
                (Effect::SetTimer(timer, at), _) => {
                    self.timers.insert(timer.clone(), *at);
                }
                (Effect::ClearTimer(timer), _) => {
                    self.timers.remove(timer);
                }
                (_, Some(error)) if brings_to_life(&effect) => self.effects.refused(&effect, error),
                _ => PodEffects::start(&self.effects, effect, &self.pod),
            }
        }
        self.publisher.send_replace(Arc::new(self.pod.view()));
        if step.over {
            self.node.forget(self.pod.id(), self.pod.spec());
            let (node, id) = (self.node.clone(), self.pod.id().clone());
            let dropped = tokio::task::spawn_blocking(move || node.records().drop_pod(&id)).await;
            if let Ok(Err(error)) = dropped {
                tracing::warn!(pod = self.pod.id().as_str(), %error, "cannot remove the record");
            }
        }
        for (ticket, reply) in step.replies {
            if let Some(sender) = self.waiting.remove(&ticket) {
                // Its client may have gone away meanwhile.
                let _ = sender.send(reply);
            }
        }
        step.over
    }

    /// Answers whoever asked while the pod went away.
    async fn end(mut self) {
        self.inbox.close();
        let id = self.pod.id().short().to_owned();
        while let Some(message) = self.inbox.recv().await {
            if let Message::Ask(_, request, answer) = message {
                let _ = answer.send(match request {
                    Request::Stop | Request::Remove | Request::StopContainer(..) | Request::RemoveContainer(_) => {
                        Ok(Reply::Done)
                    }
                    _ => Err(Error::not_found("pod", &id)),
                });
            }
        }
    }
}

/// Effects that must not happen unrecorded. Stops and removals go on when the disk is full.
fn brings_to_life(effect: &Effect) -> bool {
    matches!(effect, Effect::SetUpPod | Effect::CreateContainer(_) | Effect::StartContainer(_))
}

async fn save(node: &Arc<Node>, saved: SavedPod) -> Result<(), Error> {
    let node = node.clone();
    let id: PodId = saved.id.clone();
    let written = tokio::task::spawn_blocking(move || node.records().save_state(&saved)).await;
    match written {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Error::internal(format!("write the record of pod {}: {error}", id.short()))),
        Err(error) => Err(Error::internal(format!("write the record of pod {}: {error}", id.short()))),
    }
}

/// The outcome of an effect that was not started.
pub fn refusal(effect: &Effect, error: &Error) -> Option<Outcome> {
    match effect {
        Effect::SetUpPod => Some(Outcome::PodSetUp(Err(error.clone()))),
        Effect::CreateContainer(id) => Some(Outcome::ContainerCreated(id.clone(), Err(error.clone()))),
        Effect::StartContainer(id) => {
            Some(Outcome::ContainerStarted(id.clone(), Err(StartError::Other(error.clone()))))
        }
        _ => None,
    }
}
