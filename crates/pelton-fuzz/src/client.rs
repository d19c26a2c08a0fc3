//! A client's state between two instances: one keeps to the protocol, the other says what the input wants.
//!
//! Laws: nothing panics; no more is sent than was permitted; each request ends once, with exactly one row if its method gives one; and all have
//! ended once the liar is gone and the honest instance has run what it was given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pelton_client::peer::{ConnectionId, PeerKey};
use pelton_client::state::{Action, Event, State};
use pelton_core::call::{Acknowledge, Affinity, Outcome, Priority, Receiver, Submission};
use pelton_core::declaration::Declaration;
use pelton_core::endpoint::{Address, Endpoint, EndpointDelta};
use pelton_core::id::InstanceId;
use pelton_core::{Bytes, Error, Fate, Kind, RequestId, RequestRun, Retry, Time};
use pelton_link::Message;
use pelton_wire::{Entry, Frame};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::handshake::welcome;
use crate::input::Input;
use crate::{frames, methods};

/// So many events an input may bring.
const STEPS: usize = 300;
/// So often something has to happen until all requests have ended.
const PATIENCE: usize = 3000;
/// So often it may be woken at one moment.
const AT_ONCE: usize = 3;
/// The instances by their number.
const HONEST: u32 = 0;
const LIAR: u32 = 1;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    world.finish();
}

/// What has come of each request.
#[derive(Default)]
struct Ends {
    methods: BTreeMap<RequestId, usize>,
    ended: BTreeSet<RequestId>,
}

#[derive(Default)]
struct Ledger(Mutex<Ends>);

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().expect("one thread")
    }
}

impl Receiver for Ledger {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        let mut ends = self.lock();
        for Outcome { id, rows, last } in outcomes {
            let method = *ends.methods.get(&id).expect("only what was submitted is delivered");
            assert!(!ends.ended.contains(&id), "{id} has ended and is delivered again");
            match &rows {
                Ok(rows) => {
                    assert_eq!(rows.schema(), methods::schema(), "{id}");
                    assert!(
                        method == 1 || (last && rows.num_rows() == 1),
                        "{id}: {} rows of a method that gives one",
                        rows.num_rows()
                    );
                }
                Err(_) => assert!(last, "an error always ends a request"),
            }
            if last {
                ends.ended.insert(id);
            }
        }
    }
}

struct World {
    state: State,
    now: Time,
    ends: Arc<Ledger>,
    honest: Honest,
    liar: Option<PeerKey>,
    liar_connection: ConnectionId,
    connections: BTreeMap<PeerKey, ConnectionId>,
    numbers: BTreeMap<PeerKey, u32>,
    next_connection: ConnectionId,
    next_id: u64,
    /// What the liar was sent lately.
    liar_has: Vec<(RequestId, u16)>,
    /// The liar's share, to hold against what it permitted and refused.
    liar_window: Window,
    pending: Vec<Event>,
}

