//! A sink whose rows the program takes itself, as they come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_schema::{Schema, SchemaRef};
use pelton_core::{Error, Result};
use pelton_dataflow::sink::{Guarantee, Sink, Staged, Writer};

/// How many batches wait to be taken.
const WAITING: usize = 4;

pub(crate) struct Gather(SyncSender<RecordBatch>);

pub(crate) fn gather() -> (Gather, Receiver<RecordBatch>) {
    let (sender, receiver) = sync_channel(WAITING);
    (Gather(sender), receiver)
}

impl Sink for Gather {
    fn describe(&self) -> String {
        "rows for the program".to_owned()
    }

    /// Whoever gathers restarts nothing, so that nothing comes twice; but what was handed out cannot be taken back.
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn check(&self, _: &Schema) -> Result<()> {
        Ok(())
    }

    fn start(&self, _: u64, _: &[Staged]) -> Result<()> {
        Ok(())
    }

    fn writer(&self, _: u32, _: u64, _: SchemaRef) -> Result<Box<dyn Writer>> {
        Ok(Box::new(Gathering(self.0.clone())))
    }

    fn commit(&self, _: &[Staged]) -> Result<()> {
        Ok(())
    }
}

struct Gathering(SyncSender<RecordBatch>);

impl Writer for Gathering {
    fn write(&mut self, rows: RecordBatch) -> Result<()> {
        // Others of the data plane go on while the program takes nothing.
        tokio::task::block_in_place(|| self.0.send(rows))
            .map_err(|_| Error::invalid("nobody takes the rows any more"))
    }

    fn prepare(&mut self, _: u64) -> Result<Vec<Staged>> {
        Ok(vec![])
    }
}

/// Rows that nobody wants: of a call whose errors alone are asked for.
pub(crate) struct Nowhere;

impl Sink for Nowhere {
    fn describe(&self) -> String {
        "nowhere".to_owned()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn check(&self, _: &Schema) -> Result<()> {
        Ok(())
    }

    fn start(&self, _: u64, _: &[Staged]) -> Result<()> {
        Ok(())
    }

    fn writer(&self, _: u32, _: u64, _: SchemaRef) -> Result<Box<dyn Writer>> {
        Ok(Box::new(Nowhere))
    }

    fn commit(&self, _: &[Staged]) -> Result<()> {
        Ok(())
    }
}

impl Writer for Nowhere {
    fn write(&mut self, _: RecordBatch) -> Result<()> {
        Ok(())
    }

    fn prepare(&mut self, _: u64) -> Result<Vec<Staged>> {
        Ok(vec![])
    }
}

/// So many are told one by one.
const TOLD: u64 = 5;

/// Error rows that nobody reads: some are told to the log, and how many there were.
#[derive(Default)]
pub(crate) struct Log(Arc<AtomicU64>);

impl Sink for Log {
    fn describe(&self) -> String {
        "the program's log".to_owned()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn check(&self, _: &Schema) -> Result<()> {
        Ok(())
    }

    fn start(&self, _: u64, _: &[Staged]) -> Result<()> {
        Ok(())
    }

    fn writer(&self, _: u32, _: u64, _: SchemaRef) -> Result<Box<dyn Writer>> {
        Ok(Box::new(Logging(self.0.clone())))
    }

    fn commit(&self, _: &[Staged]) -> Result<()> {
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let all = self.0.load(Ordering::Relaxed);
        if all > TOLD {
            tracing::warn!("{all} rows failed in all; read `.errors()` to have them");
        }
    }
}

struct Logging(Arc<AtomicU64>);

impl Writer for Logging {
    fn write(&mut self, rows: RecordBatch) -> Result<()> {
        let text = |name: &str, row: usize| {
            rows.column_by_name(name).map_or("", |column| column.as_string::<i32>().value(row))
        };
        for row in 0..rows.num_rows() {
            if self.0.fetch_add(1, Ordering::Relaxed) < TOLD {
                let (message, which) = (text("message", row), text("row", row));
                tracing::warn!("a row failed in {}: {message}; it was {which}", text("operator", row));
            }
        }
        Ok(())
    }

    fn prepare(&mut self, _: u64) -> Result<Vec<Staged>> {
        Ok(vec![])
    }
}
