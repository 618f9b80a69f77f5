//! Scenarios by name, then every order of requests and outcomes against a toy model.

use super::*;
use crate::input::{OomKilled, Resolved, StartError, Started};
use crate::plan::{Exit, StartFailure};
use crate::resources::Resources;
use crate::view::{ContainerState, Reason};

const SECOND: Nanos = 1_000_000_000;

/// A pod with a hand on its clock and tickets, and what it has said so far.
struct Bench {
    pod: Pod,
    now: Nanos,
    next_ticket: u64,
    effects: Vec<Effect>,
    replies: BTreeMap<u64, Result<Reply, Error>>,
    over: bool,
}

fn cid(n: u8) -> ContainerId {
    ContainerId::from_bytes(&[n; 32])
}

fn named(name: &str) -> Arc<ContainerSpec> {
    Arc::new(ContainerSpec { name: name.into(), ..Default::default() })
}

fn exit(code: i32, finished_at: Nanos) -> Exit {
    Exit { code, signal: None, finished_at }
}

impl Bench {
    fn new() -> Self {
        let pod = Pod::new(PodId::from_bytes(&[1; 32]), Arc::new(PodSpec::default()), 5);
        Self { pod, now: 10 * SECOND, next_ticket: 1, effects: vec![], replies: BTreeMap::new(), over: false }
    }

    /// A pod that is ready.
    fn ready() -> Self {
        let mut bench = Self::new();
        bench.ask(Request::Run);
        bench.outcome(Outcome::PodSetUp(Ok(PodNetwork::default())));
        bench.effects.clear();
        bench
    }

    /// A ready pod with container 1 running.
    fn running() -> Self {
        let mut bench = Self::ready();
        bench.create(1, "web");
        bench.ask(Request::StartContainer(cid(1)));
        bench.started(1);
        bench.effects.clear();
        bench
    }

    fn input(&mut self, input: Input) {
        let step = self.pod.handle(self.now, input);
        self.effects.extend(step.effects);
        self.over |= step.over;
        for (ticket, reply) in step.replies {
            let before = self.replies.insert(ticket.0, reply);
            assert!(before.is_none(), "ticket {ticket:?} was answered twice");
        }
    }

    fn ask(&mut self, request: Request) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.input(Input::Request(Ticket(ticket), request));
        ticket
    }

    fn outcome(&mut self, outcome: Outcome) {
        self.input(Input::Outcome(outcome));
    }

    fn create(&mut self, n: u8, name: &str) -> u64 {
        let ticket = self.ask(Request::CreateContainer(cid(n), named(name)));
        let resolved = Resolved { stop_signal: 15, ..Default::default() };
        self.outcome(Outcome::ContainerCreated(cid(n), Ok(resolved)));
        ticket
    }

    fn started(&mut self, n: u8) {
        let started = Started { pid: 100 + u32::from(n), started_at: self.now };
        self.outcome(Outcome::ContainerStarted(cid(n), Ok(started)));
    }

    fn exited(&mut self, n: u8, code: i32) {
        self.input(Input::Exited(cid(n), exit(code, self.now), OomKilled(false)));
    }

    fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    fn ok(&self, ticket: u64) -> bool {
        matches!(self.replies.get(&ticket), Some(Ok(_)))
    }

    fn kind(&self, ticket: u64) -> Option<ErrorKind> {
        self.replies.get(&ticket).and_then(|r| r.as_ref().err()).map(|e| e.kind)
    }

    fn state(&self, n: u8) -> Option<ContainerState> {
        self.pod.view().containers.iter().find(|c| c.id == cid(n)).map(|c| c.state.clone())
    }
}

#[test]
fn a_retried_run_joins_the_work_of_the_first() {
    let mut bench = Bench::new();
    let first = bench.ask(Request::Run);
    let second = bench.ask(Request::Run);
    assert_eq!(bench.take_effects(), [Effect::SetUpPod]);
    assert!(bench.pod.view().hidden);
    bench.outcome(Outcome::PodSetUp(Ok(PodNetwork::default())));
    assert_eq!(bench.replies[&first], bench.replies[&second]);
    let third = bench.ask(Request::Run);
    assert_eq!(bench.replies[&first], bench.replies[&third]);
    assert!(bench.pod.view().ready);
}

