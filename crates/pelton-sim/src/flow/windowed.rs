//! Callers that each keep a window of calls in flight at each replica, against modelled backends.

mod breaker;
mod caller;

use pelton_core::Time;

use self::caller::{Caller, Item, Lane};
use super::backend::{Answer, Call, Effect, Host};
use super::clock::{Agenda, at, between, seconds};
use super::draw::Draws;
use super::record::Record;
use super::scenario::{Backend, Scenario};
use super::window::{Ended, Window};

/// How much callers may have in flight.
pub enum Limits<'a> {
    /// One window for each caller and replica, made by this.
    Windows(&'a dyn Fn(Who) -> Box<dyn Window>),
    /// All callers are one, with these windows: by regime, then by replica.
    Planned(&'a [Vec<f64>]),
}

/// Whose window it is.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    pub caller: usize,
    pub callers: usize,
    pub replica: usize,
}

/// Callers' draws begin here, those of the backends elsewhere.
const CALLERS: u64 = 0;
const HOSTS: u64 = 1 << 32;

/// Plays a scenario under a seed.
pub fn play(scenario: &Scenario, seed: u64, limits: &Limits<'_>) -> Record {
    let callers = if matches!(limits, Limits::Planned(_)) { 1 } else { scenario.callers.number };
    let mut world = World {
        scenario,
        limits,
        agenda: Agenda::default(),
        regime: 0,
        callers: (0..callers)
            .map(|caller| {
                let lane = |replica| match limits {
                    Limits::Windows(make) => {
                        Lane::new(Some(make(Who { caller, callers, replica })), caller + replica)
                    }
                    Limits::Planned(_) => Lane::new(None, caller + replica),
                };
                let lanes = (0..scenario.replicas()).map(lane).collect();
                Caller::new(Draws::new(seed, CALLERS + caller as u64), lanes, caller)
            })
            .collect(),
        hosts: (scenario.regimes[0].replicas.iter().enumerate())
            .map(|(i, replica)| Host::new(replica, Draws::new(seed, HOSTS + i as u64)))
            .collect(),
        calls: Vec::new(),
        free: Vec::new(),
        effects: Vec::new(),
        record: Record::new(scenario, callers),
    };
    world.play();
    world.record
}

enum Event {
    Shift(usize),
    Arrival(usize),
    /// A caller looks whether it may send.
    Look(usize),
    Request(u32),
    Reply(u32, Answer),
    Alarm(usize, super::backend::Alarm),
    /// A place in the window has rested after a refusal.
    Rested {
        caller: usize,
        replica: usize,
    },
}

struct Sent {
    caller: usize,
    replica: usize,
    items: Vec<Item>,
    cost: f64,
    output: u32,
    at: Time,
    in_flight: f64,
    source_limited: bool,
}

struct World<'a> {
    scenario: &'a Scenario,
    limits: &'a Limits<'a>,
    agenda: Agenda<Event>,
    regime: usize,
    callers: Vec<Caller>,
    hosts: Vec<Host>,
    calls: Vec<Sent>,
    free: Vec<u32>,
    effects: Vec<Effect>,
    record: Record,
}

