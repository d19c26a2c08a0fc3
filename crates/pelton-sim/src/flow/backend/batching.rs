//! A service that batches by itself: whole batches, one after another.

use std::collections::VecDeque;

use pelton_core::Time;

use super::{Answer, Call, Died, Machine, Work};
use crate::flow::scenario::{Backend, Batching, Replica};

pub(super) struct Executor {
    like: Batching,
    slow: f64,
    queue: VecDeque<Call>,
    waiting: f64,
    running: Vec<Call>,
    /// Cost of all that waits and runs.
    resident: f64,
}

impl Executor {
    pub(super) fn new(like: Batching, slow: f64) -> Self {
        Executor { like, slow, queue: VecDeque::new(), waiting: 0.0, running: Vec::new(), resident: 0.0 }
    }

    fn start(&mut self, out: &mut Work<'_>) {
        let (mut items, mut cost) = (0.0, 0.0);
        while let Some(call) = self.queue.front() {
            if items > 0.0 && items + call.items > f64::from(self.like.max_rows) {
                break;
            }
            items += call.items;
            cost += call.cost;
            self.waiting -= call.items;
            self.running.extend(self.queue.pop_front());
        }
        if !self.running.is_empty() {
            let takes = self.like.run.get() + self.like.per_cost.get() * cost;
            let noise = out.draws.noise(self.like.noise);
            out.wake(takes * self.slow * noise, 0);
        }
    }
}

impl Machine for Executor {
    fn arrive(&mut self, call: Call, out: &mut Work<'_>) -> Result<(), Died> {
        if self.like.queue.is_some_and(|most| self.waiting + call.items > most) {
            out.answer(call.key, Answer::Refused, 0.0);
            return Ok(());
        }
        self.queue.push_back(call);
        self.waiting += call.items;
        self.resident += call.cost;
        if self.like.memory.is_some_and(|memory| self.resident > memory) {
            return Err(Died);
        }
        if self.running.is_empty() {
            self.start(out);
        }
        Ok(())
    }

    fn due(&mut self, _: u32, out: &mut Work<'_>) -> Result<(), Died> {
        for call in self.running.drain(..) {
            self.resident -= call.cost;
            out.answer(call.key, Answer::Done, 0.0);
        }
        if self.queue.is_empty() {
            self.resident = 0.0;
        }
        self.start(out);
        Ok(())
    }

    fn shift(&mut self, to: &Replica, _: &mut Work<'_>) {
        if let Backend::Batching(like) = &to.backend {
            self.like = like.clone();
        }
        self.slow = to.slow;
    }

    fn clear(&mut self) -> Vec<u32> {
        (self.waiting, self.resident) = (0.0, 0.0);
        self.queue.drain(..).chain(self.running.drain(..)).map(|call| call.key).collect()
    }

    fn memory(&self, _: Time) -> Option<(f64, f64)> {
        self.like.memory.map(|memory| (self.resident, memory))
    }
}
