//! What instances say, and how each request ends.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use pelton_core::call::{Outcome, Receiver};
use pelton_core::meter;
use pelton_core::service::Cardinality;
use pelton_core::{Error, Fate, Kind, RequestId, RequestRun, Result, Retry, Time};
use pelton_link::Message;
use pelton_policy::backoff;
use pelton_wire::body;
use pelton_wire::{Entry, Frame};
use rand::RngExt;

use super::{Action, LARGE_RESULTS, State};
use crate::peer::{ConnectionId, Peer, PeerKey};
use crate::requests::Place;

/// So many times a request is tried elsewhere without a wait.
const AT_ONCE: u32 = 2;
/// Longest wait that an instance may ask for: a day, the longest of the usual quotas.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

impl State {
    pub(super) fn received(
        &mut self,
        key: PeerKey,
        connection: ConnectionId,
        message: Message,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let Some(peer) = self.peers.get_mut(&key).filter(|p| p.connection == Some(connection)) else {
            return;
        };
        match message.frame {
            Frame::Permit { rows, held } => {
                peer.window.permit(rows);
                peer.held = held;
            }
            Frame::Load { held } => peer.held = held,
            Frame::Draining => peer.draining = true,
            Frame::Holds { runs, last } => self.holds(key, &runs, last, now, actions),
            Frame::Results { method, entries } => {
                if let Some(rows) = message.rows {
                    self.results(key, method, &entries, &rows, now, actions);
                }
            }
            Frame::Failure { runs, error } => self.failure(key, &runs, &error, now, actions),
            Frame::HandBack { runs } => {
                let ids: Vec<RequestId> = runs.iter().flat_map(|r| r.ids()).collect();
                for id in ids.into_iter().rev() {
                    if !self.is_stale(key, id) && self.retrieve(key, id) {
                        self.hand_back(id, now, actions);
                    }
                }
            }
            Frame::Pong(n) if peer.given_up.returned(n) => {}
            Frame::Pong(n) => peer.acknowledged.confirmed(n),
            Frame::Ping(n) => actions.push(Action::Send(key, Frame::Pong(n).into())),
            _ => {}
        }
    }

    /// Nothing of it ran there, or nothing is known of it any more.
    pub(super) fn hand_back(&mut self, id: RequestId, now: Time, actions: &mut Vec<Action>) {
        if self.requests.get(id).is_some_and(|r| r.parts > 0) {
            self.try_again(id, None, "hand-back", now, actions);
        } else {
            self.requests.requeue(id, now);
        }
    }

    /// Whether what an instance says of a request is of an attempt that was given up, though there may be another one there.
    fn is_stale(&self, key: PeerKey, id: RequestId) -> bool {
        self.peers.get(&key).is_some_and(|p| p.given_up.is_stale(id))
    }

    /// Whether this request is at this instance; after this it is not.
    pub(super) fn retrieve(&mut self, key: PeerKey, id: RequestId) -> bool {
        let here = self.requests.get(id).is_some_and(|r| r.place == Place::Sent(key));
        if here && let Some(peer) = self.peers.get_mut(&key) {
            peer.forget(id);
        }
        here
    }

