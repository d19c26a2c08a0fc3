//! Scenarios that are jobs: rows from a source, through the service, to files. Whatever happens to instances, each row is there once.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pelton::ErrorPolicy;
use pelton::Stopper;
use pelton::dataflow::job::{End, Summary};
use pelton::dataflow::source::{Read, Reader, Source, Split};
use pelton::prelude::*;
use pelton::{Kind, Settings};
use rustix::process::{Pid, Signal, kill_process};

use crate::folder;
use crate::peer::{Peer, expected};
use crate::scenarios::{PATIENCE, is_wanted};
use crate::service::{is_deadly, number, numbers};

const ROWS: i64 = 3000;

type Scenario = fn(&Peer, &Path) -> Result<()>;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("error-output", error_output),
    ("crashes-under-load", crashes_under_load),
    ("kills-under-load", kills_under_load),
    ("drain", drain),
    ("failing-open", failing_open),
];

/// Plays those that are wanted against one peer.
pub(crate) fn play(peer: &Peer, wanted: &[String]) -> Result<()> {
    for (name, scenario) in SCENARIOS.iter().filter(|(name, _)| is_wanted(name, wanted)) {
        scenario(peer, &folder().join(name)).map_err(|e| e.context(*name))?;
        peer.ok(name);
    }
    Ok(())
}

/// The numbers below `ROWS`, in four splits.
struct Numbers;

impl Source for Numbers {
    fn describe(&self) -> String {
        format!("the numbers below {ROWS}")
    }
    fn schema(&self) -> arrow_schema::SchemaRef {
        Arc::new(arrow_schema::Schema::new(number("n")))
    }
    fn splits(&self) -> Result<Vec<Split>> {
        let split = |id| Split { id, uri: id.to_string(), bytes: 0, version: "1".into() };
        Ok((0..4).map(split).collect())
    }
    fn open(&self, split: &Split, position: u64) -> Result<Box<dyn Reader>> {
        let begin = |split: u64| ROWS * split as i64 / 4;
        let (first, end) = (begin(split.id), begin(split.id + 1));
        Ok(Box::new(Range { first, next: first + position as i64, end }))
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
        let rows = numbers("n", self.next..last);
        self.next = last;
        Ok(Some(Read { rows, bad: Vec::new(), position: (last - self.first) as u64 }))
    }
}

/// All numbers through `method`, to a folder; what failed beside it.
fn job(peer: &Peer, place: &Path, service: &str, method: &str) -> Result<Job> {
    let settings =
        Settings { checkpoint_interval: Duration::from_millis(100), ..Settings::new(place.join("state")) };
    let mut job = Job::with(service, settings);
    let mut declaration = Declaration::new(service).instances(2).max_rows(16);
    declaration.retry.attempts = 20;
    declaration.retry.backoff = Duration::from_millis(5);
    declaration.on_error = ErrorPolicy::ErrorOutput;
    let service = peer.declare(&mut job, declaration)?;
    let called = job.read("numbers", Numbers).call(&service.method(method).named("called"), &["n"]);
    called.write("answers", json_lines(place.join("answers"))?);
    called.errors().write("errors", json_lines(place.join("errors"))?);
    Ok(job)
}

fn run(job: Job) -> Result<Summary> {
    job.run_until(&Stopper::new(), |_| {})
}

/// The rows that were written, by file.
fn written(place: &Path) -> Result<Vec<serde_json::Value>> {
    let mut rows = Vec::new();
    for entry in fs::read_dir(place)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "jsonl") {
            let text = fs::read_to_string(path)?;
            rows.extend(
                text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a row")),
            );
        }
    }
    Ok(rows)
}

/// Each number once, with twice itself beside it.
fn check_twice(place: &Path) -> Result<()> {
    let mut times = BTreeMap::new();
    for row in written(&place.join("answers"))? {
        let (n, twice) = (row["n"].as_i64().expect("a number"), row["twice"].as_i64());
        assert_eq!(twice, Some(2 * n));
        *times.entry(n).or_insert(0) += 1;
    }
    let odd: Vec<_> = (0..ROWS).filter(|n| times.get(n) != Some(&1)).map(|n| (n, times.get(&n))).collect();
    assert!(odd.is_empty() && times.len() as i64 == ROWS, "not there once: {odd:?}");
    assert_eq!(written(&place.join("errors"))?.len(), 0);
    Ok(())
}

