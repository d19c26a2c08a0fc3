//! Calls one after another in several lanes, and calls at a fixed rate.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};

/// This share of the time comes before what counts.
const WARM_UP: f64 = 0.2;
/// How long a call may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a part of a streamed answer.
pub const PART: usize = 4_000_000;
/// What payloads are full of.
pub const FILL: u8 = 7;
/// How long a call may take that is waited for until it ends: a large one, or the last of many.
pub const LONGEST: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(1);

#[expect(clippy::disallowed_methods, reason = "what is measured here has no other clock")]
pub fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "what is measured here has no other clock")]
pub async fn sleep(time: Duration) {
    tokio::time::sleep(time).await;
}

/// What comes of something that may take [`LONGEST`].
pub async fn bounded<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::select! {
        biased;
        ended = work => ended,
        () = sleep(LONGEST) => Err(format!("no answer within {LONGEST:?}")),
    }
}

/// What came of calls one after another.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ended {
    /// How long each took that counts.
    #[serde(skip)]
    pub micros: Vec<f64>,
    pub failed: u64,
    pub why: Option<String>,
}

impl Ended {
    pub fn add(&mut self, other: Ended) {
        self.micros.extend(other.micros);
        self.failed += other.failed;
        self.why = self.why.take().or(other.why);
    }

    pub fn note(&mut self, course: &Course, began: Instant, answer: Result<(), String>) {
        let now = now();
        match answer {
            Ok(()) if now >= course.counts => self.micros.push((now - began).as_secs_f64() * 1e6),
            Ok(()) => {}
            Err(why) => {
                self.failed += 1;
                self.why.get_or_insert(why);
            }
        }
    }

    pub fn summary(mut self, course: &Course) -> Summary {
        self.micros.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (share * self.micros.len() as f64) as usize;
            self.micros.get(index.min(self.micros.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
        };
        Summary {
            rate: self.micros.len() as f64 / course.seconds(),
            p50: at(0.5),
            p99: at(0.99),
            failed: self.failed,
            why: self.why.clone(),
            processor: None,
        }
    }
}

/// The same in a few numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Calls a second.
    pub rate: f64,
    /// In microseconds; NaN, which JSON has not, where no call was answered.
    #[serde(deserialize_with = "or_nan")]
    pub p50: f64,
    #[serde(deserialize_with = "or_nan")]
    pub p99: f64,
    pub failed: u64,
    pub why: Option<String>,
    /// Seconds that a caller's process had run before, and had run afterwards.
    pub processor: Option<(f64, f64)>,
}

fn or_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// From when calls count, and until when they begin.
#[derive(Clone, Copy)]
pub struct Course {
    counts: Instant,
    until: Instant,
}

impl Course {
    pub fn new(time: Duration) -> Course {
        let now = now();
        Course { counts: now + time.mul_f64(WARM_UP), until: now + time }
    }

    /// When a call begins; None if it is too late for one.
    pub fn begin(&self) -> Option<Instant> {
        Some(now()).filter(|now| *now < self.until)
    }

    fn seconds(&self) -> f64 {
        (self.until - self.counts).as_secs_f64()
    }
}

/// One lane.
pub async fn lane(course: Course, mut call: impl AsyncFnMut() -> Result<(), String>) -> Ended {
    let mut ended = Ended::default();
    while let Some(began) = course.begin() {
        let answer = call().await;
        if answer.is_err() {
            // Whoever is refused at once comes back a little later.
            sleep(TICK).await;
        }
        ended.note(&course, began, answer);
    }
    ended
}

/// Lanes that all run on this thread.
pub async fn lanes<C>(calls: Vec<C>, time: Duration) -> Summary
where
    C: AsyncFnMut() -> Result<(), String>,
{
    let course = Course::new(time);
    let all: FuturesUnordered<_> = calls.into_iter().map(|call| lane(course, call)).collect();
    let mut sum = Ended::default();
    all.collect::<Vec<Ended>>().await.into_iter().for_each(|ended| sum.add(ended));
    sum.summary(&course)
}

/// An answer is what was sent. Its ends are looked at: all of it would cost more than some of the calls.
pub fn same(answer: &[u8], payload: &[u8]) -> Result<(), String> {
    let alike =
        answer.len() == payload.len() && answer.first() == payload.first() && answer.last() == payload.last();
    if alike { Ok(()) } else { Err(format!("an answer of {} bytes to {}", answer.len(), payload.len())) }
}

