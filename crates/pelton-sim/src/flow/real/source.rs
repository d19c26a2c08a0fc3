//! What a caller asks for, and what becomes of it.

use std::collections::VecDeque;
use std::time::Duration;

use pelton_core::call::{Outcome, Submission};
use pelton_core::error::Kind;
use pelton_core::{RequestId, Time};

use super::service::Service;
use crate::flow::clock::between;
use crate::flow::draw::Draws;
use crate::flow::record::Record;
use crate::flow::scenario::{Scenario, Work};

/// Rows that all sources together keep waiting with their clients, where there is always more; and the bounds of one source's part.
/// The same for each: whoever offers more at more instances gets more.
const BACKLOG: (usize, usize, usize) = (32_768, 64, 1024);
const BACKLOG_ONE_BY_ONE: (usize, usize, usize) = (512, 24, 32);

pub(super) struct Source {
    /// The same as a windowed caller's.
    pub(super) draws: Draws,
    place: usize,
    /// The requests from this number on, as far as they have not ended.
    first: u64,
    asked: VecDeque<Option<Asked>>,
}

/// A request that has not ended.
#[derive(Clone, Copy)]
struct Asked {
    output: u32,
    arrived: Time,
    sent: Time,
    /// It came by itself, and its deadline counts from then.
    open: bool,
}

impl Source {
    pub(super) fn new(seed: u64, place: usize) -> Self {
        Source { draws: Draws::new(seed, place as u64), place, first: 0, asked: VecDeque::new() }
    }

    fn id(&self, sequence: u64) -> RequestId {
        RequestId { operator: 0, group: self.place as u64, sequence }
    }

    fn asked(&mut self, id: RequestId) -> Option<&mut Asked> {
        let place = id.sequence.checked_sub(self.first)?;
        self.asked.get_mut(usize::try_from(place).ok()?)?.as_mut()
    }

    /// Requests that have not ended.
    pub(super) fn unended(&self) -> impl Iterator<Item = RequestId> {
        let unended = self.asked.iter().enumerate().filter(|(_, asked)| asked.is_some());
        unended.map(|(place, _)| self.id(self.first + place as u64))
    }

    /// How many rows a source that always has more should add to what waits, if it is time.
    pub(super) fn lacks(waits: usize, scenario: &Scenario, service: &Service) -> Option<usize> {
        let (all, least, most) = if service.one_by_one { BACKLOG_ONE_BY_ONE } else { BACKLOG };
        let wanted = (all / scenario.callers.number).clamp(least, most);
        (waits < wanted.div_ceil(2)).then(|| wanted - waits)
    }

    /// New requests, as submissions.
    pub(super) fn draw(
        &mut self,
        work: &Work,
        rows: usize,
        scenario: &Scenario,
        service: &Service,
        now: Time,
    ) -> Vec<Submission> {
        let open = work.rate.is_some();
        let chunk = if service.one_by_one { 1 } else { rows };
        let mut submissions = Vec::new();
        let mut left = rows;
        while left > 0 {
            let count = chunk.min(left);
            left -= count;
            let begin = self.first + self.asked.len() as u64;
            let mut costs = Vec::with_capacity(count);
            let mut writes = Vec::with_capacity(count);
            for _ in 0..count {
                costs.push(self.draws.lognormal(work.cost));
                let output = work.output.map_or(0, |o| self.draws.lognormal(o).round().max(1.0) as u32);
                writes.push(output);
                self.asked.push_back(Some(Asked { output, arrived: now, sent: now, open }));
            }
            let deadline = Duration::from_secs_f64(scenario.deadline(writes[0]));
            let ids = (begin..begin + count as u64).map(|sequence| self.id(sequence)).collect();
            let mut submission = Submission::new(0, ids, service.arguments(costs, writes));
            if open {
                submission.timeout = Some(deadline);
            } else {
                submission.attempt_timeout = Some(deadline);
            }
            submissions.push(submission);
        }
        submissions
    }

    pub(super) fn sent(&mut self, id: RequestId, now: Time) {
        if let Some(asked) = self.asked(id) {
            asked.sent = now;
        }
    }

    pub(super) fn outcome(
        &mut self,
        outcome: &Outcome,
        scenario: &Scenario,
        regime: usize,
        now: Time,
        record: &mut Record,
    ) {
        let Some(&mut asked) = self.asked(outcome.id) else { return };
        match &outcome.rows {
            Ok(_) => {
                let since = if asked.open { asked.arrived } else { asked.sent };
                let lateness = between(since, now) / scenario.deadline(asked.output);
                record.answered(now, regime, self.place, 1.0, lateness);
            }
            Err(e) if e.kind() == Kind::Cancelled => {}
            Err(_) => record.late += 1.0,
        }
        self.asked[(outcome.id.sequence - self.first) as usize] = None;
        while matches!(self.asked.front(), Some(None)) {
            self.asked.pop_front();
            self.first += 1;
        }
    }
}
