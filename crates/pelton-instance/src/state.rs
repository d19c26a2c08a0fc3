//! What an instance decides: events and time in, actions out.

mod flow;
mod permits;
mod progress;
mod running;
mod spilled;
mod streams;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow_array::RecordBatch;
use pelton_core::call::Priority;
use pelton_core::declaration::{Declaration, Orphans};
use pelton_core::meter::{self, InstanceMeter};
use pelton_core::service::{Gate, Invocation, MethodSpec};
use pelton_core::weigh::{HEAVIEST, Scales};
use pelton_core::{Error, Fate, Kind, RequestId, RequestRun, Result, Retry, Time};
use pelton_link::Message;
use pelton_policy::permit;
use pelton_wire::body::{self, Piece};
use pelton_wire::{Deadlines, Demand, Entry as ResultEntry, Frame, State as Phase, Status};

use crate::ledger::{Entry, Ledger, Stage};
use crate::queue::{Item, Queue};
use crate::spill::{Extent, Failed, Order};
use crate::stream::Untaken;
use flow::Flow;

/// A caller that takes a request back this shortly before its deadline does so because of it.
const LATE: Duration = Duration::from_millis(100);

/// How long one that drains waits for callers that lost their connection and have not taken their results.
const FAREWELL: Duration = Duration::from_secs(5);
/// Most clients whose epochs are known; of more, some that are not connected are taken for new ones when they come again.
const MOST_CLIENTS: usize = 1 << 14;
/// Most requests in one frame that says what is held here.
const HOLDS_AT_ONCE: usize = 1 << 16;

/// A caller's connection, numbered by the server.
pub type ConnectionId = u64;

/// A batch that was started, numbered here.
pub type BatchId = u64;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// `open` returned.
    Opened(Result<()>),
    /// A caller has been let in (see [`State::admit`]).
    Joined {
        connection: ConnectionId,
        client: String,
        epoch: u64,
    },
    Left(ConnectionId),
    Received {
        connection: ConnectionId,
        message: Message,
    },
    /// A streaming method gave some rows.
    Emitted {
        batch: BatchId,
        rows: RecordBatch,
    },
    /// A batch ended.
    Ended {
        batch: BatchId,
        result: Result<RecordBatch>,
    },
    /// The disk has a block of results, or does not take it.
    Written {
        first: u64,
        result: std::result::Result<Extent, Failed>,
    },
    /// The disk gives a block of results, or does not: each result with its order.
    Loaded {
        first: u64,
        result: std::result::Result<Vec<(u64, Vec<Piece>)>, Failed>,
    },
    /// The service says that so much of so much memory is used.
    Gauge {
        used: f64,
        total: f64,
    },
    /// Control wants it to finish and leave.
    Drain,
    /// The time of [`State::wake_at`] has come.
    Tick,
}

/// What to do about it, in this order.
#[derive(Debug)]
pub enum Action {
    Send(ConnectionId, Message),
    /// Another process of the same client has taken over.
    Close(ConnectionId),
    Run(Batch),
    /// Results go to disk, come from there, or are of no use there any more.
    Disk(Order),
    /// Tell those who look that the status changed.
    Report,
    /// Drained: nothing is held any more.
    Leave,
    /// It does not get on and has to be ended; this is what is known of it.
    Abort(String),
}

/// Requests to run together.
#[derive(Debug)]
pub struct Batch {
    pub id: BatchId,
    pub method: u16,
    pub rows: RecordBatch,
    pub invocation: Invocation,
    /// Shut while a stream's caller takes nothing.
    pub gate: Gate,
}

struct Connection {
    client: String,
    announced: u64,
    like: Demand,
    permitted: u64,
    /// How many of them it was told of.
    heard: u64,
    arrived: u64,
    returned: u64,
    /// Permits that it neither used nor gave back in time.
    expired: u64,
    /// It let permits expire and has used none since: others go first.
    wastes: bool,
    /// How many rows it believes are held here.
    told: u64,
    /// When permits were given to it while it had none, or it last used some.
    granted: Time,
    /// Whether the next requests tell how long a permit takes to be used.
    timing: bool,
    untaken: Untaken,
}

