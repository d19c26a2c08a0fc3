//! What hindsight finds: for each regime the fixed window that answers most in time, switched at the very moment of the shift.
//!
//! All callers are one, with one window for each replica. First every window of a grid is held throughout; the best of each
//! regime are put together; then each is moved, one at a time, as long as that helps the whole.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use pelton_core::id::stable_hash;

use super::record::Record;
use super::scenario::Scenario;
use super::windowed::{self, Limits};

/// Windows by regime, then by replica.
pub type Plan = Vec<Vec<f64>>;

/// From one window of the grid to the next.
const GRID: f64 = 1.25;
/// How much more a larger window must answer to be taken instead of a smaller one.
const BETTER_IN_A_REGIME: f64 = 1.002;
const BETTER_IN_ALL: f64 = 1.0005;
/// What is tried of a window that several replicas share, and of one replica's own.
const MOVES: [f64; 6] = [0.5, 0.7, 0.85, 1.15, 1.35, 1.8];
const MOVES_APART: [f64; 6] = [0.05, 0.15, 0.3, 0.5, 0.7, 1.4];
const PASSES: usize = 2;
/// A pass that helps less than this is the last.
const WORTH_A_PASS: f64 = 1.003;

/// Plays the scenario with these windows.
pub fn play(scenario: &Scenario, seed: u64, plan: &Plan) -> Record {
    windowed::play(scenario, seed, &Limits::Planned(plan))
}

/// The best windows for a scenario under a seed.
pub fn search(scenario: &Scenario, seed: u64) -> Plan {
    let mut plan = best_of_grid(scenario, seed);
    let mut best = play(scenario, seed, &plan).total();
    for _ in 0..PASSES {
        let before = best;
        for regime in 0..scenario.regimes.len() {
            for group in groups(scenario) {
                let window = plan[regime][group[0]];
                let apart = group.len() == 1 && scenario.replicas() > 1;
                for by in if apart { MOVES_APART } else { MOVES } {
                    let mut moved = plan.clone();
                    for &replica in &group {
                        moved[regime][replica] = (window * by).round().max(1.0);
                    }
                    if moved[regime] == plan[regime] {
                        continue;
                    }
                    let total = play(scenario, seed, &moved).total();
                    if total > best * BETTER_IN_ALL {
                        (best, plan) = (total, moved);
                    }
                }
            }
        }
        if best < before * WORTH_A_PASS {
            break;
        }
    }
    plan
}

fn best_of_grid(scenario: &Scenario, seed: u64) -> Plan {
    let mut best = vec![(0.0, 1.0); scenario.regimes.len()];
    for window in grid(scenario.oracle.from, scenario.oracle.to) {
        let plan = vec![vec![window; scenario.replicas()]; scenario.regimes.len()];
        let record = play(scenario, seed, &plan);
        for (best, good) in best.iter_mut().zip(record.good) {
            if good > best.0 * BETTER_IN_A_REGIME {
                *best = (good, window);
            }
        }
    }
    best.into_iter().map(|(_, window)| vec![window; scenario.replicas()]).collect()
}

fn grid(from: f64, to: f64) -> Vec<f64> {
    let mut windows: Vec<f64> = Vec::new();
    let mut next = from;
    while next <= to * 1.001 {
        windows.push(next.round().max(1.0));
        next *= GRID;
    }
    windows.dedup();
    windows
}

/// Replicas that are moved together.
fn groups(scenario: &Scenario) -> Vec<Vec<usize>> {
    let apart = &scenario.oracle.apart;
    let together: Vec<usize> = (0..scenario.replicas()).filter(|r| !apart.contains(r)).collect();
    let mut groups = vec![together];
    groups.extend(apart.iter().map(|&replica| vec![replica]));
    groups.retain(|group| !group.is_empty());
    groups
}

/// Keeps plans that were found, by everything that they depend on.
pub struct Cache {
    folder: Option<PathBuf>,
}

