//! Where rows come from.

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use pelton_core::Result;
use serde::{Deserialize, Serialize};

use crate::batch::RowError;

/// A part of a source that is read in order by one subtask, and from any recorded position again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// The same for the same part in every run: [`stable_hash`](pelton_core::id::stable_hash) of its uri, say.
    pub id: u64,
    pub uri: String,
    /// How much there is to read, for progress; 0 where it is not known.
    pub bytes: u64,
    /// Changes when the content does (size and modification time, an etag); compared for equality only.
    pub version: String,
}

/// A bounded, replayable source. Law: reading a split from a position gives the same rows every time, as long as its
/// version is the same.
pub trait Source: Send + Sync + 'static {
    /// For plans and messages: what is read, from where.
    fn describe(&self) -> String;

    /// The columns of every batch.
    fn schema(&self) -> SchemaRef;

    /// Finds the splits. Called when a job starts or starts again; what is new since then is read, too.
    fn splits(&self) -> Result<Vec<Split>>;

    /// Opens a split at a position that a reader gave, 0 for its begin. May block.
    fn open(&self, split: &Split, position: u64) -> Result<Box<dyn Reader>>;
}

/// One pass through a split.
pub trait Reader: Send {
    /// The next rows; `None` at the end. May block. An error fails the job.
    fn next(&mut self) -> Result<Option<Read>>;
}

/// What a reader read.
pub struct Read {
    /// May be empty, but has the source's columns.
    pub rows: RecordBatch,
    /// Records that could not be read, for the error output (or the job fails with the first, by policy).
    pub bad: Vec<RowError>,
    /// Where to go on after these.
    pub position: u64,
}
