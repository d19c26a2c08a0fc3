//! `pelton-sim`: plays scenarios under seeds.

use std::process::ExitCode;

use clap::Parser;
use pelton_sim::scenario::{self, Scenario};

/// Plays Pelton's service plane under seeds, with faults
#[derive(Parser)]
#[command(name = "pelton-sim")]
struct Arguments {
    /// Only this scenario
    #[arg(long)]
    scenario: Option<String>,
    /// Only this seed, or the first of --seeds
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds [default: 1 with --seed, else 200]
    #[arg(long)]
    seeds: Option<u64>,
    /// Print everything that happens
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let Arguments { scenario, seed, seeds, trace } = Arguments::parse();
    let scenarios: Vec<Scenario> = match &scenario {
        None => scenario::ALL.to_vec(),
        Some(name) => match scenario::find(name) {
            Some(scenario) => vec![scenario],
            None => {
                let known: Vec<String> =
                    scenario::ALL.iter().map(|s| format!("  {:14}{}", s.name, s.about)).collect();
                eprintln!("there is no scenario `{name}`; there are:\n{}", known.join("\n"));
                return ExitCode::from(2);
            }
        },
    };
    let first = seed.unwrap_or(1);
    let seeds = seeds.unwrap_or(if seed.is_some() { 1 } else { 200 });
    for scenario in scenarios {
        let mut took = std::time::Duration::ZERO;
        let mut events = 0;
        for seed in first..first + seeds {
            let run = pelton_sim::run(scenario, seed);
            if run.result.is_err() {
                eprintln!(
                    "{}",
                    pelton_sim::report(scenario, seed, &run, if trace { usize::MAX } else { 60 })
                );
                return ExitCode::FAILURE;
            }
            if trace {
                println!("{}", run.trace.lines().join("\n"));
                println!("trace {:016x}", run.trace.hash());
            }
            took += run.took;
            events += run.trace.lines().len();
        }
        println!("{:14}{seeds} seeds, {events} events, {took:.0?} simulated", scenario.name);
    }
    ExitCode::SUCCESS
}
