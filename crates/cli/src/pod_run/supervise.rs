//! Stays with pods in the foreground: shows their logs, starts init containers in order, restarts what ended by the pod's
//! policy, and ends everything on a signal.
//!
//! One loop looks at all containers; it asks rather than subscribes, because asking works on every runtime and
//! survives the runtime's restart.

use std::time::{Duration, Instant};

use knarr_cri_api::v1;

use super::bring_up::PodRun;
use crate::client::Client;
use crate::failure::Failure;
use crate::fan_out;
use crate::log::{LogFile, Printer};
use crate::output::say;
use crate::pod_manifest::schema::{Container, RestartPolicy, Role};
use crate::signals::{SIGPIPE, Signals, exit_code_of};
use crate::teardown;

/// How often log files are looked at: quick enough for an eye, 20 system calls a second for each container.
const LOG_POLL: Duration = Duration::from_millis(50);

/// Every so many looks at the logs the runtime is asked for the containers' states.
const LOOKS_PER_STATUS: u32 = 4;

/// Delays between restarts as kubelet's: at once, then doubling from ten seconds to five minutes.
const FIRST_DELAY: Duration = Duration::from_secs(10);
const MAX_DELAY: Duration = Duration::from_secs(300);

/// A container that ran this long is no longer crashing in a loop.
const STEADY: Duration = Duration::from_secs(600);

/// What `supervise` ended with.
#[derive(Debug, PartialEq, Eq)]
pub struct End {
    /// What to exit with.
    pub exit_code: u8,
    /// A signal or a reader that went away, not the pods, ended it.
    pub interrupted: bool,
}

/// Runs the pods' containers until all have ended for good or a signal comes, and stops the pods either way.
///
/// # Errors
/// A container that cannot be created or started at all. The pods are left to the caller to remove.
pub async fn supervise(pods: Vec<PodRun<'_>>, printer: Printer, signals: &mut Signals) -> Result<End, Failure> {
    let mut supervisor = Supervisor::new(pods, printer);
    let end = supervisor.watch(signals).await?;
    let failures = supervisor.stop(signals).await;
    // Nobody reads any more after a broken pipe; what is said about that is said already.
    let _ = supervisor.show_logs();
    Failure::all(failures)?;
    Ok(end)
}

struct Supervisor<'a> {
    pods: Vec<Watched<'a>>,
    printer: Printer,
    runtime_is_silent: bool,
}

struct Watched<'a> {
    run: PodRun<'a>,
    members: Vec<Member<'a>>,
    failed: Option<u8>,
}

struct Member<'a> {
    container: &'a Container,
    state: State,
    attempt: u32,
    /// The attempt before, kept for `knarr logs --previous`.
    previous: Option<(String, u32)>,
    backoff: Backoff,
    source: usize,
    log: Option<LogFile>,
}

enum State {
    NotYet,
    Running { id: String, since: Instant },
    Waiting { id: String, until: Instant },
    Done { code: i32 },
}

/// What the end of a container means.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Restart,
    Done,
    PodFailed,
}

fn after_exit(role: Role, policy: RestartPolicy, code: i32) -> Next {
    match (role, policy, code) {
        (Role::Sidecar, ..) => Next::Restart,
        (Role::Init | Role::Main, RestartPolicy::OnFailure, 0) | (Role::Init, RestartPolicy::Always, 0) => Next::Done,
        (Role::Init | Role::Main, RestartPolicy::Always | RestartPolicy::OnFailure, _) => Next::Restart,
        (Role::Init, RestartPolicy::Never, 0) | (Role::Main, RestartPolicy::Never, _) => Next::Done,
        (Role::Init, RestartPolicy::Never, _) => Next::PodFailed,
    }
}

#[derive(Debug, Default)]
struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    /// The delay before the next start of a container that ran for `ran`.
    fn next(&mut self, ran: Duration) -> Duration {
        let delay = match self.last {
            _ if ran >= STEADY => Duration::ZERO,
            None => Duration::ZERO,
            Some(Duration::ZERO) => FIRST_DELAY,
            Some(last) => (last * 2).min(MAX_DELAY),
        };
        self.last = Some(delay);
        delay
    }
}

