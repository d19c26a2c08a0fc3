//! Pelton's own instances: too much at a time, full batches, and what flow control takes of the cores.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use pelton::env::{Env, Time};
use pelton::{Declaration, Job, RequestId, Services, Settings, scripted};
use pelton_core::call::{Acknowledge, Outcome, Receiver, Submission};

use super::super::batching::{self, declaration, row};
use super::cpu::Meter;
use super::load::{Course, Requests};
use super::{Batching, Cost, Found, Overload};
use crate::bench::figure::median;

pub(super) const SYSTEM: &str = "pelton";
const CONFIGURATION: &str = "as it comes";
/// The services: of the first two parts, and of the third, with the usual permits and with everything permitted at once.
const SCRIPTED: &str = "scripted";
const UNBOUNDED: &str = "scripted-unbounded";
const ECHO: &str = "echo";
const ECHO_UNBOUNDED: &str = "echo-unbounded";
/// More than anybody has in flight here.
const EVERYTHING: u32 = 1_000_000;
const TICK: Duration = Duration::from_millis(1);
/// How much longer than its deadline a request may go on before it counts as never ended.
const PATIENCE: Duration = Duration::from_secs(10);
/// Calls in flight while what they cost is measured.
const IN_FLIGHT: usize = 256;

pub(super) fn job(state: &Path) -> Result<Job> {
    let mut job = Job::with("bench-flow", Settings::new(state.join("flow")));
    let at_once = |name| Declaration::new(name).max_rows(batching::ROWS);
    let unbounded = |mut declaration: Declaration| {
        declaration.permits.rows = Some(EVERYTHING);
        declaration
    };
    for declaration in [
        declaration(SCRIPTED),
        unbounded(declaration(UNBOUNDED)),
        at_once(ECHO),
        unbounded(at_once(ECHO_UNBOUNDED)),
    ] {
        job.service_with(declaration, scripted::echo())?;
    }
    Ok(job)
}

/// All parts of it. What was found is told at once.
pub(super) fn measure(
    state: &Path,
    effort: &super::Effort,
    found: &mut dyn FnMut(Found) -> Result<()>,
) -> Result<()> {
    let mut tell = |f: Found| found(f).map_err(|e| pelton::Error::internal(format!("{e:#}")));
    job(state)?.serve(async |services| {
        services.ready().await?;
        tell(Found::Overload(overload(services, effort.course).await?))?;
        for in_flight in super::IN_FLIGHT {
            tell(Found::Batching(batching(services, in_flight, effort.batching).await?))?;
        }
        let scripted = cost(services, "20 ms + 0.5 ms a row", [SCRIPTED, UNBOUNDED], effort).await?;
        tell(Found::Cost(scripted))?;
        tell(Found::Cost(cost(services, "an echo that takes no time", [ECHO, ECHO_UNBOUNDED], effort).await?))
    })?;
    Ok(())
}

/// The processes of a service's instances.
fn instances(services: &Services, service: &str) -> Vec<u32> {
    let report = services.report();
    let of = report.services.iter().filter(|s| s.name == service);
    of.flat_map(|s| &s.instances).filter_map(|i| i.pid).collect()
}

/// Notes the ends of requests, whose numbers are their sequence numbers.
struct Noting {
    requests: Mutex<Requests>,
    env: Env,
    begun: Time,
}

impl Noting {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Receiver for Noting {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        let at = self.env.now().since(self.begun);
        let mut requests = self.requests();
        for Outcome { id, rows, .. } in outcomes {
            requests.end(id.sequence, at, rows.err().map(|e| e.kind().name()));
        }
    }
}

async fn overload(services: &Services, course: Course) -> pelton::Result<Overload> {
    let env = services.env();
    let caller = services.caller(SCRIPTED)?;
    let group = env.entropy.seed();
    let row = row()?;
    let meter = Meter::begin(env, instances(services, SCRIPTED));
    let noting = Arc::new(Noting { requests: Mutex::default(), env: env.clone(), begun: env.now() });
    loop {
        let now = env.now().since(noting.begun);
        let mut begin = course.due(now) - noting.requests().len();
        while begin > 0 {
            let sequence = noting.requests().begin(env.now().since(noting.begun));
            let id = RequestId { operator: u32::MAX - 1, group, sequence };
            let submission = Submission {
                timeout: Some(course.deadline),
                acknowledge: Acknowledge::OnReceipt,
                ..Submission::new(0, vec![id], row.clone())
            };
            caller.submit(submission, noting.clone());
            begin -= 1;
        }
        if now >= course.end() {
            break;
        }
        env.sleep(TICK).await;
    }
    let taken = meter.end(env);
    let until = env.now() + course.deadline + PATIENCE;
    while noting.requests().open() > 0 && env.now() < until {
        env.sleep(TICK).await;
    }
    let verdict = noting.requests().judge(&course);
    Ok(Overload { system: SYSTEM.into(), configuration: CONFIGURATION.into(), verdict, others: taken.others })
}

async fn batching(services: &Services, in_flight: usize, time: Duration) -> pelton::Result<Batching> {
    let env = services.env();
    let meter = Meter::begin(env, instances(services, SCRIPTED));
    let rate = batching::rate(services, SCRIPTED, in_flight, time).await?;
    let others = meter.end(env).others;
    Ok(Batching {
        system: SYSTEM.into(),
        configuration: CONFIGURATION.into(),
        in_flight,
        rate,
        share: rate / batching::ideal(),
        failures: 0,
        others,
    })
}

/// The same calls of a service with flow control and of one without, in turns.
async fn cost(
    services: &Services,
    work: &str,
    [with, without]: [&str; 2],
    effort: &super::Effort,
) -> pelton::Result<Cost> {
    let mut micros = [Vec::new(), Vec::new()];
    let mut rates = [Vec::new(), Vec::new()];
    let mut others: f64 = 0.0;
    for _ in 0..effort.rounds {
        for (i, service) in [with, without].into_iter().enumerate() {
            let (calls, seconds, taken) = calls(services, service, effort.cost).await?;
            micros[i].push(taken.ours.as_secs_f64() * 1e6 / calls);
            rates[i].push(calls / seconds);
            others = others.max(taken.others);
        }
    }
    let [with, without] = micros.map(|m| median(&m));
    let [rate_with, rate_without] = rates.map(|r| median(&r));
    let ratio = with / without;
    Ok(Cost { work: work.into(), with, without, ratio, rate_with, rate_without, others })
}

/// How many calls end, in how many seconds, and what they take.
async fn calls(
    services: &Services,
    service: &str,
    time: Duration,
) -> pelton::Result<(f64, f64, super::cpu::Taken)> {
    let env = services.env();
    let row = row()?;
    // What comes before is not counted: connections, the first permits.
    batching::rate(services, service, IN_FLIGHT, Duration::from_millis(100)).await?;
    let meter = Meter::begin(env, instances(services, service));
    let begun = env.now();
    let until = begun + time;
    let loops = (0..IN_FLIGHT).map(|_| async {
        let mut calls = 0u64;
        while env.now() < until {
            services.call(service, "call", row.clone()).await?;
            calls += 1;
        }
        Ok::<_, pelton::Error>(calls)
    });
    let calls = futures::future::try_join_all(loops).await?.into_iter().sum::<u64>();
    Ok((calls as f64, env.now().since(begun).as_secs_f64(), meter.end(env)))
}
