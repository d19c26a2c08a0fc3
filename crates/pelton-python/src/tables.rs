//! Rows that are in memory as a source.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use pelton_core::Result;
use pelton_core::id::stable_hash;
use pelton_dataflow::source::{Read, Reader, Source, Split};

/// Most rows that leave together.
const ROWS: usize = 4096;

/// A table: one split, whose position is the number of rows before it.
pub(crate) struct Table {
    name: String,
    schema: SchemaRef,
    parts: Arc<[RecordBatch]>,
}

impl Table {
    pub(crate) fn new(name: &str, schema: SchemaRef, parts: Vec<RecordBatch>) -> Self {
        Table { name: name.to_owned(), schema, parts: parts.into() }
    }

    fn rows(&self) -> usize {
        self.parts.iter().map(RecordBatch::num_rows).sum()
    }
}

impl Source for Table {
    fn describe(&self) -> String {
        format!("{} rows in memory", self.rows())
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn splits(&self) -> Result<Vec<Split>> {
        let bytes = self.parts.iter().map(RecordBatch::get_array_memory_size).sum::<usize>() as u64;
        let version = format!("{}", self.rows());
        Ok(vec![Split { id: stable_hash(&self.name), uri: self.name.clone(), bytes, version }])
    }

    fn open(&self, _: &Split, position: u64) -> Result<Box<dyn Reader>> {
        Ok(Box::new(Pass { parts: self.parts.clone(), schema: self.schema.clone(), position }))
    }
}

struct Pass {
    parts: Arc<[RecordBatch]>,
    schema: SchemaRef,
    position: u64,
}

impl Reader for Pass {
    fn next(&mut self) -> Result<Option<Read>> {
        let mut before = self.position as usize;
        for part in self.parts.iter() {
            if before < part.num_rows() {
                let rows = part.slice(before, ROWS.min(part.num_rows() - before));
                let rows = RecordBatch::try_new(self.schema.clone(), rows.columns().to_vec())?;
                self.position += rows.num_rows() as u64;
                return Ok(Some(Read { rows, bad: vec![], position: self.position }));
            }
            before -= part.num_rows();
        }
        Ok(None)
    }
}
