//! Services without a pipeline, in real processes: every kind of method, every kind of failure.
//!
//! This test has its own `main`, because the program is started again as the instances of its services.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, BinaryArray, Int64Array};
use pelton::prelude::*;
use pelton::{Kind, Services, Settings};

/// One method of each kind.
struct Kinds {
    running: Arc<AtomicUsize>,
    serial: usize,
    clock: Arc<dyn pelton::env::Clock>,
}

fn number(name: &str) -> Vec<Field> {
    vec![Field::new(name, DataType::Int64, false)]
}

fn numbers(name: &str, values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
    RecordBatch::try_from_iter([(name, column)]).unwrap()
}

/// A row of so many bytes, which are others for another `seed`.
fn payload(bytes: usize, seed: u64) -> RecordBatch {
    let byte = |i: usize| ((i as u64 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    let column: ArrayRef =
        Arc::new(BinaryArray::from_iter_values([(0..bytes).map(byte).collect::<Vec<u8>>()]));
    RecordBatch::try_from_iter([("payload", column)]).unwrap()
}

fn values(rows: &RecordBatch) -> Vec<i64> {
    rows.column(0).as_primitive::<Int64Type>().values().to_vec()
}

impl Service for Kinds {
    fn open(ctx: &Context) -> Result<Self> {
        Ok(Kinds { running: Arc::default(), serial: 0, clock: ctx.clock.clone() })
    }

    fn methods() -> Methods<Self> {
        let payload = || vec![Field::new("payload", DataType::Binary, false)];
        Methods::<Self>::new()
            .serial("echo", payload(), payload(), |_, rows, _| Ok(rows))
            .serial("batch", number("n"), number("rows"), |_, rows, _| {
                Ok(numbers("rows", vec![rows.num_rows() as i64; rows.num_rows()]))
            })
            .serial("fail", number("n"), number("n"), |service, rows, _| {
                service.serial += 1;
                match values(&rows)[0] {
                    0 => Err(Error::user("the row is zero")),
                    1 => panic!("the row is one"),
                    2 if service.serial < 100 && service.serial.is_multiple_of(2) => {
                        Err(Error::transient("not now"))
                    }
                    3 => Ok(numbers("n", [])),
                    4 => std::process::abort(),
                    _ => Ok(rows),
                }
            })
            .concurrent("side by side", 4, number("n"), number("running"), |service, rows, _| {
                let (running, clock) = (service.running.clone(), service.clock.clone());
                Box::pin(async move {
                    let at_start = running.fetch_add(1, Ordering::SeqCst) + 1;
                    clock.sleep(Duration::from_millis(30)).await;
                    let most = at_start.max(running.load(Ordering::SeqCst));
                    running.fetch_sub(1, Ordering::SeqCst);
                    Ok(numbers("running", vec![most as i64; rows.num_rows()]))
                })
            })
            .streaming("count", number("n"), number("i"), |_, rows, _, emit| {
                for i in 0..values(&rows)[0] {
                    emit(numbers("i", [i, i]))?;
                }
                Ok(())
            })
    }
}

async fn check(services: &Services) -> Result<()> {
    let call = |method: &'static str, rows: RecordBatch| services.call("kinds", method, rows);
    services.ready().await?;

    // Payloads of any size within the limit, whole and in order.
    for size in [0, 1, 100, 10_000, 1_000_000, 5_000_000] {
        let payloads: Vec<Vec<u8>> = (0..3u8).map(|i| vec![i; size]).collect();
        let column: ArrayRef = Arc::new(BinaryArray::from_iter_values(&payloads));
        let sent = RecordBatch::try_from_iter([("payload", column)])?;
        assert_eq!(call("echo", sent.clone()).await?, sent, "{size} bytes");
    }
    let huge: ArrayRef = Arc::new(BinaryArray::from_iter_values([vec![0u8; 9 << 20]]));
    let error = call("echo", RecordBatch::try_from_iter([("payload", huge)])?).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Limit);
    assert!(error.message().contains("max_message") && error.message().contains("8 MiB"), "{error}");
    done("payloads of 0 B to 5 MB come back; one over the limit is refused by its name");

    // The same in shared memory and through the socket: one at a time, some at a time, and larger than all that is shared.
    for service in ["wide", "unshared"] {
        for (size, at_once) in [(100, 64), (10_000, 64), (1_000_000, 16), (10_000_000, 4), (64_000_000, 1)] {
            let sent: Vec<RecordBatch> = (0..at_once).map(|i| payload(size, i)).collect();
            let calls = sent.iter().map(|rows| services.call(service, "echo", rows.clone())).collect();
            assert_eq!(futures_all(calls).await?, sent, "{service}: {at_once} of {size} bytes");
        }
    }
    done("payloads of 100 B to 64 MB come back, through shared memory and through the socket");

    // Requests of many calls are run together.
    let calls: Vec<_> = (0..64).map(|n| call("batch", numbers("n", [n]))).collect();
    let sizes: Vec<i64> = futures_all(calls).await?.iter().flat_map(values).collect();
    assert!(sizes.iter().any(|n| *n > 4) && sizes.iter().all(|n| *n <= 16), "{sizes:?}");
    done("rows of many callers form batches, up to the limit");

    // Strictly one after another by default; side by side up to the bound where declared.
    let calls: Vec<_> = (0..40).map(|n| call("side by side", numbers("n", [n]))).collect();
    let running: Vec<i64> = futures_all(calls).await?.iter().flat_map(values).collect();
    let most = running.iter().max().copied().unwrap_or_default();
    assert!((2..=4).contains(&most), "up to {most} ran side by side");
    done("asynchronous methods run side by side, within their bound");

    let counted = call("count", numbers("n", [3, 0, 2])).await?;
    assert_eq!(values(&counted), [0, 0, 1, 1, 2, 2, 0, 0, 1, 1]);
    done("a streaming method gives any number of rows a request");

    for (row, said) in [(0, "the row is zero"), (1, "the row is one"), (3, "gave 0 rows for 1")] {
        let error = call("fail", numbers("n", [row])).await.unwrap_err();
        assert_eq!(error.kind(), Kind::User, "{error:?}");
        assert!(error.message().contains(said), "{error:?}");
    }
    assert_eq!(values(&call("fail", numbers("n", [2])).await?), [2], "tried again until it passed");
    done("errors, panics and wrong results come back as what they are; transient ones are tried again");

    let error = call("fail", numbers("n", [4])).await.unwrap_err();
    assert!(
        error.message().contains("3 attempts") && error.message().contains("retry.attempts"),
        "{error:?}"
    );
    assert_eq!(values(&call("fail", numbers("n", [7])).await?), [7], "a new instance is there");
    done("a row that kills every instance it meets ends as an error, and the service goes on");

    for (method, rows, said) in [
        ("shout", numbers("n", [1]), "it has: echo, batch, fail"),
        ("batch", numbers("m", [1]), "columns are (m: Int64), expected (n: Int64)"),
    ] {
        let error = call(method, rows).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.message().contains(said), "{error:?}");
    }
    assert!(services.call("other", "echo", numbers("n", [1])).await.unwrap_err().message().contains("kinds"));
    done("mistakes of the caller are named");

    let blocking = std::thread::scope(|scope| {
        let thread = scope.spawn(|| services.call_blocking("kinds", "batch", numbers("n", [1])));
        thread.join().expect("it does not panic")
    });
    assert_eq!(values(&blocking?), [1]);
    done("a blocking call");
    Ok(())
}