/// What decides a plan beside the scenario and the seed: the code of the models and of windowed callers.
const CODE: &[&str] = &[
    include_str!("backend.rs"),
    include_str!("backend/batching.rs"),
    include_str!("backend/cpu.rs"),
    include_str!("backend/gateway.rs"),
    include_str!("backend/language_model.rs"),
    include_str!("clock.rs"),
    include_str!("draw.rs"),
    include_str!("oracle.rs"),
    include_str!("record.rs"),
    include_str!("windowed.rs"),
    include_str!("windowed/breaker.rs"),
    include_str!("windowed/caller.rs"),
];

impl Cache {
    /// A cache in this folder, made when the first plan is kept; without a folder nothing is kept.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Cache { folder }
    }

    /// The plan for a scenario and seed, found now or earlier.
    pub fn plan(&self, scenario: &Scenario, seed: u64) -> Plan {
        let Some(folder) = &self.folder else { return search(scenario, seed) };
        let path = folder.join(format!("{}-{seed}-{:016x}.json", scenario.name, key(scenario, seed)));
        if let Some(plan) = read(&path).filter(|plan| fits(scenario, plan)) {
            return plan;
        }
        let plan = search(scenario, seed);
        if let Err(e) = write(&path, &plan) {
            eprintln!("the oracle's windows cannot be kept at {}: {e}", path.display());
        }
        plan
    }
}

fn key(scenario: &Scenario, seed: u64) -> u64 {
    // One merged stream of all callers: how many there are, and what an instance believes, changes nothing.
    let mut scenario = scenario.clone();
    (scenario.callers.number, scenario.belief) = (1, 1.0);
    let mut text = format!("{seed} {scenario:?}");
    CODE.iter().for_each(|code| {
        let _ = write!(text, " {:x}", stable_hash(code));
    });
    stable_hash(&text)
}

fn fits(scenario: &Scenario, plan: &Plan) -> bool {
    plan.len() == scenario.regimes.len() && plan.iter().all(|windows| windows.len() == scenario.replicas())
}

fn read(path: &Path) -> Option<Plan> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

/// By way of another name, so that a run that is interrupted leaves nothing half written.
fn write(path: &Path, plan: &Plan) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let draft = path.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&draft, serde_json::to_string(plan)?)?;
    std::fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCENARIO: &str = r#"
        name = "two windows"
        length = "20s"
        callers = { deadline = "600ms" }
        oracle = { from = 2.0, to = 64.0 }
        backend = { kind = "batching", run = "50ms", per_cost = "1ms", max_rows = 16, memory = 60.0, reload = "5s" }
        regimes = [
            { at = "0s", name = "quick" },
            { at = "10s", name = "slow, and a cliff that is near", slow = 3.0, backend = { memory = 20.0 } },
        ]
    "#;

    #[test]
    fn it_finds_the_window_of_each_regime() {
        let scenario = Scenario::from_toml(SCENARIO, "two windows").unwrap();
        let plan = search(&scenario, 1);
        // Two full batches in the first; in the second, just below the cliff.
        assert!((24.0..=56.0).contains(&plan[0][0]) && (10.0..=20.0).contains(&plan[1][0]), "{plan:?}");
        let found = play(&scenario, 1, &plan);
        assert_eq!(found.out_of_memory, 0);
        for window in [4.0, 16.0, 32.0, 64.0] {
            let fixed = play(&scenario, 1, &vec![vec![window]; 2]).total();
            assert!(fixed <= found.total() * 1.001, "{window}: {fixed} of {}", found.total());
        }
    }

    #[test]
    fn plans_are_kept_for_the_same_question_only() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(Some(folder.path().to_owned()));
        let mut scenario = Scenario::from_toml(SCENARIO, "two windows").unwrap();
        scenario.oracle.to = 2.0;
        let files = || std::fs::read_dir(folder.path()).unwrap().count();
        let plan = cache.plan(&scenario, 1);
        assert_eq!((cache.plan(&scenario, 1), files()), (plan, 1));
        cache.plan(&scenario, 2);
        scenario.callers.deadline = 0.4;
        cache.plan(&scenario, 1);
        assert_eq!(files(), 3);
    }
}
