//! Whole jobs in processes of their own, which are killed as well as the server.

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
use pelton_postgres::{Connection, Postgres, Settings};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::server::{PASSWORD, Server};
use crate::{holds, rows, schema};

const URL: &str = "PELTON_TEST_URL";
const STATE: &str = "PELTON_TEST_STATE";
const SPLITS: i64 = 4;
const ROWS: i64 = 15_000;
const BATCH: i64 = 100;
const NAME: &str = "jobs::a_job_killed_at_random_writes_every_row_once";

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
fn work(url: &str, state: &Path) -> Result<()> {
    let mut plan = Plan::new();
    let source = plan.source("numbers", 2, Arc::new(Numbers), OnError::Fail);
    let settings = Settings::new(Connection::new(url)?, "numbers").create();
    plan.sink("table", 3, source, Arc::new(Postgres::new(settings)?));
    let topology = plan.validate(&|_| None)?;
    let host = Host::new(1, 2)?;
    let interval = Duration::from_millis(30);
    let options = Options { interval, pause: Duration::from_millis(5), ..Options::new(state) };
    host.block_on(async {
        let running = Job::start(topology, BTreeMap::new(), host.env().clone(), options)?;
        running.wait().await.map(drop)
    })
}

#[test]
fn a_job_killed_at_random_writes_every_row_once() {
    if let (Some(url), Some(state)) = (std::env::var_os(URL), std::env::var_os(STATE)) {
        return work(url.to_str().unwrap(), &PathBuf::from(state)).unwrap_or_else(|e| panic!("{e}"));
    }
    let Some(mut server) = Server::start() else { return };
    let state = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    let (mut killed, mut failed, mut grew) = (0, 0, Vec::new());
    // Killed so many times at most; then it may run to its end, however often the server dies.
    for run in 0..14 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(URL, server.url())
            .env(STATE, state.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        if run < 10 {
            server.sleep(Duration::from_millis(rng.random_range(100..900)));
            if run % 3 == 1 {
                server.kill();
                server.sleep(Duration::from_millis(rng.random_range(0..200)));
                server.run();
            } else {
                child.kill().unwrap();
            }
            grew.push(if run == 0 { 0 } else { server.count("numbers") });
        }
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains(PASSWORD), "{said}");
        match output.status.code() {
            Some(0) if run >= 10 => break,
            // It was through before it could be killed.
            Some(0) => {}
            Some(_) if run >= 10 => panic!("{said}"),
            Some(_) => failed += 1,
            None => killed += 1,
        }
    }
    assert!(killed > 0, "nothing was killed: {killed} {failed} {grew:?}");
    eprintln!("killed {killed} times, failed with the server {failed} times; rows then: {grew:?}");
    holds(&server, "numbers", 0..SPLITS * ROWS);
    assert_eq!(server.count("pelton_staged_numbers"), 0, "nothing waits after the end");
}
