//! What a remote service's caller decides: events and time in, actions out.
//!
//! It holds the requests, forms calls of them (one row, or as many as the protocol and the declaration let one message carry), and says
//! which endpoint gets which call when. Each endpoint has one [limiter](pelton_policy::limiter) and one
//! [health](pelton_policy::health); retries come out of one [budget](pelton_policy::retry). No clock, no connection, no task.
//!
//! What counts as an attempt: whatever may have run. What was refused (429, 503) or never got through does not, once the service has
//! answered anything; before that it does, so that a wrong address ends in an error and not in endless patience.

mod calls;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use pelton_core::call::{Holder, Outcome, Receiver, Submission};
use pelton_core::declaration::{BatchLimits, RetryLimits, Weight};
use pelton_core::id::InstanceId;
use pelton_core::service::{Cardinality, MethodSpec, check_columns};
use pelton_core::weigh::Scales;
use pelton_core::{Error, Fate, Kind, RequestId, Result, Retry, Time};
use pelton_policy::health::{self, Admission, Health};
use pelton_policy::limiter::{self, Ended, Limiter, Room};
use pelton_policy::retry::{self, Budget};
use pelton_wire::body::{self, Piece, gather};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::requests::{Place, Request, Requests};

/// How long an attempt may take where nobody says: long enough for a long answer of a language model, and an end to waiting for nothing.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(600);
/// Calls whose mean weight is one unit of the window, from then on.
const WEIGHED: u32 = 100;

/// Which endpoint: its place in the declaration's list.
pub type EndpointKey = usize;
/// A call as the state numbers it.
pub type CallKey = u64;

/// What happened.
pub enum Event {
    Submitted {
        submission: Submission,
        receiver: Arc<dyn Receiver>,
    },
    Cancelled(Vec<RequestId>),
    /// Whoever submitted the requests of these operators is gone.
    Abandoned(Vec<u32>),
    /// Nothing more shall be sent.
    Held,
    /// Rows of a streaming method's call that is not at its end.
    Part {
        call: CallKey,
        rows: RecordBatch,
    },
    /// A call's answer: a row for each of its requests in their order, or, of a streaming method, its last rows, maybe none.
    Ended {
        call: CallKey,
        result: Result<RecordBatch, Failure>,
    },
    Tick,
}

/// What to do about it, in this order.
pub enum Action {
    Start(Start),
    /// Nobody waits for this call any more.
    Abort(CallKey),
    Deliver(Arc<dyn Receiver>, Vec<Outcome>),
}

/// A call to make.
pub struct Start {
    pub call: CallKey,
    pub endpoint: EndpointKey,
    pub method: usize,
    /// One row a request.
    pub arguments: RecordBatch,
    /// How long the answer may take. Given up by the state; for servers that can be told.
    pub within: Duration,
}

/// A call that gave no answer.
#[derive(Clone, Debug)]
pub struct Failure {
    pub error: Error,
    pub cause: Cause,
}

/// What a failed call says of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Too much at the moment (429); how long the server asks to be left alone, if it says so.
    Refused { pause: Option<Duration> },
    /// The endpoint is to blame: not reached, broken off, 503, nonsense for an answer.
    Endpoint,
    /// The request is, or the server's code: it lives. `one`: of several rows in one call, one may be to blame.
    Request { one: bool },
}

/// What the state needs to know of its service.
#[derive(Clone)]
pub struct Settings {
    pub service: String,
    pub methods: Arc<[MethodSpec]>,
    /// Most rows in one call, by method.
    pub rows: Vec<usize>,
    pub endpoints: usize,
    pub batch: BatchLimits,
    pub retry: RetryLimits,
    pub timeout: Option<Duration>,
    pub attempt_timeout: Option<Duration>,
    pub weight: Weight,
}

/// What is known of one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EndpointStats {
    /// Units that may be in flight; a call is one, unless calls have weights.
    pub window: f64,
    pub in_flight: u64,
    pub answers: u64,
    pub refusals: u64,
    pub failures: u64,
    /// It gets nothing but a call now and then that tries whether it is back.
    pub ejected: bool,
}

struct Server {
    limiter: Limiter,
    health: Health,
    stats: EndpointStats,
}

struct Call {
    endpoint: EndpointKey,
    method: usize,
    ids: Vec<RequestId>,
    /// Requests of it that have not ended by themselves.
    wanted: usize,
    sent: Time,
    ends: Time,
    /// The shortest that its callers let an answer take.
    limit: Option<Duration>,
    limited: limiter::Call,
    probe: bool,
}

pub struct State {
    settings: Settings,
    scales: Scales,
    requests: Requests,
    servers: Vec<Server>,
    calls: BTreeMap<CallKey, Call>,
    timeouts: BTreeSet<(Time, CallKey)>,
    next_call: CallKey,
    budget: Budget,
    /// Whether any endpoint has ever answered.
    answered: bool,
    /// Sum and number of the first calls' weights.
    weighed: (f64, u32),
    holding: bool,
    retries: u64,
    /// When an endpoint that has no room will have some without anything else happening.
    room_at: Option<Time>,
    rng: StdRng,
}

