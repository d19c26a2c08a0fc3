//! The project's own client and instance, in virtual time: their state machines, nothing of them left out. Where the backend is somebody
//! else's, its caller of those ([`foreign`]).
//!
//! What the loops around them do in use is done here: messages take the network's delay, timers are kept, batches run on a
//! modelled backend, and control's news of instances that come and go reach the clients.

mod caller;
mod foreign;
mod instance;
mod service;
mod source;

use std::collections::BTreeMap;

use pelton_client::state as client;
use pelton_core::call::Outcome;
use pelton_core::endpoint::{Endpoint, EndpointDelta};
use pelton_core::error::{Error, Fate, Kind, Retry};
use pelton_core::{RequestId, RequestRun, Time};
use pelton_instance::state as server;
use pelton_link::Message;
use pelton_wire::{Frame, Welcome};

use self::caller::Caller;
use self::instance::Instance;
use self::service::Service;
use super::backend::{Alarm, Answer, Effect};
use super::clock::{Agenda, at, seconds};
use super::record::Record;
use super::scenario::{Backend, Scenario};

/// Numbers a connection on both of its sides.
type Connection = u64;

/// How many lives an instance has had.
type Life = u32;

/// Plays a scenario under a seed.
pub fn play(scenario: &Scenario, seed: u64) -> Record {
    match scenario.regimes[0].replicas[0].backend {
        Backend::Gateway(_) => foreign::play(scenario, seed),
        _ => play_counted(scenario, seed).record,
    }
}

/// A run, and what was said in it.
pub struct Counted {
    pub record: Record,
    /// Messages between callers and instances, by what they say.
    pub messages: BTreeMap<&'static str, u64>,
    /// News of endpoints that callers were given.
    pub deltas: u64,
}

/// The same, counting what is said.
pub fn play_counted(scenario: &Scenario, seed: u64) -> Counted {
    let service = Service::of(scenario);
    let callers = scenario.callers.number;
    let mut world = World {
        agenda: Agenda::default(),
        regime: 0,
        callers: (0..callers).map(|i| Caller::new(&service, seed, i)).collect(),
        instances: (scenario.regimes[0].replicas.iter().enumerate())
            .map(|(i, replica)| Instance::new(replica, seed, i))
            .collect(),
        links: BTreeMap::new(),
        next_connection: 0,
        record: Record::new(scenario, callers),
        messages: BTreeMap::new(),
        deltas: 0,
        scenario,
        service,
    };
    world.play();
    Counted { record: world.record, messages: world.messages, deltas: world.deltas }
}

/// To how many of a scenario's instances a client connects.
pub fn connections_of_a_caller(scenario: &Scenario) -> usize {
    let service = Service::of(scenario);
    let mut caller = Caller::new(&service, 1, 0);
    let endpoints = (0..scenario.replicas()).map(|i| service.endpoint(i, 1)).collect();
    let event = client::Event::Endpoints(EndpointDelta::Reset(endpoints));
    let actions = caller.state.handle(event, Time::ZERO);
    actions.iter().filter(|action| matches!(action, client::Action::Connect { .. })).count()
}

enum Event {
    Shift(usize),
    Arrival(usize),
    CallerTick(usize),
    InstanceTick(usize),
    /// Something for a client, as its loop would say it.
    ToCaller(usize, Box<client::Event>),
    /// Something for an instance in this life of its.
    ToInstance(usize, Life, Box<server::Event>),
    /// A client knocks at an instance.
    Knock {
        caller: usize,
        peer: u64,
        instance: usize,
        life: Life,
    },
    Ended {
        instance: usize,
        life: Life,
        key: u32,
        answer: Answer,
    },
    Alarm(usize, Alarm),
}

/// Who is at the ends of a connection.
#[derive(Clone, Copy)]
struct Link {
    caller: usize,
    peer: u64,
    instance: usize,
    life: Life,
}

struct World<'a> {
    scenario: &'a Scenario,
    service: Service,
    agenda: Agenda<Event>,
    regime: usize,
    callers: Vec<Caller>,
    instances: Vec<Instance>,
    links: BTreeMap<Connection, Link>,
    next_connection: Connection,
    record: Record,
    messages: BTreeMap<&'static str, u64>,
    deltas: u64,
}

