//! Plays scenarios with several algorithms under several seeds, on all cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::algorithm::Algorithm;
use super::oracle::{self, Cache};
use super::record::Record;
use super::scenario::Scenario;
use super::score::{Score, Summary};

/// What is played.
pub struct Suite {
    pub scenarios: Vec<Scenario>,
    pub algorithms: Vec<Algorithm>,
    pub seeds: Vec<u64>,
}

/// One scenario with one algorithm.
#[derive(Clone, Debug)]
pub struct Row {
    pub scenario: usize,
    pub algorithm: Algorithm,
    pub summary: Summary,
}

impl Suite {
    /// Plays all of it. `progress` hears what is done.
    pub fn play(&self, cache: &Cache, progress: &(dyn Fn(String) + Sync)) -> Vec<Row> {
        let seeds = &self.seeds;
        let questions: Vec<(usize, u64)> =
            (0..self.scenarios.len()).flat_map(|s| seeds.iter().map(move |seed| (s, *seed))).collect();
        let oracles: Vec<Record> = on_all_cores(&questions, |&(scenario, seed)| {
            let scenario = &self.scenarios[scenario];
            let plan = cache.plan(scenario, seed);
            progress(format!("{}, seed {seed}: oracle's windows {plan:?}", scenario.name));
            oracle::play(scenario, seed, &plan)
        });
        let runs: Vec<(usize, Algorithm, usize)> = (0..self.scenarios.len())
            .flat_map(|s| self.algorithms.iter().map(move |a| (s, *a)))
            .flat_map(|(s, a)| (0..seeds.len()).map(move |seed| (s, a, seed)))
            .collect();
        let scores: Vec<Score> = on_all_cores(&runs, |&(s, algorithm, seed)| {
            let scenario = &self.scenarios[s];
            let record = algorithm.play(scenario, seeds[seed]);
            let score = Score::of(scenario, &record, &oracles[s * seeds.len() + seed]);
            progress(format!("{}, seed {}: {algorithm} {:.3}", scenario.name, seeds[seed], score.ratio));
            score
        });
        (runs.chunks(seeds.len()).zip(scores.chunks(seeds.len())))
            .map(|(runs, scores)| Row {
                scenario: runs[0].0,
                algorithm: runs[0].1,
                summary: Summary::of(scores),
            })
            .collect()
    }
}

/// Does the same with each, as many at a time as there are cores; the results are in the order of the items.
pub fn on_all_cores<T: Sync, R: Send>(items: &[T], f: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(i) else { return };
                    let result = f(item);
                    done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((i, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}
