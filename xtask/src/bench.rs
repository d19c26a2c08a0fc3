//! `cargo xtask bench`: what calls cost, how full batches are, and what a pipeline makes of a model.

use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::peers;
use crate::places::Places;
use crate::process::{self, cargo};
use crate::{digits, setup, wheel};

#[derive(Args)]
#[command(after_help = include_str!("../../crates/pelton-trials/src/bench/how-to-read.txt"))]
pub(crate) struct Arguments {
    /// For the measurements, as in `--quick --only batching --json FILE`, or `flow`, `recovery`, `wire` or `python` and what they take; `cargo xtask bench -- --help` and
    /// `cargo xtask bench flow --help` list them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    rest: Vec<String>,
}

pub(crate) fn run(places: &Places, arguments: &Arguments) -> Result<()> {
    let asks = |flag: &str| arguments.rest.iter().any(|a| a == flag || a.starts_with(&format!("{flag}=")));
    let helps = asks("--help") || asks("-h");
    let first = arguments.rest.first().map(String::as_str);
    if let Some(part @ ("flow" | "recovery" | "wire" | "python")) = first {
        // Without the sentence model, which takes longer to build than all the rest.
        let without = ["--package", "pelton-trials", "--no-default-features"];
        let mut bench = match part {
            // With the libraries as the wheel has them, so that they are built once.
            "python" if !helps => {
                let with_wheel = ["--package", "pelton-python", "--bin", "pelton-trials"];
                Command::new(peers::built(places, &[&without[..], &with_wheel].concat())?)
            }
            _ => {
                let mut run = cargo(&places.root, ["run", "--release"]);
                run.args(without).arg("--");
                run
            }
        };
        bench.arg("bench").args(&arguments.rest);
        match part {
            _ if helps => {}
            "flow" if !asks("--no-peers") => {
                peers::install(places, &peers::FLOW, &arguments.rest, &mut bench);
            }
            "wire" if !asks("--no-peers") => {
                peers::program(places, &mut bench)?;
                peers::install(places, &peers::WIRE, &arguments.rest, &mut bench);
            }
            "python" => {
                bench.env("PELTON_DIGITS_PIXELS", digits::pixels(places)?);
                bench.env(
                    "PELTON_PYTHON",
                    wheel::measured(places, &peers::requirements(places, "python-pelton"))?,
                );
                if !asks("--no-peers") {
                    peers::program(places, &mut bench)?;
                    peers::install(places, &peers::PYTHON, &arguments.rest, &mut bench);
                }
            }
            "recovery" => peers::build(places, &arguments.rest, &mut bench)?,
            _ => {}
        }
        return process::run(&mut bench).context("the measurements failed");
    }
    let mut bench = cargo(&places.root, ["run", "--release", "--package", "pelton-trials", "--", "bench"]);
    bench.args(&arguments.rest);
    if !helps {
        if std::env::var_os("PELTON_MODEL").is_none() {
            setup::run(places)?;
            bench.env("PELTON_MODEL", places.model());
        }
        if !asks("--json") {
            bench.arg("--json").arg(places.root.join(format!("target/bench/{}.json", date()?)));
        }
    }
    process::run(&mut bench).context("the measurements failed")
}

/// As a file name that sorts.
fn date() -> Result<String> {
    let date = process::output(std::process::Command::new("date").args(["-u", "+%Y-%m-%d-%H%M%S"]))?;
    Ok(String::from_utf8(date)?.trim().to_owned())
}