impl World<'_> {
    fn play(&mut self) {
        let scenario = self.scenario;
        for (i, regime) in scenario.regimes.iter().enumerate().skip(1) {
            self.agenda.at(at(regime.at), Event::Shift(i));
        }
        let there = |i: &usize| !scenario.regimes[0].replicas[*i].removed;
        let all: Vec<usize> = (0..self.instances.len()).filter(there).collect();
        all.iter().for_each(|&instance| self.begin(instance));
        let endpoint = |&i: &usize| self.service.endpoint(i, self.instances[i].life);
        let endpoints: Vec<Endpoint> = all.iter().map(endpoint).collect();
        self.tell_all(|| EndpointDelta::Reset(endpoints.clone()));
        for caller in 0..self.callers.len() {
            self.agenda.after(0.0, Event::Arrival(caller));
            self.fill(caller);
        }
        while let Some(event) = self.agenda.next_before(at(scenario.length)) {
            let now = self.agenda.now();
            if self.record.wants_sample(now) {
                let in_flight: usize = self.callers.iter().map(|c| c.state.sent()).sum();
                let permits: u64 = self.instances.iter().map(Instance::permits).sum();
                self.record.sample(now, in_flight as f64, permits as f64);
            }
            self.happened(event, now);
        }
        self.record.again = self.callers.iter().map(|c| c.state.retries()).sum();
        self.record.preempted = self.instances.iter().map(|i| i.host.preempted()).sum();
    }

    fn happened(&mut self, event: Event, now: Time) {
        match event {
            Event::Shift(regime) => self.shift(regime, now),
            Event::Arrival(caller) => self.arrival(caller, now),
            Event::CallerTick(caller) => {
                if self.callers[caller].ticks(now) {
                    self.tell_caller(caller, client::Event::Tick);
                } else {
                    self.schedule_caller(caller);
                }
            }
            Event::InstanceTick(instance) => {
                if self.instances[instance].ticks(now) {
                    self.tell_instance(instance, server::Event::Tick);
                } else {
                    self.schedule_instance(instance);
                }
            }
            Event::ToCaller(caller, event) => self.tell_caller(caller, *event),
            Event::ToInstance(instance, life, event) => {
                if self.instances[instance].lives(life) {
                    self.tell_instance(instance, *event);
                }
            }
            Event::Knock { caller, peer, instance, life } => self.knocked(caller, peer, instance, life, now),
            Event::Ended { instance, life, key, answer } => {
                if self.instances[instance].lives(life)
                    && let Some(ended) = self.instances[instance].ended(key, answer, &self.service)
                {
                    self.tell_instance(instance, ended);
                    self.gauge(instance, now);
                }
            }
            Event::Alarm(instance, alarm) => {
                let mut effects = Vec::new();
                self.instances[instance].host.wake(alarm, now, &mut effects);
                self.apply_effects(instance, effects, now);
                self.drop_unwanted(instance);
                self.gauge(instance, now);
            }
        }
    }

    // --- the source ---

    fn shift(&mut self, regime: usize, now: Time) {
        let was_saturated = self.is_saturated();
        self.regime = regime;
        for (i, replica) in self.scenario.regimes[regime].replicas.iter().enumerate() {
            let mut effects = Vec::new();
            self.instances[i].shift(replica, now, &mut effects);
            self.apply_effects(i, effects, now);
            self.gauge(i, now);
        }
        for caller in 0..self.callers.len() {
            if self.is_saturated() {
                // What has not been sent is of the work that was; other work takes its place.
                let old = self.callers[caller].unsent();
                self.fill_by(caller, old.len());
                self.tell_caller(caller, client::Event::Cancelled(old));
            } else if was_saturated {
                let old = self.callers[caller].unsent();
                self.tell_caller(caller, client::Event::Cancelled(old));
                self.agenda.after(0.0, Event::Arrival(caller));
            }
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

    /// Keeps a bounded backlog with a client whose source always has more.
    fn fill(&mut self, caller: usize) {
        if self.is_saturated()
            && let Some(rows) = self.callers[caller].lacks(self.scenario, &self.service)
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
            self.tell_caller(caller, client::Event::Submitted { submission, receiver });
        }
    }

    // --- clients ---

    fn tell_caller(&mut self, caller: usize, event: client::Event) {
        let now = self.agenda.now();
        let actions = self.callers[caller].state.handle(event, now);
        for action in actions {
            match action {
                client::Action::Connect { peer, endpoint, after } => {
                    self.callers[caller].connections.remove(&peer);
                    let (instance, life) = (endpoint.instance.number as usize, endpoint.instance.incarnation);
                    let delay = after.as_secs_f64() + self.scenario.callers.network;
                    self.agenda.after(delay, Event::Knock { caller, peer, instance, life });
                }
                client::Action::Disconnect(peer) => {
                    if let Some(connection) = self.callers[caller].connections.remove(&peer) {
                        self.hang_up(connection);
                    }
                }
                client::Action::Send(peer, message) => {
                    if let Some(&connection) = self.callers[caller].connections.get(&peer) {
                        self.record.calls += self.callers[caller].sends(&message.frame, now);
                        self.carry_to_instance(connection, message);
                    }
                }
                client::Action::DeliverRows(_, first, rows) => {
                    for row in 0..rows.num_rows() {
                        let id = RequestId { sequence: first.sequence + row as u64, ..first };
                        let outcome = Outcome { id, rows: Ok(rows.slice(row, 1)), last: true };
                        let source = &mut self.callers[caller].source;
                        source.outcome(&outcome, self.scenario, self.regime, now, &mut self.record);
                    }
                }
                client::Action::Deliver(_, outcomes) => {
                    for outcome in outcomes {
                        self.callers[caller].source.outcome(
                            &outcome,
                            self.scenario,
                            self.regime,
                            now,
                            &mut self.record,
                        );
                    }
                }
            }
        }
        self.schedule_caller(caller);
        self.fill(caller);
    }

    fn carry_to_instance(&mut self, connection: Connection, message: Message) {
        let Some(&Link { instance, life, .. }) = self.links.get(&connection) else { return };
        *self.messages.entry(kind(&message.frame)).or_default() += 1;
        let event = server::Event::Received { connection, message };
        self.agenda.after(self.scenario.callers.network, Event::ToInstance(instance, life, Box::new(event)));
    }

    fn hang_up(&mut self, connection: Connection) {
        if let Some(Link { instance, life, .. }) = self.links.remove(&connection) {
            let event = Box::new(server::Event::Left(connection));
            self.agenda.after(self.scenario.callers.network, Event::ToInstance(instance, life, event));
        }
    }

    fn schedule_caller(&mut self, caller: usize) {
        if let Some(time) = self.callers[caller].next_tick() {
            self.agenda.at(time, Event::CallerTick(caller));
        }
    }

    // --- instances ---

    fn tell_instance(&mut self, instance: usize, event: server::Event) {
        let now = self.agenda.now();
        let Some(state) = &mut self.instances[instance].state else { return };
        let actions = state.handle(event, now);
        let mut effects = Vec::new();
        for action in actions {
            match action {
                server::Action::Send(connection, message) => self.carry_to_caller(connection, message),
                server::Action::Close(connection) => self.close(connection),
                server::Action::Run(batch) => self.instances[instance].run(&batch, now, &mut effects),
                server::Action::Abort(dump) => {
                    let first = dump.lines().next().unwrap_or_default();
                    eprintln!("{now}: instance {instance} is ended: {first}");
                    self.instances[instance].host.die(now, &mut effects);
                    effects.retain(|effect| *effect != Effect::OutOfMemory);
                }
                server::Action::Report | server::Action::Leave | server::Action::Disk(_) => {}
            }
        }
        if self.instances[instance].is_over_memory() {
            self.instances[instance].host.die(now, &mut effects);
        }
        self.apply_effects(instance, effects, now);
        self.schedule_instance(instance);
    }

    fn schedule_instance(&mut self, instance: usize) {
        if let Some(time) = self.instances[instance].next_tick() {
            self.agenda.at(time, Event::InstanceTick(instance));
        }
    }

    fn carry_to_caller(&mut self, connection: Connection, message: Message) {
        match &message.frame {
            Frame::HandBack { runs } => self.record.refused += RequestRun::total(runs),
            Frame::Failure { runs, error } if error.kind() == Kind::Overload => {
                self.record.refused += RequestRun::total(runs);
            }
            Frame::Failure { runs, .. } => self.record.failed += RequestRun::total(runs),
            _ => {}
        }
        let Some(&Link { caller, peer, .. }) = self.links.get(&connection) else { return };
        *self.messages.entry(kind(&message.frame)).or_default() += 1;
        let event = client::Event::Received { peer, connection, message };
        self.agenda.after(self.scenario.callers.network, Event::ToCaller(caller, Box::new(event)));
    }

    fn close(&mut self, connection: Connection) {
        if let Some(Link { caller, peer, .. }) = self.links.remove(&connection) {
            let event = client::Event::Disconnected { peer, connection };
            self.agenda.after(self.scenario.callers.network, Event::ToCaller(caller, Box::new(event)));
        }
    }

    fn knocked(&mut self, caller: usize, peer: u64, instance: usize, life: Life, now: Time) {
        let network = self.scenario.callers.network;
        if !self.instances[instance].lives(life) {
            let error = Error::new(Kind::Connect, Fate::NotSent, Retry::Here, "nobody listens");
            let event = client::Event::NotConnected { peer, error };
            return self.agenda.after(network, Event::ToCaller(caller, Box::new(event)));
        }
        *self.messages.entry(GREETING).or_default() += 2;
        self.next_connection += 1;
        let connection = self.next_connection;
        self.links.insert(connection, Link { caller, peer, instance, life });
        self.callers[caller].connections.insert(peer, connection);
        let client = format!("caller-{caller}");
        if let Some(state) = &self.instances[instance].state {
            let welcome = Box::new(Welcome {
                version: pelton_wire::greeting::VERSION,
                instance: self.service.id(instance, life),
                config: String::new(),
                methods: self.service.methods.to_vec(),
                max_message: self.service.declaration.max_message,
                segment: 0,
                status: state.status(0, now),
            });
            let event = client::Event::Connected { peer, connection, welcome };
            self.agenda.after(network, Event::ToCaller(caller, Box::new(event)));
        }
        self.tell_instance(instance, server::Event::Joined { connection, client, epoch: 1 });
    }

    fn apply_effects(&mut self, instance: usize, effects: Vec<Effect>, now: Time) {
        let life = self.instances[instance].life;
        for effect in effects {
            match effect {
                Effect::Answer { key, answer, leaves } => {
                    self.agenda.after(leaves, Event::Ended { instance, life, key, answer });
                }
                Effect::Wake { at, alarm } => self.agenda.at(at, Event::Alarm(instance, alarm)),
                Effect::OutOfMemory => self.record.out_of_memory += 1,
                Effect::Loaded => {}
            }
        }
        let is_up = self.instances[instance].host.is_up();
        match self.instances[instance].state.is_some() {
            true if !is_up => self.go_down(instance),
            false if is_up && now > Time::ZERO => self.come_up(instance),
            _ => {}
        }
    }

    /// Its process is gone; control and the connections tell everybody.
    fn go_down(&mut self, instance: usize) {
        let gone = self.service.id(instance, self.instances[instance].life);
        self.instances[instance].lost();
        let lost: Vec<Connection> =
            self.links.iter().filter(|(_, link)| link.instance == instance).map(|(id, _)| *id).collect();
        for connection in lost {
            self.close(connection);
        }
        self.tell_all(|| EndpointDelta::Remove(gone.clone()));
    }

    fn begin(&mut self, instance: usize) {
        self.instances[instance].begin(&self.service);
        self.tell_instance(instance, server::Event::Opened(Ok(())));
        self.gauge(instance, self.agenda.now());
    }

    fn come_up(&mut self, instance: usize) {
        self.begin(instance);
        let endpoint = self.service.endpoint(instance, self.instances[instance].life);
        self.tell_all(|| EndpointDelta::Add(endpoint.clone()));
    }

    fn tell_all(&mut self, delta: impl Fn() -> EndpointDelta) {
        for caller in 0..self.callers.len() {
            self.deltas += 1;
            let event = Box::new(client::Event::Endpoints(delta()));
            self.agenda.after(self.scenario.callers.network, Event::ToCaller(caller, event));
        }
    }

    /// The service says how full its memory is, if that has changed.
    fn gauge(&mut self, instance: usize, now: Time) {
        if let Some((used, total)) = self.instances[instance].gauge(now) {
            self.tell_instance(instance, server::Event::Gauge { used, total });
        }
    }

    /// A service that looks whether somebody still waits drops what nobody does.
    fn drop_unwanted(&mut self, instance: usize) {
        for ended in self.instances[instance].drop_unwanted() {
            self.tell_instance(instance, ended);
        }
    }
}

/// Hello and welcome.
pub const GREETING: &str = "greeting";

/// What a frame between a caller and an instance is called.
fn kind(frame: &Frame) -> &'static str {
    match frame {
        Frame::Announce { .. } => "announce",
        Frame::Permit { .. } => "permit",
        Frame::Return { .. } => "return",
        Frame::Request { .. } => "request",
        Frame::Results { .. } => "results",
        Frame::Failure { .. } => "failure",
        Frame::HandBack { .. } => "hand-back",
        Frame::Holds { .. } => "holds",
        Frame::Attach { .. } => "attach",
        Frame::Cancel { .. } => "cancel",
        Frame::Acknowledge { .. } => "acknowledge",
        Frame::Load { .. } => "load",
        Frame::Ping(_) | Frame::Pong(_) => "ping",
        _ => "other",
    }
}

#[cfg(test)]
mod tests;
