//! How far a job is, for people and metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A job's numbers at one time, counted since it started (again).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// In the order of the plan.
    pub nodes: Vec<NodeProgress>,
    pub checkpoint: Option<LastCheckpoint>,
    /// Checkpoints that were given up because they took too long.
    pub aborted: u64,
    /// How often it failed and was started again in this run, and what the last failure was.
    pub restarts: u64,
    pub failure: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeProgress {
    pub name: String,
    pub rows_in: u64,
    pub rows_out: u64,
    pub errors: u64,
    /// Of the rows that came in; for a source, of those it gave out.
    pub bytes: u64,
    /// Splits of a source: read to their end, and all. Those of earlier runs are counted.
    pub splits_done: u64,
    pub splits_total: u64,
    /// Rows of a call that wait for their answer, or for their turn.
    pub pending: u64,
    /// Keys of a changelog whose results a call has stored, and what they take.
    pub stored_keys: u64,
    pub stored_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastCheckpoint {
    pub number: u64,
    /// From the decision until the outputs were visible.
    pub took: Duration,
    /// How big it is.
    pub bytes: u64,
    /// How much of that had changed since the one before, and was written.
    pub new: u64,
}

/// What the subtasks of a node count in.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) rows_in: AtomicU64,
    pub(crate) rows_out: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) splits_done: AtomicU64,
    pub(crate) splits_total: AtomicU64,
    pub(crate) pending: AtomicU64,
    pub(crate) stored_keys: AtomicU64,
    pub(crate) stored_bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn read(&self, name: &str) -> NodeProgress {
        NodeProgress {
            name: name.to_owned(),
            rows_in: self.rows_in.load(Relaxed),
            rows_out: self.rows_out.load(Relaxed),
            errors: self.errors.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            splits_done: self.splits_done.load(Relaxed),
            splits_total: self.splits_total.load(Relaxed),
            pending: self.pending.load(Relaxed),
            stored_keys: self.stored_keys.load(Relaxed),
            stored_bytes: self.stored_bytes.load(Relaxed),
        }
    }
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}
