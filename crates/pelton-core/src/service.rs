//! What a service is: a type with `open`, named methods over record batches, and `close`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::RecordBatch;
use arrow_schema::{Fields, Schema, SchemaRef};

use crate::BoxFuture;
use crate::declaration::Resources;
use crate::error::{Error, Result};
pub use crate::gate::{Emitter, Gate};
use crate::meter::{self, Tally};
use crate::time::{Clock, Time};

/// A model, or anything else that is loaded once and called often.
///
/// An instance runs in a process of its own. It **runs its requests strictly one after another** unless a method opts
/// in to asynchronous execution ([`Methods::concurrent`]); no method needs a lock.
pub trait Service: Sized + Send + 'static {
    /// Loads and warms up. The instance gets no request before this returns; it may take minutes.
    /// An error with [`Retry::Never`](crate::Retry::Never) fails the job, any other is tried again with backoff.
    fn open(ctx: &Context) -> Result<Self>;

    /// What can be called, by name.
    fn methods() -> Methods<Self>;

    /// Called once, after the last request, when the instance leaves in good order.
    fn close(self) -> Result<()> {
        Ok(())
    }
}

/// What a service may know of the place where it runs.
#[derive(Clone)]
pub struct Context {
    pub service: String,
    /// Which of the service's instances this is, from 0.
    pub instance: u32,
    /// The declaration's `[options]`.
    pub options: serde_json::Map<String, serde_json::Value>,
    /// What the declaration gives one instance. A service sizes its thread pools by `resources.cpu`.
    pub resources: Resources,
    pub clock: Arc<dyn Clock>,
    /// Differs from instance to instance and start to start; the same in a simulation with the same seed.
    pub seed: u64,
    /// Where the service says how full its memory is, if it knows.
    pub gauge: Gauge,
    /// Where the service counts what it does besides.
    pub counters: Counters,
    /// Ends the process at once, as a crash would. For services that test what happens then.
    pub crash: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Context {
    /// The declaration's options as a type of the service's own (use `#[serde(deny_unknown_fields)]` on it).
    pub fn options<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(serde_json::Value::Object(self.options.clone()))
            .map_err(|e| Error::invalid(format!("options of service `{}`: {e}", self.service)))
    }
}

/// How full the memory is that requests fill while they wait and run: a model server's key-value cache, an accelerator's memory. In the
/// unit of the declaration's [`Weight`](crate::declaration::Weight). A service that knows it reports it, as often as it changes;
/// the instance then lets in and starts no more than fits. Cheap to clone; all clones are one gauge.
#[derive(Clone, Debug, Default)]
pub struct Gauge {
    value: Arc<(AtomicU64, AtomicU64)>,
}

impl Gauge {
    /// So much of so much is used now.
    pub fn report(&self, used: f64, total: f64) {
        self.value.0.store(used.max(0.0).to_bits(), Ordering::Relaxed);
        self.value.1.store(total.max(0.0).to_bits(), Ordering::Relaxed);
    }

    /// What was reported last: used, total. None: nothing yet.
    pub fn read(&self) -> Option<(f64, f64)> {
        let total = f64::from_bits(self.value.1.load(Ordering::Relaxed));
        let used = f64::from_bits(self.value.0.load(Ordering::Relaxed));
        (total > 0.0).then_some((used, total))
    }
}

/// What a service counts: bytes that it read elsewhere, answers that it had already. Shown with its instance
/// ([`InstanceMeter::counted`](crate::meter::InstanceMeter::counted)). Cheap to clone; all clones count together.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    counted: Arc<Mutex<Tally>>,
}

impl Counters {
    /// Names of counters; more are not counted.
    const MOST: usize = 64;

