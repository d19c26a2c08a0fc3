//! The call operator's state: rows whose request has not ended, and ended ones that were not sent on.
//!
//! A row is put here before it is submitted, and leaves when its result is given out by [`Pending::emit`]. Entries are
//! kept by group (the source split) and sequence, which together with the operator are the request id. Pure.
//!
//! Ordered: the rows of a group leave in the order of their sequence; groups don't wait for one another. Unordered: as
//! results come, within a watermark segment. In both a watermark stays behind the rows that came before it.

mod block;
mod gather;
mod saved;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use arrow_array::RecordBatch;
use pelton_core::{Error, RequestId, Result};

use crate::batch::Batch;
use crate::plan::Order;
use block::{Block, Collected, Slot};
pub(crate) use gather::{Emission, Shape, nullable};
pub(crate) use saved::{SavedLane, SavedRow};

/// A streamed answer of this size is taken however small the budget is.
const LEAST: u64 = 1 << 20;

/// The rows of one group.
struct Lane {
    /// Where its rows go on to; another number than the group where ids carry the generation.
    split: u64,
    next: u64,
    blocks: VecDeque<Block>,
}

/// The rows between two watermarks.
struct Segment {
    open: usize,
    /// The watermark that ends it, once it has come.
    end: Option<i64>,
}

/// Rows that were taken in together: their first sequence, to number the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) group: u64,
    pub(crate) first: u64,
    pub(crate) count: usize,
}

/// Rows that wait for their outcome, to submit again after a restore.
pub(crate) struct Unfinished {
    pub(crate) ids: Vec<RequestId>,
    pub(crate) rows: RecordBatch,
}

pub(crate) struct Pending {
    operator: u32,
    order: Order,
    shape: Shape,
    lanes: BTreeMap<u64, Lane>,
    /// Groups that may have something to emit.
    ready: BTreeSet<u64>,
    segments: VecDeque<Segment>,
    /// The number of the first of `segments`.
    first_segment: u64,
    rows: u64,
    bytes: u64,
    /// Those of them that are results.
    results: u64,
    budget: u64,
}

impl Pending {
    pub(crate) fn new(operator: u32, order: Order, shape: Shape, budget: u64) -> Self {
        Pending {
            operator,
            order,
            shape,
            lanes: BTreeMap::new(),
            ready: BTreeSet::new(),
            segments: VecDeque::from([Segment { open: 0, end: None }]),
            first_segment: 0,
            rows: 0,
            bytes: 0,
            results: 0,
            budget,
        }
    }

