//! What a client decides: events and time in, actions out.

mod answers;
mod credit;
mod endpoints;
mod held;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use pelton_core::call::{Acknowledge, Affinity, Holder, Outcome, Receiver, Submission};
use pelton_core::declaration::{Declaration, RetryLimits};
use pelton_core::endpoint::{Endpoint, EndpointDelta};
use pelton_core::id::InstanceId;
use pelton_core::meter::CallerMeter;
use pelton_core::service::{MethodSpec, check_columns};
use pelton_core::weigh::Scales;
use pelton_core::{Bytes, Error, Fate, Kind, RequestId, RequestRun, Result, Retry, Time};
use pelton_link::Message;
use pelton_policy::health::Admission;
use pelton_policy::{balance, retry};
use pelton_wire::body::{self, Piece, gather};
use pelton_wire::{Deadlines, Demand, Frame, Welcome};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::claims::Claims;
use crate::peer::{ConnectionId, Peer, PeerKey};
use crate::requests::{Lane, Place, Request, Requests, Target};
use credit::Credits;

/// Waits between attempts to connect.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Most instances that one client is connected to: with more of them, each client has its share.
pub const MOST_PEERS: usize = 64;
/// Most rows in one frame.
const FRAME_ROWS: u64 = 4096;
/// Most bytes of several rows in one frame; a larger one is alone in its frame. What is put together is copied.
const FRAME_BYTES: u64 = 16 << 20;
/// Acknowledgements go out with what is said next, or when there are so many of them, or when one has waited so long.
const ACKNOWLEDGED_TOGETHER: usize = 256;
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(500);
/// Results of so many bytes are acknowledged at once: the instance keeps them until then.
const LARGE_RESULTS: u64 = 64 << 10;

/// What happened.
pub enum Event {
    Submitted {
        submission: Submission,
        receiver: Arc<dyn Receiver>,
    },
    Cancelled(Vec<RequestId>),
    Acknowledged(Vec<RequestId>),
    /// Parts of streamed answers were taken, one for each id.
    Took(Vec<RequestId>),
    /// Whoever submitted the requests of these operators is gone, and another may come for them.
    Abandoned(Vec<u32>),
    /// Nothing more shall be sent.
    Held,
    Endpoints(EndpointDelta),
    Connected {
        peer: PeerKey,
        connection: ConnectionId,
        welcome: Box<Welcome>,
    },
    NotConnected {
        peer: PeerKey,
        error: Error,
    },
    Disconnected {
        peer: PeerKey,
        connection: ConnectionId,
    },
    Received {
        peer: PeerKey,
        connection: ConnectionId,
        message: Message,
    },
    Tick,
}

/// What to do about it, in this order.
pub enum Action {
    Connect {
        peer: PeerKey,
        endpoint: Endpoint,
        after: Duration,
    },
    Disconnect(PeerKey),
    Send(PeerKey, Message),
    Deliver(Arc<dyn Receiver>, Vec<Outcome>),
    /// Several requests, from this one on, ended with a row each.
    DeliverRows(Arc<dyn Receiver>, RequestId, RecordBatch),
}

pub struct State {
    service: String,
    methods: Arc<[MethodSpec]>,
    retry: RetryLimits,
    /// What pays for tries after a failure.
    budget: retry::Budget,
    default_timeout: Option<Duration>,
    default_attempt_timeout: Option<Duration>,
    max_message: Bytes,
    max_backlog: Bytes,
    instances: u32,
    scales: Scales,
    meter: CallerMeter,
    requests: Requests,
    peers: BTreeMap<PeerKey, Peer>,
    /// All instances that take requests, connected to or not.
    known: BTreeMap<InstanceId, Endpoint>,
    /// Makes this client's order of the instances its own.
    salt: u64,
    next_peer: PeerKey,
    /// Ended requests whose results wait at an instance for the caller's acknowledgement.
    ended: BTreeMap<RequestId, PeerKey>,
    /// What instances hold that is not in flight from here: where each is.
    held: Claims,
    /// The instances that were there at the start, as far as they have not said what they hold. None: no start yet.
    awaited: BTreeSet<InstanceId>,
    /// Whether it has been told of any instances.
    told: bool,
    holding: bool,
    credits: Credits,
    /// When the retry budget can pay for the next try that waits for it.
    paid_at: Option<Time>,
    /// When acknowledgements that wait go out at the latest; some time that was set stays, though they went earlier.
    acknowledges_at: Option<Time>,
    /// When it last looked.
    seen: Time,
    retries: u64,
    rng: StdRng,
}

