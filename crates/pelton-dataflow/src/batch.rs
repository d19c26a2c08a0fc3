//! What flows along an edge.

use std::sync::{Arc, LazyLock};

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::Error;

/// Rows that come from one source split, in the split's order.
#[derive(Clone, Debug)]
pub struct Batch {
    /// [`Split::id`](crate::source::Split::id) of where they come from.
    pub split: u64,
    pub rows: RecordBatch,
}

impl Batch {
    /// What it counts for where bytes are bounded.
    pub fn bytes(&self) -> u64 {
        // A slice keeps its parent's buffers alive, but whoever bounds bytes means the rows that are there.
        let columns = self.rows.columns().iter();
        let sliced: usize =
            columns.map(|c| c.to_data().get_slice_memory_size().unwrap_or(c.get_array_memory_size())).sum();
        sliced as u64 + 64
    }
}

/// A row that could not be processed, on its way to an error output.
#[derive(Clone, Debug)]
pub struct RowError {
    /// What tells a person which row it was: a document's uri, or the row as JSON (cut short where it is long).
    pub row: String,
    pub error: Error,
}

/// The columns of every error output: `operator`, `kind` (as [`Kind::name`](pelton_core::Kind::name)), `message`, `request` (the request id,
/// where there is one) and `row`.
pub fn error_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
        Arc::new(Schema::new(vec![
            text("operator", false),
            text("kind", false),
            text("message", false),
            text("request", true),
            text("row", false),
        ]))
    });
    SCHEMA.clone()
}
