//! Servers that are not ours: the project's caller of those, in virtual time, against modelled ones.

use std::collections::BTreeMap;
use std::time::Duration;

use pelton_core::call::Holder;
use pelton_core::declaration::BatchLimits;
use pelton_core::error::{Error, Fate, Kind, Retry};
use pelton_core::{RequestId, Time};
use pelton_remote::state::{Action, CallKey, Cause, Event as Happened, Failure, Settings, Start, State};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::caller::CLIENTS;
use super::instance::HOSTS;
use super::service::{Service, sums};
use super::source::Source;
use crate::flow::backend::{Alarm, Answer, Call, Effect, Host};
use crate::flow::clock::{Agenda, at, seconds};
use crate::flow::draw::Draws;
use crate::flow::record::Record;
use crate::flow::scenario::Scenario;

/// Plays a scenario under a seed.
pub(super) fn play(scenario: &Scenario, seed: u64) -> Record {
    let service = Service::of(scenario);
    let callers = scenario.callers.number;
    let hosts = scenario.regimes[0].replicas.iter().enumerate();
    let mut world = World {
        agenda: Agenda::default(),
        regime: 0,
        callers: (0..callers).map(|i| Caller::new(&service, scenario, seed, i)).collect(),
        hosts: hosts.map(|(i, replica)| Host::new(replica, Draws::new(seed, HOSTS + i as u64))).collect(),
        calls: BTreeMap::new(),
        next_key: 0,
        record: Record::new(scenario, callers),
        scenario,
        service,
    };
    world.play();
    world.record
}

struct Caller {
    state: State,
    source: Source,
    tick: Option<Time>,
    /// Calls that are awaited, and what they are called here.
    calls: BTreeMap<CallKey, u32>,
}

impl Caller {
    fn new(service: &Service, scenario: &Scenario, seed: u64, place: usize) -> Self {
        let declaration = &service.declaration;
        let settings = Settings {
            service: declaration.name.clone(),
            methods: service.methods.clone(),
            rows: vec![1],
            endpoints: scenario.replicas(),
            batch: BatchLimits::default(),
            retry: declaration.retry,
            timeout: None,
            attempt_timeout: None,
            weight: declaration.weight.clone(),
        };
        let rng = StdRng::seed_from_u64(seed ^ (CLIENTS + place as u64));
        let state = State::new(settings, rng, Time::ZERO);
        Caller { state, source: Source::new(seed, place), tick: None, calls: BTreeMap::new() }
    }
}

/// A call that was made.
struct Made {
    caller: usize,
    call: CallKey,
    host: usize,
    cost: f64,
    output: u32,
    sent: Time,
}

enum Event {
    Shift(usize),
    Arrival(usize),
    Tick(usize),
    Request(u32),
    Reply(u32, Answer),
    Alarm(usize, Alarm),
}

struct World<'a> {
    scenario: &'a Scenario,
    service: Service,
    agenda: Agenda<Event>,
    regime: usize,
    callers: Vec<Caller>,
    hosts: Vec<Host>,
    calls: BTreeMap<u32, Made>,
    next_key: u32,
    record: Record,
}

