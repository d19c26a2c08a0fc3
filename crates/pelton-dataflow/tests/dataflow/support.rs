//! Doubles: an environment in virtual time, a source of numbers, a scripted service, a sink that remembers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::call::{Caller, Holder, Outcome, Receiver, Submission};
use pelton_core::id::{InstanceId, stable_hash};
use pelton_core::service::{Cardinality, MethodSpec};
use pelton_core::{BoxFuture, Error, RequestId, Result, Time};
use pelton_dataflow::batch::RowError;
use pelton_dataflow::job::{Job, Options, Running};
use pelton_dataflow::plan::Plan;
use pelton_dataflow::sink::{Guarantee, Sink, Staged, Writer};
use pelton_dataflow::source::{Read, Reader, Source, Split};
use pelton_env::{
    Address, Clock, Connection, Entropy, Env, Listener, Network, Place, Process, ProcessSpec, Processes,
    Storage, Task, Tasks, real::Disk,
};

/// Runs a test on one thread in virtual time.
pub(crate) fn simulate<T>(test: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap().block_on(test)
}

pub(crate) fn env() -> Env {
    #[expect(clippy::disallowed_methods, reason = "this is the clock of the tests")]
    let origin = tokio::time::Instant::now();
    Env {
        clock: Arc::new(Virtual(origin)),
        network: Arc::new(Nothing),
        processes: Arc::new(Nothing),
        tasks: Arc::new(Nothing),
        entropy: Arc::new(Nothing),
        storage: Arc::new(Disk),
        crash: Arc::new(|why| panic!("nothing crashes here: {why}")),
    }
}

struct Virtual(tokio::time::Instant);

#[expect(clippy::disallowed_methods, reason = "this is the clock of the tests")]
impl Clock for Virtual {
    fn now(&self) -> Time {
        Time::from_origin(tokio::time::Instant::now().duration_since(self.0))
    }
    fn sleep(&self, d: Duration) -> BoxFuture<()> {
        Box::pin(tokio::time::sleep(d))
    }
    fn unix_millis(&self) -> u64 {
        0
    }
}

struct Nothing;

impl Tasks for Nothing {
    #[expect(clippy::disallowed_methods, reason = "this is where the tests start tasks")]
    fn spawn(&self, _: Place, future: BoxFuture<()>) -> Task {
        let handle = tokio::spawn(future);
        Task::new(move || handle.abort())
    }
}

impl Entropy for Nothing {
    fn seed(&self) -> u64 {
        0
    }
    fn secret(&self) -> String {
        String::new()
    }
}

impl Network for Nothing {
    fn connect(&self, _: &Address) -> BoxFuture<std::io::Result<Connection>> {
        unreachable!("the data plane opens no connections")
    }
    fn listen(&self, _: &Address) -> std::io::Result<Box<dyn Listener>> {
        unreachable!("the data plane opens no connections")
    }
}

impl Processes for Nothing {
    fn adopt(&self, _: u32) -> std::io::Result<Box<dyn Process>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
    fn program(&self) -> String {
        String::new()
    }
    fn start(&self, _: ProcessSpec) -> std::io::Result<Box<dyn Process>> {
        unreachable!("the data plane starts no processes")
    }
}

/// Small numbers, so that every bound is met.
pub(crate) fn options(state: &Path) -> Options {
    Options { interval: Duration::from_millis(20), pause: Duration::from_millis(1), ..Options::new(state) }
}

pub(crate) fn numbers_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]))
}

/// Splits of consecutive numbers: split `s` has `s * 1_000_000 ..`.
#[derive(Clone)]
pub(crate) struct Numbers {
    pub(crate) splits: Vec<(i64, i64, String)>,
    pub(crate) batch: i64,
    /// Numbers that cannot be read.
    pub(crate) bad: Vec<i64>,
    pub(crate) reads: Arc<AtomicU64>,
}

impl Numbers {
    pub(crate) fn new(splits: i64, rows: i64, batch: i64) -> Self {
        let splits = (0..splits).map(|s| (s, rows, "1".to_owned())).collect();
        Numbers { splits, batch, bad: Vec::new(), reads: Arc::default() }
    }

    pub(crate) fn all(&self) -> Vec<i64> {
        self.splits.iter().flat_map(|(s, rows, _)| (0..*rows).map(move |i| s * 1_000_000 + i)).collect()
    }
}

