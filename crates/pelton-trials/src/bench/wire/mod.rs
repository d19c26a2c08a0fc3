//! What a call costs on its way: Pelton's, and those of other systems beside it, in the same run.

pub(crate) mod apart;
pub(crate) mod measured;
mod own;
pub(crate) mod peer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use pelton::Services;
use pelton::env::real::Host;
use pelton_peers::load::{self, FILL, Fate, Sent};
use rustix::process::Signal;

use super::figure::{Machine, quantile};
use super::report::{Better, OURS, Report};
use crate::family::Member;
use measured::{Held, IN_FLIGHT, Load, Measured, Spending};
use peer::{Server, System};

#[derive(Args)]
#[command(after_help = include_str!("how-to-read.txt"))]
pub(crate) struct Arguments {
    /// Shorter and fewer measurements, under 10 minutes: to see whether it works, not to compare
    #[arg(long)]
    quick: bool,
    /// Write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write pictures of the comparisons to this folder, as SVG
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

impl Arguments {
    fn python(&self, system: System) -> Option<&Path> {
        match system {
            System::Tonic => None,
            System::Mosec => self.mosec.as_deref(),
            System::Ray => self.ray.as_deref(),
            System::Litserve => self.litserve.as_deref(),
            System::Grpcio => self.grpcio.as_deref(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Small payloads: calls a second, and how long one takes
    Calls,
    /// Large payloads: bytes a second, and processor time for them
    Large,
    /// TLS over TCP between two network namespaces, small and large
    Tls,
    /// One of two replicas is killed
    Kill,
    /// What is held while a payload of 1 GB goes there and back
    Memory,
    /// What is held while an answer of 1 GB comes in parts
    Stream,
}

const OUR_WINDOW: &str = "pelton, window";
/// Where a replica is killed: two of them, how long a call takes, and the share of what they could do.
const REPLICAS: usize = 2;
const EACH: f64 = 0.005;
const SHARE: f64 = 0.7;
/// From the start of the calls to the kill, and from there to their end. A replica that is killed was there for a while.
const BEFORE: Duration = Duration::from_secs(12);
const AFTER: Duration = Duration::from_secs(6);
/// What is compared: the time from a little after the start until a little before the kill, and these seconds after it.
const CALM: (f64, f64) = (1.0, 0.5);
const STIRRED: f64 = 5.0;
/// From the death of a replica to the start of the next one, where somebody else has to do that.
const RESTART: Duration = Duration::from_millis(500);
/// One payload, and a streamed answer.
const GIGABYTE: usize = 1_000_000_000;

/// How long and how often is measured.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    small: Duration,
    large: Duration,
}

impl Effort {
    fn new(quick: bool) -> Effort {
        let seconds = Duration::from_secs;
        match quick {
            true => Effort { rounds: 2, small: seconds(1), large: seconds(1) },
            false => Effort { rounds: 5, small: seconds(4), large: seconds(3) },
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
    let parts = match arguments.only.as_slice() {
        [] => Part::value_variants().to_vec(),
        only => only.to_vec(),
    };
    let peers: &[System] = if arguments.no_peers { &[] } else { &arguments.peers };
    let mut trial = Trial {
        host: &host,
        scratch: scratch.path(),
        effort: Effort::new(arguments.quick),
        parts,
        program: arguments.program.clone(),
        report: Report::new(machine, arguments.quick),
        copy: measured::copying(),
    };
    trial.report.version(OURS, env!("CARGO_PKG_VERSION"));
    for system in peers {
        if let Some(version) = system.version(arguments.python(*system)) {
            trial.report.version(system.name(), &version);
        }
    }
    if let Some(why) = trial.wants(Part::Tls).then(apart::forbidden).flatten() {
        trial.report.missing("TLS", &why);
        trial.parts.retain(|part| *part != Part::Tls);
    }
    // One after another in each round, so that what else the machine does hits all of them.
    for round in 0..trial.effort.rounds {
        if trial.wants_any(&[Part::Calls, Part::Large])
            || round == 0 && trial.wants_any(&[Part::Kill, Part::Memory, Part::Stream])
        {
            if let Err(e) = trial.own(round) {
                trial.report.missing(OURS, &format!("{e:#}"));
            }
            for system in peers {
                if let Err(e) = trial.peer(round, *system, arguments.python(*system)) {
                    trial.report.missing(system.name(), &format!("{e:#}"));
                }
            }
        }
        if trial.wants(Part::Tls)
            && let Err(e) = trial.apart(round, peers.contains(&System::Tonic))
        {
            trial.report.missing("TLS", &format!("{e:#}"));
        }
    }
    trial.report.end();
    trial.report.print();
    if let Some(file) = &arguments.json {
        trial.report.write(file)?;
        println!("written to {}", file.display());
    }
    if let Some(folder) = &arguments.plots {
        trial.report.plot(folder, title)?;
        println!("pictures in {}", folder.display());
    }
    Ok(())
}

impl Trial<'_> {
    fn wants(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    fn wants_any(&self, parts: &[Part]) -> bool {
        parts.iter().any(|part| self.wants(*part))
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
        let (small, large) = (own::instances(services, own::CALLS), own::instances(services, own::LARGE));
        if self.wants(Part::Calls) {
            for load in Load::small(self.effort.small) {
                self.calls("calls", own::one_by_one(services, &load, &small).await?);
                if load.in_flight == IN_FLIGHT {
                    self.calls("calls", own::from_a_window(services, &load, &small).await?);
                }
            }
        }
        if self.wants(Part::Large) {
            for load in Load::large(self.effort.large) {
                self.calls("large", own::one_by_one(services, &load, &large).await?);
            }
        }
        if round > 0 {
            return Ok(());
        }
        if self.wants(Part::Stream) {
            let held = Held::begin(&own::instances(services, own::PARTS));
            let begun = services.env().now();
            let answer = load::bounded(own::stream(services, GIGABYTE)).await;
            let seconds = services.env().now().since(begun).as_secs_f64();
            self.streamed(OURS, answer, held.end(), seconds);
        }
        if self.wants(Part::Memory) {
            let held = Held::begin(&large);
            let one = own::rows(vec![FILL; GIGABYTE], 1)?;
            let answer = load::bounded(own::call(services, own::LARGE, &one)).await;
            self.memory(OURS, answer, held.end());
        }
        if self.wants(Part::Kill) {
            let env = services.env();
            let one = own::rows(vec![FILL; 100], 1)?;
            let call = async || own::call(services, own::PAIR, &one).await;
            let killing = async {
                env.sleep(BEFORE).await;
                kill(own::instances(services, own::PAIR).first());
                std::future::pending::<Vec<Sent>>().await
            };
            let sent = tokio::select! {
                sent = load::open(rate(), BEFORE + AFTER, call) => sent,
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
        let once = round == 0 && (self.wants(Part::Memory) || self.wants(Part::Stream) && system.streams());
        host.block_on(async {
            if once || self.wants_any(&[Part::Calls, Part::Large]) {
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
        let measured = |load: &Load| {
            let spending = Spending::begin(env, &pids);
            let ended = server.load(load)?;
            let spent = spending.end(env).with_caller(&ended);
            anyhow::Ok(load.measured(name, ended, spent))
        };
        if self.wants(Part::Calls) {
            for load in Load::small(self.effort.small) {
                self.calls("calls", measured(&load)?);
            }
        }
        if self.wants(Part::Large) {
            for load in Load::large(self.effort.large) {
                self.calls("large", measured(&load)?);
            }
        }
        if round > 0 {
            return Ok(());
        }
        if self.wants(Part::Stream) && server.system.streams() {
            let held = Held::begin(&pids);
            let (answer, caller, seconds) = server.stream(GIGABYTE)?;
            self.streamed(name, answer, (held.end().0, caller), seconds);
        }
        if self.wants(Part::Memory) {
            let held = Held::begin(&pids);
            let (answer, caller) = server.once(GIGABYTE)?;
            self.memory(name, answer, (held.end().0, caller));
        }
        Ok(())
    }

    async fn peer_killed(&mut self, server: &mut Server) -> Result<()> {
        let env = self.host.env();
        let workers = server.all_workers(env).await?;
        let calling = server.open(100, rate(), BEFORE + AFTER)?;
        env.sleep(BEFORE).await;
        kill(workers.first());
        env.sleep(RESTART).await;
        server.restart()?;
        let sent = calling.sent()?;
        self.killed(server.system.name(), &sent);
        Ok(())
    }

    /// Under TLS, over a network between two namespaces.
    fn apart(&mut self, round: usize, beside_tonic: bool) -> Result<()> {
        let folder = self.folder("tls", round)?;
        let program = if beside_tonic { Some(self.program()?) } else { None };
        let times = (self.effort.small, self.effort.large);
        for measured in apart::measure(self.host.env(), program.as_deref(), &folder, times)? {
            self.calls("tls", measured);
        }
        Ok(())
    }

    // --- what is noted ---

    fn calls(&mut self, part: &'static str, measured: Measured) {
        let Measured { system, name, bytes, in_flight, large, ended, spent } = measured;
        if let Some(why) = &ended.why {
            self.report.missing(&system, &format!("{part}, {name}: {} calls failed: {why}", ended.failed));
        }
        self.report.others(spent.others);
        let mut add = |which: &str, unit, better, value| {
            self.report.add(part, &format!("{name}: {which}"), &system, unit, better, value);
        };
        if large {
            let gigabytes = ended.rate * bytes as f64 / 1e9;
            add("there, and as much back", "GB/s", Better::More, gigabytes);
            // Each byte goes there and back.
            let moved = 2.0 * gigabytes * spent.seconds;
            add("server, processor", "s a GB", Better::Less, spent.server / moved);
            add("caller, processor", "s a GB", Better::Less, spent.caller / moved);
            let copies = (spent.server + spent.caller) / moved / 1e9 / self.copy;
            add("both, of copying it once", "times", Better::Less, copies);
            return;
        }
        if in_flight > 1 {
            add("calls", "calls/s", Better::More, ended.rate);
            // What was called while it was measured, in millions.
            let each = ended.rate * spent.seconds / 1e6;
            add("server, processor", "us a call", Better::Less, spent.server / each);
            add("caller, processor", "us a call", Better::Less, spent.caller / each);
        }
        add("median", "us", Better::Less, ended.p50);
        add("99 %", "us", Better::Less, ended.p99);
    }

    fn memory(&mut self, system: &str, answer: Result<(), String>, (server, caller): (f64, f64)) {
        if let Err(why) = answer {
            return self.report.missing(system, &format!("memory: {why}"));
        }
        let size = GIGABYTE as f64;
        // The caller has its payload, and the answer; the server has to have the payload to answer it.
        for (side, beyond) in [
            ("server, beyond the payload", server - size),
            ("caller, beyond payload and answer", caller - 2.0 * size),
        ] {
            let what = format!("1 GB there and back: {side}");
            self.report.add("memory", &what, system, "MB", Better::Less, beyond.max(0.0) / 1e6);
        }
    }

    fn streamed(
        &mut self,
        system: &str,
        answer: Result<(), String>,
        (server, caller): (f64, f64),
        seconds: f64,
    ) {
        if let Err(why) = answer {
            return self.report.missing(system, &format!("stream: {why}"));
        }
        let mut add = |which: &str, unit, better, value| {
            self.report.add("stream", &format!("1 GB in parts: {which}"), system, unit, better, value);
        };
        add("server, in all", "MB", Better::Less, server / 1e6);
        add("caller, in all", "MB", Better::Less, caller / 1e6);
        add("speed", "GB/s", Better::More, GIGABYTE as f64 / 1e9 / seconds);
    }

    fn killed(&mut self, system: &str, sent: &[Sent]) {
        let at = BEFORE.as_secs_f64();
        let count = |like: fn(&Fate) -> bool| sent.iter().filter(|s| like(&s.fate)).count() as f64;
        let taken = |s: &Sent| match s.fate {
            Fate::Answered(millis) => millis,
            Fate::Failed | Fate::Hung => load::PATIENCE.as_secs_f64() * 1e3,
        };
        let late = |from: f64, to: f64| {
            let within = sent.iter().filter(|s| s.began >= from && s.began < to);
            quantile(&within.map(taken).collect::<Vec<f64>>(), 0.99)
        };
        let (before, after) = (late(CALM.0, at - CALM.1), late(at, at + STIRRED));
        // Slow: above twice the 99 % before.
        let slow = sent.iter().filter(|s| s.began >= at && taken(s) > 2.0 * before);
        let until = slow.map(|s| s.began - at).fold(0.0, f64::max);
        let mut add =
            |what: &str, unit, value| self.report.add("kill", what, system, unit, Better::Less, value);
        add("calls that failed", "calls", count(|f| matches!(f, Fate::Failed)));
        add("calls that hung", "calls", count(|f| matches!(f, Fate::Hung)));
        add("99 % before", "ms", before);
        add("99 % in the 5 s after", "ms", after);
        add("99 % after over before", "times", after / before);
        add("last slow call began", "ms after the kill", until * 1e3);
    }
}

/// A picture's.
fn title(part: &str, of: &str) -> String {
    match part {
        "calls" | "large" => of.to_owned(),
        "tls" => format!("TLS over TCP between two network namespaces: {of}"),
        "kill" => "one of two replicas is killed at 70 % load".to_owned(),
        _ => format!("{part}: {of}"),
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
