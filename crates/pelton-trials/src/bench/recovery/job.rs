//! The job whose recovery is measured: rows with a payload, a service that takes its time, JSON lines.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{ArrayRef, BinaryArray, RecordBatch, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use clap::Args;
use pelton::dataflow::source::{Read, Reader, Source, Split};
use pelton::service::{Context, Invocation, Methods, Service};
use pelton::{Declaration, Error, Job, Settings};
use pelton_core::{BoxFuture, Bytes};

/// What a job notes, a line each: below its folder.
pub(super) const OPENED: &str = "opened";
pub(super) const EXECUTED: &str = "executed";
pub(super) const CHECKPOINTS: &str = "checkpoints";
pub(super) const ENDED: &str = "ended";
pub(super) const OUTPUT: &str = "output";
pub(super) const NAME: &str = "recovery";

#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// The folder for its state, its output and its notes
    #[arg(long)]
    pub(crate) folder: PathBuf,
    #[arg(long, default_value_t = 64)]
    pub(crate) rows: u64,
    /// Bytes that each row carries
    #[arg(long, default_value_t = 100)]
    pub(crate) payload: usize,
    #[arg(long, default_value_t = 2)]
    pub(crate) instances: u32,
    /// Subtasks of the call
    #[arg(long, default_value_t = 2)]
    pub(crate) parallelism: u32,
    /// Batches at a time at one instance
    #[arg(long, default_value_t = 32)]
    pub(crate) concurrency: usize,
    #[arg(long, default_value_t = 1)]
    pub(crate) batch: u32,
    /// The longest call, in milliseconds; the shortest takes a fifth of it
    #[arg(long, default_value_t = 1000)]
    pub(crate) call: u64,
    /// How long a model takes to load, in milliseconds
    #[arg(long, default_value_t = 0)]
    pub(crate) load: u64,
    /// From checkpoint to checkpoint, in milliseconds
    #[arg(long, default_value_t = 1000)]
    pub(crate) interval: u64,
    /// Instances remember nothing
    #[arg(long)]
    pub(crate) forget: bool,
    /// Note each execution
    #[arg(long)]
    pub(crate) note: bool,
}

struct Model {
    clock: Arc<dyn pelton::env::Clock>,
    call: Duration,
    notes: Option<PathBuf>,
}

fn note(path: &PathBuf, line: &str) -> std::io::Result<()> {
    OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())
}

fn text(ctx: &Context, option: &str) -> Option<String> {
    ctx.options.get(option).and_then(|v| v.as_str()).map(str::to_owned)
}

impl Service for Model {
    fn open(ctx: &Context) -> pelton::Result<Self> {
        let millis = |option: &str| ctx.options.get(option).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let opened = text(ctx, OPENED).ok_or_else(|| Error::invalid("no file for notes"))?;
        note(&opened.into(), &format!("{}\n", std::process::id()))?;
        futures::executor::block_on(ctx.clock.sleep(Duration::from_millis(millis("load"))));
        let call = Duration::from_millis(millis("call"));
        Ok(Model { clock: ctx.clock.clone(), call, notes: text(ctx, EXECUTED).map(PathBuf::from) })
    }

    fn methods() -> Methods<Self> {
        methods(1)
    }
}

fn methods(concurrency: usize) -> Methods<Model> {
    let output = vec![Field::new("score", DataType::UInt64, false)];
    Methods::<Model>::new().concurrent("score", concurrency, columns(), output, Model::score)
}

fn columns() -> Vec<Field> {
    vec![Field::new("id", DataType::UInt64, false), Field::new("payload", DataType::Binary, false)]
}

