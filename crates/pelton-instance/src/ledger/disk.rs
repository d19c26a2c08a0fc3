//! What of a ledger is on disk: in which blocks and segments, and how much there may be. Decides; [`crate::spill`] does it.
//!
//! Results are written in blocks, which end in the same order as their requests did, and blocks go into segments: files that grow up
//! to a size, and are given back as soon as nothing in them is needed. What a segment still holds of blocks that are gone counts as used.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use pelton_core::Time;
use pelton_core::declaration::LedgerLimits;

use crate::spill::{Extent, Load, Order};

/// How large a segment gets; less where little may be used.
const SEGMENT: u64 = 64 << 20;
/// What is written and read at a time; one larger result is a block of its own.
const BLOCK: u64 = 1 << 20;
/// Of what may be used, one segment and one block take this part at most.
const SEGMENTS: u64 = 8;
const BLOCKS: u64 = 64;
/// What a block takes beside its results, about.
const BLOCK_HEAD: u64 = 1024;
const RESULT_HEAD: u64 = 16;
/// Memory that a result takes while it is on disk, about: its id, and where it is.
const IN_MEMORY: u64 = 256;
/// As much as `ledger.bytes` may be taken by that, and no less than this.
const LEAST_IN_MEMORY: u64 = 16 << 20;
/// Blocks that are read at a time.
const LOADS: usize = 4;
/// How long a disk that failed is left alone.
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Block {
    segment: u64,
    /// The first order after it.
    end: u64,
    /// Results in it that are still needed.
    live: u64,
    /// Bytes of memory that are taken until it is written.
    memory: u64,
    /// What it counts for on disk.
    charged: u64,
    /// None: it is on its way.
    extent: Option<Extent>,
    /// It is to be read, or is being read.
    loading: bool,
}

#[derive(Debug, Default)]
struct Segment {
    blocks: u64,
    /// What is on its way counted as [`room`] says.
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Disk {
    declared: bool,
    most_bytes: u64,
    most_results: u64,
    /// By the order of their first result.
    blocks: BTreeMap<u64, Block>,
    segments: BTreeMap<u64, Segment>,
    /// The one that grows.
    current: Option<u64>,
    next_segment: u64,
    bytes: u64,
    results: u64,
    writing: u64,
    /// Blocks that are to be read.
    wanted: BTreeSet<u64>,
    /// How many are being read.
    loading: usize,
    paused_until: Option<Time>,
    orders: Vec<Order>,
}

/// What a block takes on disk, about.
fn room(bytes: u64, results: u64) -> u64 {
    bytes + BLOCK_HEAD + RESULT_HEAD * results
}

impl Disk {
    pub(super) fn new(limits: &LedgerLimits) -> Self {
        Disk {
            declared: limits.spill.is_some(),
            most_bytes: limits.spill_bytes.get(),
            most_results: limits.bytes.get().max(LEAST_IN_MEMORY) / IN_MEMORY,
            blocks: BTreeMap::new(),
            segments: BTreeMap::new(),
            current: None,
            next_segment: 0,
            bytes: 0,
            results: 0,
            writing: 0,
            wanted: BTreeSet::new(),
            loading: 0,
            paused_until: None,
            orders: Vec::new(),
        }
    }

    /// Whether results may go there.
    pub(super) fn is_on(&self, now: Time) -> bool {
        self.declared && self.paused_until.is_none_or(|until| now >= until)
    }

    /// What it takes, what is on its way included.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many results are there or on their way.
    pub(super) fn results(&self) -> u64 {
        self.results
    }

    /// Bytes in memory that are on their way.
    pub(super) fn writing(&self) -> u64 {
        self.writing
    }

    /// What a block counts for.
    #[cfg(test)]
    pub(super) fn charged_for(&self, first: u64) -> Option<u64> {
        self.blocks.get(&first).map(|block| block.charged)
    }

    pub(super) fn block_bytes(&self) -> u64 {
        BLOCK.min(self.most_bytes / BLOCKS)
    }

    pub(super) fn has_room(&self, bytes: u64, results: u64) -> bool {
        self.bytes + room(bytes, results) <= self.most_bytes && self.results + results <= self.most_results
    }

