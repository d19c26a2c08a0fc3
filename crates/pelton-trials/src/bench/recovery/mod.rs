//! What a killed job costs: executions, time, loaded models; what a checkpoint takes while calls are endless; and what it costs to be ready
//! for all that. Other systems beside it, if they are asked for.

mod flink;
pub(crate) mod job;

use std::fmt;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use pelton::control::{query, rundir};
use pelton::env::real::Host;
use pelton::env::{Env, Time};
use rustix::process::Signal;
use tempfile::TempDir;

use super::figure;
use crate::family;

/// Calls in flight, and rows where there are no more.
const ROWS: u64 = 64;
/// Subtasks after each kill, and the time before the job is started again.
const SUBTASKS: [u32; 3] = [2, 3, 2];
const PAUSE: Duration = Duration::from_millis(500);
/// In the checkpoints' part: rows carry this, and queues are given this time to fill.
const PAYLOAD: usize = 10_240;
const FILL: Duration = Duration::from_secs(1);
/// How often a job is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// What a job prints, and what it complains of.
const PRINTED: &str = "printed";
const LOG: &str = "log";
/// How long any part may take beyond its calls.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Args)]
#[command(after_help = include_str!("how-to-read.txt"))]
pub(crate) struct Arguments {
    /// Shorter calls, loads and runs: to see whether it works
    #[arg(long)]
    quick: bool,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Systems to measure beside Pelton, which `cargo xtask bench recovery` then builds: flink needs Java 17 and Maven, and fetches about 100 MB
    /// the first time. By default none
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<System>,
    /// The folder of Flink's job; `cargo xtask bench recovery --peers flink` makes one
    #[arg(long, env = "PELTON_PEER_FLINK", value_name = "DIR", hide = true)]
    flink: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Resumed,
    Adopted,
    Checkpoints,
    Cost,
    /// Calls that others can stand, in Pelton and in those that --peers names
    Beside,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum System {
    Flink,
}

/// How long calls take: from a fifth of the longest to all of it.
#[derive(Clone, Copy)]
struct Calls(Duration);

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = if self.0 > Duration::from_secs(120) { (60.0, "min") } else { (1.0, "s") };
        let longest = self.0.as_secs_f64() / unit;
        write!(f, "calls of {} to {longest} {name}", longest / 5.0)
    }
}

impl Calls {
    fn millis(self) -> u128 {
        self.0.as_millis()
    }
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
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("recovery-job").args(options.split_whitespace());
        self.spawn(command)
    }

    /// What it prints and what it complains of stay in files.
    fn spawn(&mut self, mut command: Command) -> Result<Time> {
        let file = |name: &str| File::options().create(true).append(true).open(self.path(name));
        let job = command
            .arg("--folder")
            .arg(self.folder.path())
            .env(family::VARIABLE, &self.mark)
            .stdin(Stdio::null())
            .stdout(file(PRINTED)?)
            .stderr(file(LOG)?)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        self.job = Some(job);
        Ok(self.env.now())
    }

    /// The last of what it complained of.
    fn complaints(&self) -> String {
        let lines = self.lines(LOG);
        lines[lines.len().saturating_sub(30)..].join("\n")
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
                ensure!(so(self).await, "the job ended ({status}) before {what}:\n{}", self.complaints());
                break;
            }
            ensure!(self.env.now() < end, "not within {limit:?}: {what}\n{}", self.complaints());
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
                    anyhow::bail!("the job did not end within {limit:?}:\n{}", self.complaints());
                }
                None => self.env.sleep(LOOK_EVERY).await,
            }
        };
        ensure!(status.success(), "the job ended with {status}:\n{}", self.complaints());
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
    let (quick, env) = (arguments.quick, host.env());
    let flink = match (arguments.peers.contains(&System::Flink), &arguments.flink) {
        (false, _) => None,
        (true, Some(folder)) => Some(folder),
        (true, None) => bail!("Flink's job is not built; `cargo xtask bench recovery --peers flink` does it"),
    };
    ensure!(
        !arguments.only.contains(&Part::Beside) || flink.is_some(),
        "nothing is named to be measured beside Pelton; `cargo xtask bench recovery --only beside --peers flink` does"
    );
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let seconds = Duration::from_secs;
    host.block_on(async {
        if wanted(Part::Resumed) {
            resumed(env, Calls(seconds(if quick { 6 } else { 60 }))).await?;
        }
        if wanted(Part::Adopted) {
            adopted(env, if quick { 3_000 } else { 30_000 }).await?;
        }
        if wanted(Part::Checkpoints) {
            checkpoints(env, seconds(if quick { 5 } else { 20 }), Calls(seconds(600))).await?;
        }
        if wanted(Part::Cost) {
            cost(env, if quick { 100_000 } else { 400_000 }, if quick { 1 } else { 3 }).await?;
        }
        if let Some(flink) = flink.filter(|_| wanted(Part::Beside)) {
            beside(env, flink, seconds(if quick { 20 } else { 90 })).await?;
        }
        anyhow::Ok(())
    })?;
    println!("load at the end: {}", figure::load());
    Ok(())
}

