//! What instances hold of requests that this client has not sent them: its predecessor did, or it gave them up itself. Such a request is
//! taken up where it is, whatever has become of it there, and not sent anew.

use std::collections::BTreeMap;
use std::time::Duration;

use pelton_core::{RequestId, RequestRun, Time};
use pelton_wire::Frame;

use super::{Action, State};
use crate::peer::PeerKey;
use crate::requests::Place;

impl State {
    /// Nothing is sent before every instance that was there at the start has said what it holds, or is gone.
    pub(super) fn is_waiting_to_resume(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// An instance has said all that it holds, or has nothing to say any more.
    pub(super) fn heard_of(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get(&key) {
            self.awaited.remove(&peer.endpoint.instance);
        }
    }

    /// An instance says what it holds.
    pub(super) fn holds(
        &mut self,
        key: PeerKey,
        runs: &[RequestRun],
        last: bool,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if std::mem::take(&mut peer.restates) {
            self.held.forget(key);
        }
        let (mut wanted, mut elsewhere) = (Vec::new(), Vec::new());
        for run in runs {
            self.held.claim(*run, key);
            for id in self.requests.within(*run) {
                match self.requests.get(id).map(|r| r.place) {
                    _ if peer.in_flight.contains(&id) => {}
                    Some(Place::Sent(_)) => elsewhere.push(id),
                    _ => {
                        wanted.push(id);
                        continue;
                    }
                }
                self.held.remove(id);
            }
            let last = RequestId { sequence: run.first.sequence + u64::from(run.count - 1), ..run.first };
            for (id, _) in self.ended.range(run.first..=last).filter(|(_, at)| **at == key) {
                self.held.remove(*id);
            }
        }
        self.take_up(&wanted, now, actions);
        if !elsewhere.is_empty() {
            let runs = RequestRun::pack(elsewhere);
            actions.push(Action::Send(key, Frame::Cancel { runs }.into()));
        }
        if last {
            self.heard_of(key);
        }
    }

    /// Asks for those of these that wait to be sent, and that an instance holds.
    pub(super) fn take_up(&mut self, ids: &[RequestId], now: Time, actions: &mut Vec<Action>) {
        if self.held.is_empty() {
            return;
        }
        let mut found: BTreeMap<PeerKey, Vec<RequestId>> = BTreeMap::new();
        for &id in ids {
            let waits = self.requests.get(id).is_some_and(|r| {
                matches!(r.place, Place::Backlog { .. } | Place::Delayed { .. } | Place::Unpaid { .. })
            });
            if waits && let Some(key) = self.held.remove(id) {
                found.entry(key).or_default().push(id);
            }
        }
        for (key, ids) in found {
            self.attach(key, ids, now, actions);
        }
    }

    /// What has just been taken from the backlog to be sent, without what an instance holds already.
    pub(super) fn without_held(
        &mut self,
        ids: Vec<RequestId>,
        now: Time,
        actions: &mut Vec<Action>,
    ) -> Vec<RequestId> {
        if self.held.is_empty() {
            return ids;
        }
        let mut found: BTreeMap<PeerKey, Vec<RequestId>> = BTreeMap::new();
        let mut rest = Vec::with_capacity(ids.len());
        for id in ids {
            match self.held.remove(id) {
                Some(key) => found.entry(key).or_default().push(id),
                None => rest.push(id),
            }
        }
        for (key, ids) in found {
            self.attach(key, ids, now, actions);
        }
        rest
    }

    fn attach(&mut self, key: PeerKey, ids: Vec<RequestId>, now: Time, actions: &mut Vec<Action>) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        for id in &ids {
            self.requests.place(*id, key, now);
        }
        self.meter.taken_up += ids.len() as u64;
        peer.in_flight.extend(ids.iter().copied());
        // Without a connection they are asked for as soon as there is one.
        if peer.connection.is_some() {
            actions.push(Action::Send(key, Frame::Attach { runs: RequestRun::pack(ids) }.into()));
        }
    }

    /// Forgets the requests of these operators, and asks all instances anew what they hold. On new connections, so that nothing that is
    /// under way is taken for an answer to what is asked from now on; the requests of others are attached to there.
    pub(super) fn abandoned(&mut self, operators: &[u32], now: Time, actions: &mut Vec<Action>) {
        let theirs = |id: &RequestId| operators.contains(&id.operator);
        for id in self.requests.of(theirs) {
            self.requests.remove(id, now);
            self.credits.release(id, now);
        }
        self.ended.retain(|id, _| !theirs(id));
        self.held.clear();
        self.holding = false;
        let ended = &self.ended;
        for (&key, peer) in &mut self.peers {
            peer.in_flight.retain(|id| !theirs(id));
            peer.isolates &= !peer.in_flight.is_empty();
            if peer.connection.take().is_none() {
                // It says what it holds as soon as it is connected again, unless it was given up before.
                if peer.may_hold(now) {
                    self.awaited.insert(peer.endpoint.instance.clone());
                }
                continue;
            }
            peer.lost_since = Some(now);
            self.credits.lost(key);
            let unheard = peer.acknowledged.lost();
            peer.to_acknowledge.extend(unheard.into_iter().filter(|id| !ended.contains_key(id)));
            self.awaited.insert(peer.endpoint.instance.clone());
            actions.push(Action::Disconnect(key));
            let endpoint = peer.endpoint.clone();
            actions.push(Action::Connect { peer: key, endpoint, after: Duration::ZERO });
        }
    }

    /// What this instance was known to hold is not known any more.
    pub(super) fn forget_held(&mut self, key: PeerKey) {
        self.held.forget(key);
    }
}