#[test]
fn a_failed_set_up_leaves_no_pod() {
    let mut bench = Bench::new();
    let run = bench.ask(Request::Run);
    let stop = bench.ask(Request::Stop);
    bench.outcome(Outcome::PodSetUp(Err(Error::internal("no address left"))));
    assert_eq!(bench.kind(run), Some(ErrorKind::Internal));
    assert!(bench.ok(stop) && bench.over);
}

#[test]
fn a_stop_during_set_up_is_heard_when_the_set_up_ends() {
    let mut bench = Bench::new();
    let run = bench.ask(Request::Run);
    let stop = bench.ask(Request::Stop);
    bench.outcome(Outcome::PodSetUp(Ok(PodNetwork::default())));
    assert_eq!(bench.kind(run), Some(ErrorKind::Cancelled));
    assert_eq!(bench.take_effects(), [Effect::SetUpPod, Effect::TearDownPod]);
    bench.outcome(Outcome::PodTornDown(Ok(())));
    assert!(bench.ok(stop) && !bench.pod.view().ready);
}

#[test]
fn names_are_unique_and_a_retry_gets_the_same_container() {
    let mut bench = Bench::ready();
    let first = bench.ask(Request::CreateContainer(cid(1), named("web")));
    let retry = bench.ask(Request::CreateContainer(cid(2), named("web")));
    assert_eq!(bench.take_effects(), [Effect::CreateContainer(cid(1))]);
    bench.outcome(Outcome::ContainerCreated(cid(1), Ok(Resolved::default())));
    assert_eq!(bench.replies[&first], Ok(Reply::Container(cid(1))));
    assert_eq!(bench.replies[&retry], Ok(Reply::Container(cid(1))));
    let other = ContainerSpec { name: "web".into(), tty: true, ..Default::default() };
    let different = bench.ask(Request::CreateContainer(cid(3), Arc::new(other)));
    assert_eq!(bench.kind(different), Some(ErrorKind::AlreadyExists));
    bench.ask(Request::StartContainer(cid(1)));
    let late = bench.ask(Request::CreateContainer(cid(4), named("web")));
    assert_eq!(bench.kind(late), Some(ErrorKind::AlreadyExists));
}

#[test]
fn a_failed_create_frees_the_name() {
    let mut bench = Bench::ready();
    let create = bench.ask(Request::CreateContainer(cid(1), named("web")));
    bench.outcome(Outcome::ContainerCreated(cid(1), Err(Error::not_found("image", "web"))));
    assert_eq!(bench.kind(create), Some(ErrorKind::NotFound));
    let again = bench.create(2, "web");
    assert!(bench.ok(again));
}

#[test]
fn created_at_grows_within_one_tick() {
    let mut bench = Bench::ready();
    bench.create(2, "a");
    bench.create(1, "b");
    let view = bench.pod.view();
    assert!(view.containers[0].created_at < view.containers[1].created_at);
    assert_eq!(view.containers[0].id, cid(2));
}

#[test]
fn exit_before_the_start_reply_keeps_the_code() {
    let mut bench = Bench::ready();
    bench.create(1, "quick");
    let start = bench.ask(Request::StartContainer(cid(1)));
    bench.exited(1, 7);
    assert_eq!(bench.state(1), Some(ContainerState::Created));
    bench.started(1);
    assert!(bench.ok(start));
    assert!(matches!(bench.state(1), Some(ContainerState::Exited { code: 7, reason: Reason::Error, .. })));
}

