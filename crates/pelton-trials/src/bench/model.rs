//! A job around the real sentence model, against calling the model.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use arrow_array::{RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use clap::Args;
use pelton::dataflow::source::{Read, Reader, Source, Split};
use pelton::env::real::Host;
use pelton::env::{Env, Time};
use pelton::{Declaration, Job, Local, ServiceHandle, Settings};
use pelton_models::Embedder;

use super::Effort;
use super::figure::{Course, Figure, cores};

const PART: &str = "model";
const INSTANCES: u32 = 2;
const BATCH: usize = 32;
/// With the two that the model sets around them, 128.
const WORDS: usize = 126;

fn declaration(model: &Path) -> Declaration {
    Declaration::new("embedder")
        .instances(INSTANCES)
        .max_rows(BATCH as u32)
        .option("model", model.display().to_string())
}

pub(super) fn job(state: &Path, model: &Path) -> Result<(Job, ServiceHandle)> {
    let mut job = Job::with("bench-model", Settings::new(state.join("state")));
    let embedder = job.service::<Embedder>(declaration(model))?;
    Ok((job, embedder))
}

/// Words that are one token each.
const VOCABULARY: [&str; 24] = [
    "the", "river", "house", "is", "red", "with", "city", "water", "and", "music", "of", "time", "small",
    "school", "by", "war", "game", "in", "family", "road", "old", "paper", "to", "light",
];

/// A text of 128 tokens, another one for each number.
fn chunk(number: u64) -> String {
    let mut state = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words = (0..WORDS).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        VOCABULARY[(state >> 33) as usize % VOCABULARY.len()]
    });
    words.collect::<Vec<_>>().join(" ")
}

fn chunks(numbers: std::ops::Range<u64>) -> pelton::Result<RecordBatch> {
    let texts = StringArray::from_iter_values(numbers.map(chunk));
    Ok(RecordBatch::try_new(schema(), vec![Arc::new(texts)])?)
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, false)]))
}

pub(super) fn measure(env: &Env, state: &Path, model: &Path, effort: Effort) -> Result<Vec<Figure>> {
    let instances = (INSTANCES as usize).min(cores());
    let (mut direct, mut side_by_side, mut piped) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..effort.rounds.min(3) {
        let alone = together(model, effort.model, 1)?;
        direct.push(alone);
        side_by_side.push(together(model, effort.model, instances)?);
        let rows = held(model) + (alone * instances as f64 * effort.model.as_secs_f64()) as u64;
        piped.push(pipeline(env, &state.join(format!("model-{round}")), model, rows)?);
    }
    let name = format!("one such process x {instances}");
    let most: Vec<f64> = direct.iter().map(|d| d * instances as f64).collect();
    Ok(vec![
        Figure::new(PART, "one process, calling the model itself", "chunks/s", direct),
        Figure::new(
            PART,
            format!("{instances} such processes, side by side"),
            "chunks/s",
            side_by_side.clone(),
        )
        .against(&name, &most),
        Figure::new(PART, format!("job of {INSTANCES} instances"), "chunks/s", piped.clone())
            .against(&name, &most),
        Figure::new(PART, format!("job of {INSTANCES} instances"), "chunks/s", piped)
            .against("side by side", &side_by_side),
    ])
}

/// Chunks a second, on one thread.
fn alone(env: &Env, model: &Path, time: Duration) -> Result<f64> {
    let mut local = Local::open::<Embedder>(env, declaration(model))?;
    local.call("embed", chunks(0..BATCH as u64)?)?;
    let begun = env.now();
    let (until, mut next) = (begun + time, 0);
    while env.now() < until {
        local.call("embed", chunks(next..next + BATCH as u64)?)?;
        next += BATCH as u64;
    }
    let took = env.now().since(begun).as_secs_f64();
    local.close()?;
    Ok(next as f64 / took)
}

