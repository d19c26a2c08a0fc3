//! The requests of a client: where each is, and in what order those go that have not been sent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use pelton_core::call::{Priority, Receiver};
use pelton_core::id::stable_hash;
use pelton_core::{RequestId, RequestRun, Time};
use pelton_wire::body::Piece;

use crate::peer::PeerKey;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Waits to be sent; `ticket` tells its place in the backlog from an older one.
    Backlog { ticket: u64 },
    /// Waits for the time to be tried again.
    Delayed { until: Time },
    /// Waits until the retry budget can pay for its next try; `ticket` tells its place in that line from an older one.
    Unpaid { ticket: u64 },
    /// Waits for an earlier request of its key.
    Behind,
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
    /// How long its caller waits for an answer.
    pub(crate) patience: Option<Duration>,
    /// Requests of one key run one after another.
    pub(crate) key: Option<Key>,
    /// Which instances it may go to.
    pub(crate) target: Target,
    /// The instance that failed it: it goes to another, if there is one.
    pub(crate) avoid: Option<PeerKey>,
    /// The lane that it waits in, or waited in last.
    pub(crate) lane: Lane,
    /// Since when it waits for a permit, or since when an instance has it.
    pub(crate) since: Time,
    pub(crate) submitted: Time,
    /// How long it waited for the permit that it was sent on.
    pub(crate) waited: Duration,
    /// When this attempt has had its time.
    pub(crate) attempt_until: Option<Time>,
    /// How often an instance was lost that had it.
    pub(crate) losses: u32,
    /// Its next try has to be paid for by the retry budget.
    pub(crate) unpaid: bool,
    /// Attempts that may have run.
    pub(crate) attempts: u32,
    pub(crate) receiver: Arc<dyn Receiver>,
    /// Whether its ledger entry stays until the caller acknowledges it.
    pub(crate) explicit: bool,
    /// Parts of a stream that its caller has.
    pub(crate) parts: u32,
    /// Its caller says when it has taken them.
    pub(crate) paced: bool,
    pub(crate) place: Place,
}

/// Which instances a request may go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Target {
    #[default]
    Any,
    /// The instance that this key belongs to.
    Key(u64),
    /// The instance of this number.
    Instance(u32),
}

/// Whom a waiting request waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    #[default]
    Any,
    Peer(PeerKey),
    /// Its instance is not there.
    Nobody,
}

/// A call site and one of its keys.
pub(crate) type Key = (u32, u64);

/// Lost with so many instances, a request is run alone from then on: it may be what they die of.
const SUSPECT: u32 = 2;

impl Request {
    /// Its time from when it was submitted.
    fn timeout(&self) -> Option<Duration> {
        self.deadline.map(|at| at.since(self.submitted))
    }

    /// Whether the limit of its attempt comes before its deadline.
    pub(crate) fn is_hurried(&self) -> bool {
        let first = |at: &Time| self.deadline.is_none_or(|deadline| *at < deadline);
        self.attempt_until.as_ref().is_some_and(first)
    }

    /// Whether it shall run in a batch of its own.
    pub(crate) fn alone(&self) -> bool {
        self.losses >= SUSPECT
    }

    /// What only requests that are equal in it can share a frame.
    fn kind(&self) -> (u16, bool, bool) {
        (self.method, self.deadline.is_some() || self.attempt_timeout.is_some(), self.alone())
    }
}

/// All requests that have not ended.
#[derive(Default)]
pub(crate) struct Requests {
    all: BTreeMap<RequestId, Request>,
    /// What waits to be sent, by priority. A place whose ticket is not its request's any more is skipped.
    lanes: BTreeMap<(Priority, Lane), VecDeque<(RequestId, u64)>>,
    /// Rows that wait for one instance, or for none that is there.
    bound: BTreeMap<Lane, u64>,
    /// The instances that take requests: by their number within the service.
    homes: BTreeMap<u32, PeerKey>,
    /// Whether any request ever cared where it goes.
    choosy: bool,
    backlog_rows: u64,
    backlog_bytes: u64,
    backlog_weight: f64,
    /// Rows of the backlog by priority.
    waiting: [u64; 3],
    /// How many requests have which patience.
    patience: BTreeMap<Duration, u64>,
    /// The requests that wait behind an earlier one of their key, which is not among them.
    keys: BTreeMap<Key, VecDeque<RequestId>>,
    /// When attempts have had their time.
    attempts: BTreeSet<(Time, RequestId)>,
    delayed: BTreeSet<(Time, RequestId)>,
    /// Tries that nobody has paid for yet, in line. A place whose ticket is not its request's any more is skipped.
    unpaid: VecDeque<(RequestId, u64)>,
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

