//! How much of a scripted service's time is used.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use arrow_array::{BinaryArray, RecordBatch};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pelton::{Declaration, Job, Services, Settings, scripted};

use super::Effort;
use super::figure::{Course, Figure};

const PART: &str = "batching";
pub(super) const ROWS: u32 = 32;
pub(super) const LATENCY: Duration = Duration::from_millis(20);
pub(super) const PER_ROW: Duration = Duration::from_micros(500);
pub(super) const WARM_UP: Duration = Duration::from_millis(700);
pub(super) const PAYLOAD: [u8; 100] = [7; 100];
/// The services, by how many instances they have.
const SERVICES: [(&str, u32); 2] = [("one", 1), ("two", 2)];

/// A service of which each batch takes `LATENCY`, and each row in it `PER_ROW`.
pub(super) fn declaration(name: &str) -> Declaration {
    Declaration::new(name)
        .max_rows(ROWS)
        .option("latency", format!("{}us", LATENCY.as_micros()))
        .option("per_row", format!("{}us", PER_ROW.as_micros()))
}

/// Rows a second of one such instance, if it runs full batches without a gap.
pub(super) fn ideal() -> f64 {
    f64::from(ROWS) / (LATENCY + ROWS * PER_ROW).as_secs_f64()
}

pub(super) fn job(state: &Path) -> Result<Job> {
    let mut job = Job::with("bench-batching", Settings::new(state.join("batching")));
    for (name, instances) in SERVICES {
        job.service_with(declaration(name).instances(instances), scripted::echo())?;
    }
    Ok(job)
}

pub(super) fn measure(state: &Path, effort: Effort) -> Result<Vec<Figure>> {
    let figures = job(state)?.serve(async |services| {
        services.ready().await?;
        let mut figures = Vec::new();
        for ((service, instances), in_flight) in [
            (SERVICES[0], 64),
            (SERVICES[0], 256),
            (SERVICES[0], 1024),
            (SERVICES[1], 256),
            (SERVICES[1], 1024),
        ] {
            let mut rounds = Vec::new();
            for _ in 0..effort.rounds.min(3) {
                rounds.push(rate(services, service, in_flight, effort.batching).await?);
            }
            let ideal = ideal() * f64::from(instances);
            let name = format!("{in_flight} calls in flight, {instances} instance(s)");
            figures.push(
                Figure::new(PART, name, "rows/s", rounds).against("full batches without a gap", &[ideal]),
            );
        }
        Ok(figures)
    })?;
    Ok(figures)
}

/// What is sent: 100 bytes.
pub(super) fn row() -> pelton::Result<RecordBatch> {
    let row = BinaryArray::from_iter_values([PAYLOAD]);
    Ok(RecordBatch::try_from_iter([("payload", Arc::new(row) as _)])?)
}

/// Rows a second, of loops that call for one row after another.
pub(super) async fn rate(
    services: &Services,
    service: &str,
    in_flight: usize,
    time: Duration,
) -> pelton::Result<f64> {
    let env = services.env();
    let begin = env.now() + WARM_UP;
    let until = begin + time;
    let row = row()?;
    let course = RefCell::new(Course::default());
    let mut loops: FuturesUnordered<_> = (0..in_flight)
        .map(|_| async {
            while env.now() < until {
                services.call(service, "call", row.clone()).await?;
                course.borrow_mut().add(env.now(), 1);
            }
            Ok::<_, pelton::Error>(())
        })
        .collect();
    while let Some(done) = loops.next().await {
        done?;
    }
    drop(loops);
    // The last calls find nobody beside them, and are not looked at.
    let course = course.into_inner();
    let total = course.len() as f64 - in_flight as f64;
    Ok(course.cut(begin, total).rate())
}