impl State {
    pub fn new(settings: Settings, rng: StdRng, now: Time) -> Self {
        let server = |_| Server {
            limiter: Limiter::new(),
            health: Health::new(health::Settings::default()),
            stats: EndpointStats::default(),
        };
        let budget =
            Budget::new(retry::Settings { share: settings.retry.budget, ..retry::Settings::default() }, now);
        State {
            servers: (0..settings.endpoints).map(server).collect(),
            requests: Requests::default(),
            calls: BTreeMap::new(),
            timeouts: BTreeSet::new(),
            next_call: 0,
            budget,
            answered: false,
            weighed: (0.0, 0),
            holding: false,
            retries: 0,
            room_at: None,
            scales: Scales::new(&settings.weight),
            settings,
            rng,
        }
    }

    /// When [`Event::Tick`] is due.
    pub fn wake_at(&self) -> Option<Time> {
        let timeout = self.timeouts.first().map(|(at, _)| *at);
        timeout.into_iter().chain(self.requests.due()).chain(self.room_at).min()
    }

    fn cancelled(&mut self, ids: Vec<RequestId>, now: Time, actions: &mut Vec<Action>) {
        for id in ids {
            let error = Error::new(Kind::Cancelled, self.fate(id), Retry::Never, "the request was cancelled");
            self.end(id, Err(error), now, actions);
        }
    }

    /// Requests that have not ended.
    pub fn unended(&self) -> usize {
        self.requests.len()
    }

    /// Of those, the ones that are part of a call.
    pub fn sent(&self) -> usize {
        self.calls.values().map(|c| c.wanted).sum()
    }

    /// Endpoints that take calls like any other.
    pub fn ready(&self) -> usize {
        self.servers.iter().filter(|s| s.health.is_well()).count()
    }

    /// Attempts beyond the first.
    pub fn retries(&self) -> u64 {
        self.retries
    }

    pub fn endpoints(&self, now: Time) -> Vec<EndpointStats> {
        let stats = |s: &Server| EndpointStats {
            window: s.limiter.window(now),
            in_flight: s.limiter.calls(),
            ejected: !s.health.is_well(),
            ..s.stats
        };
        self.servers.iter().map(stats).collect()
    }