impl Model {
    fn score(&mut self, rows: RecordBatch, _: Invocation) -> BoxFuture<pelton::Result<RecordBatch>> {
        let ids = rows.column(0).as_primitive::<UInt64Type>().clone();
        // A fifth to all of it, always the same for a row.
        let share =
            0.2 + 0.8 * (ids.value(0).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64 / (1u64 << 24) as f64;
        let (clock, takes, notes) = (self.clock.clone(), self.call.mul_f64(share), self.notes.clone());
        Box::pin(async move {
            if let Some(notes) = notes {
                let lines: String = ids.values().iter().map(|id| format!("{id}\n")).collect();
                note(&notes, &lines)?;
            }
            if !takes.is_zero() {
                clock.sleep(takes).await;
            }
            let scores: ArrayRef =
                Arc::new(UInt64Array::from_iter_values(ids.values().iter().map(|id| id * 3)));
            Ok(RecordBatch::try_from_iter([("score", scores)])?)
        })
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { folder, rows, payload, instances, parallelism, .. } = arguments.clone();
    let path = |name: &str| folder.join(name);
    let settings = Settings {
        checkpoint_interval: Duration::from_millis(arguments.interval),
        ..Settings::new(path("state"))
    };
    let mut declaration = Declaration::new("model")
        .instances(instances)
        .max_rows(arguments.batch)
        .option("call", arguments.call)
        .option("load", arguments.load)
        .option(OPENED, path(OPENED).display().to_string());
    if arguments.note {
        declaration = declaration.option(EXECUTED, path(EXECUTED).display().to_string());
    }
    if arguments.forget {
        declaration.ledger.bytes = Bytes(1);
    }
    let concurrency = arguments.concurrency;
    let definition = pelton::service::Definition::with(
        |ctx| Box::pin(async move { Model::open(&ctx) }),
        methods(concurrency),
        |_| Ok(()),
    );
    let mut job = Job::with(NAME, settings);
    let model = job.service_with(declaration, definition)?;
    job.read("rows", Rows { rows, payload })
        .call(&model.method("score").unordered(), &["id", "payload"])
        .parallelism(parallelism)
        .map("scores", vec![columns().remove(0), Field::new("score", DataType::UInt64, false)], |rows| {
            Ok(rows.project(&[0, 2])?)
        })
        .write("lines", pelton::json_lines(path(OUTPUT))?);
    let (mut last, notes) = (0, path(CHECKPOINTS));
    let summary = job.run_observed(|snapshot| {
        if let Some(checkpoint) = snapshot.progress.checkpoint.filter(|c| c.number > last) {
            last = checkpoint.number;
            let line =
                format!("{} {} {}\n", checkpoint.number, checkpoint.took.as_secs_f64(), checkpoint.bytes);
            let _ = note(&notes, &line);
        }
    })?;
    note(&path(ENDED), &format!("{}\n", summary.elapsed.as_secs_f64()))?;
    Ok(())
}

/// Rows in splits of about the same size.
struct Rows {
    rows: u64,
    payload: usize,
}

const SPLITS: u64 = 8;
const BATCH: u64 = 256;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(columns()))
}

impl Rows {
    fn begin(&self, split: u64) -> u64 {
        self.rows * split / SPLITS
    }
}

impl Source for Rows {
    fn describe(&self) -> String {
        format!("{} rows", self.rows)
    }
    fn schema(&self) -> SchemaRef {
        schema()
    }
    fn splits(&self) -> pelton::Result<Vec<Split>> {
        let split = |id| Split { id, uri: id.to_string(), bytes: 0, version: self.rows.to_string() };
        Ok((0..SPLITS).map(split).collect())
    }
    fn open(&self, split: &Split, position: u64) -> pelton::Result<Box<dyn Reader>> {
        let (begin, end) = (self.begin(split.id), self.begin(split.id + 1));
        Ok(Box::new(Range { begin, next: begin + position, end, payload: vec![7; self.payload] }))
    }
}

struct Range {
    begin: u64,
    next: u64,
    end: u64,
    payload: Vec<u8>,
}

impl Reader for Range {
    fn next(&mut self) -> pelton::Result<Option<Read>> {
        if self.next >= self.end {
            return Ok(None);
        }
        let last = self.end.min(self.next + BATCH);
        let ids: ArrayRef = Arc::new(UInt64Array::from_iter_values(self.next..last));
        let payloads: ArrayRef =
            Arc::new(BinaryArray::from_iter_values((self.next..last).map(|_| &self.payload)));
        self.next = last;
        let rows = RecordBatch::try_new(schema(), vec![ids, payloads])?;
        Ok(Some(Read { rows, bad: Vec::new(), position: self.next - self.begin }))
    }
}
