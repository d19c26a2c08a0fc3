//! The developer's menu: `cargo xtask COMMAND`.

mod bench;
mod chaos;
mod check;
mod ci;
mod demo;
mod digits;
mod fetch;
mod flink;
mod fuzz;
mod java;
mod model;
mod peers;
mod places;
mod process;
mod python;
mod servers;
mod setup;
mod sim;
mod test;
mod wheel;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use places::Places;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Everything that is done to this repository"
)]
struct Menu {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch what tests and the demo need into .cache: the sentence model, images of digits, servers
    Setup,
    /// Formatting and lints, as CI wants them
    Check,
    /// Set up, then run all tests; arguments go to `cargo test`
    Test(test::Arguments),
    /// What CI runs: check, then test
    Ci,
    /// Set up, build, index a book, search it, classify images
    Demo(demo::Arguments),
    /// Play flow control against modelled backends, or the service plane under faults, in virtual time
    Sim(sim::Arguments),
    /// Hostile input for frames, bodies, handshakes, links, and the states of client and instance, guided by what it reaches
    Fuzz(fuzz::Arguments),
    /// Kill a job and its instances at random moments, let them hang, crawl and be out of reach, and check every row of the output
    Chaos(chaos::Arguments),
    /// A cluster of stock Apache Flink on this machine, jobs on it that call services, and tests of both
    Flink(flink::Arguments),
    /// Measure what calls cost, how full batches are, and a real model in a pipeline; `bench flow`: overload, beside other servers; `bench recovery`: kills and
    /// checkpoints, beside Flink if asked; `bench wire`: what a call costs on its way, beside other systems; `bench python`: services and pipelines in
    /// Python, beside other systems
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    match fuzz::compile().unwrap_or_else(|| run(&Menu::parse().command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("\nerror: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    let places = Places::of_this_workspace();
    match command {
        Command::Setup => setup::run(&places),
        Command::Check => check::run(&places),
        Command::Test(arguments) => test::run(&places, arguments),
        Command::Ci => ci::run(&places),
        Command::Demo(arguments) => demo::run(&places, arguments),
        Command::Sim(arguments) => sim::run(&places, arguments),
        Command::Fuzz(arguments) => fuzz::run(&places, arguments),
        Command::Chaos(arguments) => chaos::run(&places, arguments),
        Command::Flink(arguments) => flink::run(&places, arguments),
        Command::Bench(arguments) => bench::run(&places, arguments),
    }
}
