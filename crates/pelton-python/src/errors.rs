//! Errors of the engine as exceptions, and exceptions as errors of the engine. What becomes of what, `pelton/_errors.py` says.

use pelton_core::{Error, Fate, Kind, Result, Retry};
use pyo3::prelude::*;

const MODULE: &str = "pelton._errors";

/// The exception for an error.
pub(crate) fn raise(error: Error) -> PyErr {
    Python::attach(|py| {
        let fate = match error.fate() {
            Fate::NotSent => "not-sent",
            Fate::Refused => "refused",
            Fate::Unknown => "unknown",
            Fate::Executed => "executed",
        };
        let may_retry = error.retry() != Retry::Never;
        let made = py.import(MODULE).and_then(|module| {
            module.call_method1("exception", (error.kind().name(), fate, may_retry, error.message()))
        });
        match made {
            Ok(exception) => PyErr::from_value(exception),
            Err(e) => e,
        }
    })
}

/// The error for an exception that user code raised.
pub(crate) fn raised(py: Python<'_>, exception: &PyErr) -> Error {
    let described = py
        .import(MODULE)
        // The traceback is put back into the exception by this.
        .and_then(|module| {
            module
                .call_method1("describe", (exception.clone_ref(py).into_value(py),))?
                .extract::<(String, String)>()
        });
    match described {
        Ok((what, message)) => error(&what, message),
        Err(e) => Error::user(format!("{exception} (and it could not be described: {e})")),
    }
}

/// One of those that user code can mean.
pub(crate) fn error(what: &str, message: String) -> Error {
    match what {
        "transient" => Error::transient(message),
        "out-of-memory" => Error::out_of_memory(message),
        "invalid" => Error::invalid(message),
        "cancelled" => Error::new(Kind::Cancelled, Fate::Executed, Retry::Never, message),
        _ => Error::user(message),
    }
}

/// The names of all kinds of errors, for the test that each has its exception.
#[pyfunction]
pub(crate) fn kinds() -> Vec<&'static str> {
    Kind::ALL.into_iter().map(Kind::name).collect()
}

/// A result whose error is an exception.
pub(crate) trait OrRaise<T> {
    fn or_raise(self) -> PyResult<T>;
}

impl<T> OrRaise<T> for Result<T> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(raise)
    }
}
