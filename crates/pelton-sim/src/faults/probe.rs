//! The service that simulated instances run: the scripted one, with every execution written down.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{ArrayRef, RecordBatch, UInt64Array};
use arrow_schema::{DataType, Field, SchemaRef};
use pelton_core::service::{Context, Definition, Emitter, Invocation, MethodSpec, Methods, Opened, Started};
use pelton_core::{BoxFuture, Error, Result, Time};

use crate::faults::process;
use crate::faults::world::{Pid, World};

/// The method that answers a key with itself and a number made of it.
pub const CALL: usize = 0;
/// The method that gives `key % 4` batches of one row for a key.
pub const STREAM: usize = 1;

/// The method that gives [`flow_parts`] batches of one row for a key, and waits while its caller takes none.
pub const FLOW: usize = 2;

/// How many parts that gives.
pub fn flow_parts(key: u64) -> u64 {
    key * 7 % 23
}

/// One run of one request.
#[derive(Clone, Copy, Debug)]
pub struct Execution {
    pub pid: Pid,
    pub began: Time,
    /// When, and whether it went well.
    pub ended: Option<(Time, bool)>,
}

/// Who ran what, over all processes: what no part of the real system can know.
#[derive(Clone, Default)]
pub struct Executions {
    by_key: Arc<Mutex<BTreeMap<u64, Vec<Execution>>>>,
}

impl Executions {
    pub fn of(&self, key: u64) -> Vec<Execution> {
        self.lock().get(&key).cloned().unwrap_or_default()
    }

    pub(crate) fn all(&self) -> BTreeMap<u64, Vec<Execution>> {
        self.lock().clone()
    }

    pub fn keys(&self) -> usize {
        self.lock().len()
    }

    pub(crate) fn began(&self, keys: &[u64], pid: Pid, began: Time) {
        let mut by_key = self.lock();
        for key in keys {
            by_key.entry(*key).or_default().push(Execution { pid, began, ended: None });
        }
    }