/// The same in processes of their own, several at a time.
fn together(model: &Path, time: Duration, processes: usize) -> Result<f64> {
    let begin = || {
        Command::new(std::env::current_exe()?)
            .arg("model-loop")
            .arg("--model")
            .arg(model)
            .args(["--seconds", &time.as_secs_f64().to_string()])
            // What an instance of one core gets: with it, candle does not cut its work for the cores that it sees.
            .envs(["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"].map(|name| (name, "1")))
            .stdout(Stdio::piped())
            .spawn()
    };
    let loops = (0..processes).map(|_| begin()).collect::<Result<Vec<Child>, _>>()?;
    let ended: Vec<_> = loops.into_iter().map(Child::wait_with_output).collect();
    let rates = ended.into_iter().map(|output| {
        let output = output?;
        ensure!(output.status.success(), "a loop beside others ended with {}", output.status);
        Ok(String::from_utf8(output.stdout)?.trim().parse::<f64>()?)
    });
    rates.sum()
}

/// One of several loops side by side: prints its chunks a second.
#[derive(Args)]
pub(crate) struct Loop {
    #[arg(long)]
    model: PathBuf,
    #[arg(long)]
    seconds: f64,
}

pub(crate) fn run_loop(arguments: &Loop) -> Result<()> {
    let host = Host::new(1, 1)?;
    println!("{}", alone(host.env(), &arguments.model, Duration::from_secs_f64(arguments.seconds))?);
    Ok(())
}

/// What all instances have with them at most. While that much is left, none of them waits for work.
fn held(model: &Path) -> u64 {
    u64::from(3 * INSTANCES * declaration(model).batch.rows)
}

/// Chunks a second through a job, from when all instances are ready until there is too little left for all of them.
fn pipeline(env: &Env, folder: &Path, model: &Path, rows: u64) -> Result<f64> {
    let (mut job, embedder) = job(folder, model)?;
    let course = Arc::new(Mutex::new(Course::default()));
    let (noted, clock) = (course.clone(), env.clock.clone());
    let answered = job.read("chunks", Chunks { rows }).call(&embedder.method("embed").unordered(), &["text"]);
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let columns = vec![
        Field::new("text", DataType::Utf8, false),
        Field::new("embedding", DataType::FixedSizeList(item, 384), false),
        Field::new("model", DataType::Utf8, false),
    ];
    answered
        .map("clock", columns, move |rows| {
            noted.lock().unwrap_or_else(PoisonError::into_inner).add(clock.now(), rows.num_rows());
            Ok(rows)
        })
        .write("embeddings", pelton::parquet(folder.join("embeddings"))?);
    let ready: OnceLock<Time> = OnceLock::new();
    job.run_observed(|snapshot| {
        if snapshot.clients.values().all(|c| c.ready == INSTANCES as usize) {
            let _ = ready.set(env.now());
        }
    })?;
    let ready = *ready.get().context("the job ended before all of its instances were ready")?;
    let course =
        course.lock().unwrap_or_else(PoisonError::into_inner).cut(ready, (rows - held(model)) as f64);
    ensure!(course.len() > 4, "the job ended too early to say how fast it was");
    Ok(course.rate())
}

struct Chunks {
    rows: u64,
}

impl Source for Chunks {
    fn describe(&self) -> String {
        format!("{} chunks of made-up text", self.rows)
    }

    fn schema(&self) -> SchemaRef {
        schema()
    }

    fn splits(&self) -> pelton::Result<Vec<Split>> {
        Ok(vec![Split { id: 0, uri: "chunks".into(), bytes: 0, version: self.rows.to_string() }])
    }

    fn open(&self, _: &Split, position: u64) -> pelton::Result<Box<dyn Reader>> {
        Ok(Box::new(Making { next: position, rows: self.rows }))
    }
}

struct Making {
    next: u64,
    rows: u64,
}

impl Reader for Making {
    fn next(&mut self) -> pelton::Result<Option<Read>> {
        if self.next >= self.rows {
            return Ok(None);
        }
        let last = self.rows.min(self.next + BATCH as u64);
        let rows = chunks(self.next..last)?;
        self.next = last;
        Ok(Some(Read { rows, bad: Vec::new(), position: last }))
    }
}
