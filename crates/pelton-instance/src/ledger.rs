//! An instance's memory of requests by id: queued, running, finished.
//!
//! It is why a request is never run twice: a caller that presents an id again is attached to what runs, or gets what is
//! stored. Finished entries stay until they are acknowledged, within bounds of bytes and time; what has to go earlier is counted.

use std::collections::{BTreeMap, VecDeque};

use pelton_core::declaration::LedgerLimits;
use pelton_core::{RequestId, RequestRun, Time};
use pelton_wire::body::Piece;

use crate::state::{BatchId, ConnectionId};

#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// Waits; `ticket` tells its place in the queue from an older one of the same id.
    Queued { ticket: u64 },
    Running { batch: BatchId },
    /// Ran; counted in the ledger's bytes.
    Finished { bytes: u64 },
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) method: u16,
    /// Who waits for it, if anybody.
    pub(crate) attached: Option<ConnectionId>,
    pub(crate) stage: Stage,
    /// What it gave so far.
    pub(crate) parts: Vec<Piece>,
    /// Nobody will ask for the result.
    pub(crate) unwanted: bool,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    limits: LedgerLimits,
    entries: BTreeMap<RequestId, Entry>,
    /// Finished ones, oldest first; those acknowledged since are skipped when their turn comes.
    finished: VecDeque<(Time, RequestId)>,
    bytes: u64,
    evicted: u64,
}

impl Ledger {
    pub(crate) fn new(limits: LedgerLimits) -> Self {
        Ledger { limits, entries: BTreeMap::new(), finished: VecDeque::new(), bytes: 0, evicted: 0 }
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

    pub(crate) fn get_mut(&mut self, id: RequestId) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    pub(crate) fn insert(&mut self, id: RequestId, entry: Entry) {
        self.entries.insert(id, entry);
    }

    pub(crate) fn remove(&mut self, id: RequestId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        if let Stage::Finished { bytes } = entry.stage {
            self.bytes -= bytes;
        }
        Some(entry)
    }

    /// The entry's last part is there.
    pub(crate) fn finish(&mut self, id: RequestId, bytes: u64, now: Time) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.stage = Stage::Finished { bytes };
            self.bytes += bytes;
            self.finished.push_back((now, id));
        }
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
    }

    /// Ids of the entries that this connection waits for.
    pub(crate) fn attached_to(&self, connection: ConnectionId) -> Vec<RequestId> {
        self.entries.iter().filter(|(_, e)| e.attached == Some(connection)).map(|(id, _)| *id).collect()
    }

    /// Queued entries that nobody waits for.
    pub(crate) fn abandoned(&self) -> Vec<RequestId> {
        let abandoned = |e: &Entry| e.attached.is_none() && matches!(e.stage, Stage::Queued { .. });
        self.entries.iter().filter(|(_, e)| abandoned(e)).map(|(id, _)| *id).collect()
    }

    /// Forgets what is beyond the bounds, oldest first.
    pub(crate) fn evict(&mut self, now: Time) {
        while let Some(&(since, id)) = self.finished.front() {
            let is_finished = self.entries.get(&id).is_some_and(|e| matches!(e.stage, Stage::Finished { .. }));
            if is_finished {
                if self.bytes <= self.limits.bytes.get() && now.since(since) <= self.limits.age {
                    return;
                }
                self.remove(id);
                self.evicted += 1;
            }
            self.finished.pop_front();
        }
    }
}
