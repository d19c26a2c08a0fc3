//! A service with scripted latencies and failures.
//!
//! Put it in place of a model with `kind = "scripted"` in the model's declaration: it has the same methods, and its `[options]` are a
//! [`Script`]. Answers depend on the input row only, so a test can tell whether each row got its own.

mod answer;

use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field};
use pelton_core::service::{Context, Definition, Invocation, MethodSpec, Methods};
use pelton_core::{BoxFuture, Error, Result};
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
    /// A batch of more rows kills the process, as running out of memory does.
    pub memory_rows: Option<u64>,
    /// The process crashes at the start of this batch, counted from 1.
    pub crash_after: Option<u64>,
    /// From this batch on, counted from 1, none ever ends.
    pub hang_after: Option<u64>,
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
            memory_rows: None,
            crash_after: None,
            hang_after: None,
            seed: None,
        }
    }
}

impl Script {
    fn checked(self) -> Result<Script> {
        let shares =
            [("jitter", self.jitter), ("failure_rate", self.failure_rate), ("poison_rate", self.poison_rate)];
        match shares.into_iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            Some((name, share)) => {
                Err(Error::invalid(format!("scripted service: `{name}` is {share}; it must be 0 to 1")))
            }
            None => Ok(self),
        }
    }
}

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
        Ok(Scripted { script, context: ctx, rng, batches: 0 })
    }

    fn run(
        &mut self,
        batch: RecordBatch,
        _: Invocation,
        answer: impl FnOnce(&RecordBatch) -> Result<RecordBatch> + Send + 'static,
    ) -> BoxFuture<Result<RecordBatch>> {
        self.batches += 1;
        let Script { latency, per_row, jitter, failure_rate, poison_rate, .. } = self.script;
        let rows = batch.num_rows() as u64;
        if self.script.memory_rows.is_some_and(|most| rows > most) {
            (self.context.crash)(&format!("out of memory: a batch of {rows} rows"));
        }
        if self.script.crash_after == Some(self.batches) {
            (self.context.crash)(&format!("scripted to crash at batch {}", self.batches));
        }
        if self.script.hang_after.is_some_and(|n| self.batches >= n) {
            return Box::pin(std::future::pending());
        }
        let fails = failure_rate > 0.0 && self.rng.random::<f64>() < failure_rate;
        let factor = if jitter > 0.0 { 1.0 + jitter * (self.rng.random::<f64>() * 2.0 - 1.0) } else { 1.0 };
        let time =
            (latency + per_row.saturating_mul(u32::try_from(rows).unwrap_or(u32::MAX))).mul_f64(factor);
        let clock = self.context.clock.clone();
        Box::pin(async move {
            if !time.is_zero() {
                clock.sleep(time).await;
            }
            if fails {
                return Err(Error::transient("scripted to fail"));
            }
            if let Some(row) = answer::poisoned(&batch, poison_rate) {
                return Err(Error::user(format!("scripted to fail on row {row} of the batch")));
            }
            answer(&batch)
        })
    }
}
