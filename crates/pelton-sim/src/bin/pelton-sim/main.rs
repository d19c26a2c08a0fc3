//! `pelton-sim`: simulations of the service plane.

mod chaos;
mod faults;
mod flow;

use std::process::ExitCode;

use clap::Parser;

/// Plays Pelton's own code in virtual time: flow control against modelled backends, beside other ways and an oracle; or, with
/// --faults, the whole service plane while processes die and links break, or, with --chaos, the data plane with it
#[derive(Parser)]
#[command(name = "pelton-sim")]
struct Arguments {
    /// Play the service plane under faults
    #[arg(long)]
    faults: bool,
    /// Play whole jobs, the data plane with the service plane, while everything fails that can
    #[arg(long, conflicts_with_all = ["faults", "scenario"])]
    chaos: bool,
    /// Only this scenario, by name (or, without --faults, file); may be said more than once
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Only this seed, or the first of --seeds
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds [default: 1 with --seed, else 3, or 200 with --faults and --chaos]
    #[arg(long)]
    seeds: Option<u64>,
    /// Show what happens over time; with --faults and --chaos, everything that happens
    #[arg(long)]
    trace: bool,
    #[command(flatten)]
    flow: flow::Arguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = if arguments.faults {
        faults::run(&arguments)
    } else if arguments.chaos {
        chaos::run(&arguments)
    } else {
        flow::run(&arguments)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
