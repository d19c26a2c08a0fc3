//! Endpoints that come and go, connections that are made and lost.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pelton_core::endpoint::{Endpoint, EndpointDelta};
use pelton_core::id::{InstanceId, stable_hash};
use pelton_core::meter;
use pelton_core::service::are_called_as;
use pelton_core::{Error, Fate, Kind, RequestId, RequestRun, Retry, Time};
use pelton_policy::backoff;
use pelton_wire::{Frame, State as Phase, Welcome};
use rand::RngExt;

use super::{Action, MOST_PEERS, RECONNECT, State};
use crate::peer::{ConnectionId, Peer, PeerKey, Window};
use crate::requests::Place;

impl State {
    /// Applies a change, then sees to it that this client is connected to its share of the instances.
    pub(super) fn endpoints(&mut self, delta: EndpointDelta, now: Time, actions: &mut Vec<Action>) {
        match delta {
            EndpointDelta::Reset(endpoints) => {
                let all: BTreeMap<InstanceId, Endpoint> =
                    endpoints.into_iter().map(|e| (e.instance.clone(), e)).collect();
                let gone: Vec<InstanceId> = (self.peers.values())
                    .filter(|p| all.get(&p.endpoint.instance) != Some(&p.endpoint))
                    .map(|p| p.endpoint.instance.clone())
                    .collect();
                for instance in gone {
                    self.removed(&instance, now, actions);
                }
                self.known = all;
                if !std::mem::replace(&mut self.told, true) {
                    self.choose(actions);
                    self.awaited = self.peers.values().map(|p| p.endpoint.instance.clone()).collect();
                }
            }
            EndpointDelta::Add(endpoint) => {
                self.known.insert(endpoint.instance.clone(), endpoint);
            }
            EndpointDelta::Drain(instance) => {
                self.known.remove(&instance);
                if let Some(peer) = self.peers.values_mut().find(|p| p.endpoint.instance == instance) {
                    peer.draining = true;
                }
            }
            EndpointDelta::Remove(instance) => {
                self.known.remove(&instance);
                self.removed(&instance, now, actions);
            }
        }
        self.choose(actions);
    }

    /// Connects to a share of the instances, where there are many: those that rank highest for this client. Each client ranks them in an
    /// order of its own that never changes (rendezvous hashing; Thaler and Ravishankar, 1998), so that every instance has as many
    /// clients as any other, and one that comes or goes moves few connections.
    fn choose(&mut self, actions: &mut Vec<Action>) {
        let salt = self.salt;
        let rank = |instance: &InstanceId| stable_hash(&format!("{salt:x} {instance}"));
        let mut chosen: Vec<&Endpoint> = self.known.values().collect();
        if chosen.len() > MOST_PEERS {
            chosen.sort_by_cached_key(|e| Reverse(rank(&e.instance)));
            chosen.truncate(MOST_PEERS);
        }
        let missing: Vec<Endpoint> = (chosen.iter())
            .filter(|e| !self.peers.values().any(|p| p.endpoint.instance == e.instance))
            .map(|e| (*e).clone())
            .collect();
        let chosen: BTreeSet<InstanceId> = chosen.into_iter().map(|e| e.instance.clone()).collect();
        for peer in self.peers.values_mut().filter(|p| self.known.contains_key(&p.endpoint.instance)) {
            peer.retired = !chosen.contains(&peer.endpoint.instance);
        }
        for endpoint in missing {
            self.added(endpoint, actions);
        }
        self.retire(actions);
    }

    /// Leaves those that are not of this client's share any more, once nothing binds it to them.
    pub(super) fn retire(&mut self, actions: &mut Vec<Action>) {
        if !self.peers.values().any(|p| p.retired) {
            return;
        }
        let bound: BTreeSet<PeerKey> = self.ended.values().copied().collect();
        let free = |key: &PeerKey, p: &Peer| {
            p.retired && p.in_flight.is_empty() && p.to_acknowledge.is_empty() && !bound.contains(key)
        };
        let left: Vec<PeerKey> = self.peers.iter().filter(|(k, p)| free(k, p)).map(|(k, _)| *k).collect();
        for key in left {
            self.peers.remove(&key);
            actions.push(Action::Disconnect(key));
        }
    }

    fn added(&mut self, endpoint: Endpoint, actions: &mut Vec<Action>) {
        let key = self.next_peer;
        self.next_peer += 1;
        self.peers.insert(key, Peer::new(endpoint.clone()));
        actions.push(Action::Connect { peer: key, endpoint, after: Duration::ZERO });
    }

    pub(super) fn removed(&mut self, instance: &InstanceId, now: Time, actions: &mut Vec<Action>) {
        let Some(&key) = self.peers.iter().find(|(_, p)| p.endpoint.instance == *instance).map(|(k, _)| k)
        else {
            return;
        };
        self.heard_of(key);
        self.forget_held(key);
        self.abandon(key, now, actions);
        self.peers.remove(&key);
        self.credits.lost(key);
        self.ended.retain(|_, peer| *peer != key);
        actions.push(Action::Disconnect(key));
    }

