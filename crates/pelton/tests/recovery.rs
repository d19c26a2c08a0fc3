//! What survives what: a job's process is killed, its data plane fails, its configuration changes. Real processes throughout.
//!
//! This test has its own `main`: the program is started again as the job that is killed, and as the instances of its service.

#![expect(clippy::disallowed_methods, reason = "patience in a test, and processes that it kills")]

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array};
use pelton::control::rundir;
use pelton::dataflow::sink::{Guarantee, Sink, Staged, Writer};
use pelton::dataflow::source::{Read, Reader, Source, Split};
use pelton::env::real::Host;
use pelton::meter::LedgerMeter;
use pelton::prelude::*;
use pelton::restart::Strategy;
use pelton::service::Invocation;
use pelton::{Bytes, Command as Order, Rescaled, Settings, Stream};
use rustix::process::{Pid, Signal, kill_process};

/// The test's folder, for the job and its instances.
const FOLDER: &str = "PELTON_TEST_FOLDER";
/// What the job's process is to be: see [`Shape`].
const SHAPE: &str = "PELTON_TEST_SHAPE";
/// Calls in flight at a time.
const ROWS: i64 = 64;
const INSTANCES: u32 = 2;
/// Milliseconds of a call with one of the early numbers, where the ledger is small.
const EARLY_TAKES: u64 = 1000;
/// How long any of it may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn number(name: &str) -> Vec<Field> {
    vec![Field::new(name, DataType::Int64, false)]
}

fn numbers(values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
    RecordBatch::try_from_iter([("n", column)]).unwrap()
}

fn values(rows: &RecordBatch) -> Vec<i64> {
    rows.column(0).as_primitive::<Int64Type>().values().to_vec()
}

fn folder() -> PathBuf {
    PathBuf::from(std::env::var_os(FOLDER).expect("the job is started by the test"))
}