impl Connection {
    /// Permits that are out.
    fn outstanding(&self) -> u64 {
        self.permitted.saturating_sub(self.used())
    }

    /// Permits that are used, given back, or expired.
    fn used(&self) -> u64 {
        self.arrived.saturating_add(self.returned).saturating_add(self.expired)
    }

    fn demand(&self) -> permit::Demand {
        let all = self.announced.saturating_sub(self.permitted);
        let interactive = self.like.interactive.min(all);
        let bulk = self.like.bulk.min(all - interactive);
        let rows = [interactive, all - interactive - bulk, bulk];
        permit::Demand { rows, bytes: self.like.row_bytes, weight: self.like.row_weight }
    }
}

struct Running {
    method: u16,
    items: Vec<Item>,
    weight: f64,
    since: Time,
    /// When it last gave anything.
    progress: Time,
    /// Where the method says which rows failed.
    invocation: Invocation,
    cancelled: Arc<AtomicBool>,
    cancelled_since: Option<Time>,
    /// It was stopped for want of memory, and shall run again.
    preempted: bool,
    /// The last of its requests' deadlines, if all have one.
    latest: Option<Time>,
    /// How many of its requests nobody waits for any more.
    unwanted: usize,
    /// Shut while its caller takes nothing.
    gate: Gate,
    /// Since when, and for how long before.
    suspended: (Option<Time>, Duration),
    /// Bytes of its stream that are here.
    kept: u64,
}

impl Running {
    /// Tells the method that nobody waits for it.
    fn cancel(&mut self, now: Time) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.cancelled_since.get_or_insert(now);
        self.resume(now);
    }
}

pub struct State {
    declaration: Declaration,
    methods: Arc<[MethodSpec]>,
    phase: Phase,
    opened: bool,
    connections: BTreeMap<ConnectionId, Connection>,
    /// The newest epoch seen of each client.
    epochs: BTreeMap<String, u64>,
    ledger: Ledger,
    queue: Queue,
    running: BTreeMap<BatchId, Running>,
    running_rows: u64,
    running_weight: f64,
    /// Halves of batches that failed, with their method; they go before the queue.
    split: VecDeque<(u16, Vec<Item>)>,
    /// Streams that do not begin, because their callers have not taken what others gave.
    parked: VecDeque<(u16, Item)>,
    scales: Scales,
    flow: Flow,
    /// The shortest time that callers wait for answers.
    patience: Option<Duration>,
    meter: InstanceMeter,
    /// When something last happened.
    seen: Time,
    /// When it was last without work that it could have begun.
    free_since: Time,
    /// The weight that was held when a row that was permitted had to be sent back for want of memory: until there is less, nobody is
    /// permitted anything, or it would come and go back again and again.
    full_at: Option<f64>,
    /// It does not get on, and was given up.
    given_up: bool,
    next_ticket: u64,
    next_batch: BatchId,
    next_turn: permit::Turn,
    /// When a connection was lost whose queued requests still wait for it.
    abandoned_since: Option<Time>,
    lingers_until: Option<Time>,
    /// It drains, and leaves at this time even if callers have not answered yet.
    leaves_by: Option<Time>,
    executed: u64,
    batches: u64,
}

impl State {
    pub fn new(declaration: Declaration, methods: Arc<[MethodSpec]>) -> Self {
        State {
            ledger: Ledger::new(declaration.ledger.clone()),
            scales: Scales::new(&declaration.weight),
            flow: Flow::new(&declaration, &methods),
            declaration,
            methods,
            phase: Phase::Opening,
            opened: false,
            connections: BTreeMap::new(),
            epochs: BTreeMap::new(),
            queue: Queue::default(),
            running: BTreeMap::new(),
            running_rows: 0,
            running_weight: 0.0,
            split: VecDeque::new(),
            parked: VecDeque::new(),
            patience: None,
            meter: InstanceMeter::default(),
            seen: Time::ZERO,
            free_since: Time::ZERO,
            full_at: None,
            given_up: false,
            next_ticket: 0,
            next_batch: 0,
            next_turn: permit::Turn::default(),
            abandoned_since: None,
            lingers_until: None,
            leaves_by: None,
            executed: 0,
            batches: 0,
        }
    }

