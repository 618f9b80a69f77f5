//! Random histories of a pod against an outside that is as simple as it can be said.

use super::*;
use proptest::prelude::*;

/// What a client or the outside may do next.
#[derive(Debug, Clone)]
enum Act {
    Run,
    Stop,
    Remove,
    Create(u8),
    Start(u8),
    StopContainer(u8, i64),
    RemoveContainer(u8),
    Update(u8),
    UpdatePod,
    Reopen(u8),
    /// The effect at this place of those under way ends well or badly.
    Finish(usize, bool),
    Exit(u8),
    /// The next timer fires.
    Timer(usize),
    Restart,
    LoseShim,
    /// The client that asked last goes away.
    Abandon,
}

fn act() -> impl Strategy<Value = Act> {
    let n = 1..4u8;
    prop_oneof![
        1 => Just(Act::Run),
        1 => Just(Act::Stop),
        1 => Just(Act::Remove),
        3 => n.clone().prop_map(Act::Create),
        3 => n.clone().prop_map(Act::Start),
        2 => (n.clone(), -1..20i64).prop_map(|(n, t)| Act::StopContainer(n, t)),
        2 => n.clone().prop_map(Act::RemoveContainer),
        1 => n.clone().prop_map(Act::Update),
        1 => Just(Act::UpdatePod),
        1 => n.clone().prop_map(Act::Reopen),
        10 => (any::<prop::sample::Index>(), prop::bool::weighted(0.85)).prop_map(|(i, ok)| Act::Finish(i.index(64), ok)),
        3 => n.prop_map(Act::Exit),
        2 => any::<prop::sample::Index>().prop_map(|i| Act::Timer(i.index(8))),
        1 => Just(Act::Restart),
        1 => Just(Act::LoseShim),
        2 => Just(Act::Abandon),
    ]
}

/// The outside as simply as it can be said: which effects are under way and which processes live.
#[derive(Default)]
struct Toy {
    under_way: Vec<Effect>,
    alive: Vec<ContainerId>,
    timers: Vec<Timer>,
    asked: u64,
    abandoned: Vec<u64>,
}

impl Toy {
    fn absorb(&mut self, bench: &mut Bench) {
        for effect in bench.take_effects() {
            match effect {
                Effect::SetTimer(timer, _) => {
                    self.timers.retain(|t| *t != timer);
                    self.timers.push(timer);
                }
                Effect::ClearTimer(timer) => self.timers.retain(|t| *t != timer),
                Effect::Signal(..) => {}
                Effect::Kill(id) => {
                    if self.alive.contains(&id) {
                        self.die(bench, &id);
                    }
                }
                effect => {
                    let twice =
                        |e: &Effect| std::mem::discriminant(e) == std::mem::discriminant(&effect) && *e == effect;
                    assert!(!self.under_way.iter().any(twice), "{effect:?} was started twice");
                    if effect == Effect::TearDownPod {
                        assert!(self.alive.is_empty(), "torn down under living containers {:?}", self.alive);
                    }
                    self.under_way.push(effect);
                }
            }
        }
    }

    fn die(&mut self, bench: &mut Bench, id: &ContainerId) {
        self.alive.retain(|a| a != id);
        bench.now += 1;
        bench.input(Input::Exited(id.clone(), exit(137, bench.now), OomKilled(false)));
        self.absorb(bench);
    }

    fn finish(&mut self, bench: &mut Bench, index: usize, ok: bool) {
        if self.under_way.is_empty() {
            return;
        }
        let effect = self.under_way.remove(index % self.under_way.len());
        let done = |ok: bool| if ok { Ok(()) } else { Err(Error::internal("no")) };
        let outcome = match effect {
            Effect::SetUpPod => Outcome::PodSetUp(done(ok).map(|()| PodNetwork::default())),
            Effect::TearDownPod => Outcome::PodTornDown(done(ok)),
            Effect::DeletePod => Outcome::PodDeleted(done(ok)),
            Effect::CreateContainer(id) => {
                Outcome::ContainerCreated(id, done(ok).map(|()| Resolved { stop_signal: 15, ..Default::default() }))
            }
            Effect::StartContainer(id) => {
                if ok {
                    self.alive.push(id.clone());
                }
                let started = done(ok).map(|()| Started { pid: 9, started_at: bench.now });
                Outcome::ContainerStarted(id, started.map_err(StartError::Other))
            }
            Effect::DeleteContainer(id) => Outcome::ContainerDeleted(id, done(ok)),
            Effect::UpdateResources(id, _) => Outcome::ResourcesUpdated(id, done(ok)),
            Effect::ReopenLog(id) => Outcome::LogReopened(id, done(ok)),
            other => unreachable!("{other:?}"),
        };
        bench.outcome(outcome);
        self.absorb(bench);
    }

