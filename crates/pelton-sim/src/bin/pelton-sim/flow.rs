//! Flow control against modelled backends, beside other ways and an oracle.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Args;
use pelton_env::real::Host;
use pelton_sim::flow::algorithm::Algorithm;
use pelton_sim::flow::oracle::{self, Cache};
use pelton_sim::flow::report;
use pelton_sim::flow::scale::{SIZES, measure};
use pelton_sim::flow::scenario::{self, Scenario};
use pelton_sim::flow::suite::Suite;

const SEEDS: u64 = 3;

#[derive(Args)]
#[group(skip)]
pub(crate) struct Arguments {
    /// Only this algorithm; may be said more than once [default: all]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["faults", "chaos"])]
    algorithm: Vec<Algorithm>,
    /// Move every capacity by a factor from 0.75 to 1.33 that this seed decides
    #[arg(long, value_name = "SEED", conflicts_with_all = ["faults", "chaos"])]
    jitter: Option<u64>,
    /// So many callers, whatever the scenario says
    #[arg(long, value_name = "N", conflicts_with_all = ["faults", "chaos"])]
    clients: Option<usize>,
    /// What instances believe their memory to be, as a factor of what it is
    #[arg(long, value_name = "FACTOR", conflicts_with_all = ["faults", "chaos"])]
    belief: Option<f64>,
    /// One JSON object a line instead of tables
    #[arg(long, conflicts_with_all = ["faults", "chaos", "trace"])]
    json: bool,
    /// Count what is said as instances and callers grow
    #[arg(long, conflicts_with_all = ["faults", "chaos", "trace", "scenario", "algorithm", "jitter", "clients", "belief"])]
    scale: bool,
}

pub(crate) fn run(all: &crate::Arguments) -> Result<(), String> {
    let arguments = &all.flow;
    if arguments.scale {
        return scale(arguments.json);
    }
    let first = all.seed.unwrap_or(1);
    let seeds = all.seeds.unwrap_or(if all.seed.is_some() || all.trace { 1 } else { SEEDS });
    if seeds == 0 {
        return Err("--seeds must be at least 1".into());
    }
    let suite = Suite {
        scenarios: scenarios(&all.scenario, arguments)?,
        algorithms: match arguments.algorithm.as_slice() {
            [] if all.trace => vec![Algorithm::Pelton],
            [] => Algorithm::ALL.to_vec(),
            some => some.to_vec(),
        },
        seeds: (first..first + seeds).collect(),
    };
    let cache = Cache::new(cache_folder());
    if all.trace {
        return trace(&suite, &cache);
    }
    let done = AtomicUsize::new(0);
    let rows = suite.play(&cache, &|what| {
        eprintln!("{:3} {what}", done.fetch_add(1, Ordering::Relaxed) + 1);
    });
    if arguments.json {
        rows.iter().for_each(|row| println!("{}", report::json(&suite, row, arguments.jitter)));
    } else {
        print!("{}", report::tables(&suite, &rows));
    }
    Ok(())
}

fn trace(suite: &Suite, cache: &Cache) -> Result<(), String> {
    for scenario in &suite.scenarios {
        for &seed in &suite.seeds {
            let oracle = oracle::play(scenario, seed, &cache.plan(scenario, seed));
            for &algorithm in &suite.algorithms {
                let run = algorithm.play(scenario, seed);
                println!("{}", report::trace(scenario, algorithm, seed, &run, &oracle));
            }
        }
    }
    Ok(())
}

fn scale(json: bool) -> Result<(), String> {
    // One size after another, so that none takes time from what the other's takes.
    let host = Host::new(1, 1).map_err(|e| format!("no threads: {e}"))?;
    let clock = || host.env().now();
    let mut all = Vec::new();
    for (instances, callers) in SIZES {
        eprintln!("{instances} instances, {callers} callers");
        let measured = measure(instances, callers, &clock);
        if json {
            println!("{}", serde_json::to_string(&measured).map_err(|e| e.to_string())?);
        }
        all.push(measured);
    }
    if !json {
        print!("{}", report::scale(&all));
    }
    Ok(())
}

fn scenarios(which: &[String], arguments: &Arguments) -> Result<Vec<Scenario>, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let names = if which.is_empty() { scenario::names(&folder) } else { which.to_vec() };
    let mut scenarios = Vec::new();
    for name in names {
        let mut scenario = Scenario::find(&name, &folder)?;
        if let Some(seed) = arguments.jitter {
            scenario = scenario.jittered(seed);
        }
        scenario.callers.number = arguments.clients.unwrap_or(scenario.callers.number);
        scenario.belief = arguments.belief.unwrap_or(scenario.belief);
        scenarios.push(scenario.checked()?);
    }
    Ok(scenarios)
}

/// Beside what cargo builds: the plans of the oracle belong to a build.
fn cache_folder() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    Some(program.parent()?.parent()?.join("sim-oracles"))
}
