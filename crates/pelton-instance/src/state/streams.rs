//! Streamed answers: what is sent when, and when their methods wait.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use pelton_core::service::Cardinality;
use pelton_core::{RequestId, RequestRun, Time, meter};
use pelton_wire::Frame;
use pelton_wire::body::Piece;

use super::running::results;
use super::{Action, BatchId, ConnectionId, Running, State, refuse};
use crate::ledger::{Place, Stage};
use crate::queue::Item;
use crate::stream::{self, Stream};

/// A window holds a few pieces of a stream, or its method would go by fits and starts.
const PIECES: u64 = 4;
/// So many rows may wait for callers that take nothing before they count as any: they take room too.
const MOST_STALLED: u64 = 1 << 16;

impl Running {
    /// Its caller takes nothing: it goes no further.
    fn suspend(&mut self, now: Time) {
        if self.cancelled_since.is_none() && self.suspended.0.is_none() {
            self.suspended.0 = Some(now);
            self.gate.shut();
        }
    }

    pub(super) fn resume(&mut self, now: Time) {
        if let Some(since) = self.suspended.0.take() {
            self.suspended.1 += now.since(since);
            // It could give nothing meanwhile.
            self.progress = now;
            self.gate.open();
        }
    }

    /// How long it waited for its caller.
    pub(super) fn suspended_for(&self, now: Time) -> Duration {
        self.suspended.1 + self.suspended.0.map_or(Duration::ZERO, |since| now.since(since))
    }
}

impl State {
    pub(super) fn is_streaming(&self, method: u16) -> bool {
        (self.methods.get(usize::from(method))).is_some_and(|spec| spec.cardinality == Cardinality::Many)
    }

    /// Whether the begin of a stream has been forgotten, so that it is of no use to who has nothing of it.
    pub(super) fn is_cut(&self, id: RequestId) -> bool {
        self.ledger.get(id).and_then(|e| e.stream.as_deref()).is_some_and(|s| !s.is_whole())
    }

    /// Forgets a request, and stops its run.
    pub(super) fn discard(&mut self, id: RequestId, now: Time) {
        if let Some(entry) = self.ledger.remove(id)
            && let Stage::Running { batch } = entry.stage
            && let Some(running) = self.running.get_mut(&batch)
        {
            running.cancel(now);
        }
        meter::count(&mut self.meter.refused, "stream-forgotten", 1);
    }

    /// A client was started again, and has nothing of the streams whose begin has been forgotten.
    pub(super) fn forget_streams_of(&mut self, client: &str, now: Time) {
        for id in self.ledger.cut_streams_of(client) {
            self.discard(id, now);
        }
    }

    pub(super) fn emitted(
        &mut self,
        batch: BatchId,
        rows: RecordBatch,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let (most, max) = (self.declaration.stream.window.get() / PIECES, self.declaration.max_message.get());
        let Some(running) = self.running.get_mut(&batch) else { return };
        running.progress = now;
        let id = running.items[0].id;
        let Some(entry) = self.ledger.running(id, batch) else { return };
        let part = Piece { offset: 0, rows: rows.num_rows(), batch: Arc::new(rows) };
        match stream::split(part, most.max(1), max) {
            Ok(pieces) => {
                let stream = entry.stream.get_or_insert_default();
                pieces.into_iter().for_each(|piece| stream.push(piece));
                self.pump(id, now, actions);
            }
            Err(size) => {
                running.cancel(now);
                let error = self.too_large(size);
                self.fail(vec![id], &error, actions);
            }
        }
    }

    /// A streaming method has returned: its requests end when all of their parts are sent.
    pub(super) fn streamed(
        &mut self,
        ids: &[RequestId],
        batch: BatchId,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        for &id in ids {
            let Some(entry) = self.ledger.running(id, batch) else { continue };
            if entry.unwanted {
                self.ledger.remove(id);
                continue;
            }
            entry.stage = Stage::Ended;
            self.pump(id, now, actions);
        }
        self.ledger.evict(now);
    }

