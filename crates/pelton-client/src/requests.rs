//! The requests of a client: where each is, and in what order those go that have not been sent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use pelton_core::call::{Priority, Receiver};
use pelton_core::{RequestId, Time};
use pelton_wire::body::Piece;

use crate::peer::PeerKey;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Waits to be sent; `ticket` tells its place in the backlog from an older one.
    Backlog { ticket: u64 },
    /// Waits for the time to be tried again.
    Delayed { until: Time },
    /// An instance has it.
    Sent(PeerKey),
}

pub(crate) struct Request {
    pub(crate) method: u16,
    pub(crate) priority: Priority,
    pub(crate) row: Piece,
    pub(crate) bytes: u64,
    /// When it ends, answered or not.
    pub(crate) deadline: Option<Time>,
    /// How long one attempt may take.
    pub(crate) attempt_timeout: Option<Duration>,
    /// In the service's unit.
    pub(crate) weight: f64,
    /// Attempts that may have run.
    pub(crate) attempts: u32,
    pub(crate) receiver: Arc<dyn Receiver>,
    /// Whether its ledger entry stays until the caller acknowledges it.
    pub(crate) explicit: bool,
    /// Parts of a stream that its caller has.
    pub(crate) parts: u32,
    /// Parts that come once more after an attach, and that its caller has.
    pub(crate) again: u32,
    pub(crate) place: Place,
}

/// All requests that have not ended.
#[derive(Default)]
pub(crate) struct Requests {
    all: BTreeMap<RequestId, Request>,
    /// What waits to be sent, by priority. A place whose ticket is not its request's any more is skipped.
    lanes: BTreeMap<Priority, VecDeque<(RequestId, u64)>>,
    backlog_rows: u64,
    backlog_bytes: u64,
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

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn backlog_rows(&self) -> u64 {
        self.backlog_rows
    }

    /// Mean size of the rows that wait.
    pub(crate) fn row_bytes(&self) -> u64 {
        self.backlog_bytes.checked_div(self.backlog_rows).unwrap_or(0)
    }

    /// When something is due: a delayed try or a deadline.
    pub(crate) fn due(&self) -> Option<Time> {
        let first = |set: &BTreeSet<(Time, RequestId)>| set.first().map(|(at, _)| *at);
        first(&self.delayed).into_iter().chain(first(&self.deadlines)).min()
    }

    /// A new request, at the end of the backlog. `place` is set here. False if the id is in flight already.
    pub(crate) fn insert(&mut self, id: RequestId, request: Request) -> bool {
        if self.all.contains_key(&id) {
            return false;
        }
        if let Some(deadline) = request.deadline {
            self.deadlines.insert((deadline, id));
        }
        self.all.insert(id, request);
        self.enqueue(id, false);
        true
    }

    fn enqueue(&mut self, id: RequestId, front: bool) {
        let Some(request) = self.all.get_mut(&id) else { return };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        request.place = Place::Backlog { ticket };
        self.backlog_rows += 1;
        self.backlog_bytes += request.bytes;
        let lane = self.lanes.entry(request.priority).or_default();
        if front { lane.push_front((id, ticket)) } else { lane.push_back((id, ticket)) }
    }

    /// Takes a request out of wherever it waits; where it is after that is for the caller to say.
    fn unplace(&mut self, id: RequestId) {
        let Some(request) = self.all.get(&id) else { return };
        match request.place {
            Place::Backlog { .. } => {
                self.backlog_rows -= 1;
                self.backlog_bytes -= request.bytes;
            }
            Place::Delayed { until } => {
                self.delayed.remove(&(until, id));
            }
            Place::Sent(_) => {}
        }
    }

    /// Puts a request back to the front of the backlog: it has waited longest.
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

    /// Counts an attempt that may have run; returns how many there were.
    pub(crate) fn count_attempt(&mut self, id: RequestId) -> u32 {
        self.all.get_mut(&id).map_or(0, |request| {
            request.attempts += 1;
            request.attempts
        })
    }

    pub(crate) fn remove(&mut self, id: RequestId) -> Option<Request> {
        self.unplace(id);
        let request = self.all.remove(&id)?;
        if let Some(deadline) = request.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        Some(request)
    }

    /// Takes the next requests to send to `peer`, up to `rows` of one method and priority, all with a deadline or all without,
    /// and up to `bytes` (at least one).
    pub(crate) fn take(&mut self, peer: PeerKey, rows: u64, bytes: u64) -> Vec<RequestId> {
        let mut taken: Vec<RequestId> = Vec::new();
        let mut total = 0;
        let mut kind = None;
        for lane in self.lanes.values_mut() {
            while let Some(&(id, ticket)) = lane.front() {
                let Some(request) = self.all.get_mut(&id).filter(|r| r.place == (Place::Backlog { ticket }))
                else {
                    lane.pop_front();
                    continue;
                };
                let fits = taken.is_empty() || total + request.bytes <= bytes;
                let limited = request.deadline.is_some() || request.attempt_timeout.is_some();
                let kind_of_this = (request.method, limited);
                if taken.len() as u64 >= rows || !fits || kind.is_some_and(|k| k != kind_of_this) {
                    return taken;
                }
                kind = Some(kind_of_this);
                total += request.bytes;
                self.backlog_rows -= 1;
                self.backlog_bytes -= request.bytes;
                request.place = Place::Sent(peer);
                taken.push(id);
                lane.pop_front();
            }
            if !taken.is_empty() {
                return taken;
            }
        }
        taken
    }

