//! Pelton's own instances: calls one by one, calls from a window, streamed answers, and what becomes of calls when an instance dies.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{BinaryArray, RecordBatch, UInt64Array};
use arrow_buffer::{Buffer, OffsetBuffer};
use arrow_schema::{DataType, Field};
use futures::StreamExt;
use futures::channel::mpsc;
use pelton::service::{Context, Methods, Service};
use pelton::{Declaration, Job, RequestId, Server, Services, Serving, Settings};
use pelton_core::Bytes;
use pelton_core::access::Access;
use pelton_core::call::{Outcome, Receiver, Submission};
use pelton_peers::load::{self, Course, Ended, FILL, PART, Summary, same};

use super::measured::{Load, Measured, Spending};

/// The services: for calls, for large payloads, for streamed answers, and two instances that take their time.
pub(super) const CALLS: &str = "echo";
pub(super) const LARGE: &str = "echo-large";
pub(super) const PARTS: &str = "parts";
pub(super) const PAIR: &str = "pair";

/// More than any payload here, and the most that there may be; what may be held of them.
const LARGEST: Bytes = Bytes::mib(1024);
const HELD: Bytes = Bytes::mib(4096);

struct Echo;

fn payload() -> Vec<Field> {
    vec![Field::new("payload", DataType::Binary, false)]
}

impl Service for Echo {
    fn open(_: &Context) -> pelton::Result<Self> {
        Ok(Echo)
    }

    fn methods() -> Methods<Self> {
        Methods::new().serial("echo", payload(), payload(), |_, batch, _| Ok(batch))
    }
}

/// Gives as many bytes as it is asked for, in parts.
struct Parts;

impl Service for Parts {
    fn open(_: &Context) -> pelton::Result<Self> {
        Ok(Parts)
    }

    fn methods() -> Methods<Self> {
        let bytes = vec![Field::new("bytes", DataType::UInt64, false)];
        Methods::new().streaming("parts", bytes, payload(), |_, batch, _, emit| {
            let mut left = batch.column(0).as_primitive::<UInt64Type>().value(0) as usize;
            while left > 0 {
                let part = left.min(PART);
                emit(rows(vec![FILL; part], 1).map_err(|e| pelton::Error::internal(e.to_string()))?)?;
                left -= part;
            }
            Ok(())
        })
    }
}

/// Takes its time for each call.
struct Slow {
    context: Context,
    each: Duration,
}

impl Service for Slow {
    fn open(context: &Context) -> pelton::Result<Self> {
        let seconds = context.options.get("seconds").and_then(serde_json::Value::as_f64).unwrap_or(0.0);
        Ok(Slow { context: context.clone(), each: Duration::from_secs_f64(seconds) })
    }

    fn methods() -> Methods<Self> {
        Methods::new().serial("echo", payload(), payload(), |slow: &mut Slow, batch, _| {
            futures::executor::block_on(slow.context.clock.sleep(slow.each));
            Ok(batch)
        })
    }
}

pub(super) fn job(state: &Path, in_flight: u32, seconds: f64) -> Result<Job> {
    let mut job = Job::with("bench-wire", Settings::new(state.join("wire")));
    job.service::<Echo>(calls(in_flight))?;
    job.service::<Echo>(large())?;
    job.service::<Parts>(Declaration::new(PARTS))?;
    job.service::<Slow>(Declaration::new(PAIR).instances(2).max_rows(1).option("seconds", seconds))?;
    Ok(job)
}

fn calls(in_flight: u32) -> Declaration {
    Declaration::new(CALLS).max_rows(in_flight)
}

fn large() -> Declaration {
    let mut large = Declaration::new(LARGE);
    (large.max_message, large.max_backlog) = (LARGEST, HELD);
    (large.batch.bytes, large.permits.bytes, large.ledger.bytes) = (HELD, HELD, HELD);
    large
}

// --- served on its own, under TLS ---

/// The token that callers show, and the folder with certificates, in the folder that both sides have.
const TOKEN: &str = "token";
const CERTIFICATES: &str = "certificates";

/// Makes what [`serve`] and [`reached`] need in a folder.
pub(super) fn certify(env: &pelton::env::Env, folder: &Path, host: &str) -> Result<()> {
    let certificates = folder.join(CERTIFICATES);
    let wanted = pelton::certificates::Wanted {
        folder: certificates,
        hosts: vec![host.to_owned()],
        name: "server".to_owned(),
        days: 90,
    };
    pelton::certificates::make(&wanted, env.clock.unix_millis(), &env.entropy.secret())?;
    Ok(std::fs::write(folder.join(TOKEN), env.entropy.secret())?)
}

/// Serves the echoes, for calls and for large payloads, at these addresses until the process is told to end.
pub(super) fn serve(folder: &Path, in_flight: u32, addresses: [String; 2]) -> Result<()> {
    let serving = Serving {
        token_file: Some(folder.join(TOKEN)),
        certificates: Some(folder.join(CERTIFICATES)),
        ..Serving::default()
    };
    let mut server = Server::new(serving);
    let [small, big] = addresses;
    server.service::<Echo>(calls(in_flight), &small)?;
    server.service::<Echo>(large(), &big)?;
    Ok(server.run()?)
}

/// A job that calls what [`serve`] serves.
pub(super) fn reached(folder: &Path, addresses: [String; 2]) -> Result<Job> {
    let mut job = Job::with("bench-wire", Settings::new(folder.join("state")));
    for (name, address) in [CALLS, LARGE].into_iter().zip(addresses) {
        let mut declaration = Declaration::new(name);
        if name == LARGE {
            (declaration.max_message, declaration.max_backlog) = (LARGEST, HELD);
        }
        declaration.endpoints = vec![format!("tls://{address}")];
        declaration.access = Some(Access {
            token_file: Some(folder.join(TOKEN)),
            certificates: Some(folder.join(CERTIFICATES)),
            ..Access::default()
        });
        job.service::<Echo>(declaration)?;
    }
    Ok(job)
}

