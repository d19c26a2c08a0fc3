//! Rows as lists of rows, and back: a function that gives another number of rows than it gets is called with a list, and gives one.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ListArray, RecordBatch, StructArray};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::{Error, Result};
use pelton_dataflow::operator::{Operator, Output, Transform};

/// Makes one row of so many: one column, a list of structs.
#[derive(Clone)]
pub(crate) struct Pack {
    pub(crate) column: String,
    pub(crate) rows: usize,
}

fn item(columns: &Schema) -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(columns.fields().clone()), false))
}

impl Pack {
    fn columns(&self, input: &Schema) -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new(&self.column, DataType::List(item(input)), false)]))
    }
}

impl Operator for Pack {
    fn output(&self, input: &Schema) -> Result<SchemaRef> {
        Ok(self.columns(input))
    }

    fn create(&self) -> Result<Box<dyn Transform>> {
        Ok(Box::new(self.clone()))
    }
}

impl Transform for Pack {
    fn process(&mut self, rows: RecordBatch, output: &mut Output) -> Result<()> {
        let mut from = 0;
        while from < rows.num_rows() {
            let part = rows.slice(from, self.rows.min(rows.num_rows() - from));
            from += part.num_rows();
            let (length, input) = (part.num_rows(), part.schema());
            let offsets = OffsetBuffer::from_lengths([length]);
            let list = ListArray::try_new(item(&input), offsets, Arc::new(StructArray::from(part)), None)?;
            output.rows.push(RecordBatch::try_new(self.columns(&input), vec![Arc::new(list)])?);
        }
        Ok(())
    }
}

/// Makes rows of the lists in a column; nothing else is kept.
#[derive(Clone)]
pub(crate) struct Unpack {
    pub(crate) column: String,
}

impl Operator for Unpack {
    fn reads(&self) -> Option<Vec<String>> {
        Some(vec![self.column.clone()])
    }

    fn output(&self, input: &Schema) -> Result<SchemaRef> {
        match input.field_with_name(&self.column)?.data_type() {
            DataType::List(item) => match item.data_type() {
                DataType::Struct(fields) => Ok(Arc::new(Schema::new(fields.clone()))),
                other => Err(Error::internal(format!("a list of {other} holds no rows"))),
            },
            other => Err(Error::internal(format!("{other} holds no rows"))),
        }
    }

    fn create(&self) -> Result<Box<dyn Transform>> {
        Ok(Box::new(self.clone()))
    }
}

impl Transform for Unpack {
    fn process(&mut self, rows: RecordBatch, output: &mut Output) -> Result<()> {
        let Some(column) = rows.column_by_name(&self.column) else {
            return Err(Error::internal(format!("there is no column `{}`", self.column)));
        };
        let lists = column.as_list::<i32>();
        // Each list alone: what is between them, or before the first, is no row of theirs.
        for row in (0..lists.len()).filter(|row| lists.is_valid(*row)) {
            let rows = lists.value(row);
            if !rows.is_empty() {
                output.rows.push(RecordBatch::from(rows.as_struct()));
            }
        }
        Ok(())
    }
}
