//! A small trial of the real thing: processes, signals, files.

use std::process::Command;

fn survives(seed: &str, rows: &str, more: &[&str]) {
    let trial = Command::new(env!("CARGO_BIN_EXE_pelton-trials"))
        .args([
            "chaos",
            "--kills",
            "6",
            "--rows",
            rows,
            "--row-micros",
            "2000",
            "--limit",
            "90",
            "--seed",
            seed,
        ])
        .args(more)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&trial.stdout);
    assert!(trial.status.success(), "{said}\n{}", String::from_utf8_lossy(&trial.stderr));
    assert!(said.contains("lost=0 duplicated=0 wrong=0 kills=6"), "{said}");
}

#[test]
fn kills_and_stops_lose_nothing() {
    survives("1", "8000", &["--stop", "--faults", "0"]);
}

#[test]
fn instances_that_hang_and_crawl_and_are_out_of_reach_lose_nothing() {
    survives("2", "24000", &["--faults", "4"]);
}
