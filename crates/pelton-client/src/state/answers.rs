//! What instances say, and how each request ends.

use arrow_array::RecordBatch;
use pelton_core::call::Outcome;
use pelton_core::{Error, Fate, Kind, RequestId, RequestRun, Result, Retry, Time};
use pelton_link::Message;
use pelton_policy::backoff;
use pelton_wire::{Entry, Frame};
use rand::RngExt;

use super::{Action, State};
use crate::peer::{ConnectionId, PeerKey};
use crate::requests::Place;

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
                peer.window.permitted = peer.window.permitted.max(rows);
                peer.held = held;
            }
            Frame::Load { held } => peer.held = held,
            Frame::Draining => peer.draining = true,
            Frame::Results { entries, .. } => {
                if let Some(rows) = message.rows {
                    self.results(key, &entries, &rows, actions);
                }
            }
            Frame::Failure { runs, error } => self.failure(key, &runs, &error, now, actions),
            Frame::HandBack { runs } => {
                let ids: Vec<RequestId> = runs.iter().flat_map(|r| r.ids()).collect();
                for id in ids.into_iter().rev() {
                    if self.retrieve(key, id) {
                        self.hand_back(id, actions);
                    }
                }
            }
            Frame::Pong(n) => {
                if let Some(ping) = peer.acknowledged.confirmed(n) {
                    actions.push(Action::Send(key, Frame::Ping(ping).into()));
                }
            }
            Frame::Ping(n) => actions.push(Action::Send(key, Frame::Pong(n).into())),
            _ => {}
        }
    }

    /// Nothing of it ran there, or nothing is known of it any more.
    pub(super) fn hand_back(&mut self, id: RequestId, actions: &mut Vec<Action>) {
        if self.requests.get(id).is_some_and(|r| r.parts > 0) {
            self.try_again(id, None, actions);
        } else {
            self.requests.requeue(id);
        }
    }

    /// Whether this request is at this instance; after this it is not.
    pub(super) fn retrieve(&mut self, key: PeerKey, id: RequestId) -> bool {
        let here = self.requests.get(id).is_some_and(|r| r.place == Place::Sent(key));
        if here && let Some(peer) = self.peers.get_mut(&key) {
            peer.in_flight.remove(&id);
        }
        here
    }

    pub(super) fn results(
        &mut self,
        key: PeerKey,
        entries: &[Entry],
        rows: &RecordBatch,
        actions: &mut Vec<Action>,
    ) {
        let mut offset = 0;
        for entry in entries {
            let each = entry.rows as usize;
            for id in entry.run.ids() {
                let part = rows.slice(offset, each);
                offset += each;
                match self.requests.get_mut(id).filter(|r| r.place == Place::Sent(key)) {
                    Some(request) if !entry.last && request.again > 0 => request.again -= 1,
                    Some(request) if !entry.last => {
                        request.parts += 1;
                        let outcome = Outcome { id, rows: Ok(part), last: false };
                        actions.push(Action::Deliver(request.receiver.clone(), vec![outcome]));
                    }
                    Some(_) => self.end(id, Ok(part), actions),
                    // Of an attempt that was given up since: nobody waits for it, and it can be forgotten there.
                    None => {
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
        for id in ids.into_iter().rev() {
            if !self.retrieve(key, id) {
                continue;
            }
            // Refused unseen: not an attempt.
            if error.kind() == Kind::Overload && error.fate() == Fate::Refused {
                self.requests.requeue(id);
                continue;
            }
            let attempts = self.requests.count_attempt(id);
            if error.retry() == Retry::Never {
                self.end(id, Err(error.clone()), actions);
            } else if attempts >= self.retry.attempts {
                let error =
                    error.clone().context(format_args!("attempt {attempts} of {attempts} (retry.attempts)"));
                self.end(id, Err(error.with_retry(Retry::Never)), actions);
            } else {
                let wait =
                    backoff::delay(attempts, self.retry.backoff, self.retry.max_backoff, self.rng.random());
                let wait = if let Retry::After(asked) = error.retry() { wait.max(asked) } else { wait };
                self.try_again(id, Some(now + wait), actions);
            }
        }
    }

    /// A request's one and only end.
    pub(super) fn end(&mut self, id: RequestId, rows: Result<RecordBatch>, actions: &mut Vec<Action>) {
        let Some(request) = self.requests.remove(id) else { return };
        if let Place::Sent(key) = request.place
            && let Some(peer) = self.peers.get_mut(&key)
        {
            peer.in_flight.remove(&id);
            if rows.is_ok() {
                if request.explicit {
                    self.ended.insert(id, key);
                } else {
                    peer.to_acknowledge.push(id);
                }
            }
        }
        actions.push(Action::Deliver(request.receiver, vec![Outcome { id, rows, last: true }]));
    }
}
