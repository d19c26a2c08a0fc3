//! One instance: the real state machine, and a modelled backend in the place of the service.

use std::collections::BTreeMap;

use pelton_core::service::Invocation;
use pelton_core::{Error, Fate, Kind, Retry, Time};
use pelton_instance::state::{Batch, BatchId, Event, State};

use super::Life;
use super::service::{Service, sums};
use crate::flow::backend::{Answer, Call, Effect, Host};
use crate::flow::draw::Draws;
use crate::flow::scenario::{Backend, Replica};

/// Whose the draws are; the same as of a backend without us.
pub(super) const HOSTS: u64 = 1 << 32;

pub(super) struct Instance {
    /// None while its process is gone.
    pub(super) state: Option<State>,
    pub(super) life: Life,
    pub(super) host: Host,
    /// Cost that it may hold, waiting and running.
    memory: Option<f64>,
    running: BTreeMap<u32, Run>,
    next_key: u32,
    gauge: Option<(f64, f64)>,
    tick: Option<Time>,
}

struct Run {
    batch: BatchId,
    rows: usize,
    writes: u32,
    invocation: Invocation,
}

impl Instance {
    pub(super) fn new(replica: &Replica, seed: u64, place: usize) -> Self {
        let (hosted, memory) = split(replica);
        Instance {
            state: None,
            life: 0,
            host: Host::new(&hosted, Draws::new(seed, HOSTS + place as u64)),
            memory,
            running: BTreeMap::new(),
            next_key: 0,
            gauge: None,
            tick: None,
        }
    }

    pub(super) fn shift(&mut self, to: &Replica, now: Time, effects: &mut Vec<Effect>) {
        let (hosted, memory) = split(to);
        self.memory = memory;
        self.host.shift(&hosted, now, effects);
    }

    pub(super) fn lives(&self, life: Life) -> bool {
        self.state.is_some() && self.life == life
    }

    /// A new process.
    pub(super) fn begin(&mut self, service: &Service) {
        self.life += 1;
        self.state = Some(State::new(service.declaration.clone(), service.methods.clone()));
    }

    /// The process is gone.
    pub(super) fn lost(&mut self) {
        self.state = None;
        self.running.clear();
        self.gauge = None;
        self.tick = None;
    }

    pub(super) fn run(&mut self, batch: &Batch, now: Time, effects: &mut Vec<Effect>) {
        let key = self.next_key;
        self.next_key = self.next_key.wrapping_add(1);
        let (cost, writes) = sums(&batch.rows);
        let rows = batch.rows.num_rows();
        let invocation = batch.invocation.clone();
        self.running.insert(key, Run { batch: batch.id, rows, writes, invocation });
        let call = Call { key, items: rows as f64, cost, output: f64::from(writes) };
        self.host.arrive(call, now, effects);
    }

    /// What the worker says when a batch has ended.
    pub(super) fn ended(&mut self, key: u32, answer: Answer, service: &Service) -> Option<Event> {
        let Run { batch, rows, writes, .. } = self.running.remove(&key)?;
        let result = match answer {
            Answer::Done if writes > 0 => Ok(service.answer(writes)),
            Answer::Done => Ok(service.answers(rows)),
            Answer::Refused | Answer::Failed => Err(Error::transient("the backend failed")),
        };
        Some(Event::Ended { batch, result })
    }

    /// Batches that nobody waits for and that the backend could drop.
    pub(super) fn drop_unwanted(&mut self) -> Vec<Event> {
        let unwanted = self.running.iter().filter(|(_, run)| run.invocation.is_cancelled());
        let keys: Vec<u32> = unwanted.map(|(key, _)| *key).collect();
        let mut events = Vec::new();
        for key in keys {
            if self.host.cancel(key)
                && let Some(Run { batch, .. }) = self.running.remove(&key)
            {
                let error = Error::new(Kind::Cancelled, Fate::Executed, Retry::Never, "nobody waits for it");
                events.push(Event::Ended { batch, result: Err(error) });
            }
        }
        events
    }

    /// Whether it holds more than its memory takes.
    pub(super) fn is_over_memory(&self) -> bool {
        let held = self.state.as_ref().map_or(0.0, State::held_weight);
        self.host.is_up() && self.memory.is_some_and(|memory| held > memory)
    }

    /// What the service would say of its memory, if it has not.
    pub(super) fn gauge(&mut self, now: Time) -> Option<(f64, f64)> {
        let state = self.state.as_ref()?;
        let news = match (self.host.memory(now), self.memory) {
            (Some(model), _) => Some(model),
            // What waits is the instance's own and it knows how much; the total is the news.
            (None, Some(total)) if self.gauge.is_none_or(|(_, told)| told != total) => {
                Some((state.held_weight(), total))
            }
            _ => None,
        };
        let news = news.filter(|news| self.gauge != Some(*news))?;
        self.gauge = Some(news);
        self.gauge
    }

    /// Its budget of rows.
    pub(super) fn permits(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.meter().permits)
    }

    /// When to wake it, if that is not arranged yet.
    pub(super) fn next_tick(&mut self) -> Option<Time> {
        let due = self.state.as_ref()?.wake_at()?;
        self.tick.is_none_or(|at| due < at).then(|| {
            self.tick = Some(due);
            due
        })
    }

    /// The timer went off: whether something is due.
    pub(super) fn ticks(&mut self, now: Time) -> bool {
        if self.tick.is_some_and(|at| at <= now) {
            self.tick = None;
        }
        self.state.as_ref().and_then(State::wake_at).is_some_and(|due| due <= now)
    }
}

/// A batching backend's memory holds what waits, and here the instance has that; so it is looked after here.
fn split(replica: &Replica) -> (Replica, Option<f64>) {
    let mut hosted = replica.clone();
    let memory = match &mut hosted.backend {
        Backend::Batching(b) => b.memory.take(),
        _ => None,
    };
    (hosted, memory)
}