    /// Whether no more is to be taken in. One batch is always taken, however big.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= self.budget
    }

    /// Whether no more parts of streams are to be taken in but those of one, so that it can end.
    pub(crate) fn is_overfull(&self) -> bool {
        self.results >= self.budget
    }

    /// Bytes of the parts of a streamed answer of which the last is not there.
    pub(crate) fn partial(&mut self, id: RequestId) -> u64 {
        let found = self.lanes.get_mut(&id.group).and_then(|lane| lane.find(id.sequence));
        found.map_or(0, |(block, row)| block.partial(row))
    }

    /// Refuses a part with which a streamed answer would be larger than all that may be held here: the parts of a request leave
    /// together, once the last one is there.
    pub(crate) fn check_size(&mut self, id: RequestId, rows: &RecordBatch) -> Result<()> {
        let part = block::bytes(rows);
        let before = self.partial(id);
        let limit = self.budget.max(LEAST);
        // The first part may be as large as a message, like the answer of a method that does not stream.
        if before == 0 || before + part <= limit {
            return Ok(());
        }
        Err(Error::limit(format!(
            "a streamed answer is larger than {}, which is what a call operator may hold (`pending_bytes` of the job's settings); \
             its parts leave once the last one is there",
            pelton_core::Bytes(limit)
        ))
        .with_fate(pelton_core::Fate::Executed))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Rows that were taken in and not given out.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes rows in, and numbers them.
    pub(crate) fn add(&mut self, group: u64, batch: Batch) -> Taken {
        let count = batch.rows.num_rows();
        let bytes = batch.bytes();
        let lane =
            self.lanes.entry(group).or_insert(Lane { split: batch.split, next: 0, blocks: VecDeque::new() });
        let taken = Taken { group, first: lane.next, count };
        lane.next += count as u64;
        let segment = self.first_segment + self.segments.len() as u64 - 1;
        let sequences = (taken.first..lane.next).collect();
        lane.blocks.push_back(Block::new(segment, sequences, batch.rows, bytes));
        self.grow(count, bytes);
        taken
    }

    fn grow(&mut self, rows: usize, bytes: u64) {
        self.segments.back_mut().expect("there always is one").open += rows;
        self.rows += rows as u64;
        self.bytes += bytes;
    }

    /// What came for a request. Says whether it ended it; what nothing waits for is dropped.
    pub(crate) fn finish(&mut self, id: RequestId, rows: Result<RecordBatch>, last: bool) -> bool {
        let Some(lane) = self.lanes.get_mut(&id.group) else {
            return false;
        };
        let Some((block, row)) = lane.find(id.sequence) else {
            return false;
        };
        let (ended, bytes) = block.put(row, rows, last);
        self.bytes = self.bytes.saturating_add_signed(bytes);
        self.results = self.results.saturating_add_signed(bytes);
        if ended {
            self.ready.insert(id.group);
        }
        ended
    }

    /// A watermark comes after all rows that were taken in so far. [`Pending::emit`] gives it out.
    pub(crate) fn watermark(&mut self, watermark: i64) {
        self.segments.back_mut().expect("there always is one").end = Some(watermark);
        self.segments.push_back(Segment { open: 0, end: None });
    }

    /// The next thing to send on, if there is one: rows of one group, as many as are ready and fit well into a batch.
    pub(crate) fn emit(&mut self) -> Result<Option<Emission>> {
        loop {
            if let Some(watermark) = self.passed() {
                return Ok(Some(Emission::Watermark(watermark)));
            }
            let Some(group) = self.ready.first().copied() else {
                return Ok(None);
            };
            let limit = match self.order {
                Order::Ordered => u64::MAX,
                Order::Unordered => self.first_segment,
            };
            let lane = self.lanes.get_mut(&group).expect("groups that are ready have a lane");
            let mut gather = gather::Gather::new(self.operator, group);
            for (segment, collected) in lane.collect(self.order, limit, &mut gather) {
                let Collected { rows, bytes, results } = collected;
                self.segments[(segment - self.first_segment) as usize].open -= rows;
                self.rows -= rows as u64;
                self.bytes = self.bytes.saturating_sub(bytes);
                self.results = self.results.saturating_sub(results);
            }
            if !gather.is_full() {
                self.ready.remove(&group);
            }
            if !gather.is_empty() {
                return gather.build(lane.split, &self.shape).map(Some);
            }
        }
    }

    /// The watermark that ends the first segment, once none of its rows is left.
    fn passed(&mut self) -> Option<i64> {
        let first = self.segments.front()?;
        let watermark = (first.open == 0).then_some(first.end)??;
        self.segments.pop_front();
        self.first_segment += 1;
        // What finished early in the next segment may leave now.
        self.ready.extend(self.lanes.iter().filter(|(_, l)| !l.blocks.is_empty()).map(|(group, _)| *group));
        Some(watermark)
    }

    /// The ids of all requests that have not ended.
    pub(crate) fn unfinished_ids(&self) -> Vec<RequestId> {
        let blocks =
            self.lanes.iter().flat_map(|(group, lane)| lane.blocks.iter().map(move |block| (*group, block)));
        blocks.flat_map(|(group, block)| block.waiting().map(move |(_, s)| self.id(group, s))).collect()
    }

    /// The requests that have not ended, block by block.
    pub(crate) fn unfinished(&self) -> Result<Vec<Unfinished>> {
        let mut found = Vec::new();
        for (group, lane) in &self.lanes {
            for block in &lane.blocks {
                let (rows, ids): (Vec<u32>, Vec<RequestId>) =
                    block.waiting().map(|(row, s)| (row, self.id(*group, s))).unzip();
                if !ids.is_empty() {
                    found.push(Unfinished { ids, rows: gather::pick(&block.rows, &rows)? });
                }
            }
        }
        Ok(found)
    }

    fn id(&self, group: u64, sequence: u64) -> RequestId {
        RequestId { operator: self.operator, group, sequence }
    }

    /// Refuses what is no answer of this method.
    pub(crate) fn check(&self, rows: RecordBatch, last: bool) -> Result<RecordBatch> {
        self.shape.check(rows, last)
    }

    /// The row of a request, for messages.
    pub(crate) fn show(&mut self, id: RequestId) -> Option<String> {
        let (block, row) = self.lanes.get_mut(&id.group)?.find(id.sequence)?;
        Some(crate::row::show(&block.rows, row))
    }

    /// Everything, for a checkpoint.
    pub(crate) fn save(&self) -> Result<Vec<SavedLane>> {
        self.lanes.iter().map(|(group, lane)| lane.save(*group, &self.shape)).collect()
    }

    /// Puts a saved lane back. Its rows are before all that comes.
    pub(crate) fn restore(&mut self, saved: SavedLane) -> Result<()> {
        let group = saved.group;
        let (lane, rows, bytes, results) = Lane::restore(saved, self.first_segment)?;
        self.lanes.insert(group, lane);
        self.ready.insert(group);
        self.grow(rows, bytes + results);
        self.results += results;
        Ok(())
    }
}