    /// Sends of a stream what its caller has room for; lets its method go on, or wait.
    pub(super) fn pump(&mut self, id: RequestId, now: Time, actions: &mut Vec<Action>) {
        let Some(entry) = self.ledger.get_mut(id) else { return };
        let Some(stream) = entry.stream.as_deref_mut() else { return };
        let (method, ended) = (entry.method, matches!(entry.stage, Stage::Ended));
        let running = if let Stage::Running { batch } = entry.stage { Some(batch) } else { None };
        // What the other streams that run leave of it, and not less than its share.
        let others = self.running.iter().filter(|(batch, _)| Some(**batch) != running);
        let all = self.declaration.stream.kept.get();
        let kept =
            all.saturating_sub(others.map(|(_, r)| r.kept).sum()).max(all / self.running.len().max(1) as u64);
        let attached = entry.attached.and_then(|to| Some((to, self.connections.get_mut(&to)?)));
        let goes_on = match attached {
            Some((to, connection)) => {
                if stream.owner != connection.client {
                    stream.owner.clone_from(&connection.client);
                }
                let untaken = &mut connection.untaken;
                for piece in stream.send(id, untaken) {
                    actions.extend(results(to, method, &[(id, &piece)], false));
                }
                stream.forget(untaken.parts(id), kept);
                let goes_on = !stream.has_unsent() && untaken.room(id);
                untaken.wait(id, if ended { stream.has_unsent() } else { !goes_on });
                if ended && !stream.has_unsent() {
                    let none = RecordBatch::new_empty(self.methods[usize::from(method)].output.clone());
                    let end = Piece { batch: Arc::new(none), offset: 0, rows: 0 };
                    actions.extend(results(to, method, &[(id, &end)], true));
                }
                goes_on
            }
            // For whoever comes back to it, as much as is kept.
            None => stream.is_whole() && stream.bytes() < kept,
        };
        if ended && (entry.attached.is_none() || !stream.has_unsent()) {
            let bytes = stream.bytes() + 1;
            self.ledger.finish(id, bytes, now);
        } else if let Some(running) = running.and_then(|batch| self.running.get_mut(&batch)) {
            running.kept = stream.bytes();
            if goes_on {
                running.resume(now);
            } else {
                if entry.attached.is_none() {
                    self.abandoned_since.get_or_insert(now);
                }
                running.suspend(now);
            }
        }
    }

    /// A caller has taken some parts, or given streams up: there is room for others.
    pub(super) fn credit(
        &mut self,
        from: ConnectionId,
        taken: &[(RequestId, u32)],
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let Some(connection) = self.connections.get_mut(&from) else { return };
        for (id, parts) in taken {
            connection.untaken.taken(*id, *parts);
        }
        let mut streams = connection.untaken.waiting();
        // Those that do not wait may forget what was taken.
        streams.extend(taken.iter().map(|(id, _)| *id));
        streams.sort_unstable();
        streams.dedup();
        for id in streams {
            if self
                .ledger
                .get(id)
                .is_some_and(|e| e.attached == Some(from) && !matches!(e.stage, Stage::Finished { .. }))
            {
                self.pump(id, now, actions);
            }
        }
        self.ledger.evict(now);
        self.unpark();
    }

    /// Attaches a caller to streams of which it has some parts.
    pub(super) fn resume(
        &mut self,
        to: ConnectionId,
        streams: &[(RequestId, u32)],
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let (mut unknown, mut anothers) = (Vec::new(), Vec::new());
        for &(id, parts) in streams {
            if self.ledger.get(id).is_some_and(|e| e.is_of_another(Some(to))) {
                anothers.push(id);
            } else if !self.attach_stream(to, id, u64::from(parts), now, actions) {
                unknown.push(id);
            }
        }
        refuse(to, anothers, actions);
        if !unknown.is_empty() {
            let runs = RequestRun::pack(unknown);
            actions.push(Action::Send(to, Frame::HandBack { runs }.into()));
        }
    }

