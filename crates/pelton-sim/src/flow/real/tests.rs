use super::*;
use std::path::Path;

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
