//! Who may send how much.

use pelton_policy::permit;
use pelton_wire::Frame;

use super::{Action, Connection, Phase, State};

impl State {
    pub(super) fn grant(&mut self, actions: &mut Vec<Action>) {
        if self.phase != Phase::Ready || self.connections.is_empty() {
            return;
        }
        let demands: Vec<permit::Demand> = self.connections.values().map(Connection::demand).collect();
        if demands.iter().all(|d| d.rows == 0) {
            return;
        }
        let outstanding: u64 = self.connections.values().map(Connection::outstanding).sum();
        let outstanding_bytes: u64 =
            self.connections.values().map(|c| c.outstanding().saturating_mul(c.like.row_bytes)).sum();
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
                connection.told = held;
                let permit = Frame::Permit { rows: connection.permitted, held };
                actions.push(Action::Send(id, permit.into()));
            }
        }
    }
    /// Tells callers that there is much less here than they were last told: what they believe decides where their next requests
    /// wait. That there is more they learn with their next permits.
    pub(super) fn tell_load(&mut self, actions: &mut Vec<Action>) {
        let held = self.held();
        for (&id, connection) in &mut self.connections {
            if held < connection.told && (held == 0 || held <= connection.told / 2) {
                connection.told = held;
                actions.push(Action::Send(id, Frame::Load { held }.into()));
            }
        }
    }
}