    /// What an instance held is tried elsewhere: whether it ran is not known.
    pub(super) fn abandon(&mut self, key: PeerKey, now: Time, actions: &mut Vec<Action>) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let ids = std::mem::take(&mut peer.in_flight);
        peer.isolates = false;
        peer.to_cancel.extend(ids.iter().copied());
        let instance = peer.endpoint.instance.clone();
        // The last first, because each is put before those that were put back before it.
        for id in ids.into_iter().rev() {
            let attempts = self.requests.count_attempt(id);
            if let Some(request) = self.requests.get_mut(id) {
                request.losses += 1;
            }
            if attempts < self.retry.attempts {
                self.try_again(id, None, "lost", now, actions);
            } else {
                let message = format!(
                    "lost with instance {instance}, the last of {attempts} attempts (retry.attempts)"
                );
                let error = Error::new(Kind::Reset, Fate::Unknown, Retry::Never, message);
                self.end(id, Err(error), now, actions);
            }
        }
    }

    /// Puts a request back that an instance does not have any more: until `until`, or for the next permit. Not one whose caller has
    /// a part of the answer: another run need not give the same parts.
    pub(super) fn try_again(
        &mut self,
        id: RequestId,
        until: Option<Time>,
        why: &str,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let parts = self.requests.get(id).map_or(0, |r| r.parts);
        if parts > 0 {
            let message = format!(
                "lost after {parts} parts of its answer were given out, so that it cannot be tried again"
            );
            let error = Error::new(Kind::Reset, Fate::Unknown, Retry::Never, message);
            return self.end(id, Err(error), now, actions);
        }
        self.retries += 1;
        meter::count(&mut self.meter.retries, why, 1);
        match until {
            Some(until) => self.requests.delay(id, until),
            None => self.requests.requeue(id, now),
        }
    }

    pub(super) fn connected(
        &mut self,
        key: PeerKey,
        connection: ConnectionId,
        welcome: &Welcome,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if welcome.instance.incarnation != peer.endpoint.instance.incarnation {
            // Another process at the same address: what the one before it held went with it. Whoever says where instances are says so
            // of the new one.
            let instance = peer.endpoint.instance.clone();
            tracing::info!("{} is at the address of {instance}, which is gone", welcome.instance);
            self.known.remove(&instance);
            return self.removed(&instance, now, actions);
        }
        if !are_called_as(&self.methods, &welcome.methods) {
            tracing::error!(
                "instance {} has other methods than its declaration; it gets no requests",
                welcome.instance
            );
            actions.push(Action::Disconnect(key));
            return self.heard_of(key);
        }
        peer.connection = Some(connection);
        peer.failures = 0;
        peer.lost_since = None;
        peer.restates = true;
        peer.window = Window::default();
        peer.given_up.clear();
        // What is not ready takes nothing ahead of its permits.
        let ready = welcome.status.state == Phase::Ready;
        peer.held = welcome.status.held.max(u64::from(!ready));
        peer.to_acknowledge.retain(|id| self.requests.get(*id).is_none());
        // What still waits to be sent is taken up there, once it has said that it has it.
        let requests = &self.requests;
        let waits = |id: &RequestId| requests.get(*id).is_some_and(|r| !matches!(r.place, Place::Sent(_)));
        let mut given_up = std::mem::take(&mut peer.to_cancel);
        given_up.retain(|id| !waits(id));
        if !given_up.is_empty() {
            let runs = RequestRun::pack(given_up);
            actions.push(Action::Send(key, Frame::Cancel { runs }.into()));
        }
        // A stream goes on after the parts that its caller has.
        let parts = |id: &RequestId| self.requests.get(*id).map_or(0, |r| r.parts);
        let (streams, whole): (Vec<RequestId>, Vec<RequestId>) =
            peer.in_flight.iter().copied().partition(|id| parts(id) > 0);
        if !whole.is_empty() {
            actions.push(Action::Send(key, Frame::Attach { runs: RequestRun::pack(whole) }.into()));
        }
        if !streams.is_empty() {
            let streams = streams.into_iter().map(|id| (id, parts(&id))).collect();
            actions.push(Action::Send(key, Frame::Resume { streams }.into()));
        }
        self.announce_credit(key, actions);
    }

    pub(super) fn not_connected(
        &mut self,
        key: PeerKey,
        error: &Error,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        tracing::debug!("{}: {error}", peer.endpoint.instance);
        peer.failures += 1;
        let (failures, endpoint) = (peer.failures, peer.endpoint.clone());
        if error.kind() == Kind::Denied {
            tracing::error!("{}: {error}", endpoint.instance);
        }
        peer.lost_since.get_or_insert(now);
        if peer.is_given_up(now) {
            self.heard_of(key);
            self.abandon(key, now, actions);
        }
        let after = backoff::delay(failures, RECONNECT.0, RECONNECT.1, self.rng.random());
        actions.push(Action::Connect { peer: key, endpoint, after });
    }

    pub(super) fn disconnected(
        &mut self,
        key: PeerKey,
        connection: ConnectionId,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let Some(peer) = self.peers.get_mut(&key).filter(|p| p.connection == Some(connection)) else {
            return;
        };
        peer.connection = None;
        peer.lost_since = Some(now);
        self.credits.lost(key);
        // Not those that have been asked for anew since.
        let lost = peer.acknowledged.lost().into_iter().filter(|id| self.requests.get(*id).is_none());
        peer.to_acknowledge.extend(lost);
        let after = backoff::delay(1, RECONNECT.0, RECONNECT.1, self.rng.random());
        actions.push(Action::Connect { peer: key, endpoint: peer.endpoint.clone(), after });
    }
}