impl State {
    pub fn new(declaration: &Declaration, methods: Arc<[MethodSpec]>, mut rng: StdRng, now: Time) -> Self {
        let Declaration { retry, batch, .. } = declaration;
        let rows = f64::from(batch.rows);
        let salt = rng.random();
        let paid = retry::Settings {
            share: retry.budget,
            per_second: 10.0 * rows.max(1.0),
            saved: (20.0 * rows).max(100.0),
        };
        State {
            service: declaration.name.clone(),
            methods,
            retry: *retry,
            budget: retry::Budget::new(paid, now),
            default_timeout: declaration.timeout,
            default_attempt_timeout: declaration.attempt_timeout,
            max_message: declaration.max_message,
            max_backlog: declaration.max_backlog,
            instances: declaration.instances.max,
            scales: Scales::new(&declaration.weight),
            meter: CallerMeter::default(),
            requests: Requests::default(),
            peers: BTreeMap::new(),
            known: BTreeMap::new(),
            salt,
            next_peer: 0,
            ended: BTreeMap::new(),
            held: Claims::default(),
            awaited: BTreeSet::new(),
            told: false,
            holding: false,
            credits: Credits::new(declaration.stream),
            paid_at: None,
            acknowledges_at: None,
            seen: now,
            retries: 0,
            rng,
        }
    }

    /// When [`Event::Tick`] is due.
    pub fn wake_at(&self) -> Option<Time> {
        let alone = self.alone();
        let probe = |p: &Peer| match p.health.admission(alone, Time::ZERO) {
            Admission::NotBefore(at) if p.takes_requests() && at > self.seen => Some(at),
            _ => None,
        };
        let probe =
            if self.requests.backlog_rows() > 0 { self.peers.values().filter_map(probe).min() } else { None };
        let due = [
            self.requests.due(),
            probe,
            self.hopeless_at(),
            self.paid_at,
            self.credits.due(),
            self.acknowledges_at,
        ];
        due.into_iter().flatten().min()
    }

    /// Whether no endpoint is left that answers.
    fn alone(&self) -> bool {
        !self.peers.values().any(|p| p.takes_requests() && p.health.is_well())
    }

    pub fn meter(&self) -> &CallerMeter {
        &self.meter
    }

    pub fn unended(&self) -> usize {
        self.requests.len()
    }

    pub fn sent(&self) -> usize {
        self.peers.values().map(|p| p.in_flight.len()).sum()
    }

    pub fn ready(&self) -> usize {
        self.peers.values().filter(|p| p.takes_requests()).count()
    }

    pub fn retries(&self) -> u64 {
        self.retries
    }

