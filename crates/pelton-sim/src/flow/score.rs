//! How well a run did beside the oracle's.

use serde::Serialize;

use super::record::{Record, SLICES};
use super::scenario::Scenario;

/// One run beside the oracle's of the same scenario and seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Goodput over the oracle's.
    pub ratio: f64,
    /// The same by regime.
    pub regimes: Vec<f64>,
    /// The 99th percentile of what answers took, as a share of their deadline.
    pub p99_over_deadline: f64,
    pub oom: f64,
    pub refusals_per_1000: f64,
    pub failures_per_1000: f64,
    pub preemptions: f64,
    /// Seconds from a shift (and from the start) until goodput is at 90 % of the oracle's; the mean of all regimes.
    pub reconverge_s: f64,
    /// Jain's index of the callers' goodput: 1 where all have the same.
    pub jain: f64,
    /// Answers in time, a second.
    pub goodput: f64,
}

impl Score {
    pub fn of(scenario: &Scenario, run: &Record, oracle: &Record) -> Self {
        let per_1000 = |n: u64| 1000.0 * n as f64 / (run.calls as f64).max(1.0);
        Score {
            ratio: run.total() / oracle.total().max(1.0),
            regimes: run.good.iter().zip(&oracle.good).map(|(run, oracle)| run / oracle.max(1.0)).collect(),
            p99_over_deadline: run.lateness.quantile(0.99),
            oom: run.out_of_memory as f64,
            refusals_per_1000: per_1000(run.refused),
            failures_per_1000: per_1000(run.failed),
            preemptions: run.preempted as f64,
            reconverge_s: reconverge(scenario, run, oracle),
            jain: jain(&run.good_by_caller),
            goodput: run.total() / scenario.length,
        }
    }

    pub fn worst_regime(&self) -> f64 {
        self.regimes.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// Several runs under different seeds: means, but for what is said to be the worst.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub ratio: f64,
    pub ratio_worst_seed: f64,
    /// The worst of all regimes of all seeds.
    pub worst_regime: f64,
    pub p99_over_deadline: f64,
    /// All seeds together.
    pub oom: f64,
    pub refusals_per_1000: f64,
    pub failures_per_1000: f64,
    pub preemptions: f64,
    pub reconverge_s: f64,
    pub jain: f64,
    pub goodput: f64,
    /// By regime.
    pub regimes: Vec<f64>,
}

impl Summary {
    /// Of at least one score.
    pub fn of(scores: &[Score]) -> Self {
        let mean = |f: &dyn Fn(&Score) -> f64| scores.iter().map(f).sum::<f64>() / scores.len() as f64;
        let least = |f: &dyn Fn(&Score) -> f64| scores.iter().map(f).fold(f64::INFINITY, f64::min);
        Summary {
            ratio: mean(&|s| s.ratio),
            ratio_worst_seed: least(&|s| s.ratio),
            worst_regime: least(&Score::worst_regime),
            p99_over_deadline: mean(&|s| s.p99_over_deadline),
            oom: scores.iter().map(|s| s.oom).sum(),
            refusals_per_1000: mean(&|s| s.refusals_per_1000),
            failures_per_1000: mean(&|s| s.failures_per_1000),
            preemptions: mean(&|s| s.preemptions),
            reconverge_s: mean(&|s| s.reconverge_s),
            jain: mean(&|s| s.jain),
            goodput: mean(&|s| s.goodput),
            regimes: (0..scores[0].regimes.len()).map(|i| mean(&|s| s.regimes[i])).collect(),
        }
    }
}

/// Of the oracle's mean in a regime.
const CONVERGED: f64 = 0.9;
/// Goodput is smoothed over this share of a regime.
const SMOOTHED: usize = 8;

fn reconverge(scenario: &Scenario, run: &Record, oracle: &Record) -> f64 {
    let slice = run.slice();
    let times = scenario.regimes.iter().enumerate().map(|(i, regime)| {
        let (begins, ends) = (regime.at, scenario.regime_end(i));
        let wanted = CONVERGED * oracle.good[i] / (ends - begins) * slice;
        let (first, last) = ((begins / slice).ceil() as usize, ((ends / slice) as usize).min(SLICES));
        let width = (last.saturating_sub(first) / SMOOTHED).max(4);
        let starts = first..last.saturating_sub(width);
        let reached = starts.clone().find(|&start| {
            run.good_by_slice[start..start + width].iter().sum::<f64>() / width as f64 >= wanted
        });
        reached.map_or(ends - begins, |start| (start - first) as f64 * slice)
    });
    times.sum::<f64>() / scenario.regimes.len() as f64
}

/// Jain, Chiu and Hawe, "A Quantitative Measure of Fairness", 1984.
fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    if squares == 0.0 { 0.0 } else { sum * sum / (shares.len() as f64 * squares) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fairness_is_one_for_equals_and_a_share_for_one_alone() {
        assert_eq!(jain(&[3.0, 3.0, 3.0]), 1.0);
        assert_eq!(jain(&[9.0, 0.0, 0.0]), 1.0 / 3.0);
        assert_eq!(jain(&[0.0, 0.0]), 0.0);
    }

    #[test]
    fn reconvergence_counts_from_each_shift() {
        let scenario = Scenario::from_toml(
            r#"
            name = "two"
            length = "40s"
            callers = { deadline = "1s" }
            backend = { kind = "batching", run = "1ms", per_cost = "1ms", max_rows = 1 }
            regimes = [{ at = "0s", name = "first" }, { at = "20s", name = "second" }]
            "#,
            "two",
        )
        .unwrap();
        let record = |from_first: usize, from_second: usize| {
            let mut record = Record::new(&scenario, 1);
            for slice in 0..SLICES {
                if slice >= 200 + from_second || (slice < 200 && slice >= from_first) {
                    let at = crate::flow::clock::at((slice as f64 + 0.5) * record.slice());
                    record.answered(at, usize::from(slice >= 200), 0, 10.0, 0.5);
                }
            }
            record
        };
        let (oracle, run) = (record(0, 0), record(20, 40));
        assert_eq!(reconverge(&scenario, &oracle, &oracle), 0.0);
        // 2 s and 4 s, less what the smoothing over 25 slices lets pass.
        let took = reconverge(&scenario, &run, &oracle);
        assert!((2.4..=3.0).contains(&took), "{took}");
        let score = Score::of(&scenario, &run, &oracle);
        assert!((score.ratio - 0.85).abs() < 1e-9 && (score.worst_regime() - 0.8).abs() < 1e-9, "{score:?}");
    }
}
