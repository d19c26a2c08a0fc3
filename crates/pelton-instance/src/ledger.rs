//! An instance's memory of requests by id: queued, running, finished.
//!
//! It is why a request is never run twice: a caller that presents an id again is attached to what runs, or gets what is
//! stored. Finished entries stay until they are acknowledged, within bounds of bytes and time; what has to go earlier is counted.

use std::collections::{BTreeMap, VecDeque};

use pelton_core::declaration::LedgerLimits;
use pelton_core::{RequestId, RequestRun, Time};
use pelton_wire::body::Piece;

use crate::state::{BatchId, ConnectionId};
use crate::stream::Stream;

#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// Waits; `ticket` tells its place in the queue from an older one of the same id.
    Queued {
        ticket: u64,
    },
    Running {
        batch: BatchId,
    },
    /// Ran; parts of its stream still wait for room with its caller.
    Ended,
    /// Ran; counted in the ledger's bytes.
    /// `order` tells it from an earlier end of the same id.
    Finished {
        bytes: u64,
        order: u64,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) method: u16,
    /// Who waits for it, if anybody.
    pub(crate) attached: Option<ConnectionId>,
    pub(crate) stage: Stage,
    /// What it gave so far.
    pub(crate) parts: Vec<Piece>,
    /// The same, of a streaming method.
    pub(crate) stream: Option<Box<Stream>>,
    /// Nobody will ask for the result.
    pub(crate) unwanted: bool,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    limits: LedgerLimits,
    entries: BTreeMap<RequestId, Entry>,
    /// Finished ones, oldest first; those acknowledged since are skipped when their turn comes.
    finished: VecDeque<(Time, u64, RequestId)>,
    next_order: u64,
    bytes: u64,
    evicted: u64,
}

