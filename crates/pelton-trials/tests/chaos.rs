//! A small trial of the real thing: processes, signals, files.

use std::process::Command;

fn survives(seed: &str, more: &[&str]) {
    let trial = Command::new(env!("CARGO_BIN_EXE_pelton-trials"))
        .args([
            "chaos",
            "--kills",
            "6",
            "--rows",
            "8000",
            "--row-micros",
            "2000",
            "--limit",
            "60",
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
    survives("1", &["--stop"]);
}
