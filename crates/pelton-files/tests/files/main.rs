//! Sources and sinks against real files.

mod console;
mod disk_full;
mod folder;
mod lines;
mod reading;
mod references;
mod sinks;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_dataflow::source::{Read, Source, Split};

/// Writes a file and the folders above it.
fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    path
}

/// All that a split gives from a position on.
fn read(source: &impl Source, split: &Split, position: u64) -> Vec<Read> {
    let mut reader = source.open(split, position).unwrap();
    std::iter::from_fn(|| reader.next().unwrap()).collect()
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("text", DataType::Utf8, true),
    ]))
}

fn rows(ids: std::ops::Range<i64>) -> RecordBatch {
    let text: StringArray = ids.clone().map(|i| (i % 2 == 0).then(|| format!("row {i}"))).collect();
    RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from_iter_values(ids)), Arc::new(text)]).unwrap()
}

/// Fails unless the message has all of these.
#[track_caller]
fn says(error: pelton_core::Error, parts: &[&str]) {
    for part in parts {
        assert!(error.message().contains(part), "`{part}` is not in: {error}");
    }
}

/// The error of what should have failed.
#[track_caller]
fn error<T>(result: pelton_core::Result<T>) -> pelton_core::Error {
    match result {
        Ok(_) => panic!("it should have failed"),
        Err(e) => e,
    }
}