/// Pelton and Flink with calls of the same length, one after the other.
async fn beside(env: &Env, flink: &std::path::Path, time: Duration) -> Result<()> {
    let (short, long) = (Calls(Duration::from_secs(6)), Calls(Duration::from_secs(15)));
    let ours = resumed(env, short).await?;
    let took = checkpoints(env, time, long).await?;
    let theirs = flink::resumed(env, flink, short).await?;
    flink::failed(env, flink, short).await?;
    println!(
        "{}",
        compared(
            "executions beyond the necessary, killed 3 times",
            ours.beyond as f64,
            theirs.beyond as f64,
            "flink"
        )
    );
    println!("{}", compared("first answer after a kill, seconds at most", ours.first, theirs.first, "flink"));
    for setup in flink::SETUPS {
        let theirs = flink::checkpoints(env, flink, setup, time, long).await?;
        let what = "longest checkpoint, ms";
        println!("{}", compared(what, took.longest * 1e3, theirs, &format!("flink {}", setup.name)));
    }
    Ok(())
}

/// Less is better in all of it.
fn compared(what: &str, ours: f64, theirs: f64, system: &str) -> String {
    let number = |x: f64| if x.fract() == 0.0 { format!("{x:.0}") } else { format!("{x:.2}") };
    let ratio =
        if ours > 0.0 { format!("{} times", number(theirs / ours)) } else { "no ratio to nothing".into() };
    format!("compared  {what}: {}, {system} {}: {ratio}", number(ours), number(theirs))
}

/// What kills cost: executions, and seconds to the first answer, at most.
struct Resumed {
    beyond: u64,
    first: f64,
}

/// Kills the job while calls run, and starts it again with another number of subtasks.
async fn resumed(env: &Env, calls: Calls) -> Result<Resumed> {
    let limit = 2 * calls.0 + PATIENCE;
    let options =
        |subtasks| format!("--rows {ROWS} --call {} --parallelism {subtasks} --note", calls.millis());
    let mut trial = Trial::new(env)?;
    trial.start(&options(2))?;
    trial.until(limit, "all calls run", async |t| t.executed() == ROWS).await?;
    trial.until(limit, "first answers", async |t| t.answered().await >= 4).await?;
    let mut first: Vec<f64> = Vec::new();
    for subtasks in SUBTASKS {
        trial.kill()?;
        // What ends meanwhile is waited for by nobody.
        env.sleep(PAUSE).await;
        let started = trial.start(&options(subtasks))?;
        let answer = trial.until(limit, "a first answer", async |t| t.answered().await >= 1).await?;
        first.push(answer.since(started).as_secs_f64());
    }
    trial.finish(limit).await?;
    let (lost, doubled) = trial.verdict(ROWS)?;
    let (beyond, opened) = (trial.executed() - ROWS, trial.lines(job::OPENED).len());
    let longest = first.iter().copied().fold(0.0, f64::max);
    println!(
        "resumed   {ROWS} {calls}, job killed 3 times, 2, 3 and 2 subtasks after it: executions beyond the necessary {beyond}, \
         first answer after {longest:.2} s at most, models loaded {opened} times for 2 instances, lost={lost} duplicated={doubled}",
    );
    ensure!((lost, doubled, beyond, opened) == (0, 0, 0, 2), "something was lost, doubled or done again");
    Ok(Resumed { beyond, first: longest })
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

/// Seconds from the decision until it was durable.
struct Checkpoints {
    longest: f64,
}

/// Checkpoints while calls hardly end and everything is full.
async fn checkpoints(env: &Env, time: Duration, calls: Calls) -> Result<Checkpoints> {
    let mut trial = Trial::new(env)?;
    trial.start(&format!(
        "--rows 20000 --payload {PAYLOAD} --call {} --interval 1000 --note",
        calls.millis()
    ))?;
    trial.until(PATIENCE, "all calls run", async |t| t.executed() >= ROWS).await?;
    env.sleep(FILL).await;
    let before = trial.lines(job::CHECKPOINTS).len();
    env.sleep(time).await;
    let taken: Vec<(f64, f64)> = (trial.lines(job::CHECKPOINTS).iter().skip(before))
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1).map(str::parse::<f64>);
            Some((words.next()?.ok()?, words.next()?.ok()?))
        })
        .collect();
    let took: Vec<f64> = taken.iter().map(|(took, _)| *took).collect();
    let longest = took.iter().copied().fold(0.0, f64::max);
    let largest = taken.iter().map(|(_, bytes)| *bytes).fold(0.0, f64::max);
    println!(
        "checkpoint every second, {ROWS} {calls}, 10 KB a row, queues full: {} checkpoints in {:.0} s, median {:.0} ms, longest {:.0} ms, \
         largest {:.1} MiB (budget 32 MiB for each of 2 subtasks, 8 MiB an edge)",
        taken.len(),
        time.as_secs_f64(),
        figure::median(&took) * 1e3,
        longest * 1e3,
        largest / f64::from(1 << 20),
    );
    ensure!(taken.len() as u64 + 3 >= time.as_secs() * 3 / 4, "checkpoints did not come every second");
    Ok(Checkpoints { longest })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_say_how_long_they_take() {
        for (seconds, expected) in
            [(6, "calls of 1.2 to 6 s"), (60, "calls of 12 to 60 s"), (600, "calls of 2 to 10 min")]
        {
            assert_eq!(Calls(Duration::from_secs(seconds)).to_string(), expected);
        }
    }

    #[test]
    fn figures_are_compared_unless_there_is_nothing_to_divide_by() {
        assert_eq!(compared("ms", 12.5, 25.0, "flink"), "compared  ms: 12.50, flink 25: 2 times");
        assert_eq!(
            compared("executions", 0.0, 180.0, "flink"),
            "compared  executions: 0, flink 180: no ratio to nothing"
        );
    }
}
