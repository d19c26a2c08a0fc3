//! What calls cost, how full batches are, and what a pipeline makes of a model.

mod batching;
mod figure;
mod flow;
#[cfg(feature = "model")]
pub(crate) mod model;
mod overhead;
mod plot;
mod python;
pub(crate) mod recovery;
mod report;
pub(crate) mod wire;

use std::path::{Path, PathBuf};
use std::time::Duration;

#[cfg(feature = "model")]
use anyhow::ensure;
use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use pelton::env::real::Host;

use figure::Figure;

#[derive(Args)]
#[command(after_help = include_str!("how-to-read.txt"), args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    more: Option<More>,
    /// Shorter and fewer measurements: to see whether it works, not to compare
    #[arg(long)]
    quick: bool,
    /// Write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only these parts
    #[arg(long, value_enum)]
    only: Vec<Part>,
    #[cfg(feature = "model")]
    /// The folder of the sentence model; by default what PELTON_MODEL says, or what `cargo xtask setup` made
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

#[derive(Subcommand)]
enum More {
    /// Too much at a time, full batches, and what flow control costs; other servers beside it
    Flow(flow::Arguments),
    /// What a killed job costs, what checkpoints take, and what it costs to be ready for that
    Recovery(recovery::Arguments),
    /// What a call costs on its way, small and large; what a killed replica costs its callers; other systems beside it
    Wire(wire::Arguments),
    /// What services and pipelines in Python cost, with a model that takes next to no time; other systems beside them
    Python(python::Arguments),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Overhead,
    Batching,
    #[cfg(feature = "model")]
    Model,
}

/// How long and how often is measured.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    /// One throughput of plain calls.
    calls: Duration,
    /// One throughput of batches.
    batching: Duration,
    #[cfg_attr(not(feature = "model"), expect(dead_code, reason = "for the model alone"))]
    /// One throughput of the model.
    model: Duration,
}

impl Effort {
    fn new(quick: bool) -> Effort {
        let seconds = Duration::from_secs_f64;
        if quick {
            Effort { rounds: 3, calls: seconds(0.3), batching: seconds(3.0), model: seconds(8.0) }
        } else {
            Effort { rounds: 5, calls: seconds(1.0), batching: seconds(10.0), model: seconds(20.0) }
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.more {
        Some(More::Flow(arguments)) => return flow::run(arguments),
        Some(More::Recovery(arguments)) => return recovery::run(arguments),
        Some(More::Wire(arguments)) => return wire::run(arguments),
        Some(More::Python(arguments)) => return python::run(arguments),
        None => {}
    }
    #[cfg(feature = "model")]
    let model = arguments.model.clone().unwrap_or_else(default_model);
    // In a process that was started as an instance, one of these serves and does not return.
    let nowhere = Path::new("");
    overhead::job(nowhere)?;
    batching::job(nowhere)?;
    #[cfg(feature = "model")]
    model::job(nowhere, &model)?;

    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    #[cfg(feature = "model")]
    ensure!(
        !wanted(Part::Model) || model.is_dir(),
        "there is no model folder {}; run `cargo xtask setup`, or name one with --model",
        model.display()
    );
    let scratch = tempfile::Builder::new().prefix("pelton-bench-").tempdir().context("making a folder")?;
    let effort = Effort::new(arguments.quick);
    let host = Host::new(2, 1)?;
    let machine = figure::Machine::look(host.env());
    println!("{machine}");
    let mut figures: Vec<Figure> = Vec::new();
    let mut add = |part: Vec<Figure>| {
        part.iter().for_each(|figure| println!("{figure}"));
        figures.extend(part);
    };
    println!("{}", figure::HEADER);
    if wanted(Part::Overhead) {
        add(overhead::measure(host.env(), scratch.path(), effort)?);
    }
    if wanted(Part::Batching) {
        add(batching::measure(scratch.path(), effort)?);
    }
    #[cfg(feature = "model")]
    if wanted(Part::Model) {
        add(model::measure(host.env(), scratch.path(), &model, effort)?);
    }
    println!("load at the end: {}", figure::load());
    if let Some(path) = &arguments.json {
        figure::write(path, &machine, arguments.quick, &figures)
            .with_context(|| format!("writing {}", path.display()))?;
        println!("written to {}", path.display());
    }
    Ok(())
}

#[cfg(feature = "model")]
fn default_model() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::var_os("PELTON_MODEL")
        .map_or_else(|| workspace.join(".cache/models/all-minilm-l6-v2"), PathBuf::from)
}