    /// Attaches a caller to a stream, from this part on. False: it is not here, or not any more.
    pub(super) fn attach_stream(
        &mut self,
        to: ConnectionId,
        id: RequestId,
        after: u64,
        now: Time,
        actions: &mut Vec<Action>,
    ) -> bool {
        if self.is_stopped(id) {
            return false;
        }
        let Some(entry) = self.ledger.get_mut(id) else { return false };
        if !entry.stream.as_deref_mut().is_some_and(|stream: &mut Stream| stream.rewind(after)) {
            self.discard(id, now);
            return false;
        }
        entry.attached = Some(to);
        match entry.stage {
            Stage::Running { batch } => {
                if std::mem::take(&mut entry.unwanted)
                    && let Some(running) = self.running.get_mut(&batch)
                {
                    running.unwanted -= 1;
                }
            }
            // It goes on as soon as it is read.
            Stage::Finished { place: Place::Disk { .. }, .. } => {
                self.ledger.want(id);
                return true;
            }
            Stage::Finished { .. } => self.ledger.reopen(id),
            Stage::Queued { .. } | Stage::Ended => {}
        }
        self.pump(id, now, actions);
        self.ledger.evict(now);
        true
    }

    /// The parts of a stream that somebody waits for are back from disk.
    pub(super) fn reloaded(
        &mut self,
        id: RequestId,
        parts: Vec<Piece>,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        if let Some(stream) = self.ledger.get_mut(id).and_then(|e| e.stream.as_deref_mut()) {
            stream.came_back(parts);
            self.ledger.reopen(id);
            self.pump(id, now, actions);
        }
    }

    /// Whether a stream must not begin yet: its caller has not taken what others gave.
    pub(super) fn must_wait(&self, item: &Item) -> bool {
        let attached = self.ledger.get(item.id).and_then(|e| e.attached);
        attached.and_then(|id| self.connections.get(&id)).is_some_and(|c| c.untaken.is_full())
    }

    /// Streams that run for nobody, and have given as much as is kept.
    pub(super) fn stranded(&self) -> Vec<RequestId> {
        let suspended = self.running.values().filter(|r| r.suspended.0.is_some());
        let ids = suspended.flat_map(|r| r.items.iter().map(|item| item.id));
        ids.filter(|id| self.ledger.get(*id).is_some_and(|e| e.attached.is_none())).collect()
    }

    /// Rows that use nothing of the service, and wait for callers to take what was given: streams that run and are held back, those that
    /// wait behind as many of these as may run, and those that may not begin. Not of methods that have the service to themselves, and not more
    /// than [`MOST_STALLED`].
    pub(super) fn stalled(&self) -> u64 {
        let mut stalled = self.parked.len() as u64;
        for (method, spec) in self.methods.iter().enumerate() {
            let Some(bound) = spec.concurrency.filter(|_| spec.cardinality == Cardinality::Many) else {
                continue;
            };
            let method = method as u16;
            let running = || self.running.values().filter(|r| r.method == method);
            let suspended = running().filter(|r| r.suspended.0.is_some()).count();
            stalled += suspended as u64;
            if suspended >= bound {
                stalled += self.queue.rows_of(method);
            }
        }
        stalled.min(MOST_STALLED)
    }

    pub(super) fn parked_bytes(&self) -> u64 {
        self.parked.iter().map(|(_, item)| item.bytes).sum()
    }

    /// Puts streams that may begin now back to where they waited.
    pub(super) fn unpark(&mut self) {
        for (method, item) in std::mem::take(&mut self.parked).into_iter().rev() {
            if self.must_wait(&item) {
                self.parked.push_front((method, item));
            } else {
                self.queue.push_back_first(method, item);
            }
        }
    }

    pub(super) fn parked_weight(&self) -> f64 {
        self.parked.iter().map(|(_, item)| item.weight).sum()
    }
}
