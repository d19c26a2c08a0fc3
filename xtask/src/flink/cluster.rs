//! A standalone cluster: Flink's own processes, one for the JobManager and two for TaskManagers.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::rest::Rest;
use crate::fetch::{hex, sha256};
use crate::java;
use crate::places::{Places, remove};
use crate::process::step;

/// SHA-256 over a line for each jar, by their names: its SHA-256 and its name.
const DIGEST: &str = "fed1ceb9146a2dd044e10dea89b9e975b6fb991a731de1cbe7489c2af5968949";
const TASK_MANAGERS: usize = 2;
const SLOTS: usize = 4;
/// Starting may take so long.
const STARTING: Duration = Duration::from_secs(120);
/// So long agents have to let their instances finish.
const ENDING: Duration = Duration::from_secs(20);
/// What Flink's scripts give to Java 17.
const OPENS: [&str; 14] = [
    "--add-exports=java.rmi/sun.rmi.registry=ALL-UNNAMED",
    "--add-exports=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    "--add-opens=java.base/java.net=ALL-UNNAMED",
    "--add-opens=java.base/java.io=ALL-UNNAMED",
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.base/java.lang.reflect=ALL-UNNAMED",
    "--add-opens=java.base/java.text=ALL-UNNAMED",
    "--add-opens=java.base/java.time=ALL-UNNAMED",
    "--add-opens=java.base/java.util=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent.atomic=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent.locks=ALL-UNNAMED",
];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scheduler {
    #[default]
    Default,
    Adaptive,
}

impl Scheduler {
    /// Waits that are seconds or minutes by default are made short.
    fn settings(self) -> &'static str {
        match self {
            Scheduler::Default => "jobmanager.scheduler: default\n",
            Scheduler::Adaptive => {
                "jobmanager.scheduler: adaptive\n\
                 jobmanager.adaptive-scheduler.executing.cooldown-after-rescaling: 1 s\n\
                 jobmanager.adaptive-scheduler.executing.resource-stabilization-timeout: 1 s\n\
                 jobmanager.adaptive-scheduler.submission.resource-stabilization-timeout: 1 s\n"
            }
        }
    }
}

/// The folder with Flink's jars, fetched through Maven unless it is there.
pub(crate) fn lib(places: &Places) -> Result<PathBuf> {
    let project = places.root.join("jvm/cluster");
    let fetched = step("Apache Flink (the first time about 90 MB are fetched)", || {
        java::project(places, "flink", &project)
    })?;
    let lib = fetched.join("lib");
    let mut jars = fs::read_dir(&lib)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    jars.sort();
    let mut digest = Sha256::new();
    for jar in &jars {
        let name = jar.file_name().unwrap_or_default().to_string_lossy();
        digest.update(format!("{} {name}\n", sha256(jar)?));
    }
    let found = hex(&digest.finalize());
    if found != DIGEST {
        bail!(
            "the jars in {} have together the SHA-256 {found} and should have {DIGEST}: a download is damaged, or somebody changed one; they \
             are not used. Remove that folder and run the same command again; if this stays, see where Maven fetches from",
            lib.display()
        );
    }
    Ok(lib)
}

/// A running cluster. Dropping it ends its processes, unless it is kept.
pub(crate) struct Cluster {
    folder: PathBuf,
    lib: PathBuf,
    /// Sockets and records of what its jobs start.
    run: PathBuf,
    port: u16,
    job_manager: u32,
    task_managers: Vec<u32>,
    /// Those that are this process's, to be waited for.
    children: Vec<Child>,
    /// It outlives this process.
    kept: bool,
}

impl Cluster {
    /// Starts one with its files in a folder, and returns when all slots are there.
    pub(crate) fn start(lib: &Path, folder: &Path, scheduler: Scheduler) -> Result<Cluster> {
        remove(folder)?;
        for name in ["conf", "log", "tmp", "checkpoints"] {
            fs::create_dir_all(folder.join(name))?;
        }
        // Not in there: paths of sockets are short.
        let run = tempfile::Builder::new().prefix("flink-").tempdir()?.keep();
        let (port, rpc) = (free_port()?, free_port()?);
        fs::write(folder.join("conf/config.yaml"), configuration(folder, port, rpc, scheduler))?;
        let mut cluster = Cluster {
            folder: folder.to_owned(),
            lib: lib.to_owned(),
            run,
            port,
            job_manager: 0,
            task_managers: Vec::new(),
            children: Vec::new(),
            kept: false,
        };
        cluster.start_job_manager()?;
        for number in 0..TASK_MANAGERS {
            cluster.start_task_manager(number)?;
        }
        cluster.wait_for_slots()?;
        Ok(cluster)
    }