impl Ledger {
    pub(crate) fn new(limits: LedgerLimits) -> Self {
        Ledger {
            limits,
            entries: BTreeMap::new(),
            finished: VecDeque::new(),
            next_order: 0,
            bytes: 0,
            evicted: 0,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Whether this place in the queue is still this request's.
    pub(crate) fn is_queued(&self, id: RequestId, ticket: u64) -> bool {
        matches!(self.entries.get(&id), Some(Entry { stage: Stage::Queued { ticket: t }, .. }) if *t == ticket)
    }

    pub(crate) fn get(&self, id: RequestId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: RequestId) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    /// The entry, if it runs in this batch.
    pub(crate) fn running(&mut self, id: RequestId, batch: BatchId) -> Option<&mut Entry> {
        self.entries.get_mut(&id).filter(|e| matches!(e.stage, Stage::Running { batch: b } if b == batch))
    }

    pub(crate) fn insert(&mut self, id: RequestId, entry: Entry) {
        self.entries.insert(id, entry);
    }

    pub(crate) fn remove(&mut self, id: RequestId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        if let Stage::Finished { bytes, .. } = entry.stage {
            self.bytes -= bytes;
        }
        Some(entry)
    }

    /// The entry's last part is there.
    pub(crate) fn finish(&mut self, id: RequestId, bytes: u64, now: Time) {
        if let Some(entry) = self.entries.get_mut(&id) {
            let order = self.next_order;
            self.next_order += 1;
            entry.stage = Stage::Finished { bytes, order };
            self.bytes += bytes;
            self.finished.push_back((now, order, id));
        }
    }

    /// A caller asks for the parts of a stream that has finished: it is not, until they are sent.
    pub(crate) fn reopen(&mut self, id: RequestId) {
        if let Some(entry) = self.entries.get_mut(&id)
            && let Stage::Finished { bytes, .. } = std::mem::replace(&mut entry.stage, Stage::Ended)
        {
            self.bytes -= bytes;
        }
        self.tidy();
    }

    /// Whether parts of streams that have ended wait for room.
    pub(crate) fn has_unsent(&self) -> bool {
        self.entries.values().any(|e| matches!(e.stage, Stage::Ended))
    }

    /// Streams that nobody waits for, and that only this client could have gone on with.
    pub(crate) fn cut_streams_of(&self, client: &str) -> Vec<RequestId> {
        let cut = |s: &Stream| !s.is_whole() && s.owner == client;
        let theirs = |e: &Entry| e.attached.is_none() && e.stream.as_deref().is_some_and(cut);
        self.entries.iter().filter(|(_, e)| theirs(e)).map(|(id, _)| *id).collect()
    }

    /// Forgets finished entries that their callers have. Entries that are not finished stay.
    pub(crate) fn acknowledge(&mut self, runs: &[RequestRun]) {
        for run in runs {
            let last = RequestId { sequence: run.first.sequence + u64::from(run.count - 1), ..run.first };
            let ids: Vec<RequestId> = (self.entries.range(run.first..=last))
                .filter(|(_, e)| matches!(e.stage, Stage::Finished { .. }))
                .map(|(id, _)| *id)
                .collect();
            for id in ids {
                self.remove(id);
            }
        }
        self.tidy();
    }

    /// Ids of the entries that this connection waits for.
    pub(crate) fn attached_to(&self, connection: ConnectionId) -> Vec<RequestId> {
        self.entries.iter().filter(|(_, e)| e.attached == Some(connection)).map(|(id, _)| *id).collect()
    }

    /// Ids of the entries that nobody waits for, and somebody may yet ask for: who has nothing of them yet can have all.
    pub(crate) fn unattended(&self) -> impl Iterator<Item = RequestId> {
        let whole = |e: &Entry| e.stream.as_deref().is_none_or(Stream::is_whole);
        let wanted = move |e: &Entry| e.attached.is_none() && !e.unwanted && whole(e);
        self.entries.iter().filter(move |(_, e)| wanted(e)).map(|(id, _)| *id)
    }

    /// Running entries that nobody waits for, and nobody has taken back.
    pub(crate) fn orphaned(&self) -> impl Iterator<Item = RequestId> {
        let orphaned =
            |e: &Entry| e.attached.is_none() && !e.unwanted && matches!(e.stage, Stage::Running { .. });
        self.entries.iter().filter(move |(_, e)| orphaned(e)).map(|(id, _)| *id)
    }

    /// Queued entries that nobody waits for.
    pub(crate) fn abandoned(&self) -> Vec<RequestId> {
        let abandoned = |e: &Entry| e.attached.is_none() && matches!(e.stage, Stage::Queued { .. });
        self.entries.iter().filter(|(_, e)| abandoned(e)).map(|(id, _)| *id).collect()
    }

    /// Forgets what is beyond the bounds, oldest first.
    pub(crate) fn evict(&mut self, now: Time) {
        while let Some(&(since, order, id)) = self.finished.front() {
            if is_live(&self.entries, order, id) {
                if self.bytes <= self.limits.bytes.get() && now.since(since) < self.limits.age {
                    return;
                }
                self.remove(id);
                self.evicted += 1;
            }
            self.finished.pop_front();
        }
    }

    /// When the oldest result is to be forgotten, acknowledged or not.
    pub(crate) fn expires_at(&self) -> Option<Time> {
        self.finished.front().map(|(since, ..)| *since + self.limits.age)
    }

    /// Whether results wait for callers that are not there.
    pub(crate) fn has_undelivered(&self) -> bool {
        self.entries.values().any(|e| e.attached.is_none() && matches!(e.stage, Stage::Finished { .. }))
    }

    /// Keeps the list of finished ones from growing with those that are acknowledged.
    fn tidy(&mut self) {
        while self.finished.front().is_some_and(|&(_, order, id)| !is_live(&self.entries, order, id)) {
            self.finished.pop_front();
        }
        if self.finished.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            self.finished.retain(|&(_, order, id)| is_live(entries, order, id));
        }
    }
}

fn is_live(entries: &BTreeMap<RequestId, Entry>, order: u64, id: RequestId) -> bool {
    matches!(entries.get(&id), Some(Entry { stage: Stage::Finished { order: o, .. }, .. }) if *o == order)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pelton_core::Bytes;

    use super::*;

    fn id(sequence: u64) -> RequestId {
        RequestId { operator: 1, group: 1, sequence }
    }

    fn at(ms: u64) -> Time {
        Time::from_origin(Duration::from_millis(ms))
    }

    /// What is left, how many bytes, and how many were evicted after `+3` (3 finishes, 10 bytes), `-3` (is acknowledged) and `e`
    /// (evict), one a millisecond, with room for 25 bytes and 10 ms.
    fn check(script: &str, left: &[u64], bytes: u64, evicted: u64) {
        let limits =
            LedgerLimits { bytes: Bytes(25), age: Duration::from_millis(10), ..LedgerLimits::default() };
        let mut ledger = Ledger::new(limits);
        for (ms, word) in script.split_whitespace().enumerate() {
            let (what, number) = word.split_at(1);
            match what {
                "+" => {
                    let id = id(number.parse().unwrap());
                    let stage = Stage::Running { batch: 1 };
                    ledger.insert(
                        id,
                        Entry {
                            method: 0,
                            attached: None,
                            stage,
                            parts: Vec::new(),
                            stream: None,
                            unwanted: false,
                        },
                    );
                    ledger.finish(id, 10, at(ms as u64));
                }
                "-" => ledger.acknowledge(&[RequestRun::one(id(number.parse().unwrap()))]),
                "e" => ledger.evict(at(ms as u64)),
                "." => {}
                other => panic!("{other}"),
            }
        }
        let ids: Vec<u64> = ledger.entries.keys().map(|id| id.sequence).collect();
        assert_eq!((ids.as_slice(), ledger.bytes(), ledger.evicted()), (left, bytes, evicted), "{script}");
        assert!(ledger.finished.len() <= 2 * ledger.entries.len() + 64);
    }

    #[test]
    fn it_keeps_what_fits() {
        check("+1 +2 e", &[1, 2], 20, 0);
        check("+1 +2 +3 e", &[2, 3], 20, 1);
        check("+1 +2 -1 +3 e", &[2, 3], 20, 0);
        check("+1 . . . . . . . . . e", &[], 0, 1);
        check("+1 . . . . . . . . e", &[1], 10, 0);
    }

    #[test]
    fn an_id_that_ended_twice_is_as_old_as_its_last_end() {
        check("+1 -1 . . . . . . +1 . . . e", &[1], 10, 0);
        check("+2 +1 -1 . . . . . +1 . e", &[1], 10, 1);
    }

    #[test]
    fn acknowledged_ones_take_no_room_behind_one_that_is_not() {
        let script: Vec<String> = (1..5000).map(|i| format!("+{i} -{i}")).collect();
        let mut ledger = Ledger::new(LedgerLimits {
            bytes: Bytes(25),
            age: Duration::from_secs(60),
            ..LedgerLimits::default()
        });
        for i in 0..script.len() as u64 {
            let stage = Stage::Running { batch: 1 };
            ledger.insert(
                id(i),
                Entry { method: 0, attached: None, stage, parts: Vec::new(), stream: None, unwanted: false },
            );
            ledger.finish(id(i), 1, at(0));
            if i > 0 {
                ledger.acknowledge(&[RequestRun::one(id(i))]);
            }
        }
        assert!(ledger.finished.len() < 100, "{}", ledger.finished.len());
    }
}
