//! Virtual time: what happens next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use pelton_core::Time;

/// The point `seconds` after another.
pub fn after(at: Time, seconds: f64) -> Time {
    at + Duration::from_nanos((seconds.max(0.0) * 1e9) as u64)
}

/// The point `seconds` after the beginning.
pub fn at(seconds: f64) -> Time {
    after(Time::ZERO, seconds)
}

/// Seconds since the beginning.
pub fn seconds(at: Time) -> f64 {
    at.since_origin().as_nanos() as f64 * 1e-9
}

/// Seconds from one point to a later one.
pub fn between(from: Time, to: Time) -> f64 {
    to.since(from).as_nanos() as f64 * 1e-9
}

/// Events to come, in the order of their time; those of the same time in the order in which they were put in.
pub struct Agenda<E> {
    heap: BinaryHeap<Reverse<(Time, u64, u32)>>,
    /// The heap moves small keys; the events stay where they are.
    events: Vec<Option<E>>,
    free: Vec<u32>,
    next: u64,
    now: Time,
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Agenda { heap: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), next: 0, now: Time::ZERO }
    }
}

impl<E> Agenda<E> {
    pub fn now(&self) -> Time {
        self.now
    }

    /// `event` happens at this time, or now if it has passed.
    pub fn at(&mut self, time: Time, event: E) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.events[slot as usize] = Some(event);
                slot
            }
            None => {
                self.events.push(Some(event));
                (self.events.len() - 1) as u32
            }
        };
        self.heap.push(Reverse((time.max(self.now), self.next, slot)));
        self.next += 1;
    }

    /// `event` happens in so many seconds.
    pub fn after(&mut self, seconds: f64, event: E) {
        self.at(after(self.now, seconds), event);
    }

    /// Goes on to the next event, if it is before `end`.
    pub fn next_before(&mut self, end: Time) -> Option<E> {
        let Reverse((time, _, slot)) = self.heap.pop()?;
        if time >= end {
            return None;
        }
        self.now = time;
        self.free.push(slot);
        self.events[slot as usize].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order() {
        let mut agenda = Agenda::default();
        for (time, event) in [(2.0, 'c'), (1.0, 'a'), (1.0, 'b'), (9.0, 'z')] {
            agenda.at(at(time), event);
        }
        assert_eq!(agenda.next_before(at(9.0)), Some('a'));
        agenda.at(Time::ZERO, 'n');
        let rest: String = std::iter::from_fn(|| agenda.next_before(at(9.0))).collect();
        assert_eq!((rest.as_str(), seconds(agenda.now())), ("bnc", 2.0));
    }
}
