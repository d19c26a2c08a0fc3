//! What a killed job costs: executions, time, loaded models; what a checkpoint takes while calls are endless; and what it costs to be ready
//! for all that.

pub(crate) mod job;

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use pelton::control::{query, rundir};
use pelton::env::real::Host;
use pelton::env::{Env, Time};
use rustix::process::Signal;
use tempfile::TempDir;

use super::figure;
use crate::family;

/// How often a job is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long any part may take beyond its calls.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Args)]
#[command(after_help = include_str!("how-to-read.txt"))]
pub(crate) struct Arguments {
    /// Shorter calls, loads and runs: to see whether it works
    #[arg(long)]
    quick: bool,
}

/// A job, and what it leaves behind.
struct Trial<'a> {
    env: &'a Env,
    folder: TempDir,
    mark: String,
    job: Option<Child>,
}

impl<'a> Trial<'a> {
    fn new(env: &'a Env) -> Result<Trial<'a>> {
        let folder = tempfile::Builder::new().prefix("pelton-recovery-").tempdir()?;
        Ok(Trial { env, folder, mark: env.entropy.secret(), job: None })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn start(&mut self, options: &str) -> Result<Time> {
        let log = File::options().create(true).append(true).open(self.path("log"))?;
        let job = Command::new(std::env::current_exe()?)
            .arg("recovery-job")
            .arg("--folder")
            .arg(self.folder.path())
            .args(options.split_whitespace())
            .env(family::VARIABLE, &self.mark)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting a job")?;
        self.job = Some(job);
        Ok(self.env.now())
    }

    fn lines(&self, file: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn kill(&mut self) -> Result<Time> {
        let mut job = self.job.take().context("no job runs")?;
        job.kill()?;
        job.wait()?;
        Ok(self.env.now())
    }

    /// Answers that the call has given out, as the job that runs now says.
    async fn answered(&self) -> u64 {
        let Some(pid) = self.job.as_ref().map(Child::id) else { return 0 };
        let jobs = rundir::jobs(&rundir::base()).unwrap_or_default();
        let Some(found) = jobs.into_iter().find(|f| f.card.pid == pid) else { return 0 };
        let Ok(report) = query(self.env, &found).await else { return 0 };
        let nodes = report.progress["nodes"].as_array().cloned().unwrap_or_default();
        let call = nodes.iter().find(|n| n["name"] == "model.score" || n["pending"].as_u64() > Some(0));
        let outs = nodes.iter().filter(|n| n["name"] == "scores").filter_map(|n| n["rows_in"].as_u64()).max();
        outs.or_else(|| call.and_then(|n| n["rows_out"].as_u64())).unwrap_or(0)
    }

    /// Waits until it is so; says when that was.
    async fn until(
        &mut self,
        limit: Duration,
        what: &str,
        mut so: impl AsyncFnMut(&Self) -> bool,
    ) -> Result<Time> {
        let end = self.env.now() + limit;
        while !so(self).await {
            if let Some(status) = self.job.as_mut().and_then(|job| job.try_wait().ok().flatten()) {
                ensure!(
                    so(self).await,
                    "the job ended ({status}) before {what}:\n{}",
                    self.lines("log").join("\n")
                );
                break;
            }
            ensure!(self.env.now() < end, "not within {limit:?}: {what}\n{}", self.lines("log").join("\n"));
            self.env.sleep(LOOK_EVERY).await;
        }
        Ok(self.env.now())
    }

    async fn finish(&mut self, limit: Duration) -> Result<()> {
        let end = self.env.now() + limit;
        let mut job = self.job.take().context("no job runs")?;
        let status = loop {
            match job.try_wait()? {
                Some(status) => break status,
                None if self.env.now() >= end => {
                    self.job = Some(job);
                    anyhow::bail!("the job did not end within {limit:?}:\n{}", self.lines("log").join("\n"));
                }
                None => self.env.sleep(LOOK_EVERY).await,
            }
        };
        ensure!(status.success(), "the job ended with {status}:\n{}", self.lines("log").join("\n"));
        Ok(())
    }

    /// Rows that are missing from the output, and rows that are there too often.
    fn verdict(&self, rows: u64) -> Result<(u64, u64)> {
        let mut seen = vec![0u64; rows as usize];
        for entry in fs::read_dir(self.path(job::OUTPUT))?.flatten() {
            let Ok(text) = fs::read_to_string(entry.path()) else { continue };
            for line in text.lines() {
                let row: serde_json::Value = serde_json::from_str(line)?;
                let id = row["id"].as_u64().context("a row without an id")?;
                ensure!(row["score"].as_u64() == Some(id * 3), "row {id} has a wrong score: {row}");
                *seen.get_mut(id as usize).context("a row that there is not")? += 1;
            }
        }
        Ok((seen.iter().filter(|n| **n == 0).count() as u64, seen.iter().map(|n| n.saturating_sub(1)).sum()))
    }

    fn executed(&self) -> u64 {
        self.lines(job::EXECUTED).len() as u64
    }
}

/// Whatever happened, nothing of it stays.
impl Drop for Trial<'_> {
    fn drop(&mut self) {
        for member in family::members(&self.mark) {
            member.signal(Signal::KILL);
        }
        if let Some(job) = &mut self.job {
            let _ = job.wait();
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let host = Host::new(1, 1)?;
    println!("{}", figure::Machine::look(host.env()));
    let quick = arguments.quick;
    host.block_on(async {
        resumed(host.env(), if quick { 6_000 } else { 60_000 }).await?;
        adopted(host.env(), if quick { 3_000 } else { 30_000 }).await?;
        checkpoints(host.env(), Duration::from_secs(if quick { 5 } else { 20 })).await?;
        cost(host.env(), if quick { 100_000 } else { 400_000 }, if quick { 1 } else { 3 }).await
    })
}

/// Kills the job while calls run, and starts it again with another number of subtasks.
async fn resumed(env: &Env, call: u64) -> Result<()> {
    const ROWS: u64 = 64;
    let limit = Duration::from_millis(2 * call) + PATIENCE;
    let options = |subtasks| format!("--rows {ROWS} --call {call} --parallelism {subtasks} --note");
    let mut trial = Trial::new(env)?;
    trial.start(&options(2))?;
    trial.until(limit, "all calls run", async |t| t.executed() == ROWS).await?;
    trial.until(limit, "first answers", async |t| t.answered().await >= 4).await?;
    let mut first: Vec<f64> = Vec::new();
    for subtasks in [2, 3, 2] {
        trial.kill()?;
        // What ends meanwhile is waited for by nobody.
        env.sleep(Duration::from_millis(500)).await;
        let started = trial.start(&options(subtasks))?;
        let answer = trial.until(limit, "a first answer", async |t| t.answered().await >= 1).await?;
        first.push(answer.since(started).as_secs_f64());
    }
    trial.finish(limit).await?;
    let (lost, doubled) = trial.verdict(ROWS)?;
    let (beyond, opened) = (trial.executed() - ROWS, trial.lines(job::OPENED).len());
    let longest = first.iter().copied().fold(0.0, f64::max);
    println!(
        "resumed   {ROWS} calls of {:.0} to {:.0} s, job killed 3 times, 2, 3 and 2 subtasks after it: executions beyond the necessary {beyond}, \
         first answer after {longest:.2} s at most, models loaded {opened} times for 2 instances, lost={lost} duplicated={doubled}",
        call as f64 / 5000.0,
        call as f64 / 1000.0,
    );
    ensure!((lost, doubled, beyond, opened) == (0, 0, 0, 2), "something was lost, doubled or done again");
    Ok(())
}

/// Kills the job whose instances took long to load.
async fn adopted(env: &Env, load: u64) -> Result<()> {
    let limit = Duration::from_millis(load) + PATIENCE;
    let rows = 2_000;
    let options = format!("--rows {rows} --call 200 --load {load} --note");
    let mut trial = Trial::new(env)?;
    let started = trial.start(&options)?;
    let first = trial.until(limit, "first answers", async |t| t.answered().await >= 300).await?;
    let killed = trial.kill()?;
    trial.start(&options)?;
    let again = trial.until(limit, "an answer after the restart", async |t| t.answered().await >= 1).await?;
    let gap = again.since(killed).as_secs_f64();
    trial.finish(limit).await?;
    let (lost, doubled) = trial.verdict(rows)?;
    let (beyond, opened) = (trial.executed() - rows, trial.lines(job::OPENED).len());
    println!(
        "adopted   models that load in {:.0} s: first 300 answers after {:.1} s, the job killed: next answer after {gap:.2} s, models loaded {opened} times \
         for 2 instances, executions beyond the necessary {beyond}, lost={lost} duplicated={doubled}",
        load as f64 / 1000.0,
        first.since(started).as_secs_f64(),
    );
    ensure!((lost, doubled, beyond, opened) == (0, 0, 0, 2), "something was lost, doubled or done again");
    Ok(())
}

/// Checkpoints while calls take ten minutes and everything is full.
async fn checkpoints(env: &Env, time: Duration) -> Result<()> {
    let mut trial = Trial::new(env)?;
    trial.start("--rows 20000 --payload 10240 --call 600000 --interval 1000")?;
    trial.until(PATIENCE, "a first checkpoint", async |t| !t.lines(job::CHECKPOINTS).is_empty()).await?;
    env.sleep(time).await;
    let taken: Vec<(f64, f64)> = (trial.lines(job::CHECKPOINTS).iter())
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1).map(str::parse::<f64>);
            Some((words.next()?.ok()?, words.next()?.ok()?))
        })
        .collect();
    let longest = taken.iter().map(|(took, _)| *took).fold(0.0, f64::max);
    let largest = taken.iter().map(|(_, bytes)| *bytes).fold(0.0, f64::max);
    println!(
        "checkpoint every second, calls of 2 to 10 min, 10 KB a row, queues full: {} checkpoints, longest {:.0} ms, largest {:.1} MiB (budget 32 MiB \
         for each of 2 subtasks, 8 MiB an edge)",
        taken.len(),
        longest * 1e3,
        largest / f64::from(1 << 20),
    );
    ensure!(taken.len() as u64 + 3 >= time.as_secs() * 3 / 4, "checkpoints did not come every second");
    Ok(())
}

/// Throughput with ledger and checkpoints, against instances that remember nothing and a job without checkpoints, in turns.
async fn cost(env: &Env, rows: u64, rounds: usize) -> Result<()> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (options, times) in
            [("--interval 1000", &mut with), ("--interval 3600000 --forget", &mut without)]
        {
            let mut trial = Trial::new(env)?;
            trial.start(&format!("--rows {rows} --call 0 --batch 256 --concurrency 4 {options}"))?;
            trial.finish(PATIENCE).await?;
            let took: f64 = trial.lines(job::ENDED).last().context("no time")?.parse()?;
            times.push(took);
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (with, without) = (median(&mut with), median(&mut without));
    println!(
        "cost      throughput with ledger and checkpoints every second over without: {:.3} ({:.0} rows/s with)",
        without / with,
        rows as f64 / with,
    );
    Ok(())
}
