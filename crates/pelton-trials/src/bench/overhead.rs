//! A call of a method that does nothing, against calling it in this process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use arrow_array::{BinaryArray, RecordBatch};
use arrow_schema::{DataType, Field};
use futures::StreamExt;
use futures::channel::mpsc;
use futures::stream::FuturesUnordered;
use pelton::env::Env;
use pelton::service::{Context, Methods, Service};
use pelton::{Declaration, Job, Local, RequestId, Services, Settings};
use pelton_core::call::{Outcome, Receiver, Submission};

use super::Effort;
use super::figure::{Figure, quantile};

const PART: &str = "overhead";
const IN_FLIGHT: usize = 64;
/// Rows in a submission of the bulk calls, and how many submissions are under way; fewer of large rows.
const BULK: (usize, usize) = (1024, 4);
const BULK_BYTES: usize = 16 << 20;

struct Echo;

impl Service for Echo {
    fn open(_: &Context) -> pelton::Result<Self> {
        Ok(Echo)
    }

    fn methods() -> Methods<Self> {
        let payload = || vec![Field::new("payload", DataType::Binary, false)];
        Methods::new().serial("echo", payload(), payload(), |_, batch, _| Ok(batch))
    }
}

fn single() -> Declaration {
    Declaration::new("echo")
}

fn bulk() -> Declaration {
    Declaration::new("echo-bulk").max_rows(BULK.0 as u32)
}

pub(super) fn job(state: &Path) -> Result<Job> {
    let mut job = Job::with("bench-overhead", Settings::new(state.join("overhead")));
    job.service::<Echo>(single())?;
    job.service::<Echo>(bulk())?;
    Ok(job)
}

fn payloads(bytes: usize, rows: usize) -> Result<RecordBatch> {
    let payload = vec![7u8; bytes];
    let column = BinaryArray::from_iter_values(std::iter::repeat_n(&payload, rows));
    Ok(RecordBatch::try_from_iter([("payload", Arc::new(column) as _)])?)
}

pub(super) fn measure(env: &Env, state: &Path, effort: Effort) -> Result<Vec<Figure>> {
    let mut local = Local::open::<Echo>(env, single())?;
    let figures = job(state)?.serve(async |services| {
        services.ready().await?;
        let mut figures = Vec::new();
        for (bytes, name) in [(100, "100 B"), (10_000, "10 KB"), (1_000_000, "1 MB"), (10_000_000, "10 MB")] {
            let sized = of_size(services, &mut local, bytes, name, effort).await;
            figures.extend(sized.map_err(|e| pelton::Error::internal(format!("{e:#}")))?);
        }
        Ok(figures)
    })?;
    local.close()?;
    Ok(figures)
}

#[derive(Default)]
struct Rounds {
    p50: Vec<f64>,
    p99: Vec<f64>,
    one_way: Vec<f64>,
    calls: Vec<f64>,
    rows: Vec<f64>,
}

