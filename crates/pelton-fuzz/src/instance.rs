//! An instance's state between callers: one keeps to the protocol, two say what the input wants.
//!
//! Laws: nothing panics; no more is held than was permitted; a batch is as small as declared; the honest caller keeps its connection, and each of
//! its requests ends once, whatever the others say, as soon as the service runs what it is given and time goes on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use pelton_core::call::Priority;
use pelton_core::declaration::{Declaration, Orphans};
use pelton_core::service::Invocation;
use pelton_core::{Bytes, Error, RequestId, RequestRun, Time};
use pelton_instance::state::{Action, BatchId, ConnectionId, Event, State};
use pelton_link::Message;
use pelton_wire::{Deadlines, Demand, Entry, Frame};

use crate::input::{Input, trace};
use crate::{frames, methods};

/// Most rows held and permitted at a time.
const PERMITS: u32 = 4;
/// Most rows in a batch.
const BATCH: u32 = 2;
/// So many events an input may bring.
const STEPS: usize = 300;
/// So often something has to happen until the honest caller has its answers.
const PATIENCE: usize = 3000;
const HONEST: ConnectionId = 1;
/// The operator of the honest caller's requests. (The liars name it too.)
const OPERATOR: u32 = 1;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() || world.over {
            break;
        }
        world.step(&mut input);
    }
    world.finish();
}

struct World {
    state: State,
    now: Time,
    rows: Option<u32>,
    running: VecDeque<(BatchId, u16, Vec<u64>, Invocation)>,
    honest: Honest,
    /// The liars' connections, and the number of the next one.
    liars: [Option<ConnectionId>; 2],
    next_connection: ConnectionId,
    drains: bool,
    /// The service has said how full it is.
    gauged: bool,
    /// A liar has said what it takes of streams.
    credited: bool,
    /// It has left or given itself up.
    over: bool,
}

