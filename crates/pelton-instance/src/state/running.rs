//! Which batch runs when, and what becomes of its results.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow_array::RecordBatch;
use pelton_core::meter;
use pelton_core::service::{Cardinality, Gate, Invocation, MethodSpec, check_columns};
use pelton_core::{Error, Fate, Kind, RequestId, RequestRun, Result, Retry, Time};
use pelton_link::Message;
use pelton_policy::batch;
use pelton_wire::Frame;
use pelton_wire::body::{self, Piece, gather};

use super::{Action, Batch, BatchId, ConnectionId, Phase, ResultEntry, Running, State};
use crate::ledger::Stage;
use crate::queue::{Item, Most};

/// Most bytes of several results in one frame; a larger one is alone in its frame. What is put together is copied.
const FRAME_BYTES: u64 = 16 << 20;

impl State {
    /// Whether a batch of this method may start beside what runs.
    pub(super) fn may_start(&self, method: u16) -> bool {
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

    pub(super) fn run_batches(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.lingers_until = None;
        loop {
            let eligible: Vec<bool> = (0..self.methods.len()).map(|m| self.may_start(m as u16)).collect();
            if !eligible.contains(&true) {
                return;
            }
            if let Some(half) = self.next_half(&eligible) {
                let (method, items) = half;
                let batch = self.start(method, items, now, actions);
                actions.extend(batch.map(Action::Run));
                continue;
            }
            if self.queue.rows() == 0 {
                return;
            }
            let Some(batch) = self.next_batch(&eligible, now, actions) else { return };
            actions.extend(batch.map(Action::Run));
        }
    }

    /// The next half of a batch that failed.
    fn next_half(&mut self, eligible: &[bool]) -> Option<(u16, Vec<Item>)> {
        let next = self.split.iter().position(|(method, _)| eligible[usize::from(*method)])?;
        self.split.remove(next)
    }

    pub(super) fn split_rows(&self) -> u64 {
        self.split.iter().map(|(_, items)| items.len() as u64).sum()
    }

    pub(super) fn split_weight(&self) -> f64 {
        self.split.iter().flat_map(|(_, items)| items).map(|item| item.weight).sum()
    }

    /// The next batch to run; `Some(None)` if all that was taken was past its deadline, `None` if it is not time.
    pub(super) fn next_batch(
        &mut self,
        eligible: &[bool],
        now: Time,
        actions: &mut Vec<Action>,
    ) -> Option<Option<Batch>> {
        let ledger = &self.ledger;
        let gone = |item: &Item| !ledger.is_queued(item.id, item.ticket);
        let head = self.queue.head(|m| eligible[usize::from(m)], gone, now)?;
        let method = head.lane.1;
        if !self.flow.may_start(method, head.first, self.load()) {
            // It waits for memory: for something that ends, or the next word about it.
            return None;
        }
        let most = self.most(method, now);
        let linger = if head.alone { Duration::ZERO } else { self.declaration.batch.linger };
        let limits = batch::Limits { rows: most.rows, bytes: most.bytes, weight: most.weight, linger };
        let more_to_come = self.phase == Phase::Ready
            && self.connections.values().any(|c| c.outstanding() > 0 || c.demand().total() > 0);
        let waiting = batch::Waiting {
            rows: head.rows,
            bytes: head.bytes,
            weight: head.weight,
            since: head.since,
            more_to_come,
        };
        match batch::close(limits, waiting, now) {
            batch::Decision::WaitUntil(at) => {
                self.lingers_until = Some(at);
                return None;
            }
            batch::Decision::Close(why) => meter::count(&mut self.meter.closed, why.name(), 1),
        }
        let mut items = self.queue.take(head.lane, most);
        if self.is_streaming(method) {
            let (parked, rest) = items.into_iter().partition(|item| self.must_wait(item));
            let parked: Vec<Item> = parked;
            self.parked.extend(parked.into_iter().map(|item| (method, item)));
            items = rest;
        }
        Some(self.start(method, items, now, actions))
    }

    /// What the next batch of a method may hold: as declared, and as its run times and memory have taught.
    fn most(&self, method: u16, now: Time) -> Most {
        let limits = &self.declaration.batch;
        let plan = self.flow.plan(method, &self.declaration, self.target(), self.load(), now);
        let rows = (plan.batch_rows.round() as u64).clamp(1, u64::from(limits.rows));
        // Where time is the limit and not the number of rows, heavy rows count for more than light ones.
        let in_time = if rows < u64::from(limits.rows) && self.target().is_some() {
            plan.batch_rows * self.flow.row_weight() * 1.05
        } else {
            f64::INFINITY
        };
        let weight = limits.weight.unwrap_or(f64::INFINITY).min(in_time);
        Most { rows, bytes: limits.bytes.get(), weight }
    }

    pub(super) fn start(
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
        meter::count(&mut self.meter.refused, "deadline", late.len() as u64);
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
        for item in &live {
            if let Some(entry) = self.ledger.get_mut(item.id) {
                entry.stage = Stage::Running { batch: id };
            }
            // The wait before the instance was free is the queue's, the one after it the batch's.
            let free = self.free_since.max(item.arrived);
            self.meter.queue.record(free.since(item.arrived).as_micros() as u64);
            self.meter.batch_wait.record(now.since(free).as_micros() as u64);
        }
        self.meter.batch_rows.record(live.len() as u64);
        let cancelled = Arc::new(AtomicBool::new(false));
        let deadline = live.iter().filter_map(|item| item.deadline).min();
        let invocation = Invocation::new(deadline, cancelled.clone());
        let latest = live.iter().map(|item| item.deadline).collect::<Option<Vec<Time>>>();
        let latest = latest.and_then(|all| all.into_iter().max());
        let weight = live.iter().map(|item| item.weight).sum();
        self.running_rows += live.len() as u64;
        self.running_weight += weight;
        self.batches += 1;
        self.flow.started(method);
        let running = Running {
            method,
            items: live,
            weight,
            since: now,
            progress: now,
            invocation: invocation.clone(),
            cancelled,
            cancelled_since: None,
            preempted: false,
            latest,
            unwanted: 0,
            gate: Gate::default(),
            suspended: (None, Duration::ZERO),
            kept: 0,
        };
        let gate = running.gate.clone();
        self.running.insert(id, running);
        Some(Batch { id, method, rows, invocation, gate })
    }

    pub(super) fn ended(
        &mut self,
        batch: BatchId,
        result: Result<RecordBatch>,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let Some(running) = self.running.remove(&batch) else { return };
        let suspended = running.suspended_for(now);
        let Running { method, items, weight, since, preempted, invocation, .. } = running;
        let beside = self.running_rows - items.len() as u64;
        self.running_rows -= items.len() as u64;
        self.running_weight = if self.running.is_empty() { 0.0 } else { self.running_weight - weight };
        // The time of its own, not that of its caller.
        let took = now.since(since).saturating_sub(suspended);
        self.meter.run.record(took.as_micros() as u64);
        if self.running.is_empty() || self.may_start(method) {
            self.free_since = now;
        }
        if result.is_ok() {
            self.flow.ran(method, weight, took);
        }
        if let Err(error) = &result
            && self.runs_again_in_halves(error, &items)
        {
            return self.split(method, items, batch, error, now);
        }
        if preempted && result.is_err() {
            return self.run_later(method, items, batch);
        }
        self.executed += items.len() as u64;
        if let Ok(rows) = &result
            && self.flow.is_continuous(method)
        {
            let grown = self.scales.output(rows);
            for (row, item) in items.iter().enumerate() {
                let had = item.deadline.map(|deadline| deadline.since(item.arrived));
                self.flow.grew(method, grown.at(row), took, had, beside);
            }
        }
        let ids: Vec<RequestId> = items.iter().map(|item| item.id).collect();
        let spec = &self.methods[usize::from(method)];
        let many = spec.cardinality == Cardinality::Many;
        let rows = match result.and_then(|rows| if many { Ok(rows) } else { check_result(spec, &ids, rows) })
        {
            Ok(_) if many => return self.streamed(&ids, batch, now, actions),
            Ok(rows) => Arc::new(rows),
            Err(error) => {
                meter::count(&mut self.meter.failed, error.kind().name(), ids.len() as u64);
                // Without those that were asked for anew since this batch was told to stop.
                let ids = ids.into_iter().filter(|id| self.ledger.running(*id, batch).is_some()).collect();
                return self.fail(ids, &error, actions);
            }
        };
        // Whatever is wanted is stored, and sent to whoever waits: one frame for all that goes to the same caller.
        let mut outgoing: BTreeMap<ConnectionId, Vec<(RequestId, Piece)>> = BTreeMap::new();
        let failed = invocation.take_failed();
        let each = (body::bytes(&rows) / ids.len().max(1) as u64).max(1);
        for (row, id) in ids.into_iter().enumerate() {
            let Some(entry) = self.ledger.running(id, batch) else { continue };
            if entry.unwanted {
                self.ledger.remove(id);
                continue;
            }
            if let Some(error) = failed.get(&row) {
                meter::count(&mut self.meter.failed, error.kind().name(), 1);
                self.fail(vec![id], error, actions);
                continue;
            }
            let part = Piece { batch: rows.clone(), offset: row, rows: 1 };
            if let Some(connection) = entry.attached {
                outgoing.entry(connection).or_default().push((id, part.clone()));
            }
            entry.parts.push(part);
            self.ledger.finish(id, each, now);
        }
        for (connection, parts) in outgoing {
            self.send_parts(connection, method, &parts, true, actions);
        }
        self.ledger.evict(now);
    }

    /// Whether a batch that failed is run again in halves: to find the rows that make it fail, or because it was too large. What may
    /// pass another time as it is, is not.
    fn runs_again_in_halves(&self, error: &Error, items: &[Item]) -> bool {
        let about_rows = matches!(error.kind(), Kind::User | Kind::Invalid | Kind::OutOfMemory);
        items.len() > 1 && about_rows && error.retry() == Retry::Never
    }

    /// The memory of what grows is nearly full: the request that began last is stopped, and runs again when there is room. Otherwise
    /// all would die with the process.
    pub(super) fn preempt(&mut self, now: Time) {
        let stopping = self.running.values().any(|r| r.preempted);
        if stopping || self.running.len() < 2 || !self.flow.overflows() {
            return;
        }
        let youngest = self.running.values_mut().filter(|r| !r.cancelled.load(Ordering::Relaxed));
        if let Some(running) = youngest.max_by_key(|r| r.since) {
            running.preempted = true;
            running.cancel(now);
            meter::count(&mut self.meter.refused, "preempted", running.items.len() as u64);
        }
    }

    /// Puts requests that were stopped before their end back to where they waited.
    fn run_later(&mut self, method: u16, items: Vec<Item>, batch: BatchId) {
        for item in items.into_iter().rev() {
            match self.ledger.running(item.id, batch) {
                Some(entry) if entry.unwanted => {
                    self.ledger.remove(item.id);
                }
                Some(entry) => {
                    entry.stage = Stage::Queued { ticket: item.ticket };
                    self.queue.push_back_first(method, item);
                }
                None => {}
            }
        }
    }

    /// Puts the halves of a batch before everything else.
    fn split(&mut self, method: u16, mut items: Vec<Item>, batch: BatchId, error: &Error, now: Time) {
        if error.kind() == Kind::OutOfMemory {
            self.flow.ran_out(items.len() as u64, now);
            tracing::warn!("a batch of {} rows ran out of memory and is split: {error}", items.len());
        }
        self.meter.split += 1;
        items.retain(|item| match self.ledger.running(item.id, batch) {
            Some(entry) if entry.unwanted => {
                self.ledger.remove(item.id);
                false
            }
            Some(entry) => {
                entry.stage = Stage::Queued { ticket: item.ticket };
                true
            }
            None => false,
        });
        let second = items.split_off(items.len() / 2);
        for half in [second, items] {
            if !half.is_empty() {
                self.split.push_front((method, half));
            }
        }
    }

    /// Sends the parts of some requests; as many frames as the limit on a message asks for.
    pub(super) fn send_parts(
        &mut self,
        to: ConnectionId,
        method: u16,
        parts: &[(RequestId, Piece)],
        last: bool,
        actions: &mut Vec<Action>,
    ) {
        let max = self.declaration.max_message.get();
        if surely_within(parts, max) {
            let all: Vec<(RequestId, &Piece)> = parts.iter().map(|(id, part)| (*id, part)).collect();
            actions.extend(results(to, method, &all, last));
            return;
        }
        let mut frame: Vec<(RequestId, &Piece)> = Vec::new();
        let mut bytes = 0;
        for (id, part) in parts {
            let size = part_bytes(part);
            if size > max {
                let error = self.too_large(size);
                self.fail(vec![*id], &error, actions);
                continue;
            }
            if bytes + size > max.min(FRAME_BYTES) {
                actions.extend(results(to, method, &frame, last));
                (frame, bytes) = (Vec::new(), 0);
            }
            frame.push((*id, part));
            bytes += size;
        }
        actions.extend(results(to, method, &frame, last));
    }

    pub(super) fn too_large(&self, size: u64) -> Error {
        let message = format!(
            "a result of {size} bytes is over the limit of the service ({}); raise `max_message` in its declaration",
            self.declaration.max_message
        );
        Error::new(Kind::Limit, Fate::Executed, Retry::Never, message)
    }

    /// Ends requests with an error. It is not stored: a caller that tries again shall get another attempt.
    pub(super) fn fail(&mut self, ids: Vec<RequestId>, error: &Error, actions: &mut Vec<Action>) {
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
}

fn check_result(spec: &MethodSpec, ids: &[RequestId], rows: RecordBatch) -> Result<RecordBatch> {
    let name = &spec.name;
    if rows.num_rows() != ids.len() {
        return Err(Error::user(format!(
            "method `{name}` gave {} rows for {} requests; it must give one for each, in the same order (a streaming method may give any number)",
            rows.num_rows(),
            ids.len()
        )));
    }
    check_columns(format_args!("result of method `{name}`"), &rows, &spec.output)
        .map_err(|e| Error::user(e.message().to_owned()))?;
    Ok(rows)
}

/// Whether all of it is within a limit, as far as that shows without a look at each row.
fn surely_within(parts: &[(RequestId, Piece)], max: u64) -> bool {
    let mut batches = parts.iter().map(|(_, part)| &part.batch).peekable();
    let mut total = 0;
    while let Some(batch) = batches.next() {
        // Neighbours mostly come from one batch.
        if batches.peek().is_none_or(|next| !Arc::ptr_eq(next, batch)) {
            total += body::bytes(batch);
        }
    }
    total <= max
}

fn part_bytes(part: &Piece) -> u64 {
    body::bytes(&part.batch.slice(part.offset, part.rows))
}

/// One result frame: the parts' rows behind one another.
pub(super) fn results(
    to: ConnectionId,
    method: u16,
    parts: &[(RequestId, &Piece)],
    last: bool,
) -> Option<Action> {
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
