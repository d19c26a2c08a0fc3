//! The seeded simulation of a whole job: client, instances, control and data plane together, each the real one, while processes are
//! killed, paused and cut off, disks fail and the calendar jumps.
//!
//! Time, network and processes are those of [`faults`](crate::faults). A [`host`] is a process here, too: it can be killed with all it
//! has, and another takes over what it left. [`storage`] is what survives it, [`laws`] is what must hold whatever happens, [`play`]
//! decides what happens. One seed is one run: the same seed gives the same trace.

mod disk;
pub mod facts;
mod host;
mod laws;
mod play;
mod service;
mod storage;

use std::time::Duration;

use crate::chaos::facts::Facts;
use crate::faults::trace::Trace;
use crate::faults::world::World;

/// Virtual time after which a run is not coming to an end.
const LIMIT: Duration = Duration::from_secs(1200);

/// How one run went.
pub struct Run {
    pub result: Result<(), String>,
    pub trace: Trace,
    pub facts: Facts,
    /// Virtual time that it took.
    pub took: Duration,
}

/// Plays a seed.
pub fn run(seed: u64) -> Run {
    let world = World::new(seed);
    let (trace, facts) = (Trace::default(), Facts::default());
    let began = world.now();
    let result = match play::Ground::new(world.clone(), trace.clone(), facts.clone()) {
        Ok(ground) => world.run(LIMIT, Box::pin(play::play(ground))).and_then(|played| played),
        Err(e) => Err(e),
    };
    let took = world.now().since(began);
    if let Err(why) = &result {
        trace.add(world.now(), format_args!("FAILED: {why}"));
    }
    world.clear();
    Run { result, trace, facts, took }
}

/// What to say of a run that failed: the end of its trace, and how to see it again.
pub fn report(seed: u64, run: &Run, lines: usize) -> String {
    let all = run.trace.lines();
    let shown = all[all.len().saturating_sub(lines)..].join("\n");
    let why = run.result.as_ref().err().map_or("it did not fail", |why| why);
    format!(
        "{shown}\n\nseed {seed} fails: {why}\nrun it again: cargo xtask sim --chaos --seed {seed} --trace"
    )
}