#[test]
fn a_program_that_is_not_there_is_a_start_error() {
    let mut bench = Bench::ready();
    bench.create(1, "web");
    let start = bench.ask(Request::StartContainer(cid(1)));
    let failure = StartFailure { step: "execve".into(), errno: 2, about: "/nope".into() };
    bench.outcome(Outcome::ContainerStarted(cid(1), Err(StartError::Failed(failure))));
    let message = bench.replies[&start].as_ref().unwrap_err().message.clone();
    assert!(message.contains("execve") && message.contains("/nope") && message.contains("No such file"), "{message}");
    assert!(matches!(bench.state(1), Some(ContainerState::Exited { code: 128, reason: Reason::StartError, .. })));
}

#[test]
fn stop_is_heard_while_starting() {
    let mut bench = Bench::ready();
    bench.create(1, "web");
    bench.ask(Request::StartContainer(cid(1)));
    bench.take_effects();
    let stop = bench.ask(Request::StopContainer(cid(1), 0));
    assert_eq!(bench.take_effects(), []);
    bench.started(1);
    assert_eq!(bench.take_effects()[0], Effect::Kill(cid(1)));
    bench.exited(1, 137);
    assert!(bench.ok(stop));
}

#[test]
fn stop_signals_once_and_kills_at_the_deadline() {
    let mut bench = Bench::running();
    let stop = bench.ask(Request::StopContainer(cid(1), 30));
    let timer = Timer::StopContainer(cid(1));
    let deadline = bench.now + 30 * SECOND;
    assert_eq!(bench.take_effects(), [Effect::Signal(cid(1), 15), Effect::SetTimer(timer.clone(), deadline)]);
    bench.now = deadline;
    bench.input(Input::Timer(timer));
    assert_eq!(bench.take_effects()[0], Effect::Kill(cid(1)));
    assert!(!bench.replies.contains_key(&stop));
    bench.exited(1, 137);
    assert!(bench.ok(stop));
}

#[test]
fn a_shorter_timeout_shortens_the_wait_and_a_longer_one_does_not_lengthen_it() {
    let mut bench = Bench::running();
    let timer = Timer::StopContainer(cid(1));
    bench.ask(Request::StopContainer(cid(1), 60));
    bench.take_effects();
    bench.ask(Request::StopContainer(cid(1), 10));
    assert_eq!(bench.take_effects(), [Effect::SetTimer(timer.clone(), bench.now + 10 * SECOND)]);
    bench.ask(Request::StopContainer(cid(1), 100));
    assert_eq!(bench.take_effects(), []);
    bench.ask(Request::StopContainer(cid(1), 0));
    assert_eq!(bench.take_effects()[..2], [Effect::ClearTimer(timer), Effect::Kill(cid(1))]);
    bench.exited(1, 137);
    assert_eq!(bench.replies.values().filter(|r| r.is_ok()).count(), 7);
}

#[test]
fn stop_and_remove_of_what_is_over_or_unknown_succeed() {
    let mut bench = Bench::running();
    bench.exited(1, 0);
    for request in [
        Request::StopContainer(cid(1), 5),
        Request::StopContainer(cid(1), 0),
        Request::StopContainer(cid(9), 5),
        Request::RemoveContainer(cid(9)),
    ] {
        let ticket = bench.ask(request);
        assert!(bench.ok(ticket));
    }
    let unknown = bench.ask(Request::StartContainer(cid(9)));
    assert_eq!(bench.kind(unknown), Some(ErrorKind::NotFound));
}

#[test]
fn exited_is_kept_until_remove() {
    let mut bench = Bench::running();
    bench.exited(1, 0);
    assert!(matches!(bench.state(1), Some(ContainerState::Exited { code: 0, reason: Reason::Completed, .. })));
    let start = bench.ask(Request::StartContainer(cid(1)));
    assert_eq!(bench.kind(start), Some(ErrorKind::FailedPrecondition));
    let remove = bench.ask(Request::RemoveContainer(cid(1)));
    let again = bench.ask(Request::RemoveContainer(cid(1)));
    bench.outcome(Outcome::ContainerDeleted(cid(1), Ok(())));
    assert!(bench.ok(remove) && bench.ok(again));
    assert_eq!(bench.state(1), None);
}

