//! A language model with continuous batching: sequences join and leave between steps; each step gives each of them one token.

use std::collections::VecDeque;

use pelton_core::Time;

use super::{Answer, Call, Died, Machine, Work};
use crate::flow::clock::between;
use crate::flow::scenario::{Backend, LanguageModel, OverMemory, Replica};

/// Prompt tokens after which no more sequences join a step.
const PREFILL_BUDGET: f64 = 4096.0;
/// A smaller memory takes effect over this time, as when a replacement takes over.
const SHRINKS_OVER: f64 = 20.0;

struct Sequence {
    call: Call,
    /// Tokens that it keeps in memory.
    resident: f64,
    produced: f64,
}

pub(super) struct Engine {
    like: LanguageModel,
    slow: f64,
    /// Calls that wait, with what they had produced when they were put back.
    queue: VecDeque<(Call, f64)>,
    running: Vec<Sequence>,
    resident: f64,
    stepping: bool,
    /// The memory before the last shift, and when that was.
    shrinks_from: f64,
    shifted: Time,
    preempted: u64,
}

impl Engine {
    pub(super) fn new(like: LanguageModel, slow: f64) -> Self {
        Engine {
            shrinks_from: like.memory,
            like,
            slow,
            queue: VecDeque::new(),
            running: Vec::new(),
            resident: 0.0,
            stepping: false,
            shifted: Time::ZERO,
            preempted: 0,
        }
    }

    fn budget(&self, now: Time) -> f64 {
        let done = (between(self.shifted, now) / SHRINKS_OVER).min(1.0);
        let shrinks_by = (self.shrinks_from - self.like.memory).max(0.0);
        self.like.memory + shrinks_by * (1.0 - done)
    }

    fn preempts(&self) -> bool {
        self.like.over_memory == OverMemory::Preempts
    }

    /// Lets in what fits, and begins a step.
    fn step(&mut self, out: &mut Work<'_>) -> Result<(), Died> {
        let memory = self.budget(out.now);
        let mut prefill = 0.0;
        while let Some(&(call, produced)) = self.queue.front() {
            let needs = call.cost + produced;
            let full = self.running.len() >= self.like.sequences || prefill >= PREFILL_BUDGET;
            let over = self.resident + needs + self.running.len() as f64 > memory;
            // One that is larger than all memory would keep everything waiting; it runs alone.
            if full || (self.preempts() && over && !self.running.is_empty()) {
                break;
            }
            self.queue.pop_front();
            prefill += needs;
            self.resident += needs;
            self.running.push(Sequence { call, resident: needs, produced });
        }
        self.stepping = !self.running.is_empty();
        if !self.stepping {
            return Ok(());
        }
        if !self.preempts() && self.resident > memory {
            return Err(Died);
        }
        let LanguageModel { step, step_per_sequence, step_per_token, noise, .. } = self.like;
        let decode = step.get()
            + step_per_sequence.get() * self.running.len() as f64
            + step_per_token.get() * self.resident;
        let takes = decode * out.draws.noise(noise) + prefill / self.like.prefill;
        out.wake(takes * self.slow, 0);
        Ok(())
    }

    /// Each sequence has one token more; those that are complete leave.
    fn stepped(&mut self, out: &mut Work<'_>) {
        let resident = &mut self.resident;
        self.running.retain_mut(|sequence| {
            sequence.produced += 1.0;
            sequence.resident += 1.0;
            *resident += 1.0;
            let goes_on = sequence.produced < sequence.call.output;
            if !goes_on {
                *resident -= sequence.resident;
                out.answer(sequence.call.key, Answer::Done, 0.0);
            }
            goes_on
        });
        if self.running.is_empty() {
            self.resident = 0.0;
        }
    }
}

impl Machine for Engine {
    fn arrive(&mut self, call: Call, out: &mut Work<'_>) -> Result<(), Died> {
        if self.like.queue.is_some_and(|most| self.queue.len() as f64 + 1.0 > most) {
            out.answer(call.key, Answer::Refused, 0.0);
            return Ok(());
        }
        self.queue.push_back((call, 0.0));
        if self.stepping { Ok(()) } else { self.step(out) }
    }

    fn due(&mut self, _: u32, out: &mut Work<'_>) -> Result<(), Died> {
        self.stepped(out);
        let memory = self.budget(out.now);
        if self.resident > memory && !self.preempts() {
            return Err(Died);
        }
        while self.resident > memory && self.running.len() > 1 {
            let Some(youngest) = self.running.pop() else { break };
            self.resident -= youngest.resident;
            self.queue.push_front((youngest.call, youngest.produced));
            self.preempted += 1;
        }
        self.step(out)
    }

    fn shift(&mut self, to: &Replica, out: &mut Work<'_>) {
        self.shrinks_from = self.like.memory;
        self.shifted = out.now;
        if let Backend::LanguageModel(like) = &to.backend {
            self.like = like.clone();
        }
        self.slow = to.slow;
    }

    fn clear(&mut self) -> Vec<u32> {
        self.resident = 0.0;
        self.stepping = false;
        let queued = self.queue.drain(..).map(|(call, _)| call.key);
        queued.chain(self.running.drain(..).map(|sequence| sequence.call.key)).collect()
    }

    fn memory(&self, now: Time) -> Option<(f64, f64)> {
        Some((self.resident, self.budget(now)))
    }

    fn cancel(&mut self, key: u32) -> bool {
        let before = self.queue.len() + self.running.len();
        self.queue.retain(|(call, _)| call.key != key);
        let resident = &mut self.resident;
        self.running.retain(|sequence| {
            let stays = sequence.call.key != key;
            if !stays {
                *resident -= sequence.resident;
            }
            stays
        });
        self.queue.len() + self.running.len() < before
    }

    fn preempted(&self) -> u64 {
        self.preempted
    }
}
