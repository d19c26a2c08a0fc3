//! Rows on their way between Python and the engine.

use std::sync::Arc;

use arrow_array::ffi::FFI_ArrowArray;
use arrow_array::{Array, RecordBatch, RecordBatchOptions, StructArray, make_array};
use arrow_data::transform::MutableArrayData;
use arrow_pyarrow::{FromPyArrow, ToPyArrow};
use arrow_schema::{Schema, SchemaRef};
use pelton_core::Result;
use pyo3::prelude::*;

use crate::errors::OrRaise;

/// The same rows in Python: nothing is copied.
pub(crate) fn to_python<'py>(py: Python<'py>, rows: &RecordBatch) -> PyResult<Bound<'py, PyAny>> {
    rows.to_pyarrow(py)
}

/// Gives rows of the same columns to Python, again and again: what these are is told once.
pub(crate) struct Gate {
    columns: SchemaRef,
    schema: Py<PyAny>,
    import: Py<PyAny>,
}

impl Gate {
    pub(crate) fn new(py: Python<'_>, columns: &SchemaRef) -> PyResult<Gate> {
        let import = py.import("pyarrow")?.getattr("RecordBatch")?.getattr("_import_from_c")?;
        let schema = schema_to_python(py, columns)?;
        Ok(Gate { columns: columns.clone(), schema: schema.unbind(), import: import.unbind() })
    }

    /// The same rows in Python: nothing is copied.
    pub(crate) fn pass<'py>(&self, py: Python<'py>, rows: &RecordBatch) -> PyResult<Bound<'py, PyAny>> {
        if *rows.schema_ref() != self.columns {
            return to_python(py, rows);
        }
        // Moved from here by who takes it over (the C data interface of Arrow), or dropped here if nobody does.
        let mut array = FFI_ArrowArray::new(&StructArray::from(rows.clone()).to_data());
        let address = &raw mut array as usize;
        self.import.bind(py).call1((address, self.schema.bind(py)))
    }
}

/// The same rows, for as long as somebody sees to it that the last reference to them is dropped by a thread of Python's: what memory of
/// numpy's is behind them is freed under the interpreter's lock.
pub(crate) fn borrowed(rows: &Bound<'_, PyAny>) -> PyResult<RecordBatch> {
    RecordBatch::from_pyarrow_bound(rows)
}

/// The same rows in memory of our own, which any thread may free.
pub(crate) fn owned(rows: &Bound<'_, PyAny>) -> PyResult<RecordBatch> {
    let rows = borrowed(rows)?;
    copy(&rows).or_raise()
}

fn copy(rows: &RecordBatch) -> Result<RecordBatch> {
    let columns = rows.columns().iter().map(|column| {
        let data = column.to_data();
        let mut copied = MutableArrayData::new(vec![&data], false, data.len());
        copied.try_extend(0, 0, data.len())?;
        Ok(make_array(copied.freeze()))
    });
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(rows.schema(), columns.collect::<Result<_>>()?, &options)?)
}

pub(crate) fn schema_to_python<'py>(py: Python<'py>, schema: &Schema) -> PyResult<Bound<'py, PyAny>> {
    schema.to_pyarrow(py)
}

pub(crate) fn schema(schema: &Bound<'_, PyAny>) -> PyResult<SchemaRef> {
    Ok(Arc::new(Schema::from_pyarrow_bound(schema)?))
}