#[test]
fn removing_a_running_container_kills_it_first() {
    let mut bench = Bench::running();
    let remove = bench.ask(Request::RemoveContainer(cid(1)));
    assert_eq!(bench.take_effects()[0], Effect::Kill(cid(1)));
    bench.exited(1, 137);
    assert!(bench.take_effects().contains(&Effect::DeleteContainer(cid(1))));
    bench.outcome(Outcome::ContainerDeleted(cid(1), Err(Error::internal("busy"))));
    assert_eq!(bench.kind(remove), Some(ErrorKind::Internal));
    let again = bench.ask(Request::RemoveContainer(cid(1)));
    bench.outcome(Outcome::ContainerDeleted(cid(1), Ok(())));
    assert!(bench.ok(again));
}

#[test]
fn the_oom_killer_is_named() {
    let mut bench = Bench::running();
    bench.input(Input::Exited(cid(1), exit(137, bench.now), OomKilled(true)));
    assert!(matches!(bench.state(1), Some(ContainerState::Exited { reason: Reason::OomKilled, code: 137, .. })));
}

#[test]
fn stopping_a_pod_kills_its_containers_and_then_tears_down() {
    let mut bench = Bench::running();
    bench.create(2, "idle");
    bench.take_effects();
    let stop = bench.ask(Request::Stop);
    let again = bench.ask(Request::Stop);
    assert_eq!(bench.take_effects()[0], Effect::Kill(cid(1)));
    assert!(!bench.pod.view().ready);
    bench.exited(1, 137);
    assert!(bench.take_effects().contains(&Effect::TearDownPod));
    bench.outcome(Outcome::PodTornDown(Ok(())));
    assert!(bench.ok(stop) && bench.ok(again));
    let third = bench.ask(Request::Stop);
    assert!(bench.ok(third));
    assert_eq!(bench.state(2), Some(ContainerState::Created));
    let create = bench.ask(Request::CreateContainer(cid(3), named("late")));
    assert_eq!(bench.kind(create), Some(ErrorKind::FailedPrecondition));
    let start = bench.ask(Request::StartContainer(cid(2)));
    assert_eq!(bench.kind(start), Some(ErrorKind::FailedPrecondition));
}

#[test]
fn a_failed_teardown_is_said_and_tried_again() {
    let mut bench = Bench::ready();
    let stop = bench.ask(Request::Stop);
    bench.outcome(Outcome::PodTornDown(Err(Error::internal("plugin hangs"))));
    assert_eq!(bench.kind(stop), Some(ErrorKind::Internal));
    bench.take_effects();
    bench.input(Input::Timer(Timer::RetryTearDown));
    assert_eq!(bench.take_effects(), [Effect::TearDownPod]);
    bench.outcome(Outcome::PodTornDown(Err(Error::internal("plugin hangs"))));
    let again = bench.ask(Request::Stop);
    bench.outcome(Outcome::PodTornDown(Ok(())));
    assert!(bench.ok(again));
}

#[test]
fn removing_a_pod_takes_everything_with_it() {
    let mut bench = Bench::running();
    bench.create(2, "idle");
    let remove = bench.ask(Request::Remove);
    bench.exited(1, 137);
    bench.outcome(Outcome::PodTornDown(Ok(())));
    let effects = bench.take_effects();
    assert!(effects.contains(&Effect::DeleteContainer(cid(1))) && effects.contains(&Effect::DeleteContainer(cid(2))));
    bench.outcome(Outcome::ContainerDeleted(cid(1), Ok(())));
    bench.outcome(Outcome::ContainerDeleted(cid(2), Ok(())));
    assert_eq!(bench.take_effects(), [Effect::DeletePod]);
    bench.outcome(Outcome::PodDeleted(Ok(())));
    assert!(bench.ok(remove) && bench.over);
}

#[test]
fn a_process_that_survives_its_kill_fails_the_stop_and_a_retry_kills_again() {
    let mut bench = Bench::running();
    let stop = bench.ask(Request::StopContainer(cid(1), 0));
    bench.take_effects();
    bench.input(Input::Timer(Timer::KillContainer(cid(1))));
    assert_eq!(bench.kind(stop), Some(ErrorKind::DeadlineExceeded));
    let again = bench.ask(Request::StopContainer(cid(1), 0));
    assert_eq!(bench.take_effects()[0], Effect::Kill(cid(1)));
    bench.exited(1, 137);
    assert!(bench.ok(again));
}

