//! The seeded simulation of the service plane: the real client, control and instances in one thread, with faults.
//!
//! [`world`] is time and tasks, [`network`] connections, [`process`] instances that can be killed; together they are an
//! [`Env`](pelton_env::Env). [`probe`] is the service that runs, [`stage`] what a [`scenario`] plays on. Each run is
//! decided by its seed alone: the same seed gives the same [`trace`].

pub mod network;
pub mod probe;
pub mod process;
pub mod scenario;
pub mod stage;
pub mod trace;
pub mod world;

use std::time::Duration;

use self::scenario::Scenario;
use self::stage::Stage;
use self::trace::Trace;
use self::world::World;

/// Virtual time after which a scenario is not coming to an end.
const LIMIT: Duration = Duration::from_secs(600);

/// How one run went.
pub struct Run {
    pub result: Result<(), String>,
    pub trace: Trace,
    /// Virtual time that it took.
    pub took: Duration,
}

/// Plays a scenario under a seed.
pub fn run(scenario: Scenario, seed: u64) -> Run {
    let world = World::new(seed);
    let trace = Trace::default();
    let began = world.now();
    let mut setup = scenario::setup(&world);
    (scenario.setup)(&world, &mut setup);
    let result = match Stage::new(world.clone(), trace.clone(), setup) {
        Ok(stage) => {
            let play = async move {
                stage.start_control().await?;
                (scenario.play)(stage).await
            };
            world.run(LIMIT, Box::pin(play)).and_then(|played| played)
        }
        Err(e) => Err(e),
    };
    let took = world.now().since(began);
    if let Err(why) = &result {
        trace.add(world.now(), format_args!("FAILED: {why}"));
    }
    world.clear();
    Run { result, trace, took }
}

/// What to say of a run that failed: the end of its trace, and how to see it again.
pub fn report(scenario: Scenario, seed: u64, run: &Run, lines: usize) -> String {
    let all = run.trace.lines();
    let shown = all[all.len().saturating_sub(lines)..].join("\n");
    let why = run.result.as_ref().err().map_or("it did not fail", |why| why);
    format!(
        "{shown}\n\nscenario {} fails with seed {seed}: {why}\nrun it again: cargo xtask sim --faults --scenario {} --seed {seed} --trace",
        scenario.name, scenario.name
    )
}
