//! A service with scripted latencies and failures.
//!
//! Put it in place of a model with `kind = "scripted"` in the model's declaration: it has the same methods, and its `[options]` are a
//! [`Script`]. Answers depend on the input row only, so a test can tell whether each row got its own.

mod answer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, SchemaRef};
use pelton_core::service::{Cardinality, Context, Definition, Emitter, Invocation, MethodSpec, Methods};
use pelton_core::time::Clock;
use pelton_core::{BoxFuture, Bytes, Error, Fate, Kind, Result, Retry};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;

/// The `kind` that stands for this service in a declaration.
pub const KIND: &str = "scripted";

/// How a scripted service behaves. A batch of `n` rows takes `latency + n * per_row`, with jitter.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// How long `open` takes.
    #[serde(with = "humantime_serde")]
    pub open: Duration,
    /// `open` fails with this message, for good.
    pub open_error: Option<String>,
    #[serde(with = "humantime_serde")]
    pub latency: Duration,
    #[serde(with = "humantime_serde")]
    pub per_row: Duration,
    /// Each batch takes up to this share longer or shorter: 0.1 is up to 10 %.
    pub jitter: f64,
    /// The share of batches that fail, and may pass another time.
    pub failure_rate: f64,
    /// The share of rows that always fail, each with its whole batch. Which ones depends on their content.
    pub poison_rate: f64,
    /// A poisoned row kills the process at the end of its batch, instead of failing it.
    pub crash_on_poison: bool,
    /// A batch of more rows kills the process, as running out of memory does.
    pub memory_rows: Option<u64>,
    /// A batch of more rows fails with an error of kind `out-of-memory`, and the process lives on.
    pub memory_error_rows: Option<u64>,
    /// With more batches than this running at a time, each one that starts takes longer, by `overload_growth`. It matters for
    /// methods that run several batches at a time.
    pub overload_beyond: Option<u64>,
    /// How much longer, for each batch beyond: 1.0 makes a batch that starts as one too many take twice its time.
    pub overload_growth: f64,
    /// The process crashes at the start of this batch, counted from 1.
    pub crash_after: Option<u64>,
    /// From this batch on, counted from 1, none ever ends, whether somebody waits for it or not.
    pub hang_after: Option<u64>,
    /// With `hang_after`: only that one batch hangs, and only so long on top of its usual time.
    #[serde(with = "humantime_serde")]
    pub hang_for: Option<Duration>,
    /// From this batch on, counted from 1, each takes `slow_factor` times as long.
    pub slow_after: Option<u64>,
    pub slow_factor: f64,
    /// `crash_after`, `hang_after` and `slow_after` apply to the instance of this number alone. None: to each.
    pub only_instance: Option<u32>,
    /// A batch for which nobody waits any more runs to its end. Without it, one looks now and then, and stops.
    pub ignore_cancel: bool,
    /// How many parts a streaming method gives for a request, after the time that the batch takes.
    pub parts: u64,
    /// Rows of each part.
    pub part_rows: u32,
    /// About so many bytes in each part, in its columns of text and bytes. None: short ones.
    pub part_bytes: Option<Bytes>,
    /// The time between two parts, which is not varied.
    #[serde(with = "humantime_serde")]
    pub pause: Duration,
    /// A stream fails before its part of this number, counted from 1.
    pub fail_at_part: Option<u64>,
    /// The process crashes there.
    pub crash_at_part: Option<u64>,
    /// What the random choices are drawn from; by default each instance draws its own.
    pub seed: Option<u64>,
}

impl Default for Script {
    fn default() -> Self {
        Script {
            open: Duration::ZERO,
            open_error: None,
            latency: Duration::ZERO,
            per_row: Duration::ZERO,
            jitter: 0.0,
            failure_rate: 0.0,
            poison_rate: 0.0,
            crash_on_poison: false,
            memory_rows: None,
            memory_error_rows: None,
            overload_beyond: None,
            overload_growth: 1.0,
            crash_after: None,
            hang_after: None,
            hang_for: None,
            slow_after: None,
            slow_factor: 10.0,
            only_instance: None,
            ignore_cancel: false,
            parts: 4,
            part_rows: 1,
            part_bytes: None,
            pause: Duration::ZERO,
            fail_at_part: None,
            crash_at_part: None,
            seed: None,
        }
    }
}

