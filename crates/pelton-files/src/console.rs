//! A sink that shows rows on standard output.

use std::io::{self, ErrorKind, Write};

use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use pelton_core::{Error, Result};
use pelton_dataflow::sink::{Guarantee, Sink, Staged, Writer};

use crate::json_lines;

/// Writes one JSON object a row to standard output, as [`JsonLines`](crate::JsonLines) does to files: at once, whole lines, flushed
/// with each batch. For looking at rows and for pipes.
///
/// At least once: what was shown cannot be taken back, so rows since the last checkpoint come again when a job goes on after a
/// failure.
#[derive(Clone, Copy, Debug, Default)]
pub struct Console;

impl Console {
    pub fn new() -> Console {
        Console
    }
}

impl Sink for Console {
    fn describe(&self) -> String {
        "JSON lines on standard output".to_owned()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn check(&self, input: &Schema) -> Result<()> {
        if input.fields().is_empty() {
            return Err(Error::invalid(format!("{}: there are no columns to write", self.describe())));
        }
        json_lines::check(input).map_err(|e| e.context(self.describe()))
    }

    fn start(&self, _: u64, _: &[Staged]) -> Result<()> {
        Ok(())
    }

    fn writer(&self, _: u32, _: u64, schema: SchemaRef) -> Result<Box<dyn Writer>> {
        self.check(&schema)?;
        Ok(Box::new(ConsoleWriter(schema)))
    }

    fn commit(&self, _: &[Staged]) -> Result<()> {
        Ok(())
    }
}

struct ConsoleWriter(SchemaRef);

impl Writer for ConsoleWriter {
    fn write(&mut self, rows: RecordBatch) -> Result<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let rows = RecordBatch::try_new(self.0.clone(), rows.columns().to_vec())
            .map_err(|e| Error::internal(format!("rows for standard output: {e}")))?;
        let mut lines = json_lines::writer(Vec::new());
        lines.write(&rows).and_then(|()| lines.finish()).map_err(|e| Error::internal(e.to_string()))?;
        // Of several subtasks, one at a time.
        let mut out = io::stdout().lock();
        out.write_all(&lines.into_inner()).and_then(|()| out.flush()).map_err(|e| failed(&e))
    }

    fn prepare(&mut self, _: u64) -> Result<Vec<Staged>> {
        Ok(vec![])
    }
}

fn failed(e: &io::Error) -> Error {
    let next = match e.kind() {
        ErrorKind::BrokenPipe => "; whoever read it has ended: start the job again with a reader that stays",
        _ => "",
    };
    Error::storage(format!("writing to standard output: {e}{next}"))
}
