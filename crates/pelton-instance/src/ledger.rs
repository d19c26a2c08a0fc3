//! An instance's memory of requests by id: queued, running, finished.
//!
//! It is why a request is never run twice: a caller that presents an id again is attached to what runs, or gets what is
//! stored. Finished entries stay until they are acknowledged, within bounds of bytes and time; the oldest go to disk where that is
//! declared ([`disk`]), and what has to be forgotten earlier is counted.

mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use pelton_core::declaration::LedgerLimits;
use pelton_core::meter::LedgerMeter;
use pelton_core::{RequestId, RequestRun, Time};
use pelton_wire::body::Piece;

use crate::spill::{self, Block, Extent, Order};
use crate::state::{BatchId, ConnectionId};
use crate::stream::Stream;
use disk::Disk;

/// How much more than is declared may be in memory while it is written, or waits for that. Where results come faster than the disk
/// takes them for longer, the oldest are forgotten.
const BEHIND: u64 = 64 << 20;
/// Most results in a block.
const BLOCK_RESULTS: usize = 16 << 10;

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
        place: Place,
    },
}

/// Where a result is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Memory,
    /// On its way to disk, and in memory until it is there.
    Leaving,
    /// On disk. `wanted`: it is sent to who is attached as soon as it is read.
    Disk {
        wanted: bool,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) method: u16,
    /// Who waits for it, if anybody.
    pub(crate) attached: Option<ConnectionId>,
    pub(crate) stage: Stage,
    /// What it gave so far; nothing while that is on disk.
    pub(crate) parts: Vec<Piece>,
    /// The same, of a streaming method.
    pub(crate) stream: Option<Box<Stream>>,
    /// Nobody will ask for the result.
    pub(crate) unwanted: bool,
}

impl Entry {
    /// Whether a caller who is connected waits for it, and it is not this one.
    pub(crate) fn is_of_another(&self, connection: Option<ConnectionId>) -> bool {
        connection.is_some() && self.attached.is_some() && self.attached != connection
    }

    pub(crate) fn is_on_disk(&self) -> bool {
        matches!(self.stage, Stage::Finished { place: Place::Disk { .. }, .. })
    }

    /// What is stored of it.
    fn result(&self) -> Vec<Piece> {
        self.stream.as_deref().map_or_else(|| self.parts.clone(), Stream::kept)
    }

    /// Its result is on disk.
    fn went(&mut self) {
        self.parts = Vec::new();
        if let Some(stream) = &mut self.stream {
            stream.went();
        }
    }

    /// Its result is on disk, and somebody waits for it.
    fn is_wanted(&self) -> bool {
        self.attached.is_some()
            && matches!(self.stage, Stage::Finished { place: Place::Disk { wanted: true }, .. })
    }
}

/// A result that was read back, for somebody who waits for it.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) to: ConnectionId,
    pub(crate) method: u16,
    pub(crate) id: RequestId,
    pub(crate) parts: Vec<Piece>,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    limits: LedgerLimits,
    entries: BTreeMap<RequestId, Entry>,
    /// Finished ones in the order of their ends, oldest first.
    finished: BTreeMap<u64, (Time, RequestId)>,
    next_order: u64,
    /// Of finished ones that are in memory and not on their way to disk.
    resident: u64,
    /// Those that ended before this one were given to the disk, or are gone.
    given: u64,
    disk: Disk,
    /// Those that had to be forgotten while somebody waited for them.
    lost: Vec<(ConnectionId, RequestId)>,
    counts: LedgerMeter,
}

impl Ledger {
    pub(crate) fn new(limits: LedgerLimits) -> Self {
        Ledger {
            disk: Disk::new(&limits),
            limits,
            entries: BTreeMap::new(),
            finished: BTreeMap::new(),
            next_order: 0,
            resident: 0,
            given: 0,
            lost: Vec::new(),
            counts: LedgerMeter::default(),
        }
    }

    /// Of finished results in memory, those included that are being written.
    pub(crate) fn bytes(&self) -> u64 {
        self.resident + self.disk.writing()
    }

    pub(crate) fn evicted(&self) -> u64 {
        self.counts.evicted
    }

    pub(crate) fn meter(&self) -> LedgerMeter {
        LedgerMeter { on_disk: self.disk.results(), disk_bytes: self.disk.bytes(), ..self.counts.clone() }
    }