impl World {
    fn new(input: &mut Input<'_>) -> World {
        let flags = input.u8();
        let flag = |bit: u8| flags >> bit & 1 == 1;
        let mut declaration = Declaration::new("s").max_rows(BATCH);
        let rows = flag(0).then_some(PERMITS);
        declaration.permits.rows = rows;
        declaration.permits.bytes = Bytes(if flag(1) { 1 << 20 } else { 64 });
        declaration.batch.linger = Duration::from_millis(if flag(2) { 5 } else { 0 });
        declaration.ledger.bytes = Bytes(if flag(3) { 1 << 20 } else { 100 });
        declaration.ledger.orphans = if flag(4) { Orphans::Cancel } else { Orphans::Finish };
        declaration.weight.column = flag(5).then(|| "key".to_owned());
        declaration.weight.memory = flag(6).then_some(50.0);
        declaration.weight.output = flag(7).then(|| "key".to_owned());
        declaration.lease = Duration::from_secs(1);
        declaration.max_message = Bytes(1 << 10);
        let mut world = World {
            state: State::new(declaration, methods::all()),
            now: Time::from_origin(Duration::from_secs(1)),
            rows,
            running: VecDeque::new(),
            honest: Honest::default(),
            liars: [None, None],
            next_connection: HONEST,
            drains: false,
            gauged: false,
            credited: false,
            over: false,
        };
        world.handle(Event::Opened(Ok(())));
        world.honest_joins();
        world
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0..=4 => {
                let Some(connection) = self.liar(input) else { return };
                let frame = frames::any(input);
                let about = match &frame {
                    Frame::Request { runs, .. } => RequestRun::total(runs),
                    _ => 0,
                };
                let rows = frame.has_body().then(|| methods::rows(0..about));
                // A link gives out no result or request without as many rows as it is about.
                if matches!(frame, Frame::Results { .. }) {
                    return;
                }
                self.credited |= matches!(frame, Frame::Credit { .. });
                self.handle(Event::Received { connection, message: Message { frame, rows } });
            }
            5 => {
                let Some(connection) = self.liar(input) else { return };
                let rows = u64::from(input.u8());
                let like = Demand { row_bytes: 8, ..Demand::default() };
                self.handle(Event::Received { connection, message: Frame::Announce { rows, like }.into() });
            }
            6 | 7 => {
                let (method, n) = (u16::from(input.below(3)), input.below(6));
                self.honest.submit(method, n);
                self.honest_goes_on();
            }
            8 => self.batch_ends(Ok(())),
            9 => {
                let error = match input.below(4) {
                    0 => Error::user("no"),
                    1 => Error::transient("not now"),
                    2 => Error::out_of_memory("no room"),
                    _ => frames::error(input),
                };
                self.batch_ends(Err(error));
            }
            10 => {
                if let Some((batch, method, keys, _)) = self.running.front()
                    && *method == 1
                {
                    let rows = methods::rows(keys.iter().copied().take(usize::from(input.below(3))));
                    self.handle(Event::Emitted { batch: *batch, rows });
                }
            }
            11 => self.passes(Duration::from_millis(u64::from(input.u8()))),
            12 => self.passes(Duration::from_millis(100 * u64::from(input.u8()))),
            13 => {
                let which = usize::from(input.below(2));
                match self.liars[which].take() {
                    Some(connection) => self.handle(Event::Left(connection)),
                    None => {
                        self.next_connection += 1;
                        self.liars[which] = Some(self.next_connection);
                        let (connection, client) = (self.next_connection, format!("liar {which}"));
                        if self.state.admit(&client, 1).is_ok() {
                            self.handle(Event::Joined { connection, client, epoch: 1 });
                        }
                    }
                }
            }
            14 => match input.below(8) {
                0 => {
                    self.drains = true;
                    self.handle(Event::Drain);
                }
                1..=3 => {
                    self.handle(Event::Left(self.honest.connection));
                    self.honest_joins();
                }
                _ => {
                    let (used, total) = (f64::from(input.u8()), f64::from(input.u8()) + 1.0);
                    self.gauged = true;
                    self.handle(Event::Gauge { used, total });
                }
            },
            _ => {
                let n = usize::from(input.u8());
                if n < self.running.len() {
                    self.running.swap(0, n);
                }
                self.batch_ends(Ok(()));
            }
        }
    }

    fn liar(&self, input: &mut Input<'_>) -> Option<ConnectionId> {
        self.liars[usize::from(input.below(2))]
    }

    fn honest_joins(&mut self) {
        self.next_connection += 1;
        self.honest.connected(self.next_connection);
        let connection = self.next_connection;
        self.handle(Event::Joined { connection, client: "honest".into(), epoch: 1 });
        self.honest_goes_on();
    }

    fn honest_goes_on(&mut self) {
        let connection = self.honest.connection;
        while let Some(message) = self.honest.next_message() {
            self.handle(Event::Received { connection, message });
        }
    }

    fn batch_ends(&mut self, result: Result<(), Error>) {
        let Some((batch, method, keys, _)) = self.running.pop_front() else { return };
        let result = result.map(|()| methods::rows(keys.into_iter().filter(|_| method != 1)));
        self.handle(Event::Ended { batch, result });
        self.honest_goes_on();
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
        self.honest_goes_on();
    }

    fn tick(&mut self, at: Time) {
        self.now = at.max(self.now);
        self.handle(Event::Tick);
        let next = self.state.wake_at();
        assert!(
            self.over || next.is_none_or(|next| next > self.now),
            "at {} it wants to be woken at {next:?}, for ever",
            self.now
        );
    }

    /// The service runs what it is given, and time goes on: what the honest caller waits for comes.
    fn finish(&mut self) {
        if self.gauged {
            // A service that is full for ever runs nothing.
            self.handle(Event::Gauge { used: 0.0, total: 1e9 });
        }
        for _ in 0..PATIENCE {
            if self.over || self.honest.is_done() {
                return;
            }
            self.honest_goes_on();
            if self.running.is_empty() {
                match self.state.wake_at() {
                    Some(at) => self.tick(at),
                    None if self.drains => return,
                    None => panic!("nothing runs and nothing is due, but {:?} wait", self.honest.waiting()),
                }
            } else {
                self.batch_ends(Ok(()));
            }
        }
        panic!("{:?} of the honest caller have not ended", self.honest.waiting());
    }

    fn handle(&mut self, event: Event) {
        if self.over {
            return;
        }
        trace(|| format!("{} {event:?}", self.now));
        let actions = self.state.handle(event, self.now);
        actions.iter().for_each(|action| trace(|| format!("    {action:?}")));
        let mut closed = Vec::new();
        for action in actions {
            match action {
                Action::Send(to, message) if to == self.honest.connection => self.honest.hears(message),
                Action::Send(..) | Action::Report => {}
                Action::Close(connection) => closed.push(connection),
                Action::Run(batch) => {
                    let rows = batch.rows.num_rows() as u64;
                    assert!(rows >= 1 && rows <= u64::from(BATCH), "a batch of {rows} rows");
                    let keys = vec![1; batch.rows.num_rows()];
                    self.running.push_back((batch.id, batch.method, keys, batch.invocation));
                }
                Action::Disk(_) => unreachable!("the declaration names no disk"),
                Action::Leave | Action::Abort(_) => self.over = true,
            }
        }
        // Streams whose callers said that they take nothing wait beside what was permitted.
        if let Some(rows) = self.rows.filter(|_| !self.credited) {
            assert!(
                self.state.held() <= u64::from(rows),
                "{} rows are held, {rows} may be",
                self.state.held()
            );
        }
        let _ = self.state.status(1, self.now);
        for connection in closed {
            assert_ne!(connection, self.honest.connection, "the honest caller's connection is closed");
            if let Some(liar) = self.liars.iter_mut().find(|l| **l == Some(connection)) {
                *liar = None;
                self.handle(Event::Left(connection));
            }
        }
    }
}