impl World {
    fn new(input: &mut Input<'_>) -> World {
        let flags = input.u8();
        let flag = |bit: u8| flags >> bit & 1 == 1;
        let mut declaration = Declaration::new("s").max_rows(2);
        declaration.instances = 2.into();
        declaration.timeout = flag(0).then_some(Duration::from_secs(60));
        declaration.attempt_timeout = flag(1).then_some(Duration::from_secs(5));
        declaration.retry.attempts = if flag(2) { 2 } else { 5 };
        declaration.max_backlog = Bytes(if flag(3) { 1 << 20 } else { 200 });
        declaration.max_message = Bytes(if flag(4) { 1 << 20 } else { 16 });
        declaration.weight.column = flag(5).then(|| "key".to_owned());
        let now = Time::from_origin(Duration::from_secs(1));
        let mut world = World {
            state: State::new(&declaration, methods::all(), StdRng::seed_from_u64(0), now),
            now,
            ends: Arc::default(),
            honest: Honest::default(),
            liar: None,
            liar_connection: 0,
            connections: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next_connection: 0,
            next_id: 0,
            liar_has: Vec::new(),
            liar_window: Window::default(),
            pending: Vec::new(),
        };
        let there = vec![endpoint(HONEST), endpoint(LIAR)];
        world.handle(Event::Endpoints(EndpointDelta::Reset(there)));
        world
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0..=5 => {
                let frame = match input.below(4) {
                    0 => frames::results(input),
                    1 | 2 => self.about_what_it_has(input),
                    _ => frames::any(input),
                };
                let about = match &frame {
                    Frame::Results { entries, .. } => {
                        entries.iter().map(|e| u64::from(e.run.count) * u64::from(e.rows)).sum()
                    }
                    Frame::Request { runs, .. } => RequestRun::total(runs),
                    _ => 0,
                };
                // A link refuses a body that is empty, and a frame with another number of rows than it is about.
                let rows = frame.has_body().then(|| methods::rows(0..about));
                self.lie(Message { frame, rows });
            }
            6 => {
                // The liar permits, so that it gets something to lie about.
                let rows = self.liar_window.permitted.saturating_add(u64::from(input.u8()));
                self.lie(Frame::Permit { rows, held: 0 }.into());
            }
            7 => {
                let runs = Vec::new();
                self.lie(Frame::Holds { runs, last: true }.into());
            }
            8 | 9 => self.submit(input),
            10 => {
                let ids = (0..1 + input.below(4)).map(|_| own_id(u64::from(input.u8()))).collect();
                self.handle(if input.bool() { Event::Cancelled(ids) } else { Event::Acknowledged(ids) });
            }
            11 => self.passes(Duration::from_millis(u64::from(input.u8()))),
            12 => self.passes(Duration::from_millis(100 * u64::from(input.u8()))),
            13 => {
                // A connection is lost.
                let number = u32::from(input.below(2));
                let found = self.numbers.iter().find(|(_, n)| **n == number).map(|(key, _)| *key);
                if let Some(peer) = found
                    && let Some(connection) = self.connections.remove(&peer)
                {
                    self.handle(Event::Disconnected { peer, connection });
                }
            }
            14 => match input.below(4) {
                0 => self.handle(Event::Endpoints(EndpointDelta::Remove(instance(LIAR)))),
                1 => self.handle(Event::Endpoints(EndpointDelta::Add(endpoint(LIAR)))),
                2 => self.handle(Event::Endpoints(EndpointDelta::Drain(instance(LIAR)))),
                _ => {
                    let operators = vec![u32::from(input.below(2))];
                    let mut ends = self.ends.lock();
                    // They are gone without an end, as whoever submitted them is.
                    let gone: Vec<RequestId> =
                        ends.methods.keys().filter(|id| operators.contains(&id.operator)).copied().collect();
                    ends.ended.extend(gone);
                    drop(ends);
                    self.handle(Event::Abandoned(operators));
                }
            },
            _ => {
                let n = usize::from(input.below(8));
                self.honest_answers(n);
            }
        }
        self.settle(input.below(8) == 0);
    }

    /// What the liar says of requests that it was sent.
    fn about_what_it_has(&mut self, input: &mut Input<'_>) -> Frame {
        let n = 1 + usize::from(input.below(3)).min(self.liar_has.len());
        let from = usize::from(input.u8()) % (self.liar_has.len() + 1 - n.min(self.liar_has.len())).max(1);
        let some: Vec<(RequestId, u16)> = self.liar_has.iter().skip(from).take(n).copied().collect();
        let runs = RequestRun::pack(some.iter().map(|(id, _)| *id));
        let method = some.first().map_or(0, |(_, method)| *method);
        match input.below(6) {
            0 => Frame::Failure { runs, error: frames::error(input) },
            1 => Frame::HandBack { runs },
            2 => Frame::Holds { runs, last: input.bool() },
            3 => {
                let (rows, last) = (u32::from(input.below(3)), input.bool());
                let entries = runs.into_iter().map(|run| Entry { run, rows, last }).collect();
                Frame::Results { method: u16::from(input.below(3)), entries }
            }
            _ => {
                let last = input.below(4) > 0 || method != 1;
                let entries = runs.into_iter().map(|run| Entry { run, rows: 1, last }).collect();
                Frame::Results { method, entries }
            }
        }
    }

    fn submit(&mut self, input: &mut Input<'_>) {
        let (method, n) = (usize::from(input.below(3)), u64::from(input.below(6)));
        let ids: Vec<RequestId> = (self.next_id..self.next_id + n).map(own_id).collect();
        self.next_id += n;
        let mut submission = Submission::new(method, ids.clone(), methods::rows(0..n));
        submission.priority =
            [Priority::Interactive, Priority::Normal, Priority::Bulk][usize::from(input.below(3))];
        submission.keys = (input.below(4) == 0).then(|| (0..n).map(|i| i % 2).collect());
        submission.affinity = match input.below(6) {
            0 => Affinity::Keys((0..n).collect()),
            1 => Affinity::Instance(HONEST),
            _ => Affinity::Any,
        };
        if input.bool() {
            submission.acknowledge = Acknowledge::Explicit;
        }
        let mut ends = self.ends.lock();
        ends.methods.extend(ids.iter().map(|id| (*id, method)));
        drop(ends);
        let receiver = self.ends.clone();
        self.handle(Event::Submitted { submission, receiver });
    }

    fn lie(&mut self, message: Message) {
        let Some(peer) = self.liar else { return };
        if self.connections.get(&peer) != Some(&self.liar_connection) {
            return;
        }
        match &message.frame {
            Frame::Permit { rows, .. } => self.liar_window.permitted = self.liar_window.permitted.max(*rows),
            // What is refused for want of a permit was not sent.
            Frame::Failure { runs, error }
                if error.kind() == Kind::Overload && error.fate() == Fate::Refused =>
            {
                self.liar_window.refused += RequestRun::total(runs);
            }
            _ => {}
        }
        self.handle(Event::Received { peer, connection: self.liar_connection, message });
    }

    fn honest_answers(&mut self, n: usize) {
        for _ in 0..n {
            let Some(message) = self.honest.next_message() else { return };
            let Some((peer, connection)) = self.honest.at else { return };
            self.handle(Event::Received { peer, connection, message });
        }
    }

    /// Connections that were asked for come about, or not.
    fn settle(&mut self, refuse: bool) {
        for event in std::mem::take(&mut self.pending) {
            match event {
                Event::Connected { peer, .. } if refuse => {
                    let error = Error::new(Kind::Connect, Fate::NotSent, Retry::Elsewhere, "nobody is there");
                    self.handle(Event::NotConnected { peer, error });
                }
                Event::Connected { peer, connection, welcome } => {
                    let Some(number) = self.numbers.get(&peer) else { continue };
                    self.connections.insert(peer, connection);
                    if *number == HONEST {
                        self.honest.connected(peer, connection);
                    } else {
                        (self.liar, self.liar_connection, self.liar_window) =
                            (Some(peer), connection, Window::default());
                    }
                    self.handle(Event::Connected { peer, connection, welcome });
                }
                _ => {}
            }
        }
    }

    fn passes(&mut self, wait: Duration) {
        let until = self.now + wait;
        for _ in 0..64 {
            match self.state.wake_at().filter(|at| *at <= until) {
                Some(at) => self.tick(at),
                None => break,
            }
        }
        self.now = until.max(self.now);
    }

    fn tick(&mut self, at: Time) {
        self.now = at.max(self.now);
        // What is found out at one tick (an answer takes longer than thought) may be due at once, but not again and again.
        for _ in 0..AT_ONCE {
            self.handle(Event::Tick);
            if self.state.wake_at().is_none_or(|next| next > self.now) {
                return;
            }
        }
        panic!("at {} it wants to be woken at {:?}, for ever", self.now, self.state.wake_at());
    }

    fn finish(&mut self) {
        self.settle(false);
        self.handle(Event::Endpoints(EndpointDelta::Remove(instance(LIAR))));
        for _ in 0..PATIENCE {
            self.settle(false);
            self.honest_answers(64);
            let ends = self.ends.lock();
            if ends.ended.len() == ends.methods.len() {
                assert_eq!(self.state.unended(), 0);
                return;
            }
            drop(ends);
            if self.honest.is_idle()
                && let Some(at) = self.state.wake_at()
            {
                self.tick(at);
            }
        }
        let ends = self.ends.lock();
        let left: Vec<&RequestId> = ends.methods.keys().filter(|id| !ends.ended.contains(*id)).collect();
        panic!("{left:?} have not ended");
    }

    fn handle(&mut self, event: Event) {
        for action in self.state.handle(event, self.now) {
            match action {
                Action::Connect { peer, endpoint, .. } => {
                    self.connections.remove(&peer);
                    self.numbers.insert(peer, endpoint.instance.number);
                    self.next_connection += 1;
                    let (connection, mut welcome) = (self.next_connection, Box::new(welcome()));
                    welcome.instance = endpoint.instance;
                    self.pending.push(Event::Connected { peer, connection, welcome });
                }
                Action::Disconnect(peer) => {
                    self.connections.remove(&peer);
                    self.pending.retain(|e| !matches!(e, Event::Connected { peer: p, .. } if *p == peer));
                    if self.honest.at.is_some_and(|(p, _)| p == peer) {
                        self.honest.at = None;
                    }
                }
                Action::Send(peer, message) => {
                    let Some(connection) = self.connections.get(&peer) else { continue };
                    if self.honest.at == Some((peer, *connection)) {
                        self.honest.hears(message);
                    } else if let Frame::Announce { rows, .. } = &message.frame {
                        self.liar_window.announced = *rows;
                    } else if let Frame::Request { runs, method, .. } = &message.frame {
                        self.liar_has.extend(runs.iter().flat_map(|run| run.ids()).map(|id| (id, *method)));
                        let older = self.liar_has.len().saturating_sub(16);
                        self.liar_has.drain(..older);
                        self.liar_window.sent += RequestRun::total(runs);
                        self.liar_window.check();
                    }
                }
                Action::Deliver(receiver, outcomes) => receiver.deliver(outcomes),
                Action::DeliverRows(receiver, first, rows) => receiver.deliver_rows(first, rows),
            }
        }
    }
}