impl Lane {
    fn find(&mut self, sequence: u64) -> Option<(&mut Block, usize)> {
        let at = self.blocks.partition_point(|b| b.last() < sequence);
        let block = self.blocks.get_mut(at)?;
        let row = block.row(sequence)?;
        Some((block, row))
    }

    /// Moves what may leave into `gather`; says how much, by segment.
    fn collect(&mut self, order: Order, limit: u64, gather: &mut gather::Gather) -> Vec<(u64, Collected)> {
        let mut all = Vec::new();
        for block in &mut self.blocks {
            if gather.is_full() || block.segment > limit {
                break;
            }
            all.push((block.segment, block.collect(order, gather)));
            if order == Order::Ordered && !block.is_done() {
                break;
            }
        }
        self.blocks.retain(|b| !b.is_done());
        all
    }

    fn save(&self, group: u64, shape: &Shape) -> Result<SavedLane> {
        let mut saved = SavedLane { group, split: self.split, next: self.next, ..SavedLane::default() };
        let mut rows = Vec::new();
        let mut results = Vec::new();
        for block in &self.blocks {
            let mut kept = Vec::new();
            for (row, slot) in block.slots.iter().enumerate() {
                let state = match slot {
                    Slot::Gone => continue,
                    Slot::Waiting | Slot::Partial(..) => SavedRow::Waiting,
                    Slot::Failed(e) => SavedRow::failed(e),
                    Slot::Done(parts) => {
                        results.extend(parts.iter().filter(|p| p.num_rows() > 0).cloned());
                        SavedRow::Done { rows: parts.iter().map(|p| p.num_rows() as u32).sum() }
                    }
                };
                kept.push(row as u32);
                saved.push(block.sequences[row], state);
            }
            if !kept.is_empty() {
                rows.push(gather::pick(&block.rows, &kept)?);
            }
        }
        saved.rows = gather::join(&rows)?;
        saved.results = gather::join(&results)?.map(|r| shape.plain(r)).transpose()?;
        Ok(saved)
    }

    fn restore(saved: SavedLane, segment: u64) -> Result<(Lane, usize, u64, u64)> {
        let mut lane = Lane { split: saved.split, next: saved.next, blocks: VecDeque::new() };
        let Some(rows) = saved.rows.clone() else {
            return Ok((lane, 0, 0, 0));
        };
        let batch = Batch { split: saved.split, rows };
        let bytes = batch.bytes();
        let mut block = Block::new(segment, saved.sequences(), batch.rows, bytes);
        let mut more = 0;
        let mut at = 0;
        for (row, state) in saved.states().enumerate() {
            let result = match state {
                SavedRow::Waiting => continue,
                SavedRow::Failed { .. } => Err(state.error().expect("it failed")),
                SavedRow::Done { rows: 0 } => Ok(batch_of_none(&block.rows)),
                SavedRow::Done { rows } => {
                    let results = saved.results.as_ref().filter(|r| r.num_rows() >= at + *rows as usize);
                    let results = results
                        .ok_or_else(|| Error::storage("the checkpoint lacks results it should have"))?;
                    at += *rows as usize;
                    Ok(results.slice(at - *rows as usize, *rows as usize))
                }
            };
            more += block.put(row, result, true).1;
        }
        let count = block.slots.len();
        lane.blocks.push_back(block);
        Ok((lane, count, bytes, more.max(0) as u64))
    }
}

/// The answer of a request that ended without rows; its columns are never looked at.
fn batch_of_none(rows: &RecordBatch) -> RecordBatch {
    rows.slice(0, 0)
}