    pub(super) fn results(
        &mut self,
        key: PeerKey,
        method: u16,
        entries: &[Entry],
        rows: &RecordBatch,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        // How long a stream goes on after its first part is its caller's doing too.
        let goes_on = |id| self.requests.get(id).is_some_and(|r| r.parts > 0);
        let fresh = entries.iter().filter(|e| !goes_on(e.run.first));
        let took = self.took(key, fresh.map(|e| e.run), now);
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.has_large_results |= body::bytes(rows) >= LARGE_RESULTS;
            if let Some(took) = took {
                peer.health.succeeded(took, now);
                peer.answer.observe(took);
            }
        }
        let mut offset = 0;
        let mut wrong = Vec::new();
        let cardinality = self.methods.get(usize::from(method)).map(|m| m.cardinality);
        for entry in entries {
            let each = entry.rows as usize;
            if cardinality == Some(Cardinality::One) && entry.last && entry.rows == 1 && entry.run.count > 1 {
                let part = rows.slice(offset, entry.run.count as usize);
                offset += part.num_rows();
                wrong.extend(self.rows_of_a_run(key, method, entry.run, &part, now, actions));
                continue;
            }
            let fits = cardinality == Some(Cardinality::Many) || (entry.last && entry.rows == 1);
            for id in entry.run.ids() {
                let part = rows.slice(offset, each);
                offset += each;
                let stale = self.is_stale(key, id);
                match self.requests.get_mut(id).filter(|r| r.place == Place::Sent(key)) {
                    // The next attempt is there, and what it gives comes later.
                    Some(_) if stale => {}
                    Some(request) if request.method != method || !fits => wrong.push(id),
                    Some(request) if !entry.last => {
                        request.parts += 1;
                        self.credits.delivered(id, key, &part, request.paced, now);
                        let outcome = Outcome { id, rows: Ok(part), last: false };
                        actions.push(Action::Deliver(request.receiver.clone(), vec![outcome]));
                    }
                    Some(_) => self.end(id, Ok(part), now, actions),
                    // Of an attempt that was given up since: nobody waits for it, and it can be forgotten there.
                    None => {
                        if !entry.last && !stale {
                            self.credits.delivered(id, key, &part, false, now);
                        }
                        if entry.last
                            && self.ended.get(&id) != Some(&key)
                            && let Some(peer) = self.peers.get_mut(&key)
                        {
                            peer.to_acknowledge.push(id);
                        }
                    }
                }
            }
        }
        if let Some(first) = wrong.first() {
            let message = format!(
                "an instance answered {} requests, from {first} on, with what their method does not give",
                wrong.len()
            );
            self.failure(key, &RequestRun::pack(wrong), &Error::protocol(message), now, actions);
        }
    }

    pub(super) fn failure(
        &mut self,
        key: PeerKey,
        runs: &[RequestRun],
        error: &Error,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let ids: Vec<RequestId> = runs.iter().flat_map(|r| r.ids()).collect();
        // Refused unseen, for want of a permit: not an attempt.
        let unseen = error.kind() == Kind::Overload && error.fate() == Fate::Refused;
        if !unseen {
            self.judge(key, runs, error, now);
        }
        let mut refused = 0;
        for id in ids.into_iter().rev() {
            let stale = self.is_stale(key, id);
            if stale || !self.retrieve(key, id) {
                refused += u64::from(stale && unseen);
                continue;
            }
            if unseen {
                self.requests.requeue(id, now);
                refused += 1;
                continue;
            }
            match self.requests.get(id).is_some_and(|r| error.kind() == Kind::Deadline && r.is_hurried()) {
                true => self.attempt_failed(id, key, &overdue(self.attempt_timeout(id)), now, actions),
                false => self.attempt_failed(id, key, error, now, actions),
            }
        }
        if refused > 0
            && let Some(peer) = self.peers.get_mut(&key)
        {
            peer.refused(refused);
        }
    }

    /// What a failure says of the endpoint that gave it: nothing if the caller is to blame, or the row.
    fn judge(&mut self, key: PeerKey, runs: &[RequestRun], error: &Error, now: Time) {
        let random = self.rng.random();
        let took = self.took(key, runs.iter().copied(), now).unwrap_or_default();
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let to_blame = error.kind().counts_against_endpoint() || error.retry() == Retry::Elsewhere;
        if !to_blame {
            peer.health.answered();
        } else if peer.health.failed(took, now, random) {
            tracing::warn!("{} gets nothing for a while: {error}", peer.endpoint.instance);
            meter::count(&mut self.meter.ejections, error.kind().name(), 1);
        }
    }

    /// How long ago the first of these that is there was sent to it.
    fn took(&self, key: PeerKey, mut runs: impl Iterator<Item = RequestRun>, now: Time) -> Option<Duration> {
        let sent = |run: RequestRun| {
            let request = self.requests.get(run.first).filter(|r| r.place == Place::Sent(key))?;
            Some(now.since(request.since))
        };
        runs.find_map(sent)
    }

    /// One attempt has failed: another one, if there may be one.
    fn attempt_failed(
        &mut self,
        id: RequestId,
        key: PeerKey,
        error: &Error,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let attempts = self.requests.count_attempt(id);
        if error.retry() == Retry::Never {
            self.end(id, Err(error.clone()), now, actions);
        } else if attempts >= self.retry.attempts {
            let error =
                error.clone().context(format_args!("attempt {attempts} of {attempts} (retry.attempts)"));
            self.end(id, Err(error.with_retry(Retry::Never)), now, actions);
        } else {
            let wait =
                backoff::delay(attempts, self.retry.backoff, self.retry.max_backoff, self.rng.random());
            let other = |(k, p): (&PeerKey, &Peer)| *k != key && p.takes_requests() && p.health.is_well();
            let wait = match error.retry() {
                Retry::After(asked) => wait.max(asked.min(LONGEST_WAIT)),
                // Another instance may do it at once; if that fails too, it is not the instance.
                Retry::Elsewhere if attempts <= AT_ONCE && self.peers.iter().any(other) => Duration::ZERO,
                _ => wait,
            };
            if let Some(request) = self.requests.get_mut(id) {
                request.unpaid = true;
                request.avoid = (error.retry() == Retry::Elsewhere).then_some(key);
            }
            self.try_again(id, Some(now + wait), error.kind().name(), now, actions);
        }
    }

    /// An attempt has had its time. The instance is told to stop; it may be slow, or stand still.
    pub(super) fn attempt_overdue(&mut self, id: RequestId, now: Time, actions: &mut Vec<Action>) {
        let Some(Place::Sent(key)) = self.requests.get(id).map(|r| r.place) else { return };
        let error = overdue(self.attempt_timeout(id));
        self.judge(key, &[RequestRun::one(id)], &error, now);
        self.tell_to_cancel(id, actions);
        self.retrieve(key, id);
        self.attempt_failed(id, key, &error, now, actions);
    }

    fn attempt_timeout(&self, id: RequestId) -> Duration {
        self.requests.get(id).and_then(|r| r.attempt_timeout).unwrap_or_default()
    }

    /// One row for each request of a run. What of it goes to one receiver is delivered together. Gives back those that are answered with what their
    /// method does not give.
    fn rows_of_a_run(
        &mut self,
        key: PeerKey,
        method: u16,
        run: RequestRun,
        rows: &RecordBatch,
        now: Time,
        actions: &mut Vec<Action>,
    ) -> Vec<RequestId> {
        let mut wrong = Vec::new();
        // Those that were taken and not delivered yet: from which row on, and whose.
        let mut open: Option<(usize, RequestId, Arc<dyn Receiver>)> = None;
        let mut deliver = |open: Option<(usize, RequestId, Arc<dyn Receiver>)>, end: usize| {
            if let Some((from, first, receiver)) = open {
                actions.push(Action::DeliverRows(receiver, first, rows.slice(from, end - from)));
            }
        };
        for (row, id) in run.ids().enumerate() {
            let stale = self.is_stale(key, id);
            let found = self.requests.get(id).filter(|r| r.place == Place::Sent(key)).map(|r| r.method);
            let receiver = match found {
                // The next attempt is there, and what it gives comes later.
                Some(_) if stale => None,
                Some(of) if of != method => {
                    wrong.push(id);
                    None
                }
                Some(_) => self.close(id, None, now),
                // Of an attempt that was given up since: nobody waits for it, and it can be forgotten there.
                None => {
                    if self.ended.get(&id) != Some(&key)
                        && let Some(peer) = self.peers.get_mut(&key)
                    {
                        peer.to_acknowledge.push(id);
                    }
                    None
                }
            };
            match (&open, receiver) {
                (Some((_, _, same)), Some(receiver)) if Arc::ptr_eq(same, &receiver) => {}
                (_, receiver) => {
                    let next = receiver.map(|receiver| (row, id, receiver));
                    deliver(std::mem::replace(&mut open, next), row);
                }
            }
        }
        deliver(open, rows.num_rows());
        wrong
    }

    /// A request's one and only end.
    pub(super) fn end(
        &mut self,
        id: RequestId,
        rows: Result<RecordBatch>,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        if let Some(receiver) = self.close(id, rows.as_ref().err(), now) {
            actions.push(Action::Deliver(receiver, vec![Outcome { id, rows, last: true }]));
        }
    }

    /// A request has ended, with an error or well: who is to be told.
    fn close(&mut self, id: RequestId, error: Option<&Error>, now: Time) -> Option<Arc<dyn Receiver>> {
        let request = self.requests.remove(id, now)?;
        match error {
            None => {
                self.budget.succeeded(now);
                self.meter.answer.record(now.since(request.since).as_micros() as u64);
                meter::count(&mut self.meter.ended, "ok", 1);
            }
            Some(e) => meter::count(&mut self.meter.ended, e.kind().name(), 1),
        }
        if let Place::Sent(key) = request.place
            && let Some(peer) = self.peers.get_mut(&key)
        {
            peer.forget(id);
            if error.is_none() {
                if request.explicit {
                    self.ended.insert(id, key);
                } else {
                    peer.to_acknowledge.push(id);
                }
            }
        }
        Some(request.receiver)
    }
}

/// An attempt has had its time.
fn overdue(timeout: Duration) -> Error {
    let message = format!("no answer within {timeout:?} (attempt_timeout)");
    Error::new(Kind::NoProgress, Fate::Unknown, Retry::Elsewhere, message)
}
