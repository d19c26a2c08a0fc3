//! The life of an instance.

use pyo3::prelude::*;

use crate::errors::OrRaise;
use crate::methods::definition;

/// Serves the instance that this process was started as. Returns why it leaves.
#[pyfunction]
pub(crate) fn serve(py: Python<'_>) -> PyResult<String> {
    py.detach(|| pelton::serve_instance(definition)).or_raise()
}
