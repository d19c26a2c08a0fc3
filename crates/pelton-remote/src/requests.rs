//! The requests that have not ended: where each is, and in what order those go that wait.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use pelton_core::call::{Priority, Receiver};
use pelton_core::{RequestId, Time};
use pelton_wire::body::Piece;

use crate::state::CallKey;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Waits to be sent; `ticket` tells its place in the backlog from an older one.
    Backlog { ticket: u64 },
    /// Waits for the time to be tried again.
    Delayed { until: Time },
    /// Waits for the one before it with the same key to end.
    Behind,
    /// Part of a call.
    Sent(CallKey),
}

pub(crate) struct Request {
    pub(crate) method: usize,
    pub(crate) priority: Priority,
    pub(crate) row: Piece,
    pub(crate) bytes: u64,
    pub(crate) weight: f64,
    pub(crate) key: Option<u64>,
    /// When it ends, answered or not.
    pub(crate) deadline: Option<Time>,
    /// The same as it was asked for.
    pub(crate) timeout: Option<Duration>,
    pub(crate) attempt_timeout: Option<Duration>,
    /// Attempts that may have run.
    pub(crate) attempts: u32,
    /// Tries of any kind in a row: what the wait before the next one grows with.
    pub(crate) tries: u32,
    /// Most rows of a call with it: fewer after a call that failed for the sake of one of its rows.
    pub(crate) together: usize,
    /// Parts of a stream that its caller has.
    pub(crate) parts: u32,
    pub(crate) receiver: Arc<dyn Receiver>,
    pub(crate) place: Place,
}

impl Request {
    /// How long an answer may take, as the caller sees it.
    pub(crate) fn limit(&self) -> Option<Duration> {
        self.attempt_timeout.into_iter().chain(self.timeout).min()
    }
}

#[derive(Default)]
pub(crate) struct Requests {
    all: BTreeMap<RequestId, Request>,
    /// What waits to be sent, by priority. A place whose ticket is not its request's any more is skipped.
    lanes: BTreeMap<Priority, VecDeque<(RequestId, u64)>>,
    /// Unended requests of each key, in their order. The first of them is anywhere; the others are `Behind`.
    keys: BTreeMap<u64, VecDeque<RequestId>>,
    waiting: usize,
    delayed: BTreeSet<(Time, RequestId)>,
    deadlines: BTreeSet<(Time, RequestId)>,
    next_ticket: u64,
}

impl Requests {
    pub(crate) fn get(&self, id: RequestId) -> Option<&Request> {
        self.all.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: RequestId) -> Option<&mut Request> {
        self.all.get_mut(&id)
    }

    /// The requests of these operators.
    pub(crate) fn of(&self, operators: &[u32]) -> Vec<RequestId> {
        self.all.keys().filter(|id| operators.contains(&id.operator)).copied().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Requests that could be sent now.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// When something is due: a delayed try or a deadline.
    pub(crate) fn due(&self) -> Option<Time> {
        let first = |set: &BTreeSet<(Time, RequestId)>| set.first().map(|(at, _)| *at);
        first(&self.delayed).into_iter().chain(first(&self.deadlines)).min()
    }

    /// A new request, behind all others. The id must be new; `place` is set here.
    pub(crate) fn insert(&mut self, id: RequestId, mut request: Request) {
        if let Some(deadline) = request.deadline {
            self.deadlines.insert((deadline, id));
        }
        request.place = Place::Behind;
        let key = request.key;
        self.all.insert(id, request);
        if let Some(key) = key {
            let line = self.keys.entry(key).or_default();
            line.push_back(id);
            if line.len() > 1 {
                return;
            }
        }
        self.enqueue(id, false);
    }

    fn enqueue(&mut self, id: RequestId, front: bool) {
        let Some(request) = self.all.get_mut(&id) else { return };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        request.place = Place::Backlog { ticket };
        self.waiting += 1;
        let lane = self.lanes.entry(request.priority).or_default();
        if front { lane.push_front((id, ticket)) } else { lane.push_back((id, ticket)) }
    }

    fn unplace(&mut self, id: RequestId) {
        match self.all.get(&id).map(|r| r.place) {
            Some(Place::Backlog { .. }) => self.waiting -= 1,
            Some(Place::Delayed { until }) => {
                self.delayed.remove(&(until, id));
            }
            Some(Place::Sent(_) | Place::Behind) | None => {}
        }
    }

    /// Puts a request back to the front: it has waited longest.
    pub(crate) fn requeue(&mut self, id: RequestId) {
        self.unplace(id);
        self.enqueue(id, true);
    }

    pub(crate) fn delay(&mut self, id: RequestId, until: Time) {
        self.unplace(id);
        if let Some(request) = self.all.get_mut(&id) {
            request.place = Place::Delayed { until };
            self.delayed.insert((until, id));
        }
    }

    /// Takes a request away; the next one of its key comes forward.
    pub(crate) fn remove(&mut self, id: RequestId) -> Option<Request> {
        self.unplace(id);
        let request = self.all.remove(&id)?;
        if let Some(deadline) = request.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        if let Some(key) = request.key
            && let Some(line) = self.keys.get_mut(&key)
        {
            let first = line.front() == Some(&id);
            if first {
                line.pop_front();
            } else {
                line.retain(|other| *other != id);
            }
            match line.front().copied() {
                None => {
                    self.keys.remove(&key);
                }
                Some(next) if first => self.enqueue(next, false),
                Some(_) => {}
            }
        }
        Some(request)
    }

    /// The next request that would be taken.
    pub(crate) fn first(&mut self) -> Option<RequestId> {
        for lane in self.lanes.values_mut() {
            while let Some(&(id, ticket)) = lane.front() {
                if self.all.get(&id).is_some_and(|r| r.place == (Place::Backlog { ticket })) {
                    return Some(id);
                }
                lane.pop_front();
            }
        }
        None
    }

    /// Takes the next requests for one call: of one method and priority, up to `rows` of the method, `bytes` and `weight` (at least one).
    pub(crate) fn take(
        &mut self,
        call: CallKey,
        rows: impl Fn(usize) -> usize,
        bytes: u64,
        weight: Option<f64>,
    ) -> Vec<RequestId> {
        let mut taken = Vec::new();
        let Some(first) = self.first().and_then(|id| self.all.get(&id)) else { return taken };
        let (method, priority) = (first.method, first.priority);
        let mut most = rows(method).max(1);
        let (mut total, mut heavy) = (0, 0.0);
        while let Some(id) = self.first() {
            let Some(request) = self.all.get_mut(&id) else { break };
            let fits = total + request.bytes <= bytes && weight.is_none_or(|w| heavy + request.weight <= w);
            most = most.min(request.together);
            if (request.method, request.priority) != (method, priority)
                || !(taken.is_empty() || taken.len() < most && fits)
            {
                break;
            }
            total += request.bytes;
            heavy += request.weight;
            request.place = Place::Sent(call);
            self.waiting -= 1;
            taken.push(id);
        }
        taken
    }

    /// Puts what is due again into the backlog, and returns those whose deadline has passed.
    pub(crate) fn tick(&mut self, now: Time) -> Vec<RequestId> {
        let due: Vec<RequestId> =
            self.delayed.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect();
        // The last first, because each is put before those that were put back before it.
        for id in due.into_iter().rev() {
            self.requeue(id);
        }
        self.deadlines.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect()
    }
}
