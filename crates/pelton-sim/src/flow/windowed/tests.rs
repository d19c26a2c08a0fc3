use super::*;
use crate::flow::window::{Aimd, Fixed};

fn scenario(backend: &str, work: &str) -> Scenario {
    let text = format!(
        r#"
        name = "one"
        length = "20s"
        callers = {{ deadline = "1s", network = "1ms" }}
        backend = {{ {backend} }}
        work = {{ {work} }}
        regimes = [{{ at = "0s", name = "only" }}]
        "#
    );
    Scenario::from_toml(&text, "one").unwrap()
}

fn fixed(scenario: &Scenario, window: f64) -> Record {
    play(scenario, 1, &Limits::Planned(&[vec![window]]))
}

const BATCHING: &str = r#"kind = "batching", run = "20ms", per_cost = "4ms", noise = 0.0, max_rows = 32"#;

#[test]
fn a_window_gives_what_the_formula_says() {
    // Batches of `m` behind one another: m / (20 ms + m * 4 ms), if another batch waits while one runs.
    for (window, batch) in [(64.0, 32.0), (16.0, 8.0)] {
        let record = fixed(&scenario(BATCHING, ""), window);
        let expected = 20.0 * batch / (0.020 + 0.004 * batch);
        let got = record.total();
        assert!((got / expected - 1.0).abs() < 0.02, "window {window}: {got} of {expected}");
        assert_eq!((record.refused, record.out_of_memory, record.late), (0, 0, 0.0));
    }
}

#[test]
fn too_large_a_window_is_late() {
    let record = fixed(&scenario(BATCHING, ""), 400.0);
    assert!(record.late > 5.0 * record.total(), "{} late, {} good", record.late, record.total());
}

#[test]
fn a_source_with_a_rate_is_not_overrun() {
    let scenario = scenario(BATCHING, "rate = 50.0, burst = { times = 3.0, lasts = \"1s\", every = \"4s\" }");
    let record = fixed(&scenario, 64.0);
    let rate = record.total() / scenario.length;
    assert!((40.0..60.0).contains(&rate), "{rate}");
    assert!(
        record.good_by_slice[0..20].iter().sum::<f64>()
            > 2.0 * record.good_by_slice[40..60].iter().sum::<f64>()
    );
}

#[test]
fn a_seed_decides() {
    let scenario = scenario(BATCHING, "cost = { median = 1.0, sigma = 0.5 }");
    let play = |seed| play(&scenario, seed, &Limits::Windows(&|_| Box::new(Aimd::default())));
    assert_eq!(play(3), play(3));
    assert_ne!(play(3), play(4));
}

#[test]
fn a_replica_that_is_gone_is_asked_now_and_then_only() {
    let mut scenario = scenario(BATCHING, "");
    let another = scenario.regimes[0].replicas[0].clone();
    scenario.regimes[0].replicas.push(another);
    scenario.regimes[0].replicas[1].removed = true;
    let record = play(&scenario, 1, &Limits::Windows(&|_| Box::new(Fixed(32.0))));
    assert!((5..60).contains(&record.failed), "{} failed", record.failed);
    let alone = fixed(&self::scenario(BATCHING, ""), 32.0).total();
    assert!(record.total() > 0.98 * alone, "{} of {alone}", record.total());
}
