//! `cargo xtask chaos`: kills a job and its instances at random moments, makes them and servers of other people fail, and checks every row.

use anyhow::{Context, Result};
use clap::Args;

use crate::places::Places;
use crate::process::{self, cargo};

#[derive(Args)]
pub(crate) struct Arguments {
    /// For the trial, as in `--kills 20 --seed 7 --stop` or `--remote`; `cargo xtask chaos -- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    rest: Vec<String>,
}

pub(crate) fn run(places: &Places, arguments: &Arguments) -> Result<()> {
    // Without the sentence model, which takes longer to build than all the rest.
    let trial = ["run", "--release", "--package", "pelton-trials", "--no-default-features", "--", "chaos"];
    process::run(cargo(&places.root, trial).args(&arguments.rest)).context("the trial failed")
}
