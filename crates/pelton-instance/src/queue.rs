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
    pub(crate) fn head(&mut self, eligible: impl Fn(u16) -> bool, gone: impl Fn(&Item) -> bool) -> Option<Head> {
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
