//! A sink of JSON lines.

use std::sync::Arc;

use arrow_array::{RecordBatch, new_null_array};
use arrow_json::WriterBuilder;
use arrow_json::writer::LineDelimited;
use arrow_schema::{Schema, SchemaRef};
use pelton_core::{Error, Result};

use crate::sink::{Encoder, FileSink, Format, Settings, forward_sink};
use crate::staging::StagedFile;

/// Writes one JSON object a row, with every column (`null` where there is no value; binary as hexadecimal digits): a
/// file for each subtask and checkpoint, `PREFIX-GENERATION-SUBTASK-CHECKPOINT.jsonl`, visible once the checkpoint is
/// complete.
pub struct JsonLines(FileSink<JsonFormat>);

impl JsonLines {
    pub fn new(settings: &Settings) -> Result<JsonLines> {
        FileSink::new(settings, JsonFormat).map(JsonLines)
    }
}

forward_sink!(JsonLines);

struct JsonFormat;

impl Format for JsonFormat {
    const NAME: &str = "JSON";
    const EXTENSION: &str = "jsonl";

    fn check(&self, schema: &Schema) -> Result<()> {
        check(schema)
    }

    fn encoder(&self, file: StagedFile, _: SchemaRef) -> Result<Box<dyn Encoder>> {
        Ok(Box::new(JsonFile(writer(file))))
    }
}

/// Refuses columns that it cannot write: by writing a row of nulls.
pub fn check(schema: &Schema) -> Result<()> {
    let fields: Vec<_> = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    let nulls = fields.iter().map(|f| new_null_array(f.data_type(), 1)).collect();
    let row = RecordBatch::try_new(Arc::new(Schema::new(fields)), nulls)?;
    writer(Vec::new()).write(&row).map_err(|e| Error::invalid(e.to_string()))
}

/// Rows as lines in memory, a file, or elsewhere.
pub type Lines<W> = arrow_json::Writer<W, LineDelimited>;

/// Lines as the sink writes them.
pub fn writer<W: std::io::Write>(to: W) -> Lines<W> {
    WriterBuilder::new().with_explicit_nulls(true).build(to)
}

struct JsonFile(Lines<StagedFile>);

impl Encoder for JsonFile {
    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        self.0.write(rows).map_err(|e| self.0.get_mut().explain(e))
    }

    fn finish(&mut self) -> Result<&mut StagedFile> {
        self.0.finish().map_err(|e| self.0.get_mut().explain(e))?;
        Ok(self.0.get_mut())
    }
}