/// The processes of a service that were opened or closed.
fn noted(file: &str, service: &str) -> Vec<i32> {
    let notes = fs::read_to_string(folder().join(file)).unwrap_or_default();
    let of = |line: &str| {
        line.split_once(' ').filter(|(s, _)| *s == service).and_then(|(_, pid)| pid.parse().ok())
    };
    notes.lines().filter_map(of).collect()
}

fn error_output(peer: &Peer, place: &Path) -> Result<()> {
    run(job(peer, place, "bad-rows", "mark")?)?;
    let errors = written(&place.join("errors"))?;
    let odd = errors.iter().all(|row| {
        let n: serde_json::Value =
            serde_json::from_str(row["row"].as_str().expect("the row")).expect("as JSON");
        let n = n["n"].as_i64().expect("a number");
        n % 2 == 1 && row["message"].as_str().is_some_and(|m| m.contains(&format!("{n} is odd")))
    });
    assert!(odd && errors.len() as i64 == ROWS / 2, "{} error rows: {:?}", errors.len(), errors.first());
    assert_eq!(written(&place.join("answers"))?.len() as i64, ROWS / 2);
    Ok(())
}

fn crashes_under_load(peer: &Peer, place: &Path) -> Result<()> {
    run(job(peer, place, "crashes", "crash")?)?;
    check_twice(place)?;
    let deadly = (0..ROWS).filter(|n| is_deadly(*n)).count();
    let started = noted("opened", "crashes").len();
    assert!(deadly > 4 && started > 2, "{deadly} rows crash; {started} instances were started");
    Ok(())
}

fn kills_under_load(peer: &Peer, place: &Path) -> Result<()> {
    let done = AtomicBool::new(false);
    let killed = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut killed = 0;
            while !done.load(Ordering::SeqCst) && killed < 5 {
                std::thread::sleep(Duration::from_millis(50));
                // The one that was opened last; it may be gone.
                let last = noted("opened", "killed").last().copied().and_then(Pid::from_raw);
                if last.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok()) {
                    killed += 1;
                }
            }
            killed
        });
        let ran = job(peer, place, "killed", "crash").and_then(run);
        done.store(true, Ordering::SeqCst);
        ran.map(|_| killer.join().expect("it does not panic"))
    })?;
    check_twice(place)?;
    assert!(killed > 0, "none was killed");
    Ok(())
}

fn drain(peer: &Peer, place: &Path) -> Result<()> {
    let mut stops = 0;
    for _ in 0..10 {
        let stopper = Stopper::new();
        let ended = job(peer, place, "drained", "crash")?.run_until(&stopper, |_| {
            // As soon as there is a first checkpoint to tell that rows are under way.
            if stops < 2 && place.join("state/checkpoints").read_dir().is_ok_and(|mut c| c.next().is_some()) {
                stopper.stop();
            }
        })?;
        if ended.end != End::Stopped {
            break;
        }
        stops += 1;
    }
    check_twice(place)?;
    // Every instance that was stopped in good order was closed; those that crashed by themselves were not.
    let (opened, closed) = (noted("opened", "drained").len(), noted("closed", "drained").len());
    if stops == 0 || closed < 2 || closed > opened {
        return Err(expected(format!(
            "a stop, and that it closes instances: {stops}; {closed} of {opened} closed"
        )));
    }
    Ok(())
}

fn failing_open(peer: &Peer, place: &Path) -> Result<()> {
    let began = std::time::Instant::now();
    let error = run(job(peer, place, "opens-never", "crash")?).unwrap_err();
    assert!(
        error.message().contains("opens-never") && error.message().contains("no model here"),
        "{error:?}"
    );
    assert!(matches!(error.kind(), Kind::User | Kind::Invalid) && began.elapsed() < PATIENCE, "{error:?}");
    Ok(())
}