    /// Those of a run.
    pub(crate) fn within(&self, run: RequestRun) -> Vec<RequestId> {
        let last = RequestId { sequence: run.first.sequence + u64::from(run.count - 1), ..run.first };
        self.all.range(run.first..=last).map(|(id, _)| *id).collect()
    }

    /// Those that are like this.
    pub(crate) fn of(&self, like: impl Fn(&RequestId) -> bool) -> Vec<RequestId> {
        self.all.keys().filter(|id| like(id)).copied().collect()
    }

    pub(crate) fn backlog_rows(&self) -> u64 {
        self.backlog_rows
    }

    /// Bytes of the rows that wait.
    pub(crate) fn backlog_bytes(&self) -> u64 {
        self.backlog_bytes
    }

    /// Rows that wait for this instance and no other.
    pub(crate) fn bound_to(&self, peer: PeerKey) -> u64 {
        self.bound.get(&Lane::Peer(peer)).copied().unwrap_or(0)
    }

    /// Rows that any instance may have.
    pub(crate) fn unbound(&self) -> u64 {
        self.backlog_rows - self.bound.values().sum::<u64>()
    }

    /// Whether it matters which instances take requests.
    pub(crate) fn cares_where(&self) -> bool {
        self.choosy
    }

    /// The instances that take requests have changed: what waits for one of them is put where it belongs now.
    pub(crate) fn set_homes(&mut self, homes: BTreeMap<u32, PeerKey>) {
        if homes == self.homes {
            return;
        }
        self.homes = homes;
        let moved: Vec<(Priority, Lane)> =
            self.lanes.keys().filter(|(_, lane)| *lane != Lane::Any).copied().collect();
        for lane in moved {
            for (id, ticket) in self.lanes.remove(&lane).unwrap_or_default() {
                let Some(request) = self.all.get(&id).filter(|r| r.place == (Place::Backlog { ticket }))
                else {
                    continue;
                };
                let (home, priority) = (self.home(request.target, request.avoid, ticket), request.priority);
                self.unbind(lane.1);
                self.bind(home);
                if let Some(request) = self.all.get_mut(&id) {
                    request.lane = home;
                }
                self.lanes.entry((priority, home)).or_default().push_back((id, ticket));
            }
        }
    }

    /// The lane of what may go there: a key's is that of the instance which ranks highest for it (rendezvous hashing).
    /// What avoids one goes to the others in turn.
    fn home(&self, target: Target, avoid: Option<PeerKey>, turn: u64) -> Lane {
        let peer = match target {
            Target::Any => {
                let others = || self.homes.values().filter(|peer| avoid.is_some_and(|a| a != **peer));
                let other = (turn % (others().count() as u64).max(1)) as usize;
                return others().nth(other).map_or(Lane::Any, |peer| Lane::Peer(*peer));
            }
            Target::Key(key) => {
                let rank = |number: &u32| stable_hash(&format!("{key:x} {number}"));
                self.homes.iter().max_by_key(|(number, _)| rank(number)).map(|(_, peer)| *peer)
            }
            Target::Instance(number) => self.homes.get(&number).copied(),
        };
        peer.map_or(Lane::Nobody, Lane::Peer)
    }

    fn bind(&mut self, lane: Lane) {
        if lane != Lane::Any {
            *self.bound.entry(lane).or_default() += 1;
        }
    }

    fn unbind(&mut self, lane: Lane) {
        if lane != Lane::Any
            && let Some(rows) = self.bound.get_mut(&lane)
        {
            *rows -= 1;
            if *rows == 0 {
                self.bound.remove(&lane);
            }
        }
    }

    /// How long a request that was sent had waited for it.
    pub(crate) fn waited(&self, id: RequestId) -> Duration {
        self.all.get(&id).map_or(Duration::ZERO, |r| r.waited)
    }

    /// Mean size of the rows that wait.
    pub(crate) fn row_bytes(&self) -> u64 {
        self.backlog_bytes.checked_div(self.backlog_rows).unwrap_or(0)
    }