async fn of_size(
    services: &Services,
    local: &mut Local,
    bytes: usize,
    name: &str,
    effort: Effort,
) -> Result<Vec<Figure>> {
    let env = services.env();
    let one = payloads(bytes, 1)?;
    let rows = BULK.0.min(BULK_BYTES / bytes);
    let many = payloads(bytes, rows)?;
    let (mut through, mut here) = (Rounds::default(), Rounds::default());
    // Round 0 warms up.
    for round in 0..=effort.rounds {
        let mut call = Vec::new();
        let until = env.now() + effort.calls;
        while env.now() < until {
            let begin = env.now();
            services.call("echo", "echo", one.clone()).await?;
            call.push(micros(env.now().since(begin)));
        }
        let mut direct = Vec::new();
        let begun = env.now();
        let until = begun + effort.calls / 4;
        while env.now() < until {
            let begin = env.now();
            local.call("echo", one.clone())?;
            direct.push(micros(env.now().since(begin)));
        }
        let direct_calls = direct.len() as f64 / env.now().since(begun).as_secs_f64();
        let calls = in_flight(services, &one, effort.calls).await?;
        let bulk = in_bulk(services, &many, effort.calls).await?;
        let begun = env.now();
        let (until, mut batches) = (begun + effort.calls / 4, 0);
        while env.now() < until {
            local.call("echo", many.clone())?;
            batches += 1;
        }
        let direct_rows = (batches * rows) as f64 / env.now().since(begun).as_secs_f64();
        if round == 0 {
            continue;
        }
        let (p50, direct_p50) = (quantile(&call, 0.5), quantile(&direct, 0.5));
        through.p50.push(p50);
        through.p99.push(quantile(&call, 0.99));
        through.one_way.push((p50 - direct_p50) / 2.0);
        through.calls.push(calls);
        through.rows.push(bulk);
        here.p50.push(direct_p50);
        here.p99.push(quantile(&direct, 0.99));
        here.calls.push(direct_calls);
        here.rows.push(direct_rows);
    }
    let figure = |what: &str, unit, rounds| Figure::new(PART, format!("{name}: {what}"), unit, rounds);
    Ok(vec![
        figure("one way, median", "us", through.one_way),
        figure("call, 1 in flight, median", "us", through.p50).against("in process", &here.p50),
        figure("call, 1 in flight, 99 %", "us", through.p99).against("in process", &here.p99),
        figure("calls, 64 in flight", "calls/s", through.calls)
            .against("in process, one by one", &here.calls),
        figure(&format!("bulk, {rows} rows a submission"), "rows/s", through.rows)
            .against("in process, as many a batch", &here.rows),
    ])
}

fn micros(d: Duration) -> f64 {
    d.as_secs_f64() * 1e6
}

/// Calls a second, of loops that call one after another.
async fn in_flight(services: &Services, one: &RecordBatch, time: Duration) -> Result<f64> {
    let env = services.env();
    let begun = env.now();
    let until = begun + time;
    let mut loops: FuturesUnordered<_> = (0..IN_FLIGHT)
        .map(|_| async {
            let mut calls = 0u64;
            while env.now() < until {
                services.call("echo", "echo", one.clone()).await?;
                calls += 1;
            }
            Ok::<_, pelton::Error>(calls)
        })
        .collect();
    let mut calls = 0;
    while let Some(done) = loops.next().await {
        calls += done?;
    }
    Ok(calls as f64 / env.now().since(begun).as_secs_f64())
}

/// Says how many requests have ended, or why one failed.
struct Count(mpsc::UnboundedSender<pelton::Result<usize>>);

impl Receiver for Count {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        let n = outcomes.len();
        let failed = outcomes.into_iter().find_map(|o| o.rows.err());
        let _ = self.0.unbounded_send(failed.map_or(Ok(n), Err));
    }
}

/// Rows a second, handed to the client many at a time.
async fn in_bulk(services: &Services, many: &RecordBatch, time: Duration) -> Result<f64> {
    let env = services.env();
    let caller = services.caller("echo-bulk")?;
    let (sender, mut ended) = mpsc::unbounded();
    let receiver = Arc::new(Count(sender));
    let group = env.entropy.seed();
    let rows = many.num_rows();
    let (begun, mut submitted, mut done) = (env.now(), 0, 0);
    let until = begun + time;
    loop {
        let goes_on = env.now() < until;
        while goes_on && submitted - done <= (BULK.1 - 1) * rows {
            let ids = (submitted..submitted + rows).map(|i| RequestId {
                operator: u32::MAX - 1,
                group,
                sequence: i as u64,
            });
            let submission = Submission::new(0, ids.collect(), many.clone());
            caller.submit(submission, receiver.clone());
            submitted += rows;
        }
        if submitted == done {
            return Ok(done as f64 / env.now().since(begun).as_secs_f64());
        }
        done += ended.next().await.context("the client is gone")??;
    }
}
