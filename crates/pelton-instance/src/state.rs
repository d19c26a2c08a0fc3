//! What an instance decides: events and time in, actions out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow_array::RecordBatch;
use pelton_core::call::Priority;
use pelton_core::declaration::Declaration;
use pelton_core::service::{Cardinality, Invocation, MethodSpec, check_columns};
use pelton_core::{Error, Fate, Kind, RequestId, RequestRun, Result, Retry, Time};
use pelton_link::Message;
use pelton_policy::{batch, permit};
use pelton_wire::body::{Piece, gather};
use pelton_wire::{Entry as ResultEntry, Frame, State as Phase, Status};

use crate::ledger::{Entry, Ledger, Stage};
use crate::queue::{Item, Queue};

/// A caller's connection, numbered by the server.
pub(crate) type ConnectionId = u64;

/// A batch that was started, numbered here.
pub(crate) type BatchId = u64;

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
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
    /// Control wants it to finish and leave.
    Drain,
    /// The time of [`State::wake_at`] has come.
    Tick,
}

/// What to do about it, in this order.
#[derive(Debug)]
pub(crate) enum Action {
    Send(ConnectionId, Message),
    /// Another process of the same client has taken over.
    Close(ConnectionId),
    Run(Batch),
    /// Tell those who look that the status changed.
    Report,
    /// Drained: nothing is held any more.
    Leave,
}

/// Requests to run together.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) id: BatchId,
    pub(crate) method: u16,
    pub(crate) rows: RecordBatch,
    pub(crate) invocation: Invocation,
}

struct Connection {
    client: String,
    announced: u64,
    row_bytes: u64,
    permitted: u64,
    arrived: u64,
    returned: u64,
}

impl Connection {
    /// Permits that are out.
    fn outstanding(&self) -> u64 {
        self.permitted.saturating_sub(self.arrived).saturating_sub(self.returned)
    }

    fn demand(&self) -> permit::Demand {
        let rows = self.announced.saturating_sub(self.permitted);
        permit::Demand { rows, bytes: rows.saturating_mul(self.row_bytes) }
    }
}

struct Running {
    method: u16,
    ids: Vec<RequestId>,
    cancelled: Arc<AtomicBool>,
    /// How many of its requests nobody waits for any more.
    unwanted: usize,
}

pub(crate) struct State {
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
    next_ticket: u64,
    next_batch: BatchId,
    next_turn: usize,
    /// When a connection was lost whose queued requests still wait for it.
    abandoned_since: Option<Time>,
    lingers_until: Option<Time>,
    /// It drains, and leaves at this time even if callers have not answered yet.
    leaves_by: Option<Time>,
    executed: u64,
    batches: u64,
}

impl State {
    pub(crate) fn new(declaration: Declaration, methods: Arc<[MethodSpec]>) -> Self {
        State {
            ledger: Ledger::new(declaration.ledger),
            declaration,
            methods,
            phase: Phase::Opening,
            opened: false,
            connections: BTreeMap::new(),
            epochs: BTreeMap::new(),
            queue: Queue::default(),
            running: BTreeMap::new(),
            running_rows: 0,
            next_ticket: 0,
            next_batch: 0,
            next_turn: 0,
            abandoned_since: None,
            lingers_until: None,
            leaves_by: None,
            executed: 0,
            batches: 0,
        }
    }

    pub(crate) fn status(&self, pid: u32) -> Status {
        Status {
            state: self.phase.clone(),
            pid,
            held: self.held(),
            executed: self.executed,
            batches: self.batches,
            ledger_bytes: self.ledger.bytes(),
            evicted: self.ledger.evicted(),
        }
    }

    /// Whether nothing is held.
    pub(crate) fn is_idle(&self) -> bool {
        self.held() == 0
    }

    /// Whether `open` has returned well.
    pub(crate) fn is_open(&self) -> bool {
        self.opened
    }

    fn held(&self) -> u64 {
        self.queue.rows() + self.running_rows
    }