    /// The oldest block there, if it is of any use to forget it for so much.
    pub(super) fn oldest_written(&self, bytes: u64, results: u64) -> Option<u64> {
        if room(bytes, results) > self.most_bytes {
            return None;
        }
        self.blocks.iter().find(|(_, b)| b.extent.is_some()).map(|(first, _)| *first)
    }

    /// The orders of a block's results.
    pub(super) fn range(&self, first: u64) -> Option<Range<u64>> {
        self.blocks.get(&first).map(|block| first..block.end)
    }

    /// A block goes to the segment that this gives.
    pub(super) fn begin(&mut self, first: u64, end: u64, results: u64, bytes: u64) -> u64 {
        let size = SEGMENT.min(self.most_bytes / SEGMENTS);
        let current = self.current.filter(|s| self.segments[s].bytes + room(bytes, results) <= size);
        let segment = current.unwrap_or_else(|| {
            self.next_segment += 1;
            self.next_segment
        });
        self.current = Some(segment);
        let Segment { blocks, bytes: used } = self.segments.entry(segment).or_default();
        *blocks += 1;
        *used += room(bytes, results);
        self.bytes += room(bytes, results);
        self.results += results;
        self.writing += bytes;
        let block = Block {
            segment,
            end,
            live: results,
            memory: bytes,
            charged: room(bytes, results),
            extent: None,
            loading: false,
        };
        self.blocks.insert(first, block);
        segment
    }

    /// It is there. All of it may have been acknowledged meanwhile.
    pub(super) fn written(&mut self, first: u64, extent: Extent) {
        let Some(block) = self.blocks.get_mut(&first) else { return };
        self.writing -= block.memory;
        let room = std::mem::replace(&mut block.charged, extent.length);
        block.extent = Some(extent);
        self.bytes = self.bytes - room + extent.length;
        if let Some(segment) = self.segments.get_mut(&block.segment) {
            segment.bytes = segment.bytes - room + extent.length;
        }
        if block.live == 0 {
            self.drop_block(first);
        }
    }

    /// It could not be written; nothing of it is needed any more.
    pub(super) fn failed(&mut self, first: u64, now: Time) {
        self.paused_until = Some(now + PAUSE);
        let Some(block) = self.blocks.get(&first) else { return };
        self.writing -= block.memory;
        self.bytes -= block.charged;
        if let Some(segment) = self.segments.get_mut(&block.segment) {
            segment.bytes -= block.charged;
        }
        self.drop_block(first);
    }

    /// A result is needed no longer.
    pub(super) fn left(&mut self, order: u64) {
        let Some((&first, block)) = self.blocks.range_mut(..=order).next_back() else { return };
        block.live -= 1;
        self.results -= 1;
        if block.live == 0 && block.extent.is_some() {
            self.drop_block(first);
        }
    }

    /// A result is to be read.
    pub(super) fn want(&mut self, order: u64) {
        let Some((&first, block)) = self.blocks.range_mut(..=order).next_back() else { return };
        if !std::mem::replace(&mut block.loading, true) {
            self.wanted.insert(first);
            self.load_next();
        }
    }

    /// A block was read; whether it is still of any use.
    pub(super) fn loaded(&mut self, first: u64) -> bool {
        self.loading -= 1;
        self.blocks.get_mut(&first).is_some_and(|block| std::mem::take(&mut block.loading))
    }

    pub(super) fn load_next(&mut self) {
        while self.loading < LOADS
            && let Some(first) = self.wanted.pop_first()
        {
            if let Some(Block { extent: Some(extent), segment, .. }) = self.blocks.get(&first) {
                self.loading += 1;
                self.orders.push(Order::Load(Load { first, segment: *segment, extent: *extent }));
            }
        }
    }

    pub(super) fn order(&mut self, order: Order) {
        self.orders.push(order);
    }

    pub(super) fn take_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    fn drop_block(&mut self, first: u64) {
        let Some(block) = self.blocks.remove(&first) else { return };
        self.wanted.remove(&first);
        let Some(segment) = self.segments.get_mut(&block.segment) else { return };
        segment.blocks -= 1;
        if segment.blocks == 0 {
            self.bytes -= segment.bytes;
            self.segments.remove(&block.segment);
            self.current = self.current.filter(|current| *current != block.segment);
            self.orders.push(Order::Free(block.segment));
        }
    }
}
