//! An instance's memory of requests by id: queued, running, finished.
//!
//! It is why a request is never run twice: a caller that presents an id again is attached to what runs, or gets what is
//! stored. Finished entries stay until they are acknowledged, within bounds of bytes and time; the oldest go to disk where that is
//! declared ([`disk`]), and what has to be forgotten earlier is counted.

mod disk;

use std::collections::BTreeMap;

use pelton_core::declaration::LedgerLimits;
use pelton_core::meter::LedgerMeter;
use pelton_core::{RequestId, RequestRun, Time};
use pelton_wire::body::Piece;

use crate::spill::{self, Block, Extent, Order};
use crate::state::{BatchId, ConnectionId};
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
    /// Nobody will ask for the result.
    pub(crate) unwanted: bool,
}

impl Entry {
    pub(crate) fn is_on_disk(&self) -> bool {
        matches!(self.stage, Stage::Finished { place: Place::Disk { .. }, .. })
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
            self.finished.remove(&order);
            match place {
                Place::Memory => self.resident -= bytes,
                Place::Leaving | Place::Disk { .. } => self.disk.left(order),
            }
        }
        Some(entry)
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

    /// Ids of the entries that nobody waits for, and somebody may yet ask for.
    pub(crate) fn unattended(&self) -> impl Iterator<Item = RequestId> {
        self.entries.iter().filter(|(_, e)| e.attached.is_none() && !e.unwanted).map(|(id, _)| *id)
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
        let mut block = Block { first: 0, segment: 0, method: 0, results: Vec::new() };
        let (mut end, mut bytes) = (0, 0);
        let size = self.disk.block_bytes();
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
            block.results.push((order, entry.parts.clone()));
            (end, bytes) = (order + 1, bytes + own);
        }
        if self.disk.writing() > 0 && self.disk.writing() + bytes > BEHIND {
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
                        entry.parts = Vec::new();
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
                    finish(&mut ledger, number.parse().unwrap(), 10, ms as u64);
                }
                "-" => ledger.acknowledge(&[RequestRun::one(id(number.parse().unwrap()))]),
                "e" => ledger.evict(at(ms as u64)),
                "." => {}
                other => panic!("{other}"),
            }
        }
        let ids: Vec<u64> = ledger.entries.keys().map(|id| id.sequence).collect();
        assert_eq!((ids.as_slice(), ledger.bytes(), ledger.evicted()), (left, bytes, evicted), "{script}");
        assert_eq!(ledger.finished.len(), ledger.entries.len());
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
        let mut ledger = Ledger::new(LedgerLimits::default());
        for i in 0..5000 {
            finish(&mut ledger, i, 1, 0);
            if i > 0 {
                ledger.acknowledge(&[RequestRun::one(id(i))]);
            }
        }
        assert_eq!(ledger.finished.len(), 1);
    }

    fn finish(ledger: &mut Ledger, number: u64, bytes: u64, ms: u64) {
        let (stage, attached) = (Stage::Running { batch: 1 }, None);
        let entry = Entry { method: 0, attached, stage, parts: Vec::new(), unwanted: false };
        ledger.insert(id(number), entry);
        ledger.finish(id(number), bytes, at(ms));
    }

    /// A ledger with room for 25 bytes in memory and 64 KiB on disk, with results of 10 bytes, or of 20 KB where they are marked `!`.
    /// After each of `EVENT EVENT ... => STATE`: `+1`, `-1`, `e` as above; `w` and `x`: the oldest block that waits for it is written, or is
    /// not; `?1` caller 7 wants it, `l` and `d`: the oldest block that waits for it is read, or is damaged; `later`: 20 seconds pass, or
    /// `much later`: an hour. The state: where each result is (`m` memory, `l` leaving, `d` disk, `D` disk and wanted), and what was
    /// counted: `e` evicted, `s` spilled, `g` given to callers, `x` damaged, `h` handed back, `f` segments that were given back.
    fn check_spill(script: &str) {
        let limits = LedgerLimits {
            bytes: Bytes(25),
            age: Duration::from_secs(60),
            spill: Some("/".into()),
            spill_bytes: Bytes::kib(64),
            ..LedgerLimits::default()
        };
        let mut ledger = Ledger::new(limits);
        let (mut writes, mut loads) = (Vec::new(), Vec::new());
        let (mut given, mut handed_back, mut freed, mut ms) = (0, 0, 0, 0);
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (events, expected) = line.split_once("=>").unwrap();
            for word in events.split_whitespace() {
                let now = at(ms);
                let number = || id(word[1..].trim_end_matches('!').parse().unwrap());
                match word {
                    "e" => ledger.evict(now),
                    "w" => {
                        let Block { first, segment, .. } = writes.remove(0);
                        let _: u64 = segment;
                        let length = ledger.disk.charged_for(first).unwrap_or(1);
                        ledger.written(first, Ok(Extent { offset: 0, length, checksum: 0 }), now);
                    }
                    "x" => ledger.written(writes.remove(0).first, Err(spill::Failed), now),
                    "l" | "d" => {
                        let first = loads.remove(0);
                        let range = ledger.disk.range(first).unwrap_or(first..first);
                        let results = range.map(|order| (order, Vec::new())).collect();
                        given += ledger
                            .loaded(first, if word == "l" { Ok(results) } else { Err(spill::Failed) })
                            .len();
                    }
                    "later" => ms += 20_000,
                    "much-later" => ms += 3_600_000,
                    _ if word.starts_with('+') => {
                        finish(
                            &mut ledger,
                            number().sequence,
                            if word.ends_with('!') { 20_000 } else { 10 },
                            ms,
                        );
                    }
                    _ if word.starts_with('-') => ledger.acknowledge(&[RequestRun::one(number())]),
                    _ if word.starts_with('?') => {
                        ledger.get_mut(number()).unwrap().attached = Some(7);
                        ledger.want(number());
                    }
                    other => panic!("{other}"),
                }
                for order in ledger.take_orders() {
                    match order {
                        Order::Write(block) => writes.push(block),
                        Order::Load(load) => loads.push(load.first),
                        Order::Free(_) => freed += 1,
                    }
                }
                handed_back += ledger.take_lost().len();
            }
            let place = |entry: &Entry| match entry.stage {
                Stage::Finished { place: Place::Memory, .. } => 'm',
                Stage::Finished { place: Place::Leaving, .. } => 'l',
                Stage::Finished { place: Place::Disk { wanted }, .. } => {
                    if wanted {
                        'D'
                    } else {
                        'd'
                    }
                }
                _ => '?',
            };
            let mut found: Vec<String> =
                ledger.entries.iter().map(|(id, e)| format!("{}{}", id.sequence, place(e))).collect();
            let meter = ledger.meter();
            for (what, n) in [
                ('e', meter.evicted),
                ('s', meter.spilled),
                ('g', given as u64),
                ('x', meter.damaged),
                ('h', handed_back as u64),
                ('f', freed),
            ] {
                if n > 0 {
                    found.push(format!("{what}{n}"));
                }
            }
            assert_eq!(found.join(" "), expected.trim(), "{line}");
            let on_disk = ledger
                .entries
                .values()
                .filter(|e| !matches!(e.stage, Stage::Finished { place: Place::Memory, .. }));
            assert_eq!(meter.on_disk, on_disk.count() as u64, "{line}");
            assert!(meter.disk_bytes <= 64 << 10, "{line}: {meter:?}");
            assert_eq!(meter.disk_bytes == 0, meter.on_disk == 0 && writes.is_empty(), "{line}: {meter:?}");
            let leaving: u64 = writes.iter().map(|b| b.results.len() as u64 * 10).sum();
            if !script.contains('!') {
                assert_eq!(ledger.bytes(), ledger.resident + leaving, "{line}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_goes_to_disk_and_comes_back() {
        check_spill(
            "+1 +2 e    => 1m 2m
             +3 e       => 1l 2m 3m
             w          => 1d 2m 3m s1
             +4 +5 e w  => 1d 2d 3d 4m 5m s3
             ?1         => 1D 2d 3d 4m 5m s3
             l          => 1d 2d 3d 4m 5m s3 g1
             ?1 ?2 l l  => 1d 2d 3d 4m 5m s3 g3
             -1         => 2d 3d 4m 5m s3 g3
             -2 -3      => 4m 5m s3 g3 f1
             much-later e => e2 s3 g3 f1",
        );
    }

    #[test]
    fn what_is_on_its_way_can_be_acknowledged() {
        check_spill(
            "+1 +2 +3 e => 1l 2m 3m
             -1         => 2m 3m
             w          => 2m 3m f1
             +4 e       => 2l 3m 4m f1
             -2 x       => 3m 4m f2
             later +5 e => 3l 4m 5m f2
             w ?3       => 3D 4m 5m s1 f2
             -3         => 4m 5m s1 f3
             l          => 4m 5m s1 f3
             +3 e       => 3m 4l 5m s1 f3
             w          => 3m 4d 5m s2 f3",
        );
    }

    #[test]
    fn one_that_ended_again_is_not_answered_with_what_it_gave_before() {
        check_spill(
            "+1 +2 +3 e w ?1 => 1D 2m 3m s1
             -1 +1 e w       => 1m 2d 3m s2 f1
             l               => 1m 2d 3m s2 f1",
        );
    }

    #[test]
    fn a_disk_that_takes_nothing_is_left_alone_for_a_while() {
        check_spill(
            "+1 +2 +3 e => 1l 2m 3m
             x          => 2m 3m e1 f1
             +4 e       => 3m 4m e2 f1
             later +5 e => 3l 4m 5m e2 f1
             w          => 3d 4m 5m e2 s1 f1",
        );
    }

    #[test]
    fn what_is_damaged_is_forgotten_and_handed_back() {
        check_spill(
            "+1 +2 +3 e w => 1d 2m 3m s1
             ?1           => 1D 2m 3m s1
             d            => 2m 3m e1 s1 x1 h1 f1",
        );
    }

    #[test]
    fn one_that_is_wanted_and_too_old_is_handed_back() {
        check_spill(
            "+1 +2 +3 e w ?1 => 1D 2m 3m s1
             much-later e    => e3 s1 h1 f1
             l               => e3 s1 h1 f1",
        );
    }

    #[test]
    fn the_disk_has_a_limit_too() {
        check_spill(
            "+1! +2! e w w   => 1d 2d s2
             +3! e w         => 1d 2d 3d s3
             ?1 +4! e        => 2d 3d 4l e1 s3 h1 f1
             w l             => 2d 3d 4d e1 s4 h1 f1",
        );
    }

    #[test]
    fn where_the_disk_is_behind_memory_has_a_limit() {
        let spill = Some("/".into());
        let mut ledger = Ledger::new(LedgerLimits { bytes: Bytes::kib(1), spill, ..LedgerLimits::default() });
        let mut longest = 0;
        for number in 0..300 {
            finish(&mut ledger, number, 1 << 20, 0);
            ledger.evict(at(0));
            longest = longest.max(ledger.bytes());
        }
        assert!((60 << 20..=BEHIND + 1024).contains(&longest), "{longest}");
        let writes = ledger.take_orders().len() as u64;
        assert_eq!(ledger.evicted() + writes, 300);
        assert_eq!(ledger.evicted() + ledger.entries.len() as u64, 300);
    }

    #[test]
    fn segments_are_given_back_and_the_memory_for_what_is_on_disk_is_bounded() {
        let spill = Some("/".into());
        let mut ledger = Ledger::new(LedgerLimits { bytes: Bytes::kib(1), spill, ..LedgerLimits::default() });
        let mut segments = std::collections::BTreeSet::new();
        for number in 0..100_000 {
            finish(&mut ledger, number, 2000, 0);
            ledger.evict(at(0));
            for order in ledger.take_orders() {
                match order {
                    Order::Write(Block { first, segment, results, .. }) => {
                        segments.insert(segment);
                        let length = 2100 * results.len() as u64;
                        ledger.written(first, Ok(Extent { offset: 0, length, checksum: 0 }), at(0));
                    }
                    Order::Free(segment) => assert!(segments.remove(&segment)),
                    Order::Load(_) => {}
                }
            }
        }
        // 16 MiB, 256 bytes each.
        assert_eq!(ledger.meter().on_disk, 65536);
        assert!(ledger.meter().disk_bytes < 3 * (64 << 20) + (64 << 20), "{:?}", ledger.meter());
        assert!(segments.len() <= 4, "{segments:?}");
    }
}