    pub fn holder(&self, id: RequestId) -> Holder {
        match self.requests.get(id).map(|r| r.place) {
            Some(Place::Sent(peer)) => self
                .peers
                .get(&peer)
                .map_or(Holder::Client, |p| Holder::Instance(p.endpoint.instance.clone())),
            _ => Holder::Client,
        }
    }

    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        self.handle_all([event], now)
    }

    /// What happened together is answered together: what several submissions bring goes out in one frame.
    pub fn handle_all(&mut self, events: impl IntoIterator<Item = Event>, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        for event in events {
            self.take_in(event, now, &mut actions);
        }
        self.seen = now;
        self.settle();
        self.look_at_the_time(now, &mut actions);
        self.mark_cancelled(&mut actions);
        self.flush_credits(now, &mut actions);
        self.send(now, &mut actions);
        self.announce(now, &mut actions);
        self.flush_acknowledgements(now, &mut actions);
        self.retire(&mut actions);
        coalesce(actions)
    }

    fn take_in(&mut self, event: Event, now: Time, actions: &mut Vec<Action>) {
        match event {
            Event::Submitted { submission, receiver } => self.submitted(submission, receiver, now, actions),
            Event::Cancelled(ids) => self.cancelled(ids, now, actions),
            Event::Acknowledged(ids) => self.acknowledged(ids),
            Event::Took(ids) => ids.into_iter().for_each(|id| self.credits.took(id, now)),
            Event::Abandoned(operators) => self.abandoned(&operators, now, actions),
            Event::Held => self.holding = true,
            Event::Endpoints(delta) => self.endpoints(delta, now, actions),
            Event::Connected { peer, connection, welcome } => {
                self.connected(peer, connection, &welcome, now, actions)
            }
            Event::NotConnected { peer, error } => self.not_connected(peer, &error, now, actions),
            Event::Disconnected { peer, connection } => self.disconnected(peer, connection, now, actions),
            Event::Received { peer, connection, message } => {
                self.received(peer, connection, message, now, actions)
            }
            Event::Tick => {}
        }
    }

    /// What has become due: deadlines, attempts that took too long, tries that were delayed.
    fn look_at_the_time(&mut self, now: Time, actions: &mut Vec<Action>) {
        for id in self.requests.late(now) {
            let error = Error::new(Kind::Deadline, self.fate(id), Retry::Never, "the deadline passed");
            self.tell_to_cancel(id, actions);
            self.end(id, Err(error), now, actions);
        }
        for id in self.requests.overdue(now) {
            self.attempt_overdue(id, now, actions);
        }
        if let Some(answer) = self.usual_answer() {
            for id in self.requests.hopeless(answer, now) {
                let message = format!("the deadline is too near: an answer takes {answer:?}");
                let error = Error::new(Kind::Deadline, self.fate(id), Retry::Never, message);
                self.end(id, Err(error), now, actions);
            }
        }
        for id in self.requests.again(now) {
            if self.requests.get(id).is_some_and(|r| r.unpaid) {
                self.requests.owe(id);
            } else {
                self.requests.requeue(id, now);
            }
        }
        self.paid_at = None;
        while let Some(id) = self.requests.owing() {
            if let Err(at) = self.budget.take(now) {
                self.paid_at = Some(at);
                break;
            }
            if let Some(request) = self.requests.get_mut(id) {
                request.unpaid = false;
            }
            self.requests.requeue(id, now);
        }
    }

    /// Tells the requests which instances are there. One that does not answer keeps its keys as long as no other is better.
    fn settle(&mut self) {
        if !self.requests.cares_where() {
            return;
        }
        let alone = self.alone();
        let there = self.peers.iter().filter(|(_, p)| p.takes_requests() && (alone || p.health.is_well()));
        let homes = there.map(|(key, p)| (p.endpoint.instance.number, *key)).collect();
        self.requests.set_homes(homes);
    }

    /// How long answers take, from the quickest of the instances.
    fn usual_answer(&self) -> Option<Duration> {
        let known = self.peers.values().filter(|p| p.takes_requests()).map(|p| p.answer.usual());
        known.filter(|d| !d.is_zero()).min()
    }

    /// When the next request of the backlog will have too little time left.
    fn hopeless_at(&self) -> Option<Time> {
        let answer = self.usual_answer()?;
        self.requests.hopeless_at(answer)
    }

    fn fate(&self, id: RequestId) -> Fate {
        match self.requests.get(id) {
            Some(Request { place: Place::Sent(_), .. }) => Fate::Unknown,
            Some(Request { attempts, .. }) if *attempts > 0 => Fate::Unknown,
            _ => Fate::NotSent,
        }
    }

    // --- the caller ---

    fn submitted(
        &mut self,
        submission: Submission,
        receiver: Arc<dyn Receiver>,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let Submission {
            method,
            ids,
            arguments,
            timeout,
            attempt_timeout,
            priority,
            keys,
            affinity,
            acknowledge,
            paced,
        } = submission;
        if let Err(e) = self.check(method, &ids, &arguments, keys.as_deref(), &affinity) {
            let outcome = |id| Outcome { id, rows: Err(e.clone()), last: true };
            actions.push(Action::Deliver(receiver, ids.into_iter().map(outcome).collect()));
            return;
        }
        let timeout = timeout.or(self.default_timeout);
        let attempt_timeout = attempt_timeout.or(self.default_attempt_timeout);
        let patience = [timeout, attempt_timeout].into_iter().flatten().min();
        let deadline = timeout.map(|t| now + t);
        let weights = self.scales.input(&arguments);
        let bytes = body::bytes(&arguments);
        let each = (bytes / ids.len().max(1) as u64).max(1);
        // Only where the whole could hold one row that is too large, each is looked at.
        let suspicious = bytes > self.max_message.get();
        let batch = Arc::new(arguments);
        let mut accepted = Vec::new();
        for (offset, id) in ids.into_iter().enumerate() {
            let size = if suspicious { body::bytes(&batch.slice(offset, 1)).max(1) } else { each };
            let refusal = (size > self.max_message.get())
                .then(|| {
                    Error::limit(format!(
                        "a request of {size} bytes is over the limit of service `{}` ({}); raise `max_message` in its declaration",
                        self.service, self.max_message
                    ))
                })
                .or_else(|| {
                    let full = self.requests.backlog_bytes() + size > self.max_backlog.get();
                    full.then(|| {
                        let message = format!(
                            "{} wait for service `{}` already; the limit is `max_backlog` of its declaration",
                            self.max_backlog, self.service
                        );
                        let wait = Retry::After(self.usual_answer().unwrap_or(Duration::from_millis(100)));
                        Error::new(Kind::Overload, Fate::NotSent, wait, message)
                    })
                })
                .or_else(|| self.requests.get(id).map(|_| Error::internal(format!("request {id} is in flight already"))));
            if let Some(error) = refusal {
                actions.push(Action::Deliver(
                    receiver.clone(),
                    vec![Outcome { id, rows: Err(error), last: true }],
                ));
                continue;
            }
            let request = Request {
                method: method as u16,
                priority,
                row: Piece { batch: batch.clone(), offset, rows: 1 },
                bytes: size,
                deadline,
                attempt_timeout,
                weight: weights.at(offset),
                patience,
                key: keys.as_ref().map(|keys| (id.operator, keys[offset])),
                target: match &affinity {
                    Affinity::Any => Target::Any,
                    Affinity::Keys(keys) => Target::Key(keys[offset]),
                    Affinity::Instance(number) => Target::Instance(*number),
                },
                avoid: None,
                lane: Lane::Any,
                since: now,
                submitted: now,
                waited: Duration::ZERO,
                attempt_until: None,
                losses: 0,
                unpaid: false,
                attempts: 0,
                receiver: receiver.clone(),
                explicit: acknowledge == Acknowledge::Explicit,
                parts: 0,
                paced,
                place: Place::Backlog { ticket: 0 },
            };
            self.credits.release(id, now);
            self.requests.insert(id, request);
            accepted.push(id);
        }
        self.take_up(&accepted, now, actions);
    }

    fn check(
        &self,
        method: usize,
        ids: &[RequestId],
        arguments: &RecordBatch,
        keys: Option<&[u64]>,
        affinity: &Affinity,
    ) -> Result<()> {
        let Some(spec) = self.methods.get(method) else {
            return Err(Error::invalid(format!("service `{}` has no method number {method}", self.service)));
        };
        if ids.len() != arguments.num_rows() {
            let rows = arguments.num_rows();
            return Err(Error::invalid(format!("{} request ids for {rows} rows of arguments", ids.len())));
        }
        if let Some(keys) = keys.filter(|keys| keys.len() != ids.len()) {
            return Err(Error::invalid(format!("{} keys for {} requests", keys.len(), ids.len())));
        }
        if let Affinity::Keys(keys) = affinity
            && keys.len() != ids.len()
        {
            return Err(Error::invalid(format!("{} affinity keys for {} requests", keys.len(), ids.len())));
        }
        if let Affinity::Instance(number) = affinity
            && *number >= self.instances
        {
            return Err(Error::invalid(format!(
                "service `{}` has instances 0 to {}, and no instance {number}",
                self.service,
                self.instances - 1
            )));
        }
        check_columns(format_args!("arguments of `{}.{}`", self.service, spec.name), arguments, &spec.input)
    }

    fn cancelled(&mut self, ids: Vec<RequestId>, now: Time, actions: &mut Vec<Action>) {
        for id in ids {
            if self.requests.get(id).is_none() {
                // Parts of an answer that has ended may not have been taken, and will not be.
                self.credits.release(id, now);
            } else {
                let error =
                    Error::new(Kind::Cancelled, self.fate(id), Retry::Never, "the request was cancelled");
                self.tell_to_cancel(id, actions);
                self.end(id, Err(error), now, actions);
            }
        }
    }

    fn tell_to_cancel(&mut self, id: RequestId, actions: &mut Vec<Action>) {
        if let Some(Place::Sent(peer)) = self.requests.get(id).map(|r| r.place) {
            match self.peers.get_mut(&peer) {
                Some(peer) if peer.connection.is_none() => peer.to_cancel.push(id),
                Some(known) => {
                    known.given_up.cancelled(id);
                    self.credits.forget(id, peer);
                    actions
                        .push(Action::Send(peer, Frame::Cancel { runs: vec![RequestRun::one(id)] }.into()));
                }
                None => {}
            }
        }
    }

    /// Before anything else is sent: what is cancelled may be sent again.
    fn mark_cancelled(&mut self, actions: &mut Vec<Action>) {
        for (&key, peer) in &mut self.peers {
            if let Some(ping) = peer.given_up.mark().filter(|_| peer.connection.is_some()) {
                actions.push(Action::Send(key, Frame::Ping(ping).into()));
            }
        }
    }

    fn acknowledged(&mut self, ids: Vec<RequestId>) {
        for id in ids {
            if let Some(peer) = self.ended.remove(&id).and_then(|peer| self.peers.get_mut(&peer)) {
                peer.to_acknowledge.push(id);
            }
        }
    }

    // --- flow ---

    /// Uses the permits that are there for what waits; gives back those that are too many.
    fn send(&mut self, now: Time, actions: &mut Vec<Action>) {
        let alone = self.alone();
        let holding = self.holding || self.is_waiting_to_resume();
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for &key in &keys {
            while let Some(peer) = self.peers.get(&key).filter(|p| !holding && p.window.available() > 0) {
                let suspect = self.requests.suspect_is_next(key);
                let rows = peer.window.available().min(peer.admits(alone, suspect, now));
                if rows == 0 || !self.send_some(key, rows, now, actions) {
                    break;
                }
            }
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            let unused = peer.window.available();
            if peer.connection.is_some() && unused > 0 {
                peer.window.returned += unused;
                let frame = Frame::Return { rows: peer.window.returned };
                actions.push(Action::Send(key, frame.into()));
            }
        }
        if !holding && !alone && self.requests.backlog_rows() > 0 {
            self.send_ahead(&keys, now, actions);
        }
    }

    /// A few rows go to instances without work together with what announces them: that there is room is all but sure, and if there is
    /// none they come back unseen. To ask first would take as long as many a call.
    fn send_ahead(&mut self, keys: &[PeerKey], now: Time, actions: &mut Vec<Action>) {
        let (rows, bytes) = (self.requests.backlog_rows(), self.requests.backlog_bytes());
        let idle =
            |p: &Peer| p.ahead.allows(rows, bytes) && p.is_idle() && p.admits(false, false, now) == u64::MAX;
        let idle: Vec<PeerKey> =
            keys.iter().copied().filter(|key| self.peers.get(key).is_some_and(idle)).collect();
        for (i, &key) in idle.iter().enumerate() {
            let rows = self.requests.backlog_rows().div_ceil((idle.len() - i) as u64);
            if rows == 0 || self.requests.suspect_is_next(key) {
                return;
            }
            let like = self.like();
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            if let Some(rows) = peer.window.announce(rows, like) {
                actions.push(Action::Send(key, Frame::Announce { rows, like }.into()));
            }
            self.send_some(key, rows, now, actions);
        }
    }

    /// Sends at most so many rows of the backlog in one frame. False if there is none for this instance.
    fn send_some(&mut self, key: PeerKey, rows: u64, now: Time, actions: &mut Vec<Action>) -> bool {
        let bytes = self.max_message.get().min(FRAME_BYTES);
        let taken = self.requests.take(key, rows.min(FRAME_ROWS), bytes, now);
        let any = !taken.is_empty();
        let ids = self.without_held(taken, now, actions);
        let Some(first) = ids.first().and_then(|id| self.requests.get(*id)) else { return any };
        let (method, priority, single) = (first.method, first.priority, first.alone());
        for id in &ids {
            let waited = self.requests.waited(*id).as_micros() as u64;
            self.meter.permit_wait.record(waited);
        }
        let Some(peer) = self.peers.get_mut(&key) else { return false };
        if !peer.health.is_well() {
            peer.health.probing();
        }
        peer.isolates = single;
        let requests = ids.iter().filter_map(|id| self.requests.get(*id));
        let deadlines = deadlines(requests.clone(), now);
        let bytes: u64 = requests.clone().map(|r| r.bytes).sum();
        let rows = gather(requests.map(|r| &r.row)).expect("arguments of one method have the same columns");
        peer.window.sent += ids.len() as u64;
        peer.in_flight.extend(ids.iter().copied());
        if peer.window.ahead() == 0 {
            peer.ahead.had(peer.in_flight.len() as u64, bytes / ids.len() as u64);
        }
        let runs = RequestRun::pack(ids);
        let frame = Frame::Request { method, priority, alone: single, deadlines, runs };
        actions.push(Action::Send(key, Message { frame, rows: Some(rows) }));
        true
    }

    /// What the rows are like that wait.
    fn like(&self) -> Demand {
        let [interactive, _, bulk] = self.requests.waiting();
        Demand {
            row_bytes: self.requests.row_bytes(),
            row_weight: self.requests.row_weight(),
            patience: self.requests.patience(),
            interactive,
            bulk,
        }
    }

    /// Tells the instances how much waits for each of them.
    fn announce(&mut self, now: Time, actions: &mut Vec<Action>) {
        let holding = self.holding || self.is_waiting_to_resume();
        let backlog = if holding { 0 } else { self.requests.unbound() };
        let like = self.like();
        let alone = self.alone();
        let mut takers: Vec<(PeerKey, &mut Peer)> =
            self.peers.iter_mut().filter(|(_, p)| p.takes_requests()).map(|(k, p)| (*k, p)).collect();
        let loads: Vec<u64> = takers.iter().map(|(_, p)| p.load()).collect();
        let admitted: Vec<u64> = (takers.iter())
            .map(|(key, p)| p.admits(alone, self.requests.suspect_is_next(*key), now))
            .collect();
        // One that was ejected has its one row to show that it is back; the others share what there is.
        let open: Vec<usize> = (0..takers.len()).filter(|i| admitted[*i] == u64::MAX).collect();
        let open_loads: Vec<u64> = open.iter().map(|i| loads[*i]).collect();
        let mut shares: Vec<u64> = admitted.iter().map(|most| backlog.min(*most)).collect();
        for (i, share) in open.into_iter().zip(balance::pour(backlog, &open_loads)) {
            shares[i] = share;
        }
        let all = self.requests.backlog_rows().max(1);
        for (((key, peer), share), most) in takers.iter_mut().zip(shares).zip(admitted) {
            let bound = if holding { 0 } else { self.requests.bound_to(*key) };
            let share = share.saturating_add(bound).min(most);
            let like = Demand {
                interactive: (like.interactive * share).div_ceil(all),
                bulk: (like.bulk * share) / all,
                ..like
            };
            if let Some(rows) = peer.window.announce(share, like) {
                actions.push(Action::Send(*key, Frame::Announce { rows, like }.into()));
            }
        }
    }

    fn flush_acknowledgements(&mut self, now: Time, actions: &mut Vec<Action>) {
        let due = self.acknowledges_at.is_some_and(|at| now >= at);
        if due {
            self.acknowledges_at = None;
        }
        for (&key, peer) in &mut self.peers {
            if peer.connection.is_none() || peer.to_acknowledge.is_empty() {
                continue;
            }
            let spoken = actions.iter().position(|a| matches!(a, Action::Send(to, _) if *to == key));
            let many = peer.to_acknowledge.len() >= ACKNOWLEDGED_TOGETHER;
            if !(due || many || peer.acknowledges_at_once() || spoken.is_some()) {
                self.acknowledges_at.get_or_insert(now + ACKNOWLEDGED_WITHIN);
                continue;
            }
            // Before all else: one of them may be requested anew.
            let at = spoken.unwrap_or(actions.len());
            actions.splice(at..at, acknowledge(key, peer, due));
        }
    }

    /// What is to be said before the connections end.
    pub fn farewell(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for (&key, peer) in &mut self.peers {
            if peer.connection.is_some() {
                actions.extend(acknowledge(key, peer, false));
            }
        }
        actions
    }
}

