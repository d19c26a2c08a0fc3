//! A job on a simulated disk that outlives its runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::{Error, Result};
use pelton_dataflow::job::{Options, Running, Summary};
use pelton_dataflow::operator::Map;
use pelton_dataflow::plan::{Call, OnError, Plan};
use pelton_env::Storage;
use pelton_env::simulated::Machine;
use pelton_files::JsonLines;
use pelton_files::sink::Settings;

use crate::support::{Answer, Log, Numbers, World, options};

pub(crate) const STATE: &str = "/data/jobs/a/state";

/// A job from numbers to JSON lines, and a disk that outlives its runs.
pub(crate) struct Site {
    pub(crate) machine: Machine,
    pub(crate) out: &'static str,
    pub(crate) parallelism: u32,
    pub(crate) numbers: Numbers,
    pub(crate) log: Arc<Mutex<Log>>,
}

/// How a run ended, and the newest checkpoint that it had said was complete.
pub(crate) struct Ran {
    pub(crate) result: Result<Summary>,
    pub(crate) complete: u64,
}

impl Site {
    pub(crate) fn new(seed: u64) -> Site {
        Site {
            machine: Machine::new(seed),
            out: "/data/out",
            parallelism: 2,
            numbers: Numbers::new(2, 30, 10),
            log: Arc::default(),
        }
    }

    pub(crate) fn start(&self, storage: Arc<dyn Storage>, options: Options) -> Result<Running> {
        let script = |n: i64| Answer::After(Duration::from_millis(n as u64 % 1_000_000 * 10 + 110));
        self.start_with(storage, options, script)
    }

    /// With answers as `script` says.
    pub(crate) fn start_with(
        &self,
        storage: Arc<dyn Storage>,
        options: Options,
        script: impl Fn(i64) -> Answer + Send + Sync + 'static,
    ) -> Result<Running> {
        let sink = JsonLines::new(&Settings::new(self.out)).unwrap().stored_on(storage.clone());
        let mut plan = Plan::new();
        let source = plan.source("numbers", 1, Arc::new(self.numbers.clone()), OnError::Fail);
        // Batches large enough to be shared between checkpoints while they wait.
        let fat =
            plan.map("fat", 1, source, Arc::new(Map { output: columns(true), function: Arc::new(fat) }));
        let call = plan.call("double", self.parallelism, fat, Call::new("maths", "double", &["n"]));
        let slim = Map {
            output: columns(false),
            function: Arc::new(|rows: RecordBatch| Ok(rows.project(&[0, 2])?)),
        };
        let slim = plan.map("slim", self.parallelism, call, Arc::new(slim));
        plan.sink("out", self.parallelism, slim, Arc::new(sink));
        let mut world = World::new(plan);
        (world.log, world.storage) = (self.log.clone(), storage);
        world.try_start(options, script)
    }

    pub(crate) async fn run(&self, storage: Arc<dyn Storage>, options: Options) -> Ran {
        self.run_until(storage, options, |_| false).await
    }

    /// Runs the job to its end, or until a checkpoint with such a number is complete; then it ends as a crash would.
    pub(crate) async fn run_until(
        &self,
        storage: Arc<dyn Storage>,
        options: Options,
        enough: impl Fn(u64) -> bool,
    ) -> Ran {
        let running = match self.start(storage, options) {
            Ok(running) => running,
            Err(e) => return Ran { result: Err(e), complete: 0 },
        };
        let mut progress = running.progress();
        let seen = progress.clone();
        let complete = move || seen.borrow().checkpoint.map_or(0, |c| c.number);
        let reached = async {
            let reached =
                |p: &pelton_dataflow::progress::Progress| p.checkpoint.is_some_and(|c| enough(c.number));
            if progress.wait_for(reached).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let result = tokio::select! {
            biased;
            () = reached => Err(Error::internal("killed by the test")),
            result = running.wait() => result,
        };
        crate::support::turns(20).await;
        Ran { result, complete: complete() }
    }

    /// What has a final name in the output is whole, now and for ever.
    pub(crate) fn visible(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.machine.files(Path::new(self.out));
        files.retain(|name, _| !name.starts_with('_'));
        for (name, content) in &files {
            assert!(content.ends_with(b"\n"), "{name} is cut off");
            rows(content);
        }
        files
    }

    pub(crate) fn check_all_rows_once(&self, said: &str) {
        let mut all: Vec<i64> = self.visible().values().flat_map(|content| rows(content)).collect();
        all.sort_unstable();
        assert_eq!(all, self.numbers.all(), "{said}");
    }
}

fn columns(fat: bool) -> SchemaRef {
    let (kind, name) = if fat { (DataType::Utf8, "load") } else { (DataType::Int64, "twice") };
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false), Field::new(name, kind, false)]))
}

/// The same rows with 2 KiB each.
fn fat(rows: RecordBatch) -> Result<RecordBatch> {
    let n = rows.column(0).as_primitive::<Int64Type>();
    let load = StringArray::from_iter_values(n.values().iter().map(|n| format!("{n:2048}")));
    Ok(RecordBatch::try_new(columns(true), vec![rows.column(0).clone(), Arc::new(load)])?)
}

pub(crate) fn rows(lines: &[u8]) -> Vec<i64> {
    let text = std::str::from_utf8(lines).expect("whole lines of text");
    let row = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).expect("a whole row");
        assert_eq!(row["twice"].as_i64().unwrap(), row["n"].as_i64().unwrap() * 2);
        row["n"].as_i64().unwrap()
    };
    text.lines().map(row).collect()
}

pub(crate) fn usual() -> Options {
    Options { interval: Duration::from_millis(100), ..options(Path::new(STATE)) }
}
