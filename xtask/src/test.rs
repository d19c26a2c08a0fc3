//! `cargo xtask test`: all tests, with what they need; then those of the Python package, of services in Python, and those on Apache Flink.

use anyhow::{Context, Result};
use clap::Args;

use crate::places::Places;
use crate::process::{self, cargo};
use crate::{flink, servers, setup, wheel};

#[derive(Args, Default)]
pub(crate) struct Arguments {
    /// For `cargo test`, as in `-p pelton-files -- sinks`; those of the Python package run without any, and with `-p pelton-python`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    rest: Vec<String>,
}

pub(crate) fn run(places: &Places, arguments: &Arguments) -> Result<()> {
    setup::run(places)?;
    let mut test = cargo(&places.root, ["test"]);
    if !names_packages(&arguments.rest) {
        test.arg("--workspace");
    }
    test.args(&arguments.rest).env("PELTON_MODEL", places.model()).env("PELTON_DIGITS", places.digits());
    let mut told = Vec::new();
    for servers in &servers::ALL {
        told.push((servers.variable, servers.install(places)?.to_string()));
    }
    test.envs(told.iter().map(|(variable, value)| (*variable, value)));
    process::run(&mut test).context("tests failed")?;
    let some = !arguments.rest.is_empty();
    if some && !arguments.rest.iter().any(|a| a.ends_with("pelton-python")) {
        return Ok(());
    }
    let python = wheel::test(places, &told)?;
    if some {
        return Ok(());
    }
    wheel::conformance(places, &python)?;
    flink::test(places)
}

/// Whether `cargo test` is told which packages to test.
fn names_packages(arguments: &[String]) -> bool {
    let of_cargo = arguments.iter().take_while(|a| *a != "--");
    of_cargo.into_iter().any(|a| a.starts_with("-p") || a.starts_with("--package"))
}
