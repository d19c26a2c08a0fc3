//! Which batch runs when, and what becomes of its results.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arrow_array::RecordBatch;
use pelton_core::service::{Cardinality, Invocation, MethodSpec, check_columns};
use pelton_core::{Error, Fate, Kind, RequestId, RequestRun, Result, Retry, Time};
use pelton_link::Message;
use pelton_policy::batch;
use pelton_wire::Frame;
use pelton_wire::body::{self, Piece, gather};

use super::{Action, Batch, BatchId, ConnectionId, Phase, ResultEntry, Running, State};
use crate::ledger::Stage;
use crate::queue::Item;

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
            if !eligible.contains(&true) || self.queue.rows() == 0 {
                return;
            }
            let Some(batch) = self.next_batch(&eligible, now, actions) else { return };
            actions.extend(batch.map(Action::Run));
        }
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

    pub(super) fn emitted(&mut self, batch: BatchId, rows: RecordBatch, actions: &mut Vec<Action>) {
        let Some(running) = self.running.get(&batch) else { return };
        let (method, id) = (running.method, running.ids[0]);
        let part = Piece { offset: 0, rows: rows.num_rows(), batch: Arc::new(rows) };
        let Some(entry) = self.ledger.running(id, batch) else { return };
        entry.parts.push(part.clone());
        if let Some(connection) = entry.attached {
            self.send_parts(connection, method, &[(id, part)], false, actions);
        }
    }

    pub(super) fn ended(
        &mut self,
        batch: BatchId,
        result: Result<RecordBatch>,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
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
        let each = (body::bytes(&rows) / ids.len().max(1) as u64).max(1);
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
            let emitted: u64 = if many { entry.parts.iter().map(part_bytes).sum() } else { 0 };
            self.ledger.finish(id, each + emitted, now);
        }
        for (connection, parts) in outgoing {
            self.send_parts(connection, method, &parts, true, actions);
        }
        self.ledger.evict(now);
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
            "method `{name}` gave {} rows for {} requests",
            rows.num_rows(),
            ids.len()
        )));
    }
    check_columns(&format!("result of method `{name}`"), &rows, &spec.output)
        .map_err(|e| Error::user(e.message().to_owned()))?;
    Ok(rows)
}

fn part_bytes(part: &Piece) -> u64 {
    body::bytes(&part.batch.slice(part.offset, part.rows))
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