/// Rows, from the start of a connection.
#[derive(Clone, Copy, Default)]
struct Window {
    announced: u64,
    permitted: u64,
    sent: u64,
    refused: u64,
}

impl Window {
    fn check(self) {
        let may = self.permitted.max(self.announced).saturating_add(self.refused);
        assert!(self.sent <= may, "{} rows sent, where {may} were permitted or announced", self.sent);
    }
}

fn own_id(n: u64) -> RequestId {
    RequestId { operator: (n % 2) as u32, group: 1, sequence: n / 2 }
}

fn instance(number: u32) -> InstanceId {
    InstanceId { service: "s".into(), number, incarnation: 1 }
}

fn endpoint(number: u32) -> Endpoint {
    Endpoint { instance: instance(number), address: Address::Unix(format!("/{number}").into()) }
}

/// An instance that keeps to the protocol: it permits what is asked for, and answers everything.
#[derive(Default)]
struct Honest {
    at: Option<(PeerKey, ConnectionId)>,
    permitted: u64,
    arrived: u64,
    returned: u64,
    /// What it has, and whose answers it has given, until they are acknowledged.
    held: BTreeMap<RequestId, u16>,
    outbox: Vec<Message>,
}

impl Honest {
    fn connected(&mut self, peer: PeerKey, connection: ConnectionId) {
        (self.permitted, self.arrived, self.returned) = (0, 0, 0);
        self.at = Some((peer, connection));
        let runs = RequestRun::pack(self.held.keys().copied());
        self.outbox = vec![Frame::Holds { runs, last: true }.into()];
    }

