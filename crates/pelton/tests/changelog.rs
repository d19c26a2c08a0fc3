//! A changelog through a service that never answers the same twice, with its job and its instances killed between a row and what takes it back.
//! Real processes throughout.
//!
//! This test has its own `main`: the program is started again as the job that is killed, and as the instances of its service.

#![expect(clippy::disallowed_methods, reason = "patience in a test, and processes that it kills")]

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, StringArray};
use arrow_schema::{Schema, SchemaRef};
use pelton::control::rundir;
use pelton::dataflow::source::{Read, Reader, Source, Split};
use pelton::env::real::Host;
use pelton::prelude::*;
use pelton::{Changelog, Settings};
use rustix::process::{Pid, Signal, kill_process};

/// The test's folder, for the job and its instances.
const FOLDER: &str = "PELTON_TEST_FOLDER";
/// How many subtasks the job's call has.
const TASKS: &str = "PELTON_TEST_TASKS";
const KEYS: i64 = 100;
/// What the service is asked with a retraction: never.
const NEVER_ASKED: i64 = -1;
/// How long any of it may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn folder() -> PathBuf {
    PathBuf::from(std::env::var_os(FOLDER).expect("the job is started by the test"))
}

/// Adds a line to one of the test's files, in one write.
fn note(folder: &Path, file: &str, line: impl std::fmt::Display) {
    let mut notes = OpenOptions::new().create(true).append(true).open(folder.join(file)).unwrap();
    notes.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Answers with numbers that no other answer ever had, or with errors of which the same is true.
struct Moody {
    answers: i64,
}

impl Service for Moody {
    fn open(_: &Context) -> Result<Self> {
        note(&folder(), "opened", std::process::id());
        Ok(Moody { answers: 0 })
    }

    fn methods() -> Methods<Self> {
        let (asked, said) =
            (Field::new("n", DataType::Int64, false), Field::new("said", DataType::Int64, false));
        Methods::<Self>::new().serial("say", vec![asked], vec![said], |service, rows, _| {
            let mut said = Vec::new();
            for n in rows.column(0).as_primitive::<Int64Type>().values() {
                note(&folder(), "asked", n);
                service.answers += 1;
                said.push((i64::from(std::process::id()) << 20) + service.answers);
                if n % 10 == 3 {
                    return Err(Error::user(format!("not {}", said.last().expect("there is one"))));
                }
            }
            Ok(RecordBatch::try_from_iter([("said", Arc::new(Int64Array::from(said)) as ArrayRef)])?)
        })
    }
}

/// Inserts all keys, in one split; once the test opens the gate, every third is deleted, every third updated.
struct Changes;

fn schema() -> SchemaRef {
    let field = |name: &str, data_type| Field::new(name, data_type, false);
    Arc::new(Schema::new(vec![
        field("op", DataType::Utf8),
        field("id", DataType::Int64),
        field("n", DataType::Int64),
    ]))
}

fn rows() -> Vec<(&'static str, i64, i64)> {
    let mut rows: Vec<_> = (0..KEYS).map(|id| ("+I", id, id)).collect();
    for id in 0..KEYS {
        match id % 3 {
            0 => rows.push(("-D", id, NEVER_ASKED)),
            1 => rows.extend([("-U", id, NEVER_ASKED), ("+U", id, id + 1000)]),
            _ => {}
        }
    }
    rows
}

impl Source for Changes {
    fn describe(&self) -> String {
        "changes".to_owned()
    }
    fn schema(&self) -> SchemaRef {
        schema()
    }
    fn splits(&self) -> Result<Vec<Split>> {
        Ok(vec![Split { id: 7, uri: "changes".into(), bytes: 0, version: "1".into() }])
    }
    fn open(&self, _: &Split, position: u64) -> Result<Box<dyn Reader>> {
        Ok(Box::new(ChangeReader { rows: rows(), position: position as usize }))
    }
}

struct ChangeReader {
    rows: Vec<(&'static str, i64, i64)>,
    position: usize,
}

impl Reader for ChangeReader {
    fn next(&mut self) -> Result<Option<Read>> {
        let mut some = &self.rows[self.position..self.rows.len().min(self.position + 5)];
        if some.is_empty() {
            return Ok(None);
        }
        if self.position >= KEYS as usize && !folder().join("gate").exists() {
            std::thread::sleep(Duration::from_millis(5));
            some = &[];
        }
        self.position += some.len();
        let kinds = StringArray::from_iter_values(some.iter().map(|r| r.0));
        let ids = Int64Array::from_iter_values(some.iter().map(|r| r.1));
        let asked = Int64Array::from_iter_values(some.iter().map(|r| r.2));
        let rows = RecordBatch::try_new(schema(), vec![Arc::new(kinds), Arc::new(ids), Arc::new(asked)])?;
        Ok(Some(Read { rows, bad: Vec::new(), position: self.position as u64 }))
    }
}

/// The job's process.
fn job() -> Result<()> {
    let tasks = std::env::var(TASKS).unwrap().parse().unwrap();
    let settings =
        Settings { checkpoint_interval: Duration::from_millis(50), ..Settings::new(folder().join("state")) };
    let mut job = Job::with("changelog", settings);
    let mut declaration = Declaration::new("moody").instances(2).max_rows(4);
    declaration.lease = Duration::from_secs(5);
    declaration.retry.backoff = Duration::from_millis(5);
    let moody = job.service::<Moody>(declaration)?;
    let say = moody.method("say").named("say").on_error(ErrorPolicy::ErrorOutput);
    let said = job
        .read("changes", Changes)
        .parallelism(tasks)
        .call(&say.changelog(Changelog::new("op", &["id"])), &["n"])
        .parallelism(1);
    said.errors().write("errors", json_lines(folder().join("errors"))?);
    said.write("answers", json_lines(folder().join("answers"))?);
    job.run()?;
    Ok(())
}

/// The test's folder, and the job in it.
struct Trial {
    folder: tempfile::TempDir,
    job: Option<Child>,
}

impl Trial {
    fn start(&mut self, tasks: u32) {
        let log = OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let job = Command::new(std::env::current_exe().unwrap())
            .env(FOLDER, self.folder.path())
            .env(TASKS, tasks.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.job = Some(job.unwrap());
    }

    fn log(&self) -> String {
        let text = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        ["log", "state/logs/moody-0.log", "state/logs/moody-1.log"].map(text).join("\n")
    }

    fn lines(&self, file: &str) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until there is something.
    fn until<T>(&mut self, what: &str, mut look: impl FnMut(&mut Trial) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn finish(&mut self) {
        let status = self.until("the job ends", |t| t.job.as_mut().unwrap().try_wait().unwrap());
        self.job = None;
        assert!(status.success(), "{status}: {}", self.log());
    }

    fn kill_job(&mut self) {
        if let Some(mut job) = self.job.take() {
            let _ = job.kill();
            let _ = job.wait();
        }
    }

    /// With what they know of earlier requests.
    fn kill_instances(&self) {
        for pid in self.lines("opened").iter().map(|pid| pid.parse().unwrap()) {
            let ours = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let folder = self.folder.path().to_string_lossy().into_owned().into_bytes();
            if ours.windows(folder.len()).any(|w| w == folder) {
                let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            }
        }
    }

    /// What is visible: row kind, key, and what was said or went wrong.
    fn visible(&self) -> Vec<(String, i64, String)> {
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let row = |line: &str| {
            let line = json(line);
            let (of, said) = match line.get("row") {
                Some(row) => (json(row.as_str().unwrap()), line["message"].to_string()),
                None => (line.clone(), line["said"].to_string()),
            };
            (of["op"].as_str().unwrap().to_owned(), of["id"].as_i64().unwrap(), said)
        };
        let folders = ["answers", "errors"].map(|f| self.folder.path().join(f));
        let files = folders.iter().filter_map(|f| fs::read_dir(f).ok()).flatten().flatten();
        let texts: Vec<String> = files.filter_map(|file| fs::read_to_string(file.path()).ok()).collect();
        texts.iter().flat_map(|text| text.lines()).map(row).collect()
    }

    /// What the running job says of its call.
    fn reported(&self) -> Option<serde_json::Value> {
        let pid = self.job.as_ref().expect("it runs").id();
        let host = Host::new(1, 1).unwrap();
        let jobs = rundir::jobs(&rundir::base()).unwrap();
        let found = jobs.into_iter().find(|f| f.card.pid == pid)?;
        let report = host.block_on(pelton::control::query(host.env(), &found)).ok()?;
        let nodes = report.progress["nodes"].as_array()?.clone();
        nodes.into_iter().find(|n| n["name"] == "say")
    }
}

/// No process of a test outlives it.
impl Drop for Trial {
    fn drop(&mut self) {
        self.kill_job();
        self.kill_instances();
    }
}

fn what_was_given_out_is_taken_back_over_kills() {
    let mut trial = Trial { folder: tempfile::tempdir().unwrap(), job: None };
    let inserted = KEYS as usize;
    trial.start(1);
    trial.until("all insertions are out", |t| (t.visible().len() == inserted).then_some(()));
    let given: BTreeMap<i64, String> = trial.visible().into_iter().map(|(_, id, said)| (id, said)).collect();
    trial.kill_job();
    trial.kill_instances();
    let opened = trial.lines("opened").len();
    trial.start(3);
    // Nobody may ask for jobs while one takes over the folder of another.
    trial.until("the next run has instances", |t| (t.lines("opened").len() > opened).then_some(()));
    let stored = |t: &mut Trial| t.reported().filter(|n| n["stored_keys"] == inserted);
    let node = trial.until("the next run has what was stored", stored);
    assert!(node["pending"] == 0 && node["stored_bytes"].as_u64().unwrap() > 0, "{node}");
    note(trial.folder.path(), "gate", "");
    trial.until("the first are taken back", |t| (t.visible().len() > inserted).then_some(()));
    trial.kill_job();
    trial.kill_instances();
    trial.start(2);
    trial.finish();
    let visible = trial.visible();
    assert_eq!(visible.len(), rows().len(), "every row is there once");
    for (_, id, said) in visible.iter().filter(|(kind, ..)| kind.starts_with('-')) {
        assert_eq!(said, &given[id], "key {id} is taken back as it was given out");
    }
    let mut view: BTreeMap<(i64, String), i32> = BTreeMap::new();
    for (kind, id, said) in visible {
        *view.entry((id, said)).or_default() += if kind.starts_with('+') { 1 } else { -1 };
    }
    assert!(view.values().all(|n| *n == 0 || *n == 1), "{view:?}");
    let live: Vec<i64> = view.iter().filter(|(_, n)| **n == 1).map(|((id, _), _)| *id).collect();
    assert_eq!(live, (0..KEYS).filter(|id| id % 3 != 0).collect::<Vec<_>>());
    assert!(!trial.lines("asked").contains(&NEVER_ASKED.to_string()), "the service sees no retraction");
    println!(
        "ok: what a service said is taken back as it was said, with job and instances killed in between"
    );
}

fn main() -> Result<()> {
    if std::env::var_os(FOLDER).is_some() {
        return job();
    }
    what_was_given_out_is_taken_back_over_kills();
    Ok(())
}
