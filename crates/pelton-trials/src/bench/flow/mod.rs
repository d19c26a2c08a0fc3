//! Too much at a time, full batches, and what flow control costs: Pelton's own instances, and other servers beside them.

pub(super) mod cpu;
mod load;
mod own;
mod peer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use pelton::env::real::Host;
use serde::Serialize;

use super::batching;
use super::figure::{self, Machine};
use load::{Course, Verdict};

#[derive(Args)]
#[command(after_help = include_str!("how-to-read.txt"))]
pub(crate) struct Arguments {
    /// Shorter measurements: to see whether it works, not to compare
    #[arg(long)]
    quick: bool,
    /// One JSON object a line on standard output, instead of tables
    #[arg(long)]
    json: bool,
    /// The servers to measure beside Pelton
    #[arg(long, value_enum, value_delimiter = ',', default_value = "mosec,ray")]
    peers: Vec<peer::System>,
    /// Pelton alone
    #[arg(long)]
    no_peers: bool,
    /// A Python interpreter that has mosec; `cargo xtask bench flow` makes one
    #[arg(long, env = "PELTON_PEER_MOSEC", value_name = "PYTHON", hide = true)]
    mosec: Option<PathBuf>,
    /// A Python interpreter that has Ray Serve
    #[arg(long, env = "PELTON_PEER_RAY", value_name = "PYTHON", hide = true)]
    ray: Option<PathBuf>,
}

/// Calls in flight while batches are looked at.
const IN_FLIGHT: [usize; 3] = [64, 256, 1024];
const DEADLINE: Duration = Duration::from_secs(1);

/// How long is measured.
#[derive(Clone, Copy, Debug)]
struct Effort {
    course: Course,
    batching: Duration,
    cost: Duration,
    rounds: usize,
}

impl Effort {
    fn new(quick: bool) -> Effort {
        let seconds = Duration::from_secs;
        let (overload, after, batching, cost, rounds) =
            if quick { (6, 4, 3, 3, 2) } else { (20, 10, 10, 10, 3) };
        let course = Course {
            capacity: batching::ideal(),
            overload: seconds(overload),
            after: seconds(after),
            deadline: DEADLINE,
        };
        Effort { course, batching: seconds(batching), cost: seconds(cost), rounds }
    }
}

/// One line of what was found.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "part", rename_all = "lowercase")]
enum Found {
    Machine(Machine),
    Overload(Overload),
    Batching(Batching),
    Cost(Cost),
    /// A server that could not be measured.
    Missing {
        system: String,
        why: String,
    },
    /// Pelton's figure divided by another's.
    Compared {
        what: String,
        system: String,
        ours: f64,
        theirs: f64,
        ratio: Option<f64>,
    },
}

#[derive(Clone, Debug, Serialize)]
struct Overload {
    system: String,
    configuration: String,
    #[serde(flatten)]
    verdict: Verdict,
    /// Cores that were taken by what does not belong to the measurement.
    others: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Batching {
    system: String,
    configuration: String,
    in_flight: usize,
    /// Rows a second.
    rate: f64,
    /// Of what full batches without a gap give.
    share: f64,
    failures: u64,
    others: f64,
}

/// Processor time of caller and instance, in microseconds a call.
#[derive(Clone, Debug, Serialize)]
struct Cost {
    work: String,
    /// With the usual flow control.
    with: f64,
    /// With everything permitted at once.
    without: f64,
    ratio: f64,
    /// Calls a second.
    rate_with: f64,
    rate_without: f64,
    others: f64,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Machine(machine) => write!(f, "{machine}"),
            Found::Overload(o) => o.fmt(f),
            Found::Batching(b) => {
                let Batching { system, configuration, in_flight, rate, share, failures, others } = b;
                write!(f, "batching  {system:<7} {configuration:<34} {in_flight:>4} in flight: ")?;
                write!(f, "{rate:>5.0} rows/s, share {share:.3}")?;
                if *failures > 0 {
                    write!(f, ", {failures} failed")?;
                }
                write!(f, "; others took {others:.2} cores")
            }
            Found::Cost(Cost { work, with, without, ratio, rate_with, rate_without, others }) => write!(
                f,
                "cpu       {work:<42} {with:.1} us a call with flow control, {without:.1} us without: {ratio:.2} \
                 ({rate_with:.0} and {rate_without:.0} calls/s); others took {others:.2} cores"
            ),
            Found::Missing { system, why } => write!(f, "NOT MEASURED: {system}: {why}"),
            Found::Compared { what, system, ours, theirs, ratio } => {
                write!(f, "compared  {what}: {ours:.3}, {system} {theirs:.3}")?;
                match ratio {
                    Some(ratio) => write!(f, ": {ratio:.2} times"),
                    None => write!(f, ": no ratio to nothing"),
                }
            }
        }
    }
}