    pub fn add(&self, what: &str, n: u64) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.len() < Counters::MOST || counted.contains_key(what) {
            meter::count(&mut counted, what, n);
        }
    }

    /// All that was counted so far.
    pub fn read(&self) -> Tally {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a method may know of the requests it runs.
#[derive(Clone, Debug, Default)]
pub struct Invocation {
    /// The earliest deadline in the batch, by the context's clock.
    pub deadline: Option<Time>,
    cancelled: Arc<AtomicBool>,
    failed: Arc<Mutex<BTreeMap<usize, Error>>>,
}

impl Invocation {
    pub fn new(deadline: Option<Time>, cancelled: Arc<AtomicBool>) -> Self {
        Invocation { deadline, cancelled, failed: Arc::default() }
    }

    /// Whether nobody waits for the answer any more. Long methods look now and then, and return early.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Says that the request of this row, counted from 0, failed, and those of the others did not. The method gives a row for it all the
    /// same, with any values: nobody sees it. Of no meaning in a streaming method, which has one request, and returns its error.
    pub fn fail(&self, row: usize, error: Error) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).insert(row, error);
    }

    /// The rows that failed so far; they are not told again.
    pub fn take_failed(&self) -> BTreeMap<usize, Error> {
        std::mem::take(&mut *self.failed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where a streaming method puts its rows, part by part. Returns when the caller has room for more; an error means that nobody wants
/// more: return it. Large parts travel in pieces, so their boundaries mean nothing to the caller.
pub type Emit<'a> = &'a mut (dyn FnMut(RecordBatch) -> Result<()> + Send);

/// How many rows a method gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cardinality {
    /// One row for each input row, in the same order.
    One,
    /// Any number of rows for one request, in parts.
    Many,
}

/// A method's name and types: what callers and declarations know of it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct MethodSpec {
    pub name: String,
    pub input: SchemaRef,
    pub output: SchemaRef,
    pub cardinality: Cardinality,
    /// How many batches of it may run at a time; None: strictly serial.
    pub concurrency: Option<usize>,
}

impl MethodSpec {
    /// Whether calls of the one are calls of the other: how many batches run at a time is the business of whoever serves it.
    pub fn is_called_as(&self, other: &MethodSpec) -> bool {
        let facts = |m: &MethodSpec| (m.name.clone(), m.input.clone(), m.output.clone(), m.cardinality);
        facts(self) == facts(other)
    }
}

/// Whether callers of these methods may call those.
pub fn are_called_as(ours: &[MethodSpec], theirs: &[MethodSpec]) -> bool {
    ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| a.is_called_as(b))
}

type Serial<S> = Arc<dyn Fn(&mut S, RecordBatch, &Invocation) -> Result<RecordBatch> + Send + Sync>;
type Concurrent<S> =
    Arc<dyn Fn(&mut S, RecordBatch, Invocation) -> BoxFuture<Result<RecordBatch>> + Send + Sync>;