impl Source for Numbers {
    fn describe(&self) -> String {
        "numbers".to_owned()
    }
    fn schema(&self) -> SchemaRef {
        numbers_schema()
    }
    fn splits(&self) -> Result<Vec<Split>> {
        let split = |(s, rows, version): &(i64, i64, String)| {
            let uri = format!("numbers/{s}");
            Split { id: stable_hash(&uri), uri, bytes: *rows as u64 * 8, version: version.clone() }
        };
        Ok(self.splits.iter().map(split).collect())
    }
    fn open(&self, split: &Split, position: u64) -> Result<Box<dyn Reader>> {
        let number: i64 = split.uri.strip_prefix("numbers/").unwrap().parse().unwrap();
        let rows = self.splits.iter().find(|(s, ..)| *s == number).unwrap().1;
        Ok(Box::new(NumberReader {
            source: self.clone(),
            first: number * 1_000_000,
            rows,
            position: position as i64,
        }))
    }
}

struct NumberReader {
    source: Numbers,
    first: i64,
    rows: i64,
    position: i64,
}

impl Reader for NumberReader {
    fn next(&mut self) -> Result<Option<Read>> {
        if self.position >= self.rows {
            return Ok(None);
        }
        self.source.reads.fetch_add(1, Ordering::Relaxed);
        let end = (self.position + self.source.batch).min(self.rows);
        let range = self.first + self.position..self.first + end;
        self.position = end;
        let (bad, good): (Vec<i64>, Vec<i64>) = range.partition(|n| self.source.bad.contains(n));
        let error = |n: i64| RowError { row: n.to_string(), error: Error::user("not a number") };
        let rows = RecordBatch::try_new(numbers_schema(), vec![Arc::new(Int64Array::from(good))])?;
        Ok(Some(Read { rows, bad: bad.into_iter().map(error).collect(), position: end as u64 }))
    }
}

/// What a scripted service does with a number.
#[derive(Clone)]
pub(crate) enum Answer {
    After(Duration),
    Never,
    Fails,
    /// These values after a time: one for the method `double`, any number for the streaming one.
    Gives(Duration, Vec<i64>),
    /// For the streaming method: this many rows.
    Many(i64),
}

/// What services were asked over all runs, and what they must never be asked.
#[derive(Default)]
pub(crate) struct Log {
    /// The row of each id. An id that comes again comes with the same row.
    pub(crate) rows: BTreeMap<RequestId, i64>,
    pub(crate) acknowledged: BTreeSet<RequestId>,
    pub(crate) submissions: u64,
}

type Script = Arc<dyn Fn(i64) -> Answer + Send + Sync>;

pub(crate) struct Scripted {
    env: Env,
    methods: Vec<MethodSpec>,
    script: Script,
    pub(crate) log: Arc<Mutex<Log>>,
    flight: Arc<Mutex<BTreeMap<RequestId, Holder>>>,
    held: Mutex<bool>,
}

pub(crate) fn methods() -> Vec<MethodSpec> {
    let column =
        |name: &str, nullable| Arc::new(Schema::new(vec![Field::new(name, DataType::Int64, nullable)]));
    let spec = |name: &str, cardinality| MethodSpec {
        name: name.to_owned(),
        input: column("x", false),
        output: column("twice", false),
        cardinality,
        concurrency: None,
    };
    vec![spec("double", Cardinality::One), spec("repeat", Cardinality::Many)]
}

impl Scripted {
    pub(crate) fn new(
        env: &Env,
        log: &Arc<Mutex<Log>>,
        script: impl Fn(i64) -> Answer + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Scripted {
            env: env.clone(),
            methods: methods(),
            script: Arc::new(script),
            log: log.clone(),
            flight: Arc::default(),
            held: Mutex::default(),
        })
    }
}

