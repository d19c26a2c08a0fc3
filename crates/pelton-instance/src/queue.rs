//! What waits to run: by method and priority, in the order of arrival.

use std::collections::{BTreeMap, VecDeque};

use pelton_core::call::Priority;
use pelton_core::{RequestId, Time};
use pelton_wire::body::Piece;

/// A request that waits.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) id: RequestId,
    pub(crate) ticket: u64,
    /// The row, in the batch that it came in.
    pub(crate) row: Piece,
    pub(crate) bytes: u64,
    pub(crate) deadline: Option<Time>,
    pub(crate) arrived: Time,
}

#[derive(Debug, Default)]
struct Lane {
    items: VecDeque<Item>,
    bytes: u64,
}

/// All lanes of an instance.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    lanes: BTreeMap<(Priority, u16), Lane>,
    rows: u64,
    bytes: u64,
}

/// What waits in the lane that is next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) lane: (Priority, u16),
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) since: Time,
}

impl Queue {
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn push(&mut self, priority: Priority, method: u16, item: Item) {
        let lane = self.lanes.entry((priority, method)).or_default();
        lane.bytes += item.bytes;
        self.bytes += item.bytes;
        self.rows += 1;
        lane.items.push_back(item);
    }

    /// The lane whose turn it is among those of `eligible` methods: the highest priority, and there the one that waits longest.
    /// Items for which `gone` holds (cancelled, or queued again since) are dropped on the way.
    pub(crate) fn head(
        &mut self,
        eligible: impl Fn(u16) -> bool,
        gone: impl Fn(&Item) -> bool,
    ) -> Option<Head> {
        let mut best: Option<Head> = None;
        for (&lane, Lane { items, bytes }) in &mut self.lanes {
            if !eligible(lane.1) {
                continue;
            }
            while let Some(first) = items.front().filter(|item| gone(item)) {
                *bytes -= first.bytes;
                self.bytes -= first.bytes;
                self.rows -= 1;
                items.pop_front();
            }
            let Some(first) = items.front() else { continue };
            let head = Head { lane, rows: items.len() as u64, bytes: *bytes, since: first.arrived };
            if best.is_none_or(|b| (lane.0, head.since) < (b.lane.0, b.since)) {
                best = Some(head);
            }
        }
        best
    }

    /// Takes items out of a lane, up to `rows` and `bytes`; at least one, however large.
    pub(crate) fn take(&mut self, lane: (Priority, u16), rows: u64, bytes: u64) -> Vec<Item> {
        let Some(Lane { items, bytes: lane_bytes }) = self.lanes.get_mut(&lane) else { return Vec::new() };
        let mut taken = Vec::new();
        let mut total = 0;
        while let Some(item) = items.front() {
            if taken.len() as u64 >= rows || (!taken.is_empty() && total + item.bytes > bytes) {
                break;
            }
            total += item.bytes;
            *lane_bytes -= item.bytes;
            self.bytes -= item.bytes;
            self.rows -= 1;
            taken.extend(items.pop_front());
        }
        taken
    }

    /// Everything, in no particular order.
    pub(crate) fn drain(&mut self) -> Vec<Item> {
        let Queue { lanes, .. } = std::mem::take(self);
        lanes.into_values().flat_map(|lane| lane.items).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use arrow_array::RecordBatch;
    use arrow_schema::Schema;

    use super::*;

    fn item(sequence: u64) -> Item {
        let rows = Arc::new(RecordBatch::new_empty(Arc::new(Schema::empty())));
        Item {
            id: RequestId { operator: 1, group: 1, sequence },
            ticket: sequence,
            row: Piece { batch: rows, offset: 0, rows: 1 },
            bytes: 10,
            deadline: None,
            arrived: Time::from_origin(Duration::from_millis(sequence)),
        }
    }

    /// The order in which batches of up to 2 rows and `bytes` are taken of items given as `PRIORITY METHOD`, those in `gone` left out.
    fn check(items: &[(Priority, u16)], gone: &[u64], bytes: u64, expected: &[&[u64]]) {
        let mut queue = Queue::default();
        for (i, (priority, method)) in items.iter().enumerate() {
            queue.push(*priority, *method, item(i as u64));
        }
        let mut taken: Vec<Vec<u64>> = Vec::new();
        while let Some(head) = queue.head(|_| true, |item| gone.contains(&item.ticket)) {
            let items = queue.take(head.lane, 2, bytes);
            taken.push(items.iter().map(|item| item.ticket).collect());
        }
        assert_eq!(taken, expected);
        assert_eq!((queue.rows(), queue.bytes()), (0, 0));
    }

    #[test]
    fn priority_goes_first_then_age() {
        use Priority::{Bulk, Interactive, Normal};
        check(&[(Normal, 0), (Bulk, 0), (Interactive, 0), (Normal, 0)], &[], 99, &[&[2], &[0, 3], &[1]]);
        check(&[(Normal, 1), (Normal, 0), (Normal, 1)], &[], 99, &[&[0, 2], &[1]]);
        check(&[(Normal, 0), (Normal, 0)], &[], 15, &[&[0], &[1]]);
        check(&[(Normal, 0), (Normal, 0)], &[], 5, &[&[0], &[1]]);
        check(&[(Normal, 0), (Normal, 0), (Normal, 0)], &[0, 1], 99, &[&[2]]);
    }

    #[test]
    fn only_eligible_methods_have_a_turn() {
        let mut queue = Queue::default();
        queue.push(Priority::Normal, 0, item(0));
        queue.push(Priority::Bulk, 1, item(1));
        assert_eq!(queue.head(|m| m == 1, |_| false).map(|h| h.lane), Some((Priority::Bulk, 1)));
        assert_eq!(queue.drain().len(), 2);
        assert_eq!((queue.rows(), queue.bytes()), (0, 0));
    }
}
