//! What a call costs on its way: Pelton's, and those of other systems beside it, in the same run.

pub(crate) mod apart;
mod own;
mod peer;
mod plot;
mod report;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use pelton::Services;
use pelton::env::Env;
use pelton::env::real::Host;
use pelton_peers::load::{self, Fate, Sent, Summary};
use rustix::process::Signal;

use super::figure::{self, Machine, median, quantile};
use super::flow::cpu::{self, Meter};
use crate::family::Member;
use peer::{Server, System};
use report::{Better, Report};

#[derive(Args)]
#[command(after_help = include_str!("how-to-read.txt"))]
pub(crate) struct Arguments {
    /// Shorter and fewer measurements, under 10 minutes: to see whether it works, not to compare
    #[arg(long)]
    quick: bool,
    /// Write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a picture of each comparison to this folder, as SVG
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// The systems to measure beside Pelton
    #[arg(long, value_enum, value_delimiter = ',', default_value = "tonic,mosec,ray,litserve,grpcio")]
    peers: Vec<System>,
    /// The program that calls them, of the crate `pelton-peers`; `cargo xtask bench wire` builds it
    #[arg(long, env = "PELTON_PEERS", value_name = "PROGRAM", hide = true)]
    program: Option<PathBuf>,
    /// Pelton alone
    #[arg(long)]
    no_peers: bool,
    /// Python interpreters that have the systems; `cargo xtask bench wire` makes them
    #[arg(long, env = "PELTON_PEER_MOSEC", value_name = "PYTHON", hide = true)]
    mosec: Option<PathBuf>,
    #[arg(long, env = "PELTON_PEER_RAY", value_name = "PYTHON", hide = true)]
    ray: Option<PathBuf>,
    #[arg(long, env = "PELTON_PEER_LITSERVE", value_name = "PYTHON", hide = true)]
    litserve: Option<PathBuf>,
    #[arg(long, env = "PELTON_PEER_GRPCIO", value_name = "PYTHON", hide = true)]
    grpcio: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Small payloads: calls a second, and how long one takes
    Calls,
    /// Large payloads: bytes a second, and processor time for them
    Large,
    /// One of two replicas is killed
    Kill,
    /// What is held while a payload of 1 GB goes there and back
    Memory,
    /// TLS over TCP between two network namespaces; only when it is asked for, because Pelton's served instances are not measured in it yet
    Tls,
}

const OURS: &str = "pelton";
const IN_FLIGHT: usize = 64;
const SMALL: [(&str, usize); 2] = [("100 B", 100), ("10 KB", 10_000)];
/// Large payloads, and how many are under way.
const BIG: [(&str, usize, usize); 2] = [("1 MB", 1_000_000, 4), ("10 MB", 10_000_000, 1)];
/// Where a replica is killed: two of them, how long a call takes, and the share of what they could do.
const REPLICAS: usize = 2;
const EACH: f64 = 0.005;
const SHARE: f64 = 0.7;
/// From the death of a replica to the start of the next one, where somebody else has to do that.
const RESTART: Duration = Duration::from_millis(500);

/// How long and how often is measured.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    calls: Duration,
    large: Duration,
    /// Before and after a kill.
    kill: Duration,
    memory: usize,
}

impl Effort {
    fn new(quick: bool) -> Effort {
        let seconds = Duration::from_secs_f64;
        match quick {
            true => Effort {
                rounds: 2,
                calls: seconds(1.0),
                large: seconds(1.0),
                kill: seconds(5.0),
                memory: 250_000_000,
            },
            false => Effort {
                rounds: 5,
                calls: seconds(4.0),
                large: seconds(3.0),
                kill: seconds(10.0),
                memory: 1_000_000_000,
            },
        }
    }
}

