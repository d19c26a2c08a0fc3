//! One trial: the job as a child process, its instances, its output, and what is done to them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pelton::control::report::Phase;
use pelton::control::{JobReport, query, rundir};
use pelton::env::{Env, Time};
use rand::RngExt;
use rand::rngs::StdRng;
use rustix::process::Signal;
use tempfile::TempDir;

use super::disk::Disk;
use super::executions::Beyond;
use super::faulty::{self, Fault, Faulty};
use super::job::{Ended, LEASE, NAME, STOPPED};
use super::output::{self, Output, Verdict};
use super::{Arguments, Blow, counted, job};
use crate::family::{self, Member};

pub(super) const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Where the disk is mounted.
const DISK: &str = "disk";
/// How much later than its lease an instance may be gone, on a busy machine.
const MARGIN: Duration = Duration::from_secs(4);
/// How long the job may take to answer, to replace an instance, to stop, and to finish what is left.
const ANSWER: Duration = Duration::from_secs(20);
pub(super) const REPLACE: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(30);
/// How many servers answer in place of instances.
const SERVERS: u64 = 2;
/// Rows that an instance may have begun to execute when it dies, and whose results nobody has: what it is permitted to hold.
const HELD: u64 = 80;
/// Rows that an instance executes between two checkpoints, and a little more.
const UNCOVERED: u64 = 2_000;

pub(crate) struct Trial {
    pub(super) env: Env,
    began: Time,
    arguments: Arguments,
    rows: u64,
    /// Where output and state are, if they have a disk of their own. Goes before the folder that it is in.
    disk: Option<Disk>,
    folder: Option<TempDir>,
    stored: PathBuf,
    pub(super) mark: String,
    job: Option<Child>,
    /// Instances that outlived their job, and when the last must be gone if no other job takes them over.
    orphans: Vec<(Member, Time)>,
    /// What answers in place of instances, in a trial of servers.
    pub(super) servers: Vec<Faulty>,
    output: Output,
    /// All jobs so far.
    jobs: Vec<u32>,
}

impl Trial {
    pub(crate) fn begin(env: &Env, arguments: &Arguments, rows: u64, seed: u64) -> Result<Trial> {
        let mut servers = Vec::new();
        for number in 0..if arguments.remote { SERVERS } else { 0 } {
            servers.push(Faulty::begin(env, seed ^ number, arguments.fault_share)?);
        }
        let folder = tempfile::Builder::new().prefix("pelton-chaos-").tempdir().context("making a folder")?;
        fs::create_dir(folder.path().join("executions"))?;
        let disk = arguments.full_disk.then(|| Disk::mount(folder.path().join(DISK))).transpose()?;
        let stored = if disk.is_some() { folder.path().join(DISK) } else { folder.path().to_owned() };
        Ok(Trial {
            env: env.clone(),
            began: env.now(),
            arguments: arguments.clone(),
            rows,
            output: Output::new(&stored.join("output")),
            stored,
            disk,
            folder: Some(folder),
            mark: env.entropy.secret(),
            job: None,
            orphans: Vec::new(),
            servers,
            jobs: Vec::new(),
        })
    }