    /// Mean weight of the rows that wait.
    pub(crate) fn row_weight(&self) -> f64 {
        if self.backlog_rows == 0 { 0.0 } else { self.backlog_weight / self.backlog_rows as f64 }
    }

    /// Rows that wait, by priority.
    pub(crate) fn waiting(&self) -> [u64; 3] {
        self.waiting
    }

    /// The shortest time that any caller waits for an answer.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.patience.first_key_value().map(|(d, _)| *d)
    }

    /// When something is due: a delayed try or a deadline.
    pub(crate) fn due(&self) -> Option<Time> {
        let first = |set: &BTreeSet<(Time, RequestId)>| set.first().map(|(at, _)| *at);
        [first(&self.delayed), first(&self.deadlines), first(&self.attempts)].into_iter().flatten().min()
    }

    /// A new request, at the end of the backlog. `place` is set here. False if the id is in flight already.
    pub(crate) fn insert(&mut self, id: RequestId, request: Request) -> bool {
        if self.all.contains_key(&id) {
            return false;
        }
        if let Some(deadline) = request.deadline {
            self.deadlines.insert((deadline, id));
        }
        if let Some(patience) = request.patience {
            *self.patience.entry(patience).or_default() += 1;
        }
        let (key, since) = (request.key, request.since);
        self.all.insert(id, request);
        match key.and_then(|key| self.keys.get_mut(&key)) {
            Some(behind) => {
                behind.push_back(id);
                if let Some(request) = self.all.get_mut(&id) {
                    request.place = Place::Behind;
                }
            }
            None => {
                key.map(|key| self.keys.insert(key, VecDeque::new()));
                self.enqueue(id, false, since);
            }
        }
        true
    }

    /// The first request of a key has ended, or was never sent: the next one's turn.
    fn free(&mut self, key: Key, id: RequestId, was_behind: bool, now: Time) {
        let Some(behind) = self.keys.get_mut(&key) else { return };
        if was_behind {
            behind.retain(|other| *other != id);
            return;
        }
        match behind.pop_front() {
            Some(next) => self.enqueue(next, false, now),
            None => {
                self.keys.remove(&key);
            }
        }
    }

    fn enqueue(&mut self, id: RequestId, front: bool, now: Time) {
        let Some((target, avoid)) = self.all.get(&id).map(|r| (r.target, r.avoid)) else { return };
        self.choosy |= target != Target::Any || avoid.is_some();
        let home = self.home(target, avoid, self.next_ticket);
        self.bind(home);
        let Some(request) = self.all.get_mut(&id) else { return };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        request.place = Place::Backlog { ticket };
        request.lane = home;
        request.since = now;
        self.backlog_rows += 1;
        self.backlog_bytes += request.bytes;
        self.backlog_weight += request.weight;
        self.waiting[request.priority as usize] += 1;
        let lane = self.lanes.entry((request.priority, home)).or_default();
        if front { lane.push_front((id, ticket)) } else { lane.push_back((id, ticket)) }
    }

    /// Takes a request out of wherever it waits; where it is after that is for the caller to say.
    fn unplace(&mut self, id: RequestId) {
        let Some(request) = self.all.get(&id) else { return };
        match request.place {
            Place::Backlog { .. } => {
                self.backlog_rows -= 1;
                self.backlog_bytes -= request.bytes;
                self.backlog_weight -= request.weight;
                self.waiting[request.priority as usize] -= 1;
                let lane = request.lane;
                self.unbind(lane);
            }
            Place::Delayed { until } => {
                self.delayed.remove(&(until, id));
            }
            Place::Sent(_) => {
                if let Some(at) = request.attempt_until {
                    self.attempts.remove(&(at, id));
                }
            }
            Place::Behind | Place::Unpaid { .. } => {}
        }
    }

    /// Puts a request back to the front of the backlog: it has waited longest.
    pub(crate) fn requeue(&mut self, id: RequestId, now: Time) {
        self.unplace(id);
        self.enqueue(id, true, now);
    }

    pub(crate) fn delay(&mut self, id: RequestId, until: Time) {
        self.unplace(id);
        if let Some(request) = self.all.get_mut(&id) {
            request.place = Place::Delayed { until };
            self.delayed.insert((until, id));
        }
    }

    /// Puts a request into the line of those whose next try has to be paid for.
    pub(crate) fn owe(&mut self, id: RequestId) {
        self.unplace(id);
        if let Some(request) = self.all.get_mut(&id) {
            let ticket = self.next_ticket;
            self.next_ticket += 1;
            request.place = Place::Unpaid { ticket };
            self.unpaid.push_back((id, ticket));
        }
    }

    /// The first of that line.
    pub(crate) fn owing(&mut self) -> Option<RequestId> {
        while let Some(&(id, ticket)) = self.unpaid.front() {
            if self.all.get(&id).is_some_and(|r| r.place == (Place::Unpaid { ticket })) {
                return Some(id);
            }
            self.unpaid.pop_front();
        }
        None
    }

    /// Counts an attempt that may have run; returns how many there were.
    pub(crate) fn count_attempt(&mut self, id: RequestId) -> u32 {
        self.all.get_mut(&id).map_or(0, |request| {
            request.attempts += 1;
            request.attempts
        })
    }

    pub(crate) fn remove(&mut self, id: RequestId, now: Time) -> Option<Request> {
        self.unplace(id);
        let request = self.all.remove(&id)?;
        if let Some(count) = request.patience.and_then(|p| self.patience.get_mut(&p)) {
            *count -= 1;
            if *count == 0 {
                request.patience.map(|p| self.patience.remove(&p));
            }
        }
        if let Some(key) = request.key {
            self.free(key, id, request.place == Place::Behind, now);
        }
        if self.backlog_rows == 0 {
            // What rounding left behind.
            self.backlog_weight = 0.0;
        }
        if let Some(deadline) = request.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        Some(request)
    }

    /// Requests of the backlog that had better end now: they have waited for more than half of their time, and what is left is less
    /// than `answer`, which an answer takes. Sent, they would only keep others from being in time.
    pub(crate) fn hopeless(&self, answer: Duration, now: Time) -> Vec<RequestId> {
        let soon = self.deadlines.iter().take_while(|(at, _)| at.since(now) < answer);
        let in_vain = |id: &RequestId| {
            self.all.get(id).is_some_and(|r| {
                let left = r.deadline.map_or(Duration::MAX, |at| at.since(now));
                matches!(r.place, Place::Backlog { .. } | Place::Behind)
                    && r.timeout().is_some_and(|all| left < all / 2)
            })
        };
        soon.map(|(_, id)| *id).filter(in_vain).collect()
    }

    /// When the next request becomes hopeless, with answers that take so long.
    pub(crate) fn hopeless_at(&self, answer: Duration) -> Option<Time> {
        if self.backlog_rows == 0 {
            return None;
        }
        // The first deadline of all is near enough: later ones are found when something happens.
        let waits = |r: &&Request| matches!(r.place, Place::Backlog { .. } | Place::Behind);
        let (at, first) = self
            .deadlines
            .iter()
            .find_map(|(at, id)| self.all.get(id).filter(waits).map(|request| (*at, request)))?;
        let half = first.timeout().unwrap_or_default() / 2;
        Some(at - answer.min(half) + Duration::from_nanos(1))
    }

    /// Whether the next in line shall be alone.
    pub(crate) fn suspect_is_next(&mut self, peer: PeerKey) -> bool {
        for lane in lanes_of(&mut self.lanes, peer) {
            while let Some(&(id, ticket)) = lane.front() {
                match self.all.get(&id).filter(|r| r.place == (Place::Backlog { ticket })) {
                    Some(request) => return request.alone(),
                    None => lane.pop_front(),
                };
            }
        }
        false
    }

    /// The next requests in line, as many as one frame to `peer` may hold; they are there after this. Up to `rows` of one method and
    /// priority, all with a limit on their time or all without, and up to `bytes` (at least one).
    pub(crate) fn take(&mut self, peer: PeerKey, rows: u64, bytes: u64, now: Time) -> Vec<RequestId> {
        let mut taken: Vec<RequestId> = Vec::new();
        let mut total = 0;
        let mut kind = None;
        for lane in lanes_of(&mut self.lanes, peer) {
            while let Some(&(id, ticket)) = lane.front() {
                let Some(request) = self.all.get_mut(&id).filter(|r| r.place == (Place::Backlog { ticket }))
                else {
                    lane.pop_front();
                    continue;
                };
                let fits = taken.is_empty() || total + request.bytes <= bytes;
                let kind_of_this = request.kind();
                if taken.len() as u64 >= rows || !fits || kind.is_some_and(|k| k != kind_of_this) {
                    return taken;
                }
                kind = Some(kind_of_this);
                total += request.bytes;
                self.backlog_rows -= 1;
                self.backlog_bytes -= request.bytes;
                self.backlog_weight -= request.weight;
                self.waiting[request.priority as usize] -= 1;
                if request.lane != Lane::Any
                    && let Some(rows) = self.bound.get_mut(&request.lane)
                {
                    *rows -= 1;
                }
                request.place = Place::Sent(peer);
                request.waited = now.since(request.since);
                request.since = now;
                request.attempt_until = request.attempt_timeout.map(|timeout| now + timeout);
                if let Some(at) = request.attempt_until {
                    self.attempts.insert((at, id));
                }
                taken.push(id);
                lane.pop_front();
            }
            if !taken.is_empty() {
                return taken;
            }
        }
        taken
    }

    /// An instance has it already.
    pub(crate) fn place(&mut self, id: RequestId, peer: PeerKey, now: Time) {
        self.unplace(id);
        let Some(request) = self.all.get_mut(&id) else { return };
        request.place = Place::Sent(peer);
        request.since = now;
        request.attempt_until = request.attempt_timeout.map(|timeout| now + timeout);
        if let Some(at) = request.attempt_until {
            self.attempts.insert((at, id));
        }
    }

    /// Those whose attempt has had its time.
    pub(crate) fn overdue(&self, now: Time) -> Vec<RequestId> {
        self.attempts.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect()
    }

    /// Those that were delayed until now.
    pub(crate) fn again(&self, now: Time) -> Vec<RequestId> {
        self.delayed.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect()
    }

    /// Those whose deadline has passed.
    pub(crate) fn late(&self, now: Time) -> Vec<RequestId> {
        self.deadlines.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect()
    }
}

