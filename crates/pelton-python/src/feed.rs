//! An iterator of Python's as a source: a thread of Python's puts its rows in, the engine takes them out.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use pelton_core::id::stable_hash;
use pelton_core::{Error, Result};
use pelton_dataflow::source::{Read, Reader, Source, Split};
use pyo3::prelude::*;

use crate::arrow;
use crate::errors::error;

/// How many batches wait between the two.
const WAITING: usize = 2;

/// Rows, or what the iterator raised; none at its end, which has to be said: whoever falls silent has not come to it.
type Fed = Option<Result<RecordBatch>>;

/// The end that Python has.
#[pyclass(frozen, module = "pelton._pelton")]
pub(crate) struct Feed(Mutex<Option<SyncSender<Fed>>>);

#[pymethods]
impl Feed {
    /// Puts rows in; waits while the engine has enough, without the interpreter's lock. False: nobody wants any more.
    fn put(&self, py: Python<'_>, rows: &Bound<'_, PyAny>) -> PyResult<bool> {
        let rows = arrow::owned(rows)?;
        Ok(py.detach(|| self.give(Some(Ok(rows)))))
    }

    /// The iterator raised this, described.
    fn fail(&self, py: Python<'_>, kind: &str, message: String) {
        let error = error(kind, message);
        py.detach(|| self.give(Some(Err(error))));
    }

    /// There is no more.
    fn end(&self, py: Python<'_>) {
        py.detach(|| self.give(None));
    }

    /// Nothing is said any more. Without an end before it, the job fails.
    fn close(&self) {
        self.lock().take();
    }
}

impl Feed {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<SyncSender<Fed>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, fed: Fed) -> bool {
        let sender = self.lock().clone();
        sender.is_some_and(|sender| sender.send(fed).is_ok())
    }
}

/// One split, whose position is the number of rows before it. Where a checkpoint covers some, the iterator gives them again, and they
/// are skipped.
pub(crate) struct Fountain {
    name: String,
    schema: SchemaRef,
    /// None once it was opened: an iterator is read once.
    rows: Mutex<Option<Receiver<Fed>>>,
}

pub(crate) fn feed(name: &str, schema: SchemaRef) -> (Feed, Fountain) {
    let (sender, receiver) = sync_channel(WAITING);
    let fountain = Fountain { name: name.to_owned(), schema, rows: Mutex::new(Some(receiver)) };
    (Feed(Mutex::new(Some(sender))), fountain)
}

impl Source for Fountain {
    fn describe(&self) -> String {
        "rows of an iterator".to_owned()
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn splits(&self) -> Result<Vec<Split>> {
        let id = stable_hash(&self.name);
        Ok(vec![Split { id, uri: self.name.clone(), bytes: 0, version: String::new() }])
    }

    fn open(&self, _: &Split, position: u64) -> Result<Box<dyn Reader>> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner).take();
        let rows = rows.ok_or_else(|| {
            Error::invalid(format!(
                "source `{}` is an iterator, which is read once, and the job has to read it again after a failure; start the program again",
                self.name
            ))
        })?;
        Ok(Box::new(Drinking { name: self.name.clone(), rows: Some(rows), skip: position, position: 0 }))
    }
}

struct Drinking {
    name: String,
    /// None once its end was said.
    rows: Option<Receiver<Fed>>,
    /// Rows that a checkpoint covers.
    skip: u64,
    position: u64,
}

impl Reader for Drinking {
    fn next(&mut self) -> Result<Option<Read>> {
        loop {
            let Some(from) = &self.rows else { return Ok(None) };
            // Others of the data plane go on meanwhile.
            let fed = tokio::task::block_in_place(|| from.recv()).map_err(|_| {
                Error::internal(format!("the iterator of source `{}` stopped without an end", self.name))
            })?;
            let Some(rows) = fed.transpose()? else {
                self.rows = None;
                return Ok(None);
            };
            let from = self.skip.saturating_sub(self.position).min(rows.num_rows() as u64) as usize;
            self.position += rows.num_rows() as u64;
            if from < rows.num_rows() {
                let rows = rows.slice(from, rows.num_rows() - from);
                return Ok(Some(Read { rows, bad: vec![], position: self.position }));
            }
        }
    }
}

/// A source that is shared: the plan's own.
pub(crate) struct Shared(pub(crate) Arc<dyn Source>);

impl Source for Shared {
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }
    fn splits(&self) -> Result<Vec<Split>> {
        self.0.splits()
    }
    fn open(&self, split: &Split, position: u64) -> Result<Box<dyn Reader>> {
        self.0.open(split, position)
    }
}
