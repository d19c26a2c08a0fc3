//! Results that go to disk and come from there.

use std::collections::BTreeMap;

use pelton_core::{RequestId, RequestRun, Time};
use pelton_wire::Frame;
use pelton_wire::body::Piece;

use super::{Action, ConnectionId, State};
use crate::ledger::Delivery;
use crate::spill::Failed;

/// Results of one method for one caller.
type Together = (ConnectionId, u16, Vec<(RequestId, Piece)>);

impl State {
    /// Results are back from disk: they go to those who wait for them.
    pub(super) fn loaded(
        &mut self,
        first: u64,
        result: Result<Vec<(u64, Vec<Piece>)>, Failed>,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let mut together: Option<Together> = None;
        for Delivery { to, method, id, mut parts } in self.ledger.loaded(first, result) {
            if self.is_streaming(method) {
                self.reloaded(id, parts, now, actions);
                continue;
            }
            let Some(last) = parts.pop() else { continue };
            // One frame for neighbours: they are sent without a copy.
            match &mut together {
                Some((same, _, parts))
                    if *same == to && parts.last().is_some_and(|(_, p)| p.offset + p.rows == last.offset) =>
                {
                    parts.push((id, last));
                }
                other => {
                    if let Some((to, method, parts)) = other.replace((to, method, vec![(id, last)])) {
                        self.send_parts(to, method, &parts, true, actions);
                    }
                }
            }
        }
        if let Some((to, method, parts)) = together {
            self.send_parts(to, method, &parts, true, actions);
        }
        // Not before: what is delivered must still be there. Streams are in memory again.
        self.ledger.evict(now);
    }

    /// What the ledger wants of the disk, and what it had to forget although somebody waits for it.
    pub(super) fn tell_disk(&mut self, actions: &mut Vec<Action>) {
        actions.extend(self.ledger.take_orders().into_iter().map(Action::Disk));
        let mut back: BTreeMap<ConnectionId, Vec<RequestId>> = BTreeMap::new();
        for (connection, id) in self.ledger.take_lost() {
            back.entry(connection).or_default().push(id);
        }
        for (connection, ids) in back {
            let runs = RequestRun::pack(ids);
            actions.push(Action::Send(connection, Frame::HandBack { runs }.into()));
        }
    }
}