type Streaming<S> = Arc<dyn Fn(&mut S, RecordBatch, &Invocation, Emit<'_>) -> Result<()> + Send + Sync>;
type Flowing<S> =
    Arc<dyn Fn(&mut S, RecordBatch, Invocation, Emitter) -> BoxFuture<Result<()>> + Send + Sync>;

enum Body<S> {
    Serial(Serial<S>),
    Concurrent(Concurrent<S>),
    Streaming(Streaming<S>),
    Flowing(Flowing<S>),
}

impl<S> Clone for Body<S> {
    fn clone(&self) -> Self {
        match self {
            Body::Serial(f) => Body::Serial(f.clone()),
            Body::Concurrent(f) => Body::Concurrent(f.clone()),
            Body::Streaming(f) => Body::Streaming(f.clone()),
            Body::Flowing(f) => Body::Flowing(f.clone()),
        }
    }
}

/// The methods of a service.
pub struct Methods<S> {
    specs: Vec<MethodSpec>,
    bodies: Vec<Body<S>>,
}

impl<S> Default for Methods<S> {
    fn default() -> Self {
        Methods { specs: Vec::new(), bodies: Vec::new() }
    }
}

impl<S: 'static> Methods<S> {
    pub fn new() -> Self {
        Methods::default()
    }

    fn add(mut self, spec: MethodSpec, body: Body<S>) -> Self {
        self.specs.push(spec);
        self.bodies.push(body);
        self
    }

    /// A method that gives one output row for each input row, in the same order, and runs alone.
    pub fn serial(
        self,
        name: &str,
        input: impl Into<Fields>,
        output: impl Into<Fields>,
        run: impl Fn(&mut S, RecordBatch, &Invocation) -> Result<RecordBatch> + Send + Sync + 'static,
    ) -> Self {
        self.add(spec(name, input, output, Cardinality::One, None), Body::Serial(Arc::new(run)))
    }

    /// As [`serial`](Methods::serial), but up to `bound` batches run at a time. Starting them stays serial: `start` has the
    /// service to itself, and returns a future that owns what it needs.
    pub fn concurrent(
        self,
        name: &str,
        bound: usize,
        input: impl Into<Fields>,
        output: impl Into<Fields>,
        start: impl Fn(&mut S, RecordBatch, Invocation) -> BoxFuture<Result<RecordBatch>> + Send + Sync + 'static,
    ) -> Self {
        let spec = spec(name, input, output, Cardinality::One, Some(bound.max(1)));
        self.add(spec, Body::Concurrent(Arc::new(start)))
    }

    /// A method that runs alone, on one request (one row) at a time, and gives back any number of batches. While its caller takes none,
    /// `emit` waits, and the service with it; where others shall go on meanwhile, use [`flowing`](Methods::flowing).
    pub fn streaming(
        self,
        name: &str,
        input: impl Into<Fields>,
        output: impl Into<Fields>,
        run: impl Fn(&mut S, RecordBatch, &Invocation, Emit<'_>) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.add(spec(name, input, output, Cardinality::Many, None), Body::Streaming(Arc::new(run)))
    }

    /// As [`streaming`](Methods::streaming), but up to `bound` requests run at a time, each with a future of its own that owns what it
    /// needs. One whose caller takes nothing waits at its [`Emitter`], and the others go on.
    pub fn flowing(
        self,
        name: &str,
        bound: usize,
        input: impl Into<Fields>,
        output: impl Into<Fields>,
        start: impl Fn(&mut S, RecordBatch, Invocation, Emitter) -> BoxFuture<Result<()>> + Send + Sync + 'static,
    ) -> Self {
        let spec = spec(name, input, output, Cardinality::Many, Some(bound.max(1)));
        self.add(spec, Body::Flowing(Arc::new(start)))
    }

    pub fn specs(&self) -> &[MethodSpec] {
        &self.specs
    }
}

fn spec(
    name: &str,
    input: impl Into<Fields>,
    output: impl Into<Fields>,
    cardinality: Cardinality,
    concurrency: Option<usize>,
) -> MethodSpec {
    MethodSpec {
        name: name.to_owned(),
        input: Arc::new(Schema::new(input)),
        output: Arc::new(Schema::new(output)),
        cardinality,
        concurrency,
    }
}

/// A service type with its name erased: what an instance runs.
#[derive(Clone)]
pub struct Definition {
    /// The Rust type, for messages.
    pub type_name: &'static str,
    pub methods: Arc<[MethodSpec]>,
    open: Arc<Open>,
}

type Open = dyn Fn(Context) -> BoxFuture<Result<Box<dyn Opened>>> + Send + Sync;

impl Definition {
    pub fn of<S: Service>() -> Self {
        Definition::with(|ctx| Box::pin(async move { S::open(&ctx) }), S::methods(), S::close)
    }

    /// A definition whose `open`, methods and `close` are given one by one. This `open` may wait without blocking.
    pub fn with<S: Send + 'static>(
        open: impl Fn(Context) -> BoxFuture<Result<S>> + Send + Sync + 'static,
        methods: Methods<S>,
        close: fn(S) -> Result<()>,
    ) -> Self {
        let bodies: Arc<[Body<S>]> = methods.bodies.into();
        Definition {
            type_name: std::any::type_name::<S>(),
            methods: methods.specs.into(),
            open: Arc::new(move |ctx| {
                let (opening, bodies) = (open(ctx), bodies.clone());
                Box::pin(async move {
                    let state = opening.await?;
                    Ok(Box::new(Erased { state, bodies, close }) as Box<dyn Opened>)
                })
            }),
        }
    }

    /// Opens the service: takes, and may block, for as long as the user's `open` does.
    pub fn open(&self, ctx: Context) -> BoxFuture<Result<Box<dyn Opened>>> {
        (self.open)(ctx)
    }

    /// Which method this name means.
    pub fn method(&self, service: &str, name: &str) -> Result<usize> {
        (self.methods.iter().position(|m| m.name == name))
            .ok_or_else(|| crate::call::no_such_method(service, name, &self.methods))
    }
}