/// Adds a line to one of the test's files, in one write.
fn note(file: &str, line: impl std::fmt::Display) {
    let mut notes = OpenOptions::new().create(true).append(true).open(folder().join(file)).unwrap();
    notes.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Says of each row that it runs, and takes its time.
struct Slow {
    clock: Arc<dyn pelton::env::Clock>,
    takes: Duration,
    /// The same for half of the numbers, two in four, wherever they go.
    early: Duration,
}

impl Service for Slow {
    fn open(ctx: &Context) -> Result<Self> {
        note("opened", std::process::id());
        let time =
            |option| ctx.options.get(option).and_then(serde_json::Value::as_u64).map(Duration::from_millis);
        let takes = time("millis").unwrap_or(Duration::from_millis(1));
        Ok(Slow { clock: ctx.clock.clone(), takes, early: time("early").unwrap_or(takes) })
    }

    fn methods() -> Methods<Self> {
        Methods::<Self>::new().concurrent("twice", 64, number("n"), number("twice"), Slow::twice)
    }
}

impl Slow {
    fn twice(&mut self, rows: RecordBatch, _: Invocation) -> pelton_core::BoxFuture<Result<RecordBatch>> {
        let early = values(&rows).iter().all(|n| n % 4 < 2);
        let (clock, takes) = (self.clock.clone(), if early { self.early } else { self.takes });
        Box::pin(async move {
            values(&rows).iter().for_each(|n| note("executed", n));
            note("busy", std::process::id());
            clock.sleep(takes).await;
            values(&rows).iter().for_each(|n| note("answered", n));
            let twice: ArrayRef = Arc::new(Int64Array::from_iter_values(values(&rows).iter().map(|n| n * 2)));
            Ok(RecordBatch::try_from_iter([("twice", twice)])?)
        })
    }
}

/// The numbers below `rows`, in four splits.
struct Numbers {
    rows: i64,
}

impl Source for Numbers {
    fn describe(&self) -> String {
        format!("the numbers below {}", self.rows)
    }
    fn schema(&self) -> arrow_schema::SchemaRef {
        Arc::new(arrow_schema::Schema::new(number("n")))
    }
    fn splits(&self) -> Result<Vec<Split>> {
        let split = |id| Split { id, uri: id.to_string(), bytes: 0, version: "1".into() };
        Ok((0..4).map(split).collect())
    }
    fn open(&self, split: &Split, position: u64) -> Result<Box<dyn Reader>> {
        note("read", split.id);
        let begin = |split: u64| self.rows * split as i64 / 4;
        Ok(Box::new(Range {
            first: begin(split.id),
            next: begin(split.id) + position as i64,
            end: begin(split.id + 1),
        }))
    }
}

struct Range {
    first: i64,
    next: i64,
    end: i64,
}

impl Reader for Range {
    fn next(&mut self) -> Result<Option<Read>> {
        if self.next == self.end {
            return Ok(None);
        }
        let last = self.end.min(self.next + 16);
        let rows = numbers(self.next..last);
        self.next = last;
        Ok(Some(Read { rows, bad: Vec::new(), position: (last - self.first) as u64 }))
    }
}

/// A sink whose storage is away for its first commits.
struct Flaky<S> {
    sink: S,
    refusals: usize,
}

impl<S: Sink> Sink for Flaky<S> {
    fn describe(&self) -> String {
        self.sink.describe()
    }
    fn guarantee(&self) -> Guarantee {
        self.sink.guarantee()
    }
    fn check(&self, input: &arrow_schema::Schema) -> Result<()> {
        self.sink.check(input)
    }
    fn start(&self, generation: u64, recorded: &[Staged]) -> Result<()> {
        self.sink.start(generation, recorded)
    }
    fn writer(
        &self,
        subtask: u32,
        generation: u64,
        schema: arrow_schema::SchemaRef,
    ) -> Result<Box<dyn Writer>> {
        self.sink.writer(subtask, generation, schema)
    }
    fn commit(&self, staged: &[Staged]) -> Result<()> {
        if lines("refused").len() < self.refusals {
            note("refused", "");
            return Err(Error::storage("the storage is away"));
        }
        self.sink.commit(staged)
    }
}

/// What a job of this test is like, as its process is told.
#[derive(Clone, Copy)]
struct Shape {
    rows: i64,
    /// How long a call takes, in milliseconds.
    millis: u64,
    /// Commits that the sink refuses.
    refusals: usize,
    /// A second graph beside the first, which fails once.
    beside: bool,
    fresh: bool,
    ledger: Ledger,
}

/// What instances remember.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ledger {
    /// All that there is.
    Large,
    /// Ten results.
    Small,
    /// Ten results in memory, and the others on disk.
    Spills,
}

const SHAPE_OF_MOST: Shape =
    Shape { rows: ROWS, millis: 3000, refusals: 0, beside: false, fresh: false, ledger: Ledger::Large };

impl Shape {
    fn written(self) -> String {
        let Shape { rows, millis, refusals, beside, fresh, ledger } = self;
        format!("{rows} {millis} {refusals} {beside} {fresh} {ledger:?}")
    }

    fn told() -> Shape {
        let text = std::env::var(SHAPE).expect("the job is started by the test");
        let words: Vec<&str> = text.split(' ').collect();
        let flag = |i: usize| words[i] == "true";
        Shape {
            rows: words[0].parse().unwrap(),
            millis: words[1].parse().unwrap(),
            refusals: words[2].parse().unwrap(),
            beside: flag(3),
            fresh: flag(4),
            ledger: match words[5] {
                "Small" => Ledger::Small,
                "Spills" => Ledger::Spills,
                _ => Ledger::Large,
            },
        }
    }
}

