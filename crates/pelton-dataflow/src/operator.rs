//! Row-wise CPU operators: map, filter, flat map are all this.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use pelton_core::Result;

use crate::batch::RowError;

/// A stateless operator. Law: output depends on the input rows only, so that a replay gives the same rows.
pub trait Operator: Send + Sync + 'static {
    /// The columns it gives for these, or why it cannot take them.
    fn output(&self, input: &Schema) -> Result<SchemaRef>;

    /// The input columns that it looks at, where it does not pass on the others; none: all. What nobody looks at behind a call is not carried around it.
    fn reads(&self) -> Option<Vec<String>> {
        None
    }

    /// One for a subtask.
    fn create(&self) -> Result<Box<dyn Transform>>;
}

/// An operator at work in one subtask.
pub trait Transform: Send {
    /// Transforms some rows; an error fails the job, single bad rows go to [`Output::errors`]. May compute for long.
    fn process(&mut self, rows: RecordBatch, output: &mut Output) -> Result<()>;
}

/// Where a transform puts what it makes.
#[derive(Default)]
pub struct Output {
    /// In order. Not one huge batch: what flows is bounded by bytes, and a batch is never cut.
    pub rows: Vec<RecordBatch>,
    pub errors: Vec<RowError>,
}

/// A function as an operator: same columns for every batch, no bad rows.
pub struct Map<F> {
    pub output: SchemaRef,
    pub function: Arc<F>,
}

impl<F: Fn(RecordBatch) -> Result<RecordBatch> + Send + Sync + 'static> Operator for Map<F> {
    fn output(&self, _: &Schema) -> Result<SchemaRef> {
        Ok(self.output.clone())
    }

    fn create(&self) -> Result<Box<dyn Transform>> {
        struct Mapping<F>(Arc<F>);
        impl<F: Fn(RecordBatch) -> Result<RecordBatch> + Send + Sync> Transform for Mapping<F> {
            fn process(&mut self, rows: RecordBatch, output: &mut Output) -> Result<()> {
                output.rows.push((self.0)(rows)?);
                Ok(())
            }
        }
        Ok(Box::new(Mapping(self.function.clone())))
    }
}