#[test]
fn updates_are_built_on_one_another() {
    let mut bench = Bench::running();
    let cpu = Resources { cpu_shares: Some(512), ..Default::default() };
    let memory = Resources { memory_limit: Some(1 << 20), ..Default::default() };
    let first = bench.ask(Request::UpdateResources(cid(1), cpu.clone()));
    let second = bench.ask(Request::UpdateResources(cid(1), memory.clone()));
    assert_eq!(bench.take_effects(), [Effect::UpdateResources(cid(1), cpu.clone())]);
    bench.outcome(Outcome::ResourcesUpdated(cid(1), Ok(())));
    assert_eq!(bench.take_effects(), [Effect::UpdateResources(cid(1), cpu.merged(&memory))]);
    bench.outcome(Outcome::ResourcesUpdated(cid(1), Err(Error::internal("memory is in use"))));
    assert!(bench.ok(first));
    assert_eq!(bench.kind(second), Some(ErrorKind::Internal));
    assert_eq!(bench.pod.view().containers[0].resources, cpu);
}

#[test]
fn an_update_before_the_start_is_whole_or_nothing() {
    let mut bench = Bench::ready();
    bench.create(1, "web");
    let memory = Resources { memory_limit: Some(200), ..Default::default() };
    let good = bench.ask(Request::UpdateResources(cid(1), memory.clone()));
    assert!(bench.ok(good));
    let bad = Resources { cpu_shares: Some(512), memory_swap_limit: Some(100), ..Default::default() };
    let bad = bench.ask(Request::UpdateResources(cid(1), bad));
    assert_eq!(bench.kind(bad), Some(ErrorKind::InvalidArgument));
    assert_eq!(bench.pod.view().containers[0].resources, memory);
}

#[test]
fn what_a_pod_may_use_is_kept_and_survives_the_daemon() {
    let mut bench = Bench::new();
    let resources = |shares| Resources { cpu_shares: Some(shares), ..Default::default() };
    let update = |overhead, containers| Request::UpdatePodResources { overhead, containers };
    let early = bench.ask(update(Some(resources(2)), None));
    assert_eq!(bench.kind(early), Some(ErrorKind::FailedPrecondition));
    bench.ask(Request::Run);
    bench.outcome(Outcome::PodSetUp(Ok(PodNetwork::default())));
    for (overhead, containers) in [(Some(10), Some(100)), (None, Some(200)), (Some(20), None)] {
        let asked = bench.ask(update(overhead.map(resources), containers.map(resources)));
        assert!(bench.ok(asked));
    }
    let expected = PodResources { overhead: resources(20), containers: resources(200) };
    assert_eq!(bench.pod.view().resources, expected);
    assert_eq!(Pod::restored(bench.pod.saved()).view().resources, expected);
    bench.ask(Request::Stop);
    let late = bench.ask(update(None, None));
    assert_eq!(bench.kind(late), Some(ErrorKind::FailedPrecondition));
}

#[test]
fn an_update_under_way_is_answered_when_its_container_is_removed() {
    let mut bench = Bench::running();
    let update = bench.ask(Request::UpdateResources(cid(1), Resources::default()));
    let queued = bench.ask(Request::UpdateResources(cid(1), Resources::default()));
    let reopen = bench.ask(Request::ReopenLog(cid(1)));
    bench.ask(Request::RemoveContainer(cid(1)));
    bench.exited(1, 137);
    bench.outcome(Outcome::ContainerDeleted(cid(1), Ok(())));
    for ticket in [update, reopen] {
        assert_eq!(bench.kind(ticket), Some(ErrorKind::NotFound));
    }
    assert!(bench.kind(queued).is_some());
    bench.outcome(Outcome::ResourcesUpdated(cid(1), Ok(())));
}