/// What may go to this instance, the highest priority first, and of each what may go nowhere else.
fn lanes_of(
    lanes: &mut BTreeMap<(Priority, Lane), VecDeque<(RequestId, u64)>>,
    peer: PeerKey,
) -> impl Iterator<Item = &mut VecDeque<(RequestId, u64)>> {
    let fits = move |lane: &Lane| *lane == Lane::Any || *lane == Lane::Peer(peer);
    let mut found: Vec<_> = lanes.iter_mut().filter(|((_, lane), _)| fits(lane)).collect();
    found.sort_by_key(|((priority, lane), _)| (*priority, *lane == Lane::Any));
    found.into_iter().map(|(_, lane)| lane)
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
            patience: None,
            key: None,
            target: Target::Any,
            avoid: None,
            lane: Lane::Any,
            since: Time::ZERO,
            submitted: Time::ZERO,
            waited: Duration::ZERO,
            attempt_until: None,
            losses: 0,
            unpaid: false,
            attempts: 0,
            receiver: Arc::new(Nobody),
            explicit: false,
            parts: 0,
            paced: false,
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
            let taken = all.take(1, 3, bytes, Time::ZERO);
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
        assert_eq!(all.take(1, 2, 99, at(1)), [id(0), id(1)]);
        all.requeue(id(1), at(1));
        all.delay(id(0), at(5));
        assert_eq!((all.backlog_rows(), all.due()), (2, Some(at(5))));
        assert_eq!(all.take(1, 9, 99, at(2)), [id(1), id(2)]);
        assert!(all.late(at(5)).is_empty());
        assert_eq!(all.again(at(5)), [id(0)]);
        all.requeue(id(0), at(5));
        assert_eq!(all.take(1, 9, 99, at(5)), [id(0)]);
        assert_eq!((all.backlog_rows(), all.due()), (0, None));
    }

    #[test]
    fn requests_of_a_key_go_one_after_another() {
        let mut all = Requests::default();
        for (i, key) in [1, 1, 2, 1].into_iter().enumerate() {
            all.insert(id(i as u64), Request { key: Some((0, key)), ..request(0, Priority::Normal, None) });
        }
        assert_eq!(all.take(1, 9, 99, at(0)), [id(0), id(2)]);
        // The one in the middle is taken back; the one that failed is tried again before those behind it.
        all.remove(id(1), at(1));
        all.requeue(id(0), at(1));
        assert_eq!(all.take(1, 9, 99, at(1)), [id(0)]);
        all.remove(id(0), at(2));
        assert_eq!(all.take(1, 9, 99, at(2)), [id(3)]);
        all.remove(id(3), at(3));
        all.remove(id(2), at(3));
        assert!(all.keys.is_empty());
    }

    #[test]
    fn attempts_have_their_time_and_the_hopeless_are_told_early() {
        let mut all = Requests::default();
        let attempt_timeout = Some(Duration::from_millis(5));
        all.insert(id(0), Request { attempt_timeout, ..request(0, Priority::Normal, None) });
        all.take(1, 9, 99, at(1));
        assert_eq!((all.due(), all.overdue(at(5)).len(), all.overdue(at(6))), (Some(at(6)), 0, vec![id(0)]));
        all.requeue(id(0), at(6));
        assert_eq!(all.due(), None);
        all.insert(id(1), request(0, Priority::Normal, Some(100)));
        let answer = Duration::from_millis(30);
        assert!(all.hopeless(answer, at(69)).is_empty());
        assert_eq!(all.hopeless(answer, at(71)), [id(1)]);
        assert!(all.hopeless(answer * 9, at(49)).is_empty(), "half of its time is always its own");
    }

    #[test]
    fn what_belongs_to_an_instance_waits_for_it() {
        let mut all = Requests::default();
        let homes = |numbers: &[u32]| numbers.iter().map(|n| (*n, 10 + u64::from(*n))).collect();
        all.set_homes(homes(&[0, 1, 2]));
        for i in 0..60 {
            let target = if i < 50 { Target::Key(i % 25) } else { Target::Instance(7) };
            all.insert(id(i), Request { target, ..request(0, Priority::Normal, None) });
        }
        all.insert(id(60), request(0, Priority::Normal, None));
        let bound = |all: &Requests| [10, 11, 12].map(|peer| all.bound_to(peer));
        let before = bound(&all);
        assert_eq!((before.iter().sum::<u64>(), all.unbound()), (50, 1));
        assert!(before.iter().all(|n| *n > 0 && *n % 2 == 0), "both requests of a key: {before:?}");
        // One instance goes: its keys move, the others' stay. Another comes that some wait for.
        all.set_homes(homes(&[0, 2, 7]));
        let after = bound(&all);
        assert_eq!((after[1], all.bound_to(17) >= 10), (0, true));
        let taken = all.take(17, 100, 9999, at(1));
        assert!((50..60).all(|i| taken.contains(&id(i))) && !taken.contains(&id(60)), "{taken:?}");
        assert_eq!(all.take(17, 100, 9999, at(1)), [id(60)], "and then what may go anywhere");
        for i in 0..61 {
            all.remove(id(i), at(2));
        }
        assert_eq!((all.backlog_rows(), all.unbound(), all.bound.values().sum::<u64>()), (0, 0, 0));
    }

    #[test]
    fn what_waits_is_known() {
        let mut all = Requests::default();
        for (i, (priority, weight)) in
            [(Priority::Bulk, 2.0), (Priority::Interactive, 4.0)].into_iter().enumerate()
        {
            let patience = Some(Duration::from_secs(1 + i as u64));
            all.insert(id(i as u64), Request { weight, patience, ..request(0, priority, None) });
        }
        assert_eq!((all.row_weight(), all.waiting()), (3.0, [1, 0, 1]));
        assert_eq!(all.patience(), Some(Duration::from_secs(1)));
        all.remove(id(0), at(1));
        assert_eq!((all.row_weight(), all.waiting()), (4.0, [1, 0, 0]));
        assert_eq!(all.patience(), Some(Duration::from_secs(2)));
    }

    #[test]
    fn removed_ones_leave_no_trace() {
        let mut all = Requests::default();
        for (i, deadline) in [None, Some(3), Some(4)].into_iter().enumerate() {
            all.insert(id(i as u64), request(0, Priority::Normal, deadline));
        }
        assert!(!all.insert(id(0), request(0, Priority::Normal, None)), "in flight already");
        assert_eq!(all.late(at(3)), [id(1)]);
        all.delay(id(2), at(9));
        for i in 0..3 {
            assert!(all.remove(id(i), at(3)).is_some());
        }
        assert_eq!((all.len(), all.backlog_rows(), all.row_bytes(), all.due()), (0, 0, 0, None));
        assert!(all.take(1, 9, 99, at(9)).is_empty());
    }
}