    pub(crate) fn ended(&self, keys: &[u64], pid: Pid, at: Time, well: bool) {
        let mut by_key = self.lock();
        for key in keys {
            let open = by_key
                .get_mut(key)
                .and_then(|e| e.iter_mut().rev().find(|e| e.pid == pid && e.ended.is_none()));
            if let Some(execution) = open {
                execution.ended = Some((at, well));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<Execution>>> {
        self.by_key.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// How instances differ from what their declaration's script says.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// This one of the instances is this many times slower.
    pub slow: Option<(u32, u32)>,
    /// The first starts of the whole simulation fail so.
    pub bad_starts: (u64, BadStart),
    /// Batches that run side by side.
    pub concurrency: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BadStart {
    /// `open` gives an error that may pass.
    #[default]
    Fails,
    /// `open` crashes half-way.
    Crashes,
    /// `open` gives an error that stays.
    Impossible,
}

fn field(name: &str) -> Field {
    Field::new(name, DataType::UInt64, false)
}

/// What the instances' methods look like.
pub fn specs(concurrency: usize) -> Vec<MethodSpec> {
    let (input, output) = (vec![field("key")], vec![field("key"), field("answer")]);
    Methods::<Probe>::new()
        .concurrent("call", concurrency, input.clone(), output.clone(), |_, _, _| {
            Box::pin(std::future::pending())
        })
        .streaming("stream", input.clone(), output.clone(), |_, _, _, _| Ok(()))
        .flowing("flow", concurrency, input, output, |_, _, _, _| Box::pin(std::future::pending()))
        .specs()
        .to_vec()
}

/// The arguments for some keys.
pub fn arguments(keys: &[u64]) -> RecordBatch {
    let schema = specs(1)[CALL].input.clone();
    let keys: ArrayRef = Arc::new(UInt64Array::from(keys.to_vec()));
    RecordBatch::try_new(schema, vec![keys]).expect("it is the input of both methods")
}

/// The keys of arguments or results.
pub fn keys(rows: &RecordBatch) -> Vec<u64> {
    rows.column(0).as_primitive::<UInt64Type>().values().to_vec()
}

/// What a process runs.
pub fn definition(
    world: &World,
    executions: &Executions,
    plan: &Plan,
    started: &process::Started,
) -> Definition {
    let scripted =
        pelton_scripted::in_place_of(&specs(plan.concurrency)[..1]).expect("numbers can be scripted");
    let (input, output) = (vec![field("key")], vec![field("key"), field("answer")]);
    let methods = Methods::<Probe>::new()
        .concurrent("call", plan.concurrency, input.clone(), output.clone(), Probe::call)
        .streaming("stream", input.clone(), output.clone(), |probe: &mut Probe, batch, _, emit| {
            probe.stream(&batch, emit)
        })
        .flowing("flow", plan.concurrency, input, output, |probe: &mut Probe, batch, _, emitter| {
            probe.flow(&batch, emitter)
        });
    let (world, executions, plan, started) =
        (world.clone(), executions.clone(), plan.clone(), started.clone());
    let open = move |mut ctx: Context| -> BoxFuture<Result<Probe>> {
        let (world, executions, plan, pid) = (world.clone(), executions.clone(), plan.clone(), started.pid);
        let bad = (started.start < plan.bad_starts.0).then_some(plan.bad_starts.1);
        let scripted = scripted.clone();
        Box::pin(async move {
            if let Some(bad) = bad {
                world.sleep(world.between(Duration::ZERO, Duration::from_millis(50))).await;
                match bad {
                    BadStart::Fails => return Err(Error::transient("not this time")),
                    BadStart::Impossible => return Err(Error::invalid("no such model")),
                    BadStart::Crashes => {
                        (ctx.crash)("in `open`");
                        std::future::pending::<()>().await;
                    }
                }
            }
            if let Some((_, times)) = plan.slow.filter(|(number, _)| *number == ctx.instance) {
                for name in ["latency", "per_row"] {
                    if let Some(text) = ctx.options.get(name).and_then(|v| v.as_str()) {
                        let us: u32 =
                            text.trim_end_matches("us").parse().expect("scenarios give microseconds");
                        let slow = format!("{}us", us * times);
                        ctx.options.insert(name.to_owned(), slow.into());
                    }
                }
            }
            let output = specs(1)[CALL].output.clone();
            Ok(Probe { inner: scripted.open(ctx).await?, world, executions, pid, output })
        })
    };
    Definition::with(open, methods, |probe| probe.inner.close())
}

struct Probe {
    inner: Box<dyn Opened>,
    world: World,
    executions: Executions,
    pid: Pid,
    output: SchemaRef,
}

impl Probe {
    fn call(&mut self, batch: RecordBatch, invocation: Invocation) -> BoxFuture<Result<RecordBatch>> {
        let (keys, pid) = (keys(&batch), self.pid);
        let (world, executions) = (self.world.clone(), self.executions.clone());
        executions.began(&keys, pid, world.now());
        let started = self.inner.run(CALL, batch, &invocation, &Emitter::none());
        Box::pin(async move {
            let result = match started {
                Started::Done(result) => result,
                Started::Pending(future) => future.await,
            };
            executions.ended(&keys, pid, world.now(), result.is_ok());
            result
        })
    }

    fn flow(&mut self, batch: &RecordBatch, emitter: Emitter) -> BoxFuture<Result<()>> {
        let (keys, pid, output) = (keys(batch), self.pid, self.output.clone());
        let (world, executions) = (self.world.clone(), self.executions.clone());
        executions.began(&keys, pid, world.now());
        Box::pin(async move {
            let mut result = Ok(());
            'all: for key in &keys {
                for part in 0..flow_parts(*key) {
                    world.sleep(world.between(Duration::ZERO, Duration::from_micros(300))).await;
                    result = emitter.emit(row(&output, *key, part)?).await;
                    if result.is_err() {
                        break 'all;
                    }
                }
            }
            executions.ended(&keys, pid, world.now(), result.is_ok());
            result
        })
    }

    fn stream(&mut self, batch: &RecordBatch, emit: pelton_core::service::Emit<'_>) -> Result<()> {
        let keys = keys(batch);
        self.executions.began(&keys, self.pid, self.world.now());
        for (key, part) in keys.iter().flat_map(|key| (0..key % 4).map(move |part| (*key, part))) {
            emit(row(&self.output, key, part)?)?;
        }
        self.executions.ended(&keys, self.pid, self.world.now(), true);
        Ok(())
    }
}

fn row(schema: &SchemaRef, key: u64, part: u64) -> Result<RecordBatch> {
    let columns: Vec<ArrayRef> =
        vec![Arc::new(UInt64Array::from(vec![key])), Arc::new(UInt64Array::from(vec![part]))];
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}