struct Trial<'a> {
    host: &'a Host,
    scratch: &'a Path,
    effort: Effort,
    parts: Vec<Part>,
    program: Option<PathBuf>,
    report: Report,
    /// Processor seconds that copying a byte takes.
    copy: f64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // In a process that was started as an instance, this serves and does not return.
    own::job(Path::new(""), IN_FLIGHT as u32, EACH)?;
    let scratch = tempfile::Builder::new().prefix("pelton-wire-").tempdir().context("making a folder")?;
    let host = Host::new(2, 1)?;
    let machine = Machine::look(host.env());
    println!("{machine}");
    let parts = if arguments.only.is_empty() {
        vec![Part::Calls, Part::Large, Part::Kill, Part::Memory]
    } else {
        arguments.only.clone()
    };
    let mut trial = Trial {
        host: &host,
        scratch: scratch.path(),
        effort: Effort::new(arguments.quick),
        parts,
        program: arguments.program.clone(),
        report: Report::default(),
        copy: copying(host.env()),
    };
    let peers: Vec<(System, Option<&Path>)> = arguments
        .peers
        .iter()
        .filter(|_| !arguments.no_peers)
        .map(|system| {
            let python = match system {
                System::Tonic => None,
                System::Mosec => arguments.mosec.as_deref(),
                System::Ray => arguments.ray.as_deref(),
                System::Litserve => arguments.litserve.as_deref(),
                System::Grpcio => arguments.grpcio.as_deref(),
            };
            (*system, python)
        })
        .collect();
    // One after another in each round, so that what else the machine does hits all of them.
    for round in 0..trial.effort.rounds {
        if trial.wants(Part::Tls)
            && let Err(e) = trial.apart()
        {
            trial.report.missing("tonic, TLS", &format!("{e:#}"));
        }
        if trial.parts == [Part::Tls] {
            continue;
        }
        if let Err(e) = trial.own(round) {
            trial.report.missing(OURS, &format!("{e:#}"));
        }
        for (system, python) in &peers {
            if let Err(e) = trial.peer(round, *system, *python) {
                trial.report.missing(system.name(), &format!("{e:#}"));
            }
        }
    }
    trial.report.print();
    println!("load at the end: {}", figure::load());
    if let Some(file) = &arguments.json {
        trial.report.write(file, &machine, arguments.quick)?;
        println!("written to {}", file.display());
    }
    if let Some(folder) = &arguments.plots {
        trial.report.plot(folder)?;
        println!("pictures in {}", folder.display());
    }
    Ok(())
}

/// Processor seconds to copy a byte, of a buffer that no cache holds.
fn copying(env: &Env) -> f64 {
    const SIZE: usize = 64 << 20;
    let from = vec![7u8; SIZE];
    let mut to = vec![0u8; SIZE];
    let mut times = Vec::new();
    for _ in 0..9 {
        let begun = env.now();
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&to);
        times.push(env.now().since(begun).as_secs_f64() / SIZE as f64);
    }
    median(&times)
}