impl Caller for Scripted {
    fn service(&self) -> &str {
        "maths"
    }
    fn methods(&self) -> &[MethodSpec] {
        &self.methods
    }
    fn submit(&self, submission: Submission, receiver: Arc<dyn Receiver>) {
        let held = *self.held.lock().unwrap();
        let mut due: BTreeMap<Duration, Vec<Outcome>> = BTreeMap::new();
        let arguments = submission.arguments.column(0).as_primitive::<Int64Type>().clone();
        let mut log = self.log.lock().unwrap();
        log.submissions += 1;
        for (row, id) in submission.ids.iter().enumerate() {
            let n = arguments.value(row);
            assert_eq!(*log.rows.entry(*id).or_insert(n), n, "the id {id} came with two rows");
            assert!(!log.acknowledged.contains(id), "{id} was acknowledged and comes again");
            let holder = if held { Holder::Client } else { Holder::Instance(instance()) };
            assert!(self.flight.lock().unwrap().insert(*id, holder).is_none(), "{id} is in flight");
            let twice = |count: i64| {
                let values = Int64Array::from_iter_values((0..count).map(|_| n * 2));
                RecordBatch::try_new(self.methods[0].output.clone(), vec![Arc::new(values)]).unwrap()
            };
            let ok = |rows, last| Outcome { id: *id, rows: Ok(rows), last };
            let (after, outcomes) = match (self.script)(n) {
                _ if held => continue,
                Answer::After(d) if submission.timeout.is_some_and(|t| t < d) => {
                    let late = Error::new(
                        pelton_core::Kind::Deadline,
                        pelton_core::Fate::Unknown,
                        pelton_core::Retry::Never,
                        "too late",
                    );
                    (submission.timeout.unwrap(), vec![Outcome { id: *id, rows: Err(late), last: true }])
                }
                Answer::After(d) => (d, vec![ok(twice(1), true)]),
                Answer::Gives(d, values) => {
                    let rows = |values: &[i64]| {
                        let column = Arc::new(Int64Array::from(values.to_vec()));
                        RecordBatch::try_new(self.methods[0].output.clone(), vec![column]).unwrap()
                    };
                    let parts = match &values[..] {
                        [first, rest @ ..] if !rest.is_empty() => {
                            vec![ok(rows(&[*first]), false), ok(rows(rest), true)]
                        }
                        all => vec![ok(rows(all), true)],
                    };
                    (d, parts)
                }
                Answer::Never => continue,
                Answer::Fails => {
                    (Duration::ZERO, vec![Outcome { id: *id, rows: Err(Error::user("no good")), last: true }])
                }
                Answer::Many(0) => {
                    (Duration::ZERO, vec![ok(RecordBatch::new_empty(Arc::new(Schema::empty())), true)])
                }
                Answer::Many(count) => {
                    (Duration::ZERO, vec![ok(twice(1), false), ok(twice(count - 1), true)])
                }
            };
            due.entry(after).or_default().extend(outcomes);
        }
        drop(log);
        for (after, outcomes) in due {
            let (env, flight, receiver) = (self.env.clone(), self.flight.clone(), receiver.clone());
            let deliver = async move {
                if !after.is_zero() {
                    env.sleep(after).await;
                }
                outcomes.iter().for_each(|o| _ = flight.lock().unwrap().remove(&o.id));
                receiver.deliver(outcomes);
            };
            self.env.spawn(Place::Network, deliver).detach();
        }
    }
    fn cancel(&self, _: &[RequestId]) {}
    fn abandon(&self, _: &[u32]) {}
    fn hold(&self) {
        *self.held.lock().unwrap() = true;
    }
    fn acknowledge(&self, ids: &[RequestId]) {
        self.log.lock().unwrap().acknowledged.extend(ids);
    }
    fn holders(&self, ids: &[RequestId]) -> Vec<Holder> {
        let flight = self.flight.lock().unwrap();
        ids.iter().map(|id| flight.get(id).cloned().unwrap_or(Holder::Client)).collect()
    }
}

fn instance() -> InstanceId {
    InstanceId { service: "maths".to_owned(), number: 0, incarnation: 0 }
}

/// Remembers what was staged and what is visible, across runs: it is the storage.
#[derive(Clone, Default)]
pub(crate) struct Shelf {
    content: Arc<Mutex<Content>>,
}

#[derive(Default)]
struct Content {
    staged: BTreeMap<String, Vec<RecordBatch>>,
    visible: BTreeMap<String, Vec<RecordBatch>>,
    refusals: u32,
}