/// The job's process.
fn job() -> Result<()> {
    let shape = Shape::told();
    let restart = Strategy { delay: Duration::from_millis(50), ..Strategy::default() };
    let settings = Settings {
        checkpoint_interval: Duration::from_millis(100),
        restart,
        fresh: shape.fresh,
        ..Settings::new(folder().join("state"))
    };
    let mut job = Job::with("recovery", settings);
    let mut declaration =
        Declaration::new("slow").instances(INSTANCES).max_rows(1).option("millis", shape.millis);
    declaration.lease = Duration::from_secs(5);
    declaration.retry.backoff = Duration::from_millis(5);
    if shape.ledger != Ledger::Large {
        declaration = declaration.option("early", EARLY_TAKES);
        declaration.ledger.bytes = Bytes(10 * 8);
    }
    if shape.ledger == Ledger::Spills {
        declaration.ledger.spill = Some(folder().join("spilled"));
    }
    let slow = job.service::<Slow>(declaration)?;
    let answers = job
        .read("numbers", Numbers { rows: shape.rows })
        .call(&slow.method("twice").named("twice").unordered(), &["n"]);
    write(&answers, "answers", shape.refusals)?;
    if shape.beside {
        let failing = job.read("other numbers", Numbers { rows: 8 }).map("fails once", number("n"), |rows| {
            if lines("failed").is_empty() {
                note("failed", "");
                return Err(Error::transient("not now"));
            }
            Ok(rows)
        });
        write(&failing, "others", 0)?;
    }
    let summary = job.run()?;
    note("ended", format!("{:?} {}", summary.end, summary.restarts));
    Ok(())
}

fn write(rows: &Stream, name: &str, refusals: usize) -> Result<()> {
    rows.write(name, Flaky { sink: pelton::json_lines(folder().join(name))?, refusals });
    Ok(())
}

/// The lines of one of the test's files.
fn lines(file: &str) -> Vec<String> {
    lines_in(&folder(), file)
}

