//! The results that a call has given out for the rows of a changelog, to give them out again when those are taken back.
//!
//! By split and key. Pure. Results are copied out of the batches they came in: a slice would keep all of its batch.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray, UInt32Array};
use arrow_schema::{DataType, Field, Schema};
use pelton_core::{Bytes, Error, Result};

use super::block::Slot;
use super::change::Change;
use super::gather::{Shape, join};
use super::saved::{Results, SavedRow, SavedStored};
use crate::topology::ChangelogShape;

/// What one key takes besides its own text and its results, about: its places in the maps and its batch.
const ENTRY: u64 = 256;
/// What a column of results takes besides its array and values, about.
const COLUMN: u64 = 64;

enum Kept {
    /// None where the answer had no rows.
    Rows(Option<RecordBatch>),
    Failed(Error),
}

struct Entry {
    kept: Kept,
    bytes: u64,
}

pub(crate) struct Stored {
    /// The call, for messages.
    call: String,
    shape: ChangelogShape,
    /// What stands for a failed row, where the error policy says so.
    default: Option<RecordBatch>,
    splits: BTreeMap<u64, BTreeMap<String, Entry>>,
    keys: u64,
    bytes: u64,
}

impl Stored {
    pub(crate) fn new(call: &str, shape: ChangelogShape, default: Option<RecordBatch>) -> Self {
        Stored { call: call.to_owned(), shape, default, splits: BTreeMap::new(), keys: 0, bytes: 0 }
    }

    pub(super) fn shape(&self) -> &ChangelogShape {
        &self.shape
    }

    pub(super) fn keys(&self) -> u64 {
        self.keys
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A row is given out: its result is stored, or it is a retraction and gets what is stored.
    pub(super) fn settle(&mut self, split: u64, rows: &RecordBatch, row: usize, slot: Slot) -> Result<Slot> {
        match self.shape.change(rows, row) {
            // What became of a row that says nothing is no result of any key.
            Err(_) => Ok(slot),
            Ok(Change::Insert(key)) => {
                self.put(split, key, Kept::of(&slot)?);
                self.check_limit()?;
                Ok(slot)
            }
            Ok(Change::Retract(key)) => Ok(match (self.take(split, &key), &self.default) {
                (Some(kept), _) => kept.into_slot(),
                (None, Some(default)) => Slot::Done([default.clone()].into()),
                (None, None) => Slot::Failed(self.shape.unknown(rows, &key)),
            }),
        }
    }

    fn put(&mut self, split: u64, key: String, kept: Kept) {
        let bytes = ENTRY + key.len() as u64 + kept.bytes();
        let before = self.splits.entry(split).or_default().insert(key, Entry { kept, bytes });
        self.keys += u64::from(before.is_none());
        self.bytes = self.bytes + bytes - before.map_or(0, |b| b.bytes);
    }

    fn take(&mut self, split: u64, key: &str) -> Option<Kept> {
        let of = self.splits.get_mut(&split)?;
        let entry = of.remove(key)?;
        if of.is_empty() {
            self.splits.remove(&split);
        }
        self.keys -= 1;
        self.bytes -= entry.bytes;
        Some(entry.kept)
    }

    fn check_limit(&self) -> Result<()> {
        let (bytes, limit) = (Bytes(self.bytes), self.shape.max_bytes);
        if bytes <= limit {
            return Ok(());
        }
        Err(Error::limit(format!(
            "call `{}` has stored the results of {} keys of its changelog, {bytes}, which is more than the {limit} that one of its tasks may \
             store; give its changelog a higher `max_bytes` or the call more tasks, and let the source delete (-D) rows that nobody needs",
            self.call, self.keys
        )))
    }

    pub(super) fn save(&self, split: u64, shape: &Shape) -> Result<SavedStored> {
        let mut saved = SavedStored::default();
        let Some(of) = self.splits.get(&split) else {
            return Ok(saved);
        };
        let mut results = Vec::new();
        for entry in of.values() {
            saved.states.push(match &entry.kept {
                Kept::Failed(e) => SavedRow::failed(e),
                Kept::Rows(None) => SavedRow::Done { rows: 0 },
                Kept::Rows(Some(rows)) => {
                    results.push(rows.clone());
                    SavedRow::Done { rows: rows.num_rows() as u32 }
                }
            });
        }
        let keys: ArrayRef = Arc::new(StringArray::from_iter_values(of.keys()));
        let schema = Schema::new(vec![Field::new("key", DataType::Utf8, false)]);
        saved.keys = Some(RecordBatch::try_new(Arc::new(schema), vec![keys])?);
        saved.results = join(&results)?.map(|r| shape.plain(r)).transpose()?;
        Ok(saved)
    }

    pub(super) fn restore(&mut self, split: u64, saved: SavedStored) -> Result<()> {
        let mut results = Results::new(saved.results.as_ref());
        for (key, state) in saved.keys()?.into_iter().zip(saved.states.iter()) {
            let kept = match state {
                SavedRow::Done { rows: 0 } => Kept::Rows(None),
                SavedRow::Done { rows } => Kept::Rows(Some(own(&results.next(*rows)?)?)),
                failed => Kept::Failed(failed.error().ok_or_else(|| {
                    Error::storage("the checkpoint has a key whose stored result is still waited for")
                })?),
            };
            self.put(split, key, kept);
        }
        self.check_limit()
    }
}

impl Kept {
    fn of(slot: &Slot) -> Result<Kept> {
        Ok(match slot {
            Slot::Done(parts) => {
                let parts: Vec<RecordBatch> = parts.iter().filter(|p| p.num_rows() > 0).cloned().collect();
                Kept::Rows(join(&parts)?.map(|rows| own(&rows)).transpose()?)
            }
            Slot::Failed(e) => Kept::Failed(e.clone()),
            Slot::Waiting | Slot::Partial(..) | Slot::Answered { .. } | Slot::Retraction | Slot::Gone => {
                unreachable!("only what ended is given out, and answers to several are taken apart before")
            }
        })
    }

    fn into_slot(self) -> Slot {
        match self {
            Kept::Rows(rows) => Slot::Done(rows.into_iter().collect()),
            Kept::Failed(e) => Slot::Failed(e),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Kept::Rows(None) => 0,
            Kept::Rows(Some(rows)) => {
                rows.get_array_memory_size() as u64 + COLUMN * rows.num_columns() as u64
            }
            Kept::Failed(e) => e.message().len() as u64,
        }
    }
}

/// The same rows in buffers of their own.
fn own(rows: &RecordBatch) -> Result<RecordBatch> {
    let all = UInt32Array::from_iter_values(0..rows.num_rows() as u32);
    Ok(arrow_select::take::take_record_batch(rows, &all)?)
}
