//! A small trial of the real thing: processes, signals, files.

use std::process::Command;

fn survives(seed: &str, rows: &str, kills: &str, more: &[&str]) {
    let trial = Command::new(env!("CARGO_BIN_EXE_pelton-trials"))
        .args([
            "chaos",
            "--kills",
            kills,
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
    assert!(said.contains(&format!("lost=0 duplicated=0 wrong=0 kills={kills}")), "{said}");
}

#[test]
fn kills_and_stops_lose_nothing() {
    survives("1", "8000", "6", &["--stop", "--faults", "0"]);
}

#[test]
fn instances_that_hang_and_crawl_and_are_out_of_reach_lose_nothing() {
    survives("2", "24000", "6", &["--faults", "4"]);
}

#[test]
fn servers_that_refuse_and_talk_rubbish_and_say_nothing_lose_nothing() {
    survives("3", "5000", "3", &["--remote", "--stop", "--faults", "3"]);
}