impl World<'_> {
    fn play(&mut self) {
        let scenario = self.scenario;
        for (i, regime) in scenario.regimes.iter().enumerate().skip(1) {
            self.agenda.at(at(regime.at), Event::Shift(i));
        }
        // Callers do not begin in step.
        for caller in 0..self.callers.len() {
            let begins = at((caller as f64 * 0.37) % 1.0 * scenario.callers.deadline * 0.2);
            self.agenda.at(begins, Event::Look(caller));
            self.agenda.at(begins, Event::Arrival(caller));
        }
        while let Some(event) = self.agenda.next_before(at(scenario.length)) {
            let now = self.agenda.now();
            if self.record.wants_sample(now) {
                let in_flight = self.callers.iter().flat_map(|c| &c.lanes).map(|lane| lane.in_flight).sum();
                self.record.sample(now, in_flight, 0.0);
            }
            match event {
                Event::Shift(regime) => self.shift(regime),
                Event::Arrival(caller) => self.arrival(caller),
                Event::Look(caller) => {
                    self.callers[caller].looks_at = None;
                    self.send(caller);
                }
                Event::Request(call) => self.request(call),
                Event::Reply(call, answer) => self.reply(call, answer),
                Event::Alarm(host, alarm) => {
                    let mut effects = std::mem::take(&mut self.effects);
                    self.hosts[host].wake(alarm, now, &mut effects);
                    self.apply(host, effects);
                }
                Event::Rested { caller, replica } => {
                    self.callers[caller].lanes[replica].in_flight -= 1.0;
                    self.send(caller);
                }
            }
        }
        self.record.preempted = self.hosts.iter().map(Host::preempted).sum();
    }

    fn work(&self) -> &super::scenario::Work {
        &self.scenario.regimes[self.regime].work
    }

    // --- callers ---

    fn shift(&mut self, regime: usize) {
        let was_open = self.work().rate.is_some();
        self.regime = regime;
        for host in 0..self.hosts.len() {
            let mut effects = std::mem::take(&mut self.effects);
            let replica = &self.scenario.regimes[regime].replicas[host];
            self.hosts[host].shift(replica, self.agenda.now(), &mut effects);
            self.apply(host, effects);
        }
        for caller in 0..self.callers.len() {
            if !was_open {
                self.agenda.after(0.0, Event::Arrival(caller));
            }
            self.send(caller);
        }
    }

    /// An item comes, where the source is not saturated, and the next one is awaited.
    fn arrival(&mut self, caller: usize) {
        let now = self.agenda.now();
        let Some(each) = self.work().rate_of_one(seconds(now), self.callers.len()) else { return };
        let item = self.callers[caller].draw(&self.scenario.regimes[self.regime].work, now);
        self.callers[caller].waiting.push_back(item);
        let next = self.callers[caller].draws.exponential(1.0 / each);
        self.agenda.after(next, Event::Arrival(caller));
        self.send(caller);
    }

    fn look_at(&mut self, caller: usize, time: Time) {
        let looks_at = &mut self.callers[caller].looks_at;
        if looks_at.is_none_or(|at| time < at) {
            *looks_at = Some(time);
            self.agenda.at(time, Event::Look(caller));
        }
    }

    /// Sends while there is something to send and a window with room.
    fn send(&mut self, caller: usize) {
        let (now, scenario) = (self.agenda.now(), self.scenario);
        let saturated = self.work().rate.is_none();
        let most = scenario.callers.items_per_call;
        loop {
            if !saturated {
                self.give_up(caller);
            }
            if !saturated && self.callers[caller].has_nothing() {
                return;
            }
            let planned = match self.limits {
                Limits::Planned(windows) => Some(windows[self.regime].as_slice()),
                Limits::Windows(_) => None,
            };
            let replica = match self.callers[caller].choose(planned, now) {
                caller::Choice::Send(replica) => replica,
                caller::Choice::Look(time) => return self.look_at(caller, time),
                caller::Choice::Wait => return,
            };
            let mut items = self
                .free
                .last()
                .map_or_else(Vec::new, |&key| std::mem::take(&mut self.calls[key as usize].items));
            let work = &scenario.regimes[self.regime].work;
            self.callers[caller].take(work, saturated, most, now, &mut items);
            let source_limited = !saturated && self.callers[caller].waiting.is_empty();
            let in_flight = self.callers[caller].lanes[replica].send(now);
            let sent = Sent {
                caller,
                replica,
                cost: items.iter().map(|item| item.cost).sum(),
                output: items.iter().map(|item| item.output).sum(),
                items,
                at: now,
                in_flight,
                source_limited,
            };
            let key = match self.free.pop() {
                Some(key) => {
                    self.calls[key as usize] = sent;
                    key
                }
                None => {
                    self.calls.push(sent);
                    (self.calls.len() - 1) as u32
                }
            };
            self.record.calls += 1;
            self.agenda.after(scenario.callers.network, Event::Request(key));
        }
    }

    /// Items whose deadline has passed are not worth sending.
    fn give_up(&mut self, caller: usize) {
        let (now, scenario) = (self.agenda.now(), self.scenario);
        let caller = &mut self.callers[caller];
        for queue in [&mut caller.again, &mut caller.waiting] {
            while queue
                .front()
                .is_some_and(|item| between(item.arrived, now) > scenario.deadline(item.output))
            {
                queue.pop_front();
                self.record.late += 1.0;
            }
        }
    }

    fn reply(&mut self, key: u32, answer: Answer) {
        let (now, scenario, regime) = (self.agenda.now(), self.scenario, self.regime);
        let saturated = self.work().rate.is_none();
        let sent = &mut self.calls[key as usize];
        let (caller, replica) = (sent.caller, sent.replica);
        let mut items = std::mem::take(&mut sent.items);
        let deadline = scenario.deadline(sent.output);
        let took = between(sent.at, now);
        let lane = &mut self.callers[caller].lanes[replica];
        match answer {
            Answer::Done if saturated => {
                self.record.answered(now, regime, caller, items.len() as f64, took / deadline);
            }
            Answer::Done => {
                for item in &items {
                    let lateness = between(item.arrived, now) / scenario.deadline(item.output);
                    self.record.answered(now, regime, caller, 1.0, lateness);
                }
            }
            Answer::Refused => self.record.refused += 1,
            Answer::Failed => self.record.failed += 1,
        }
        if let Some(window) = &mut lane.window {
            window.ended(&Ended {
                now: seconds(now),
                sent: seconds(sent.at),
                took,
                lateness: took / deadline,
                answer,
                in_flight: sent.in_flight,
                source_limited: sent.source_limited,
            });
        }
        let probe = self.callers[caller].ended(replica, answer, took, now);
        if answer != Answer::Done {
            self.callers[caller].again.extend(items.drain(..));
        }
        items.clear();
        self.calls[key as usize].items = items;
        self.free.push(key);
        if answer == Answer::Refused {
            let rests = scenario.callers.retry_after * (0.5 + self.callers[caller].draws.uniform());
            self.agenda.after(rests, Event::Rested { caller, replica });
        } else {
            self.callers[caller].lanes[replica].in_flight -= 1.0;
        }
        if let Some(probe) = probe {
            self.look_at(caller, probe);
        }
        self.send(caller);
    }

    // --- backends ---

    fn request(&mut self, key: u32) {
        let sent = &self.calls[key as usize];
        let host = sent.replica;
        let call =
            Call { key, items: sent.items.len() as f64, cost: sent.cost, output: f64::from(sent.output) };
        let mut effects = std::mem::take(&mut self.effects);
        self.hosts[host].arrive(call, self.agenda.now(), &mut effects);
        self.apply(host, effects);
    }

    fn apply(&mut self, host: usize, mut effects: Vec<Effect>) {
        for effect in effects.drain(..) {
            match effect {
                Effect::Answer { key, answer, leaves } => {
                    self.agenda.after(leaves + self.scenario.callers.network, Event::Reply(key, answer));
                }
                Effect::Wake { at, alarm } => self.agenda.at(at, Event::Alarm(host, alarm)),
                Effect::OutOfMemory => self.record.out_of_memory += 1,
                Effect::Loaded => {}
            }
        }
        self.effects = effects;
    }
}

/// How long the samples of windows are that follow round-trip time.
pub fn sample_length(scenario: &Scenario) -> f64 {
    match scenario.regimes[0].replicas[0].backend {
        Backend::Cpu(_) if scenario.callers.deadline < 0.05 => 0.1,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests;