impl Script {
    fn checked(self) -> Result<Script> {
        let shares =
            [("jitter", self.jitter), ("failure_rate", self.failure_rate), ("poison_rate", self.poison_rate)];
        if let Some((name, share)) = shares.into_iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            return Err(Error::invalid(format!("scripted service: `{name}` is {share}; it must be 0 to 1")));
        }
        let factors = [("overload_growth", self.overload_growth), ("slow_factor", self.slow_factor)];
        if let Some((name, factor)) = factors.into_iter().find(|(_, f)| !(0.0..=MOST_FACTOR).contains(f)) {
            return Err(Error::invalid(format!(
                "scripted service: `{name}` is {factor}; it must be 0 to {MOST_FACTOR}"
            )));
        }
        if self.part_rows == 0 || self.part_rows > MOST_ROWS {
            return Err(Error::invalid(format!(
                "scripted service: `part_rows` is {}; it must be 1 to {MOST_ROWS}",
                self.part_rows
            )));
        }
        if self.part_bytes.is_some_and(|bytes| bytes > Bytes::mib(1024)) {
            return Err(Error::invalid("scripted service: `part_bytes` must be at most 1 GiB"));
        }
        if self.hang_for.is_some() && self.hang_after.is_none() {
            return Err(Error::invalid(
                "scripted service: `hang_for` says how long; say with `hang_after` which batch hangs",
            ));
        }
        Ok(self)
    }

    /// What happens to the batch of this number, counted from 1, at this instance.
    fn turn(&self, batch: u64, instance: u32) -> Turn {
        if self.only_instance.is_some_and(|only| only != instance) {
            return Turn::Runs { factor: 1.0, hang: Duration::ZERO };
        }
        if self.crash_after == Some(batch) {
            return Turn::Crashes;
        }
        let hang = match (self.hang_after, self.hang_for) {
            (Some(first), None) if batch >= first => return Turn::Hangs,
            (Some(first), Some(time)) if batch == first => time,
            _ => Duration::ZERO,
        };
        let slow = self.slow_after.is_some_and(|first| batch >= first);
        Turn::Runs { factor: if slow { self.slow_factor } else { 1.0 }, hang }
    }

    /// How many times its usual time a batch takes that starts as one of `running`.
    fn overload(&self, running: u64) -> f64 {
        let beyond = self.overload_beyond.map_or(0, |most| running.saturating_sub(most));
        1.0 + self.overload_growth * beyond as f64
    }
}

/// What the number of a batch brings.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Turn {
    Crashes,
    Hangs,
    Runs { factor: f64, hang: Duration },
}

/// More would be no time that anybody means.
const MOST_FACTOR: f64 = 1e6;
/// Rows of a part at most.
const MOST_ROWS: u32 = 1 << 20;
/// How long a batch runs on without looking whether somebody waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A service of one method, `call(payload: Binary) -> (payload: Binary)`, that gives back what it gets.
pub fn echo() -> Definition {
    let payload = || vec![Field::new("payload", DataType::Binary, false)];
    let specs = Methods::<Scripted>::new().serial("call", payload(), payload(), |_, batch, _| Ok(batch));
    in_place_of(specs.specs()).expect("bytes can be scripted")
}

/// A scripted service with these methods.
pub fn in_place_of(methods: &[MethodSpec]) -> Result<Definition> {
    let mut scripted = Methods::<Scripted>::new();
    for method in methods {
        answer::check(method)?;
        let output = method.output.clone();
        if method.cardinality == Cardinality::Many {
            scripted = scripted.flowing(
                &method.name,
                method.concurrency.unwrap_or(1),
                method.input.fields().clone(),
                method.output.fields().clone(),
                move |service, batch, invocation, emitter| {
                    service.stream(batch, invocation, emitter, output.clone())
                },
            );
            continue;
        }
        scripted = scripted.concurrent(
            &method.name,
            method.concurrency.unwrap_or(1),
            method.input.fields().clone(),
            method.output.fields().clone(),
            move |service, batch, invocation| {
                let output = output.clone();
                service.run(batch, invocation, move |batch| answer::answer(batch, &output))
            },
        );
    }
    Ok(Definition::with(|ctx| Box::pin(Scripted::open(ctx)), scripted, |_| Ok(())))
}

/// The scripted service at work.
pub struct Scripted {
    script: Script,
    context: Context,
    rng: StdRng,
    batches: u64,
    running: Arc<AtomicU64>,
}

impl Scripted {
    async fn open(ctx: Context) -> Result<Self> {
        let script: Script = ctx.options::<Script>()?.checked()?;
        if let Some(message) = &script.open_error {
            return Err(Error::invalid(message.clone()));
        }
        if !script.open.is_zero() {
            ctx.clock.sleep(script.open).await;
        }
        let rng = StdRng::seed_from_u64(script.seed.map_or(ctx.seed, |seed| seed ^ u64::from(ctx.instance)));
        Ok(Scripted { script, context: ctx, rng, batches: 0, running: Arc::default() })
    }