    /// Refuses a caller whose client has been started again since.
    pub(crate) fn admit(&self, client: &str, epoch: u64) -> Result<()> {
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
    pub(crate) fn wake_at(&self) -> Option<Time> {
        let abandoned = self.abandoned_since.map(|since| since + self.declaration.lease);
        [self.lingers_until, abandoned, self.ledger.expires_at(), self.leaves_by].into_iter().flatten().min()
    }

    pub(crate) fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
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
                self.joined(connection, client, epoch, now, &mut actions);
            }
            Event::Left(connection) => self.left(connection, now),
            Event::Received { connection, message } => self.received(connection, message, now, &mut actions),
            Event::Emitted { batch, rows } => self.emitted(batch, rows, &mut actions),
            Event::Ended { batch, result } => self.ended(batch, result, now, &mut actions),
            Event::Drain => self.drain(now, &mut actions),
            Event::Tick => self.tick(now),
        }
        self.run_batches(now, &mut actions);
        self.grant(&mut actions);
        if self.may_leave(now) {
            actions.push(Action::Leave);
        }
        actions
    }

    /// It drains and holds nothing; no request is on the way to it, and no result waits for a caller that lost its
    /// connection, or they have had their time.
    fn may_leave(&self, now: Time) -> bool {
        let late = || self.leaves_by.is_none_or(|by| now >= by);
        let settled =
            || self.connections.values().all(|c| c.outstanding() == 0) && !self.ledger.has_undelivered();
        self.phase == Phase::Draining && self.is_idle() && (late() || settled())
    }

    fn joined(&mut self, id: ConnectionId, client: String, epoch: u64, now: Time, actions: &mut Vec<Action>) {
        let newest = self.epochs.entry(client.clone()).or_default();
        if *newest > epoch {
            // Overtaken since it was admitted.
            actions.push(Action::Close(id));
            return;
        }
        *newest = epoch;
        // A client has one connection. What is still under way on an older one must not be heard any more: the client
        // believes it lost, and may have had it run elsewhere.
        let older = self.connections.iter().filter(|(_, c)| c.client == client).map(|(id, _)| *id);
        for other in older.collect::<Vec<_>>() {
            actions.push(Action::Close(other));
            self.left(other, now);
        }
        let connection =
            Connection { client, announced: 0, row_bytes: 0, permitted: 0, arrived: 0, returned: 0 };
        self.connections.insert(id, connection);
        if self.phase == Phase::Draining {
            actions.push(Action::Send(id, Frame::Draining.into()));
        }
    }

    /// Its requests stay for a while: it may come back and attach to them.
    fn left(&mut self, id: ConnectionId, now: Time) {
        self.connections.remove(&id);
        for request in self.ledger.attached_to(id) {
            if let Some(entry) = self.ledger.get_mut(request) {
                entry.attached = None;
                if matches!(entry.stage, Stage::Queued { .. }) {
                    self.abandoned_since.get_or_insert(now);
                }
            }
        }
    }

    fn tick(&mut self, now: Time) {
        self.ledger.evict(now);
        if self.abandoned_since.is_some_and(|since| now.since(since) >= self.declaration.lease) {
            self.abandoned_since = None;
            for id in self.ledger.abandoned() {
                self.ledger.remove(id);
            }
        }
        if self.leaves_by.is_some_and(|by| now >= by) {
            self.leaves_by = None;
        }
    }

    fn received(&mut self, from: ConnectionId, message: Message, now: Time, actions: &mut Vec<Action>) {
        let Some(connection) = self.connections.get_mut(&from) else { return };
        match message.frame {
            Frame::Announce { rows, row_bytes } => {
                connection.announced = rows;
                connection.row_bytes = row_bytes;
            }
            Frame::Return { rows } => connection.returned = rows,
            Frame::Request { method, priority, deadline, runs } => {
                if let Some(rows) = message.rows {
                    self.requested(from, method, priority, deadline, &runs, rows, now, actions);
                }
            }
            Frame::Attach { runs } => self.attach(from, &runs, actions),
            Frame::Cancel { runs } => self.cancel(&runs),
            Frame::Acknowledge { runs } => self.ledger.acknowledge(&runs),
            Frame::Ping(n) => actions.push(Action::Send(from, Frame::Pong(n).into())),
            // Nothing that a caller says; a peer that does has only confused itself.
            _ => actions.push(Action::Close(from)),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one frame")]
    fn requested(
        &mut self,
        from: ConnectionId,
        method: u16,
        priority: Priority,
        deadline: Option<Duration>,
        runs: &[RequestRun],
        rows: RecordBatch,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let connection = self.connections.get_mut(&from).expect("looked up by the caller");
        let count = rows.num_rows() as u64;
        connection.arrived += count;
        let unasked = connection.arrived.saturating_add(connection.returned) > connection.permitted;
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
            return;
        }
        if self.phase != Phase::Ready {
            actions.push(Action::Send(from, Frame::HandBack { runs: runs.to_vec() }.into()));
            return;
        }
        let each = (batch_bytes(&rows) / count.max(1)).max(1);
        let chunk = Arc::new(rows);
        let ids = runs.iter().flat_map(|run| run.ids());
        let mut known = Vec::new();
        for (offset, id) in ids.enumerate() {
            // A run that was told to stop is of no use to whoever asks again.
            if self.ledger.get_mut(id).is_some() && !self.is_stopped(id) {
                known.push(RequestRun::one(id));
                continue;
            }
            let ticket = self.next_ticket;
            self.next_ticket += 1;
            let (stage, attached) = (Stage::Queued { ticket }, Some(from));
            self.ledger.insert(id, Entry { method, attached, stage, parts: Vec::new(), unwanted: false });
            let deadline = deadline.map(|d| now + d);
            let row = Piece { batch: chunk.clone(), offset, rows: 1 };
            let item = Item { id, ticket, row, bytes: each, deadline, arrived: now };
            self.queue.push(priority, method, item);
        }
        if !known.is_empty() {
            self.attach(from, &known, actions);
        }
    }

    /// Attaches a caller to what it presents: running and queued requests get a new addressee, finished ones are sent.
    fn attach(&mut self, to: ConnectionId, runs: &[RequestRun], actions: &mut Vec<Action>) {
        let mut unknown = Vec::new();
        let mut finished = Vec::new();
        for id in runs.iter().flat_map(|run| run.ids()) {
            let stopped = self.is_stopped(id);
            match self.ledger.get_mut(id).filter(|_| !stopped) {
                Some(entry) => {
                    entry.attached = Some(to);
                    if std::mem::take(&mut entry.unwanted)
                        && let Stage::Running { batch } = entry.stage
                        && let Some(running) = self.running.get_mut(&batch)
                    {
                        running.unwanted -= 1;
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
        if !unknown.is_empty() {
            let runs = RequestRun::pack(unknown);
            actions.push(Action::Send(to, Frame::HandBack { runs }.into()));
        }
    }

    /// Whether it runs in a batch that was told that nobody waits for it.
    fn is_stopped(&mut self, id: RequestId) -> bool {
        let Some(Entry { stage: Stage::Running { batch }, .. }) = self.ledger.get_mut(id) else {
            return false;
        };
        self.running.get(batch).is_some_and(|r| r.cancelled.load(Ordering::Relaxed))
    }

    /// Queued requests are dropped; running ones are told, once nobody waits for any of their batch.
    fn cancel(&mut self, runs: &[RequestRun]) {
        for id in runs.iter().flat_map(|run| run.ids()) {
            let Some(entry) = self.ledger.get_mut(id) else { continue };
            match entry.stage {
                Stage::Running { batch } => {
                    entry.attached = None;
                    if !std::mem::replace(&mut entry.unwanted, true)
                        && let Some(running) = self.running.get_mut(&batch)
                    {
                        running.unwanted += 1;
                        if running.unwanted == running.ids.len() {
                            running.cancelled.store(true, Ordering::Relaxed);
                        }
                    }
                }
                Stage::Queued { .. } | Stage::Finished { .. } => {
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
        self.leaves_by = Some(now + self.declaration.lease);
        let mut back: BTreeMap<ConnectionId, Vec<RequestId>> = BTreeMap::new();
        for item in self.queue.drain() {
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

    // --- running ---

    /// Whether a batch of this method may start beside what runs.
    fn may_start(&self, method: u16) -> bool {
        let spec = &self.methods[usize::from(method)];
        match spec.concurrency {
            None => self.running.is_empty(),
            Some(bound) => {
                let serial = |r: &Running| self.methods[usize::from(r.method)].concurrency.is_none();
                !self.running.values().any(serial)
                    && self.running.values().filter(|r| r.method == method).count() < bound
            }
        }
    }

    fn run_batches(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.lingers_until = None;
        loop {
            let eligible: Vec<bool> = (0..self.methods.len()).map(|m| self.may_start(m as u16)).collect();
            if !eligible.contains(&true) || self.queue.rows() == 0 {
                return;
            }
            let Some(batch) = self.next_batch(&eligible, now, actions) else { return };
            actions.extend(batch.map(Action::Run));
        }
    }

    /// The next batch to run; `Some(None)` if all that was taken was past its deadline, `None` if it is not time.
    fn next_batch(
        &mut self,
        eligible: &[bool],
        now: Time,
        actions: &mut Vec<Action>,
    ) -> Option<Option<Batch>> {
        let ledger = &self.ledger;
        let gone = |item: &Item| !ledger.is_queued(item.id, item.ticket);
        let head = self.queue.head(|m| eligible[usize::from(m)], gone)?;

        let many = self.methods[usize::from(head.lane.1)].cardinality == Cardinality::Many;
        let rows = if many { 1 } else { u64::from(self.declaration.batch.rows) };
        let bytes = self.declaration.batch.bytes.get();
        let limits = batch::Limits { rows, bytes, linger: self.declaration.batch.linger };
        let more_to_come = self.phase == Phase::Ready
            && self.connections.values().any(|c| c.outstanding() > 0 || c.demand().rows > 0);
        let waiting = batch::Waiting { rows: head.rows, bytes: head.bytes, since: head.since, more_to_come };
        if let batch::Decision::WaitUntil(at) = batch::close(limits, waiting, now) {
            self.lingers_until = Some(at);
            return None;
        }
        let items = self.queue.take(head.lane, rows, bytes);
        Some(self.start(head.lane.1, items, now, actions))
    }

    fn start(
        &mut self,
        method: u16,
        items: Vec<Item>,
        now: Time,
        actions: &mut Vec<Action>,
    ) -> Option<Batch> {
        let mut live = Vec::with_capacity(items.len());
        let mut late = Vec::new();
        for item in items {
            if !self.ledger.is_queued(item.id, item.ticket) {
                continue;
            }
            if item.deadline.is_some_and(|deadline| deadline <= now) {
                late.push(item.id);
            } else {
                live.push(item);
            }
        }
        let error = || {
            Error::new(
                Kind::Deadline,
                Fate::Refused,
                Retry::Never,
                "the deadline passed in the instance's queue",
            )
        };
        self.fail(late, &error(), actions);
        if live.is_empty() {
            return None;
        }
        let rows = match gather(live.iter().map(|item| &item.row)) {
            Ok(rows) => rows,
            Err(e) => {
                self.fail(live.into_iter().map(|item| item.id).collect(), &e, actions);
                return None;
            }
        };
        let id = self.next_batch;
        self.next_batch += 1;
        let ids: Vec<RequestId> = live.iter().map(|item| item.id).collect();
        for id_of_row in &ids {
            if let Some(entry) = self.ledger.get_mut(*id_of_row) {
                entry.stage = Stage::Running { batch: id };
            }
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        let deadline = live.iter().filter_map(|item| item.deadline).min();
        let invocation = Invocation::new(deadline, cancelled.clone());
        self.running_rows += ids.len() as u64;
        self.batches += 1;
        self.running.insert(id, Running { method, ids, cancelled, unwanted: 0 });
        Some(Batch { id, method, rows, invocation })
    }

    fn emitted(&mut self, batch: BatchId, rows: RecordBatch, actions: &mut Vec<Action>) {
        let Some(running) = self.running.get(&batch) else { return };
        let (method, id) = (running.method, running.ids[0]);
        let part = Piece { offset: 0, rows: rows.num_rows(), batch: Arc::new(rows) };
        let Some(entry) = self.ledger.running(id, batch) else { return };
        entry.parts.push(part.clone());
        if let Some(connection) = entry.attached {
            self.send_parts(connection, method, &[(id, part)], false, actions);
        }
    }

    fn ended(&mut self, batch: BatchId, result: Result<RecordBatch>, now: Time, actions: &mut Vec<Action>) {
        let Some(Running { method, ids, .. }) = self.running.remove(&batch) else { return };
        self.running_rows -= ids.len() as u64;
        self.executed += ids.len() as u64;
        let spec = &self.methods[usize::from(method)];
        let many = spec.cardinality == Cardinality::Many;
        let rows = match result.and_then(|rows| if many { Ok(rows) } else { check_result(spec, &ids, rows) })
        {
            Ok(_) if many => Arc::new(RecordBatch::new_empty(spec.output.clone())),
            Ok(rows) => Arc::new(rows),
            Err(error) => {
                // Without those that were asked for anew since this batch was told to stop.
                let ids = ids.into_iter().filter(|id| self.ledger.running(*id, batch).is_some()).collect();
                return self.fail(ids, &error, actions);
            }
        };
        // Whatever is wanted is stored, and sent to whoever waits: one frame for all that goes to the same caller.
        let mut outgoing: BTreeMap<ConnectionId, Vec<(RequestId, Piece)>> = BTreeMap::new();
        let each = (batch_bytes(&rows) / ids.len().max(1) as u64).max(1);
        for (row, id) in ids.into_iter().enumerate() {
            let Some(entry) = self.ledger.running(id, batch) else { continue };
            if entry.unwanted {
                self.ledger.remove(id);
                continue;
            }
            let part =
                Piece { batch: rows.clone(), offset: if many { 0 } else { row }, rows: usize::from(!many) };
            if let Some(connection) = entry.attached {
                outgoing.entry(connection).or_default().push((id, part.clone()));
            }
            entry.parts.push(part);
            let emitted: usize = if many { entry.parts.iter().map(part_bytes).sum() } else { 0 };
            self.ledger.finish(id, each + emitted as u64, now);
        }
        for (connection, parts) in outgoing {
            self.send_parts(connection, method, &parts, true, actions);
        }
        self.ledger.evict(now);
    }

    /// Sends the parts of some requests; as many frames as the limit on a message asks for.
    fn send_parts(
        &mut self,
        to: ConnectionId,
        method: u16,
        parts: &[(RequestId, Piece)],
        last: bool,
        actions: &mut Vec<Action>,
    ) {
        let max = self.declaration.max_message.get() as usize;
        let mut frame: Vec<(RequestId, &Piece)> = Vec::new();
        let mut bytes = 0;
        for (id, part) in parts {
            let size = part_bytes(part);
            if size > max {
                let error = Error::new(
                    Kind::Limit,
                    Fate::Executed,
                    Retry::Never,
                    format!(
                        "a result of {size} bytes is over the service's limit of {} (max_message)",
                        self.declaration.max_message
                    ),
                );
                self.fail(vec![*id], &error, actions);
                continue;
            }
            if bytes + size > max {
                actions.extend(results(to, method, &frame, last));
                (frame, bytes) = (Vec::new(), 0);
            }
            frame.push((*id, part));
            bytes += size;
        }
        actions.extend(results(to, method, &frame, last));
    }

    /// Ends requests with an error. It is not stored: a caller that tries again shall get another attempt.
    fn fail(&mut self, ids: Vec<RequestId>, error: &Error, actions: &mut Vec<Action>) {
        let mut failed: BTreeMap<ConnectionId, Vec<RequestId>> = BTreeMap::new();
        for id in ids {
            if let Some(connection) = self.ledger.remove(id).and_then(|entry| entry.attached) {
                failed.entry(connection).or_default().push(id);
            }
        }
        for (connection, ids) in failed {
            let failure = Frame::Failure { runs: RequestRun::pack(ids), error: error.clone() };
            actions.push(Action::Send(connection, failure.into()));
        }
    }

    // --- permits ---

    fn grant(&mut self, actions: &mut Vec<Action>) {
        if self.phase != Phase::Ready || self.connections.is_empty() {
            return;
        }
        let demands: Vec<permit::Demand> = self.connections.values().map(Connection::demand).collect();
        if demands.iter().all(|d| d.rows == 0) {
            return;
        }
        let outstanding: u64 = self.connections.values().map(Connection::outstanding).sum();
        let outstanding_bytes: u64 =
            self.connections.values().map(|c| c.outstanding().saturating_mul(c.row_bytes)).sum();
        let room = permit::Room {
            rows: u64::from(self.declaration.permitted_rows()).saturating_sub(self.held() + outstanding),
            bytes: self
                .declaration
                .permits
                .bytes
                .get()
                .saturating_sub(self.queue.bytes() + outstanding_bytes),
        };
        let budget = u64::from(self.declaration.permitted_rows());
        debug_assert!(
            self.held() + outstanding <= budget,
            "{} held, {outstanding} permitted of {budget}",
            self.held()
        );
        let empty = self.held() + outstanding == 0;
        let (granted, next) = permit::grant(&demands, self.next_turn, room, empty);
        self.next_turn = next;
        let held = self.held();
        for ((&id, connection), rows) in self.connections.iter_mut().zip(granted) {
            if rows > 0 {
                connection.permitted += rows;
                let permit = Frame::Permit { rows: connection.permitted, held };
                actions.push(Action::Send(id, permit.into()));
            }
        }
    }
}

fn check_result(spec: &MethodSpec, ids: &[RequestId], rows: RecordBatch) -> Result<RecordBatch> {
    let name = &spec.name;
    if rows.num_rows() != ids.len() {
        return Err(Error::user(format!(
            "method `{name}` gave {} rows for {} requests",
            rows.num_rows(),
            ids.len()
        )));
    }
    check_columns(&format!("result of method `{name}`"), &rows, &spec.output)
        .map_err(|e| Error::user(e.message().to_owned()))?;
    Ok(rows)
}

/// Not the memory that its buffers have: those of a received batch are all parts of one.
fn batch_bytes(rows: &RecordBatch) -> u64 {
    rows.columns().iter().map(|c| c.to_data().get_slice_memory_size().unwrap_or(0) as u64).sum()
}

fn part_bytes(part: &Piece) -> usize {
    let columns = part.batch.columns().iter().map(|c| c.slice(part.offset, part.rows).to_data());
    columns.map(|data| data.get_slice_memory_size().unwrap_or(0)).sum()
}

/// One result frame: the parts' rows behind one another.
fn results(to: ConnectionId, method: u16, parts: &[(RequestId, &Piece)], last: bool) -> Option<Action> {
    let rows = gather(parts.iter().map(|(_, part)| *part)).ok()?;
    let mut entries: Vec<ResultEntry> = Vec::new();
    for (id, part) in parts {
        let rows = part.rows as u32;
        match entries.last_mut() {
            Some(e) if e.rows == rows && follows(e.run, *id) => e.run.count += 1,
            _ => entries.push(ResultEntry { run: RequestRun::one(*id), rows, last }),
        }
    }
    Some(Action::Send(to, Message { frame: Frame::Results { method, entries }, rows: Some(rows) }))
}

fn follows(run: RequestRun, id: RequestId) -> bool {
    RequestId { sequence: run.first.sequence + u64::from(run.count), ..run.first } == id
}

#[cfg(test)]
mod tests;