    /// Puts what is due again into the backlog, and returns those whose deadline has passed.
    pub(crate) fn tick(&mut self, now: Time) -> Vec<RequestId> {
        while let Some(&(at, id)) = self.delayed.first() {
            if at > now {
                break;
            }
            self.requeue(id);
        }
        self.deadlines.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::RecordBatch;
    use arrow_schema::Schema;
    use pelton_core::call::Outcome;

    use super::*;

    struct Nobody;
    impl Receiver for Nobody {
        fn deliver(&self, _: Vec<Outcome>) {}
    }

    fn id(sequence: u64) -> RequestId {
        RequestId { operator: 1, group: 1, sequence }
    }

    fn at(ms: u64) -> Time {
        Time::from_origin(Duration::from_millis(ms))
    }

    fn request(method: u16, priority: Priority, deadline: Option<u64>) -> Request {
        let rows = Arc::new(RecordBatch::new_empty(Arc::new(Schema::empty())));
        Request {
            method,
            priority,
            row: Piece { batch: rows, offset: 0, rows: 1 },
            bytes: 10,
            deadline: deadline.map(at),
            attempt_timeout: None,
            weight: 1.0,
            attempts: 0,
            receiver: Arc::new(Nobody),
            explicit: false,
            parts: 0,
            again: 0,
            place: Place::Backlog { ticket: 0 },
        }
    }

    /// The frames that requests, given as method, priority and deadline, are sent in: up to 3 rows and `bytes` each.
    fn check(requests: &[(u16, Priority, Option<u64>)], bytes: u64, expected: &[&[u64]]) {
        let mut all = Requests::default();
        for (i, (method, priority, deadline)) in requests.iter().enumerate() {
            assert!(all.insert(id(i as u64), request(*method, *priority, *deadline)));
        }
        let mut frames: Vec<Vec<u64>> = Vec::new();
        loop {
            let taken = all.take(1, 3, bytes);
            if taken.is_empty() {
                break;
            }
            frames.push(taken.iter().map(|id| id.sequence).collect());
        }
        assert_eq!(frames, expected);
        assert_eq!((all.backlog_rows(), all.backlog_bytes, all.len()), (0, 0, requests.len()));
    }

    #[test]
    fn a_frame_is_of_one_method_one_priority_and_one_kind_of_deadline() {
        use Priority::{Bulk, Interactive, Normal};
        check(&[(0, Normal, None); 4], 99, &[&[0, 1, 2], &[3]]);
        check(&[(0, Normal, None); 3], 20, &[&[0, 1], &[2]]);
        check(&[(0, Normal, None); 2], 1, &[&[0], &[1]]);
        check(&[(0, Normal, None), (1, Normal, None), (0, Normal, None)], 99, &[&[0], &[1], &[2]]);
        check(&[(0, Bulk, None), (0, Normal, None), (0, Interactive, None)], 99, &[&[2], &[1], &[0]]);
        check(&[(0, Normal, Some(5)), (0, Normal, Some(9)), (0, Normal, None)], 99, &[&[0, 1], &[2]]);
    }

    #[test]
    fn what_comes_back_goes_first_and_what_is_delayed_comes_back() {
        let mut all = Requests::default();
        for i in 0..3 {
            all.insert(id(i), request(0, Priority::Normal, None));
        }
        assert_eq!(all.take(1, 2, 99), [id(0), id(1)]);
        all.requeue(id(1));
        all.delay(id(0), at(5));
        assert_eq!((all.backlog_rows(), all.due()), (2, Some(at(5))));
        assert_eq!(all.take(1, 9, 99), [id(1), id(2)]);
        assert!(all.tick(at(5)).is_empty());
        assert_eq!(all.take(1, 9, 99), [id(0)]);
        assert_eq!((all.backlog_rows(), all.due()), (0, None));
    }

    #[test]
    fn removed_ones_leave_no_trace() {
        let mut all = Requests::default();
        for (i, deadline) in [None, Some(3), Some(4)].into_iter().enumerate() {
            all.insert(id(i as u64), request(0, Priority::Normal, deadline));
        }
        assert!(!all.insert(id(0), request(0, Priority::Normal, None)), "in flight already");
        assert_eq!(all.tick(at(3)), [id(1)]);
        all.delay(id(2), at(9));
        for i in 0..3 {
            assert!(all.remove(id(i)).is_some());
        }
        assert_eq!((all.len(), all.backlog_rows(), all.row_bytes(), all.due()), (0, 0, 0, None));
        assert!(all.take(1, 9, 99).is_empty());
    }
}