#[test]
fn a_lost_shim_stops_the_pod_and_says_that_the_end_is_unknown() {
    let mut bench = Bench::running();
    bench.input(Input::ShimLost);
    assert_eq!(bench.take_effects(), [Effect::Kill(cid(1)), Effect::TearDownPod]);
    assert!(!bench.pod.view().ready);
    assert!(matches!(bench.state(1), Some(ContainerState::Exited { code: 255, reason: Reason::Unknown, .. })));
}

#[test]
fn nobody_is_answered_after_going_away() {
    let mut bench = Bench::new();
    let run = bench.ask(Request::Run);
    bench.input(Input::Abandoned(Ticket(run)));
    bench.outcome(Outcome::PodSetUp(Ok(PodNetwork::default())));
    assert!(!bench.replies.contains_key(&run));
    let retry = bench.ask(Request::Run);
    assert!(bench.ok(retry));
}

#[test]
fn a_retry_after_an_abandoned_run_does_not_set_up_twice() {
    let mut bench = Bench::new();
    let run = bench.ask(Request::Run);
    bench.input(Input::Abandoned(Ticket(run)));
    let retry = bench.ask(Request::Run);
    assert_eq!(bench.take_effects(), [Effect::SetUpPod]);
    bench.outcome(Outcome::PodSetUp(Ok(PodNetwork::default())));
    assert!(bench.ok(retry));
}

fn restart(bench: &mut Bench, facts: Option<ShimFacts>) {
    bench.pod = Pod::restored(bench.pod.saved());
    bench.effects.clear();
    bench.input(Input::Recovered(facts));
}

#[test]
fn a_running_container_goes_on_after_a_restart_and_a_missed_exit_is_known() {
    let mut bench = Bench::running();
    let alive = Found { pid: 101, started_at: bench.now, exit: None };
    restart(&mut bench, Some(vec![(cid(1), alive)]));
    assert!(matches!(bench.state(1), Some(ContainerState::Running { pid: 101, .. })));
    assert!(bench.pod.view().ready && bench.take_effects().is_empty());
    let dead = Found { exit: Some((exit(3, bench.now + 1), OomKilled(false))), ..alive };
    restart(&mut bench, Some(vec![(cid(1), dead)]));
    assert!(matches!(bench.state(1), Some(ContainerState::Exited { code: 3, .. })));
}

#[test]
fn a_crash_while_starting_is_resolved_by_what_the_shim_knows() {
    let starting = || {
        let mut bench = Bench::ready();
        bench.create(1, "web");
        bench.ask(Request::StartContainer(cid(1)));
        bench
    };
    let mut bench = starting();
    restart(&mut bench, Some(vec![]));
    assert_eq!(bench.state(1), Some(ContainerState::Created));
    let retry = bench.ask(Request::StartContainer(cid(1)));
    bench.started(1);
    assert!(bench.ok(retry));
    let mut bench = starting();
    restart(&mut bench, Some(vec![(cid(1), Found { pid: 7, started_at: 1, exit: None })]));
    assert!(matches!(bench.state(1), Some(ContainerState::Running { pid: 7, .. })));
}

#[test]
fn a_pod_that_was_being_set_up_is_undone_after_a_crash() {
    let mut bench = Bench::new();
    bench.ask(Request::Run);
    restart(&mut bench, None);
    assert!(bench.pod.view().hidden || !bench.pod.view().ready);
    assert_eq!(bench.take_effects(), [Effect::TearDownPod]);
    bench.outcome(Outcome::PodTornDown(Ok(())));
    bench.outcome(Outcome::PodDeleted(Ok(())));
    assert!(bench.over);
}

#[test]
fn after_a_reboot_containers_are_over_and_the_pod_is_torn_down() {
    let mut bench = Bench::running();
    restart(&mut bench, None);
    assert_eq!(bench.take_effects(), [Effect::Kill(cid(1)), Effect::TearDownPod]);
    assert!(matches!(bench.state(1), Some(ContainerState::Exited { reason: Reason::Unknown, .. })));
}

mod property;
