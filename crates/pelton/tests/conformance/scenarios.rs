//! Calls without a pipeline around them: every kind of method, every kind of failure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::types::Float32Type;
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray,
    FixedSizeListArray, Float16Array, Float32Array, Float64Array, Int8Array, Int16Array, Int64Array,
    LargeStringArray, StringArray, StructArray, TimestampMicrosecondArray, UInt64Array, new_null_array,
};
use arrow_schema::{Schema, SchemaRef};
use futures::future::{LocalBoxFuture, join_all, try_join_all};
use futures::{StreamExt, join};
use pelton::prelude::*;
use pelton::{Bytes, CallOptions, Kind, Services, Settings};
use rustix::process::{Pid, Signal, kill_process};

use crate::folder;
use crate::peer::{Peer, expected};
use crate::service::{numbers, typed, values};

type Scenario = for<'a> fn(&'a Services) -> LocalBoxFuture<'a, Result<()>>;

/// All of them, by name. Those that need a job of their own are in [`crate::jobs`].
const SCENARIOS: &[(&str, Scenario)] = &[
    ("echo", |s| Box::pin(echo(s))),
    ("empty-batch", |s| Box::pin(empty_batch(s))),
    ("large-rows", |s| Box::pin(large_rows(s))),
    ("types", |s| Box::pin(types(s))),
    ("order", |s| Box::pin(order(s))),
    ("several-methods", |s| Box::pin(several_methods(s))),
    ("batches-by-rows", |s| Box::pin(batches_by_rows(s))),
    ("batches-by-bytes", |s| Box::pin(batches_by_bytes(s))),
    ("linger", |s| Box::pin(linger(s))),
    ("side-by-side", |s| Box::pin(side_by_side(s))),
    ("streams", |s| Box::pin(streams(s))),
    ("stream-left", |s| Box::pin(stream_left(s))),
    ("errors", |s| Box::pin(errors(s))),
    ("transient-error", |s| Box::pin(transient_error(s))),
    ("failed-rows", |s| Box::pin(failed_rows(s))),
    ("failing-batch", |s| Box::pin(failing_batch(s))),
    ("out-of-memory", |s| Box::pin(out_of_memory(s))),
    ("too-few-rows", |s| Box::pin(too_few_rows(s))),
    ("wrong-columns", |s| Box::pin(wrong_columns(s))),
    ("callers-mistakes", |s| Box::pin(callers_mistakes(s))),
    ("timeout", |s| Box::pin(timeout(s))),
    ("cancel", |s| Box::pin(cancel(s))),
    ("deadly-row", |s| Box::pin(deadly_row(s))),
    ("killed-while-called", |s| Box::pin(killed_while_called(s))),
    ("slow-open", |s| Box::pin(slow_open(s))),
    ("open-fails-once", |s| Box::pin(open_fails_once(s))),
    ("blocking-call", |s| Box::pin(blocking_call(s))),
];

/// Plays those that are wanted against one peer.
pub(crate) fn play(peer: &Peer, wanted: &[String]) -> Result<()> {
    let played: Vec<_> = SCENARIOS.iter().filter(|(name, _)| is_wanted(name, wanted)).collect();
    if played.is_empty() {
        return Ok(());
    }
    let mut job = Job::with("conformance", Settings::new(folder().join("state")));
    for declaration in declarations() {
        peer.declare(&mut job, declaration)?;
    }
    job.serve(async |services| {
        for (name, scenario) in played {
            let within = services.env().within(PATIENCE, scenario(services)).await;
            within
                .unwrap_or_else(|| Err(expected(format!("an end within {PATIENCE:?}"))))
                .map_err(|e| e.context(*name))?;
            peer.ok(name);
        }
        Ok(())
    })
}

pub(crate) fn is_wanted(name: &str, wanted: &[String]) -> bool {
    wanted.is_empty() || wanted.iter().any(|w| w == name)
}