    fn run(
        &mut self,
        batch: RecordBatch,
        invocation: Invocation,
        answer: impl FnOnce(&RecordBatch) -> Result<RecordBatch> + Send + 'static,
    ) -> BoxFuture<Result<RecordBatch>> {
        self.batches += 1;
        let Script { latency, per_row, jitter, failure_rate, poison_rate, .. } = self.script;
        let Script { crash_on_poison, ignore_cancel, .. } = self.script;
        let rows = batch.num_rows() as u64;
        if self.script.memory_rows.is_some_and(|most| rows > most) {
            (self.context.crash)(&format!("out of memory: a batch of {rows} rows"));
        }
        if let Some(most) = self.script.memory_error_rows.filter(|most| rows > *most) {
            let why = format!("scripted to run out of memory: a batch of {rows} rows; {most} fit");
            return Box::pin(async move { Err(Error::out_of_memory(why)) });
        }
        let (slow, hang) = match self.script.turn(self.batches, self.context.instance) {
            Turn::Runs { factor, hang } => (factor, hang),
            Turn::Hangs => return Box::pin(std::future::pending()),
            Turn::Crashes => {
                (self.context.crash)(&format!("scripted to crash at batch {}", self.batches));
                return Box::pin(std::future::pending());
            }
        };
        let fails = failure_rate > 0.0 && self.rng.random::<f64>() < failure_rate;
        let factor = if jitter > 0.0 { 1.0 + jitter * (self.rng.random::<f64>() * 2.0 - 1.0) } else { 1.0 };
        let running = Running::begin(&self.running);
        let factor = factor * slow * self.script.overload(running.now());
        let time =
            (latency + per_row.saturating_mul(u32::try_from(rows).unwrap_or(u32::MAX))).mul_f64(factor);
        let (clock, crash) = (self.context.clock.clone(), self.context.crash.clone());
        Box::pin(async move {
            let _running = running;
            if !hang.is_zero() {
                clock.sleep(hang).await;
            }
            pause(&*clock, time, &invocation, ignore_cancel).await?;
            if fails {
                return Err(Error::transient("scripted to fail"));
            }
            if let Some(row) = answer::poisoned(&batch, poison_rate) {
                if crash_on_poison {
                    crash(&format!("scripted to crash on row {row} of the batch"));
                }
                return Err(Error::user(format!("scripted to fail on row {row} of the batch")));
            }
            answer(&batch)
        })
    }
}

impl Scripted {
    fn stream(
        &mut self,
        batch: RecordBatch,
        invocation: Invocation,
        emitter: Emitter,
        output: SchemaRef,
    ) -> BoxFuture<Result<()>> {
        let script = self.script.clone();
        let (clock, crash) = (self.context.clock.clone(), self.context.crash.clone());
        let begun = self.run(batch, invocation.clone(), |batch| Ok(batch.clone()));
        Box::pin(async move {
            let request = begun.await?;
            for part in 0..script.parts {
                if part > 0 {
                    pause(&*clock, script.pause, &invocation, script.ignore_cancel).await?;
                }
                if script.crash_at_part == Some(part + 1) {
                    crash(&format!("scripted to crash at part {} of a stream", part + 1));
                    return std::future::pending().await;
                }
                if script.fail_at_part == Some(part + 1) {
                    return Err(Error::user(format!("scripted to fail at part {} of a stream", part + 1)));
                }
                let bytes = script.part_bytes.map(Bytes::get);
                emitter.emit(answer::part(&request, part, script.part_rows, bytes, &output)?).await?;
            }
            Ok(())
        })
    }
}

/// Waits, as long as somebody waits for what comes.
async fn pause(
    clock: &dyn Clock,
    time: Duration,
    invocation: &Invocation,
    ignore_cancel: bool,
) -> Result<()> {
    let until = clock.now() + time;
    let mut left = time;
    while !left.is_zero() {
        clock.sleep(if ignore_cancel { left } else { left.min(LOOK_EVERY) }).await;
        left = until.since(clock.now());
        if !ignore_cancel && invocation.is_cancelled() {
            let why = "stopped: nobody waits for the answer any more";
            return Err(Error::new(Kind::Cancelled, Fate::Executed, Retry::Never, why));
        }
    }
    Ok(())
}

/// One batch among those that run.
struct Running(Arc<AtomicU64>);

impl Running {
    fn begin(all: &Arc<AtomicU64>) -> Running {
        all.fetch_add(1, Ordering::Relaxed);
        Running(all.clone())
    }

    /// How many run, this one included.
    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
