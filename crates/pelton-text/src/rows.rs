//! Columns in and out of the operators.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::service::show_columns;
use pelton_core::{Error, Result};

/// A batch of output rows has at most this many rows, and is not added to beyond these bytes.
pub(crate) const MAX_ROWS: usize = 64;
pub(crate) const MAX_BYTES: usize = 1 << 20;

pub(crate) fn text(name: &str) -> Field {
    Field::new(name, DataType::Utf8, false)
}

pub(crate) fn schema(fields: Vec<Field>) -> SchemaRef {
    Arc::new(Schema::new(fields))
}

/// Says no to an input that lacks a column.
pub(crate) fn require(operator: &str, input: &Schema, columns: &[(&str, DataType)]) -> Result<()> {
    for (name, data_type) in columns {
        if input.field_with_name(name).is_ok_and(|f| f.data_type() == data_type) {
            continue;
        }
        let given = show_columns(input);
        return Err(Error::invalid(format!(
            "{operator} needs a column {name}: {data_type}, and is given ({given})"
        )));
    }
    Ok(())
}

/// A column that [`require`] found to be there.
pub(crate) fn column<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    rows.column_by_name(name).ok_or_else(|| Error::internal(format!("a batch lacks the column {name}")))
}

pub(crate) fn strings<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a StringArray> {
    (column(rows, name)?.as_string_opt())
        .ok_or_else(|| Error::internal(format!("the column {name} of a batch is no text")))
}

/// A row's value, or that there is none.
pub(crate) fn value(column: &StringArray, row: usize) -> Option<&str> {
    column.is_valid(row).then(|| column.value(row))
}
