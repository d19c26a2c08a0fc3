//! What waits to run: by method and priority, in the order of arrival.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

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
    pub(crate) weight: f64,
    /// It runs in a batch of its own.
    pub(crate) alone: bool,
    pub(crate) deadline: Option<Time>,
    pub(crate) arrived: Time,
}

#[derive(Debug, Default)]
struct Lane {
    items: VecDeque<Item>,
    bytes: u64,
    weight: f64,
}

/// All lanes of an instance.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    lanes: BTreeMap<(Priority, u16), Lane>,
    rows: u64,
    bytes: u64,
    weight: f64,
}

/// What waits in the lane that is next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Head {
    pub(crate) lane: (Priority, u16),
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) weight: f64,
    pub(crate) since: Time,
    /// Weight of the first.
    pub(crate) first: f64,
    /// The first runs in a batch of its own.
    pub(crate) alone: bool,
}

/// What a batch may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) weight: f64,
}

/// A request that has waited this long goes before those of the next higher priority that came after it.
const PATIENCE: Duration = Duration::from_secs(1);

impl Queue {
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Rows that wait for one method.
    pub(crate) fn rows_of(&self, method: u16) -> u64 {
        self.lanes.iter().filter(|((_, m), _)| *m == method).map(|(_, lane)| lane.items.len() as u64).sum()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn weight(&self) -> f64 {
        self.weight
    }

    pub(crate) fn push(&mut self, priority: Priority, method: u16, item: Item) {
        let lane = self.lanes.entry((priority, method)).or_default();
        lane.bytes += item.bytes;
        lane.weight += item.weight;
        self.bytes += item.bytes;
        self.weight += item.weight;
        self.rows += 1;
        lane.items.push_back(item);
    }

    /// Puts an item back before all others of its method.
    pub(crate) fn push_back_first(&mut self, method: u16, item: Item) {
        let lane = self.lanes.entry((Priority::Interactive, method)).or_default();
        lane.bytes += item.bytes;
        lane.weight += item.weight;
        self.bytes += item.bytes;
        self.weight += item.weight;
        self.rows += 1;
        lane.items.push_front(item);
    }

    /// The lane whose turn it is among those of `eligible` methods: the highest priority, a second of waiting counted as the next
    /// higher one, and there the one that waits longest.
    /// Items for which `gone` holds (cancelled, or queued again since) are dropped on the way.
    pub(crate) fn head(
        &mut self,
        eligible: impl Fn(u16) -> bool,
        gone: impl Fn(&Item) -> bool,
        now: Time,
    ) -> Option<Head> {
        let mut best: Option<(u64, Head)> = None;
        for (&lane, Lane { items, bytes, weight }) in &mut self.lanes {
            if !eligible(lane.1) {
                continue;
            }
            while let Some(first) = items.front().filter(|item| gone(item)) {
                *bytes -= first.bytes;
                *weight -= first.weight;
                self.bytes -= first.bytes;
                self.weight -= first.weight;
                self.rows -= 1;
                items.pop_front();
            }
            if items.is_empty() {
                // What rounding left behind.
                *weight = 0.0;
            }
            let Some(first) = items.front() else { continue };
            let head = Head {
                lane,
                rows: items.len() as u64,
                bytes: *bytes,
                weight: *weight,
                since: first.arrived,
                first: first.weight,
                alone: first.alone,
            };
            let waited = now.since(head.since).as_secs() / PATIENCE.as_secs();
            let rank = (lane.0 as u64).saturating_sub(waited);
            if best.is_none_or(|(other, b)| (rank, head.since) < (other, b.since)) {
                best = Some((rank, head));
            }
        }
        if self.rows == 0 {
            self.weight = 0.0;
        }
        best.map(|(_, head)| head)
    }

    /// Takes items out of a lane, as many as a batch may hold; at least one, however large. One that is to be alone is.
    pub(crate) fn take(&mut self, lane: (Priority, u16), most: Most) -> Vec<Item> {
        let Some(Lane { items, bytes: lane_bytes, weight: lane_weight }) = self.lanes.get_mut(&lane) else {
            return Vec::new();
        };
        let mut taken: Vec<Item> = Vec::new();
        let (mut bytes, mut weight) = (0, 0.0);
        while let Some(item) = items.front() {
            let first = taken.is_empty();
            let fits = bytes + item.bytes <= most.bytes && weight + item.weight <= most.weight;
            let alone = item.alone || taken.first().is_some_and(|first| first.alone);
            if !first && (alone || !fits || taken.len() as u64 >= most.rows) {
                break;
            }
            bytes += item.bytes;
            weight += item.weight;
            *lane_bytes -= item.bytes;
            *lane_weight -= item.weight;
            self.bytes -= item.bytes;
            self.weight -= item.weight;
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
            weight: 1.0,
            alone: false,
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
        let now = Time::ZERO;
        while let Some(head) = queue.head(|_| true, |item| gone.contains(&item.ticket), now) {
            let items = queue.take(head.lane, Most { rows: 2, bytes, weight: f64::INFINITY });
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
    fn who_waits_long_enough_goes_before_higher_priorities() {
        let mut queue = Queue::default();
        queue.push(Priority::Bulk, 0, item(0));
        queue.push(Priority::Interactive, 0, Item { arrived: Time::from_origin(PATIENCE * 2), ..item(1) });
        let first = |queue: &mut Queue, now: Duration| {
            queue.head(|_| true, |_| false, Time::from_origin(now)).map(|head| head.lane.0)
        };
        assert_eq!(first(&mut queue, PATIENCE), Some(Priority::Interactive));
        assert_eq!(first(&mut queue, PATIENCE * 3), Some(Priority::Bulk));
    }

    #[test]
    fn one_that_is_to_be_alone_is() {
        let mut queue = Queue::default();
        for i in 0..4 {
            queue.push(Priority::Normal, 0, Item { alone: i == 1, ..item(i) });
        }
        let most = Most { rows: 9, bytes: 99, weight: f64::INFINITY };
        let mut sizes = || queue.take((Priority::Normal, 0), most).len();
        assert_eq!([sizes(), sizes(), sizes()], [1, 1, 2]);
        for i in 0..3 {
            queue.push(Priority::Normal, 0, item(i));
        }
        assert_eq!(queue.take((Priority::Normal, 0), Most { weight: 2.5, ..most }).len(), 2);
        assert!((queue.weight() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn only_eligible_methods_have_a_turn() {
        let mut queue = Queue::default();
        queue.push(Priority::Normal, 0, item(0));
        queue.push(Priority::Bulk, 1, item(1));
        assert_eq!(queue.head(|m| m == 1, |_| false, Time::ZERO).map(|h| h.lane), Some((Priority::Bulk, 1)));
        assert_eq!(queue.drain().len(), 2);
        assert_eq!((queue.rows(), queue.bytes()), (0, 0));
    }
}
