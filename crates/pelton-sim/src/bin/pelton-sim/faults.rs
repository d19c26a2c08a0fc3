//! `--faults`: the service plane while processes die and links break.

use std::time::Duration;

use pelton_sim::faults::scenario::{self, Scenario};
use pelton_sim::faults::{report, run as play};

use crate::Arguments;

/// Lines of the trace that are shown of a seed that failed.
const LAST_LINES: usize = 60;

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    let scenarios: Vec<Scenario> = match arguments.scenario.as_slice() {
        [] => scenario::ALL.to_vec(),
        names => names.iter().map(|name| find(name)).collect::<Result<_, _>>()?,
    };
    let first = arguments.seed.unwrap_or(1);
    let seeds = arguments.seeds.unwrap_or(if arguments.seed.is_some() { 1 } else { 200 });
    for scenario in scenarios {
        let mut took = Duration::ZERO;
        let mut events = 0;
        for seed in first..first + seeds {
            let run = play(scenario, seed);
            if run.result.is_err() {
                let lines = if arguments.trace { usize::MAX } else { LAST_LINES };
                return Err(report(scenario, seed, &run, lines));
            }
            if arguments.trace {
                println!("{}", run.trace.lines().join("\n"));
                println!("trace {:016x}", run.trace.hash());
            }
            took += run.took;
            events += run.trace.lines().len();
        }
        println!("{:14}{seeds} seeds, {events} events, {took:.0?} simulated", scenario.name);
    }
    Ok(())
}

fn find(name: &str) -> Result<Scenario, String> {
    scenario::find(name).ok_or_else(|| {
        let known: Vec<String> =
            scenario::ALL.iter().map(|s| format!("  {:14}{}", s.name, s.about)).collect();
        format!("there is no scenario `{name}` of faults; there are:\n{}", known.join("\n"))
    })
}
