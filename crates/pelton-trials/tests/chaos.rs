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
    for sink in ["JSON lines", "Parquet"] {
        assert!(said.contains(&format!("{sink}: lost=0 duplicated=0 wrong=0")), "{said}");
    }
}

#[test]
fn kills_and_stops_lose_nothing() {
    survives("1", "8000", "6", &["--stop", "--faults", "0"]);
}

#[test]
fn instances_that_hang_and_crawl_and_are_out_of_reach_lose_nothing() {
    survives("2", "24000", "3", &["--faults", "6"]);
}

#[test]
fn a_full_disk_loses_nothing() {
    let may_mount = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).output();
    if !may_mount.is_ok_and(|tried| tried.status.success()) {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "SKIPPED: no user name spaces here, so no disk that can be full");
        return;
    }
    survives("4", "8000", "3", &["--faults", "2", "--full-disk"]);
}

#[test]
fn servers_that_refuse_and_talk_rubbish_and_say_nothing_lose_nothing() {
    survives("3", "5000", "3", &["--remote", "--stop", "--faults", "3"]);
}
