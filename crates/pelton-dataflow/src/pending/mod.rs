//! The call operator's state: rows whose request has not ended, and ended ones that were not sent on.
//!
//! A row is put here before it is submitted, and leaves when its result is given out by [`Pending::emit`]. Entries are
//! kept by group (the source split) and sequence, which together with the operator are the request id. Pure.
//!
//! Ordered: the rows of a group leave in the order of their sequence; groups of different splits don't wait for one another. Where ids carry the
//! generation, a split has a group for each, and the younger waits for the older. Unordered: as results come, within a watermark segment. In
//! both a watermark stays behind the rows that came before it.
//!
//! Of a changelog, what is given out is stored by split and key ([`Stored`]). Retractions are never submitted; as rows leave in order, what a
//! retraction takes back has been given out when its turn comes.

mod block;
mod change;
mod gather;
mod saved;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use arrow_array::RecordBatch;
use pelton_core::{Error, RequestId, Result};

use crate::batch::Batch;
use crate::plan::Order;
use block::{Block, Collected, Slot};
pub(crate) use gather::{Emission, Shape, nullable, pick};
use saved::Results;
pub(crate) use saved::{SavedLane, SavedRow};
pub(crate) use stored::Stored;

/// A streamed answer of this size is taken however small the budget is.
const LEAST: u64 = 1 << 20;

/// The rows of one group.
struct Lane {
    /// Where its rows go on to; another number than the group where ids carry the generation.
    split: u64,
    next: u64,
    /// Its place among the lanes of its split.
    turn: u64,
    blocks: VecDeque<Block>,
}

/// The rows between two watermarks.
struct Segment {
    open: usize,
    /// The watermark that ends it, once it has come.
    end: Option<i64>,
}

/// Rows that wait for their outcome, to submit.
pub(crate) struct Unfinished {
    pub(crate) ids: Vec<RequestId>,
    pub(crate) rows: RecordBatch,
}

pub(crate) struct Pending {
    operator: u32,
    order: Order,
    shape: Shape,
    lanes: BTreeMap<u64, Lane>,
    /// The groups of each split, the oldest first.
    splits: BTreeMap<u64, Vec<u64>>,
    /// Where the input is a changelog.
    stored: Option<Stored>,
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
    most_rows: u64,
}

impl Pending {
    pub(crate) fn new(
        operator: u32,
        order: Order,
        shape: Shape,
        budget: u64,
        stored: Option<Stored>,
    ) -> Self {
        Pending {
            operator,
            order,
            shape,
            lanes: BTreeMap::new(),
            splits: BTreeMap::new(),
            stored,
            ready: BTreeSet::new(),
            segments: VecDeque::from([Segment { open: 0, end: None }]),
            first_segment: 0,
            rows: 0,
            bytes: 0,
            results: 0,
            budget,
            most_rows: u64::MAX,
        }
    }

    /// The same with a limit on the number of rows, too.
    pub(crate) fn with_most_rows(self, most: Option<u64>) -> Self {
        Pending { most_rows: most.unwrap_or(u64::MAX), ..self }
    }

    /// Whether no more is to be taken in. One batch is always taken, however big.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= self.budget || self.rows >= self.most_rows
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

    /// Keys whose results are stored, and what they take.
    pub(crate) fn stored(&self) -> (u64, u64) {
        self.stored.as_ref().map_or((0, 0), |s| (s.keys(), s.bytes()))
    }

    /// Why a row cannot be sent, where that is for what it does in its changelog.
    pub(crate) fn refusal(&self, rows: &RecordBatch, row: usize) -> Option<Error> {
        self.stored.as_ref()?.shape().change(rows, row).err()
    }

    /// Takes rows in, and numbers them. Gives back those to submit.
    pub(crate) fn add(&mut self, group: u64, batch: Batch) -> Result<Unfinished> {
        let Batch { split, rows } = &batch;
        let (count, bytes, slots) = (rows.num_rows(), batch.bytes(), self.slots(rows));
        if !self.lanes.contains_key(&group) {
            let before = self.splits.get(split).and_then(|groups| groups.last());
            let turn = before.map_or(0, |g| self.lanes[g].turn + 1);
            self.insert(group, Lane { split: *split, next: 0, turn, blocks: VecDeque::new() });
        }
        let lane = self.lanes.get_mut(&group).expect("it is there now");
        let sequences = (lane.next..lane.next + count as u64).collect();
        lane.next += count as u64;
        let segment = self.first_segment + self.segments.len() as u64 - 1;
        let block = Block::new(segment, sequences, batch.rows, bytes, slots);
        let to_submit = unfinished(self.operator, group, &block)?;
        lane.blocks.push_back(block);
        if to_submit.ids.len() < count {
            // Retractions: no outcome will come for them.
            self.ready.insert(group);
        }
        self.grow(count, bytes);
        Ok(to_submit)
    }

