//! What befalls a job as a whole and does not kill it: its data plane fails, it stands still, its disk is full.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton::control::JobReport;
use rand::rngs::StdRng;
use rustix::process::Signal;

use super::disk;
use super::faults::{Held, between};
use super::job::{self, LEASE};
use super::trial::{LOOK_EVERY, Trial};

/// How long the job may take until it has taken another checkpoint.
const AGAIN: Duration = Duration::from_secs(20);
/// How long it stands still: from a moment to longer than its instances go on unsupervised.
const STILL: (Duration, Duration) =
    (Duration::from_millis(100), LEASE.saturating_add(Duration::from_secs(2)));
/// How long the disk is full: some checkpoints long.
const FULL: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(3));

fn number(report: &JobReport, key: &str) -> u64 {
    report.progress[key].as_u64().unwrap_or(0)
}

fn checkpoint(report: &JobReport) -> u64 {
    report.progress["checkpoint"]["number"].as_u64().unwrap_or(0)
}

/// Processes of the instances.
fn pids(report: &JobReport) -> BTreeSet<u32> {
    report.services.iter().flat_map(|s| &s.instances).filter_map(|i| i.pid).collect()
}

impl Trial {
    /// Waits until the same job has taken a checkpoint that begins after now.
    async fn takes_another(&mut self) -> Result<JobReport> {
        let before = self.report().await?;
        let until = self.env.now() + AGAIN;
        loop {
            let now = self.report().await?;
            ensure!(now.pid == before.pid && now.job == before.job, "the job was started again");
            // The next one may have begun already.
            if checkpoint(&now) >= checkpoint(&before) + 2 {
                return Ok(now);
            }
            ensure!(self.env.now() < until, "no checkpoint within {AGAIN:?}: {}", now.progress);
            self.env.sleep(LOOK_EVERY).await;
        }
    }

    /// Makes an operator fail.
    pub(crate) async fn fail_data_plane(&mut self) -> Result<String> {
        let before = self.report().await?;
        let trigger = job::fails(&self.path("executions"));
        fs::write(&trigger, "").with_context(|| format!("writing {}", trigger.display()))?;
        let (failed, until) = (self.env.now(), self.env.now() + AGAIN);
        let after = loop {
            let now = self.report().await?;
            if number(&now, "restarts") > number(&before, "restarts") {
                break now;
            }
            ensure!(
                self.env.now() < until,
                "the data plane was made to fail, and is not started again within {AGAIN:?}"
            );
            self.env.sleep(LOOK_EVERY).await;
        };
        ensure!(
            after.pid == before.pid && after.job == before.job,
            "the data plane's failure restarted the job"
        );
        ensure!(
            pids(&before).is_subset(&pids(&after)),
            "the data plane's failure restarted instances: {:?}, then {:?}",
            pids(&before),
            pids(&after)
        );
        let took = self.env.now().since(failed).as_secs_f64();
        Ok(format!("the data plane failed, and was started again after {took:.2} s; the instances went on"))
    }

    /// Holds the job still, maybe for longer than its instances go on without it.
    pub(crate) async fn freeze_job(&mut self, rng: &mut StdRng) -> Result<String> {
        self.report().await?;
        let job = self.process()?;
        let time = between(STILL, rng);
        job.signal(Signal::STOP);
        let held = Held(job);
        self.pause(time).await?;
        drop(held);
        self.takes_another().await?;
        Ok(format!("the job stood still for {time:.1?}, and goes on"))
    }

    /// Leaves no room on the disk for output and checkpoints.
    pub(crate) async fn fill_disk(&mut self, rng: &mut StdRng) -> Result<String> {
        let before = self.report().await?;
        let time = between(FULL, rng);
        self.disk()?.fill()?;
        let until = self.env.now() + time;
        while self.env.now() < until && !self.has_ended()? {
            self.env.sleep(LOOK_EVERY).await;
        }
        let ended = self.has_ended()?;
        self.disk()?.empty()?;
        if ended {
            let words = self.last_words();
            ensure!(
                words.contains(disk::FULL),
                "the disk was full, and the job ended without saying so:\n{words}"
            );
            self.forget_job();
            return Ok(format!("the disk was full for {time:.1?}; the job said so and ended"));
        }
        let after = self.takes_another().await?;
        let (failed, again) =
            (number(&after, "aborted"), number(&after, "restarts") - number(&before, "restarts"));
        Ok(format!(
            "the disk was full for {time:.1?}; the data plane was started again {again} times, {failed} checkpoints were given up, and it goes on"
        ))
    }
}