/// How long a scenario may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Services of the same type whose declarations differ.
fn declarations() -> Vec<Declaration> {
    let named = |name: &str| {
        let mut declaration = Declaration::new(name).max_rows(16);
        declaration.retry.attempts = 3;
        declaration.retry.backoff = Duration::from_millis(5);
        declaration
    };
    let mut conforming = named("conforming").instances(2);
    conforming.max_message = Bytes::mib(8);
    // One instance, whose state tells what it saw.
    let alone = named("alone");
    let (mut bytes, mut lingers) = (named("bytes"), named("lingers"));
    bytes.batch.bytes = Bytes(10_000);
    lingers.batch.linger = Duration::from_secs(60);
    let mut unshared = named("unshared");
    unshared.shared_memory = Bytes(0);
    let mut wide = named("wide");
    wide.shared_memory = Bytes::mib(32);
    for large in [&mut unshared, &mut wide] {
        large.max_message = Bytes::mib(80);
    }
    vec![conforming, alone, bytes, lingers, wide, unshared, named("opens-slowly"), named("opens-later")]
}

fn binary(payloads: impl IntoIterator<Item = Vec<u8>>) -> RecordBatch {
    let column: ArrayRef = Arc::new(BinaryArray::from_iter_values(payloads));
    RecordBatch::try_from_iter([("payload", column)]).unwrap()
}