fn lines_in(folder: &Path, file: &str) -> Vec<String> {
    fs::read_to_string(folder.join(file)).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// One test's folder, and the jobs in it.
struct Trial {
    folder: tempfile::TempDir,
    job: Option<Child>,
}

impl Trial {
    fn new() -> Trial {
        Trial { folder: tempfile::tempdir().unwrap(), job: None }
    }

    fn start(&mut self, shape: Shape) {
        let log = OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let job = Command::new(std::env::current_exe().unwrap())
            .env(FOLDER, self.folder.path())
            .env(SHAPE, shape.written())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.job = Some(job.unwrap());
    }

    fn lines(&self, file: &str) -> Vec<String> {
        lines_in(self.folder.path(), file)
    }

    /// Waits until it is so.
    fn until(&mut self, what: &str, mut so: impl FnMut(&Trial) -> bool) {
        let began = Instant::now();
        while !so(self) {
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}\n{}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn kill(&mut self) {
        let mut job = self.job.take().expect("it runs");
        job.kill().unwrap();
        job.wait().unwrap();
    }

    /// Waits for the job's end.
    fn finish(&mut self) {
        let mut job = self.job.take().expect("it runs");
        let began = Instant::now();
        let status = loop {
            if let Some(status) = job.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > PATIENCE {
                job.kill().unwrap();
                panic!("the job does not end: {:?}", fs::read_to_string(self.folder.path().join("log")));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        assert!(status.success(), "{status}: {log}");
    }

    /// Everything that was answered is there, once.
    fn expect_output(&self, rows: i64) {
        let mut all: Vec<i64> = Vec::new();
        for entry in fs::read_dir(self.folder.path().join("answers")).unwrap().flatten() {
            let Ok(text) = fs::read_to_string(entry.path()) else { continue };
            let twice =
                |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["twice"].as_i64();
            all.extend(text.lines().map(|line| twice(line).unwrap()));
        }
        all.sort_unstable();
        assert_eq!(all, (0..rows).map(|n| n * 2).collect::<Vec<_>>());
    }

    /// The processes of instances that were started so far.
    fn opened(&self) -> Vec<i32> {
        self.lines("opened").iter().map(|pid| pid.parse().unwrap()).collect()
    }
}

/// No process of a test outlives it.
impl Drop for Trial {
    fn drop(&mut self) {
        if let Some(mut job) = self.job.take() {
            let _ = job.kill();
            let _ = job.wait();
        }
        for pid in self.opened() {
            let ours = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let folder = self.folder.path().to_string_lossy().into_owned().into_bytes();
            if ours.windows(folder.len()).any(|w| w == folder) {
                let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            }
        }
    }
}

fn done(what: &str) {
    println!("ok: {what}");
}

fn a_killed_job_goes_on_with_what_runs() {
    let mut trial = Trial::new();
    trial.start(SHAPE_OF_MOST);
    trial.until("all calls run", |t| t.lines("executed").len() == ROWS as usize);
    // With and without a checkpoint that covers them.
    std::thread::sleep(Duration::from_millis(300));
    for _ in 0..3 {
        trial.kill();
        trial.start(SHAPE_OF_MOST);
        std::thread::sleep(Duration::from_millis(300));
    }
    trial.finish();
    trial.expect_output(ROWS);
    assert_eq!(trial.lines("executed").len(), ROWS as usize, "each row ran once");
    assert_eq!(trial.opened().len(), INSTANCES as usize, "each model was loaded once");
    done("a job that is killed three times runs nothing again, and loads nothing again");
}

fn many_rows_and_kills_at_any_time() {
    let shape = Shape { rows: 2000, millis: 20, ..SHAPE_OF_MOST };
    let mut trial = Trial::new();
    for i in 1..6 {
        trial.start(shape);
        trial.until("some more rows run", |t| t.lines("executed").len() > i * 300);
        trial.kill();
    }
    trial.start(shape);
    trial.finish();
    trial.expect_output(2000);
    let executed = trial.lines("executed");
    assert_eq!(executed.iter().collect::<BTreeSet<_>>().len(), 2000);
    assert_eq!(executed.len(), 2000, "each row ran once");
    assert_eq!(trial.opened().len(), INSTANCES as usize);
    done("so does one that is killed five times between checkpoints, with results that nobody has yet");
}

fn what_a_dead_instance_had_runs_again_and_no_more() {
    let mut trial = Trial::new();
    trial.start(SHAPE_OF_MOST);
    trial.until("all calls run", |t| t.lines("executed").len() == ROWS as usize);
    trial.kill();
    let dead = trial.lines("busy")[0].parse().unwrap();
    let lost = trial.lines("busy").iter().filter(|pid| **pid == trial.lines("busy")[0]).count() as i64;
    kill_process(Pid::from_raw(dead).unwrap(), Signal::KILL).unwrap();
    trial.start(SHAPE_OF_MOST);
    trial.finish();
    trial.expect_output(ROWS);
    let (executed, opened) = (trial.lines("executed").len() as i64, trial.opened().len());
    assert_eq!(executed, ROWS + lost, "{lost} were lost with it");
    assert_eq!(opened, INSTANCES as usize + 1, "one was missing");
    done("an instance that dies while its job is away is replaced, and only its rows run again");
}

fn instances_of_another_kind_are_not_taken_over() {
    let mut trial = Trial::new();
    trial.start(SHAPE_OF_MOST);
    trial.until("all calls run", |t| t.lines("executed").len() == ROWS as usize);
    trial.kill();
    let other = Shape { millis: 10, ..SHAPE_OF_MOST };
    trial.start(other);
    trial.finish();
    trial.expect_output(ROWS);
    assert_eq!(trial.opened().len(), 2 * INSTANCES as usize);
    trial.until("those of before are gone", |t| t.opened().iter().all(|pid| !is_there(*pid)));
    done("instances of another configuration leave, and new ones are started");

    let mut trial = Trial::new();
    let short = Shape { millis: 500, ..SHAPE_OF_MOST };
    trial.start(short);
    trial.until("all calls run", |t| t.lines("executed").len() == ROWS as usize);
    trial.kill();
    trial.start(Shape { fresh: true, ..short });
    trial.finish();
    trial.expect_output(ROWS);
    assert_eq!(trial.lines("executed").len(), 2 * ROWS as usize, "nothing is taken from before");
    assert_eq!(trial.opened().len(), 2 * INSTANCES as usize);
    done("nor are those of a state that was given up with --fresh");
}

fn orphans_leave() {
    let mut trial = Trial::new();
    trial.start(SHAPE_OF_MOST);
    trial.until("instances are there", |t| t.opened().len() == INSTANCES as usize);
    trial.kill();
    trial.until("they leave", |t| t.opened().iter().all(|pid| !is_there(*pid)));
    done("instances that nobody comes for leave after their lease");
}

fn is_there(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

fn a_data_plane_that_fails_starts_again_alone() {
    let mut trial = Trial::new();
    trial.start(Shape { millis: 500, refusals: 2, ..SHAPE_OF_MOST });
    trial.finish();
    trial.expect_output(ROWS);
    assert_eq!(trial.lines("ended"), ["Finished 2"]);
    assert_eq!(trial.lines("executed").len(), ROWS as usize, "each row ran once");
    assert_eq!(trial.opened().len(), INSTANCES as usize, "instances notice nothing");
    done("a data plane that fails twice starts again by itself; nothing runs again");

    let mut trial = Trial::new();
    trial.start(Shape { millis: 500, refusals: 100, ..SHAPE_OF_MOST });
    let status = trial.job.as_mut().unwrap().wait().unwrap();
    trial.job = None;
    let log = fs::read_to_string(trial.folder.path().join("log")).unwrap();
    assert!(
        !status.success() && log.contains("failed again after 3 restarts") && log.contains("away"),
        "{log}"
    );
    done("one that fails again and again fails the job, and says how often it tried");
}

/// Asks the running job for something.
fn command(trial: &Trial, command: &Order) -> Result<serde_json::Value> {
    let pid = trial.job.as_ref().expect("it runs").id();
    let host = Host::new(1, 1)?;
    let jobs = rundir::jobs(&rundir::base())?;
    let found = jobs.into_iter().find(|f| f.card.pid == pid).expect("it has a run folder");
    host.block_on(pelton::control::command(host.env(), &found, &serde_json::to_value(command).unwrap()))
}

fn a_job_is_rescaled_while_it_runs() {
    let mut trial = Trial::new();
    trial.start(SHAPE_OF_MOST);
    trial.until("all calls run", |t| t.lines("executed").len() == ROWS as usize);
    let scale = |operator: &str, parallelism| Order::Scale { operator: operator.into(), parallelism };
    let error = command(&trial, &scale("slow", 2)).unwrap_err();
    assert!(error.message().contains("no operator `slow`; it has: numbers, "), "{error}");
    let error = command(&trial, &scale("numbers", 0)).unwrap_err();
    assert!(error.message().contains("1 to 1024"), "{error}");
    for (operator, from, to) in [("twice", 1, 3), ("numbers", 1, 2), ("twice", 3, 2)] {
        let answer = command(&trial, &scale(operator, to)).unwrap();
        let Rescaled { from: was, to: is, took, .. } = serde_json::from_value(answer).unwrap();
        assert_eq!((was, is), (from, to));
        println!("    {operator}: {from} to {to} subtasks in {took:.1?}");
    }
    trial.finish();
    trial.expect_output(ROWS);
    assert_eq!(trial.lines("executed").len(), ROWS as usize, "each row ran once");
    assert_eq!(trial.opened().len(), INSTANCES as usize);
    assert_eq!(trial.lines("ended"), ["Finished 0"]);
    done("operators are rescaled while calls run; nothing runs again, and no instance notices");
}

/// What the ledgers of the running job's instances have to tell.
fn ledgers(trial: &Trial) -> Option<LedgerMeter> {
    let pid = trial.job.as_ref()?.id();
    let host = Host::new(1, 1).unwrap();
    let found = rundir::jobs(&rundir::base()).ok()?.into_iter().find(|f| f.card.pid == pid)?;
    let report = host.block_on(pelton::control::query(host.env(), &found)).ok()?;
    let mut all = LedgerMeter::default();
    report.services[0].instances.iter().for_each(|i| all.merge(&i.meter.ledger));
    Some(all)
}

/// How many files of this folder a process has open that have no name.
fn nameless(pid: i32, folder: &Path) -> usize {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter_map(|fd| fs::read_link(fd.path()).ok())
        .filter(|file| file.starts_with(folder) && file.to_string_lossy().ends_with("(deleted)"))
        .count()
}

/// The job is killed before anything is answered, and started again when half of it is. What its instances have in all, and how
/// often rows ran beyond once.
fn killed_with_a_ledger(ledger: Ledger) -> (LedgerMeter, usize) {
    const EARLY: u64 = ROWS as u64 / 2;
    let mut trial = Trial::new();
    let spilled = trial.folder.path().join("spilled");
    fs::create_dir(&spilled).unwrap();
    let shape = Shape { millis: 5000, ledger, ..SHAPE_OF_MOST };
    trial.start(shape);
    trial.until("all calls run", |t| t.lines("executed").len() == ROWS as usize);
    trial.kill();
    assert!(trial.lines("answered").is_empty(), "killed too late for this test");
    trial.until("half of it is answered", |t| t.lines("answered").len() as u64 >= EARLY);
    if ledger == Ledger::Spills {
        trial.until("results are on disk", |t| t.opened().iter().any(|pid| nameless(*pid, &spilled) > 0));
    }
    assert_eq!(fs::read_dir(&spilled).unwrap().count(), 0, "nothing there has a name");
    trial.start(shape);
    let mut found = LedgerMeter::default();
    trial.until("the ledgers tell", |t| {
        found = ledgers(t).unwrap_or_default();
        // Each instance keeps about ten results in memory.
        found.evicted + found.spilled >= EARLY - 20 && (found.spilled == 0 || found.loaded >= EARLY - 20)
    });
    trial.finish();
    trial.expect_output(ROWS);
    assert_eq!(trial.opened().len(), INSTANCES as usize);
    assert_eq!(fs::read_dir(&spilled).unwrap().count(), 0);
    (found, trial.lines("executed").len() - ROWS as usize)
}

fn results_beyond_memory_go_to_disk() {
    let (ledger, beyond) = killed_with_a_ledger(Ledger::Spills);
    assert_eq!((ledger.evicted, ledger.damaged, beyond), (0, 0, 0), "{ledger:?}");
    println!("    {} results were written to disk, {} read back", ledger.spilled, ledger.loaded);
    let (ledger, beyond) = killed_with_a_ledger(Ledger::Small);
    assert!(ledger.evicted > 0 && beyond > 0, "{ledger:?}, {beyond} ran again");
    println!("    without a disk {} were forgotten, and {beyond} rows ran again", ledger.evicted);
    done(
        "what instances have no memory for is on disk: nothing is forgotten, nothing runs again, nothing is left behind",
    );
}

fn a_folder_for_results_has_to_be_there() {
    let mut trial = Trial::new();
    trial.start(Shape { ledger: Ledger::Spills, ..SHAPE_OF_MOST });
    let status = trial.job.as_mut().unwrap().wait().unwrap();
    trial.job = None;
    let log = fs::read_to_string(trial.folder.path().join("log")).unwrap();
    assert!(
        !status.success() && log.contains("`ledger.spill` is") && log.contains("no such folder"),
        "{log}"
    );
    done("a job whose folder for results is missing does not start, and says so");
}

fn regions_fail_apart() {
    let mut trial = Trial::new();
    trial.start(Shape { millis: 500, beside: true, ..SHAPE_OF_MOST });
    trial.finish();
    trial.expect_output(ROWS);
    assert_eq!(trial.lines("ended"), ["Finished 1"]);
    // Four splits of the one that went well, and four of the other twice at most.
    let read = trial.lines("read").len();
    assert!((9..=12).contains(&read), "{read} splits were opened");
    assert_eq!(trial.lines("executed").len(), ROWS as usize);
    done("a region that fails starts again, and the others go on");
}

fn main() -> Result<()> {
    if std::env::var_os(SHAPE).is_some() {
        return job();
    }
    a_killed_job_goes_on_with_what_runs();
    many_rows_and_kills_at_any_time();
    what_a_dead_instance_had_runs_again_and_no_more();
    instances_of_another_kind_are_not_taken_over();
    orphans_leave();
    a_data_plane_that_fails_starts_again_alone();
    a_job_is_rescaled_while_it_runs();
    regions_fail_apart();
    results_beyond_memory_go_to_disk();
    a_folder_for_results_has_to_be_there();
    Ok(())
}
