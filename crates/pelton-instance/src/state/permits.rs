//! Who may send how much.

use std::time::Duration;

use pelton_core::Time;
use pelton_policy::permit;
use pelton_wire::Frame;

use super::flow::Load;
use super::{Action, Connection, Phase, State};

/// A service shows in its gauge what it began this long ago.
const YOUNG: Duration = Duration::from_millis(150);
/// Permits that were not used for this long come back: a caller sends or returns them at once, so this one is dead or stalled.
const LEASE: Duration = Duration::from_secs(2);

impl State {
    pub(super) fn load(&self) -> Load {
        Load {
            queued: self.queue.rows() + self.split_rows() + self.parked.len() as u64,
            queued_weight: self.queue.weight() + self.split_weight() + self.parked_weight(),
            running: self.running_rows,
            running_weight: self.running_weight,
            young_weight: self.young_weight(),
        }
    }

    fn young_weight(&self) -> f64 {
        if !self.flow.any_continuous() {
            return 0.0;
        }
        self.running.values().rev().take_while(|r| self.seen.since(r.since) < YOUNG).map(|r| r.weight).sum()
    }

    /// How long answers may take: as declared, or as the callers wait. A patience that even a single row would exceed is left out: it
    /// cannot be kept, and would make all batches small for the others.
    pub(super) fn target(&self) -> Option<Duration> {
        self.declaration.batch.latency.or(self.patience)
    }

    pub(super) fn grant(&mut self, now: Time) {
        if self.phase != Phase::Ready || self.connections.is_empty() {
            return;
        }
        let wants = |c: &Connection| !c.wastes && c.demand().total() > 0;
        let others_want = self.connections.values().any(wants);
        let demand = |c: &Connection| match c.wastes && others_want {
            true => permit::Demand { rows: [0; 3], ..c.demand() },
            false => c.demand(),
        };
        let demands: Vec<permit::Demand> = self.connections.values().map(demand).collect();
        if demands.iter().all(|d| d.total() == 0) {
            return;
        }
        let load = self.load();
        if self.full_at.is_some_and(|full| load.rows() > 0 && load.weight() >= full) {
            return;
        }
        self.full_at = None;
        let outstanding: u64 = self.connections.values().map(Connection::outstanding).sum();
        let of_outstanding = |f: fn(&Connection) -> f64| -> f64 {
            self.connections.values().map(|c| c.outstanding() as f64 * f(c)).sum()
        };
        let bytes = of_outstanding(|c| c.like.row_bytes as f64) as u64;
        let weight = of_outstanding(|c| c.like.row_weight);
        // What waits for callers that take nothing does not keep others from the service.
        let held = load.rows().saturating_sub(self.stalled()).saturating_add(outstanding);
        let budget = self.flow.permits(&self.declaration, self.target(), load, now);
        let (all_weight, growth) = self.flow.weight_budget(&self.declaration, now);
        let room = permit::Room {
            rows: budget.saturating_sub(held),
            bytes: self
                .declaration
                .permits
                .bytes
                .get()
                .saturating_sub((self.queue.bytes() + self.parked_bytes()).saturating_add(bytes)),
            weight: all_weight - load.weight() - weight - growth * held as f64,
        };
        self.meter.permits = budget;
        let demands: Vec<permit::Demand> =
            demands.into_iter().map(|d| permit::Demand { weight: d.weight + growth, ..d }).collect();
        let granted = permit::grant(&demands, &mut self.next_turn, room, held == 0);
        for (connection, rows) in self.connections.values_mut().zip(granted) {
            if rows > 0 {
                if connection.outstanding() == 0 {
                    connection.granted = now;
                    connection.timing = true;
                }
                connection.permitted += rows;
            }
        }
    }

    /// Tells callers what they are permitted. Whoever has used it already hears of it with what is said next.
    pub(super) fn tell_permits(&mut self, actions: &mut Vec<Action>) {
        let held = self.load().rows();
        for (&id, connection) in &mut self.connections {
            let spoken_to = || actions.iter().any(|a| matches!(a, Action::Send(to, _) if *to == id));
            if connection.permitted > connection.heard && (connection.outstanding() > 0 || spoken_to()) {
                (connection.heard, connection.told) = (connection.permitted, held);
                let permit = Frame::Permit { rows: connection.permitted, held };
                actions.push(Action::Send(id, permit.into()));
            }
        }
    }

    /// When the next permits come back by themselves.
    pub(super) fn permits_due(&self) -> Option<Time> {
        self.connections.values().filter(|c| c.outstanding() > 0).map(|c| c.granted + LEASE).min()
    }

    /// Takes back permits that nobody used. Whoever let them expire comes after all others until it uses or returns some, late
    /// or not: a caller that only announces would otherwise have them again and again.
    pub(super) fn expire_permits(&mut self, now: Time) {
        for connection in self.connections.values_mut() {
            if connection.outstanding() > 0 && now >= connection.granted + LEASE {
                tracing::debug!(
                    "client `{}` has not used {} permits; they are given to others",
                    connection.client,
                    connection.outstanding()
                );
                connection.expired += connection.outstanding();
                connection.wastes = true;
            }
        }
    }

    /// Tells callers that there is much less here than they were last told: what they believe decides where their next requests
    /// wait. That there is more they learn with their next permits.
    pub(super) fn tell_load(&mut self, actions: &mut Vec<Action>) {
        let held = self.load().rows();
        for (&id, connection) in &mut self.connections {
            if held < connection.told && (held == 0 || held <= connection.told / 2) {
                connection.told = held;
                actions.push(Action::Send(id, Frame::Load { held }.into()));
            }
        }
    }
}
