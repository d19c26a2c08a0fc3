//! Flow control, bad rows and bad instances, in real processes.
//!
//! This test has its own `main`, because the program is started again as the instances of its services.

#![expect(clippy::disallowed_methods, reason = "methods that block, as users' do, and patience in a test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array};
use futures::StreamExt;
use futures::channel::mpsc;
use pelton::prelude::*;
use pelton::{Kind, Priority, RequestId, Services, Settings};
use pelton_core::call::{Affinity, Outcome, Receiver, Submission};

/// What it does depends on the numbers that it gets.
struct Moody {
    clock: Arc<dyn pelton::env::Clock>,
    ended: Arc<AtomicI64>,
    instance: i64,
}

const BAD: i64 = -1;
const DEADLY: i64 = -2;
const ENDLESS: i64 = -3;
/// A batch of more rows does not fit into memory.
const FITS: usize = 6;

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

impl Service for Moody {
    fn open(ctx: &Context) -> Result<Self> {
        Ok(Moody { clock: ctx.clock.clone(), ended: Arc::default(), instance: i64::from(ctx.instance) })
    }

    fn methods() -> Methods<Self> {
        Methods::<Self>::new()
            .serial("judge", number("n"), number("n"), |_, rows, _| {
                let numbers = values(&rows);
                if numbers.contains(&DEADLY) {
                    std::process::abort();
                }
                if numbers.contains(&ENDLESS) {
                    loop {
                        std::thread::sleep(Duration::from_secs(1));
                    }
                }
                match numbers.contains(&BAD) {
                    true => Err(Error::user("a bad number")),
                    false => Ok(rows),
                }
            })
            .serial("fit", number("n"), number("n"), |_, rows, _| {
                std::thread::sleep(Duration::from_millis(2));
                let n = rows.num_rows();
                if n > FITS {
                    return Err(Error::out_of_memory(format!("{n} rows do not fit")));
                }
                Ok(numbers(vec![n as i64; n]))
            })
            .serial("who", number("n"), number("n"), |service, rows, _| {
                Ok(numbers(vec![service.instance; rows.num_rows()]))
            })
            .serial("slow", number("n"), number("n"), |_, rows, _| {
                std::thread::sleep(Duration::from_millis(20));
                Ok(rows)
            })
            // Half a minute, unless it is told to stop.
            .serial("patient", number("n"), number("n"), |_, rows, invocation| {
                for _ in 0..3000 {
                    if invocation.is_cancelled() {
                        return Err(Error::user("told to stop"));
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(rows)
            })
            .serial("stubborn", number("n"), number("n"), |_, rows, _| {
                std::thread::sleep(Duration::from_secs(30));
                Ok(rows)
            })
            // Gives the place in the order in which requests ended.
            .concurrent("ranked", 8, number("n"), number("n"), |service, rows, _| {
                let (clock, ended) = (service.clock.clone(), service.ended.clone());
                let wait = Duration::from_millis(values(&rows)[0].unsigned_abs() % 7);
                Box::pin(async move {
                    clock.sleep(wait).await;
                    let n = rows.num_rows() as i64;
                    let first = ended.fetch_add(n, Ordering::SeqCst);
                    Ok(numbers(first..first + n))
                })
            })
    }
}

/// Passes outcomes on.
struct Post(mpsc::UnboundedSender<Outcome>);

impl Receiver for Post {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        for outcome in outcomes {
            let _ = self.0.unbounded_send(outcome);
        }
    }
}

/// The end of one request: its number, or its error.
type End = Result<i64>;

/// Requests that were sent together.
struct Sent {
    ids: Vec<RequestId>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
    ended: BTreeMap<u64, End>,
}

impl Sent {
    /// Until so many have ended.
    async fn wait(&mut self, ends: usize) -> &BTreeMap<u64, End> {
        while self.ended.len() < ends {
            let outcome = self.outcomes.next().await.expect("each request ends");
            let end = outcome.rows.map(|rows| values(&rows)[0]);
            let again = self.ended.insert(outcome.id.sequence, end);
            assert!(again.is_none(), "{} ended twice", outcome.id);
        }
        &self.ended
    }