/// The first container's code; where that is 0, the first other one that failed.
fn overall_code(codes: impl IntoIterator<Item = i32>) -> u8 {
    let code = codes.into_iter().find(|code| *code != 0).unwrap_or(0);
    // Programs see the low eight bits only; what is not 0 must not become 0.
    match u8::try_from(code & 0xff) {
        Ok(0) if code != 0 => 255,
        Ok(code) => code,
        Err(_) => 255,
    }
}

impl<'a> Supervisor<'a> {
    fn new(pods: Vec<PodRun<'a>>, mut printer: Printer) -> Self {
        let sources: usize = pods.iter().map(|run| run.pod.all_containers().count()).sum();
        let several_pods = pods.len() > 1;
        let watched = pods.into_iter().map(|run| {
            let pod = run.pod;
            let members = pod.all_containers().map(|container| {
                let prefix = match (sources, several_pods) {
                    (1, _) => String::new(),
                    (_, false) => format!("[{}]", container.name),
                    (_, true) => format!("[{}/{}]", pod.name, container.name),
                };
                Member {
                    container,
                    state: State::NotYet,
                    attempt: 0,
                    previous: None,
                    backoff: Backoff::default(),
                    source: printer.add_source(prefix),
                    log: None,
                }
            });
            let members = members.collect();
            Watched { run, members, failed: None }
        });
        let pods = watched.collect();
        Self { pods, printer, runtime_is_silent: false }
    }

    async fn watch(&mut self, signals: &mut Signals) -> Result<End, Failure> {
        let mut ticks = tokio::time::interval(LOG_POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looks = 0_u32;
        loop {
            tokio::select! {
                biased;
                signal = signals.next() => return Ok(End { exit_code: exit_code_of(signal), interrupted: true }),
                _ = ticks.tick() => {}
            }
            if looks.is_multiple_of(LOOKS_PER_STATUS) {
                let Self { pods, printer, runtime_is_silent } = self;
                for pod in pods.iter_mut() {
                    pod.look(printer, runtime_is_silent).await?;
                    pod.start_what_is_due(printer).await?;
                }
            }
            looks = looks.wrapping_add(1);
            if self.show_logs().is_err() {
                return Ok(End { exit_code: exit_code_of(SIGPIPE), interrupted: true });
            }
            if self.pods.iter().all(Watched::is_over) {
                let codes = self.pods.iter().flat_map(Watched::codes);
                return Ok(End { exit_code: overall_code(codes), interrupted: false });
            }
        }
    }

    fn show_logs(&mut self) -> Result<(), Failure> {
        for member in self.pods.iter_mut().flat_map(|pod| &mut pod.members) {
            member.show_log(&mut self.printer);
        }
        self.printer.flush()
    }

    /// Stops all pods at once. A second signal kills what has not ended yet.
    async fn stop(&mut self, signals: &mut Signals) -> Vec<Failure> {
        let started: Vec<(Client, String, String)> = self
            .pods
            .iter()
            .filter(|pod| !pod.run.sandbox_id.is_empty())
            .map(|pod| (pod.run.client(), pod.run.sandbox_id.clone(), pod.run.pod.name.clone()))
            .collect();
        let stops = fan_out::each(started.clone(), |(client, id, name)| async move {
            teardown::stop_pod(&client, &id, &name, None).await
        });
        tokio::pin!(stops);
        let mut kills = None;
        let mut ticks = tokio::time::interval(LOG_POLL);
        loop {
            tokio::select! {
                outcomes = &mut stops => return outcomes.into_iter().flatten().flatten().collect(),
                _ = signals.next(), if kills.is_none() => {
                    say("killing what has not ended");
                    // A stop with a shorter grace period shortens the one under way; the stops above report the outcome.
                    kills = Some(tokio::spawn(kill_all(started.clone())));
                }
                _ = ticks.tick() => {
                    let _ = self.show_logs();
                }
            }
        }
    }
}

async fn kill_all(pods: Vec<(Client, String, String)>) {
    for (client, id, _) in pods {
        let Ok(containers) = client.containers(Some(&id)).await else { continue };
        let running = containers.into_iter().filter(|one| one.state == v1::ContainerState::ContainerRunning as i32);
        fan_out::each(running, |container| {
            let client = client.clone();
            async move { teardown::stop_container(&client, &container.id, "", 0).await.is_ok() }
        })
        .await;
    }
}

impl Watched<'_> {
    /// All main containers have ended for good, or one failed so that the others will never start.
    fn is_over(&self) -> bool {
        let ended = |member: &Member<'_>| matches!(member.state, State::Done { .. });
        self.failed.is_some() || self.members.iter().filter(|one| one.container.role == Role::Main).all(ended)
    }