    /// The operators that there are entries of.
    pub(crate) fn operators(&self) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        let mut next = self.entries.keys().next().map(|id| id.operator);
        while let Some(operator) = next {
            found.insert(operator);
            let last = RequestId { operator, group: u64::MAX, sequence: u64::MAX };
            let behind = (Bound::Excluded(last), Bound::Unbounded);
            next = self.entries.range(behind).next().map(|(id, _)| id.operator);
        }
        found
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
        if let Stage::Finished { bytes, order, place } = entry.stage {
            self.unlist(bytes, order, place);
        }
        Some(entry)
    }

    /// A finished one is no longer among these.
    fn unlist(&mut self, bytes: u64, order: u64, place: Place) {
        self.finished.remove(&order);
        match place {
            Place::Memory => self.resident -= bytes,
            Place::Leaving | Place::Disk { .. } => self.disk.left(order),
        }
    }

    /// The entry's last part is there.
    pub(crate) fn finish(&mut self, id: RequestId, bytes: u64, now: Time) {
        if let Some(entry) = self.entries.get_mut(&id) {
            let order = self.next_order;
            self.next_order += 1;
            entry.stage = Stage::Finished { bytes, order, place: Place::Memory };
            self.resident += bytes;
            self.finished.insert(order, (now, id));
        }
    }

    /// A caller asks for the parts of a stream that has finished: it is not, until they are sent.
    pub(crate) fn reopen(&mut self, id: RequestId) {
        if let Some(entry) = self.entries.get_mut(&id)
            && let Stage::Finished { bytes, order, place } = std::mem::replace(&mut entry.stage, Stage::Ended)
        {
            self.unlist(bytes, order, place);
        }
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

    /// Those of a run that are here.
    pub(crate) fn within(&self, run: RequestRun) -> impl Iterator<Item = RequestId> {
        let last = RequestId { sequence: run.first.sequence + u64::from(run.count - 1), ..run.first };
        self.entries.range(run.first..=last).map(|(id, _)| *id)
    }

    /// Forgets finished entries that this caller has. Entries that are not finished stay, and those that another one waits for.
    pub(crate) fn acknowledge(&mut self, from: ConnectionId, runs: &[RequestRun]) {
        for run in runs {
            let may_go =
                |e: &Entry| matches!(e.stage, Stage::Finished { .. }) && !e.is_of_another(Some(from));
            let ids: Vec<RequestId> =
                self.within(*run).filter(|id| self.entries.get(id).is_some_and(may_go)).collect();
            for id in ids {
                self.remove(id);
            }
        }
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

    /// Keeps to the bounds, oldest first: what is too old is forgotten, what there is no room for is given to the disk or forgotten.
    pub(crate) fn evict(&mut self, now: Time) {
        while let Some((_, &(since, id))) = self.finished.first_key_value()
            && now.since(since) >= self.limits.age
        {
            self.forget(id);
        }
        let most = self.limits.bytes.get();
        if self.resident <= most {
            return;
        }
        // A little more than it must, so that not each result is a write of its own.
        let enough = most - most / 8;
        while self.resident > enough
            && let Some((_, &(_, oldest))) = self.finished.range(self.given..).next()
        {
            let late = match self.disk.is_on(now) {
                true if self.spill(enough) => continue,
                on => on && self.disk.writing() > 0,
            };
            if self.resident <= most || (late && self.bytes() <= most + BEHIND) {
                return;
            }
            self.forget(oldest);
        }
    }

    /// Gives the oldest results in memory to the disk, as one block; `false` if it cannot take more just now.
    fn spill(&mut self, enough: u64) -> bool {
        let size = self.disk.block_bytes();
        let behind = |bytes, writing| writing > 0 && writing + bytes > BEHIND;
        if behind(size, self.disk.writing()) {
            return false;
        }
        let mut block = Block { first: 0, segment: 0, method: 0, results: Vec::new() };
        let (mut end, mut bytes) = (0, 0);
        for (&order, &(_, id)) in self.finished.range(self.given..) {
            let entry = &self.entries[&id];
            let Stage::Finished { bytes: own, .. } = entry.stage else { continue };
            let full = bytes + own > size || self.resident - bytes <= enough;
            let another = block.method != entry.method || block.results.len() == BLOCK_RESULTS;
            if !block.results.is_empty() && (full || another) {
                break;
            }
            if block.results.is_empty() {
                (block.first, block.method) = (order, entry.method);
            }
            block.results.push((order, entry.result()));
            (end, bytes) = (order + 1, bytes + own);
        }
        // One result may be larger than a block is meant to be.
        if behind(bytes, self.disk.writing()) {
            return false;
        }
        let results = block.results.len() as u64;
        while !self.disk.has_room(bytes, results) {
            let Some(oldest) = self.disk.oldest_written(bytes, results) else { return false };
            self.forget_block(oldest);
        }
        block.segment = self.disk.begin(block.first, end, results, bytes);
        for (order, _) in &block.results {
            self.move_to(*order, Place::Leaving);
        }
        self.resident -= bytes;
        self.given = end;
        self.disk.order(Order::Write(block));
        true
    }

    /// The disk has a block, or does not take it.
    pub(crate) fn written(&mut self, first: u64, result: Result<Extent, spill::Failed>, now: Time) {
        match result {
            Ok(extent) => {
                for order in self.orders_of(first) {
                    if let Some(entry) = self.move_to(order, Place::Disk { wanted: false }) {
                        entry.went();
                        let Stage::Finished { bytes, .. } = entry.stage else { continue };
                        self.counts.spilled += 1;
                        self.counts.spilled_bytes += bytes;
                    }
                }
                self.disk.written(first, extent);
            }
            Err(spill::Failed) => {
                self.forget_block(first);
                self.disk.failed(first, now);
            }
        }
        self.evict(now);
    }

    /// Somebody waits for a result that is on disk.
    pub(crate) fn want(&mut self, id: RequestId) {
        if let Some(Entry { stage: Stage::Finished { order, place, .. }, .. }) = self.entries.get_mut(&id)
            && let Place::Disk { wanted } = place
        {
            *wanted = true;
            self.disk.want(*order);
        }
    }

    /// A block was read, or is not what it was. Gives the results in it that somebody waits for.
    pub(crate) fn loaded(
        &mut self,
        first: u64,
        result: Result<Vec<(u64, Vec<Piece>)>, spill::Failed>,
    ) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        // Otherwise all of it was acknowledged or forgotten meanwhile.
        if self.disk.loaded(first) {
            match result {
                Ok(results) => {
                    for (order, parts) in results {
                        let Some(&(_, id)) = self.finished.get(&order) else { continue };
                        let Some(entry) = self.entries.get_mut(&id) else { continue };
                        if let (true, Some(to)) = (entry.is_wanted(), entry.attached) {
                            deliveries.push(Delivery { to, method: entry.method, id, parts });
                        }
                        self.move_to(order, Place::Disk { wanted: false });
                    }
                    self.counts.loaded += deliveries.len() as u64;
                }
                Err(spill::Failed) => {
                    self.counts.damaged += self.orders_of(first).len() as u64;
                    self.forget_block(first);
                }
            }
        }
        self.disk.load_next();
        deliveries
    }

    /// What the disk shall do, in this order.
    pub(crate) fn take_orders(&mut self) -> Vec<Order> {
        self.disk.take_orders()
    }

    /// Requests whose callers have to hear that nothing is known of them any more.
    pub(crate) fn take_lost(&mut self) -> Vec<(ConnectionId, RequestId)> {
        std::mem::take(&mut self.lost)
    }

    /// When the oldest result is to be forgotten, acknowledged or not.
    pub(crate) fn expires_at(&self) -> Option<Time> {
        self.finished.first_key_value().map(|(_, (since, _))| *since + self.limits.age)
    }

    /// Whether results wait for callers that are not there, or for the disk.
    pub(crate) fn has_undelivered(&self) -> bool {
        let undelivered =
            |e: &Entry| e.is_wanted() || e.attached.is_none() && matches!(e.stage, Stage::Finished { .. });
        self.entries.values().any(undelivered)
    }

    fn move_to(&mut self, order: u64, to: Place) -> Option<&mut Entry> {
        let (_, id) = self.finished.get(&order)?;
        let entry = self.entries.get_mut(id)?;
        if let Stage::Finished { place, .. } = &mut entry.stage {
            *place = to;
        }
        Some(entry)
    }

    /// What is left of a block.
    fn orders_of(&self, first: u64) -> Vec<u64> {
        self.disk
            .range(first)
            .map_or_else(Vec::new, |range| self.finished.range(range).map(|(o, _)| *o).collect())
    }

    fn forget_block(&mut self, first: u64) {
        for order in self.orders_of(first) {
            if let Some(&(_, id)) = self.finished.get(&order) {
                self.forget(id);
            }
        }
    }

    /// Forgets a finished one that nobody has acknowledged.
    fn forget(&mut self, id: RequestId) {
        if let Some(entry) = self.remove(id) {
            self.counts.evicted += 1;
            if let (true, Some(to)) = (entry.is_wanted(), entry.attached) {
                self.lost.push((to, id));
            }
        }
    }
}

#[cfg(test)]
mod tests;
