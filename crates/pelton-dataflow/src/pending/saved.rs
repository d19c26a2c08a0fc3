//! A lane as it stands in a checkpoint.

use arrow_array::RecordBatch;
use pelton_core::{Error, Fate, Kind, Retry};
use serde::{Deserialize, Serialize};

/// One group's counter and entries.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SavedLane {
    pub(crate) group: u64,
    pub(crate) split: u64,
    pub(crate) next: u64,
    /// Runs of sequences: first, count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) sequences: Vec<(u64, u64)>,
    /// Runs of states: state, count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) states: Vec<(SavedRow, u64)>,
    /// The rows as they came in, one an entry. In files of their own.
    #[serde(skip)]
    pub(crate) rows: Option<RecordBatch>,
    /// The results of those that are done, in order.
    #[serde(skip)]
    pub(crate) results: Option<RecordBatch>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SavedRow {
    Waiting,
    Done { rows: u32 },
    Failed { kind: Kind, fate: Fate, retry: Retry, message: String },
}

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

impl SavedLane {
    pub(super) fn push(&mut self, sequence: u64, state: SavedRow) {
        match self.sequences.last_mut() {
            Some((first, count)) if *first + *count == sequence => *count += 1,
            _ => self.sequences.push((sequence, 1)),
        }
        match self.states.last_mut() {
            Some((last, count)) if *last == state => *count += 1,
            _ => self.states.push((state, 1)),
        }
    }

    pub(super) fn sequences(&self) -> Vec<u64> {
        self.sequences.iter().flat_map(|(first, count)| *first..*first + *count).collect()
    }

    pub(super) fn states(&self) -> impl Iterator<Item = &SavedRow> {
        self.states.iter().flat_map(|(state, count)| std::iter::repeat_n(state, *count as usize))
    }

    /// How many entries it has.
    pub(crate) fn entries(&self) -> u64 {
        self.states.iter().map(|(_, count)| count).sum()
    }

    /// How many rows of results it has.
    pub(crate) fn result_rows(&self) -> u64 {
        let rows = |state: &SavedRow| {
            if let SavedRow::Done { rows } = state { u64::from(*rows) } else { 0 }
        };
        self.states.iter().map(|(state, count)| rows(state) * count).sum()
    }
}