    async fn all(mut self) -> Vec<End> {
        self.wait(self.ids.len()).await;
        self.ended.into_values().collect()
    }
}

/// Sends one request a number, all in one submission.
fn send(services: &Services, service: &str, method: &str, rows: Vec<i64>, shape: Shape) -> Result<Sent> {
    let caller = services.caller(service)?;
    let index = caller.methods().iter().position(|m| m.name == method).expect("it has this method");
    let ids: Vec<RequestId> = (0..rows.len() as u64)
        .map(|sequence| RequestId { operator: shape.operator, group: 1, sequence })
        .collect();
    let (sender, outcomes) = mpsc::unbounded();
    let submission = Submission {
        timeout: shape.timeout,
        attempt_timeout: shape.attempt_timeout,
        priority: shape.priority,
        keys: shape.keys,
        affinity: shape.affinity,
        ..Submission::new(index, ids.clone(), numbers(rows))
    };
    caller.submit(submission, Arc::new(Post(sender)));
    Ok(Sent { ids, outcomes, ended: BTreeMap::new() })
}

#[derive(Default)]
struct Shape {
    operator: u32,
    timeout: Option<Duration>,
    attempt_timeout: Option<Duration>,
    priority: Priority,
    keys: Option<Vec<u64>>,
    affinity: Affinity,
}

fn errors(ends: &[End]) -> Vec<usize> {
    ends.iter().enumerate().filter(|(_, end)| end.is_err()).map(|(i, _)| i).collect()
}

async fn bad_rows(services: &Services) -> Result<()> {
    let mut rows: Vec<i64> = (0..100).collect();
    for i in [7, 8, 70] {
        rows[i] = BAD;
    }
    let ends = send(services, "moody", "judge", rows, Shape { operator: 1, ..Shape::default() })?.all().await;
    assert_eq!(errors(&ends), [7, 8, 70]);
    assert_eq!(ends[9], Ok(9));
    done("of a batch with bad rows, only those fail");

    let mut rows: Vec<i64> = (0..40).collect();
    rows[11] = DEADLY;
    let ends = send(services, "moody", "judge", rows, Shape { operator: 2, ..Shape::default() })?.all().await;
    assert_eq!(errors(&ends), [11]);
    let error = ends[11].as_ref().unwrap_err();
    assert!(error.message().contains("retry.attempts"), "{error:?}");
    done("a row that kills its instance is found too, and the rows beside it have their results");

    let ends =
        send(services, "moody", "fit", (0..200).collect(), Shape { operator: 3, ..Shape::default() })?.all();
    let ends = ends.await;
    assert!(errors(&ends).is_empty(), "{:?}", ends.iter().find(|e| e.is_err()));
    let sizes: Vec<i64> = ends.into_iter().flatten().collect();
    assert!(sizes.iter().all(|n| *n <= FITS as i64), "{sizes:?}");
    let splits = || report(services, "moody", |i| i.meter.split).iter().sum::<u64>();
    soon(|| splits() > 0);
    let splits = splits();
    assert!((1..60).contains(&splits), "{splits} batches of 200 rows were split: it learns");
    done("batches that run out of memory are split, and smaller ones follow");
    Ok(())
}

fn report<T>(
    services: &Services,
    service: &str,
    what: impl Fn(&pelton::control::InstanceReport) -> T,
) -> Vec<T> {
    let report = services.report();
    let service = report.services.iter().find(|s| s.name == service).expect("it is declared");
    service.instances.iter().map(what).collect()
}

/// What instances say of themselves is there a little later than what they did.
fn soon(holds: impl Fn() -> bool) {
    for _ in 0..200 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("it does not hold after ten seconds");
}

async fn time(services: &Services) -> Result<()> {
    let timeout = Some(Duration::from_millis(200));
    let shape = Shape { operator: 4, timeout, ..Shape::default() };
    let ends = send(services, "moody", "patient", vec![1], shape)?.all().await;
    assert_eq!(ends[0].as_ref().unwrap_err().kind(), Kind::Deadline);
    // It would have gone on for half a minute on this one instance's thread.
    let shape = || Shape { operator: 5, timeout: Some(Duration::from_secs(10)), ..Shape::default() };
    let ends = send(services, "moody", "slow", vec![1; 8], shape())?.all().await;
    assert!(errors(&ends).is_empty(), "{ends:?}");
    done("the deadline travels, and the method that looks stops at it");

    let attempt_timeout = Some(Duration::from_millis(300));
    let shape = Shape { operator: 6, attempt_timeout, ..Shape::default() };
    let ends = send(services, "moody", "patient", vec![1], shape)?.all().await;
    let error = ends[0].as_ref().unwrap_err();
    assert!(error.kind() == Kind::NoProgress && error.message().contains("attempt_timeout"), "{error:?}");
    done("an attempt has its own time; after the last one the error says which setting it was");

    let before = report(services, "stubborn", |i| i.restarts)[0];
    let timeout = Some(Duration::from_millis(200));
    let shape = Shape { operator: 7, timeout, ..Shape::default() };
    let ends = send(services, "stubborn", "stubborn", vec![1], shape)?.all().await;
    assert_eq!(ends[0].as_ref().unwrap_err().kind(), Kind::Deadline);
    let shape = Shape { operator: 8, timeout: Some(Duration::from_secs(20)), ..Shape::default() };
    let ends = send(services, "stubborn", "slow", vec![1], shape)?.all().await;
    assert_eq!(ends[0], Ok(1));
    soon(|| report(services, "stubborn", |i| i.restarts)[0] > before);
    done("one that ignores that it is told to stop is ended after `kill_after`");
    Ok(())
}

async fn stuck(services: &Services, log: &Path) -> Result<()> {
    let mut rows: Vec<i64> = (0..30).collect();
    rows[3] = ENDLESS;
    let ends = send(services, "stuck", "judge", rows, Shape { operator: 9, ..Shape::default() })?.all().await;
    assert_eq!(errors(&ends), [3]);
    let logs: String = std::fs::read_dir(log)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("stuck"))
        .map(|entry| std::fs::read_to_string(entry.path()).unwrap_or_default())
        .collect();
    for said in ["does not get on", "method `judge`", "9/0000000000000001/3", "threads:"] {
        assert!(logs.contains(said), "the log does not say `{said}`: {logs}");
    }
    done(
        "an instance that stands still is found, its state written to its log, and its other rows run elsewhere",
    );
    Ok(())
}