    fn restart(&mut self, bench: &mut Bench, shim: bool) {
        // What was asked before dies with the daemon; the processes do not.
        self.under_way.clear();
        self.timers.clear();
        bench.replies.clear();
        for ticket in 1..=self.asked {
            bench.replies.insert(ticket, Ok(Reply::Done));
        }
        let facts: ShimFacts =
            self.alive.iter().map(|id| (id.clone(), Found { pid: 9, started_at: bench.now, exit: None })).collect();
        bench.pod = Pod::restored(bench.pod.saved());
        if !shim {
            self.alive.clear();
        }
        bench.input(Input::Recovered(shim.then_some(facts)));
        self.absorb(bench);
    }

    fn act(&mut self, bench: &mut Bench, act: &Act) {
        bench.now += SECOND;
        let request = match act.clone() {
            Act::Run => Request::Run,
            Act::Stop => Request::Stop,
            Act::Remove => Request::Remove,
            Act::Create(n) => Request::CreateContainer(cid(n), named(&format!("c{n}"))),
            Act::Start(n) => Request::StartContainer(cid(n)),
            Act::StopContainer(n, t) => Request::StopContainer(cid(n), t),
            Act::RemoveContainer(n) => Request::RemoveContainer(cid(n)),
            Act::Update(n) => Request::UpdateResources(cid(n), Resources { cpu_shares: Some(2), ..Default::default() }),
            Act::UpdatePod => Request::UpdatePodResources { overhead: None, containers: Some(Resources::default()) },
            Act::Reopen(n) => Request::ReopenLog(cid(n)),
            Act::Finish(index, ok) => return self.finish(bench, index, ok),
            Act::Exit(n) => {
                if self.alive.contains(&cid(n)) {
                    self.die(bench, &cid(n));
                }
                return;
            }
            Act::Timer(index) => {
                if !self.timers.is_empty() {
                    let timer = self.timers.remove(index % self.timers.len());
                    bench.now += 100 * SECOND;
                    bench.input(Input::Timer(timer));
                    self.absorb(bench);
                }
                return;
            }
            Act::Restart => return self.restart(bench, true),
            Act::Abandon => {
                bench.input(Input::Abandoned(Ticket(self.asked)));
                self.abandoned.push(self.asked);
                return self.absorb(bench);
            }
            Act::LoseShim => {
                if self.under_way.iter().any(|e| matches!(e, Effect::SetUpPod | Effect::StartContainer(_))) {
                    return;
                }
                self.alive.clear();
                bench.input(Input::ShimLost);
                return self.absorb(bench);
            }
        };
        self.asked = bench.ask(request);
        self.absorb(bench);
    }

    /// Lets everything end well, as a client that retries Remove would.
    fn settle(&mut self, bench: &mut Bench) {
        for _ in 0..200 {
            if bench.over {
                return;
            }
            if self.under_way.is_empty() {
                self.act(bench, &Act::Remove);
            }
            while !self.under_way.is_empty() && !bench.over {
                self.finish(bench, 0, true);
            }
        }
        panic!("the pod cannot be removed: {:?}", bench.pod);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..Default::default() })]

    /// Whatever happened, a client that retries Remove ends with nothing left; no ticket is answered twice, none
    /// stays unanswered, no effect runs twice at once, nothing is torn down under a living process.
    #[test]
    fn every_history_can_be_removed_and_every_ticket_is_answered(acts in prop::collection::vec(act(), 0..60)) {
        let mut bench = Bench::new();
        let mut toy = Toy { asked: bench.ask(Request::Run), ..Default::default() };
        toy.absorb(&mut bench);
        for act in &acts {
            if bench.over {
                break;
            }
            toy.act(&mut bench, act);
            for container in &bench.pod.view().containers {
                let running = matches!(container.state, ContainerState::Running { .. });
                prop_assert!(!running || toy.alive.contains(&container.id), "{:?} is shown as running", container.id);
            }
        }
        toy.settle(&mut bench);
        prop_assert!(toy.alive.is_empty());
        for ticket in 1..=toy.asked {
            let heard = bench.replies.contains_key(&ticket) || toy.abandoned.contains(&ticket);
            prop_assert!(heard, "ticket {} was never answered", ticket);
        }
    }
}
