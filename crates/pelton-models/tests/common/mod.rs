//! What the tests of both services need.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::PathBuf;
use std::sync::Arc;
use std::task;
use std::time::Duration;

use arrow_array::RecordBatch;
use pelton_core::declaration::Resources;
use pelton_core::service::{Context, Definition, Emitter, Invocation, Opened, Started};
use pelton_core::time::{Clock, Time};
use pelton_core::{BoxFuture, Result};

struct Still;

impl Clock for Still {
    fn now(&self) -> Time {
        Time::ZERO
    }
    fn sleep(&self, _: Duration) -> BoxFuture<()> {
        Box::pin(std::future::pending())
    }
    fn unix_millis(&self) -> u64 {
        0
    }
}

pub(crate) fn context(cpu: f64, options: serde_json::Value) -> Context {
    Context {
        service: "model".into(),
        instance: 0,
        options: options.as_object().expect("options are an object").clone(),
        resources: Resources { cpu, ..Resources::default() },
        clock: Arc::new(Still),
        seed: 0,
        gauge: Default::default(),
        counters: Default::default(),
        crash: Arc::new(|why| panic!("{why}")),
    }
}

/// These services open without waiting for anything, so that one poll is enough.
fn open(definition: &Definition, ctx: Context) -> Result<Box<dyn Opened>> {
    match definition.open(ctx).as_mut().poll(&mut task::Context::from_waker(task::Waker::noop())) {
        task::Poll::Ready(opened) => opened,
        task::Poll::Pending => panic!("it waits for something"),
    }
}

/// Why the service does not open, which must be for good.
pub(crate) fn refusal(definition: &Definition, options: serde_json::Value) -> String {
    let error = open(definition, context(1.0, options)).err().expect("it opened");
    assert_eq!(error.retry(), pelton_core::Retry::Never, "{error}");
    error.to_string()
}

/// Opens the service for one batch.
pub(crate) fn call(definition: &Definition, ctx: &Context, rows: RecordBatch) -> Result<RecordBatch> {
    match open(definition, ctx.clone())?.run(0, rows, &Invocation::default(), &Emitter::none()) {
        Started::Done(result) => result,
        Started::Pending(_) => panic!("the method is serial"),
    }
}

pub(crate) fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where the embedding model is.
pub(crate) fn embedding_model() -> PathBuf {
    let given = std::env::var_os("PELTON_MODEL").map(PathBuf::from);
    let folder = given.unwrap_or_else(|| workspace().join(".cache/models/all-minilm-l6-v2"));
    let there = folder.join("model.safetensors").is_file();
    assert!(
        there,
        "no embedding model in {}; run `cargo xtask setup`, or set PELTON_MODEL",
        folder.display()
    );
    folder
}
