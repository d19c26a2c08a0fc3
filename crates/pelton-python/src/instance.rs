//! The life of an instance.

use pelton_core::service::MethodSpec;
use pelton_core::{Error, Result};
use pyo3::prelude::*;

use crate::errors::OrRaise;
use crate::methods::definition;

/// Serves the instance that this process was started as. Returns why it leaves. `scripted`: the methods, as JSON, of a service that a
/// script stands in for.
#[pyfunction]
#[pyo3(signature = (scripted = None))]
pub(crate) fn serve(py: Python<'_>, scripted: Option<&str>) -> PyResult<String> {
    py.detach(|| match scripted {
        None => pelton::serve_instance(definition),
        Some(methods) => pelton::serve_instance(|_| pelton::scripted::in_place_of(&methods_of(methods)?)),
    })
    .or_raise()
}

fn methods_of(json: &str) -> Result<Vec<MethodSpec>> {
    serde_json::from_str(json)
        .map_err(|e| Error::invalid(format!("the methods that a script stands in for: {e}")))
}
