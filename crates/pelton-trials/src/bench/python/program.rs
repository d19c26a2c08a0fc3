//! Programs in Python beside this one: servers, and pipelines that run to their end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton::env::{Env, Time};
use rustix::process::Signal;
use serde::de::DeserializeOwned;

use crate::bench::flow::cpu::{self, Meter};
use crate::family::{self, Member};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often memory is looked at: that costs time, too.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// How long a program may take to end once it is told to.
const STOP: Duration = Duration::from_secs(15);
/// How long a pipeline may run.
const LONGEST: Duration = Duration::from_secs(300);

/// Where the scripts are.
pub(super) fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/python")
}

/// A program and all processes that it starts, found by a mark in their environment. Dropping it ends them all.
pub(super) struct Program {
    main: Child,
    mark: String,
    folder: PathBuf,
}

impl Program {
    /// Starts a script with its standard input open, and its output in this folder.
    pub(super) fn start(
        env: &Env,
        python: &Path,
        script: &str,
        folder: &Path,
        with: impl FnOnce(&mut Command),
    ) -> Result<Program> {
        fs::create_dir_all(folder)?;
        let mark = env.entropy.secret();
        let mut command = Command::new(python);
        command.arg("-B").arg(scripts().join(script));
        // What these scripts share is found by their workers, too, wherever those are started.
        command.env("PYTHONPATH", scripts()).env("PYTHONUNBUFFERED", "1").env(family::VARIABLE, &mark);
        with(&mut command);
        let main = command
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(File::create(folder.join("out"))?)
            .stderr(File::create(folder.join("log"))?)
            .spawn()
            .with_context(|| format!("starting {}", python.display()))?;
        Ok(Program { main, mark, folder: folder.to_owned() })
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        family::members(&self.mark).into_iter().map(|m| m.pid).collect()
    }

    /// Fails if it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.main.try_wait()? {
            anyhow::bail!("it ended with {status}; its last words:\n{}", self.last_words());
        }
        Ok(())
    }

    pub(super) fn last_words(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Closes its standard input, and asks it to end.
    pub(super) async fn stop(mut self, env: &Env) {
        drop::<Option<ChildStdin>>(self.main.stdin.take());
        if let Some(main) = Member::find(self.main.id()) {
            main.signal(Signal::TERM);
        }
        let until = env.now() + STOP;
        while env.now() < until && matches!(self.main.try_wait(), Ok(None)) {
            env.sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until it has ended, and looks at its memory meanwhile. What it prints last is its result, in JSON.
    pub(super) async fn result<T: DeserializeOwned>(mut self, env: &Env) -> Result<(T, Course)> {
        drop::<Option<ChildStdin>>(self.main.stdin.take());
        let mut course = Course::begin(env);
        let mut next_look = env.now();
        let until = env.now() + LONGEST;
        let status = loop {
            if let Some(status) = self.main.try_wait()? {
                break status;
            }
            ensure!(env.now() < until, "no end within {LONGEST:?}; its last words:\n{}", self.last_words());
            if env.now() >= next_look {
                course.look(&self.pids());
                next_look = env.now() + SAMPLE_EVERY;
            }
            env.sleep(LOOK_EVERY).await;
        };
        ensure!(status.success(), "it ended with {status}; its last words:\n{}", self.last_words());
        let out = fs::read_to_string(self.folder.join("out"))?;
        let last = out.lines().last().context("it printed nothing")?;
        let result = serde_json::from_str(last).with_context(|| format!("what it printed last: {last}"))?;
        course.end(env);
        Ok((result, course))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        family::end(&self.mark);
        let _ = self.main.wait();
    }
}

/// What a program and its processes took.
pub(super) struct Course {
    meter: Meter,
    begun: Time,
    /// Bytes of all its processes together at most. What several of them share is counted once (Pss of proc_pid_smaps(5)).
    pub(super) memory: f64,
    /// Of each process, the seconds that it had run when it was looked at last.
    processors: std::collections::BTreeMap<u32, f64>,
    /// Cores that nobody here took.
    pub(super) others: f64,
}

impl Course {
    fn begin(env: &Env) -> Course {
        let processors = std::collections::BTreeMap::new();
        Course { meter: Meter::begin(env, []), begun: env.now(), memory: 0.0, processors, others: 0.0 }
    }

    fn look(&mut self, pids: &[u32]) {
        let mut memory = 0.0;
        for pid in pids {
            memory += proportional(*pid);
            self.processors.insert(*pid, cpu::of(*pid));
        }
        self.memory = self.memory.max(memory);
    }

    fn end(&mut self, env: &Env) {
        let seconds = env.now().since(self.begun).as_secs_f64();
        let taken = self.meter.end(env);
        self.others = (taken.others - self.processor() / seconds.max(1e-9)).max(0.0);
    }

    /// Seconds that its processes ran, all together.
    pub(super) fn processor(&self) -> f64 {
        self.processors.values().sum()
    }
}

fn proportional(pid: u32) -> f64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib =
        rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0.0) * 1024.0
}