/// A part of a streamed answer is what it should be. All of it is looked at, as whoever takes a stream does.
pub fn taken(part: &[u8]) -> Result<(), String> {
    if part.iter().fold(0, |wrong, byte| wrong | (byte ^ FILL)) == 0 {
        Ok(())
    } else {
        Err("a part is wrong".to_owned())
    }
}

/// One call of those at a fixed rate.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sent {
    /// Seconds from the start.
    pub began: f64,
    pub fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Fate {
    /// After so many milliseconds.
    Answered(f64),
    Failed,
    Hung,
}

/// Calls begin at this rate, whatever became of those before. Each counts from when it was to begin: one that this caller itself begins late, because
/// it was held up, is late.
pub async fn open(rate: f64, time: Duration, call: impl AsyncFn() -> Result<(), String>) -> Vec<Sent> {
    let start = now();
    let sent = RefCell::new(Vec::new());
    let (mut calls, mut number) = (FuturesUnordered::new(), 0usize);
    let one = async |began: Instant| {
        let fate = tokio::select! {
            biased;
            answer = call() => match answer {
                Ok(()) => Fate::Answered((now() - began).as_secs_f64() * 1e3),
                Err(_) => Fate::Failed,
            },
            () = sleep(PATIENCE.saturating_sub(now() - began)) => Fate::Hung,
        };
        sent.borrow_mut().push(Sent { began: (began - start).as_secs_f64(), fate });
    };
    loop {
        // When those begin that are due.
        let due = |number: usize| Duration::from_secs_f64(number as f64 / rate);
        let passed = now() - start;
        while due(number) <= passed.min(time) {
            calls.push(one(start + due(number)));
            number += 1;
        }
        if passed >= time {
            break;
        }
        let tick = sleep(TICK);
        tokio::pin!(tick);
        loop {
            tokio::select! {
                biased;
                () = &mut tick => break,
                Some(()) = calls.next() => {}
                else => {
                    tick.as_mut().await;
                    break;
                }
            }
        }
    }
    while calls.next().await.is_some() {}
    drop(calls);
    sent.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn an_answer_has_to_be_what_was_sent() {
        for (answer, payload, expected) in [
            (&b"abc"[..], &b"abc"[..], true),
            (b"ab", b"abc", false),
            (b"abd", b"abc", false),
            (b"xbc", b"abc", false),
            (b"", b"", true),
        ] {
            assert_eq!(same(answer, payload).is_ok(), expected, "{answer:?} {payload:?}");
        }
        assert_eq!(
            [&[FILL; 3][..], &[], &[FILL, 0, FILL]].map(|part| taken(part).is_ok()),
            [true, true, false]
        );
    }

    #[test]
    fn lanes_go_side_by_side() {
        let call = || {
            async || {
                sleep(Duration::from_millis(10)).await;
                Ok(())
            }
        };
        let summary = run(lanes((0..4).map(|_| call()).collect(), Duration::from_millis(300)));
        assert!(summary.failed == 0 && summary.p50 >= 10_000.0, "{summary:?}");
        assert!(summary.rate > 40.0 && summary.rate <= 410.0, "{summary:?}");
        let shown: Summary = serde_json::from_str(&serde_json::to_string(&summary).unwrap()).unwrap();
        assert_eq!(shown.rate, summary.rate);
    }

    #[test]
    fn a_call_counts_from_when_it_was_to_begin() {
        // The caller's own thread stands still for a while: all that was to begin meanwhile begins late.
        let (stands, number) = (Duration::from_millis(100), std::cell::Cell::new(0));
        let call = async || {
            if number.replace(number.get() + 1) == 0 {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "a thread that stands still is what is tested"
                )]
                std::thread::sleep(stands);
            }
            Ok(())
        };
        let mut sent = run(open(1000.0, Duration::from_millis(200), call));
        sent.sort_by(|a, b| a.began.total_cmp(&b.began));
        assert_eq!(sent.len(), 201, "none is left out");
        for (number, call) in sent.iter().enumerate().take(50) {
            assert!((call.began - number as f64 / 1000.0).abs() < 1e-6, "{call:?}");
            assert!(matches!(call.fate, Fate::Answered(millis) if millis >= 50.0), "{call:?}");
        }
    }

    #[test]
    fn calls_that_fail_are_told_from_those_that_are_answered() {
        let number = std::cell::Cell::new(0);
        let call = async || {
            number.set(number.get() + 1);
            if number.get() % 2 == 0 { Err("no".to_owned()) } else { Ok(()) }
        };
        let sent = run(open(200.0, Duration::from_millis(200), call));
        let failed = sent.iter().filter(|s| s.fate == Fate::Failed).count();
        assert!(sent.len() >= 20 && failed == sent.len() / 2, "{sent:?}");
    }
}