/// What running a batch has begun.
pub enum Started {
    /// It ran; a streaming method's rows have gone to `emit`, and this is an empty batch.
    Done(Result<RecordBatch>),
    /// It goes on by itself.
    Pending(BoxFuture<Result<RecordBatch>>),
}

/// An opened service, its type erased.
pub trait Opened: Send {
    /// Runs or starts one batch of `method` (an index into the definition's methods).
    fn run(
        &mut self,
        method: usize,
        batch: RecordBatch,
        invocation: &Invocation,
        emitter: &Emitter,
    ) -> Started;
    fn close(self: Box<Self>) -> Result<()>;
}

struct Erased<S> {
    state: S,
    bodies: Arc<[Body<S>]>,
    close: fn(S) -> Result<()>,
}

impl<S: Send + 'static> Opened for Erased<S> {
    fn run(
        &mut self,
        method: usize,
        batch: RecordBatch,
        invocation: &Invocation,
        emitter: &Emitter,
    ) -> Started {
        let empty = || RecordBatch::new_empty(Arc::new(Schema::empty()));
        match &self.bodies[method] {
            Body::Serial(run) => Started::Done(run(&mut self.state, batch, invocation)),
            Body::Concurrent(start) => Started::Pending(start(&mut self.state, batch, invocation.clone())),
            Body::Streaming(run) => {
                let mut emit = |rows| emitter.emit_blocking(rows);
                Started::Done(run(&mut self.state, batch, invocation, &mut emit).map(|()| empty()))
            }
            Body::Flowing(start) => {
                let flowing = start(&mut self.state, batch, invocation.clone(), emitter.clone());
                Started::Pending(Box::pin(async move { flowing.await.map(|()| empty()) }))
            }
        }
    }

    fn close(self: Box<Self>) -> Result<()> {
        (self.close)(self.state)
    }
}

/// Says no to a batch whose columns are not those of `expected`, by name, type and order.
pub fn check_columns(what: impl std::fmt::Display, batch: &RecordBatch, expected: &Schema) -> Result<()> {
    let given = batch.schema();
    let fits = given.fields().len() == expected.fields().len()
        && (given.fields().iter().zip(expected.fields())).all(|(g, e)| {
            g.name() == e.name() && g.data_type() == e.data_type() && (e.is_nullable() || !g.is_nullable())
        });
    if fits {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{what}: columns are ({}), expected ({})",
        show_columns(&given),
        show_columns(expected)
    )))
}

/// A schema in one line: `text: Utf8, embedding: FixedSizeList(...)`.
pub fn show_columns(schema: &Schema) -> String {
    let columns: Vec<String> = (schema.fields().iter())
        .map(|f| format!("{}: {}{}", f.name(), f.data_type(), if f.is_nullable() { "?" } else { "" }))
        .collect();
    columns.join(", ")
}