async fn order(services: &Services) -> Result<()> {
    let bulk = Shape { operator: 10, priority: Priority::Bulk, ..Shape::default() };
    let mut bulk = send(services, "single", "slow", (0..400).collect(), bulk)?;
    bulk.wait(20).await;
    let shape = Shape { operator: 11, priority: Priority::Interactive, ..Shape::default() };
    let ends = send(services, "single", "slow", vec![1, 2], shape)?.all().await;
    assert!(errors(&ends).is_empty());
    while let Ok(outcome) = bulk.outcomes.try_recv() {
        let end = outcome.rows.map(|rows| values(&rows)[0]);
        bulk.ended.insert(outcome.id.sequence, end);
    }
    let overtaken = 400 - bulk.ended.len();
    assert!(overtaken > 250, "only {overtaken} of 400 bulk rows were overtaken");
    assert_eq!(bulk.all().await.len(), 400);
    done("interactive requests go before bulk ones, which all end too");

    let keys: Vec<u64> = (0..120).map(|i| i % 6).collect();
    let shape = Shape { operator: 12, keys: Some(keys.clone()), ..Shape::default() };
    let rows = (0..120).map(|i| (i * 37) % 11).collect();
    let ranks: Vec<i64> =
        send(services, "single", "ranked", rows, shape)?.all().await.into_iter().collect::<Result<_>>()?;
    let mut last = BTreeMap::new();
    for (key, rank) in keys.iter().zip(&ranks) {
        let before = last.insert(key, rank);
        assert!(before < Some(rank), "key {key}: {rank} after {before:?}");
    }
    assert!(!ranks.is_sorted(), "keys went side by side");

    let keys: Vec<u64> = (0..200).map(|i| i % 20).collect();
    let shape = Shape { operator: 13, affinity: Affinity::Keys(keys.clone()), ..Shape::default() };
    let at = send(services, "moody", "who", vec![0; 200], shape)?.all().await;
    let at: Vec<i64> = at.into_iter().collect::<Result<_>>()?;
    assert!((0..200).all(|i| at[i] == at[i % 20]), "{at:?}");
    assert!(at.contains(&0) && at.contains(&1), "{at:?}");
    let shape = Shape { operator: 14, affinity: Affinity::Instance(1), ..Shape::default() };
    let at = send(services, "moody", "who", vec![0; 50], shape)?.all().await;
    assert!(at.iter().all(|at| *at == Ok(1)), "{at:?}");
    let shape = Shape { operator: 15, affinity: Affinity::Instance(2), ..Shape::default() };
    let error = send(services, "moody", "who", vec![0], shape)?.all().await.remove(0).unwrap_err();
    assert!(error.message().contains("no instance 2"), "{error:?}");
    done("a key stays with its instance, and an instance can be named");
    done("requests of a key end in their order, those of different keys side by side");
    Ok(())
}

