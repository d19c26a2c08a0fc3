//! Rows of one group that arrived together, and what became of each.

use std::collections::VecDeque;
use std::sync::Arc;

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
    Partial(VecDeque<RecordBatch>, u64),
    /// The answer is this row of an answer to several.
    Answered {
        rows: Arc<RecordBatch>,
        at: u32,
        bytes: u64,
    },
    /// What of the answer is not given out.
    Done(VecDeque<RecordBatch>),
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
    ended: VecDeque<u32>,
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
        Block { segment, sequences, rows, slots, ended: VecDeque::new(), cursor: 0, gone: 0, bytes }
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
            .filter(|(_, (s, _))| matches!(s, Slot::Waiting | Slot::Partial(..)))
            .map(|(row, (_, s))| (row as u32, *s))
    }

    /// Notes what came for a row: whether that ended it, and how many bytes more there are now.
    pub(super) fn put(&mut self, row: usize, result: Result<RecordBatch>, last: bool) -> (bool, i64) {
        let slot = &mut self.slots[row];
        let (mut parts, before) = match slot {
            Slot::Waiting => (VecDeque::new(), 0),
            Slot::Partial(parts, bytes) => (std::mem::take(parts), *bytes),
            Slot::Retraction | Slot::Answered { .. } | Slot::Done(_) | Slot::Failed(_) | Slot::Gone => {
                return (false, 0);
            }
        };
        let (more, ended) = match result {
            Ok(rows) => {
                let bytes = bytes(&rows);
                parts.push_back(rows);
                *slot = if last { Slot::Done(parts) } else { Slot::Partial(parts, before + bytes) };
                (bytes as i64, last)
            }
            Err(e) => {
                *slot = Slot::Failed(e);
                (-(before as i64), true)
            }
        };
        if ended {
            self.ended.push_back(row as u32);
        }
        self.bytes = self.bytes.saturating_add_signed(more);
        (ended, more)
    }

    /// Notes the whole answer of a row: a row of `rows`, and its share of their bytes. Says whether the row waited for it.
    pub(super) fn put_row(&mut self, row: usize, rows: &Arc<RecordBatch>, at: usize, bytes: u64) -> bool {
        if !matches!(self.slots[row], Slot::Waiting) {
            return false;
        }
        self.slots[row] = Slot::Answered { rows: rows.clone(), at: at as u32, bytes };
        self.ended.push_back(row as u32);
        self.bytes += bytes;
        true
    }

    /// Bytes of the answer that came so far, while it is not whole.
    pub(super) fn partial(&self, row: usize) -> u64 {
        if let Slot::Partial(_, bytes) = &self.slots[row] { *bytes } else { 0 }
    }

    /// Moves what ended into `gather`, in order up to the first that did not, or all, as far as it has room. A large answer leaves in
    /// pieces, and what is left of it stays. Where there are retractions, what is given out is `stored` on the way, once: there each
    /// answer leaves whole.
    pub(super) fn collect(
        &mut self,
        order: Order,
        split: u64,
        mut stored: Option<&mut Stored>,
        gather: &mut Gather,
    ) -> Result<Collected> {
        let mut collected = Collected::default();
        if order == Order::Unordered {
            self.ended.make_contiguous().sort_unstable();
        }
        while !gather.is_full() {
            let next = match order {
                Order::Ordered => self.slots.get(self.cursor).filter(|s| s.has_ended()).map(|_| self.cursor),
                Order::Unordered => self.ended.front().map(|row| *row as usize),
            };
            let Some(row) = next else { break };
            let slot = &mut self.slots[row];
            // What a retraction is given comes from what is stored, and was not counted here.
            let counted = matches!(slot, Slot::Done(_) | Slot::Answered { .. });
            if let Some(stored) = &mut stored {
                let ended = match std::mem::replace(slot, Slot::Gone) {
                    Slot::Answered { rows, at, .. } => Slot::Done([rows.slice(at as usize, 1)].into()),
                    ended => ended,
                };
                *slot = stored.settle(split, &self.rows, row, ended)?;
            }
            if let Slot::Done(parts) = slot {
                let freed = gather.parts(row as u32, &self.rows, parts, stored.is_some());
                collected.results += if counted { freed } else { 0 };
                if !parts.is_empty() {
                    break;
                }
            }
            if let Slot::Answered { rows, at, bytes } = slot {
                gather.row(row as u32, &self.rows, rows, *at as usize, *bytes);
                collected.results += *bytes;
            }
            if let Slot::Failed(error) = std::mem::replace(&mut self.slots[row], Slot::Gone) {
                gather.failed(row as u32, self.sequences[row], &self.rows, error);
            }
            collected.rows += 1;
            self.cursor += usize::from(order == Order::Ordered);
            self.ended.pop_front();
        }
        self.gone += collected.rows;
        gather.end_block(&self.rows);
        self.bytes = self.bytes.saturating_sub(collected.results);
        collected.bytes = collected.results;
        if self.is_done() {
            collected.bytes += std::mem::take(&mut self.bytes);
        }
        Ok(collected)
    }
}

/// What was given out: rows to their end, bytes that this freed, and those of them that were results.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Collected {
    pub(super) rows: usize,
    pub(super) bytes: u64,
    pub(super) results: u64,
}

impl Slot {
    fn has_ended(&self) -> bool {
        matches!(self, Slot::Retraction | Slot::Answered { .. } | Slot::Done(_) | Slot::Failed(_))
    }
}

pub(super) fn bytes(rows: &RecordBatch) -> u64 {
    Batch { split: 0, rows: rows.clone() }.bytes()
}
