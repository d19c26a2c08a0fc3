//! `--chaos`: whole jobs, data plane and all, while everything fails that can.

use std::collections::BTreeMap;
use std::time::Duration;

use pelton_sim::chaos::{report, run as play};

use crate::Arguments;

/// Lines of the trace that are shown of a seed that failed.
const LAST_LINES: usize = 60;

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    let first = arguments.seed.unwrap_or(1);
    let seeds = arguments.seeds.unwrap_or(if arguments.seed.is_some() { 1 } else { 200 });
    let (mut took, mut events, mut necessary) = (Duration::ZERO, 0, 0);
    let (mut beyond, mut counts) = (BTreeMap::new(), BTreeMap::new());
    for (done, seed) in (0..seeds).zip(first..) {
        if seeds >= 100 && done > 0 && done % (seeds / 20) == 0 {
            eprintln!("{done} of {seeds} seeds, {events} events, {took:.0?} simulated");
        }
        let run = play(seed);
        if run.result.is_err() {
            let lines = if arguments.trace { usize::MAX } else { LAST_LINES };
            return Err(report(seed, &run, lines));
        }
        if arguments.trace {
            println!("{}", run.trace.lines().join("\n"));
            println!("trace {:016x}", run.trace.hash());
        }
        took += run.took;
        events += run.trace.lines().len();
        necessary += run.facts.necessary();
        add(&mut beyond, run.facts.beyond());
        add(&mut counts, run.facts.counts());
    }
    eprintln!("what happened: {}", show(&counts));
    let extra = if beyond.is_empty() { "none".to_owned() } else { show(&beyond) };
    println!(
        "chaos: {seeds} seeds, {events} events, {took:.0?} simulated, {necessary} executions, beyond them: {extra}"
    );
    Ok(())
}

fn add(all: &mut BTreeMap<&'static str, u64>, more: BTreeMap<&'static str, u64>) {
    for (what, n) in more {
        *all.entry(what).or_default() += n;
    }
}

fn show(counts: &BTreeMap<&'static str, u64>) -> String {
    counts.iter().map(|(what, n)| format!("{n} {what}")).collect::<Vec<_>>().join(", ")
}