/// Takes 4 ms for up to 16 lines: a fast source would fill the memory with what waits for it.
struct Sip;

impl Service for Sip {
    fn open(_: &Context) -> Result<Self> {
        Ok(Sip)
    }

    fn methods() -> Methods<Self> {
        let text = vec![Field::new("text", DataType::Utf8, false)];
        Methods::<Self>::new().serial("sip", text, number("n"), |_, rows, _| {
            std::thread::sleep(Duration::from_millis(4));
            let texts = rows.column(0).as_string::<i32>();
            Ok(numbers(texts.iter().flatten().map(|t| t.len() as i64)))
        })
    }
}

/// Kilobytes of memory that this process has had at most.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default()
}

/// 160 MB of lines through a service that takes 40 MB a second at most.
fn back_pressure(mut job: Job, world: &Path, sip: &pelton::ServiceHandle) -> Result<()> {
    const LINES: u64 = 16_000;
    const LINE: usize = 10_000;
    let input = world.join("lines.txt");
    let mut text = std::io::BufWriter::new(std::fs::File::create(&input)?);
    for i in 0..LINES {
        use std::io::Write as _;
        writeln!(text, "{i:0LINE$}")?;
    }
    drop(text);
    job.read("lines", read_lines(&input)?)
        .call(&sip.method("sip").named("sip"), &["text"])
        .map("lengths", number("n"), |rows| Ok(rows.project(&[rows.num_columns() - 1])?))
        .write("lengths out", json_lines(world.join("out"))?);
    let before = peak_kib();
    let mut most_ahead = 0;
    job.run_observed(|seen| {
        let nodes = &seen.progress.nodes;
        let (read, written) = (nodes[0].rows_out, nodes[nodes.len() - 1].rows_in);
        most_ahead = most_ahead.max(read.saturating_sub(written));
    })?;
    let grown = peak_kib().saturating_sub(before) / 1024;
    let ahead = (most_ahead * LINE as u64) >> 20;
    assert!(most_ahead > 0, "it was looked at while it ran");
    assert!(ahead < 40, "the source was {ahead} MiB ahead of the sink");
    assert!(grown < 80, "the process took {grown} MiB for 160 MB of lines with a budget of 4 MiB");
    println!("ok: a slow service slows its source: at most {ahead} MiB ahead, {grown} MiB of memory");
    Ok(())
}

fn done(what: &str) {
    println!("ok: {what}");
}

fn main() -> Result<()> {
    let world = std::env::temp_dir().join(format!("pelton-flow-{}", std::process::id()));
    let mut job = Job::with("flow", Settings::new(&world));
    let declared = |name: &str, instances: u32| {
        let mut declaration = Declaration::new(name).instances(instances).max_rows(16);
        declaration.retry.backoff = Duration::from_millis(5);
        declaration.retry.attempts = 4;
        declaration
    };
    job.service::<Moody>(declared("moody", 2))?;
    let mut stubborn = declared("stubborn", 1);
    stubborn.kill_after = Some(Duration::from_millis(300));
    job.service::<Moody>(stubborn)?;
    let mut stuck_one = declared("stuck", 2);
    stuck_one.stall = Some(Duration::from_millis(500));
    job.service::<Moody>(stuck_one)?;
    job.service::<Moody>(declared("single", 1).max_rows(4))?;
    let settings = Settings { pending_bytes: pelton::Bytes::mib(4), ..Settings::new(world.join("pressed")) };
    let mut pressed = Job::with("pressed", settings);
    let sip = pressed.service::<Sip>(declared("sip", 1))?;
    let logs = world.join("logs");
    let result = job.serve(async |services| {
        services.ready().await?;
        bad_rows(services).await?;
        time(services).await?;
        stuck(services, &logs).await?;
        order(services).await
    });
    let result = result.and_then(|()| back_pressure(pressed, &world, &sip));
    let _ = std::fs::remove_dir_all(&world);
    if let Err(e) = &result {
        println!("FAILED: {e:?}");
    }
    result
}