/// A caller that keeps to the protocol.
#[derive(Default)]
struct Honest {
    connection: ConnectionId,
    next: u64,
    /// To be sent, by method.
    backlog: VecDeque<(RequestId, u16)>,
    sent: BTreeMap<RequestId, u16>,
    ended: BTreeSet<RequestId>,
    permitted: u64,
    /// Sent or given back.
    used: u64,
    returned: u64,
    announced: u64,
    outbox: VecDeque<Message>,
}

impl Honest {
    fn connected(&mut self, connection: ConnectionId) {
        *self = Honest {
            connection,
            next: self.next,
            backlog: std::mem::take(&mut self.backlog),
            sent: std::mem::take(&mut self.sent),
            ended: std::mem::take(&mut self.ended),
            ..Honest::default()
        };
        if !self.sent.is_empty() {
            let runs = RequestRun::pack(self.sent.keys().copied());
            self.outbox.push_back(Frame::Attach { runs }.into());
        }
    }

    fn submit(&mut self, method: u16, n: u8) {
        for _ in 0..n {
            let id = RequestId { operator: OPERATOR, group: self.next % 2, sequence: self.next / 2 };
            self.next += 1;
            self.backlog.push_back((id, method));
        }
    }

    fn is_done(&self) -> bool {
        self.backlog.is_empty() && self.sent.is_empty()
    }

    fn waiting(&self) -> Vec<RequestId> {
        self.backlog.iter().map(|(id, _)| *id).chain(self.sent.keys().copied()).collect()
    }

    fn hears(&mut self, message: Message) {
        match message.frame {
            Frame::Permit { rows, .. } => {
                assert!(rows > self.permitted, "permits only grow");
                self.permitted = rows;
            }
            Frame::Results { method, entries } => self.results(method, &entries),
            Frame::Failure { runs, error } => {
                let unseen = error.message().contains("without permits");
                assert!(!unseen, "sent on a permit, refused for want of one: {error}");
                for id in runs.iter().flat_map(|run| run.ids()) {
                    self.end(id);
                }
            }
            Frame::HandBack { runs } => {
                for id in runs.iter().flat_map(|run| run.ids()) {
                    if let Some(method) = self.sent.remove(&id) {
                        self.backlog.push_back((id, method));
                    }
                }
            }
            _ => {}
        }
    }

    fn results(&mut self, method: u16, entries: &[Entry]) {
        for entry in entries {
            for id in entry.run.ids() {
                if entry.last {
                    self.end(id);
                } else if let Some(sent) = self.sent.get(&id) {
                    assert_eq!((*sent, method), (1, 1), "parts come of the method that streams");
                }
            }
        }
        let runs = entries.iter().filter(|e| e.last).map(|e| e.run).collect();
        self.outbox.push_back(Frame::Acknowledge { runs }.into());
    }

    fn end(&mut self, id: RequestId) {
        assert!(self.sent.remove(&id).is_some(), "{id} ended, but was not there");
        assert!(self.ended.insert(id), "{id} ended twice");
    }

    fn next_message(&mut self) -> Option<Message> {
        if let Some(message) = self.outbox.pop_front() {
            return Some(message);
        }
        let available = (self.permitted - self.used) as usize;
        if available > 0
            && let Some(&(_, method)) = self.backlog.front()
        {
            let mut ids = Vec::new();
            while let Some((id, _)) =
                self.backlog.pop_front_if(|(_, m)| ids.len() < available && *m == method)
            {
                self.sent.insert(id, method);
                ids.push(id);
            }
            self.used += ids.len() as u64;
            let rows = Some(methods::rows(ids.iter().map(|_| 1)));
            let (priority, deadlines) = (Priority::Normal, Deadlines::None);
            let frame =
                Frame::Request { method, priority, alone: false, deadlines, runs: RequestRun::pack(ids) };
            return Some(Message { frame, rows });
        }
        if available > 0 {
            self.used = self.permitted;
            // Returned are those that were not sent.
            self.returned += available as u64;
            return Some(Frame::Return { rows: self.returned }.into());
        }
        let announced = self.permitted + self.backlog.len() as u64;
        if announced != self.announced {
            self.announced = announced;
            let like = Demand { row_bytes: 8, row_weight: 1.0, ..Demand::default() };
            return Some(Frame::Announce { rows: announced, like }.into());
        }
        None
    }
}
