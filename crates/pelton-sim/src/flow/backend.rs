//! Modelled backends: pure state machines in virtual time. A call comes in, effects come out.
//!
//! A [`Machine`] is one kind of backend; a [`Host`] is a replica that runs one: it can fail calls, be removed, run out of memory
//! and come back. The formulas stand in `scenarios/README.md`.

pub mod batching;
pub mod cpu;
pub mod gateway;
pub mod language_model;

use pelton_core::Time;

use super::clock::after;
use super::draw::Draws;
use super::scenario::{Backend, Replica};

/// How long a call takes that fails at once.
const FAILS_AFTER: f64 = 0.001;

/// A call as a backend sees it. `key` is the caller's, and comes back with the answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    pub key: u32,
    pub items: f64,
    /// The sum of its items' costs; prompt tokens for a language model.
    pub cost: f64,
    /// Output tokens.
    pub output: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// Too much is held, try later.
    Refused,
    /// Not there, or died with it.
    Failed,
}

/// What comes of an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Effect {
    /// The call ended; the answer leaves in so many seconds.
    Answer {
        key: u32,
        answer: Answer,
        leaves: f64,
    },
    /// Wake this host with this alarm then.
    Wake {
        at: Time,
        alarm: Alarm,
    },
    OutOfMemory,
    /// It is back.
    Loaded,
}

/// Why a host asked to be woken. `life` counts its deaths: what an earlier life asked for is not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarm {
    life: u32,
    why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Work(u32),
    Load,
}

/// It held more than its memory takes, and died.
pub struct Died;

/// One kind of backend.
pub trait Machine: Send {
    fn arrive(&mut self, call: Call, out: &mut Work<'_>) -> Result<(), Died>;
    /// Something that it started is over.
    fn due(&mut self, what: u32, out: &mut Work<'_>) -> Result<(), Died>;
    /// It is like this from now on.
    fn shift(&mut self, to: &Replica, out: &mut Work<'_>);
    /// Forgets everything; returns the calls that it held.
    fn clear(&mut self) -> Vec<u32>;
    /// A call that nobody waits for any more; whether it could be dropped.
    fn cancel(&mut self, _key: u32) -> bool {
        false
    }
    /// What it holds, and how much that may be.
    fn memory(&self, _now: Time) -> Option<(f64, f64)> {
        None
    }
    /// Calls that were put back and begun again.
    fn preempted(&self) -> u64 {
        0
    }
}

/// What a machine works with: the time, its draws, and where effects go.
pub struct Work<'a> {
    pub now: Time,
    pub draws: &'a mut Draws,
    life: u32,
    out: &'a mut Vec<Effect>,
}

impl Work<'_> {
    pub fn answer(&mut self, key: u32, answer: Answer, leaves: f64) {
        self.out.push(Effect::Answer { key, answer, leaves });
    }

    /// [`Machine::due`] in so many seconds.
    pub fn wake(&mut self, seconds: f64, what: u32) {
        let alarm = Alarm { life: self.life, why: Why::Work(what) };
        self.out.push(Effect::Wake { at: after(self.now, seconds), alarm });
    }
}

/// One replica.
pub struct Host {
    machine: Box<dyn Machine>,
    draws: Draws,
    up: bool,
    removed: bool,
    failing: f64,
    reload: f64,
    life: u32,
}

impl Host {
    pub fn new(replica: &Replica, draws: Draws) -> Self {
        let machine: Box<dyn Machine> = match &replica.backend {
            Backend::Batching(b) => Box::new(batching::Executor::new(b.clone(), replica.slow)),
            Backend::LanguageModel(m) => Box::new(language_model::Engine::new(m.clone(), replica.slow)),
            Backend::Gateway(g) => Box::new(gateway::Server::new(g.clone(), replica.slow)),
            Backend::Cpu(c) => Box::new(cpu::Workers::new(c.clone(), replica.slow)),
        };
        let Replica { failing, removed, .. } = *replica;
        Host { machine, draws, up: !removed, removed, failing, reload: reload(&replica.backend), life: 0 }
    }

    pub fn is_up(&self) -> bool {
        self.up
    }

    /// What it holds in the unit of its memory, and how much that may be.
    pub fn memory(&self, now: Time) -> Option<(f64, f64)> {
        self.machine.memory(now)
    }

    /// Nobody waits for a call any more. Whether it was dropped: then there is no answer to it.
    pub fn cancel(&mut self, key: u32) -> bool {
        self.machine.cancel(key)
    }

    pub fn preempted(&self) -> u64 {
        self.machine.preempted()
    }

    pub fn arrive(&mut self, call: Call, now: Time, out: &mut Vec<Effect>) {
        if !self.up {
            return out.push(Effect::Answer { key: call.key, answer: Answer::Failed, leaves: 0.0 });
        }
        if self.failing > 0.0 && self.draws.uniform() < self.failing {
            return out.push(Effect::Answer { key: call.key, answer: Answer::Failed, leaves: FAILS_AFTER });
        }
        let (machine, mut work) = self.work(now, out);
        if machine.arrive(call, &mut work).is_err() {
            self.die(now, out);
        }
    }

    pub fn wake(&mut self, alarm: Alarm, now: Time, out: &mut Vec<Effect>) {
        if alarm.life != self.life {
            return;
        }
        match alarm.why {
            Why::Work(what) => {
                let (machine, mut work) = self.work(now, out);
                if machine.due(what, &mut work).is_err() {
                    self.die(now, out);
                }
            }
            Why::Load if self.removed => {}
            Why::Load => {
                self.up = true;
                out.push(Effect::Loaded);
            }
        }
    }

    /// It ran out of memory: all that it held is lost, and it loads anew.
    pub fn die(&mut self, now: Time, out: &mut Vec<Effect>) {
        out.push(Effect::OutOfMemory);
        self.stop(out);
        let alarm = Alarm { life: self.life, why: Why::Load };
        out.push(Effect::Wake { at: after(now, self.reload), alarm });
    }

    pub fn shift(&mut self, to: &Replica, now: Time, out: &mut Vec<Effect>) {
        self.failing = to.failing;
        self.reload = reload(&to.backend);
        let was = std::mem::replace(&mut self.removed, to.removed);
        if to.removed && !was {
            self.stop(out);
        }
        let (machine, mut work) = self.work(now, out);
        machine.shift(to, &mut work);
        if was && !to.removed {
            self.life += 1;
            self.up = true;
            out.push(Effect::Loaded);
        }
    }

    fn stop(&mut self, out: &mut Vec<Effect>) {
        self.up = false;
        self.life += 1;
        let held = self.machine.clear();
        out.extend(held.into_iter().map(|key| Effect::Answer { key, answer: Answer::Failed, leaves: 0.0 }));
    }

    fn work<'a>(&'a mut self, now: Time, out: &'a mut Vec<Effect>) -> (&'a mut dyn Machine, Work<'a>) {
        (&mut *self.machine, Work { now, draws: &mut self.draws, life: self.life, out })
    }
}

fn reload(backend: &Backend) -> f64 {
    match backend {
        Backend::Batching(b) => b.reload.get(),
        Backend::LanguageModel(m) => m.reload.get(),
        Backend::Gateway(_) | Backend::Cpu(_) => 0.0,
    }
}

#[cfg(test)]
mod tests;