    pub fn holder(&self, id: RequestId) -> Holder {
        match self.requests.get(id).map(|r| r.place) {
            Some(Place::Sent(call)) => self.calls.get(&call).map_or(Holder::Client, |call| {
                let service = self.settings.service.clone();
                Holder::Instance(InstanceId { service, number: call.endpoint as u32, incarnation: 0 })
            }),
            _ => Holder::Client,
        }
    }

    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Submitted { submission, receiver } => {
                self.submitted(submission, &receiver, now, &mut actions)
            }
            Event::Cancelled(ids) => self.cancelled(ids, now, &mut actions),
            Event::Abandoned(operators) => {
                self.holding = false;
                self.cancelled(self.requests.of(&operators), now, &mut actions);
            }
            Event::Held => self.holding = true,
            Event::Part { call, rows } => self.part(call, rows, &mut actions),
            Event::Ended { call, result } => self.ended(call, result, now, &mut actions),
            Event::Tick => {}
        }
        for id in self.requests.tick(now) {
            let error = Error::new(Kind::Deadline, self.fate(id), Retry::Never, "the deadline passed");
            self.end(id, Err(error), now, &mut actions);
        }
        self.time_out(now, &mut actions);
        self.send(now, &mut actions);
        coalesce(actions)
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
        receiver: &Arc<dyn Receiver>,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        if let Err(e) = self.check(&submission) {
            let outcome = |id| Outcome { id, rows: Err(e.clone()), last: true };
            let all = submission.ids.into_iter().map(outcome).collect();
            return actions.push(Action::Deliver(receiver.clone(), all));
        }
        let Submission { method, ids, arguments, timeout, attempt_timeout, priority, keys, .. } = submission;
        let timeout = timeout.or(self.settings.timeout);
        let attempt_timeout = attempt_timeout.or(self.settings.attempt_timeout);
        let bytes = (body::bytes(&arguments) / ids.len().max(1) as u64).max(1);
        let weights = self.scales.input(&arguments);
        let batch = Arc::new(arguments);
        for (offset, id) in ids.into_iter().enumerate() {
            if self.requests.get(id).is_some() {
                let error = Error::internal(format!("request {id} is in flight already"));
                let outcome = Outcome { id, rows: Err(error), last: true };
                actions.push(Action::Deliver(receiver.clone(), vec![outcome]));
                continue;
            }
            let request = Request {
                method,
                priority,
                row: Piece { batch: batch.clone(), offset, rows: 1 },
                bytes,
                weight: weights.at(offset),
                key: keys.as_ref().map(|k| k[offset]),
                deadline: timeout.map(|t| now + t),
                timeout,
                attempt_timeout,
                attempts: 0,
                tries: 0,
                together: usize::MAX,
                parts: 0,
                receiver: receiver.clone(),
                place: Place::Behind,
            };
            self.requests.insert(id, request);
        }
    }

    /// Refuses what does not fit.
    fn check(&self, submission: &Submission) -> Result<()> {
        let Submission { method, ids, arguments, keys, .. } = submission;
        let service = &self.settings.service;
        let Some(spec) = self.settings.methods.get(*method) else {
            return Err(Error::invalid(format!("service `{service}` has no method number {method}")));
        };
        let rows = arguments.num_rows();
        if ids.len() != rows || keys.as_ref().is_some_and(|k| k.len() != rows) {
            return Err(Error::invalid(format!(
                "{} request ids, or the keys, for {rows} rows of arguments",
                ids.len()
            )));
        }
        check_columns(format_args!("arguments of `{service}.{}`", spec.name), arguments, &spec.input)
    }

    // --- sending ---

    fn send(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.room_at = None;
        if self.holding {
            return;
        }
        while let Some(first) = self.requests.first().and_then(|id| self.requests.get(id)) {
            let units = self.units(first.weight);
            let Some((endpoint, probe)) = self.endpoint(units, now) else { return };
            self.start(endpoint, probe, now, actions);
        }
    }

    /// What a weight is in the window's units, for which the mean weight of the first calls is one.
    fn units(&self, weight: f64) -> f64 {
        match self.weighed {
            (sum, n) if n > 0 && sum > 0.0 => (weight / (sum / f64::from(n))).clamp(0.1, 10.0),
            _ => 1.0,
        }
    }

    /// The endpoint for a call of so many units, and whether that call is to find out if it is back.
    fn endpoint(&mut self, units: f64, now: Time) -> Option<(EndpointKey, bool)> {
        let well = self.ready();
        let mut later: Option<Time> = None;
        let mut open = Vec::new();
        for (key, server) in self.servers.iter_mut().enumerate() {
            let not_before = match server.health.admission(well == 0, now) {
                Admission::Probe => return Some((key, true)),
                Admission::WaitForProbe => continue,
                Admission::NotBefore(at) => at,
                Admission::Yes => match server.limiter.room(units, now) {
                    Room::Now(_) => {
                        open.push(key);
                        continue;
                    }
                    Room::NotBefore(at) => at,
                    Room::Full => continue,
                },
            };
            later = later.into_iter().chain([not_before]).min();
        }
        let candidates: Vec<(&Health, u64)> =
            open.iter().map(|key| (&self.servers[*key].health, self.servers[*key].limiter.calls())).collect();
        let loads = health::loads(&candidates);
        let best = open.into_iter().zip(loads).min_by(|a, b| a.1.total_cmp(&b.1));
        if best.is_none() {
            self.room_at = later;
        }
        best.map(|(key, _)| (key, false))
    }

    fn start(&mut self, endpoint: EndpointKey, probe: bool, now: Time, actions: &mut Vec<Action>) {
        let call = self.next_call;
        self.next_call += 1;
        let rows = &self.settings.rows;
        let batch = self.settings.batch;
        let together = |method: usize| if probe { 1 } else { rows.get(method).copied().unwrap_or(1) };
        let ids = self.requests.take(call, together, batch.bytes.get(), batch.weight);
        let requests: Vec<&Request> = ids.iter().filter_map(|id| self.requests.get(*id)).collect();
        let Some(first) = requests.first() else { return };
        let method = first.method;
        let limit = requests.iter().filter_map(|r| r.limit()).min();
        let attempt = requests.iter().filter_map(|r| r.attempt_timeout).min().unwrap_or(ATTEMPT_TIMEOUT);
        // Each request is ended at its own deadline; the call only once none of them is wanted.
        let deadlines: Option<Vec<Time>> = requests.iter().map(|r| r.deadline).collect();
        let within =
            deadlines.and_then(|d| d.into_iter().max()).map_or(attempt, |d| d.since(now).min(attempt));
        let ends = now + attempt;
        let weight: f64 = requests.iter().map(|r| r.weight).sum();
        let arguments =
            gather(requests.iter().map(|r| &r.row)).expect("arguments of one method have the same columns");
        let units = if self.settings.weight.column.is_some() {
            if self.weighed.1 < WEIGHED {
                self.weighed = (self.weighed.0 + weight, self.weighed.1 + 1);
            }
            self.units(weight)
        } else {
            1.0
        };
        let nothing_after = self.requests.waiting() == 0;
        let server = &mut self.servers[endpoint];
        if probe {
            server.health.probing();
        }
        let limited = server.limiter.sent(units, nothing_after, now);
        let wanted = ids.len();
        self.timeouts.insert((ends, call));
        self.calls
            .insert(call, Call { endpoint, method, ids, wanted, sent: now, ends, limit, limited, probe });
        actions.push(Action::Start(Start { call, endpoint, method, arguments, within }));
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