/// A row of so many bytes, which are others for another `seed`.
fn payload(bytes: usize, seed: u64) -> RecordBatch {
    let byte = |i: usize| ((i as u64 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    binary([(0..bytes).map(byte).collect()])
}

fn one(n: i64) -> RecordBatch {
    numbers("n", [n])
}

async fn call(services: &Services, method: &str, rows: RecordBatch) -> Result<RecordBatch> {
    services.call("conforming", method, rows).await
}

/// The error of a call, which must be one of these kinds and say so.
async fn refused(services: &Services, method: &str, rows: RecordBatch, kinds: &[Kind], said: &str) {
    let error = call(services, method, rows).await.expect_err(said);
    assert!(kinds.contains(&error.kind()) && error.message().contains(said), "{error:?}; expected: {said}");
}

async fn echo(services: &Services) -> Result<()> {
    for size in [0, 1, 100, 10_000, 1_000_000, 5_000_000] {
        let sent = binary((0..3u8).map(|i| vec![i; size]));
        assert_eq!(call(services, "echo", sent.clone()).await?, sent, "{size} bytes");
    }
    let error = call(services, "echo", binary([vec![0u8; 9 << 20]])).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Limit);
    assert!(error.message().contains("max_message") && error.message().contains("8 MiB"), "{error}");
    Ok(())
}

async fn empty_batch(services: &Services) -> Result<()> {
    assert_eq!(call(services, "echo", binary([])).await?.num_rows(), 0);
    assert_eq!(call(services, "count", numbers("n", [])).await?.num_rows(), 0);
    Ok(())
}

async fn large_rows(services: &Services) -> Result<()> {
    // In shared memory and through the socket: one at a time, some at a time, and larger than all that is shared.
    for service in ["wide", "unshared"] {
        for (size, at_once) in [(100, 64), (10_000, 64), (1_000_000, 16), (10_000_000, 4), (64_000_000, 1)] {
            let sent: Vec<RecordBatch> = (0..at_once).map(|i| payload(size, i)).collect();
            let calls = sent.iter().map(|rows| services.call(service, "echo", rows.clone()));
            assert_eq!(try_join_all(calls).await?, sent, "{service}: {at_once} of {size} bytes");
        }
    }
    Ok(())
}

/// Three rows of every type: usual values, extreme ones, and nulls.
fn of_every_type() -> RecordBatch {
    let schema: SchemaRef = Arc::new(Schema::new(typed()));
    let data_type = |name: &str| schema.field_with_name(name).unwrap().data_type().clone();
    let mut list = ListBuilder::new(StringBuilder::new());
    list.append_value([Some("a"), None, Some("")]);
    list.append_value(Vec::<Option<&str>>::new());
    list.append_null();
    let vector = |i: i32| Some((0..4).map(move |k| Some((i * 4 + k) as f32)).collect::<Vec<_>>());
    let vectors =
        FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>([vector(0), vector(1), None], 4);
    let tensors = Int16Array::from_iter((0..18i16).map(|i| (i != 9).then_some(i - 9)));
    let DataType::FixedSizeList(item, size) = data_type("tensor") else {
        unreachable!("it is declared as one")
    };
    let inner = Arc::new(Int64Array::from(vec![1, i64::MIN, 3])) as ArrayRef;
    let DataType::Struct(fields) = data_type("record") else { unreachable!("it is declared as one") };
    let half = Float16Array::from(vec![0u16, 0x7bff, 0x3c00].into_iter().map(half).collect::<Vec<_>>());
    let columns: Vec<ArrayRef> = vec![
        Arc::new(BooleanArray::from(vec![Some(true), Some(false), None])),
        Arc::new(Int8Array::from(vec![Some(-1), Some(i8::MIN), None])),
        Arc::new(UInt64Array::from(vec![Some(1), Some(u64::MAX), None])),
        Arc::new(half),
        Arc::new(Float32Array::from(vec![Some(0.5), Some(f32::MAX), None])),
        Arc::new(Float64Array::from(vec![Some(-0.0), Some(f64::INFINITY), None])),
        Arc::new(StringArray::from(vec![Some("naïve 語 🦀"), Some(""), None])),
        Arc::new(LargeStringArray::from(vec![Some("long"), Some(""), None])),
        Arc::new(BinaryArray::from(vec![Some(&b"\0\xff"[..]), Some(b""), None])),
        Arc::new(
            FixedSizeBinaryArray::try_from_sparse_iter_with_size(
                [Some(b"abc"), Some(b"\0\0\0"), None].into_iter(),
                3,
            )
            .unwrap(),
        ),
        Arc::new(Date32Array::from(vec![Some(20_000), Some(-1), None])),
        Arc::new(TimestampMicrosecondArray::from(vec![Some(1), Some(i64::MAX), None]).with_timezone("UTC")),
        Arc::new(
            Decimal128Array::from(vec![Some(123), Some(-9_999_999_999), None])
                .with_precision_and_scale(12, 2)
                .unwrap(),
        ),
        Arc::new(list.finish()),
        Arc::new(vectors),
        Arc::new(StructArray::new(fields, vec![inner], None)),
        Arc::new(FixedSizeListArray::new(item, size, Arc::new(tensors), None)),
    ];
    RecordBatch::try_new(schema, columns).unwrap()
}

fn half(bits: u16) -> <arrow_array::types::Float16Type as arrow_array::ArrowPrimitiveType>::Native {
    <arrow_array::types::Float16Type as arrow_array::ArrowPrimitiveType>::Native::from_bits(bits)
}

async fn types(services: &Services) -> Result<()> {
    let sent = of_every_type();
    let given = call(services, "types", sent.clone()).await?;
    assert_eq!(given, sent);
    // What says which kind of list a tensor is comes back with it.
    assert_eq!(given.schema(), sent.schema());
    let nothing = sent.schema().fields().iter().map(|f| new_null_array(f.data_type(), 2)).collect();
    let nothing = RecordBatch::try_new(sent.schema(), nothing)?;
    assert_eq!(call(services, "types", nothing.clone()).await?, nothing);
    Ok(())
}

async fn order(services: &Services) -> Result<()> {
    let calls = (0..50).map(|call_number| async move {
        let sent = binary((0..20u32).map(|row| (call_number * 100 + row).to_le_bytes().to_vec()));
        assert_eq!(
            call(services, "echo", sent.clone()).await?,
            sent,
            "each call has its own rows, in their order"
        );
        Result::Ok(())
    });
    try_join_all(calls).await.map(drop)
}

async fn several_methods(services: &Services) -> Result<()> {
    let each = (0..40).map(|n| async move {
        let (payload, number) = (payload(64, n), one(n as i64 + 100));
        let (echoed, passed, counted) = join!(
            call(services, "echo", payload.clone()),
            call(services, "fails", number.clone()),
            call(services, "count", one(2)),
        );
        assert_eq!((echoed?, values(&counted?)), (payload, vec![0, 0, 1, 1]));
        // 107 is the one that `fails` refuses, alone.
        assert_eq!(passed.is_ok(), n != 7, "{n}");
        Result::Ok(())
    });
    try_join_all(each).await.map(drop)
}

async fn batches_by_rows(services: &Services) -> Result<()> {
    let calls = (0..64).map(|n| call(services, "rows", one(n)));
    let sizes: Vec<i64> = try_join_all(calls).await?.iter().flat_map(values).collect();
    assert!(sizes.iter().any(|n| *n > 4) && sizes.iter().all(|n| *n <= 16), "{sizes:?}");
    Ok(())
}

async fn batches_by_bytes(services: &Services) -> Result<()> {
    let calls = (0..64).map(|n| services.call("bytes", "bytes", payload(3000, n)));
    let sizes: Vec<i64> = try_join_all(calls).await?.iter().flat_map(values).collect();
    assert!(sizes.iter().any(|n| *n > 3000) && sizes.iter().all(|n| *n <= 10_000), "{sizes:?}");
    let alone = services.call("bytes", "bytes", payload(50_000, 0)).await?;
    assert_eq!(values(&alone), [50_000], "a row beyond the limit runs alone");
    Ok(())
}

async fn linger(services: &Services) -> Result<()> {
    // An instance waits for rows that it knows of, and for no others: it would for a minute.
    let alone =
        services.env().within(Duration::from_secs(30), services.call("lingers", "rows", one(1))).await;
    assert_eq!(values(&alone.expect("nothing to wait for")?), [1]);
    let calls = (0..8).map(|n| services.call("lingers", "rows", one(n)));
    let sizes: Vec<i64> = try_join_all(calls).await?.iter().flat_map(values).collect();
    assert!(sizes.iter().any(|n| *n > 1), "{sizes:?}");
    Ok(())
}

async fn side_by_side(services: &Services) -> Result<()> {
    let calls = (0..40).map(|n| call(services, "side_by_side", one(n)));
    let running: Vec<i64> = try_join_all(calls).await?.iter().flat_map(values).collect();
    let most = running.iter().max().copied().unwrap_or_default();
    assert!((2..=4).contains(&most), "up to {most} ran side by side");
    Ok(())
}

async fn streams(services: &Services) -> Result<()> {
    for method in ["count", "count_later"] {
        let counted = call(services, method, numbers("n", [3, 0, 2])).await?;
        assert_eq!(values(&counted), [0, 0, 1, 1, 2, 2, 0, 0, 1, 1], "{method}");
        let mut parts = services.stream("conforming", method, numbers("n", [300, 200]))?;
        let mut seen = [vec![], vec![]];
        while let Some(part) = parts.next().await {
            let part = part?;
            seen[part.request].extend(values(&part.rows));
        }
        let whole = |n: i64| (0..n).flat_map(|i| [i, i]).collect::<Vec<_>>();
        assert_eq!(seen, [whole(300), whole(200)], "{method}");
    }
    Ok(())
}

async fn stream_left(services: &Services) -> Result<()> {
    // More than anybody waits for; whoever leaves ends it.
    let mut parts = services.stream("alone", "count", one(1 << 40))?;
    assert!(parts.next().await.is_some_and(|part| part.is_ok()));
    drop(parts);
    until_stopped(services, 1).await
}

/// Waits until so many more methods have noticed that nobody waits for them. Their instance has nothing else to do by then.
async fn until_stopped(services: &Services, more: i64) -> Result<()> {
    let file = folder().join("stopped");
    let before: i64 = std::fs::read_to_string(&file).ok().and_then(|n| n.parse().ok()).unwrap_or_default();
    loop {
        let stopped = values(&services.call("alone", "stopped", one(0)).await?)[0];
        if stopped >= before + more {
            return Ok(std::fs::write(&file, stopped.to_string())?);
        }
        services.env().sleep(Duration::from_millis(20)).await;
    }
}

async fn errors(services: &Services) -> Result<()> {
    refused(services, "fails", one(0), &[Kind::User], "the row is zero").await;
    refused(services, "fails", one(1), &[Kind::User], "the row is one").await;
    assert_eq!(values(&call(services, "fails", one(100)).await?), [100], "the instances go on");
    Ok(())
}

async fn transient_error(services: &Services) -> Result<()> {
    assert_eq!(values(&call(services, "fails", one(2)).await?), [2], "tried again until it passed");
    Ok(())
}

async fn failed_rows(services: &Services) -> Result<()> {
    let calls = (0..16).map(|n| services.call("alone", "mark", one(n)));
    let answers = join_all(calls).await;
    let runs: BTreeSet<i64> = answers.iter().flatten().flat_map(values).collect();
    for (n, answer) in answers.iter().enumerate() {
        match answer {
            Ok(_) => assert_eq!(n % 2, 0),
            Err(e) => {
                assert!(e.kind() == Kind::User && e.message().contains(&format!("{n} is odd")), "{e:?}")
            }
        }
    }
    assert_eq!(runs.last(), Some(&16), "no row ran twice to find those that failed");
    Ok(())
}

async fn failing_batch(services: &Services) -> Result<()> {
    let calls = (100..116).map(|n| services.call("alone", "fails", one(n)));
    for (n, answer) in (100..).zip(join_all(calls).await) {
        match answer {
            Ok(rows) => assert!(n != 107 && values(&rows) == [n]),
            Err(e) => assert!(n == 107 && e.message().contains("107 is bad"), "{n}: {e:?}"),
        }
    }
    Ok(())
}

async fn out_of_memory(services: &Services) -> Result<()> {
    let calls = (0..16).map(|_| services.call("alone", "fails", one(6)));
    assert!(try_join_all(calls).await?.iter().all(|rows| values(rows) == [6]), "in smaller batches");
    Ok(())
}

async fn too_few_rows(services: &Services) -> Result<()> {
    refused(
        services,
        "fails",
        one(3),
        &[Kind::User],
        "gave 0 rows for 1 requests; it must give one for each",
    )
    .await;
    Ok(())
}

async fn wrong_columns(services: &Services) -> Result<()> {
    refused(services, "fails", one(5), &[Kind::User, Kind::Invalid], "columns").await;
    Ok(())
}

async fn callers_mistakes(services: &Services) -> Result<()> {
    refused(services, "shout", one(1), &[Kind::Invalid], "it has: echo, types, rows").await;
    let other = numbers("m", [1]);
    refused(services, "rows", other, &[Kind::Invalid], "columns are (m: Int64), expected (n: Int64)").await;
    let error = services.call("other", "echo", one(1)).await.unwrap_err();
    assert!(error.message().contains("conforming"), "{error:?}");
    Ok(())
}

async fn timeout(services: &Services) -> Result<()> {
    let options = CallOptions { timeout: Some(Duration::from_millis(200)), ..CallOptions::default() };
    let error =
        services.calls("alone")?.call("wait", numbers("millis", [600_000]), options).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Deadline, "{error:?}");
    until_stopped(services, 1).await
}