// --- calls ---

/// The processes of a service's instances.
pub(super) fn instances(services: &Services, service: &str) -> Vec<u32> {
    let report = services.report();
    let of = report.services.iter().filter(|s| s.name == service);
    of.flat_map(|s| &s.instances).filter_map(|i| i.pid).collect()
}

/// Rows of this payload. One row takes it over as it is.
pub(super) fn rows(payload: Vec<u8>, rows: usize) -> Result<RecordBatch> {
    let column = match rows {
        1 => {
            let offsets = OffsetBuffer::from_lengths([payload.len()]);
            BinaryArray::try_new(offsets, Buffer::from_vec(payload), None)?
        }
        rows => BinaryArray::from_iter_values(std::iter::repeat_n(&payload, rows)),
    };
    Ok(RecordBatch::try_from_iter([("payload", Arc::new(column) as _)])?)
}

/// One call, as a program makes it that has nothing else to say.
pub(super) async fn call(services: &Services, service: &str, one: &RecordBatch) -> Result<(), String> {
    let answer = services.call(service, "echo", one.clone()).await.map_err(|e| e.to_string())?;
    check(&answer, one)
}

/// Calls one by one, several side by side; `pids` are the server's processes.
pub(super) async fn one_by_one(services: &Services, wanted: &Load, pids: &[u32]) -> Result<Measured> {
    let service = if wanted.is_large() { LARGE } else { CALLS };
    let one = rows(vec![FILL; wanted.bytes], 1)?;
    let lanes = (0..wanted.in_flight).map(|_| async || call(services, service, &one).await).collect();
    let spending = Spending::begin(services.env(), pids);
    let lanes = load::bounded(async { Ok(load::lanes(lanes, wanted.time).await) });
    let ended = lanes.await.map_err(|why| anyhow!("{}: {why}", wanted.name()))?;
    Ok(wanted.measured(super::OURS, ended, spending.end(services.env())))
}

/// The same from one caller that keeps a window of requests.
pub(super) async fn from_a_window(services: &Services, load: &Load, pids: &[u32]) -> Result<Measured> {
    let spending = Spending::begin(services.env(), pids);
    let ended = window(services, load.in_flight, vec![FILL; load.bytes], load.time).await?;
    Ok(load.measured(super::OUR_WINDOW, ended, spending.end(services.env())))
}

/// A streamed answer of so many bytes, of which nothing is kept.
pub(super) async fn stream(services: &Services, bytes: usize) -> Result<(), String> {
    let wanted = UInt64Array::from_iter_values([bytes as u64]);
    let arguments =
        RecordBatch::try_from_iter([("bytes", Arc::new(wanted) as _)]).map_err(|e| e.to_string())?;
    let mut parts = services.stream(PARTS, "parts", arguments).map_err(|e| e.to_string())?;
    let mut came = 0;
    while let Some(part) = parts.next().await {
        let rows = part.map_err(|e| e.to_string())?.rows;
        for part in rows.column(0).as_binary::<i32>().iter().flatten() {
            load::taken(part)?;
            came += part.len();
        }
    }
    if came == bytes { Ok(()) } else { Err(format!("{came} bytes came of {bytes}")) }
}

/// An answer is one row, and the same as the first that was sent.
fn check(answer: &RecordBatch, sent: &RecordBatch) -> Result<(), String> {
    if answer.num_rows() != 1 {
        return Err(format!("{} rows for one", answer.num_rows()));
    }
    same(answer.column(0).as_binary::<i32>().value(0), sent.column(0).as_binary::<i32>().value(0))
}

/// Hands on what has ended.
struct Hand(mpsc::UnboundedSender<Vec<Outcome>>);

impl Receiver for Hand {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        let _ = self.0.unbounded_send(outcomes);
    }
}

/// One caller with a window of requests: it submits as many as have ended, in one batch of rows, as the call operator of a job does. Each row is a
/// request with an id, a permit and a ledger entry of its own.
async fn window(services: &Services, in_flight: usize, payload: Vec<u8>, time: Duration) -> Result<Summary> {
    let env = services.env();
    let caller = services.caller(CALLS)?;
    let group = env.entropy.seed();
    let all = rows(payload, in_flight)?;
    let (sender, mut outcomes) = mpsc::unbounded();
    let receiver: Arc<dyn Receiver> = Arc::new(Hand(sender));
    let course = Course::new(time);
    let mut ended = Ended::default();
    // When each began, in the order of their numbers.
    let mut begun = Vec::new();
    let (mut free, mut open) = (in_flight, 0usize);
    loop {
        if free > 0
            && let Some(now) = course.begin()
        {
            let ids = (0..free).map(|i| RequestId {
                operator: u32::MAX - 1,
                group,
                sequence: (begun.len() + i) as u64,
            });
            let submission = Submission::new(0, ids.collect(), all.slice(0, free));
            begun.extend(std::iter::repeat_n(now, free));
            open += std::mem::take(&mut free);
            caller.submit(submission, receiver.clone());
        }
        if open == 0 {
            return Ok(ended.summary(&course));
        }
        let mut some = outcomes.next().await.context("the client is gone")?;
        // Whatever else has ended by now.
        while let Ok(more) = outcomes.try_recv() {
            some.extend(more);
        }
        for Outcome { id, rows, .. } in some {
            let answer = rows.map_err(|e| e.to_string()).and_then(|rows| check(&rows, &all));
            ended.note(&course, begun[id.sequence as usize], answer);
            open -= 1;
            free += 1;
        }
    }
}
