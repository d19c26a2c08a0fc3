//! What a method in Python may know and say of the place where it runs.

use std::sync::Mutex;

use arrow_array::RecordBatch;
use pelton_core::service::{self, Emitter, Invocation};
use pelton_core::{Error, Result};
use pyo3::prelude::*;
use pyo3::types::PyString;
use tokio::sync::oneshot;

use crate::arrow;
use crate::errors::{OrRaise, raised};

/// Handed to `open`.
#[pyclass(frozen, module = "pelton._pelton")]
pub(crate) struct Context {
    context: service::Context,
    device: String,
}

impl Context {
    pub(crate) fn new(context: service::Context, device: String) -> Self {
        Context { context, device }
    }
}

#[pymethods]
impl Context {
    /// The service's name.
    #[getter]
    fn service(&self) -> &str {
        &self.context.service
    }

    /// Which of the service's instances this is, from 0.
    #[getter]
    fn instance(&self) -> u32 {
        self.context.instance
    }

    /// The cores of one instance; the usual libraries have been told by their environment variables.
    #[getter]
    fn cpus(&self) -> f64 {
        self.context.resources.cpu
    }

    /// What the service was declared with as its `device`.
    #[getter]
    fn device(&self) -> &str {
        &self.device
    }

    /// Counts something; `pelton status --watch` shows it.
    #[pyo3(signature = (what, n = 1))]
    fn count(&self, what: &str, n: u64) {
        self.context.counters.add(what, n);
    }

    /// Says how full the memory is that requests fill; the instance then starts no more than fits.
    fn report_memory(&self, used: f64, total: f64) {
        self.context.gauge.report(used, total);
    }
}

/// One call of a method: the requests of one batch.
#[pyclass(frozen, module = "pelton._pelton")]
pub(crate) struct Call {
    invocation: Invocation,
}

impl Call {
    pub(crate) fn new(invocation: Invocation) -> Self {
        Call { invocation }
    }
}

#[pymethods]
impl Call {
    /// Whether nobody waits for the answer any more.
    fn is_cancelled(&self) -> bool {
        self.invocation.is_cancelled()
    }

    /// Says that this row failed, and the others did not: with this exception, or for this reason.
    fn fail(&self, py: Python<'_>, row: usize, error: &Bound<'_, PyAny>) -> PyResult<()> {
        let error = match error.cast::<PyString>() {
            Ok(reason) => Error::user(reason.to_str()?),
            Err(_) => raised(py, &PyErr::from_value(error.clone())),
        };
        self.invocation.fail(row, error);
        Ok(())
    }
}

type Answer = oneshot::Sender<Result<RecordBatch>>;

/// Where an asynchronous method's answer goes.
#[pyclass(frozen, module = "pelton._pelton")]
pub(crate) struct Reply(Mutex<Option<Answer>>);

impl Reply {
    pub(crate) fn new(answer: Answer) -> Self {
        Reply(Mutex::new(Some(answer)))
    }

    fn give(&self, result: Result<RecordBatch>) {
        let answer = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(answer) = answer {
            // Nobody waits for it if the instance ends.
            let _ = answer.send(result);
        }
    }
}

#[pymethods]
impl Reply {
    fn done(&self, rows: &Bound<'_, PyAny>) -> PyResult<()> {
        self.give(Ok(arrow::owned(rows)?));
        Ok(())
    }

    fn failed(&self, py: Python<'_>, exception: &Bound<'_, PyAny>) {
        self.give(Err(raised(py, &PyErr::from_value(exception.clone()))));
    }
}

/// Where a streaming method's parts go.
#[pyclass(frozen, module = "pelton._pelton")]
pub(crate) struct Parts(Emitter);

impl Parts {
    pub(crate) fn new(emitter: Emitter) -> Self {
        Parts(emitter)
    }
}

#[pymethods]
impl Parts {
    /// Hands out a part. Blocks, without the interpreter's lock, while the caller takes nothing.
    fn put(&self, py: Python<'_>, rows: &Bound<'_, PyAny>) -> PyResult<()> {
        let rows = arrow::owned(rows)?;
        py.detach(|| self.0.emit_blocking(rows)).or_raise()
    }
}

/// What a worker in Python gave instead of an answer to a request that nobody waits for.
pub(crate) fn nobody_answered() -> Error {
    Error::user("the method's event loop ended before the method did")
}
