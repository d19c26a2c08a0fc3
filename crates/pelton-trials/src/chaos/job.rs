//! The job that is killed: numbers, made into texts, scored by a scripted service, written as JSON lines and as Parquet.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{RecordBatch, StringArray, UInt64Array};
use arrow_schema::{DataType, Field};
use clap::Args;
use pelton::dataflow::job::End;
use pelton::dataflow::source::{Read, Reader, Source, Split};
use pelton::restart::Strategy;
use pelton::service::{Definition, Methods};
use pelton::{Declaration, Job, Method, Settings};
use pelton_core::remote::{self, Protocol, Remote};
use serde::{Deserialize, Serialize};

use super::counted;

/// The exit status of a job that was stopped and goes on when it is started again.
pub(crate) const STOPPED: u8 = 4;
pub(crate) const NAME: &str = "chaos-job";
/// How long a server may take to answer.
const ATTEMPT: Duration = Duration::from_secs(1);
/// How long an instance outlives its job.
pub(crate) const LEASE: Duration = Duration::from_secs(5);

/// How long a run may give nothing before its instance is taken for wedged; many times what a batch takes here.
pub(crate) const STALL: Duration = Duration::from_secs(1);

#[derive(Args, Clone)]
pub(crate) struct Arguments {
    /// Rows to go through it
    #[arg(long, default_value_t = 10_000)]
    pub(crate) rows: u64,
    /// The folder for its output
    #[arg(long)]
    pub(crate) output: PathBuf,
    /// The folder for its checkpoints and logs
    #[arg(long)]
    pub(crate) state: PathBuf,
    /// The folder in which instances note what they execute
    #[arg(long)]
    pub(crate) executions: PathBuf,
    #[arg(long, default_value_t = 2)]
    pub(crate) instances: u32,
    /// Servers that answer in place of instances
    #[arg(long, value_name = "URL")]
    pub(crate) remote: Vec<String>,
    /// Let answers leave as they come, instead of in the order of the rows
    #[arg(long)]
    pub(crate) unordered: bool,
    /// How long the scripted service takes for a row, in microseconds
    #[arg(long, default_value_t = 500)]
    pub(crate) row_micros: u64,
    /// How long it takes for a batch, whatever its rows, in milliseconds
    #[arg(long, default_value_t = 5)]
    pub(crate) batch_millis: u64,
}

/// What the job prints as its last line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) end: String,
    pub(crate) checkpoints: u64,
    pub(crate) restored_from: Option<u64>,
}

/// Once there is such a file, the data plane fails, and takes it away.
pub(crate) fn fails(folder: &Path) -> PathBuf {
    folder.join("fail")
}

/// Where each sink of the job writes, below its output.
pub(crate) const LINES: &str = "lines";
pub(crate) const COLUMNS: &str = "columns";

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let settings = Settings {
        checkpoint_interval: Duration::from_millis(300),
        // It is made to fail more often than one that is to be given up.
        restart: Strategy {
            restarts: 1_000,
            delay: Duration::from_millis(50),
            max_delay: Duration::from_millis(400),
            ..Strategy::default()
        },
        ..Settings::new(&arguments.state)
    };
    let mut job = Job::with(NAME, settings);
    let numbers = job.read("numbers", Numbers { rows: arguments.rows, splits: SPLITS }).map(
        "texts",
        vec![id_field(), Field::new("text", DataType::Utf8, false)],
        texts,
    );
    let order = |method: Method| if arguments.unordered { method.unordered() } else { method };
    let scores = if arguments.remote.is_empty() {
        let scorer = job.service_with(instances(arguments), counted::scorer())?;
        numbers.call(&order(scorer.method("score")), &["id", "text"])
    } else {
        let scorer = job.service_with(servers(arguments), asked())?;
        let columns = vec![
            id_field(),
            Field::new("text", DataType::Utf8, false),
            Field::new("score", DataType::UInt64, false),
        ];
        numbers.call(&order(scorer.method("ask")), &["text"]).map("understood", columns, understood)
    };
    let fails = fails(&arguments.executions);
    let columns = vec![
        id_field(),
        Field::new("text", DataType::Utf8, false),
        Field::new("score", DataType::UInt64, false),
    ];
    let scores = scores.map("judged", columns, move |rows| match fs::remove_file(&fails) {
        Ok(()) => Err(pelton::Error::internal("the trial makes the data plane fail")),
        Err(_) => Ok(rows),
    });
    scores.write("lines", pelton::json_lines(arguments.output.join(LINES))?);
    scores.write("columns", pelton::parquet(arguments.output.join(COLUMNS))?);
    let summary = job.run()?;
    let end = format!("{:?}", summary.end);
    let ended = Ended { end, checkpoints: summary.checkpoints, restored_from: summary.restored_from };
    println!("{}", serde_json::to_string(&ended)?);
    Ok(match summary.end {
        End::Stopped => ExitCode::from(STOPPED),
        End::Finished | End::AlreadyFinished => ExitCode::SUCCESS,
    })
}

