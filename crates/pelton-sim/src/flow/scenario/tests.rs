use super::*;

const SMALL: &str = r#"
name = "small"
length = "10s"
replicas = 2

[callers]
deadline = "1s"

[backend]
kind = "batching"
run = "20ms"
per_cost = "4ms"
max_rows = 32

[[regimes]]
at = "0s"
name = "first"

[[regimes]]
at = "4s"
name = "second"
slow = 2.0
backend = { run = "50ms" }
replicas = [{ number = 1, slow = 3.0, backend = { max_rows = 8 } }]
"#;

#[test]
fn a_regime_says_only_what_is_different() {
    let scenario = Scenario::from_toml(SMALL, "small").unwrap();
    let all: Vec<(f64, f64, u32)> = (scenario.regimes.iter().flat_map(|r| &r.replicas))
        .map(|replica| match &replica.backend {
            Backend::Batching(b) => (replica.slow, b.run.get(), b.max_rows),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(all, [(1.0, 0.02, 32), (1.0, 0.02, 32), (2.0, 0.05, 32), (3.0, 0.05, 8)]);
    assert_eq!([0.0, 3.9, 4.0, 99.0].map(|t| scenario.regime_at(t)), [0, 0, 1, 1]);
    assert_eq!((scenario.regime_end(0), scenario.regime_end(1)), (4.0, 10.0));
}

/// What is said of the small scenario with one piece of text in another's place.
fn check(old: &str, new: &str, expected: &str) {
    assert!(SMALL.contains(old), "{old}");
    let message = Scenario::from_toml(&SMALL.replacen(old, new, 1), "small").expect_err(new);
    assert!(message.contains(expected), "{new}: {message}");
}

#[test]
fn what_is_wrong_is_named() {
    check("replicas = 2", "replica = 2", "unknown field `replica`");
    check("deadline = \"1s\"", "", "missing field `deadline`");
    check("deadline = \"1s\"", "deadline = \"soon\"", "deadline");
    check("run = \"20ms\"", "runs = \"20ms\"", "regime `first`: backend: ");
    check("kind = \"batching\"", "kind = \"quantum\"", "unknown variant `quantum`");
    check("slow = 2.0", "slow = 0.0", "regime `second`: `slow` must be above 0");
    check("slow = 2.0", "failing = 2.0", "`failing` is a share");
    check("number = 1", "number = 2", "`replicas.number` 2 is not one of 0 to 1");
    check("at = \"4s\"", "at = \"14s\"", "regime `second` begins at 14s");
    check("at = \"0s\"", "at = \"1s\"", "the first regime must begin");
    check("max_rows = 32", "max_rows = 0", "`backend.max_rows` must be above 0");
    check("slow = 2.0", "work = { output = { median = 3.0 } }", "`work.output` is for language models");
    check(
        "slow = 2.0",
        "work = { burst = { times = 2.0, lasts = \"1s\", every = \"4s\" } }",
        "needs `work.rate`",
    );
    check(
        "slow = 2.0",
        "work = { rate = 5.0, burst = { times = 9.0, lasts = \"1s\", every = \"4s\" } }",
        "leaves less than nothing",
    );
    let missing = Scenario::find("nowhere", Path::new("nowhere")).unwrap_err();
    assert!(missing.contains("there is no scenario `nowhere`"), "{missing}");
}

#[test]
fn bursts_keep_the_mean_rate() {
    let burst = Burst { times: 3.0, lasts: Seconds::new(1.0), every: Seconds::new(4.0) };
    let work = Work { cost: Spread::exactly(1.0), output: None, rate: Some(10.0), burst: Some(burst) };
    let rates: Vec<f64> = (0..4).filter_map(|t| work.rate_at(f64::from(t))).collect();
    assert_eq!(rates[0], 30.0);
    assert!((rates.iter().sum::<f64>() / 4.0 - 10.0).abs() < 1e-9);
}

#[test]
fn jitter_moves_capacities_within_bounds_and_the_same_each_time() {
    let scenario = Scenario::from_toml(SMALL, "small").unwrap();
    let jittered = scenario.clone().jittered(3);
    assert_eq!(jittered, scenario.clone().jittered(3));
    assert_ne!(jittered, scenario.clone().jittered(4));
    for (was, is) in scenario.regimes.iter().zip(&jittered.regimes) {
        let (Backend::Batching(was), Backend::Batching(is)) =
            (&was.replicas[0].backend, &is.replicas[0].backend)
        else {
            panic!("another kind")
        };
        let factor = is.run.get() / was.run.get();
        assert!((0.75..=1.334).contains(&factor) && factor != 1.0, "{factor}");
    }
}

#[test]
fn all_scenarios_of_this_folder_are_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let names = names(&folder);
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        let scenario = Scenario::find(&name, &folder).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(scenario.name, name);
    }
}