impl World<'_> {
    fn play(&mut self) {
        let scenario = self.scenario;
        for (i, regime) in scenario.regimes.iter().enumerate().skip(1) {
            self.agenda.at(at(regime.at), Event::Shift(i));
        }
        for caller in 0..self.callers.len() {
            self.agenda.after(0.0, Event::Arrival(caller));
            self.fill(caller);
        }
        while let Some(event) = self.agenda.next_before(at(scenario.length)) {
            let now = self.agenda.now();
            if self.record.wants_sample(now) {
                let in_flight: usize = self.callers.iter().map(|c| c.state.sent()).sum();
                let windows = self.callers.iter().flat_map(|c| c.state.endpoints(now)).map(|e| e.window);
                self.record.sample(now, in_flight as f64, windows.sum());
            }
            self.happened(event, now);
        }
        self.record.again = self.callers.iter().map(|c| c.state.retries()).sum();
    }

    fn happened(&mut self, event: Event, now: Time) {
        match event {
            Event::Shift(regime) => self.shift(regime, now),
            Event::Arrival(caller) => self.arrival(caller, now),
            Event::Tick(caller) => {
                let this = &mut self.callers[caller];
                if this.tick.is_some_and(|at| at <= now) {
                    this.tick = None;
                }
                if this.state.wake_at().is_some_and(|due| due <= now) {
                    self.tell(caller, Happened::Tick);
                } else {
                    self.schedule(caller);
                }
            }
            Event::Request(key) => {
                let Some(&Made { host, cost, output, .. }) = self.calls.get(&key) else { return };
                let mut effects = Vec::new();
                let call = Call { key, items: 1.0, cost, output: f64::from(output) };
                self.hosts[host].arrive(call, now, &mut effects);
                self.apply(host, effects);
            }
            Event::Reply(key, answer) => self.reply(key, answer),
            Event::Alarm(host, alarm) => {
                let mut effects = Vec::new();
                self.hosts[host].wake(alarm, now, &mut effects);
                self.apply(host, effects);
            }
        }
    }

    fn shift(&mut self, regime: usize, now: Time) {
        self.regime = regime;
        for host in 0..self.hosts.len() {
            let mut effects = Vec::new();
            self.hosts[host].shift(&self.scenario.regimes[regime].replicas[host], now, &mut effects);
            self.apply(host, effects);
        }
        for caller in 0..self.callers.len() {
            // What has not been sent is of the work that was.
            let this = &self.callers[caller];
            let waits = |id: &RequestId| this.state.holder(*id) == Holder::Client;
            let old: Vec<RequestId> = this.source.unended().filter(waits).collect();
            if self.is_saturated() {
                self.fill_by(caller, old.len());
            } else {
                self.agenda.after(0.0, Event::Arrival(caller));
            }
            self.tell(caller, Happened::Cancelled(old));
        }
    }

    fn is_saturated(&self) -> bool {
        self.scenario.regimes[self.regime].work.rate.is_none()
    }

    fn arrival(&mut self, caller: usize, now: Time) {
        let work = &self.scenario.regimes[self.regime].work;
        let Some(each) = work.rate_of_one(seconds(now), self.callers.len()) else { return };
        let next = self.callers[caller].source.draws.exponential(1.0 / each);
        self.agenda.after(next, Event::Arrival(caller));
        self.fill_by(caller, 1);
    }

    fn fill(&mut self, caller: usize) {
        let state = &self.callers[caller].state;
        if self.is_saturated()
            && let Some(rows) = Source::lacks(state.unended() - state.sent(), self.scenario, &self.service)
        {
            self.fill_by(caller, rows);
        }
    }

    fn fill_by(&mut self, caller: usize, rows: usize) {
        let now = self.agenda.now();
        let work = &self.scenario.regimes[self.regime].work;
        let submissions = self.callers[caller].source.draw(work, rows, self.scenario, &self.service, now);
        for submission in submissions {
            let receiver = self.service.receiver.clone();
            self.tell(caller, Happened::Submitted { submission, receiver });
        }
    }

    fn tell(&mut self, caller: usize, event: Happened) {
        self.tell_of(caller, event, None);
    }

    /// `sent`: when the call was, of whose one request this is the end.
    fn tell_of(&mut self, caller: usize, event: Happened, sent: Option<Time>) {
        let now = self.agenda.now();
        for action in self.callers[caller].state.handle(event, now) {
            match action {
                Action::Start(start) => self.start(caller, &start),
                // The server goes on with it; its answer finds nobody.
                Action::Abort(call) => {
                    self.record.late += 1.0;
                    self.callers[caller].calls.remove(&call);
                }
                Action::Deliver(_, outcomes) => {
                    for outcome in outcomes {
                        let source = &mut self.callers[caller].source;
                        if let Some(sent) = sent {
                            source.sent(outcome.id, sent);
                        }
                        source.outcome(&outcome, self.scenario, self.regime, now, &mut self.record);
                    }
                }
            }
        }
        self.schedule(caller);
        self.fill(caller);
    }

    fn schedule(&mut self, caller: usize) {
        let this = &mut self.callers[caller];
        if let Some(due) = this.state.wake_at()
            && this.tick.is_none_or(|at| due < at)
        {
            this.tick = Some(due);
            self.agenda.at(due, Event::Tick(caller));
        }
    }

    fn start(&mut self, caller: usize, start: &Start) {
        let now = self.agenda.now();
        let key = self.next_key;
        self.next_key = self.next_key.wrapping_add(1);
        let (cost, output) = sums(&start.arguments);
        let Start { call, endpoint, .. } = *start;
        self.callers[caller].calls.insert(call, key);
        self.calls.insert(key, Made { caller, call, host: endpoint, cost, output, sent: now });
        self.record.calls += 1;
        self.agenda.after(self.scenario.callers.network, Event::Request(key));
    }

    fn reply(&mut self, key: u32, answer: Answer) {
        let Some(Made { caller, call, output, sent, .. }) = self.calls.remove(&key) else { return };
        if self.callers[caller].calls.remove(&call).is_none() {
            return;
        }
        let overload = |retry, cause, said: &str| {
            Err(Failure { error: Error::new(Kind::Overload, Fate::Refused, retry, said), cause })
        };
        let result = match answer {
            Answer::Done if output > 0 => Ok(self.service.answer(output)),
            Answer::Done => Ok(self.service.answers(1)),
            Answer::Refused => {
                self.record.refused += 1;
                let pause = Duration::from_secs_f64(self.scenario.callers.retry_after);
                overload(Retry::After(pause), Cause::Refused { pause: Some(pause) }, "the server answers 429")
            }
            Answer::Failed => {
                self.record.failed += 1;
                overload(Retry::Elsewhere, Cause::Endpoint, "the server answers 503")
            }
        };
        self.tell_of(caller, Happened::Ended { call, result }, Some(sent));
    }

    fn apply(&mut self, host: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Answer { key, answer, leaves } => {
                    self.agenda.after(leaves + self.scenario.callers.network, Event::Reply(key, answer));
                }
                Effect::Wake { at, alarm } => self.agenda.at(at, Event::Alarm(host, alarm)),
                Effect::OutOfMemory => self.record.out_of_memory += 1,
                Effect::Loaded => {}
            }
        }
    }
}