    pub fn status(&self, pid: u32, now: Time) -> Status {
        Status {
            state: self.phase.clone(),
            pid,
            held: self.held(),
            executed: self.executed,
            batches: self.batches,
            ledger_bytes: self.ledger.bytes(),
            evicted: self.ledger.evicted(),
            standstill: self.standstill(now),
            meter: self.metered(now),
        }
    }

    /// The operators that something is held or remembered of.
    pub fn operators(&self) -> BTreeSet<u32> {
        self.ledger.operators()
    }

    /// Whether nothing is held.
    pub fn is_idle(&self) -> bool {
        self.held() == 0
    }

    /// Whether `open` has returned well.
    pub fn is_open(&self) -> bool {
        self.opened
    }

    /// Rows queued and running.
    pub fn held(&self) -> u64 {
        self.load().rows()
    }

    /// Weight of what is queued and running.
    pub fn held_weight(&self) -> f64 {
        self.load().weight()
    }

    /// What has been measured so far.
    pub fn meter(&self) -> &InstanceMeter {
        &self.meter
    }

    fn metered(&self, now: Time) -> InstanceMeter {
        let plan = |m: u16| self.flow.plan(m, &self.declaration, self.target(), self.load(), now).batch_rows;
        let batch_limit = (0..self.methods.len() as u16).map(plan).fold(1.0, f64::max);
        InstanceMeter {
            batch_limit: batch_limit as u64,
            memory_belief: self.flow.belief(),
            ledger: self.ledger.meter(),
            ..self.meter.clone()
        }
    }

    /// Refuses a caller whose client has been started again since.
    pub fn admit(&self, client: &str, epoch: u64) -> Result<()> {
        match self.epochs.get(client) {
            Some(&newest) if newest > epoch => Err(Error::new(
                Kind::Denied,
                Fate::Refused,
                Retry::Never,
                format!("client `{client}` of epoch {epoch} was replaced by epoch {newest}"),
            )),
            _ => Ok(()),
        }
    }

