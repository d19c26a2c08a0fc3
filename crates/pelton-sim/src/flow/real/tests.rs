use std::path::Path;

use super::*;
use crate::flow::oracle;
use crate::flow::score::Score;

/// A scenario of the folder, cut to this length.
fn shortened(name: &str, length: f64) -> Scenario {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut scenario = Scenario::find(name, &folder).unwrap_or_else(|e| panic!("{e}"));
    let by = length / scenario.length;
    scenario.length = length;
    scenario.regimes.iter_mut().for_each(|regime| regime.at *= by);
    scenario
}

#[test]
fn a_seed_decides() {
    let scenario = shortened("P1", 10.0);
    assert_eq!(play(&scenario, 3), play(&scenario, 3));
    assert_ne!(play(&scenario, 3), play(&scenario, 4));
}

/// Whatever else changes: on a backend with a memory cliff, the real code stays below it and near the best that there is.
#[test]
fn it_stays_near_the_oracle_and_below_the_cliff() {
    let scenario = shortened("P1", 60.0);
    let oracle = oracle::play(&scenario, 1, &oracle::search(&scenario, 1));
    let run = play(&scenario, 1);
    let score = Score::of(&scenario, &run, &oracle);
    assert_eq!(run.out_of_memory, 0, "{score:?}");
    assert!(score.ratio >= 0.9, "{score:?}");
    assert_eq!(score.jain, 1.0, "one caller: {score:?}");
}

#[test]
fn a_memory_that_is_believed_too_large_is_not_overrun() {
    let scenario = Scenario { belief: 1.4, ..shortened("P1", 60.0) };
    let run = play(&scenario, 1);
    assert_eq!(run.out_of_memory, 0);
    assert!(run.total() > 0.0);
}

/// Callers share alike, and a replica that is gone takes with it no more than its share.
#[test]
fn replicas_come_and_go() {
    let scenario = shortened("P5", 24.0);
    let run = play(&scenario, 1);
    let shares = &run.good_by_caller;
    let (least, most) = shares.iter().fold((f64::INFINITY, 0.0f64), |(l, m), s| (l.min(*s), m.max(*s)));
    assert!(least > 0.9 * most, "{shares:?}");
    assert_eq!(run.out_of_memory, 0);
    // The last quarter is without replica 2: three quarters of what there was at first.
    let ratio = run.good[3] / run.good[0];
    assert!((0.65..0.85).contains(&ratio), "{:?}", run.good);
}

#[test]
fn a_source_with_a_rate_is_answered_in_time() {
    let text = r#"
        name = "open"
        length = "20s"
        callers = { number = 3, deadline = "500ms" }
        backend = { kind = "batching", run = "20ms", per_cost = "4ms", max_rows = 32 }
        work = { rate = 60.0, burst = { times = 3.0, lasts = "1s", every = "4s" } }
        regimes = [{ at = "0s", name = "only" }]
    "#;
    let scenario = Scenario::from_toml(text, "open").unwrap();
    let run = play(&scenario, 1);
    assert!((1000.0..1400.0).contains(&run.total()), "{}", run.total());
    assert!(run.late < 0.02 * run.total(), "{} late of {}", run.late, run.total());
}
