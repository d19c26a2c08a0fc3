//! A job that runs, as Python sees it.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow_array::RecordBatch;
use pelton::{Result, Stopper};
use pelton_dataflow::job::{End, Summary};
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;

use crate::arrow;
use crate::errors::OrRaise;
use crate::progress::Seen;

/// How often who waits looks whether there was a Ctrl-C.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A job at work on a thread of its own. Dropping it ends the job, and its instances, at once.
#[pyclass(frozen, module = "pelton._pelton")]
pub(crate) struct Running {
    stopper: Stopper,
    ended: Arc<Ended>,
    /// Of a job whose rows the program takes.
    rows: Mutex<Option<Receiver<RecordBatch>>>,
    seen: Seen,
    /// Tables of Python's that it reads: freed here, not by a thread of the engine.
    _tables: Vec<RecordBatch>,
}

#[derive(Default)]
struct Ended {
    result: Mutex<Option<Result<Summary>>>,
    changed: Condvar,
}

impl Ended {
    fn lock(&self) -> MutexGuard<'_, Option<Result<Summary>>> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, limit: Duration) -> Option<Result<Summary>> {
        let result = self.lock();
        let wait = self.changed.wait_timeout_while(result, limit, |result| result.is_none());
        wait.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

impl Running {
    /// Starts a thread that runs `job`.
    #[expect(clippy::disallowed_methods, reason = "the job's clock and threads are not there before it is")]
    pub(crate) fn start(
        job: impl FnOnce(&Stopper, &Seen) -> Result<Summary> + Send + 'static,
        rows: Option<Receiver<RecordBatch>>,
        tables: Vec<RecordBatch>,
    ) -> Running {
        let (stopper, ended) = (Stopper::new(), Arc::new(Ended::default()));
        // What the engine does by itself is nothing that a program's user has to read; what became of the rows is.
        pelton::log("error,_pelton=warn");
        let seen = Seen::default();
        let (theirs, told, noted) = (stopper.clone(), ended.clone(), seen.clone());
        std::thread::spawn(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(&theirs, &noted)));
            let result = result.unwrap_or_else(|_| Err(pelton::Error::internal("the job's thread panicked")));
            *told.lock() = Some(result);
            told.changed.notify_all();
        });
        Running { stopper, ended, rows: Mutex::new(rows), seen, _tables: tables }
    }

    fn next(&self, wait: Duration) -> Result<RecordBatch, RecvTimeoutError> {
        match &*self.rows.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(rows) => rows.recv_timeout(wait),
            None => Err(RecvTimeoutError::Disconnected),
        }
    }
}

#[pymethods]
impl Running {
    /// The next rows; None once there are no more. Raises the job's error, and TimeoutError after so many seconds without any.
    #[pyo3(signature = (timeout = None))]
    fn next_batch<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let mut left = timeout.map(|t| Duration::from_secs_f64(t.clamp(0.0, 1e9)));
        loop {
            let wait = left.map_or(LOOK_EVERY, |left| left.min(LOOK_EVERY));
            match py.detach(|| self.next(wait)) {
                Ok(rows) => return arrow::to_python(py, &rows).map(Some),
                Err(RecvTimeoutError::Disconnected) => return self.wait(py, None).map(|_| None),
                Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            }
            left = left.map(|left| left.saturating_sub(wait));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(PyTimeoutError::new_err("no rows came within the timeout"));
            }
        }
    }

    /// Waits for the end, and gives what was done as JSON; None after so many seconds without it. Raises the job's error.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<String>> {
        let mut left = timeout.map(|t| Duration::from_secs_f64(t.clamp(0.0, 1e9)));
        loop {
            let wait = left.map_or(LOOK_EVERY, |left| left.min(LOOK_EVERY));
            if let Some(result) = py.detach(|| self.ended.wait(wait)) {
                return result.map(|summary| Some(show(&summary))).or_raise();
            }
            py.check_signals()?;
            left = left.map(|left| left.saturating_sub(wait));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
        }
    }

    /// How far it is, as JSON; None before anything runs.
    fn progress(&self) -> Option<String> {
        self.seen.told().map(|told| told.to_string())
    }

    /// Stops in good order: with a checkpoint, from which the same job goes on.
    fn stop(&self) {
        self.stopper.stop();
    }

    /// Ends it and its instances at once, and returns when they are gone.
    fn cancel(&self, py: Python<'_>) {
        self.stopper.cancel();
        py.detach(|| {
            // Whoever waits to hand over rows gives up.
            self.rows.lock().unwrap_or_else(PoisonError::into_inner).take();
            while self.ended.wait(LOOK_EVERY).is_none() {}
        });
    }

    fn is_over(&self) -> bool {
        self.ended.lock().is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.cancel();
    }
}

fn show(summary: &Summary) -> String {
    let end = match summary.end {
        End::Finished => "finished",
        End::AlreadyFinished => "already-finished",
        End::Stopped => "stopped",
    };
    let nodes = summary.nodes.iter().map(|n| {
        let node = serde_json::json!({ "rows_in": n.rows_in, "rows_out": n.rows_out, "errors": n.errors });
        (n.name.clone(), node)
    });
    serde_json::json!({
        "end": end,
        "nodes": nodes.collect::<serde_json::Map<_, _>>(),
        "checkpoints": summary.checkpoints,
        "restored_from": summary.restored_from,
        "restarts": summary.restarts,
        "changed": summary.changed,
        "lost": summary.lost,
        "seconds": summary.elapsed.as_secs_f64(),
    })
    .to_string()
}
