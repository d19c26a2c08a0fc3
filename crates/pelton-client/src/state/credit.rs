//! Which parts of streamed answers have been taken, and when the instances are told: at once where it is much, a little later where it is
//! little, so that a stream of short words does not send a frame back for each.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow_array::RecordBatch;
use pelton_core::declaration::StreamLimits;
use pelton_core::{RequestId, Time};
use pelton_wire::{Frame, body};

use super::{Action, State};
use crate::peer::PeerKey;

/// How long a little credit waits for more.
const LINGER: Duration = Duration::from_millis(5);
/// So many parts are no little any more.
const MANY: u32 = 64;
/// What a part counts for beside its rows.
const OVERHEAD: u64 = 1 << 10;

#[derive(Debug)]
pub(crate) struct Credits {
    limits: StreamLimits,
    /// Parts that were delivered to callers who say when they have taken them.
    delivered: BTreeMap<RequestId, Delivered>,
    /// What instances have not been told.
    owed: BTreeMap<PeerKey, Owed>,
}

#[derive(Clone, Copy, Debug)]
struct Delivered {
    peer: PeerKey,
    /// Parts of earlier connections, which the instance does not count any more. They are taken first.
    old: u32,
    here: u32,
    /// Of those that are here.
    bytes: u64,
}

#[derive(Debug, Default)]
struct Owed {
    streams: BTreeMap<RequestId, u32>,
    parts: u32,
    bytes: u64,
    since: Time,
}

impl Credits {
    pub(crate) fn new(limits: StreamLimits) -> Self {
        Credits { limits, delivered: BTreeMap::new(), owed: BTreeMap::new() }
    }

    /// A part was given to its caller, who says when it is taken, or who has it at once.
    pub(crate) fn delivered(
        &mut self,
        id: RequestId,
        peer: PeerKey,
        rows: &RecordBatch,
        paced: bool,
        now: Time,
    ) {
        let bytes = body::bytes(rows) + OVERHEAD;
        if !paced {
            return self.owe(id, peer, 1, bytes, now);
        }
        let delivered = self.delivered.entry(id).or_insert(Delivered { peer, old: 0, here: 0, bytes: 0 });
        delivered.peer = peer;
        delivered.here += 1;
        delivered.bytes += bytes;
    }

    /// A part is taken, the oldest.
    pub(crate) fn took(&mut self, id: RequestId, now: Time) {
        let Some(delivered) = self.delivered.get_mut(&id) else { return };
        if delivered.old > 0 {
            delivered.old -= 1;
        } else {
            let bytes = delivered.bytes / u64::from(delivered.here.max(1));
            delivered.bytes -= bytes;
            delivered.here -= 1;
            let peer = delivered.peer;
            self.owe(id, peer, 1, bytes, now);
        }
        if self.delivered.get(&id).is_some_and(|d| d.old + d.here == 0) {
            self.delivered.remove(&id);
        }
    }

    fn owe(&mut self, id: RequestId, peer: PeerKey, parts: u32, bytes: u64, now: Time) {
        let owed = self.owed.entry(peer).or_default();
        if owed.parts == 0 {
            owed.since = now;
        }
        *owed.streams.entry(id).or_default() += parts;
        owed.parts += parts;
        owed.bytes += bytes;
    }

    /// Nobody will say any more when these parts are taken.
    pub(crate) fn release(&mut self, id: RequestId, now: Time) {
        if let Some(Delivered { peer, here, bytes, .. }) = self.delivered.remove(&id)
            && here > 0
        {
            self.owe(id, peer, here, bytes, now);
        }
    }

    /// The instance is told that it is cancelled, and counts nothing of it any more.
    pub(crate) fn forget(&mut self, id: RequestId, peer: PeerKey) {
        self.delivered.remove(&id);
        if let Some(owed) = self.owed.get_mut(&peer) {
            owed.parts -= owed.streams.remove(&id).unwrap_or(0);
        }
    }

    /// A connection is lost, and what was under way on it is not counted any more.
    pub(crate) fn lost(&mut self, peer: PeerKey) {
        self.owed.remove(&peer);
        for delivered in self.delivered.values_mut().filter(|d| d.peer == peer) {
            delivered.old += std::mem::take(&mut delivered.here);
            delivered.bytes = 0;
        }
    }

