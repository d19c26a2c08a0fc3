//! Whole jobs under a fixed number of seeds, and the seeds that once failed. `cargo xtask sim --chaos` plays more.

use std::collections::BTreeMap;

use pelton_sim::chaos::{report, run};

/// Plays seeds; says how often each thing happened.
fn play(seeds: impl IntoIterator<Item = u64>) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for seed in seeds {
        let run = run(seed);
        assert!(run.result.is_ok(), "{}", report(seed, &run, 40));
        for (what, n) in run.facts.counts() {
            *counts.entry(what).or_default() += n;
        }
    }
    counts
}

#[test]
fn every_row_ends_once_and_nothing_runs_twice_without_reason() {
    let counts = play(1..=100);
    // What never happens is not tried.
    for what in [
        "bad commits",
        "bad disks",
        "bad disks of ledgers",
        "bad reads and writes",
        "calendar jumps",
        "crashes",
        "cuts",
        "drains",
        "hangs",
        "host hangs",
        "host partitions",
        "instance kills",
        "job restarts",
        "kills",
        "kills while committing",
        "ledgers that spilled",
        "partitions",
        "refusals",
        "rewinds",
        "stops",
        "stuck batches",
        "takeovers",
    ] {
        assert!(counts.contains_key(what), "no {what} in these seeds: {counts:?}");
    }
}

#[test]
fn and_under_as_many_other_seeds() {
    play(101..=200);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 7, 1234, 5678] {
        let [first, second] = [0, 1].map(|_| run(seed).trace);
        assert_eq!(first.lines(), second.lines(), "{seed}");
        assert_eq!(first.hash(), second.hash());
    }
}
