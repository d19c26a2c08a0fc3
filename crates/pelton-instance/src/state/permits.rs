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