    pub(crate) fn wait_for_slots(&self) -> Result<()> {
        let rest = self.rest();
        let ready = || {
            let overview = rest.get("/overview").ok()?;
            (overview["taskmanagers"] == TASK_MANAGERS && overview["slots-total"] == TASK_MANAGERS * SLOTS)
                .then_some(())
        };
        let logs = self.folder.join("log");
        super::rest::wait_for(STARTING, ready).with_context(|| {
            format!("Flink did not start within {} s; its logs are in {}", STARTING.as_secs(), logs.display())
        })
    }

    fn start_job_manager(&mut self) -> Result<()> {
        let class = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint";
        let pid = self.java("jobmanager", "-Xmx512m", class, &[])?;
        self.job_manager = pid;
        Ok(())
    }

    /// Starts the TaskManager of this number; the one before it is gone.
    pub(crate) fn start_task_manager(&mut self, number: usize) -> Result<()> {
        let class = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner";
        // Named by its process's turn: one that is started in the place of another is another.
        let id = format!("taskmanager-{number}-{}", self.children.len());
        let pid = self.java(
            &format!("taskmanager-{number}"),
            "-Xmx384m",
            class,
            &[format!("-Dtaskmanager.resource-id={id}")],
        )?;
        match self.task_managers.get_mut(number) {
            Some(place) => *place = pid,
            None => self.task_managers.push(pid),
        }
        Ok(())
    }

    fn java(&mut self, name: &str, heap: &str, class: &str, more: &[String]) -> Result<u32> {
        let log = self.folder.join("log").join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let mut java = Command::new("java");
        java.args([heap, "-XX:MaxMetaspaceSize=256m", "-XX:+UseSerialGC"]).args(OPENS);
        java.arg(format!("-Dlog.file={}", log.display()));
        java.arg(format!("-Djava.io.tmpdir={}", self.folder.join("tmp").display()));
        java.args([
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
        ]);
        java.args(["-Dorg.slf4j.simpleLogger.showShortLogName=true"]);
        java.arg("-cp")
            .arg(self.lib.join("*"))
            .arg(class)
            .arg("--configDir")
            .arg(self.folder.join("conf"))
            .args(more);
        java.env("XDG_RUNTIME_DIR", &self.run);
        java.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child = java.spawn().context("starting `java`")?;
        let pid = child.id();
        self.children.push(child);
        Ok(pid)
    }