impl Trial<'_> {
    fn wants(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    fn folder(&self, name: &str, round: usize) -> Result<PathBuf> {
        let folder = self.scratch.join(format!("{name}{round}"));
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    // --- Pelton ---

    fn own(&mut self, round: usize) -> Result<()> {
        let state = self.folder(OURS, round)?;
        let failed = |e: anyhow::Error| pelton::Error::internal(format!("{e:#}"));
        own::job(&state, IN_FLIGHT as u32, EACH)?.serve(async |services| {
            services.ready().await?;
            self.own_parts(services, round).await.map_err(failed)
        })?;
        Ok(())
    }

    async fn own_parts(&mut self, services: &Services, round: usize) -> Result<()> {
        let env = services.env();
        if self.wants(Part::Calls) {
            let pids = own::instances(services, own::CALLS);
            for (name, bytes) in SMALL {
                let one = own::rows(vec![7u8; bytes], 1)?;
                for in_flight in [IN_FLIGHT, 1] {
                    let lanes = (0..in_flight)
                        .map(|_| async || own::call(services, own::CALLS, &one).await)
                        .collect();
                    let spent = Spent::begin(env, &pids);
                    let ended = load::lanes(lanes, self.effort.calls).await;
                    self.calls(OURS, name, in_flight, ended, spent.end(env));
                }
                let spent = Spent::begin(env, &pids);
                let ended = own::window(services, IN_FLIGHT, vec![7u8; bytes], self.effort.calls).await?;
                self.calls("pelton, window", name, IN_FLIGHT, ended, spent.end(env));
            }
        }
        let pids = own::instances(services, own::LARGE);
        if self.wants(Part::Large) {
            for (name, bytes, in_flight) in BIG {
                let one = own::rows(vec![7u8; bytes], 1)?;
                let lanes =
                    (0..in_flight).map(|_| async || own::call(services, own::LARGE, &one).await).collect();
                let spent = Spent::begin(env, &pids);
                let ended = load::lanes(lanes, self.effort.large).await;
                self.large(OURS, (name, bytes, in_flight), ended, spent.end(env));
            }
        }
        if self.wants(Part::Memory) && round == 0 {
            let held = Held::begin(&pids);
            let one = own::rows(vec![7u8; self.effort.memory], 1)?;
            let answer = own::call(services, own::LARGE, &one).await;
            self.memory(OURS, answer, held.end());
        }
        if self.wants(Part::Kill) && round == 0 {
            let one = own::rows(vec![7u8; 100], 1)?;
            let pids = own::instances(services, own::PAIR);
            let call = async || own::call(services, own::PAIR, &one).await;
            let time = self.effort.kill;
            let killing = async {
                env.sleep(time).await;
                kill(pids.first());
                std::future::pending::<Vec<Sent>>().await
            };
            let sent = tokio::select! {
                sent = load::open(rate(), time * 2, call) => sent,
                sent = killing => sent,
            };
            self.killed(OURS, &sent);
        }
        Ok(())
    }

    // --- the others ---

    fn program(&self) -> Result<PathBuf> {
        self.program
            .clone()
            .context("there is no program of pelton-peers; `cargo xtask bench wire` builds it")
    }

    fn peer(&mut self, round: usize, system: System, python: Option<&Path>) -> Result<()> {
        let (host, program) = (self.host, self.program()?);
        host.block_on(async {
            if self.wants(Part::Calls) || self.wants(Part::Large) || (self.wants(Part::Memory) && round == 0)
            {
                let folder = self.folder(system.name(), round)?;
                let work = (1, 0.0);
                let server = Server::start(host.env(), system, python, &program, &folder, work).await?;
                let measured = self.peer_parts(&server, round);
                server.stop(host.env()).await;
                measured?;
            }
            if self.wants(Part::Kill) && round == 0 {
                let folder = self.folder(&format!("{}2-", system.name()), round)?;
                let work = (REPLICAS, EACH);
                let mut server = Server::start(host.env(), system, python, &program, &folder, work).await?;
                let measured = self.peer_killed(&mut server).await;
                server.stop(host.env()).await;
                measured?;
            }
            Ok(())
        })
    }

    fn peer_parts(&mut self, server: &Server, round: usize) -> Result<()> {
        let env = self.host.env();
        let name = server.system.name();
        let pids = server.pids();
        if self.wants(Part::Calls) {
            for (size, bytes) in SMALL {
                for in_flight in [IN_FLIGHT, 1] {
                    let spent = Spent::begin(env, &pids);
                    let ended = server.load(bytes, in_flight, self.effort.calls)?;
                    let spent = spent.end(env).with_caller(&ended);
                    self.calls(name, size, in_flight, ended, spent);
                }
            }
        }
        if self.wants(Part::Large) {
            for (size, bytes, in_flight) in BIG {
                let spent = Spent::begin(env, &pids);
                let ended = server.load(bytes, in_flight, self.effort.large)?;
                let spent = spent.end(env).with_caller(&ended);
                self.large(name, (size, bytes, in_flight), ended, spent);
            }
        }
        if self.wants(Part::Memory) && round == 0 {
            let held = Held::begin(&pids);
            let (answer, caller) = server.once(self.effort.memory)?;
            let (at_server, _) = held.end();
            self.memory(name, answer, (at_server, caller));
        }
        Ok(())
    }

    async fn peer_killed(&mut self, server: &mut Server) -> Result<()> {
        let env = self.host.env();
        let workers = server.workers();
        ensure!(workers.len() >= REPLICAS, "{} of its {REPLICAS} replicas are there", workers.len());
        let time = self.effort.kill;
        let calling = server.open(100, rate(), time * 2)?;
        env.sleep(time).await;
        kill(workers.first());
        env.sleep(RESTART).await;
        server.restart()?;
        let sent = calling.sent()?;
        self.killed(server.system.name(), &sent);
        Ok(())
    }

    fn apart(&mut self) -> Result<()> {
        let program = self.program()?;
        for (what, bytes, rate, p50, p99) in apart::measure(&program, self.scratch, self.effort.calls)? {
            let mut add = |which: &str, unit, better, value| {
                self.report.add("tls", &format!("{what}: {which}"), "tonic", unit, better, value);
            };
            if bytes < BIG[0].1 {
                add("calls", "calls/s", Better::More, rate);
                add("median", "us", Better::Less, p50);
                add("99 %", "us", Better::Less, p99);
            } else {
                add("there, and as much back", "GB/s", Better::More, rate * bytes as f64 / 1e9);
            }
        }
        Ok(())
    }

    // --- what is noted ---

    fn calls(&mut self, system: &str, size: &str, in_flight: usize, ended: Summary, spent: Spent) {
        self.failures(system, &format!("{size}, {in_flight} in flight"), &ended);
        let note = &mut self.report;
        note.others(spent.others);
        let what = |which: &str| format!("{size}, {in_flight} in flight: {which}");
        if in_flight > 1 {
            note.add("calls", &what("calls"), system, "calls/s", Better::More, ended.rate);
            // What was called while it was measured, in millions.
            let each = ended.rate * spent.seconds / 1e6;
            note.add(
                "calls",
                &what("server, processor"),
                system,
                "us a call",
                Better::Less,
                spent.server / each,
            );
            note.add(
                "calls",
                &what("caller, processor"),
                system,
                "us a call",
                Better::Less,
                spent.caller / each,
            );
        }
        note.add("calls", &what("median"), system, "us", Better::Less, ended.p50);
        note.add("calls", &what("99 %"), system, "us", Better::Less, ended.p99);
    }

    fn large(
        &mut self,
        system: &str,
        (size, bytes, in_flight): (&str, usize, usize),
        ended: Summary,
        spent: Spent,
    ) {
        self.failures(system, &format!("{size}, {in_flight} in flight"), &ended);
        let copy = self.copy;
        let note = &mut self.report;
        note.others(spent.others);
        let what = |which: &str| format!("{size}, {in_flight} in flight: {which}");
        let gigabytes = ended.rate * bytes as f64 / 1e9;
        note.add("large", &what("there, and as much back"), system, "GB/s", Better::More, gigabytes);
        // Each byte goes there and back.
        let moved = 2.0 * gigabytes * spent.seconds;
        note.add("large", &what("server"), system, "s a GB", Better::Less, spent.server / moved);
        note.add("large", &what("caller"), system, "s a GB", Better::Less, spent.caller / moved);
        let copies = (spent.server + spent.caller) / moved / 1e9 / copy;
        note.add("large", &what("both, of copying it once"), system, "times", Better::Less, copies);
    }

    fn memory(&mut self, system: &str, answer: Result<(), String>, held: (f64, f64)) {
        let (server, caller) = held;
        if let Err(why) = answer {
            return self.report.missing(&format!("{system}, memory"), &why);
        }
        let size = self.effort.memory as f64;
        let what = |side: &str| format!("{} MB: {side}, peak", self.effort.memory / 1_000_000);
        let (at_server, at_caller) = (what("server"), what("caller"));
        self.report.add("memory", &at_server, system, "payloads", Better::Less, server / size);
        self.report.add("memory", &at_caller, system, "payloads", Better::Less, caller / size);
    }

    fn killed(&mut self, system: &str, sent: &[Sent]) {
        let at = self.effort.kill.as_secs_f64();
        let count = |like: fn(&Fate) -> bool| sent.iter().filter(|s| like(&s.fate)).count() as f64;
        let late = |from: f64, to: f64| {
            let taken = sent.iter().filter(|s| s.began >= from && s.began < to).map(|s| match s.fate {
                Fate::Answered(millis) => millis,
                Fate::Failed | Fate::Hung => load::PATIENCE.as_secs_f64() * 1e3,
            });
            quantile(&taken.collect::<Vec<f64>>(), 0.99)
        };
        let note = &mut self.report;
        let mut add = |what: &str, unit, value| note.add("kill", what, system, unit, Better::Less, value);
        add("calls that failed", "calls", count(|f| matches!(f, Fate::Failed)));
        add("calls that hung", "calls", count(|f| matches!(f, Fate::Hung)));
        add("99 % before", "ms", late(1.0, at));
        add("99 % in the 5 s after", "ms", late(at, at + 5.0));
    }

    fn failures(&mut self, system: &str, what: &str, ended: &Summary) {
        if let Some(why) = &ended.why {
            self.report.missing(system, &format!("{what}: {} calls failed: {why}", ended.failed));
        }
    }
}

/// Calls a second where a replica is killed.
fn rate() -> f64 {
    SHARE * REPLICAS as f64 / EACH
}

fn kill(pid: Option<&u32>) {
    if let Some(member) = pid.and_then(|pid| Member::find(*pid)) {
        member.signal(Signal::KILL);
    }
}

/// Processor time of the caller (this process) and of the server's processes.
struct Spent {
    pids: Vec<u32>,
    meter: Meter,
    begun: pelton::env::Time,
    server: f64,
    caller: f64,
    seconds: f64,
    others: f64,
}

impl Spent {
    fn begin(env: &Env, pids: &[u32]) -> Spent {
        let server = pids.iter().map(|pid| cpu::of(*pid)).sum();
        let caller = cpu::of(std::process::id());
        let meter = Meter::begin(env, pids.iter().copied());
        Spent { pids: pids.to_vec(), meter, begun: env.now(), server, caller, seconds: 0.0, others: 0.0 }
    }

    fn end(self, env: &Env) -> Spent {
        let server = self.pids.iter().map(|pid| cpu::of(*pid)).sum::<f64>() - self.server;
        let caller = cpu::of(std::process::id()) - self.caller;
        let seconds = env.now().since(self.begun).as_secs_f64();
        Spent { server, caller, seconds, others: self.meter.end(env).others, ..self }
    }
}

impl Spent {
    /// The caller was another process, which says what it took.
    fn with_caller(self, ended: &Summary) -> Spent {
        let taken = ended.processor.map_or(0.0, |(before, after)| after - before);
        let others = (self.others - taken / self.seconds).max(0.0);
        Spent { caller: taken, others, ..self }
    }
}

/// What processes hold at most, beyond what they held before: resident memory, as /proc says.
struct Held {
    server: Vec<(u32, f64)>,
    caller: (u32, f64),
}

impl Held {
    /// From here on. (What a process held at most is forgotten: `clear_refs` in proc_pid_clear_refs(5).)
    fn begin(pids: &[u32]) -> Held {
        let begin = |pid: u32| {
            let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
            (pid, memory(pid, "VmRSS:"))
        };
        Held { server: pids.iter().map(|pid| begin(*pid)).collect(), caller: begin(std::process::id()) }
    }

    fn end(&self) -> (f64, f64) {
        let grown = |(pid, before): &(u32, f64)| (memory(*pid, "VmHWM:") - before).max(0.0);
        (self.server.iter().map(grown).sum(), grown(&self.caller))
    }
}

/// A line of /proc/PID/status, in bytes; 0 if there is none.
fn memory(pid: u32, line: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let found = status.lines().find_map(|l| l.strip_prefix(line));
    let kib: f64 = found.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0.0);
    kib * 1024.0
}
