//! Streamed answers and large payloads in real processes: bounded memory, slow callers, and every way in which a stream can end.
//!
//! This test has its own `main`, because the program is started again as the instances of its services. `-- large` adds streams and
//! payloads of 1 GB.

#![expect(clippy::disallowed_methods, reason = "patience in a test, and a caller that takes its time")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, BinaryArray, Int64Array};
use futures::StreamExt;
use pelton::prelude::*;
use pelton::service::Definition;
use pelton::{Bytes, Kind, Local, Services, Settings};

/// Bytes of one part.
const PART: usize = 1 << 20;
/// What each process may take at most while any of this passes, in KB. Without the bounds it would be above the size of the streams.
const MEMORY: u64 = 200 << 10;

struct Streams {
    clock: Arc<dyn pelton::env::Clock>,
    running: Arc<AtomicI64>,
    emitted: Arc<AtomicI64>,
}

fn number(name: &str) -> Vec<Field> {
    vec![Field::new(name, DataType::Int64, false)]
}

fn parts() -> Vec<Field> {
    vec![Field::new("part", DataType::Int64, false), Field::new("payload", DataType::Binary, false)]
}

fn numbers(values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
    RecordBatch::try_from_iter([("n", column)]).unwrap()
}

fn first(rows: &RecordBatch) -> i64 {
    rows.column(0).as_primitive::<Int64Type>().value(0)
}

fn part(number: i64, bytes: usize) -> RecordBatch {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values([number]));
    let payload: ArrayRef = Arc::new(BinaryArray::from_iter_values([vec![number as u8; bytes]]));
    RecordBatch::try_from_iter([("part", numbers), ("payload", payload)]).unwrap()
}

