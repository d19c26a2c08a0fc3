//! Whole jobs in processes of their own, which are killed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use arrow_schema::SchemaRef;
use pelton_core::Result;
use pelton_core::id::stable_hash;
use pelton_dataflow::job::{Job, Options};
use pelton_dataflow::plan::{OnError, Plan};
use pelton_dataflow::source::{Read, Reader, Source, Split};
use pelton_env::real::Host;
use pelton_objects::{Objects, Settings, Store};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::server::{SECRET, Server};
use crate::{World, options, rows, schema};

const URL: &str = "PELTON_TEST_URL";
const PORT: &str = "PELTON_TEST_PORT";
const STATE: &str = "PELTON_TEST_STATE";
const SPLITS: i64 = 4;
const ROWS: i64 = 15_000;
const BATCH: i64 = 100;

/// Numbers: split `s` has `s * ROWS ..`.
struct Numbers;

struct NumberReader {
    first: i64,
    position: i64,
}

impl Source for Numbers {
    fn describe(&self) -> String {
        "numbers".to_owned()
    }
    fn schema(&self) -> SchemaRef {
        schema()
    }
    fn splits(&self) -> Result<Vec<Split>> {
        let split = |s: i64| {
            let uri = s.to_string();
            Split { id: stable_hash(&uri), uri, bytes: ROWS as u64 * 8, version: "1".to_owned() }
        };
        Ok((0..SPLITS).map(split).collect())
    }
    fn open(&self, split: &Split, position: u64) -> Result<Box<dyn Reader>> {
        let number: i64 = split.uri.parse().unwrap();
        Ok(Box::new(NumberReader { first: number * ROWS, position: position as i64 }))
    }
}

impl Reader for NumberReader {
    #[expect(clippy::disallowed_methods, reason = "a source that takes its time, in a process of its own")]
    fn next(&mut self) -> Result<Option<Read>> {
        if self.position >= ROWS {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(2));
        let end = (self.position + BATCH).min(ROWS);
        let rows = rows(self.first + self.position..self.first + end);
        self.position = end;
        Ok(Some(Read { rows, bad: vec![], position: end as u64 }))
    }
}

/// What runs in the child: the job, to its end.
fn work(url: &str, port: u16, state: &Path) -> Result<()> {
    let options = if port == 0 { vec![] } else { options(port) };
    let store = Store::open(url, options.iter().map(|(k, v)| (k.as_str(), v.as_str())))?;
    let mut plan = Plan::new();
    let source = plan.source("numbers", 2, Arc::new(Numbers), OnError::Fail);
    plan.sink("parts", 3, source, Arc::new(Objects::new(Settings::new(store))?));
    let topology = plan.validate(&|_| None)?;
    let host = Host::new(1, 2)?;
    let interval = Duration::from_millis(50);
    let options = Options { interval, pause: Duration::from_millis(5), ..Options::new(state) };
    host.block_on(async {
        let running = Job::start(topology, BTreeMap::new(), host.env().clone(), options)?;
        running.wait().await.map(drop)
    })
}

/// Kills the job at random moments, and lets it run to its end at last.
fn killed_at_random(test: &str, world: &World, port: u16, seed: u64) {
    if let (Some(url), Some(port), Some(state)) =
        (std::env::var_os(URL), std::env::var_os(PORT), std::env::var_os(STATE))
    {
        let port = port.to_str().unwrap().parse().unwrap();
        return work(url.to_str().unwrap(), port, &PathBuf::from(state)).unwrap_or_else(|e| panic!("{e}"));
    }
    let state = tempfile::tempdir().unwrap();
    let host = Host::new(1, 1).unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut killed = 0;
    for run in 0..9 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("jobs::{test}"), "--nocapture"])
            .env(URL, &world.url)
            .env(PORT, port.to_string())
            .env(STATE, state.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        if run < 8 {
            host.block_on(host.env().sleep(Duration::from_millis(rng.random_range(50..700))));
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains(SECRET), "{said}");
        killed += u32::from(output.status.code().is_none());
        assert!(output.status.code().is_none_or(|code| code == 0), "{said}");
    }
    assert!(killed > 0, "nothing was killed");
    world.holds(0..SPLITS * ROWS);
    assert!(world.names().1.is_empty(), "nothing waits after the end");
}

#[test]
fn a_job_killed_at_random_writes_every_row_once_to_a_folder() {
    killed_at_random("a_job_killed_at_random_writes_every_row_once_to_a_folder", &World::folder(), 0, 3);
}

#[test]
fn a_job_killed_at_random_writes_every_row_once_to_s3() {
    let test = "a_job_killed_at_random_writes_every_row_once_to_s3";
    if std::env::var_os(URL).is_some() {
        return killed_at_random(test, &World::folder(), 0, 0);
    }
    let Some(server) = Server::start() else { return };
    killed_at_random(test, &World::s3(&server, "job"), server.port, 4);
}
