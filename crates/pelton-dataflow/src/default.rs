//! The row that stands for a failed call.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_json::ReaderBuilder;
use arrow_schema::{Field, Schema, SchemaRef};
use pelton_core::{Error, Result};
use serde_json::{Map, Value};

/// One row with these values, null in the other columns. Its fields are nullable where they have to be.
pub(crate) fn default_row(values: &Map<String, Value>, output: &Schema) -> Result<RecordBatch> {
    for name in values.keys() {
        if output.field_with_name(name).is_err() {
            let names: Vec<&str> = output.fields().iter().map(|f| f.name().as_str()).collect();
            return Err(Error::invalid(format!(
                "the method has no column `{name}`; it has: {}",
                names.join(", ")
            )));
        }
    }
    let given = |name: &str| values.get(name).is_some_and(|v| !v.is_null());
    let field = |f: &Arc<Field>| f.as_ref().clone().with_nullable(f.is_nullable() || !given(f.name()));
    let schema: SchemaRef = Arc::new(Schema::new(output.fields().iter().map(field).collect::<Vec<_>>()));
    let bad = |e: arrow_schema::ArrowError| Error::invalid(format!("they do not fit the columns: {e}"));
    let mut decoder = ReaderBuilder::new(schema).build_decoder().map_err(bad)?;
    decoder.serialize(&[values]).map_err(bad)?;
    let row = decoder.flush().map_err(bad)?;
    row.filter(|r| r.num_rows() == 1).ok_or_else(|| Error::internal("one object did not give one row"))
}