    /// What the agents and instances of its jobs have noted of themselves: one file each, of this name or ending.
    pub(crate) fn notes(&self, ending: &str) -> Vec<serde_json::Value> {
        let entries =
            |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        entries(self.run.join("pelton"))
            .flat_map(entries)
            .filter(|path| path.to_string_lossy().ends_with(ending))
            .filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok())
            .collect()
    }

    /// The processes of the instances, by their ids.
    pub(crate) fn instances(&self) -> std::collections::BTreeMap<String, u32> {
        let of = |note: serde_json::Value| {
            let id = &note["instance"];
            let id = format!("{}-{}.{}", id["service"].as_str()?, id["number"], id["incarnation"]);
            Some((id, note["pid"].as_u64()? as u32))
        };
        self.notes(".instance").into_iter().filter_map(of).collect()
    }

    /// Ends the agents, and with them the instances.
    fn end_agents(&self) {
        let pids = |note: &serde_json::Value| note["pid"].as_u64();
        for pid in self.notes("job.json").iter().filter_map(pids) {
            let _ = Command::new("kill").arg(pid.to_string()).status();
        }
        let _ = super::rest::wait_for(ENDING, || self.notes("job.json").is_empty().then_some(()));
        let _ = remove(&self.run);
    }

    pub(crate) fn rest(&self) -> Rest {
        Rest::new(self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Kills the TaskManager of this number, as a crash would.
    pub(crate) fn kill_task_manager(&mut self, number: usize) {
        let pid = self.task_managers[number];
        if let Some(child) = self.children.iter_mut().find(|c| c.id() == pid) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Lets it go on when this process ends.
    pub(crate) fn keep(mut self) -> Result<()> {
        let note = json!({
            "lib": self.lib, "run": self.run, "port": self.port, "job_manager": self.job_manager, "task_managers": self.task_managers,
        });
        fs::write(self.folder.join("cluster.json"), note.to_string())?;
        self.kept = true;
        Ok(())
    }

    /// The one that was kept in this folder, if it still runs.
    pub(crate) fn there(folder: &Path) -> Result<Option<Cluster>> {
        let Ok(note) = fs::read_to_string(folder.join("cluster.json")) else { return Ok(None) };
        let note: serde_json::Value = serde_json::from_str(&note).context("cluster.json")?;
        let number = |value: &serde_json::Value| value.as_u64().unwrap_or_default() as u32;
        let task_managers = note["task_managers"].as_array().into_iter().flatten().map(number).collect();
        let cluster = Cluster {
            folder: folder.to_owned(),
            lib: note["lib"].as_str().unwrap_or_default().into(),
            run: note["run"].as_str().context("cluster.json names no run folder")?.into(),
            port: note["port"].as_u64().unwrap_or_default() as u16,
            job_manager: number(&note["job_manager"]),
            task_managers,
            children: Vec::new(),
            kept: true,
        };
        let any = cluster.pids().any(|pid| cluster.is_ours(pid));
        Ok(any.then_some(cluster))
    }

    /// Ends one that was kept.
    pub(crate) fn end(mut self) {
        self.kept = false;
    }

    fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::once(self.job_manager).chain(self.task_managers.iter().copied())
    }

    /// Its number may have been given to another process.
    fn is_ours(&self, pid: u32) -> bool {
        let conf = self.folder.join("conf");
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|b| *b == 0).any(|word| word == conf.as_os_str().as_encoded_bytes()))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for pid in self.pids().filter(|pid| self.is_ours(*pid)) {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        self.end_agents();
        let _ = fs::remove_file(self.folder.join("cluster.json"));
    }
}

fn configuration(folder: &Path, port: u16, rpc: u16, scheduler: Scheduler) -> String {
    let shown = folder.display();
    let scheduler = scheduler.settings();
    format!(
        "jobmanager.rpc.address: localhost\n\
         jobmanager.bind-host: localhost\n\
         jobmanager.rpc.port: {rpc}\n\
         rest.address: localhost\n\
         rest.bind-address: localhost\n\
         rest.port: {port}\n\
         rest.bind-port: {port}\n\
         {scheduler}\
         jobmanager.execution.failover-strategy: region\n\
         restart-strategy.type: exponential-delay\n\
         restart-strategy.exponential-delay.initial-backoff: 1 s\n\
         restart-strategy.exponential-delay.max-backoff: 2 s\n\
         heartbeat.interval: 2000\n\
         heartbeat.timeout: 10000\n\
         taskmanager.host: localhost\n\
         taskmanager.bind-host: localhost\n\
         taskmanager.numberOfTaskSlots: {SLOTS}\n\
         taskmanager.load-balance.mode: SLOTS\n\
         taskmanager.cpu.cores: 2.0\n\
         taskmanager.memory.framework.heap.size: 128m\n\
         taskmanager.memory.framework.off-heap.size: 128m\n\
         taskmanager.memory.task.heap.size: 256m\n\
         taskmanager.memory.task.off-heap.size: 64m\n\
         taskmanager.memory.network.min: 64m\n\
         taskmanager.memory.network.max: 64m\n\
         taskmanager.memory.managed.size: 32m\n\
         taskmanager.memory.jvm-metaspace.size: 256m\n\
         taskmanager.memory.jvm-overhead.min: 128m\n\
         taskmanager.memory.jvm-overhead.max: 128m\n\
         execution.checkpointing.interval: 1 s\n\
         execution.checkpointing.dir: file://{shown}/checkpoints\n\
         io.tmp.dirs: {shown}/tmp\n\
         web.tmpdir: {shown}/tmp\n\
         web.upload.dir: {shown}/tmp\n"
    )
}

/// One that nobody has now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