/// Tells an instance which results it may forget. `asks`: also whether it heard of those before.
fn acknowledge(key: PeerKey, peer: &mut Peer, asks: bool) -> Vec<Action> {
    peer.has_large_results = false;
    let all = std::mem::take(&mut peer.to_acknowledge);
    let runs = |ids: &[RequestId]| RequestRun::pack(ids.iter().copied());
    let frames = all.chunks(1 << 16).map(|ids| Frame::Acknowledge { runs: runs(ids) });
    let mut actions: Vec<Action> = frames.map(|frame| Action::Send(key, frame.into())).collect();
    if let Some(ping) = peer.acknowledged.sent(&all, asks) {
        actions.push(Action::Send(key, Frame::Ping(ping).into()));
    }
    actions
}

/// What each of these has left for this attempt. All of them have a limit, or none.
fn deadlines<'a>(requests: impl Iterator<Item = &'a Request>, now: Time) -> Deadlines {
    let left = |r: &Request| {
        let overall = r.deadline.map(|at| at.since(now));
        [overall, r.attempt_timeout].into_iter().flatten().min()
    };
    let each: Vec<Duration> = requests.filter_map(left).collect();
    match each.first() {
        None => Deadlines::None,
        Some(first) if each.iter().all(|d| d == first) => Deadlines::All(*first),
        Some(_) => Deadlines::Each(each),
    }
}

/// Neighbouring deliveries to one receiver become one.
fn coalesce(actions: Vec<Action>) -> Vec<Action> {
    let mut merged: Vec<Action> = Vec::with_capacity(actions.len().min(64));
    for action in actions {
        match (merged.last_mut(), action) {
            (Some(Action::Deliver(last, outcomes)), Action::Deliver(receiver, more))
                if Arc::ptr_eq(last, &receiver) =>
            {
                outcomes.extend(more);
            }
            (_, action) => merged.push(action),
        }
    }
    merged
}

#[cfg(test)]
mod tests;
