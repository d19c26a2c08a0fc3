//! Faults that kill nothing: instances that hang, that are slow, and that cannot be connected to.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pelton::control::report::{InstanceReport, Phase};
use pelton::env::{Address, Place};
use rand::RngExt;
use rand::rngs::StdRng;
use rustix::process::Signal;

use super::counted;
use super::job::STALL;
use super::trial::{LOOK_EVERY, REPLACE, Trial};
use crate::family::{self, Member};

/// How long an instance hangs: from a moment to longer than a run may give nothing.
const HANG: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(2500));
/// A slow instance runs and stands still in turns.
const SLOW: Duration = Duration::from_millis(1500);
const RUNS: Duration = Duration::from_millis(10);
const STANDS: Duration = Duration::from_millis(60);
/// How long a new instance's socket is hidden.
const HIDDEN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1200));
const WATCH_EVERY: Duration = Duration::from_millis(1);

/// One of the instances, as the trial took it.
struct Chosen {
    number: usize,
    name: String,
    member: Member,
}

/// Goes on when this is dropped, whatever happened.
pub(super) struct Held(pub(super) Member);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}

impl Trial {
    /// A ready instance; waits until there is one.
    async fn ready_one(&mut self, rng: &mut StdRng) -> Result<Chosen> {
        let until = self.env.now() + REPLACE;
        loop {
            let report = self.report().await?;
            let instances = &report.services[0].instances;
            let ready: Vec<usize> =
                (0..instances.len()).filter(|i| instances[*i].phase == Phase::Ready).collect();
            if !ready.is_empty() {
                let number = ready[rng.random_range(0..ready.len())];
                let InstanceReport { instance, pid, .. } = &instances[number];
                let ours = family::members(&self.mark).into_iter().find(|m| Some(m.pid) == *pid);
                if let Some(member) = ours {
                    return Ok(Chosen { number, name: instance.clone(), member });
                }
            }
            ensure!(self.env.now() < until, "no instance is ready within {REPLACE:?}: {instances:?}");
            self.env.sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until the instance has done more than `executed` rows, or was replaced by one that is ready.
    async fn goes_on(&mut self, chosen: &Chosen, executed: u64) -> Result<&'static str> {
        let until = self.env.now() + REPLACE;
        loop {
            let report = self.report().await?;
            let now = &report.services[0].instances[chosen.number];
            if now.phase == Phase::Ready && now.pid != Some(chosen.member.pid) {
                return Ok("was taken for wedged and replaced");
            }
            if now.phase == Phase::Ready && now.executed > executed {
                return Ok("goes on");
            }
            ensure!(
                self.env.now() < until,
                "instance {} did not go on within {REPLACE:?}: {now:?}",
                chosen.name
            );
            self.env.sleep(LOOK_EVERY).await;
        }
    }

    async fn executed(&mut self, chosen: &Chosen) -> Result<u64> {
        Ok(self.report().await?.services[0].instances[chosen.number].executed)
    }

    /// Holds an instance still for a while, maybe for longer than a run may give nothing.
    pub(crate) async fn hang_instance(&mut self, rng: &mut StdRng) -> Result<String> {
        let chosen = self.ready_one(rng).await?;
        let time = between(HANG, rng);
        chosen.member.signal(Signal::STOP);
        let held = Held(chosen.member);
        self.pause(time).await?;
        let executed = self.executed(&chosen).await?;
        drop(held);
        let then = self.goes_on(&chosen, executed).await?;
        let limit = if time > STALL { "longer" } else { "shorter" };
        Ok(format!(
            "instance {} hung for {time:.1?}, {limit} than runs may give nothing ({STALL:?}), and {then}",
            chosen.name
        ))
    }

    /// Makes a batch of an instance never end, while the instance itself lives.
    pub(crate) async fn wedge_instance(&mut self, rng: &mut StdRng) -> Result<String> {
        let chosen = self.ready_one(rng).await?;
        let begun = self.env.now();
        let trigger = counted::hangs(&self.path("executions"), chosen.member.pid);
        fs::write(&trigger, "").with_context(|| format!("writing {}", trigger.display()))?;
        let until = begun + STALL + REPLACE;
        loop {
            let report = self.report().await?;
            let now = &report.services[0].instances[chosen.number];
            if now.phase == Phase::Ready && now.pid != Some(chosen.member.pid) {
                break;
            }
            ensure!(
                self.env.now() < until,
                "a batch of instance {} never ends, and nobody noticed within {:?}: {now:?}",
                chosen.name,
                STALL + REPLACE
            );
            self.env.sleep(LOOK_EVERY).await;
        }
        let took = self.env.now().since(begun).as_secs_f64();
        Ok(format!("a batch of instance {} never ended; it was replaced after {took:.2} s", chosen.name))
    }

    /// Lets an instance run a small part of the time only.
    pub(crate) async fn slow_instance(&mut self, rng: &mut StdRng) -> Result<String> {
        let chosen = self.ready_one(rng).await?;
        let until = self.env.now() + SLOW;
        while self.env.now() < until {
            chosen.member.signal(Signal::STOP);
            let held = Held(chosen.member);
            self.env.sleep(STANDS).await;
            drop(held);
            self.env.sleep(RUNS).await;
            self.expect_running()?;
        }
        let executed = self.executed(&chosen).await?;
        let then = self.goes_on(&chosen, executed).await?;
        let share = RUNS.as_secs_f64() / (RUNS + STANDS).as_secs_f64() * 100.0;
        Ok(format!("instance {} had {share:.0} % of the time for {SLOW:?}, and {then}", chosen.name))
    }

    /// Kills an instance and hides its successor's socket for a while; now and then a stranger listens there instead, and hangs up on
    /// whoever comes.
    pub(crate) async fn refuse_connections(&mut self, rng: &mut StdRng) -> Result<String> {
        let chosen = self.ready_one(rng).await?;
        let (time, stranger) = (between(HIDDEN, rng), rng.random_bool(0.5));
        let folder = self.run_folder()?;
        let before = sockets(&folder);
        chosen.member.signal(Signal::KILL);
        let until = self.env.now() + REPLACE;
        let socket = loop {
            if let Some(new) = sockets(&folder).difference(&before).next() {
                break new.clone();
            }
            ensure!(
                self.env.now() < until,
                "instance {} was not started again within {REPLACE:?}",
                chosen.name
            );
            self.env.sleep(WATCH_EVERY).await;
        };
        let hidden = socket.with_extension("hidden");
        fs::rename(&socket, &hidden).with_context(|| format!("hiding {}", socket.display()))?;
        let listening =
            if stranger { Some(self.env.network.listen(&Address::Unix(socket.clone()))?) } else { None };
        let task = listening.map(|mut listener| {
            self.env.spawn(Place::Network, async move { while listener.accept().await.is_ok() {} })
        });
        self.pause(time).await?;
        drop(task);
        // The job may have given that instance up, and its socket with it.
        let _ = fs::rename(&hidden, &socket);
        let until = self.env.now() + REPLACE;
        loop {
            let report = self.report().await?;
            let now = &report.services[0].instances[chosen.number];
            if now.phase == Phase::Ready && now.pid != Some(chosen.member.pid) {
                break;
            }
            ensure!(
                self.env.now() < until,
                "instance {} is not ready within {REPLACE:?}: {now:?}",
                chosen.name
            );
            self.env.sleep(LOOK_EVERY).await;
        }
        let how =
            if stranger { "a stranger hung up on whoever connected to" } else { "nobody could connect to" };
        Ok(format!("instance {} was killed, and for {time:.1?} {how} its successor", chosen.name))
    }
}

impl Trial {
    /// One server is gone for a while, and with it all connections to it.
    pub(crate) async fn outage(&mut self, rng: &mut StdRng) -> Result<String> {
        let number = rng.random_range(0..self.servers.len());
        let time = between(HIDDEN, rng);
        self.servers[number].close();
        self.pause(time).await?;
        self.servers[number].open().await?;
        Ok(format!("server {number} was gone for {time:.1?}"))
    }
}

pub(super) fn between((least, most): (Duration, Duration), rng: &mut StdRng) -> Duration {
    least + (most - least).mul_f64(rng.random_range(0.0..1.0))
}

/// The sockets of instances.
fn sockets(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let instance = |p: &PathBuf| {
        let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        name.ends_with(".sock") && name != "control.sock"
    };
    entries.filter(instance).collect()
}