impl Shelf {
    /// The numbers in a column of all that is visible.
    pub(crate) fn column(&self, name: &str) -> Vec<i64> {
        let content = self.content.lock().unwrap();
        let batches = content.visible.values().flatten();
        let column = |b: &RecordBatch| {
            b.column_by_name(name).unwrap().as_primitive::<Int64Type>().iter().collect::<Vec<_>>()
        };
        batches.flat_map(column).map(|n| n.unwrap_or(-1)).collect()
    }

    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        let content = self.content.lock().unwrap();
        let text = |b: &RecordBatch| {
            let column = b.column_by_name(name).unwrap().as_string::<i32>().clone();
            (0..column.len()).map(|i| column.value(i).to_owned()).collect::<Vec<_>>()
        };
        content.visible.values().flatten().flat_map(text).collect()
    }

    /// What is visible: the rows of a split in their order, as long as their sink has one subtask.
    pub(crate) fn visible(&self) -> Vec<RecordBatch> {
        self.content.lock().unwrap().visible.values().flatten().cloned().collect()
    }

    pub(crate) fn batches(&self) -> usize {
        self.content.lock().unwrap().visible.values().map(Vec::len).sum()
    }

    pub(crate) fn sorted(&self, name: &str) -> Vec<i64> {
        let mut all = self.column(name);
        all.sort_unstable();
        all
    }

    /// Fails the next commits.
    pub(crate) fn refuse(&self, times: u32) {
        self.content.lock().unwrap().refusals = times;
    }
}

impl Sink for Shelf {
    fn describe(&self) -> String {
        "a shelf".to_owned()
    }
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }
    fn check(&self, _: &Schema) -> Result<()> {
        Ok(())
    }
    fn start(&self, _: u64, recorded: &[Staged]) -> Result<()> {
        let recorded: BTreeSet<&str> = recorded.iter().map(|s| s.0.as_str().unwrap()).collect();
        self.content.lock().unwrap().staged.retain(|key, _| recorded.contains(key.as_str()));
        Ok(())
    }
    fn writer(&self, subtask: u32, generation: u64, _: SchemaRef) -> Result<Box<dyn Writer>> {
        Ok(Box::new(ShelfWriter {
            shelf: self.clone(),
            prefix: format!("{generation:04}-{subtask}"),
            rows: Vec::new(),
        }))
    }
    fn commit(&self, staged: &[Staged]) -> Result<()> {
        let mut content = self.content.lock().unwrap();
        if content.refusals > 0 {
            content.refusals -= 1;
            return Err(Error::storage("the shelf is full"));
        }
        for staged in staged {
            let key = staged.0.as_str().unwrap();
            match content.staged.remove(key) {
                Some(rows) => _ = content.visible.insert(key.to_owned(), rows),
                None => assert!(content.visible.contains_key(key), "{key} was never staged"),
            }
        }
        Ok(())
    }
}

struct ShelfWriter {
    shelf: Shelf,
    prefix: String,
    rows: Vec<RecordBatch>,
}

impl Writer for ShelfWriter {
    fn write(&mut self, rows: RecordBatch) -> Result<()> {
        self.rows.push(rows);
        Ok(())
    }
    fn prepare(&mut self, checkpoint: u64) -> Result<Vec<Staged>> {
        if self.rows.is_empty() {
            return Ok(Vec::new());
        }
        let key = format!("{}-{checkpoint:06}", self.prefix);
        let rows = std::mem::take(&mut self.rows);
        assert!(self.shelf.content.lock().unwrap().staged.insert(key.clone(), rows).is_none());
        Ok(vec![Staged(key.into())])
    }
}

/// A plan and the storage that its runs share.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) plan: Plan,
    pub(crate) log: Arc<Mutex<Log>>,
    pub(crate) storage: Arc<dyn Storage>,
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        // In memory where that is possible: these tests take hundreds of checkpoints, and each waits for the disk.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        World { folder, plan, log: Arc::default(), storage: Arc::new(Disk) }
    }

    pub(crate) fn options(&self) -> Options {
        options(self.folder.path())
    }

    pub(crate) fn try_start(
        &self,
        options: Options,
        script: impl Fn(i64) -> Answer + Send + Sync + 'static,
    ) -> Result<Running> {
        let env = Env { storage: self.storage.clone(), ..env() };
        let topology = self.plan.validate(&|name| (name == "maths").then(methods))?;
        let caller: Arc<dyn Caller> = Scripted::new(&env, &self.log, script);
        Job::start(topology, BTreeMap::from([("maths".to_owned(), caller)]), env, options)
    }

    pub(crate) fn start(&self, script: impl Fn(i64) -> Answer + Send + Sync + 'static) -> Running {
        self.try_start(self.options(), script).unwrap()
    }
}

/// Lets everything else run until it is at rest or has had `turns`.
pub(crate) async fn turns(turns: u32) {
    for _ in 0..turns {
        tokio::task::yield_now().await;
    }
}

/// Ends a job as a crash would.
pub(crate) async fn kill(running: Running) {
    drop(running);
    turns(10).await;
}

pub(crate) fn at_once(_: i64) -> Answer {
    Answer::After(Duration::ZERO)
}
