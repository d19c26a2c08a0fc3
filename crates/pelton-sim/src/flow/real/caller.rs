//! One caller of instances: the real client, and a source before it.

use std::collections::BTreeMap;

use pelton_client::state::State;
use pelton_core::call::Holder;
use pelton_core::{RequestId, RequestRun, Time};
use pelton_wire::Frame;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::Connection;
use super::service::Service;
use super::source::Source;
use crate::flow::scenario::Scenario;

/// Whose the client's own draws are.
pub(super) const CLIENTS: u64 = 1 << 48;

pub(super) struct Caller {
    pub(super) state: State,
    pub(super) source: Source,
    /// By the client's number of the instance.
    pub(super) connections: BTreeMap<u64, Connection>,
    tick: Option<Time>,
}

impl Caller {
    pub(super) fn new(service: &Service, seed: u64, place: usize) -> Self {
        let rng = StdRng::seed_from_u64(seed ^ (CLIENTS + place as u64));
        let state = State::new(&service.declaration, service.methods.clone(), rng, Time::ZERO);
        Caller { state, source: Source::new(seed, place), connections: BTreeMap::new(), tick: None }
    }

    /// How many rows the source should add, if it is time.
    pub(super) fn lacks(&self, scenario: &Scenario, service: &Service) -> Option<usize> {
        Source::lacks(self.state.unended() - self.state.sent(), scenario, service)
    }

    /// Requests that no instance has.
    pub(super) fn unsent(&self) -> Vec<RequestId> {
        self.source.unended().filter(|id| self.state.holder(*id) == Holder::Client).collect()
    }

    /// Notes requests that leave; returns how many.
    pub(super) fn sends(&mut self, frame: &Frame, now: Time) -> u64 {
        let Frame::Request { runs, .. } = frame else { return 0 };
        runs.iter().flat_map(|run| run.ids()).for_each(|id| self.source.sent(id, now));
        RequestRun::total(runs)
    }

    /// When to wake it, if that is not arranged yet.
    pub(super) fn next_tick(&mut self) -> Option<Time> {
        let due = self.state.wake_at()?;
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
        self.state.wake_at().is_some_and(|due| due <= now)
    }
}
