//! A lane as it stands in a checkpoint.

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_schema::DataType;
use pelton_core::{Error, Fate, Kind, Result, Retry};
use serde::{Deserialize, Serialize};

/// One group's counter and entries.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SavedLane {
    pub(crate) group: u64,
    pub(crate) split: u64,
    pub(crate) next: u64,
    /// Its place among the lanes of its split, the oldest first. Only where ids carry the generation there are several.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) turn: u64,
    /// Runs of sequences: first, count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) sequences: Vec<(u64, u64)>,
    #[serde(default, skip_serializing_if = "States::is_empty")]
    pub(super) states: States,
    /// The rows as they came in, one an entry, and batch by batch: one that none of whose rows has left is the same in the next checkpoint. In
    /// pieces of their own.
    #[serde(skip)]
    pub(crate) rows: Vec<RecordBatch>,
    /// The results of those that are done, in order.
    #[serde(skip)]
    pub(crate) results: Option<RecordBatch>,
    /// What is stored for retractions of its split. With the newest lane of a split.
    #[serde(default, skip_serializing_if = "SavedStored::is_empty")]
    pub(crate) stored: SavedStored,
}

/// The keys of a changelog whose results are stored, of one split.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SavedStored {
    /// One a key; none waits.
    pub(super) states: States,
    /// Rising; in one column of text. In a file of their own, as the results.
    #[serde(skip)]
    pub(crate) keys: Option<RecordBatch>,
    #[serde(skip)]
    pub(crate) results: Option<RecordBatch>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SavedRow {
    /// For its answer, or a retraction for its turn: the row says which.
    Waiting,
    Done {
        rows: u32,
    },
    Failed {
        kind: Kind,
        fate: Fate,
        retry: Retry,
        message: String,
    },
}

/// Runs of states: state, count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct States(Vec<(SavedRow, u64)>);

impl SavedRow {
    pub(super) fn failed(e: &Error) -> Self {
        SavedRow::Failed { kind: e.kind(), fate: e.fate(), retry: e.retry(), message: e.message().to_owned() }
    }

    pub(super) fn error(&self) -> Option<Error> {
        match self {
            SavedRow::Failed { kind, fate, retry, message } => {
                Some(Error::new(*kind, *fate, *retry, message.clone()))
            }
            _ => None,
        }
    }
}

impl States {
    pub(super) fn push(&mut self, state: SavedRow) {
        match self.0.last_mut() {
            Some((last, count)) if *last == state => *count += 1,
            _ => self.0.push((state, 1)),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &SavedRow> {
        self.0.iter().flat_map(|(state, count)| std::iter::repeat_n(state, *count as usize))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    fn result_rows(&self) -> u64 {
        let rows = |state: &SavedRow| {
            if let SavedRow::Done { rows } = state { u64::from(*rows) } else { 0 }
        };
        self.0.iter().map(|(state, count)| rows(state) * count).sum()
    }
}

impl SavedLane {
    pub(super) fn push(&mut self, sequence: u64, state: SavedRow) {
        match self.sequences.last_mut() {
            Some((first, count)) if *first + *count == sequence => *count += 1,
            _ => self.sequences.push((sequence, 1)),
        }
        self.states.push(state);
    }

    pub(super) fn sequences(&self) -> Vec<u64> {
        self.sequences.iter().flat_map(|(first, count)| *first..*first + *count).collect()
    }

    /// How many entries it has.
    pub(crate) fn entries(&self) -> u64 {
        self.states.count()
    }

    /// How many rows of results it has.
    pub(crate) fn result_rows(&self) -> u64 {
        self.states.result_rows()
    }
}

impl SavedStored {
    fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// How many keys it has.
    pub(crate) fn entries(&self) -> u64 {
        self.states.count()
    }

    /// How many rows of results it has.
    pub(crate) fn result_rows(&self) -> u64 {
        self.states.result_rows()
    }

    pub(super) fn keys(&self) -> Result<Vec<String>> {
        let Some(keys) = &self.keys else { return Ok(Vec::new()) };
        match keys.columns() {
            [column] if *column.data_type() == DataType::Utf8 => {
                Ok(column.as_string::<i32>().iter().map(|key| key.unwrap_or_default().to_owned()).collect())
            }
            _ => Err(Error::storage("the keys of its stored results are no column of text")),
        }
    }
}

/// Results that are given back one entry after another.
pub(super) struct Results<'a> {
    rows: Option<&'a RecordBatch>,
    at: usize,
}

impl<'a> Results<'a> {
    pub(super) fn new(rows: Option<&'a RecordBatch>) -> Self {
        Results { rows, at: 0 }
    }

    /// The rows of the next entry, which has so many.
    pub(super) fn next(&mut self, count: u32) -> Result<RecordBatch> {
        let (from, count) = (self.at, count as usize);
        let rows = self.rows.filter(|r| r.num_rows() >= from + count);
        let rows = rows.ok_or_else(|| Error::storage("the checkpoint lacks results it should have"))?;
        self.at += count;
        Ok(rows.slice(from, count))
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}
