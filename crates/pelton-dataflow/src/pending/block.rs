//! Rows of one group that arrived together, and what became of each.

use arrow_array::RecordBatch;
use pelton_core::{Error, Result};

use super::gather::Gather;
use super::stored::Stored;
use crate::batch::Batch;
use crate::plan::Order;

pub(super) enum Slot {
    Waiting,
    /// It takes back what an earlier row was given, and gets that when its turn has come. Never sent.
    Retraction,
    /// Some rows of a streaming answer. Not saved: a request that is sent again is answered from the begin.
    Partial(Vec<RecordBatch>),
    Done(Vec<RecordBatch>),
    Failed(Error),
    /// Given out.
    Gone,
}

pub(super) struct Block {
    pub(super) segment: u64,
    /// One a row, rising.
    pub(super) sequences: Vec<u64>,
    /// As they arrived: rows are never copied to be kept.
    pub(super) rows: RecordBatch,
    pub(super) slots: Vec<Slot>,
    /// Rows that ended and are not given out, as they ended.
    ended: Vec<u32>,
    /// Rows before this one are given out, where order is kept.
    cursor: usize,
    gone: usize,
    /// What it counts for: its rows until the last of them is given out, because they share buffers, and results.
    bytes: u64,
}

impl Block {
    /// `slots`: how each row begins.
    pub(super) fn new(
        segment: u64,
        sequences: Vec<u64>,
        rows: RecordBatch,
        bytes: u64,
        slots: Vec<Slot>,
    ) -> Self {
        Block { segment, sequences, rows, slots, ended: Vec::new(), cursor: 0, gone: 0, bytes }
    }

    pub(super) fn last(&self) -> u64 {
        self.sequences.last().copied().unwrap_or(0)
    }

    pub(super) fn row(&self, sequence: u64) -> Option<usize> {
        // Nearly always they are consecutive.
        let guess = sequence.checked_sub(*self.sequences.first()?)? as usize;
        if self.sequences.get(guess) == Some(&sequence) {
            return Some(guess);
        }
        self.sequences.binary_search(&sequence).ok()
    }

    pub(super) fn is_done(&self) -> bool {
        self.gone == self.slots.len()
    }

    /// Rows that have not ended, with their sequence.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let slots = self.slots.iter().zip(&self.sequences).enumerate();
        slots
            .filter(|(_, (s, _))| matches!(s, Slot::Waiting | Slot::Partial(_)))
            .map(|(row, (_, s))| (row as u32, *s))
    }

    /// Notes what came for a row: whether that ended it, and how many bytes more there are now.
    pub(super) fn put(&mut self, row: usize, result: Result<RecordBatch>, last: bool) -> (bool, i64) {
        let slot = &mut self.slots[row];
        let mut parts = match slot {
            Slot::Waiting => Vec::new(),
            Slot::Partial(parts) => std::mem::take(parts),
            Slot::Retraction | Slot::Done(_) | Slot::Failed(_) | Slot::Gone => return (false, 0),
        };
        let before = bytes(&parts);
        match result {
            Ok(rows) => {
                parts.push(rows);
                let after = bytes(&parts);
                *slot = if last { Slot::Done(parts) } else { Slot::Partial(parts) };
                self.grow(before, after, row, last)
            }
            Err(e) => {
                *slot = Slot::Failed(e);
                self.grow(before, 0, row, true)
            }
        }
    }

    fn grow(&mut self, before: u64, after: u64, row: usize, ended: bool) -> (bool, i64) {
        if ended {
            self.ended.push(row as u32);
        }
        let more = after as i64 - before as i64;
        self.bytes = self.bytes.saturating_add_signed(more);
        (ended, more)
    }

    /// Moves what ended into `gather`, in order up to the first that did not, or all: how many rows, and bytes freed. Where there are
    /// retractions, what is given out is `stored` on the way.
    pub(super) fn collect(
        &mut self,
        order: Order,
        split: u64,
        mut stored: Option<&mut Stored>,
        gather: &mut Gather,
    ) -> Result<(usize, u64)> {
        let mut picked = Vec::new();
        match order {
            Order::Ordered => {
                while picked.len() < gather.room() && self.slots.get(self.cursor).is_some_and(Slot::has_ended)
                {
                    picked.push(self.cursor as u32);
                    self.cursor += 1;
                }
            }
            Order::Unordered => {
                self.ended.sort_unstable();
                picked.extend(self.ended.drain(..self.ended.len().min(gather.room())));
            }
        }
        self.gone += picked.len();
        let count = picked.len();
        let mut freed = 0;
        for row in &picked {
            let slot = std::mem::replace(&mut self.slots[*row as usize], Slot::Gone);
            if let Slot::Done(parts) = &slot {
                freed += bytes(parts);
            }
            let slot = match &mut stored {
                Some(stored) => stored.settle(split, &self.rows, *row as usize, slot)?,
                None => slot,
            };
            gather.slot(*row, self.sequences[*row as usize], &self.rows, slot);
        }
        gather.end_block(&self.rows);
        self.bytes = self.bytes.saturating_sub(freed);
        if self.is_done() {
            freed += std::mem::take(&mut self.bytes);
        }
        Ok((count, freed))
    }
}

impl Slot {
    fn has_ended(&self) -> bool {
        matches!(self, Slot::Retraction | Slot::Done(_) | Slot::Failed(_))
    }
}

fn bytes(parts: &[RecordBatch]) -> u64 {
    parts.iter().map(|p| Batch { split: 0, rows: p.clone() }.bytes()).sum()
}
