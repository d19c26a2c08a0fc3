//! Pelton's own instances: calls one by one, calls from a window, and what becomes of them when an instance dies.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use arrow_array::cast::AsArray;
use arrow_array::{BinaryArray, RecordBatch};
use arrow_buffer::{Buffer, OffsetBuffer};
use arrow_schema::{DataType, Field};
use futures::StreamExt;
use futures::channel::mpsc;
use pelton::service::{Context, Methods, Service};
use pelton::{Declaration, Job, RequestId, Services, Settings};
use pelton_core::Bytes;
use pelton_core::call::{Outcome, Receiver, Submission};
use pelton_peers::load::{Course, Ended, Summary, same};

/// The services: for calls, for large payloads, and two instances that take their time.
pub(super) const CALLS: &str = "echo";
pub(super) const LARGE: &str = "echo-large";
pub(super) const PAIR: &str = "pair";

/// More than any payload here, and the most that there may be; what may be held of them.
const LARGEST: Bytes = Bytes::mib(1024);
const HELD: Bytes = Bytes::mib(4096);

struct Echo;

impl Service for Echo {
    fn open(_: &Context) -> pelton::Result<Self> {
        Ok(Echo)
    }

    fn methods() -> Methods<Self> {
        let payload = || vec![Field::new("payload", DataType::Binary, false)];
        Methods::new().serial("echo", payload(), payload(), |_, batch, _| Ok(batch))
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
        let payload = || vec![Field::new("payload", DataType::Binary, false)];
        Methods::new().serial("echo", payload(), payload(), |slow: &mut Slow, batch, _| {
            futures::executor::block_on(slow.context.clock.sleep(slow.each));
            Ok(batch)
        })
    }
}

pub(super) fn job(state: &Path, in_flight: u32, seconds: f64) -> Result<Job> {
    let mut job = Job::with("bench-wire", Settings::new(state.join("wire")));
    job.service::<Echo>(Declaration::new(CALLS).max_rows(in_flight))?;
    let mut large = Declaration::new(LARGE);
    large.max_message = LARGEST;
    large.max_backlog = HELD;
    (large.batch.bytes, large.permits.bytes, large.ledger.bytes) = (HELD, HELD, HELD);
    job.service::<Echo>(large)?;
    job.service::<Slow>(Declaration::new(PAIR).instances(2).max_rows(1).option("seconds", seconds))?;
    Ok(job)
}

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
pub(super) async fn window(
    services: &Services,
    in_flight: usize,
    payload: Vec<u8>,
    time: Duration,
) -> Result<Summary> {
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
