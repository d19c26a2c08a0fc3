//! Workers on some cores, each with one call at a time, and one queue before them.

use std::collections::{BTreeSet, VecDeque};

use super::{Answer, Call, Died, Machine, Work};
use crate::flow::scenario::{Backend, Cpu, Replica};

pub(super) struct Workers {
    like: Cpu,
    slow: f64,
    queue: VecDeque<Call>,
    waiting: f64,
    running: BTreeSet<u32>,
}

impl Workers {
    pub(super) fn new(like: Cpu, slow: f64) -> Self {
        Workers { like, slow, queue: VecDeque::new(), waiting: 0.0, running: BTreeSet::new() }
    }

    fn start(&mut self, out: &mut Work<'_>) {
        while self.running.len() < self.like.cores
            && let Some(call) = self.queue.pop_front()
        {
            self.waiting -= call.items;
            self.running.insert(call.key);
            let takes = self.like.per_call.get() + self.like.per_item.get() * call.cost;
            let noise = out.draws.noise(self.like.noise);
            out.wake(takes * self.slow * noise, call.key);
        }
    }
}

impl Machine for Workers {
    fn arrive(&mut self, call: Call, out: &mut Work<'_>) -> Result<(), Died> {
        if self.like.queue.is_some_and(|most| self.waiting + call.items > most) {
            out.answer(call.key, Answer::Refused, 0.0);
        } else {
            self.queue.push_back(call);
            self.waiting += call.items;
            self.start(out);
        }
        Ok(())
    }

    fn due(&mut self, key: u32, out: &mut Work<'_>) -> Result<(), Died> {
        self.running.remove(&key);
        out.answer(key, Answer::Done, 0.0);
        self.start(out);
        Ok(())
    }

    fn shift(&mut self, to: &Replica, out: &mut Work<'_>) {
        if let Backend::Cpu(like) = &to.backend {
            self.like = like.clone();
        }
        self.slow = to.slow;
        self.start(out);
    }

    fn clear(&mut self) -> Vec<u32> {
        self.waiting = 0.0;
        let running = std::mem::take(&mut self.running).into_iter();
        running.chain(self.queue.drain(..).map(|call| call.key)).collect()
    }
}