    fn slots(&self, rows: &RecordBatch) -> Vec<Slot> {
        match &self.stored {
            Some(stored) => stored.shape().slots(rows),
            None => (0..rows.num_rows()).map(|_| Slot::Waiting).collect(),
        }
    }

    fn insert(&mut self, group: u64, lane: Lane) {
        let groups = self.splits.entry(lane.split).or_default();
        let at = groups.partition_point(|g| self.lanes[g].turn <= lane.turn);
        groups.insert(at, group);
        self.lanes.insert(group, lane);
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

    /// Rows came, one for each request from `first` on. Says which of them this ended; what nothing waits for is dropped.
    pub(crate) fn finish_rows(&mut self, first: RequestId, rows: RecordBatch) -> Vec<RequestId> {
        let Some(lane) = self.lanes.get_mut(&first.group) else {
            return Vec::new();
        };
        let each = block::bytes(&rows) / (rows.num_rows() as u64).max(1);
        let answers = Arc::new(rows);
        let mut ended = Vec::with_capacity(answers.num_rows());
        for at in 0..answers.num_rows() {
            let sequence = first.sequence + at as u64;
            let Some((block, row)) = lane.find(sequence) else { continue };
            if block.put_row(row, &answers, at, each) {
                ended.push(RequestId { sequence, ..first });
            }
        }
        let bytes = each * ended.len() as u64;
        self.bytes += bytes;
        self.results += bytes;
        if !ended.is_empty() {
            self.ready.insert(first.group);
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
            if self.order == Order::Ordered && self.is_behind(group) {
                self.ready.remove(&group);
                continue;
            }
            let lane = self.lanes.get_mut(&group).expect("groups that are ready have a lane");
            let mut gather = gather::Gather::new(self.operator, group, &self.shape.kept);
            let had_rows = !lane.blocks.is_empty();
            let by_segment = lane.collect(self.order, limit, self.stored.as_mut(), &mut gather)?;
            if had_rows && lane.blocks.is_empty() {
                // The next of its split may have its turn.
                self.ready.extend(self.splits[&lane.split].iter().filter(|g| **g != group));
            }
            for (segment, collected) in by_segment {
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

    /// Whether an older lane of the same split has rows.
    fn is_behind(&self, group: u64) -> bool {
        let mut older = self.splits[&self.lanes[&group].split].iter().take_while(|g| **g != group);
        older.any(|g| !self.lanes[g].blocks.is_empty())
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
        let id = |group, sequence| RequestId { operator: self.operator, group, sequence };
        blocks.flat_map(|(group, block)| block.waiting().map(move |(_, s)| id(group, s))).collect()
    }

    /// The requests that have not ended, block by block.
    pub(crate) fn unfinished(&self) -> Result<Vec<Unfinished>> {
        let mut found = Vec::new();
        for (group, lane) in &self.lanes {
            for block in &lane.blocks {
                let unfinished = unfinished(self.operator, *group, block)?;
                if !unfinished.ids.is_empty() {
                    found.push(unfinished);
                }
            }
        }
        Ok(found)
    }

    /// Refuses what is no answer of this method.
    pub(crate) fn check(&self, rows: RecordBatch, last: bool) -> Result<RecordBatch> {
        self.shape.check(rows, last)
    }

    /// Refuses rows of which none is an answer of this method.
    pub(crate) fn check_rows(&self, rows: &RecordBatch) -> Result<()> {
        self.shape.check_columns(rows)
    }

    /// The row of a request, for messages.
    pub(crate) fn show(&mut self, id: RequestId) -> Option<String> {
        let (block, row) = self.lanes.get_mut(&id.group)?.find(id.sequence)?;
        Some(crate::row::show(&block.rows, row))
    }

    /// Everything, for a checkpoint.
    pub(crate) fn save(&self) -> Result<Vec<SavedLane>> {
        let save = |(group, lane): (&u64, &Lane)| {
            let mut saved = lane.save(*group, &self.shape)?;
            if let Some(stored) =
                self.stored.as_ref().filter(|_| self.splits[&lane.split].last() == Some(group))
            {
                saved.stored = stored.save(lane.split, &self.shape)?;
            }
            Ok(saved)
        };
        self.lanes.iter().map(save).collect()
    }

    /// Puts a saved lane back. Its rows are before all that comes.
    pub(crate) fn restore(&mut self, mut saved: SavedLane) -> Result<()> {
        let group = saved.group;
        if let Some(stored) = &mut self.stored {
            stored.restore(saved.split, std::mem::take(&mut saved.stored))?;
        }
        let (lane, rows, bytes, results) = Lane::restore(saved, self.first_segment, |rows| self.slots(rows))?;
        self.insert(group, lane);
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
    fn collect(
        &mut self,
        order: Order,
        limit: u64,
        mut stored: Option<&mut Stored>,
        gather: &mut gather::Gather,
    ) -> Result<Vec<(u64, Collected)>> {
        let mut all = Vec::new();
        for block in &mut self.blocks {
            if gather.is_full() || block.segment > limit {
                break;
            }
            all.push((block.segment, block.collect(order, self.split, stored.as_deref_mut(), gather)?));
            if order == Order::Ordered && !block.is_done() {
                break;
            }
        }
        self.blocks.retain(|b| !b.is_done());
        Ok(all)
    }

    fn save(&self, group: u64, shape: &Shape) -> Result<SavedLane> {
        let Lane { split, next, turn, .. } = *self;
        let mut saved = SavedLane { group, split, next, turn, ..SavedLane::default() };
        let mut results = Vec::new();
        for block in &self.blocks {
            let mut kept = Vec::new();
            for (row, slot) in block.slots.iter().enumerate() {
                let state = match slot {
                    Slot::Gone => continue,
                    Slot::Waiting | Slot::Partial(..) | Slot::Retraction => SavedRow::Waiting,
                    Slot::Failed(e) => SavedRow::failed(e),
                    Slot::Answered { rows, at, .. } => {
                        results.push(rows.slice(*at as usize, 1));
                        SavedRow::Done { rows: 1 }
                    }
                    Slot::Done(parts) => {
                        results.extend(parts.iter().filter(|p| p.num_rows() > 0).cloned());
                        SavedRow::Done { rows: parts.iter().map(|p| p.num_rows() as u32).sum() }
                    }
                };
                kept.push(row as u32);
                saved.push(block.sequences[row], state);
            }
            if !kept.is_empty() {
                saved.rows.push(gather::pick(&block.rows, &kept)?);
            }
        }
        saved.results = gather::join(&results)?.map(|r| shape.plain(r)).transpose()?;
        Ok(saved)
    }

    /// Rows, bytes of theirs and of their results. `slots` says how rows begin.
    fn restore(
        saved: SavedLane,
        segment: u64,
        slots: impl Fn(&RecordBatch) -> Vec<Slot>,
    ) -> Result<(Lane, usize, u64, u64)> {
        let SavedLane { split, next, turn, .. } = saved;
        let mut lane = Lane { split, next, turn, blocks: VecDeque::new() };
        let (mut sequences, mut states) = (saved.sequences().into_iter(), saved.states.iter());
        let mut results = Results::new(saved.results.as_ref());
        let (mut count, mut bytes, mut more) = (0, 0, 0);
        for rows in &saved.rows {
            let batch = Batch { split, rows: rows.clone() };
            let own = batch.bytes();
            let sequences = sequences.by_ref().take(rows.num_rows()).collect();
            let mut block = Block::new(segment, sequences, batch.rows, own, slots(rows));
            for (row, state) in states.by_ref().take(rows.num_rows()).enumerate() {
                let result = match state {
                    SavedRow::Waiting => continue,
                    SavedRow::Failed { .. } => Err(state.error().expect("it failed")),
                    SavedRow::Done { rows: 0 } => Ok(batch_of_none(&block.rows)),
                    SavedRow::Done { rows } => Ok(results.next(*rows)?),
                };
                more += block.put(row, result, true).1;
            }
            count += block.slots.len();
            bytes += own;
            lane.blocks.push_back(block);
        }
        Ok((lane, count, bytes, more.max(0) as u64))
    }
}

/// The rows of a block that wait for their outcome.
fn unfinished(operator: u32, group: u64, block: &Block) -> Result<Unfinished> {
    let id = |sequence| RequestId { operator, group, sequence };
    let (rows, ids): (Vec<u32>, Vec<RequestId>) = block.waiting().map(|(row, s)| (row, id(s))).unzip();
    Ok(Unfinished { ids, rows: gather::pick(&block.rows, &rows)? })
}

/// The answer of a request that ended without rows; its columns are never looked at.
fn batch_of_none(rows: &RecordBatch) -> RecordBatch {
    rows.slice(0, 0)
}
