//! The sink against a real server, which is killed as well as the jobs that write to it.

mod crashes;
mod jobs;
mod proxy;
mod server;
mod sink;
mod tls;
mod types;

use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_dataflow::sink::{Sink, Staged};
use pelton_postgres::{Connection, Postgres, Settings};

use crate::server::{PASSWORD, Server};

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

/// Settings for a table that the sink makes.
fn settings(server: &Server, table: &str) -> Settings {
    Settings::new(Connection::new(&server.url()).unwrap(), table).create()
}

/// A sink that was checked with the usual columns.
fn sink(server: &Server, table: &str) -> Postgres {
    checked(settings(server, table))
}

fn checked(settings: Settings) -> Postgres {
    let sink = Postgres::new(settings).unwrap();
    sink.check(&schema()).unwrap();
    sink
}

/// A subtask of a generation that writes rows and prepares them as a checkpoint.
fn stage(
    sink: &Postgres,
    generation: u64,
    subtask: u32,
    checkpoint: u64,
    ids: std::ops::Range<i64>,
) -> Vec<Staged> {
    let mut writer = sink.writer(subtask, generation, schema()).unwrap();
    writer.write(rows(ids)).unwrap();
    writer.prepare(checkpoint).unwrap()
}

/// Fails unless a table holds each of these numbers once.
#[track_caller]
fn holds(server: &Server, table: &str, ids: std::ops::Range<i64>) {
    let sums = server.query(&format!(
        "select count(*), count(distinct id), coalesce(min(id), 0), coalesce(max(id), -1) from {table}"
    ));
    let count = ids.end - ids.start;
    let (min, max) = if count == 0 { (0, -1) } else { (ids.start, ids.end - 1) };
    assert_eq!(sums[0], format!("{count}|{count}|{min}|{max}"), "rows of {table}: count|distinct|min|max");
}

/// Fails unless the message has all of these, and not the password.
#[track_caller]
fn says<T>(result: pelton_core::Result<T>, parts: &[&str]) -> pelton_core::Error {
    let Err(error) = result else { panic!("it should have failed") };
    let shown = format!("{error} {error:?}");
    for part in parts {
        assert!(shown.contains(part), "`{part}` is not in: {shown}");
    }
    assert!(!shown.contains(PASSWORD), "the password is in: {shown}");
    error
}
