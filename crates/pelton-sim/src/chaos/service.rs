//! The service that instances run here: numbers in, numbers out, every execution written down.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{ArrayRef, RecordBatch, UInt64Array};
use arrow_schema::{DataType, Field, Schema};
use pelton_core::service::{Context, Definition, Emit, MethodSpec, Methods};
use pelton_core::{BoxFuture, Error, Result};

use crate::chaos::storage::Mischief;
use crate::faults::probe::Executions;
use crate::faults::process::Started;
use crate::faults::world::World;

/// What a call adds to its number: it tells the calls of one row apart, and the rows of all calls.
pub(crate) const STEP: u64 = 1 << 40;

/// How quick instances are, and how often they fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) concurrency: usize,
    pub(crate) batch: Duration,
    pub(crate) row: Duration,
    /// Some numbers cannot be worked on.
    pub(crate) poison: bool,
    /// From the start of a process to its first batch, at most.
    pub(crate) open: Duration,
}

/// Whether a number is one that fails.
pub(crate) fn is_poison(n: u64) -> bool {
    n < STEP && n % 50 == 13
}

fn columns(name: &str) -> Vec<Field> {
    vec![Field::new(name, DataType::UInt64, false)]
}

/// How many rows `many` gives for a number.
pub(crate) fn parts(n: u64) -> u64 {
    n % 4
}

/// `first` gives the column `y`, `second` the column `z`; `many` gives some rows of `y` and `part`.
fn methods(
    concurrency: usize,
    run: impl Fn(&mut Opened, RecordBatch) -> BoxFuture<Result<RecordBatch>> + Send + Sync + Clone + 'static,
) -> Methods<Opened> {
    let other = run.clone();
    Methods::new()
        .concurrent("first", concurrency, columns("x"), columns("y"), move |s, rows, _| run(s, rows))
        .concurrent("second", concurrency, columns("x"), columns("z"), move |s, rows, _| {
            let answer = other(s, rows);
            Box::pin(async move {
                let schema = Arc::new(Schema::new(columns("z")));
                Ok(RecordBatch::try_new(schema, answer.await?.columns().to_vec())?)
            })
        })
        .streaming("many", columns("x"), part_columns(), |s, rows, _, emit| s.many(&rows, emit))
}

fn part_columns() -> Vec<Field> {
    [columns("y"), columns("part")].concat()
}

pub(crate) fn specs(concurrency: usize) -> Vec<MethodSpec> {
    methods(concurrency, |_, _| Box::pin(std::future::pending())).specs().to_vec()
}

/// What one process runs.
pub(crate) fn definition(
    world: &World,
    executions: &Executions,
    mischief: &Mischief,
    manner: Manner,
    started: &Started,
) -> Definition {
    let parts = (world.clone(), executions.clone(), mischief.clone(), started.pid);
    let open = move |ctx: Context| -> BoxFuture<Result<Opened>> {
        let (world, executions, mischief, pid) = parts.clone();
        Box::pin(async move {
            world.sleep(world.between(Duration::ZERO, manner.open)).await;
            Ok(Opened { world, executions, mischief, pid, manner, crash: ctx.crash })
        })
    };
    Definition::with(open, methods(manner.concurrency, Opened::run), |_| Ok(()))
}

pub(crate) struct Opened {
    world: World,
    executions: Executions,
    mischief: Mischief,
    pid: u32,
    manner: Manner,
    crash: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Opened {
    fn run(&mut self, batch: RecordBatch) -> BoxFuture<Result<RecordBatch>> {
        let keys: Vec<u64> = batch.column(0).as_primitive::<UInt64Type>().values().to_vec();
        let (world, executions, pid) = (self.world.clone(), self.executions.clone(), self.pid);
        let Manner { batch, row, poison, .. } = self.manner;
        let usual = batch + row * keys.len() as u32;
        let crash = self.mischief.crashes().then(|| self.crash.clone());
        let sticks = self.mischief.sticks();
        executions.began(&keys, pid, world.now());
        Box::pin(async move {
            world.sleep(usual.mul_f64(0.7 + 0.6 * world.share())).await;
            if sticks {
                std::future::pending::<()>().await;
            }
            if let Some(crash) = crash {
                crash("in a batch");
                std::future::pending::<()>().await;
            }
            let fails = poison && keys.iter().copied().any(is_poison);
            executions.ended(&keys, pid, world.now(), !fails);
            if fails {
                return Err(Error::user("a number that nobody can work on"));
            }
            let answers: ArrayRef = Arc::new(UInt64Array::from_iter_values(keys.iter().map(|k| k + STEP)));
            let schema = Schema::new(columns("y"));
            Ok(RecordBatch::try_new(Arc::new(schema), vec![answers])?)
        })
    }

    fn many(&mut self, batch: &RecordBatch, emit: Emit<'_>) -> Result<()> {
        let keys: Vec<u64> = batch.column(0).as_primitive::<UInt64Type>().values().to_vec();
        let now = self.world.now();
        self.executions.began(&keys, self.pid, now);
        if self.mischief.crashes() {
            (self.crash)("in a stream");
        }
        let schema = Arc::new(Schema::new(part_columns()));
        for (key, part) in keys.iter().flat_map(|key| (0..parts(*key)).map(move |part| (*key, part))) {
            let column = |n: u64| -> ArrayRef { Arc::new(UInt64Array::from(vec![n])) };
            emit(RecordBatch::try_new(schema.clone(), vec![column(key + STEP), column(part)])?)?;
        }
        self.executions.ended(&keys, self.pid, now, true);
        Ok(())
    }
}
