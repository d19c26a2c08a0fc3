//! The same calls in Apache Flink's asynchronous operator: a job of its own in crates/pelton-trials/peers/flink, as a process beside this one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton::env::Env;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Calls, FILL, PATIENCE, PAUSE, PAYLOAD, PRINTED, ROWS, Resumed, SUBTASKS, Trial, job};

/// A row that it answered, a line each; some again after a restart.
const ANSWERED: &str = "answered";
/// Each checkpoint that a process began with.
const RESTORED: &str = "restored";

/// One way to take checkpoints.
pub(super) struct Setup {
    pub(super) name: &'static str,
    options: &'static str,
}

/// By hand: an operator that holds whatever comes, so that nothing before it is ever full, and counts its calls itself. As many rows as
/// it can hold in memory are all that there are.
pub(super) const SETUPS: [&Setup; 3] = [
    &Setup { name: "aligned", options: "--rows 20000 --capacity 64" },
    &Setup { name: "unaligned", options: "--rows 20000 --capacity 64 --unaligned" },
    &Setup { name: "by hand", options: "--rows 3000 --capacity 100000" },
];

/// `part` is one of those of Main.java.
fn command(folder: &Path, part: &str, options: &str) -> Command {
    let java = match std::env::var_os("JAVA_HOME").filter(|home| !home.is_empty()) {
        Some(home) => PathBuf::from(home).join("bin/java"),
        None => "java".into(),
    };
    let mut classes: OsString = folder.join("classes").into();
    classes.push(":");
    classes.push(folder.join("lib/*"));
    let mut command = Command::new(java);
    command.arg("-Xmx2g").arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=error");
    // Flink looks into these; its own scripts open them as well.
    for package in ["java.lang", "java.util", "java.time"] {
        command.arg(format!("--add-opens=java.base/{package}=ALL-UNNAMED"));
    }
    command.arg("-cp").arg(classes).args(["pelton.Main", part]).args(options.split_whitespace());
    command
}

/// What a job printed as its last words.
fn printed<T: DeserializeOwned>(trial: &Trial<'_>) -> Result<T> {
    let lines = trial.lines(PRINTED);
    let line = lines.last().context("Flink's job printed nothing")?;
    serde_json::from_str(line).with_context(|| format!("Flink's job printed `{line}`"))
}

/// Kills the process while calls run, and starts it again with its newest checkpoint.
pub(super) async fn resumed(env: &Env, folder: &Path, calls: Calls) -> Result<Resumed> {
    let limit = 2 * calls.0 + PATIENCE;
    let mut trial = Trial::new(env)?;
    let start = |subtasks: u32| {
        let options = format!("--rows {ROWS} --call {} --parallelism {subtasks}", calls.millis());
        command(folder, "run", &options)
    };
    trial.spawn(start(2))?;
    trial.until(limit, "first answers of Flink", async |t| t.lines(ANSWERED).len() >= 4).await?;
    let mut first = 0.0f64;
    for subtasks in SUBTASKS {
        trial.kill()?;
        env.sleep(PAUSE).await;
        let before = trial.lines(ANSWERED).len();
        let started = trial.spawn(start(subtasks))?;
        let answer = trial
            .until(limit, "a first answer of Flink's new process", async |t| t.lines(ANSWERED).len() > before)
            .await?;
        first = first.max(answer.since(started).as_secs_f64());
    }
    trial.finish(limit).await?;
    let lines = trial.lines(ANSWERED);
    let mut answered: Vec<_> = lines.iter().filter_map(|line| line.parse::<u64>().ok()).collect();
    answered.sort_unstable();
    answered.dedup();
    ensure!(answered == (0..ROWS).collect::<Vec<_>>(), "Flink lost rows, or made some: {answered:?}");
    let (beyond, restored) = (trial.executed() - ROWS, trial.lines(RESTORED).len());
    println!(
        "flink     {ROWS} {calls}, process killed 3 times, 2, 3 and 2 subtasks after it, {restored} times from a checkpoint: executions beyond \
         the necessary {beyond}, first answer after {first:.2} s at most, lost=0"
    );
    Ok(Resumed { beyond, first })
}

#[derive(Deserialize)]
struct Failed {
    rows: u64,
    executed: u64,
    first_answer_ms: f64,
}

/// The job fails once, in a process that goes on.
pub(super) async fn failed(env: &Env, folder: &Path, calls: Calls) -> Result<()> {
    let mut trial = Trial::new(env)?;
    let options = format!("--rows {ROWS} --call {} --fail-after 4", calls.millis());
    trial.spawn(command(folder, "fail", &options))?;
    trial.finish(3 * calls.0 + PATIENCE).await?;
    let Failed { rows, executed, first_answer_ms } = printed(&trial)?;
    println!(
        "flink     {ROWS} {calls}, an exception at the fourth answer, restarted by Flink after 0.5 s: executions beyond the necessary {}, first \
         answer {:.2} s after the exception",
        executed - rows,
        first_answer_ms / 1e3,
    );
    Ok(())
}

#[derive(Deserialize)]
struct Taken {
    completed: u64,
    failed: u64,
    median_ms: Option<f64>,
    longest_ms: Option<f64>,
    largest_bytes: f64,
    /// How long one had run that had not ended when all did; 0 without one.
    running_ms: f64,
}

impl Taken {
    /// One that had not ended would have taken longer yet.
    fn longest(&self) -> f64 {
        self.longest_ms.unwrap_or(0.0).max(self.running_ms)
    }
}

/// The longest checkpoint, in milliseconds: with one that still ran at the end, so far.
pub(super) async fn checkpoints(
    env: &Env,
    folder: &Path,
    setup: &Setup,
    time: Duration,
    calls: Calls,
) -> Result<f64> {
    let mut trial = Trial::new(env)?;
    let options = format!(
        "--payload {PAYLOAD} --call {} --interval 1000 --seconds {} {}",
        calls.millis(),
        time.as_secs(),
        setup.options
    );
    trial.spawn(command(folder, "checkpoints", &options))?;
    trial.finish(FILL + time + PATIENCE).await?;
    ensure!(!trial.lines(job::EXECUTED).is_empty(), "Flink's job called nothing");
    let taken: Taken = printed(&trial)?;
    let longest = taken.longest();
    let millis = |ms: Option<f64>| ms.map_or("none".to_owned(), |ms| format!("{ms:.0} ms"));
    println!(
        "flink     checkpoint every second, {}, {ROWS} {calls}, 10 KB a row: {} checkpoints in {:.0} s, median {}, longest {}, {} failed, largest \
         {:.1} MiB; one at the end had run for {:.0} ms",
        setup.name,
        taken.completed,
        time.as_secs_f64(),
        millis(taken.median_ms),
        millis(taken.longest_ms),
        taken.failed,
        taken.largest_bytes / f64::from(1 << 20),
        taken.running_ms,
    );
    Ok(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_checkpoint_may_be_one_that_has_not_ended() {
        for (longest_ms, running_ms, expected) in
            [("null", 61000, 61000.0), ("25000", 3000, 25000.0), ("25000", 30000, 30000.0)]
        {
            let line = format!(
                r#"{{"part":"checkpoints","completed":0,"failed":0,"median_ms":null,"longest_ms":{longest_ms},"largest_bytes":0,"running_ms":{running_ms}}}"#
            );
            assert_eq!(serde_json::from_str::<Taken>(&line).unwrap().longest(), expected, "{line}");
        }
    }
}