    /// When the next little credit has waited enough.
    pub(crate) fn due(&self) -> Option<Time> {
        self.owed.values().filter(|owed| owed.parts > 0).map(|owed| owed.since + LINGER).min()
    }

    /// What this instance is to be told now.
    fn flush(&mut self, peer: PeerKey, now: Time) -> Option<Vec<(RequestId, u32)>> {
        let much = self.limits.window.get() / 8;
        let owed = self.owed.get_mut(&peer)?;
        let due = owed.bytes >= much || owed.parts >= MANY || now >= owed.since + LINGER;
        (owed.parts > 0 && due).then(|| std::mem::take(owed).streams.into_iter().collect())
    }
}

impl State {
    /// What the instances may have under way: each its share of the total.
    fn credit(&self, taken: Vec<(RequestId, u32)>) -> Frame {
        let (window, total) = (self.credits.limits.window.get(), self.credits.limits.total.get());
        Frame::Credit { window, total: (total / u64::from(self.instances.max(1))).max(window), taken }
    }

    /// Says how much may be under way on a new connection, where that is not what was declared for all together.
    pub(super) fn announce_credit(&mut self, key: PeerKey, actions: &mut Vec<Action>) {
        if self.instances > 1
            && self.methods.iter().any(|m| m.cardinality == pelton_core::service::Cardinality::Many)
        {
            actions.push(Action::Send(key, self.credit(Vec::new()).into()));
        }
    }

    pub(super) fn flush_credits(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.credits.owed.is_empty() {
            return;
        }
        for key in self.credits.owed.keys().copied().collect::<Vec<_>>() {
            if self.peers.get(&key).is_none_or(|p| p.connection.is_none()) {
                self.credits.owed.remove(&key);
            } else if let Some(taken) = self.credits.flush(key, now) {
                actions.push(Action::Send(key, self.credit(taken).into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, StringArray};
    use pelton_core::Bytes;

    use super::*;

    /// What instance 1 is told after each step, one a millisecond, with a window of 80 KB: `+` a part of 5 KB comes for stream 1, `b` one
    /// of 11 KB, `t` one is taken, `l` the connection is lost, `c` the request is cancelled, `x` its caller is gone.
    fn check(script: &str, expected: &str) {
        let id = RequestId { operator: 1, group: 1, sequence: 1 };
        let limits = StreamLimits { window: Bytes::kib(80), ..StreamLimits::default() };
        let mut credits = Credits::new(limits);
        let rows = |n: usize| {
            let column: ArrayRef = Arc::new(StringArray::from_iter_values(["x".repeat(n)]));
            RecordBatch::try_from_iter([("text", column)]).unwrap()
        };
        let mut told = Vec::new();
        for (ms, what) in script.chars().enumerate() {
            let now = Time::from_origin(Duration::from_millis(ms as u64));
            match what {
                '+' => credits.delivered(id, 1, &rows(4 << 10), true, now),
                'b' => credits.delivered(id, 1, &rows(10 << 10), true, now),
                't' => credits.took(id, now),
                'l' => credits.lost(1),
                'c' => credits.forget(id, 1),
                'x' => credits.release(id, now),
                '.' => {}
                other => panic!("{other}"),
            }
            if let Some(taken) = credits.flush(1, now) {
                told.push(format!("{ms}:{}", taken.iter().map(|(_, n)| n).sum::<u32>()));
            }
        }
        assert_eq!(told.join(" "), expected, "{script}");
        let owed: u32 = credits.owed.values().flat_map(|owed| owed.streams.values()).sum();
        assert_eq!(owed, credits.owed.values().map(|owed| owed.parts).sum::<u32>());
    }

    #[test]
    fn much_is_told_at_once_and_little_a_little_later() {
        check("bt", "1:1");
        check("+t......", "6:1");
        check("++tt", "3:2");
        check("+t+...t...", "6:2");
        check("tt", "");
    }

    #[test]
    fn what_an_earlier_connection_brought_is_not_told_to_the_next() {
        check("bbblbttt", "");
        check("bbblbtttt", "8:1");
        check("btlbt", "1:1 4:1");
    }

    #[test]
    fn what_is_cancelled_or_left_is_settled() {
        check("+++t.c.......", "");
        check("bbx", "2:2");
        check("bbxt......", "2:2");
        check("blx......", "");
    }
}
