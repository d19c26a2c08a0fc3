//! `cargo xtask sim`: the service plane in virtual time.

use anyhow::{Context, Result};
use clap::Args;

use crate::places::Places;
use crate::process::{self, cargo};

#[derive(Args)]
pub(crate) struct Arguments {
    /// For the simulator, as in `--scenario P1 --json` or `--faults --scenario crashes --seed 7`; `cargo xtask sim -- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    rest: Vec<String>,
}

pub(crate) fn run(places: &Places, arguments: &Arguments) -> Result<()> {
    let simulator = ["run", "--release", "--package", "pelton-sim", "--"];
    process::run(cargo(&places.root, simulator).args(&arguments.rest))
        .context("the simulation ended in an error")
}