    /// Leaves the folder for people to look at.
    pub(crate) fn keep(&mut self) {
        if let Some(folder) = self.folder.take() {
            let copied =
                self.disk.as_ref().map_or(Ok(()), |disk| disk.copy(&folder.path().join("disk-copy")));
            if let Err(e) = copied {
                println!("what was on the disk is lost: {e:#}");
            }
            println!("output, state and logs of the trial: {}", folder.keep().display());
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.as_ref().map_or_else(PathBuf::new, |f| f.path().join(name))
    }

    pub(crate) fn say(&self, what: &str) {
        let seconds = self.env.now().since(self.began).as_secs_f64();
        println!("[{seconds:6.1} s] {what}; {} rows visible", self.output.rows());
    }

    /// Starts the job, unless it runs.
    pub(crate) fn start(&mut self) -> Result<()> {
        if self.job.is_some() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(self.path("job.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("chaos-job")
            .args(["--rows", &self.rows.to_string(), "--instances", &self.arguments.instances.to_string()])
            .args(["--row-micros", &self.arguments.row_micros.to_string()])
            .args(["--batch-millis", &self.arguments.batch_millis.to_string()])
            .args(self.arguments.unordered.then_some("--unordered"))
            .args(self.servers.iter().flat_map(|server| ["--remote".to_owned(), server.url()]))
            .arg("--output")
            .arg(self.stored.join("output"))
            .arg("--state")
            .arg(self.stored.join("state"))
            .arg("--executions")
            .arg(self.path("executions"))
            .env(family::VARIABLE, &self.mark)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let job = command.spawn().context("starting the job")?;
        ensure!(!self.jobs.contains(&job.id()), "process number {} came up again", job.id());
        self.jobs.push(job.id());
        self.orphans.clear();
        self.job = Some(job);
        Ok(())
    }

    /// Lets it work for a while.
    pub(crate) async fn pause(&mut self, d: Duration) -> Result<()> {
        let until = self.env.now() + d;
        while self.env.now() < until {
            self.env.sleep(LOOK_EVERY).await;
            self.expect_running()?;
            self.expect_orphans_gone()?;
        }
        Ok(())
    }

    pub(super) fn disk(&self) -> Result<&Disk> {
        self.disk.as_ref().context("the trial has no disk of its own")
    }

    /// The job's process.
    pub(super) fn process(&mut self) -> Result<Member> {
        Member::find(self.job()?.id()).context("the job is gone")
    }

    pub(super) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.job()?.try_wait()?.is_some())
    }

    /// It has ended, and is to be started again.
    pub(super) fn forget_job(&mut self) {
        self.job = None;
    }

    fn job(&mut self) -> Result<&mut Child> {
        self.job.as_mut().context("no job runs")
    }

    pub(super) fn expect_running(&mut self) -> Result<()> {
        match self.job()?.try_wait()? {
            None => Ok(()),
            Some(status) if status.success() => {
                bail!("the job finished before all kills were made; give it more --rows than {}", self.rows)
            }
            Some(status) => {
                bail!("the job ended by itself ({status}); its last words:\n{}", self.last_words())
            }
        }
    }

    fn expect_orphans_gone(&mut self) -> Result<()> {
        self.orphans.retain(|(member, _)| member.is_there());
        let now = self.env.now();
        match self.orphans.iter().find(|(_, due)| *due < now) {
            Some((member, _)) => {
                bail!(
                    "process {} still runs, though its job is gone and its lease of {LEASE:?} is over",
                    member.pid
                )
            }
            None => Ok(()),
        }
    }

    pub(super) fn last_words(&self) -> String {
        let log = fs::read_to_string(self.path("job.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Where the job's sockets are.
    pub(super) fn run_folder(&mut self) -> Result<PathBuf> {
        let pid = self.job()?.id();
        let found = rundir::jobs(&rundir::base())?.into_iter().find(|f| f.card.pid == pid);
        Ok(found.with_context(|| format!("the job {pid} has no run folder"))?.path)
    }

    /// What control says, once it does.
    pub(super) async fn report(&mut self) -> Result<JobReport> {
        let until = self.env.now() + ANSWER;
        loop {
            self.expect_running()?;
            let pid = self.job()?.id();
            let found =
                rundir::jobs(&rundir::base())?.into_iter().find(|f| f.card.pid == pid && f.card.name == NAME);
            if let Some(found) = found
                && let Ok(report) = query(&self.env, &found).await
                && (self.arguments.remote || report.services.iter().all(|s| !s.instances.is_empty()))
            {
                return Ok(report);
            }
            ensure!(self.env.now() < until, "the job {pid} does not answer within {ANSWER:?}");
            self.env.sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) async fn kill_instance(&mut self, rng: &mut StdRng) -> Result<String> {
        let before = loop {
            let report = self.report().await?;
            if report.services[0].instances.iter().any(|i| i.pid.is_some()) {
                break report;
            }
            self.env.sleep(LOOK_EVERY).await;
        };
        let instances = &before.services[0].instances;
        let alive: Vec<usize> = (0..instances.len()).filter(|i| instances[*i].pid.is_some()).collect();
        let chosen = alive[rng.random_range(0..alive.len())];
        let pid = instances[chosen].pid.context("chosen for having one")?;
        let (name, phase) = (&instances[chosen].instance, instances[chosen].phase);
        let ours = family::members(&self.mark).into_iter().find(|m| m.pid == pid);
        ours.with_context(|| format!("instance {name} is said to be process {pid}, which is none of ours"))?
            .signal(Signal::KILL);
        let killed = self.env.now();
        loop {
            self.env.sleep(LOOK_EVERY).await;
            self.expect_orphans_gone()?;
            let report = self.report().await?;
            ensure!(
                report.pid == before.pid && report.job == before.job,
                "killing an instance restarted the job"
            );
            let now = &report.services[0].instances;
            for (i, (was, is)) in instances.iter().zip(now).enumerate() {
                let kept = i == chosen || was.pid.is_none() || was.pid == is.pid;
                ensure!(
                    kept,
                    "killing instance {name} also restarted {}: {:?}, then {:?}",
                    was.instance,
                    was.pid,
                    is.pid
                );
            }
            let replaced = now[chosen].pid.filter(|p| *p != pid && now[chosen].phase == Phase::Ready);
            let took = self.env.now().since(killed);
            if let Some(new) = replaced {
                let took = took.as_secs_f64();
                return Ok(format!(
                    "killed {phase} instance {name} ({pid}), replaced by {new} after {took:.2} s"
                ));
            }
            ensure!(
                took < REPLACE,
                "instance {name} was killed and not replaced within {REPLACE:?}: {:?}",
                now[chosen]
            );
        }
    }

    pub(crate) async fn kill_job(&mut self) -> Result<String> {
        let (mut job, instances) = self.hold_family().await?;
        job.kill()?;
        job.wait()?;
        let due = self.env.now() + LEASE + MARGIN;
        self.orphans.extend(instances.iter().map(|m| (*m, due)));
        Ok(format!("killed the job ({}), which leaves {} instances to the next", job.id(), instances.len()))
    }

    /// As if the machine had died.
    pub(crate) async fn kill_host(&mut self) -> Result<String> {
        let (mut job, instances) = self.hold_family().await?;
        instances.iter().for_each(|m| m.signal(Signal::KILL));
        job.kill()?;
        job.wait()?;
        Ok(format!("killed the job ({}) and its {} instances at once", job.id(), instances.len()))
    }

    /// The job, held still, so that it starts no process between being looked at and being killed; and its instances.
    async fn hold_family(&mut self) -> Result<(Child, Vec<Member>)> {
        self.expect_running()?;
        let member = self.process()?;
        let job = self.job.take().context("no job runs")?;
        member.signal(Signal::STOP);
        while member.is_there() && !member.is_stopped() {
            self.env.sleep(Duration::from_millis(1)).await;
        }
        let instances = self.rest_of_family(job.id());
        Ok((job, instances))
    }

    /// Instances of this job: orphans of earlier ones are known.
    fn rest_of_family(&self, job: u32) -> Vec<Member> {
        let known = |m: &Member| self.orphans.iter().any(|(o, _)| o == m);
        family::members(&self.mark).into_iter().filter(|m| m.pid != job && !known(m)).collect()
    }

    pub(crate) async fn stop_job(&mut self) -> Result<String> {
        // Before it answers, nothing listens to the signal.
        self.report().await?;
        let pid = self.job()?.id();
        Member::find(pid).context("the job is gone")?.signal(Signal::INT);
        let asked = self.env.now();
        let status = self.wait(STOP).await.context("stopping the job")?;
        let took = self.env.now().since(asked).as_secs_f64();
        ensure!(
            !status.success(),
            "the job finished before all kills were made; give it more --rows than {}",
            self.rows
        );
        ensure!(
            status.code() == Some(i32::from(STOPPED)),
            "the job was stopped and ended with {status}; its last words:\n{}",
            self.last_words()
        );
        let ended: Ended = serde_json::from_str(self.last_words().lines().last().unwrap_or_default())?;
        ensure!(
            ended.end == "Stopped" && ended.checkpoints > 0,
            "the job stopped without a checkpoint: {ended:?}"
        );
        let left = self.rest_of_family(pid);
        ensure!(left.is_empty(), "the job stopped and left {left:?}");
        self.job = None;
        Ok(format!("stopped the job ({pid}) with a checkpoint, in {took:.2} s"))
    }

    async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let until = self.env.now() + limit;
        loop {
            if let Some(status) = self.job()?.try_wait()? {
                return Ok(status);
            }
            ensure!(self.env.now() < until, "it did not end within {limit:?}");
            self.expect_orphans_gone()?;
            self.env.sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) fn look(&mut self) -> Result<()> {
        self.output.look()
    }

    /// Lets the job run to its end, and everything else be gone.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        self.say("no more kills; waiting for the job to finish");
        // The limit of the whole trial ends this, too.
        let status = self.wait(Duration::from_secs(self.arguments.limit)).await?;
        ensure!(status.success(), "the job ended with {status}; its last words:\n{}", self.last_words());
        self.job = None;
        while !self.orphans.is_empty() {
            self.expect_orphans_gone()?;
            self.env.sleep(LOOK_EVERY).await;
        }
        let left = family::members(&self.mark);
        ensure!(left.is_empty(), "the job finished and left {left:?}");
        self.look()?;
        self.say("the job finished");
        Ok(())
    }

    pub(crate) fn judge(&self, blows: &[Blow]) -> Result<()> {
        let expected = match self.servers.is_empty() {
            true => output::expected(&self.env, self.rows)?,
            false => (0..self.rows).map(|id| faulty::score(&job::text(id))).collect(),
        };
        let verdicts = self.output.judge(&expected)?;
        let executed = counted::read(&self.path("executions"))?;
        let beyond = Beyond::count(&executed, self.rows);
        for (sink, Verdict { lost, duplicated, wrong }) in &verdicts {
            println!("{sink}: lost={lost} duplicated={duplicated} wrong={wrong}");
        }
        let mut count: BTreeMap<Blow, u64> = BTreeMap::new();
        blows.iter().for_each(|blow| *count.entry(*blow).or_default() += 1);
        let of = |blow| count.get(&blow).copied().unwrap_or(0);
        let done: Vec<String> = count.iter().map(|(blow, n)| format!("{}={n}", blow.name())).collect();
        println!("{}", done.join(" "));
        println!(
            "executions beyond the necessary={} ({:.2} %): {beyond}; {} files, {} jobs",
            beyond.total(),
            beyond.total() as f64 * 100.0 / self.rows as f64,
            self.output.files(),
            self.jobs.len()
        );
        self.tell_of_servers()?;
        ensure!(verdicts.iter().all(|(_, v)| *v == Verdict::default()), "the output is not right");
        ensure!(self.output.staged() == 0, "{} files are left in _staging", self.output.staged());
        // What an instance had run for a job that was killed is lost with it, too, if it dies before the next job has it.
        let alone: u64 =
            [Blow::Instance, Blow::Hang, Blow::Wedge, Blow::Slow, Blow::Refuse].map(of).iter().sum();
        let gone = alone + of(Blow::Host) * u64::from(self.arguments.instances);
        let uncovered = if of(Blow::Job) + of(Blow::Host) > 0 { UNCOVERED } else { 0 };
        ensure!(
            beyond.dead <= gone * (HELD + uncovered),
            "{} rows were executed again for {gone} instances that died or hung, and held {} at most",
            beyond.dead,
            HELD + uncovered
        );
        ensure!(
            beyond.live == 0,
            "{} rows were executed again though the instances lived that had them",
            beyond.live
        );
        Ok(())
    }
}

impl Trial {
    /// What the servers did, all of it together.
    fn tell_of_servers(&self) -> Result<()> {
        if self.servers.is_empty() {
            return Ok(());
        }
        let mut all: BTreeMap<Fault, u64> = BTreeMap::new();
        for (fault, times) in self.servers.iter().flat_map(Faulty::count) {
            *all.entry(fault).or_default() += times;
        }
        let told: Vec<String> =
            all.iter().map(|(fault, times)| format!("{}={times}", fault.name())).collect();
        println!("requests to the servers: {}", told.join(" "));
        let missing: Vec<&str> =
            faulty::FAULTS.iter().filter(|f| !all.contains_key(f)).map(|f| f.name()).collect();
        ensure!(
            missing.is_empty() || self.arguments.fault_share == 0.0,
            "no request met: {}; give the trial more --rows, or a larger --fault-share",
            missing.join(", ")
        );
        Ok(())
    }
}

/// Whatever happened, nothing of the trial stays.
impl Drop for Trial {
    fn drop(&mut self) {
        for member in family::members(&self.mark) {
            member.signal(Signal::KILL);
        }
        if let Some(job) = &mut self.job {
            let _ = job.wait();
        }
    }
}