/// Counts itself as long as it lives.
struct Running(Arc<AtomicI64>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Service for Streams {
    fn open(ctx: &Context) -> Result<Self> {
        Ok(Streams { clock: ctx.clock.clone(), running: Arc::default(), emitted: Arc::default() })
    }

    fn methods() -> Methods<Self> {
        let payload = || vec![Field::new("payload", DataType::Binary, false)];
        Methods::<Self>::new()
            .flowing("flow", 8, number("n"), parts(), |service, rows, _, emitter| {
                let (running, emitted) = (service.running.clone(), service.emitted.clone());
                Box::pin(async move {
                    running.fetch_add(1, Ordering::SeqCst);
                    let _running = Running(running);
                    for i in 0..first(&rows) {
                        emitter.emit(part(i, PART)).await?;
                        emitted.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(())
                })
            })
            .flowing("words", 8, number("n"), parts(), |_, rows, _, emitter| {
                Box::pin(async move {
                    for i in 0..first(&rows) {
                        emitter.emit(part(i, 4)).await?;
                    }
                    Ok(())
                })
            })
            .concurrent("echo", 4, payload(), payload(), |_, rows, _| Box::pin(async move { Ok(rows) }))
            .concurrent("counters", 4, number("n"), number("n"), |service, rows, _| {
                let counter = if first(&rows) == 0 { &service.running } else { &service.emitted };
                let count = counter.load(Ordering::SeqCst);
                let clock = service.clock.clone();
                Box::pin(async move {
                    clock.sleep(Duration::from_millis(1)).await;
                    Ok(numbers([count]))
                })
            })
    }
}

/// Gives its parts from a thread that blocks.
struct Blocking;

impl Service for Blocking {
    fn open(_: &Context) -> Result<Self> {
        Ok(Blocking)
    }

    fn methods() -> Methods<Self> {
        Methods::<Self>::new().streaming("flow", number("n"), parts(), |_, rows, _, emit| {
            (0..first(&rows)).try_for_each(|i| emit(part(i, PART)))
        })
    }
}

/// The most memory that a process has had, in KB.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find(|l| l.starts_with("VmHWM")).expect("Linux says it");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number of KB")
}

fn pid(services: &Services, service: &str) -> u32 {
    let report = services.report();
    let service = report.services.iter().find(|s| s.name == service).expect("it is declared");
    service.instances[0].pid.expect("it runs")
}

fn within_memory(services: &Services, service: &str, what: &str) {
    let (caller, instance) = (peak(std::process::id()), peak(pid(services, service)));
    assert!(
        caller < MEMORY && instance < MEMORY,
        "{what}: {caller} KB at the caller, {instance} KB at the instance"
    );
    println!("   {what}: at most {} MB here, {} MB at the instance", caller >> 10, instance >> 10);
}

/// Takes a whole stream, whose parts must be there once and in order; returns the bytes.
async fn take_all(services: &Services, service: &str, n: i64) -> Result<usize> {
    let mut answers = services.stream(service, "flow", numbers([n]))?;
    let (mut next, mut bytes) = (0, 0);
    while let Some(part) = answers.next().await {
        let part = part?;
        for (number, payload) in part
            .rows
            .column(0)
            .as_primitive::<Int64Type>()
            .values()
            .iter()
            .zip(part.rows.column(1).as_binary::<i32>())
        {
            let payload = payload.expect("it is not null");
            assert_eq!((part.request, *number, payload[0]), (0, next, next as u8));
            next += 1;
            bytes += payload.len();
        }
    }
    assert_eq!(next, n);
    Ok(bytes)
}

async fn counter(services: &Services, which: i64) -> Result<i64> {
    Ok(first(&services.call("streams", "counters", numbers([which])).await?))
}

async fn until(services: &Services, what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..500 {
        if holds().await? {
            return Ok(());
        }
        services.env().sleep(Duration::from_millis(10)).await;
    }
    panic!("not so within 5 s: {what}");
}

async fn check(services: &Services) -> Result<()> {
    services.ready().await?;

    assert_eq!(take_all(services, "streams", 256).await?, 256 * PART);
    within_memory(services, "streams", "256 MB as a stream");
    assert_eq!(take_all(services, "blocking", 256).await?, 256 * PART);
    within_memory(services, "blocking", "256 MB from a method that blocks");
    done("large streams pass in little memory");

    // Many requests, whose streams share what may be under way.
    let mut answers = services.stream("streams", "flow", numbers([16; 32]))?;
    let mut next = [0; 32];
    while let Some(part) = answers.next().await {
        let part = part?;
        assert_eq!(first(&part.rows), next[part.request]);
        next[part.request] += 1;
    }
    assert_eq!(next, [16; 32]);
    within_memory(services, "streams", "32 streams of 16 MB at a time");
    let mut words = services.stream("streams", "words", numbers([20_000, 0, 20_000]))?;
    let mut count = [0; 3];
    while let Some(part) = words.next().await {
        let part = part?;
        count[part.request] += part.rows.num_rows();
    }
    assert_eq!(count, [20_000, 0, 20_000]);
    done("parts of many streams come in their order, long and short ones");

    // A caller that takes nothing holds its own stream back, and nobody else.
    let before = counter(services, 1).await?;
    let mut slow = services.stream("streams", "flow", numbers([100]))?;
    let (_first, began) = (slow.next().await, Instant::now());
    for _ in 0..100 {
        let payload: ArrayRef = Arc::new(BinaryArray::from_iter_values([vec![7; 10_000]]));
        let sent = RecordBatch::try_from_iter([("payload", payload)])?;
        assert_eq!(services.call("streams", "echo", sent.clone()).await?, sent);
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "100 calls beside a slow stream took {took:?}");
    assert_eq!(take_all(services, "streams", 16).await?, 16 * PART);
    let ahead = counter(services, 1).await? - before - 16;
    assert!((2..=6).contains(&ahead), "it ran ahead by {ahead} parts of 1 MB, with a window of 4 MB");
    assert_eq!(counter(services, 0).await?, 1);
    done("a slow caller holds back its own stream alone");

    drop(slow);
    until(services, "the method has stopped", async || Ok(counter(services, 0).await? == 0)).await?;
    assert!(counter(services, 1).await? - before - 16 <= 6, "it gave nothing more");
    done("a stream that is dropped stops its method");

    let blocking = std::thread::scope(|scope| {
        let all = || -> Result<usize> {
            let parts = services.stream("blocking", "flow", numbers([12]))?.blocking();
            let mut count = 0;
            for part in parts {
                count += part?.rows.num_rows();
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(count)
        };
        scope.spawn(all).join().expect("it does not panic")
    });
    assert_eq!(blocking?, 12);
    // What is dropped with a part under way lets a serial method go too.
    let mut left = services.stream("blocking", "flow", numbers([1000]))?;
    assert!(left.next().await.is_some_and(|part| part.is_ok()));
    drop(left);
    assert_eq!(take_all(services, "blocking", 2).await?, 2 * PART);
    done("an iterator for threads that block");

    for (service, parts, kind, said) in [
        ("late", 3..=12, Kind::Deadline, "the deadline passed"),
        ("dies", 2..=2, Kind::Reset, "lost after 2 parts"),
        ("fails", 2..=2, Kind::User, "scripted to fail at part 3"),
        ("never", 0..=0, Kind::Reset, "3 attempts"),
    ] {
        let mut answers = services.stream(service, "flow", numbers([1]))?;
        let mut count = 0;
        let error = loop {
            match answers.next().await {
                Some(Ok(_)) => count += 1,
                Some(Err(error)) => break error,
                None => panic!("`{service}` ended well"),
            }
        };
        assert_eq!(error.kind(), kind, "{service}: {error}");
        assert!(error.message().contains(said), "{service}: {error}");
        assert!(parts.contains(&count), "{service} gave {count} parts");
        assert!(answers.next().await.is_none(), "nothing comes after an error");
    }
    done("deadlines, deaths and failures in the middle of a stream end it with an error");

    let too_large: ArrayRef = Arc::new(BinaryArray::from_iter_values([vec![0u8; 65 << 20]]));
    let error = services.call("streams", "echo", RecordBatch::try_from_iter([("payload", too_large)])?).await;
    let error = error.unwrap_err();
    assert!(error.kind() == Kind::Limit && error.message().contains("max_message"), "{error}");
    done("a row that is too large is refused by the name of its limit, and nothing is stuck");

    if std::env::args().any(|arg| arg == "large") {
        large(services).await?;
    }
    Ok(())
}

async fn large(services: &Services) -> Result<()> {
    for service in ["streams", "blocking"] {
        assert_eq!(take_all(services, service, 1000).await?, 1000 * PART);
        within_memory(services, service, "1 GB as a stream");
    }
    for size in [100, 10_000, 1_000_000, 100_000_000, 1_000_000_000] {
        let payload: ArrayRef = Arc::new(BinaryArray::from_iter_values([vec![1u8; size]]));
        let sent = RecordBatch::try_from_iter([("payload", payload)])?;
        let began = Instant::now();
        assert_eq!(services.call("huge", "echo", sent.clone()).await?, sent, "{size} bytes");
        let (caller, instance) = (peak(std::process::id()), peak(pid(services, "huge")));
        println!(
            "   {size} bytes in one row: {:?}, at most {} MB here, {} MB at the instance",
            began.elapsed(),
            caller >> 10,
            instance >> 10
        );
    }
    done("payloads of 1 GB come back");
    Ok(())
}

fn in_this_process() -> Result<()> {
    let host = pelton::env::real::Host::new(1, 1)?;
    let mut local = Local::open::<Blocking>(host.env(), Declaration::new("local"))?;
    let mut count = 0;
    for part in local.stream("flow", numbers([3, 2]))? {
        let part = part?;
        assert_eq!((first(&part.rows), part.request), ([0, 1, 2, 0, 1][count], usize::from(count > 2)));
        count += 1;
    }
    assert_eq!(count, 5);
    assert!(local.stream("flow", numbers([1_000_000]))?.next().is_some_and(|part| part.is_ok()));
    assert_eq!(local.call("flow", numbers([2]))?.num_rows(), 2, "it is there again");
    local.close()?;
    done("a service in this process streams too");
    Ok(())
}

fn done(what: &str) {
    println!("ok: {what}");
}

fn scripted(name: &str, options: &[(&str, serde_json::Value)]) -> Declaration {
    let mut declaration = Declaration::new(name);
    declaration.kind = Some("scripted".into());
    declaration.retry.attempts = 3;
    declaration.retry.backoff = Duration::from_millis(5);
    options.iter().fold(declaration, |d, (name, value)| d.option(name, value.clone()))
}

fn main() -> Result<()> {
    let world = std::env::temp_dir().join(format!("pelton-streams-{}", std::process::id()));
    let mut job = Job::with("streams", Settings::new(&world));
    job.service::<Streams>(Declaration::new("streams"))?;
    job.service::<Blocking>(Declaration::new("blocking"))?;
    let methods = Definition::of::<Blocking>();
    let mut late = scripted("late", &[("parts", 1000.into()), ("pause", "50ms".into())]);
    late.timeout = Some(Duration::from_millis(600));
    for declaration in [
        late,
        scripted("dies", &[("crash_at_part", 3.into()), ("pause", "50ms".into())]),
        scripted("fails", &[("fail_at_part", 3.into())]),
        scripted("never", &[("crash_at_part", 1.into())]),
    ] {
        job.service_with(declaration, methods.clone())?;
    }
    if std::env::args().any(|arg| arg == "large") || std::env::var_os("PELTON_INSTANCE").is_some() {
        let mut huge = Declaration::new("huge");
        huge.max_message = Bytes::mib(1024);
        job.service::<Streams>(huge)?;
    }
    in_this_process()?;
    let result = job.serve(check);
    let _ = std::fs::remove_dir_all(&world);
    if let Err(e) = &result {
        println!("FAILED: {e:?}");
    }
    result
}