    fn codes(&self) -> Vec<i32> {
        if let Some(code) = self.failed {
            return vec![i32::from(code)];
        }
        let main = self.members.iter().filter(|member| member.container.role == Role::Main);
        main.filter_map(|member| if let State::Done { code } = member.state { Some(code) } else { None }).collect()
    }

    /// Asks the runtime for every container that runs.
    async fn look(&mut self, printer: &mut Printer, runtime_is_silent: &mut bool) -> Result<(), Failure> {
        let policy = self.run.pod.restart_policy;
        let several = self.members.len() > 1;
        for member in &mut self.members {
            let State::Running { id, since } = &member.state else { continue };
            let status = match self.run.client().container(id).await {
                Ok(status) => status,
                Err(failure) => {
                    // Containers live on without their runtime's daemon, and so do we.
                    if !std::mem::replace(runtime_is_silent, true) {
                        say(&format!("warning: {failure}; waiting for the runtime to come back"));
                    }
                    return Ok(());
                }
            };
            *runtime_is_silent = false;
            let exited = |status: &v1::ContainerStatus| status.state == v1::ContainerState::ContainerExited as i32;
            let (code, gone) = match status {
                Some(status) if exited(&status) => (status.exit_code, false),
                Some(_) => continue,
                None => (exit_code_of(9).into(), true),
            };
            let (id, ran) = (id.clone(), since.elapsed());
            member.end_log(printer);
            let name = &member.container.name;
            let mut next = if gone { Next::Done } else { after_exit(member.container.role, policy, code) };
            if next == Next::Restart && !self.run.is_ready().await {
                say(&format!("container {name} ended with exit code {code}; its pod was stopped by somebody else"));
                next = Next::Done;
            }
            match next {
                Next::Done => {
                    if code != 0 && several {
                        say(&format!("container {name} ended with exit code {code}"));
                    }
                    member.state = State::Done { code };
                }
                Next::Restart => {
                    let delay = member.backoff.next(ran);
                    let when = if delay.is_zero() { "now".to_owned() } else { format!("in {} s", delay.as_secs()) };
                    say(&format!("container {name} ended with exit code {code}; it is started again {when}"));
                    member.state = State::Waiting { id, until: Instant::now() + delay };
                }
                Next::PodFailed => {
                    say(&format!("init container {name} failed with exit code {code}, and so the pod has failed"));
                    member.state = State::Done { code };
                    self.failed = Some(overall_code([code]));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Starts what may start now: in order, and no further than an init container that has not ended.
    async fn start_what_is_due(&mut self, printer: &mut Printer) -> Result<(), Failure> {
        for index in 0..self.members.len() {
            if self.failed.is_some() || self.is_over() {
                return Ok(());
            }
            let Self { run, members, .. } = self;
            let member = &mut members[index];
            match &member.state {
                State::NotYet => member.start_first(run).await?,
                State::Waiting { id, until } if *until <= Instant::now() => {
                    let id = id.clone();
                    member.start_again(run, id, printer).await;
                }
                State::Running { .. } | State::Waiting { .. } | State::Done { .. } => {}
            }
            let blocks = member.container.role == Role::Init && !matches!(member.state, State::Done { code: 0 });
            if blocks {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Member<'_> {
    /// A container that cannot even be started once is a mistake in the manifest, which no repetition mends.
    async fn start_first(&mut self, run: &PodRun<'_>) -> Result<(), Failure> {
        let id = run.create_container(self.container, 0).await?;
        self.log = Some(LogFile::new(run.log_file(self.container, 0), None));
        run.start_container(self.container, &id).await?;
        self.state = State::Running { id, since: Instant::now() };
        Ok(())
    }

    async fn start_again(&mut self, run: &PodRun<'_>, ended: String, printer: &mut Printer) {
        if let Some((id, attempt)) = self.previous.take()
            && let Err(failure) = run.remove_container(self.container, &id, attempt).await
        {
            say(&format!("warning: {failure}"));
        }
        let attempt = self.attempt + 1;
        let started = match run.create_container(self.container, attempt).await {
            Ok(id) => run
                .start_container(self.container, &id)
                .await
                .map(|()| id.clone())
                .map_err(|failure| (Some(id), failure)),
            Err(failure) => Err((None, failure)),
        };
        self.end_log(printer);
        match started {
            Ok(id) => {
                self.previous = Some((ended, self.attempt));
                self.attempt = attempt;
                self.log = Some(LogFile::new(run.log_file(self.container, attempt), None));
                self.state = State::Running { id, since: Instant::now() };
            }
            Err((made, failure)) => {
                let delay = self.backoff.next(Duration::ZERO);
                say(&format!("warning: {failure}; the next attempt is in {} s", delay.as_secs()));
                if let Some(id) = made
                    && let Err(failure) = run.remove_container(self.container, &id, attempt).await
                {
                    say(&format!("warning: {failure}"));
                }
                self.state = State::Waiting { id: ended, until: Instant::now() + delay };
            }
        }
    }

    fn show_log(&mut self, printer: &mut Printer) {
        let Some(log) = &mut self.log else { return };
        let source = self.source;
        if let Err(error) = log.read_new(&mut |line| printer.take(source, line)) {
            say(&format!("warning: cannot read {}: {error}", log.path().display()));
            self.log = None;
        }
    }

    fn end_log(&mut self, printer: &mut Printer) {
        let Some(mut log) = self.log.take() else { return };
        let source = self.source;
        if let Err(error) = log.finish(&mut |line| printer.take(source, line)) {
            say(&format!("warning: cannot read {}: {error}", log.path().display()));
        }
        printer.end_source(source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_end_means_depends_on_role_policy_and_code() {
        use RestartPolicy::{Always, Never, OnFailure};
        for (role, policy, code, next) in [
            (Role::Main, Always, 0, Next::Restart),
            (Role::Main, Always, 1, Next::Restart),
            (Role::Main, OnFailure, 0, Next::Done),
            (Role::Main, OnFailure, 1, Next::Restart),
            (Role::Main, Never, 0, Next::Done),
            (Role::Main, Never, 1, Next::Done),
            (Role::Init, Always, 0, Next::Done),
            (Role::Init, Always, 1, Next::Restart),
            (Role::Init, OnFailure, 0, Next::Done),
            (Role::Init, OnFailure, 1, Next::Restart),
            (Role::Init, Never, 0, Next::Done),
            (Role::Init, Never, 1, Next::PodFailed),
            (Role::Sidecar, Never, 0, Next::Restart),
            (Role::Sidecar, Always, 1, Next::Restart),
        ] {
            assert_eq!(after_exit(role, policy, code), next, "{role:?} {policy:?} {code}");
        }
    }

    #[test]
    fn a_crash_loop_slows_down_and_a_steady_run_forgives() {
        let mut backoff = Backoff::default();
        let delays: Vec<u64> = (0..8).map(|_| backoff.next(Duration::from_secs(1)).as_secs()).collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.next(STEADY), Duration::ZERO);
        assert_eq!(backoff.next(Duration::ZERO), FIRST_DELAY);
    }

    #[test]
    fn the_first_failure_is_the_commands_exit_code() {
        assert_eq!(overall_code([0, 0]), 0);
        assert_eq!(overall_code([0, 3, 4]), 3);
        assert_eq!(overall_code([7, 3]), 7);
        assert_eq!(overall_code([-1]), 255);
        assert_eq!(overall_code([256]), 255);
        assert_eq!(overall_code([]), 0);
    }
}