/// All of them at the same time.
async fn futures_all<T>(calls: Vec<impl Future<Output = Result<T>>>) -> Result<Vec<T>> {
    futures::future::try_join_all(calls).await
}

fn done(what: &str) {
    println!("ok: {what}");
}

fn main() -> Result<()> {
    // The folder is made by the job, and found by its instances in their own way.
    let world = std::env::temp_dir().join(format!("pelton-services-{}", std::process::id()));
    let mut job = Job::with("services", Settings::new(&world));
    let mut declaration = Declaration::new("kinds").instances(2).max_rows(16);
    declaration.max_message = pelton::Bytes::mib(8);
    declaration.retry.attempts = 3;
    declaration.retry.backoff = Duration::from_millis(5);
    let kinds = job.service::<Kinds>(declaration)?;
    assert_eq!(kinds.declaration().name, "kinds");
    for (name, shared_memory) in [("wide", pelton::Bytes::mib(32)), ("unshared", pelton::Bytes(0))] {
        let mut declaration = Declaration::new(name);
        declaration.max_message = pelton::Bytes::mib(80);
        declaration.shared_memory = shared_memory;
        job.service::<Kinds>(declaration)?;
    }
    let again = job.service::<Kinds>(Declaration::new("kinds"));
    assert!(again.unwrap_err().message().contains("two services are called `kinds`"));
    let result = job.serve(check);
    let _ = std::fs::remove_dir_all(&world);
    if let Err(e) = &result {
        println!("FAILED: {e:?}");
    }
    result
}