    fn is_idle(&self) -> bool {
        self.at.is_none() || self.outbox.is_empty()
    }

    fn next_message(&mut self) -> Option<Message> {
        (self.at.is_some() && !self.outbox.is_empty()).then(|| self.outbox.remove(0))
    }

    fn hears(&mut self, message: Message) {
        match message.frame {
            Frame::Announce { rows, .. } if rows > self.permitted => {
                self.permitted = rows;
                self.outbox.push(Frame::Permit { rows, held: 0 }.into());
            }
            Frame::Return { rows } => self.returned = rows,
            Frame::Request { method, runs, .. } => {
                let total = RequestRun::total(&runs);
                let rows = message.rows.expect("a request carries rows");
                assert_eq!(rows.num_rows() as u64, total);
                self.arrived += total;
                assert!(self.arrived + self.returned <= self.permitted, "more is sent than was permitted");
                for run in runs {
                    self.held.extend(run.ids().map(|id| (id, method)));
                    self.answer(method, run);
                }
            }
            Frame::Attach { runs } => {
                for id in runs.iter().flat_map(|run| run.ids()) {
                    let run = RequestRun::one(id);
                    match self.held.get(&id) {
                        Some(method) => self.answer(*method, run),
                        None => self.outbox.push(Frame::HandBack { runs: vec![run] }.into()),
                    }
                }
            }
            Frame::Resume { streams } => {
                for (id, _) in streams {
                    let run = RequestRun::one(id);
                    match self.held.get(&id) {
                        Some(method) => self.answer(*method, run),
                        None => self.outbox.push(Frame::HandBack { runs: vec![run] }.into()),
                    }
                }
            }
            Frame::Cancel { runs } | Frame::Acknowledge { runs } => {
                for id in runs.iter().flat_map(|run| run.ids()) {
                    self.held.remove(&id);
                }
            }
            Frame::Ping(n) => self.outbox.push(Frame::Pong(n).into()),
            _ => {}
        }
    }

    fn answer(&mut self, method: u16, run: RequestRun) {
        let entries = vec![Entry { run, rows: 1, last: true }];
        let rows = Some(methods::rows(run.ids().map(|id| id.sequence)));
        self.outbox.push(Message { frame: Frame::Results { method, entries }, rows });
    }
}