    /// When [`Event::Tick`] is due.
    pub fn wake_at(&self) -> Option<Time> {
        let abandoned = self.abandoned_since.map(|since| since + self.declaration.lease);
        [
            self.lingers_until,
            abandoned,
            self.ledger.expires_at(),
            self.leaves_by,
            self.progress_due().filter(|_| !self.given_up),
            self.permits_due(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        self.handle_all([event], now)
    }

    /// What happened together is answered together: what several frames bring may share a batch.
    pub fn handle_all(&mut self, events: impl IntoIterator<Item = Event>, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        self.seen = now;
        for event in events {
            self.take_in(event, now, &mut actions);
        }
        self.tell_disk(&mut actions);
        self.run_batches(now, &mut actions);
        self.grant(now);
        self.tell_permits(&mut actions);
        self.tell_load(&mut actions);
        if self.may_leave(now) {
            actions.push(Action::Leave);
        }
        actions
    }

    fn take_in(&mut self, event: Event, now: Time, actions: &mut Vec<Action>) {
        match event {
            Event::Opened(Ok(())) => {
                self.opened = true;
                // It may have been told to leave meanwhile.
                if self.phase == Phase::Opening {
                    self.phase = Phase::Ready;
                }
                actions.push(Action::Report);
            }
            Event::Opened(Err(e)) => {
                let permanent = e.retry() == Retry::Never;
                self.phase = Phase::Failed { message: e.message().to_owned(), permanent };
                actions.push(Action::Report);
            }
            Event::Joined { connection, client, epoch } => {
                self.joined(connection, client, epoch, now, actions);
            }
            Event::Left(connection) => self.left(connection, now),
            Event::Received { connection, message } => self.received(connection, message, now, actions),
            Event::Emitted { batch, rows } => self.emitted(batch, rows, now, actions),
            Event::Ended { batch, result } => self.ended(batch, result, now, actions),
            Event::Written { first, result } => self.ledger.written(first, result, now),
            Event::Loaded { first, result } => self.loaded(first, result, now, actions),
            Event::Gauge { used, total } => {
                self.flow.reported(used, total);
                self.full_at = None;
                self.preempt(now);
            }
            Event::Drain => self.drain(now, actions),
            Event::Tick => self.tick(now, actions),
        }
    }

    /// It drains and holds nothing; no request is on the way to it, and no result waits for a caller that lost its
    /// connection, or they have had their time.
    fn may_leave(&self, now: Time) -> bool {
        let late = || self.leaves_by.is_none_or(|by| now >= by);
        let settled =
            || self.connections.values().all(|c| c.outstanding() == 0) && !self.ledger.has_undelivered();
        let done = || self.is_idle() && !self.ledger.has_unsent();
        self.phase == Phase::Draining && done() && (late() || settled())
    }

    fn joined(&mut self, id: ConnectionId, client: String, epoch: u64, now: Time, actions: &mut Vec<Action>) {
        let newest = self.epochs.entry(client.clone()).or_default();
        if *newest > epoch {
            // Overtaken since it was admitted.
            actions.push(Action::Close(id));
            return;
        }
        let restarted = std::mem::replace(newest, epoch) < epoch;
        // A client has one connection. What is still under way on an older one must not be heard any more: the client
        // believes it lost, and may have had it run elsewhere.
        let older = self.connections.iter().filter(|(_, c)| c.client == client).map(|(id, _)| *id);
        for other in older.collect::<Vec<_>>() {
            actions.push(Action::Close(other));
            self.left(other, now);
        }
        if restarted {
            self.forget_streams_of(&client, now);
        }
        let connection = Connection {
            client,
            announced: 0,
            like: Demand::default(),
            permitted: 0,
            heard: 0,
            arrived: 0,
            returned: 0,
            expired: 0,
            wastes: false,
            told: 0,
            granted: now,
            timing: false,
            untaken: Untaken::new(&self.declaration.stream),
        };
        self.connections.insert(id, connection);
        self.forget_clients();
        let held: Vec<RequestId> = self.ledger.unattended().filter(|id| !self.is_stopped(*id)).collect();
        let frames = held.len().div_ceil(HOLDS_AT_ONCE).max(1);
        for frame in 0..frames {
            let ids = held.iter().skip(frame * HOLDS_AT_ONCE).take(HOLDS_AT_ONCE);
            let holds = Frame::Holds { runs: RequestRun::pack(ids.copied()), last: frame + 1 == frames };
            actions.push(Action::Send(id, holds.into()));
        }
        if self.phase == Phase::Draining {
            actions.push(Action::Send(id, Frame::Draining.into()));
        }
    }

    /// Keeps the list of epochs from growing with every name that ever came.
    fn forget_clients(&mut self) {
        if self.epochs.len() <= MOST_CLIENTS {
            return;
        }
        let connections = &self.connections;
        let is_connected = |client: &String| connections.values().any(|c| c.client == *client);
        if let Some(gone) = self.epochs.keys().find(|client| !is_connected(client)).cloned() {
            self.epochs.remove(&gone);
        }
    }

    /// Its requests stay for a while: it may come back and attach to them.
    fn left(&mut self, id: ConnectionId, now: Time) {
        self.connections.remove(&id);
        self.patience = self.connections.values().filter_map(|c| c.like.patience).min();
        for request in self.ledger.attached_to(id) {
            if let Some(entry) = self.ledger.get_mut(request) {
                entry.attached = None;
                let stops = match entry.stage {
                    Stage::Queued { .. } => true,
                    Stage::Running { .. } => self.declaration.ledger.orphans == Orphans::Cancel,
                    Stage::Ended | Stage::Finished { .. } => false,
                };
                if stops {
                    self.abandoned_since.get_or_insert(now);
                }
                self.pump(request, now, &mut Vec::new());
            }
        }
        self.ledger.evict(now);
        self.unpark();
    }

    fn tick(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.ledger.evict(now);
        self.expire_permits(now);
        self.look_at_progress(now, actions);
        if self.abandoned_since.is_some_and(|since| now.since(since) >= self.declaration.lease) {
            self.abandoned_since = None;
            for id in self.ledger.abandoned() {
                self.ledger.remove(id);
            }
            for id in self.stranded() {
                self.discard(id, now);
            }
            if self.declaration.ledger.orphans == Orphans::Cancel {
                let running: Vec<RequestId> = self.ledger.orphaned().collect();
                self.cancel(None, &RequestRun::pack(running), now);
            }
        }
        if self.leaves_by.is_some_and(|by| now >= by) {
            self.leaves_by = None;
        }
    }

    fn received(&mut self, from: ConnectionId, message: Message, now: Time, actions: &mut Vec<Action>) {
        let Some(connection) = self.connections.get_mut(&from) else { return };
        match message.frame {
            Frame::Announce { rows, like } => {
                connection.announced = rows;
                // No row is larger than a message, whatever a caller says of its own.
                let row_bytes = like.row_bytes.min(self.declaration.max_message.get());
                let like = Demand { row_bytes, row_weight: like.row_weight.min(HEAVIEST), ..like };
                if connection.like.patience != like.patience {
                    connection.like = like;
                    self.patience = self.connections.values().filter_map(|c| c.like.patience).min();
                } else {
                    connection.like = like;
                }
            }
            Frame::Return { rows } => {
                // Only what was permitted can be given back, and what was given back stays so.
                let unused = connection.permitted - connection.arrived;
                connection.returned = rows.min(unused).max(connection.returned);
                // What comes back late had expired, and counts once.
                connection.expired = connection.expired.min(unused.saturating_sub(connection.returned));
                connection.wastes = false;
            }
            Frame::Request { method, priority, alone, deadlines, runs } => {
                if let Some(rows) = message.rows {
                    self.requested(from, (method, priority, alone), &deadlines, &runs, rows, now, actions);
                }
            }
            Frame::Attach { runs } => self.attach(from, &runs, now, actions),
            Frame::Resume { streams } => self.resume(from, &streams, now, actions),
            Frame::Credit { window, total, taken } => {
                connection.untaken.limit(window, total);
                self.credit(from, &taken, now, actions);
            }
            Frame::Cancel { runs } => {
                runs.iter().for_each(|run| connection.untaken.forget(*run));
                self.cancel(Some(from), &runs, now);
                self.credit(from, &[], now, actions);
            }
            Frame::Acknowledge { runs } => self.ledger.acknowledge(from, &runs),
            Frame::Ping(n) => actions.push(Action::Send(from, Frame::Pong(n).into())),
            // Nothing that a caller says; a peer that does has only confused itself.
            _ => actions.push(Action::Close(from)),
        }
    }

    /// Whether so many rows more are beyond what a caller may send.
    fn lacks_permits(&self, from: ConnectionId, rows: u64) -> bool {
        self.connections
            .get(&from)
            .is_none_or(|c| c.arrived.saturating_add(rows).saturating_add(c.returned) > c.permitted)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one frame")]
    fn requested(
        &mut self,
        from: ConnectionId,
        (method, priority, alone): (u16, Priority, bool),
        deadlines: &Deadlines,
        runs: &[RequestRun],
        rows: RecordBatch,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let count = rows.num_rows() as u64;
        if self.lacks_permits(from, count) {
            // They may have come with what announces them.
            self.grant(now);
        }
        let unasked = self.lacks_permits(from, count);
        let connection = self.connections.get_mut(&from).expect("looked up by the caller");
        connection.arrived += count;
        if unasked {
            // What came without a permit does not count as arrived on one.
            connection.arrived -= count;
            let error = Error::new(
                Kind::Overload,
                Fate::Refused,
                Retry::Elsewhere,
                format!("{count} requests of method {method} were sent without permits"),
            );
            let failure = Frame::Failure { runs: runs.to_vec(), error };
            actions.push(Action::Send(from, failure.into()));
            meter::count(&mut self.meter.refused, "no-permit", count);
            return;
        }
        if std::mem::take(&mut connection.timing) {
            self.flow.answered(now.since(connection.granted));
        }
        connection.granted = now;
        connection.wastes = false;
        let late = connection.used().saturating_sub(connection.permitted);
        connection.expired -= late;
        if late > 0 {
            meter::count(&mut self.meter.refused, "expired-permit", count);
        }
        if self.phase != Phase::Ready || late > 0 {
            actions.push(Action::Send(from, Frame::HandBack { runs: runs.to_vec() }.into()));
            return;
        }
        let each = (body::bytes(&rows) / count.max(1)).max(1);
        let chunk = Arc::new(rows);
        let ids = runs.iter().flat_map(|run| run.ids());
        let weights = self.scales.input(&chunk);
        let (mut known, mut back) = (Vec::new(), Vec::new());
        for (offset, id) in ids.enumerate() {
            // A run that was told to stop is of no use to whoever asks again.
            let anothers = self.ledger.get(id).is_some_and(|e| e.is_of_another(Some(from)));
            if self.is_cut(id) && !anothers {
                self.discard(id, now);
            } else if self.ledger.get_mut(id).is_some() && !self.is_stopped(id) {
                known.push(RequestRun::one(id));
                continue;
            }
            let weight = weights.at(offset);
            self.flow.arrived(weight);
            if self.flow.refuses(method, weight, self.load()) {
                back.push(id);
                continue;
            }
            let ticket = self.next_ticket;
            self.next_ticket += 1;
            let (stage, attached) = (Stage::Queued { ticket }, Some(from));
            let stream = self.is_streaming(method).then(Box::default);
            let parts = Vec::new();
            self.ledger.insert(id, Entry { method, attached, stage, parts, stream, unwanted: false });
            let deadline = deadlines.of(offset).map(|d| now + d);
            let row = Piece { batch: chunk.clone(), offset, rows: 1 };
            let item = Item { id, ticket, row, bytes: each, weight, alone, deadline, arrived: now };
            self.queue.push(priority, method, item);
        }
        if !known.is_empty() {
            self.attach(from, &known, now, actions);
        }
        if !back.is_empty() {
            // One lesson a frame: what it brought was permitted at once.
            self.flow.refused();
            self.full_at = Some(self.held_weight());
            meter::count(&mut self.meter.refused, "memory", back.len() as u64);
            let runs = RequestRun::pack(back);
            actions.push(Action::Send(from, Frame::HandBack { runs }.into()));
        }
    }

    /// Attaches a caller to what it presents: running and queued requests get a new addressee, finished ones are sent.
    fn attach(&mut self, to: ConnectionId, runs: &[RequestRun], now: Time, actions: &mut Vec<Action>) {
        let (mut unknown, mut anothers) = (Vec::new(), Vec::new());
        let mut finished = Vec::new();
        let mut on_disk = Vec::new();
        for id in runs.iter().flat_map(|run| run.ids()) {
            if let Some(entry) = self.ledger.get(id).filter(|e| e.stream.is_some()) {
                if entry.is_of_another(Some(to)) {
                    anothers.push(id);
                } else if !self.attach_stream(to, id, 0, now, actions) {
                    unknown.push(id);
                }
                continue;
            }
            let stopped = self.is_stopped(id);
            match self.ledger.get_mut(id).filter(|_| !stopped) {
                Some(entry) if entry.is_of_another(Some(to)) => anothers.push(id),
                Some(entry) => {
                    entry.attached = Some(to);
                    if std::mem::take(&mut entry.unwanted)
                        && let Stage::Running { batch } = entry.stage
                        && let Some(running) = self.running.get_mut(&batch)
                    {
                        running.unwanted -= 1;
                    }
                    if entry.is_on_disk() {
                        on_disk.push(id);
                        continue;
                    }
                    let last = matches!(entry.stage, Stage::Finished { .. });
                    let method = entry.method;
                    finished.extend(entry.parts.iter().map(|part| (method, id, part.clone(), false)));
                    if let (true, Some((.., is_last))) = (last, finished.last_mut()) {
                        *is_last = true;
                    }
                }
                None => unknown.push(id),
            }
        }
        for (method, id, part, last) in finished {
            self.send_parts(to, method, &[(id, part)], last, actions);
        }
        on_disk.into_iter().for_each(|id| self.ledger.want(id));
        if !unknown.is_empty() {
            let runs = RequestRun::pack(unknown);
            actions.push(Action::Send(to, Frame::HandBack { runs }.into()));
        }
        refuse(to, anothers, actions);
    }

    /// Whether it runs in a batch that was told that nobody waits for it.
    fn is_stopped(&self, id: RequestId) -> bool {
        let Some(Entry { stage: Stage::Running { batch }, .. }) = self.ledger.get(id) else {
            return false;
        };
        self.running.get(batch).is_some_and(|r| r.cancelled.load(Ordering::Relaxed))
    }

    /// Queued requests are dropped; running ones are told, once nobody waits for any of their batch. Those that another caller waits for
    /// stay as they are.
    fn cancel(&mut self, from: Option<ConnectionId>, runs: &[RequestRun], now: Time) {
        for id in runs.iter().flat_map(|run| self.ledger.within(*run)).collect::<Vec<_>>() {
            let Some(entry) = self.ledger.get_mut(id).filter(|e| !e.is_of_another(from)) else { continue };
            match entry.stage {
                Stage::Running { batch } => {
                    entry.attached = None;
                    if !std::mem::replace(&mut entry.unwanted, true)
                        && let Some(running) = self.running.get_mut(&batch)
                    {
                        running.unwanted += 1;
                        // What is stopped for want of time has told that there is too much beside it.
                        if running.latest.is_some_and(|at| now >= at - LATE) {
                            self.flow.late(running.method, running.since, now);
                        }
                        if running.unwanted == running.items.len() {
                            running.cancel(now);
                        }
                    }
                }
                Stage::Queued { .. } | Stage::Ended | Stage::Finished { .. } => {
                    self.ledger.remove(id);
                }
            }
        }
    }

    fn drain(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.phase == Phase::Draining {
            return;
        }
        self.phase = Phase::Draining;
        self.leaves_by = Some(now + self.declaration.lease.min(FAREWELL));
        let mut back: BTreeMap<ConnectionId, Vec<RequestId>> = BTreeMap::new();
        let parked = std::mem::take(&mut self.parked).into_iter().map(|(_, item)| item);
        for item in self.queue.drain().into_iter().chain(parked) {
            if self.ledger.is_queued(item.id, item.ticket)
                && let Some(Entry { attached: Some(connection), .. }) = self.ledger.remove(item.id)
            {
                back.entry(connection).or_default().push(item.id);
            }
        }
        for &connection in self.connections.keys() {
            actions.push(Action::Send(connection, Frame::Draining.into()));
        }
        for (connection, ids) in back {
            let runs = RequestRun::pack(ids);
            actions.push(Action::Send(connection, Frame::HandBack { runs }.into()));
        }
        actions.push(Action::Report);
    }
}

/// A caller asks for requests that another one waits for.
fn refuse(to: ConnectionId, anothers: Vec<RequestId>, actions: &mut Vec<Action>) {
    let Some(first) = anothers.first() else { return };
    let message = format!(
        "{} requests from {first} on are those of another client, which is connected; ids are not shared between clients",
        anothers.len()
    );
    let error = Error::new(Kind::Denied, Fate::Refused, Retry::Never, message);
    actions.push(Action::Send(to, Frame::Failure { runs: RequestRun::pack(anothers), error }.into()));
}

#[cfg(test)]
mod tests;
