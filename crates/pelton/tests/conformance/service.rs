//! The service that is played, in Rust. `crates/pelton-python/tests/conforming.py` is the same in Python.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array};
use arrow_schema::TimeUnit;
use pelton::prelude::*;
use pelton::service::{Emit, Invocation};

use crate::folder;

/// Numbers for which `crash` kills its process, the first time it meets them.
pub(crate) fn is_deadly(n: i64) -> bool {
    n % 400 == 123
}

pub(crate) struct Conforming {
    clock: Arc<dyn pelton::env::Clock>,
    service: String,
    /// Calls of `side_by_side` that run.
    running: Arc<AtomicUsize>,
    /// What was tried so far by `transient`.
    tried: BTreeSet<i64>,
    /// Methods that noticed that nobody waits for them.
    stopped: i64,
    runs: i64,
}

pub(crate) fn number(name: &str) -> Vec<Field> {
    vec![Field::new(name, DataType::Int64, false)]
}

pub(crate) fn numbers(name: &str, values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
    RecordBatch::try_from_iter([(name, column)]).unwrap()
}

pub(crate) fn values(rows: &RecordBatch) -> Vec<i64> {
    rows.column(0).as_primitive::<Int64Type>().values().to_vec()
}

/// A column of each type that people use, with nulls.
pub(crate) fn typed() -> Vec<Field> {
    let item = |data_type| Arc::new(Field::new("item", data_type, true));
    let tensor = [
        ("ARROW:extension:name".to_owned(), "arrow.fixed_shape_tensor".to_owned()),
        ("ARROW:extension:metadata".to_owned(), r#"{"shape":[2,3]}"#.to_owned()),
    ];
    let fields = vec![
        Field::new("flag", DataType::Boolean, true),
        Field::new("small", DataType::Int8, true),
        Field::new("large", DataType::UInt64, true),
        Field::new("half", DataType::Float16, true),
        Field::new("float", DataType::Float32, true),
        Field::new("double", DataType::Float64, true),
        Field::new("text", DataType::Utf8, true),
        Field::new("long_text", DataType::LargeUtf8, true),
        Field::new("bytes", DataType::Binary, true),
        Field::new("fixed", DataType::FixedSizeBinary(3), true),
        Field::new("day", DataType::Date32, true),
        Field::new("time", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("amount", DataType::Decimal128(12, 2), true),
        Field::new("list", DataType::List(item(DataType::Utf8)), true),
        Field::new("vector", DataType::FixedSizeList(item(DataType::Float32), 4), true),
        Field::new("record", DataType::Struct(number("inner").into()), true),
    ];
    let tensor = Field::new("tensor", DataType::FixedSizeList(item(DataType::Int16), 6), true)
        .with_metadata(tensor.into());
    fields.into_iter().chain([tensor]).collect()
}

/// Adds a line to one of the test's files, in one write.
pub(crate) fn note(file: &str, line: impl std::fmt::Display) {
    let mut notes = OpenOptions::new().create(true).append(true).open(folder().join(file)).unwrap();
    notes.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Whether this is the first to say so, over all processes.
fn first(mark: &str) -> bool {
    OpenOptions::new().create_new(true).write(true).open(folder().join(mark)).is_ok()
}

impl Service for Conforming {
    fn open(ctx: &Context) -> Result<Self> {
        note("opened", format!("{} {}", ctx.service, std::process::id()));
        match ctx.service.as_str() {
            "opens-slowly" => std::thread::sleep(Duration::from_secs(1)),
            "opens-never" => return Err(Error::user("no model here")),
            "opens-later" if first("opens-later") => return Err(Error::transient("not yet")),
            _ => {}
        }
        Ok(Conforming {
            clock: ctx.clock.clone(),
            service: ctx.service.clone(),
            running: Arc::default(),
            tried: BTreeSet::new(),
            stopped: 0,
            runs: 0,
        })
    }

    fn methods() -> Methods<Self> {
        let payload = || vec![Field::new("payload", DataType::Binary, false)];
        Methods::<Self>::new()
            .serial("echo", payload(), payload(), |_, rows, _| Ok(rows))
            .serial("types", typed(), typed(), |_, rows, _| Ok(rows))
            .serial("rows", number("n"), number("rows"), |_, rows, _| {
                Ok(numbers("rows", vec![rows.num_rows() as i64; rows.num_rows()]))
            })
            .serial("bytes", payload(), number("bytes"), |_, rows, _| {
                let bytes = rows.column(0).as_binary::<i32>().iter().flatten().map(|b| b.len() as i64).sum();
                Ok(numbers("bytes", vec![bytes; rows.num_rows()]))
            })
            .serial("fails", number("n"), number("n"), |service, rows, _| service.fails(rows))
            .serial("mark", number("n"), number("runs"), |service, rows, invocation| {
                service.runs += rows.num_rows() as i64;
                for (row, n) in values(&rows).into_iter().enumerate().filter(|(_, n)| n % 2 == 1) {
                    invocation.fail(row, Error::user(format!("{n} is odd")));
                }
                Ok(numbers("runs", vec![service.runs; rows.num_rows()]))
            })
            .serial("wait", number("millis"), number("millis"), |service, rows, invocation| {
                let most = values(&rows).into_iter().max().unwrap_or_default();
                for _ in 0..most / 5 {
                    if invocation.is_cancelled() {
                        service.stopped += 1;
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(rows)
            })
            .serial("stopped", number("n"), number("stopped"), |service, rows, _| {
                Ok(numbers("stopped", vec![service.stopped; rows.num_rows()]))
            })
            .serial("crash", number("n"), number("twice"), |_, rows, _| {
                for n in values(&rows) {
                    if is_deadly(n) && first(&format!("crash-{n}")) {
                        crash(n);
                    }
                }
                std::thread::sleep(Duration::from_millis(2));
                Ok(numbers("twice", values(&rows).into_iter().map(|n| n * 2)))
            })
            .concurrent("side_by_side", 4, number("n"), number("running"), |service, rows, _| {
                let (running, clock) = (service.running.clone(), service.clock.clone());
                Box::pin(async move {
                    let at_start = running.fetch_add(1, Ordering::SeqCst) + 1;
                    clock.sleep(Duration::from_millis(30)).await;
                    let most = at_start.max(running.load(Ordering::SeqCst));
                    running.fetch_sub(1, Ordering::SeqCst);
                    Ok(numbers("running", vec![most as i64; rows.num_rows()]))
                })
            })
            .streaming("count", number("n"), number("i"), Conforming::count)
            .flowing("count_later", 4, number("n"), number("i"), |_, rows, _, emitter| {
                Box::pin(async move {
                    for i in 0..values(&rows)[0] {
                        emitter.emit(numbers("i", [i, i])).await?;
                    }
                    Ok(())
                })
            })
    }

    fn close(self) -> Result<()> {
        note("closed", format!("{} {}", self.service, std::process::id()));
        Ok(())
    }
}

impl Conforming {
    /// A mistake of each kind, by the first row's number; from 100 on a batch is right unless it has 107 in it.
    fn fails(&mut self, rows: RecordBatch) -> Result<RecordBatch> {
        let all = values(&rows);
        match all[0] {
            0 => Err(Error::user("the row is zero")),
            1 => panic!("the row is one"),
            2 if self.tried.insert(2) => Err(Error::transient("not now")),
            3 => Ok(numbers("n", [])),
            4 => std::process::abort(),
            5 => Ok(numbers("m", all)),
            6 if all.len() > 1 => Err(Error::out_of_memory("one row fits")),
            7.. if all.contains(&107) => Err(Error::user("107 is bad")),
            _ => Ok(rows),
        }
    }

    fn count(&mut self, rows: RecordBatch, _: &Invocation, emit: Emit<'_>) -> Result<()> {
        for i in 0..values(&rows)[0] {
            if let Err(e) = emit(numbers("i", [i, i])) {
                self.stopped += 1;
                return Err(e);
            }
        }
        Ok(())
    }
}

/// Half of the deadly numbers leave without a word, the others break a law of the machine.
fn crash(n: i64) -> ! {
    if n % 800 == 123 {
        std::process::exit(3);
    }
    std::process::abort();
}