/// The scripted service of our own instances.
fn instances(arguments: &Arguments) -> Declaration {
    let mut declaration = Declaration::new("scorer")
        .instances(arguments.instances)
        .option("latency", format!("{}ms", arguments.batch_millis))
        .option("per_row", format!("{}us", arguments.row_micros))
        .option("jitter", 0.75)
        .option(counted::FOLDER, arguments.executions.display().to_string());
    declaration.lease = LEASE;
    declaration.stall = Some(STALL);
    declaration
}

/// Servers of other people, which fail at any time and for any row: no row may be given up for that.
fn servers(arguments: &Arguments) -> Declaration {
    let mut declaration = Declaration::new("scorer");
    declaration.kind = Some(remote::KIND.into());
    declaration.remote = Some(Remote {
        protocol: Protocol::OpenAi,
        urls: arguments.remote.clone(),
        model: "scorer".into(),
        version: None,
        api_key_env: None,
        methods: BTreeMap::new(),
    });
    declaration.attempt_timeout = Some(ATTEMPT);
    declaration.retry.attempts = 1000;
    declaration.retry.backoff = Duration::from_millis(5);
    declaration.retry.max_backoff = Duration::from_millis(200);
    declaration.retry.budget = 1.0;
    declaration
}

/// `ask(text) -> (answer)`: what the servers are asked for. Nothing of it runs here.
fn asked() -> Definition {
    let column = |name| vec![Field::new(name, DataType::Utf8, false)];
    let methods = Methods::<()>::new().serial("ask", column("text"), column("answer"), |(), _, _| {
        Err(pelton::Error::internal("a method of servers was run by an instance"))
    });
    Definition::with(|_| Box::pin(async { Ok(()) }), methods, |()| Ok(()))
}

/// The numbers that the answers name; 0 for one that names none, which is wrong for every row.
fn understood(rows: RecordBatch) -> pelton::Result<RecordBatch> {
    let answers = rows.column_by_name("answer").map(|a| a.as_string::<i32>());
    let answers = answers.ok_or_else(|| pelton::Error::internal("no answers"))?;
    let score = |answer: Option<&str>| answer?.strip_prefix("score ")?.parse().ok();
    let scores = UInt64Array::from_iter_values(answers.iter().map(|answer| score(answer).unwrap_or(0)));
    let column = |i: usize| rows.column(i).clone();
    Ok(RecordBatch::try_from_iter([
        ("id", column(0)),
        ("text", column(1)),
        ("score", Arc::new(scores) as _),
    ])?)
}

const SPLITS: u64 = 7;
const BATCH: u64 = 50;

pub(crate) fn id_field() -> Field {
    Field::new("id", DataType::UInt64, false)
}

/// The text of a row.
pub(crate) fn text(id: u64) -> String {
    format!("row {id} says {}", id.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1_000_003)
}

fn texts(rows: RecordBatch) -> pelton::Result<RecordBatch> {
    let ids = rows.column(0);
    let texts = ids.as_primitive::<UInt64Type>().values().iter().map(|id| text(*id));
    let texts = StringArray::from_iter_values(texts);
    Ok(RecordBatch::try_from_iter([("id", ids.clone()), ("text", Arc::new(texts) as _)])?)
}

/// The numbers from 0 to `rows`, in splits of about the same size. A position is how many of its split were read.
struct Numbers {
    rows: u64,
    splits: u64,
}

impl Numbers {
    fn begin(&self, split: u64) -> u64 {
        self.rows * split / self.splits
    }
}

impl Source for Numbers {
    fn describe(&self) -> String {
        format!("the numbers below {} in {} splits", self.rows, self.splits)
    }

    fn schema(&self) -> arrow_schema::SchemaRef {
        Arc::new(arrow_schema::Schema::new(vec![id_field()]))
    }

    fn splits(&self) -> pelton::Result<Vec<Split>> {
        let split = |i| Split { id: i, uri: i.to_string(), bytes: 0, version: self.rows.to_string() };
        Ok((0..self.splits).map(split).collect())
    }

    fn open(&self, split: &Split, position: u64) -> pelton::Result<Box<dyn Reader>> {
        let (begin, end) = (self.begin(split.id), self.begin(split.id + 1));
        Ok(Box::new(Range { begin, next: begin + position, end }))
    }
}

struct Range {
    begin: u64,
    next: u64,
    end: u64,
}

impl Reader for Range {
    fn next(&mut self) -> pelton::Result<Option<Read>> {
        if self.next >= self.end {
            return Ok(None);
        }
        let last = self.end.min(self.next + BATCH);
        let ids = arrow_array::UInt64Array::from_iter_values(self.next..last);
        self.next = last;
        let rows = RecordBatch::try_from_iter([("id", Arc::new(ids) as _)])?;
        Ok(Some(Read { rows, bad: Vec::new(), position: self.next - self.begin }))
    }
}