impl fmt::Display for Overload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Overload { system, configuration, verdict, others } = self;
        write!(f, "overload  {system:<7} {configuration:<34} goodput {:>4.0}/s", verdict.goodput)?;
        write!(f, ", share {:.3}, full speed ", verdict.share)?;
        match verdict.recovered_seconds {
            Some(seconds) => write!(f, "after {seconds:.2} s")?,
            None => write!(f, "not reached")?,
        }
        let Verdict { sent, answered_in_time, answered_late, not_ended, ended_again, failures, .. } = verdict;
        write!(f, "; {sent} sent, {answered_in_time} answered in time, {answered_late} late")?;
        for (why, times) in failures {
            write!(f, ", {times} {why}")?;
        }
        write!(f, "; {not_ended} never ended, {ended_again} ended again; others took {others:.2} cores")
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // In a process that was started as an instance, this serves and does not return.
    own::job(Path::new(""))?;
    let scratch = tempfile::Builder::new().prefix("pelton-flow-").tempdir().context("making a folder")?;
    let effort = Effort::new(arguments.quick);
    let host = Host::new(2, 1)?;
    let mut all = Vec::new();
    let mut found = |one: Found| -> Result<()> {
        if arguments.json {
            println!("{}", serde_json::to_string(&one)?);
        } else {
            println!("{one}");
        }
        all.push(one);
        Ok(())
    };
    found(Found::Machine(Machine::look(host.env())))?;
    own::measure(scratch.path(), &effort, &mut found)?;
    if !arguments.no_peers {
        let pythons = [(peer::System::Mosec, &arguments.mosec), (peer::System::Ray, &arguments.ray)];
        for (system, python) in pythons.into_iter().filter(|(s, _)| arguments.peers.contains(s)) {
            let measured = match python {
                Some(python) => peer::measure(&host, system, python, scratch.path(), &effort, &mut found),
                None => Err(anyhow::anyhow!("it is not installed")),
            };
            if let Err(e) = measured {
                found(Found::Missing { system: system.name().into(), why: format!("{e:#}") })?;
            }
        }
    }
    for one in compared(&all) {
        found_last(arguments.json, &one)?;
    }
    if !arguments.json {
        println!("load at the end: {}", figure::load());
    }
    Ok(())
}

fn found_last(json: bool, one: &Found) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(one)?);
    } else {
        println!("{one}");
    }
    Ok(())
}

/// Pelton's shares beside those of each other system, from the same run.
fn compared(all: &[Found]) -> Vec<Found> {
    // What each measured: what, who, and the share.
    let shares: Vec<(String, String, String, f64)> = all
        .iter()
        .filter_map(|one| match one {
            Found::Overload(o) => Some((
                "goodput in overload".into(),
                o.system.clone(),
                o.configuration.clone(),
                o.verdict.share,
            )),
            Found::Batching(b) => Some((
                format!("batching, {} in flight", b.in_flight),
                b.system.clone(),
                b.configuration.clone(),
                b.share,
            )),
            _ => None,
        })
        .collect();
    let (ours, theirs): (Vec<_>, Vec<_>) = shares.into_iter().partition(|s| s.1 == own::SYSTEM);
    let pairs = theirs.into_iter().filter_map(|(what, system, configuration, theirs)| {
        let ours = ours.iter().find(|o| o.0 == what)?.3;
        let ratio = (theirs > 0.0).then_some(ours / theirs);
        Some(Found::Compared { what, system: format!("{system} {configuration}"), ours, theirs, ratio })
    });
    pairs.collect()
}