async fn cancel(services: &Services) -> Result<()> {
    let endless = services.call("alone", "wait", numbers("millis", [600_000]));
    assert!(services.env().within(Duration::from_millis(300), endless).await.is_none());
    until_stopped(services, 1).await
}

async fn deadly_row(services: &Services) -> Result<()> {
    let error = call(services, "fails", one(4)).await.unwrap_err();
    assert!(
        error.message().contains("3 attempts") && error.message().contains("retry.attempts"),
        "{error:?}"
    );
    assert_eq!(values(&call(services, "fails", one(101)).await?), [101], "a new instance is there");
    Ok(())
}

async fn killed_while_called(services: &Services) -> Result<()> {
    let kill = async {
        for _ in 0..3 {
            services.env().sleep(Duration::from_millis(60)).await;
            let report = services.report();
            let service = report.services.iter().find(|s| s.name == "conforming");
            let pid = service.and_then(|s| s.instances.iter().find_map(|i| i.pid));
            if let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid as i32)) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    };
    let calls = (0..400).map(|n| call(services, "crash", one(n * 400)));
    let (answers, ()) = join!(try_join_all(calls), kill);
    let answers: Vec<i64> = answers?.iter().flat_map(values).collect();
    assert_eq!(answers, (0..400).map(|n| n * 800).collect::<Vec<_>>());
    Ok(())
}

async fn slow_open(services: &Services) -> Result<()> {
    assert_eq!(values(&services.call("opens-slowly", "rows", one(1)).await?), [1]);
    Ok(())
}

async fn open_fails_once(services: &Services) -> Result<()> {
    assert_eq!(values(&services.call("opens-later", "rows", one(1)).await?), [1]);
    let opened = std::fs::read_to_string(folder().join("opened"))?;
    assert_eq!(opened.lines().filter(|line| line.starts_with("opens-later ")).count(), 2);
    Ok(())
}

async fn blocking_call(services: &Services) -> Result<()> {
    let blocking = std::thread::scope(|scope| {
        let thread = scope.spawn(|| services.call_blocking("conforming", "rows", one(1)));
        thread.join().expect("it does not panic")
    });
    assert_eq!(values(&blocking?), [1]);
    Ok(())
}
