//! Where rows go.

use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use pelton_core::Result;
use serde::{Deserialize, Serialize};

/// What a sink promises about rows after failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guarantee {
    /// Every row is visible exactly once.
    ExactlyOnce,
    /// Every row is visible, some more than once after a failure.
    AtLeastOnce,
}

/// A sink that stages output and makes it visible when a checkpoint that covers it is complete.
///
/// Law: what `prepare` returned can be committed any number of times, by any process, with the effect of once.
pub trait Sink: Send + Sync + 'static {
    /// For plans and messages: what is written, to where.
    fn describe(&self) -> String;

    fn guarantee(&self) -> Guarantee;

    /// Refuses columns it cannot write. No side effects: also called for `--explain`.
    fn check(&self, input: &Schema) -> Result<()>;

    /// Called once before a job starts or starts again: makes folders, finds out that the target cannot be written.
    /// What was staged by generations before this one and is not in `recorded` is discarded.
    fn start(&self, generation: u64, recorded: &[Staged]) -> Result<()>;

    /// The job goes back to this checkpoint: withdraws what later ones have made visible, for its rows come again. Called before
    /// [`start`](Sink::start). A sink that cannot, has them twice.
    fn rewind(&self, _checkpoint: u64) -> Result<()> {
        Ok(())
    }

    /// A writer for one subtask. Whatever it stages carries the generation in its name.
    fn writer(&self, subtask: u32, generation: u64, schema: SchemaRef) -> Result<Box<dyn Writer>>;

    /// Makes staged output visible. May block.
    fn commit(&self, staged: &[Staged]) -> Result<()>;
}

/// A sink at work in one subtask. May block.
pub trait Writer: Send {
    fn write(&mut self, rows: RecordBatch) -> Result<()>;

    /// Makes everything written since the last call durable, still invisible, and says what it is. Empty if nothing was written.
    fn prepare(&mut self, checkpoint: u64) -> Result<Vec<Staged>>;
}

/// Output that waits to be made visible, as it stands in a checkpoint. Its meaning is the sink's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged(pub serde_json::Value);
