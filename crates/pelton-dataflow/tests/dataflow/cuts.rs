//! The power is cut, or the disk fails, at every single operation of a run: what was promised holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pelton_core::Kind;
use pelton_dataflow::job::{End, Options};
use pelton_env::Storage;
use pelton_env::simulated::{EIO, ENOSPC, Fault, Machine};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::site::{STATE, Site, rows, usual};
use crate::support::{Answer, Log, kill, simulate};

/// How a new run comes upon what the one before left.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// The process was killed; the machine is still on.
    Process,
    /// The machine was off.
    Reboot,
}

impl Next {
    fn storage(self, machine: &Machine) -> Arc<dyn Storage> {
        match self {
            Next::Process => machine.process(),
            Next::Reboot => machine.reboot(),
        }
    }
}

/// A run, then one that goes on; with a cut in the first, and perhaps in the second.
async fn cut(seed: u64, first: u64, second: Option<u64>, then: Next) {
    let said = format!("seed {seed}, cut at {first} and {second:?}, then {then:?}");
    let site = Site::new(seed);
    let disk = site.machine.process();
    site.machine.arm(first, Fault::Cut);
    let mut complete = site.run(disk, usual()).await.complete;
    let said = format!("{said}; {}", site.machine.last());
    let mut disk = then.storage(&site.machine);
    let mut visible = site.visible();
    if let Some(second) = second {
        site.machine.arm(second, Fault::Cut);
        let ran = site.run(disk, usual()).await;
        complete = complete.max(ran.complete);
        disk = Next::Reboot.storage(&site.machine);
        let now = site.visible();
        // Between a kill and a cut, a name may be seen that is not durable; never one that a complete checkpoint covers.
        if matches!(then, Next::Reboot) {
            assert!(visible.iter().all(|(name, content)| now.get(name) == Some(content)), "{said}");
        }
        visible = now;
    }
    site.machine.mend();
    let summary = site.run(disk, usual()).await.result.unwrap_or_else(|e| panic!("{said}: {e}"));
    assert!(summary.restored_from.unwrap_or(0) >= complete, "{said}: {complete} was complete");
    let now = site.visible();
    assert!(visible.iter().all(|(name, content)| now.get(name) == Some(content)), "{said}");
    site.check_all_rows_once(&said);
}

/// How many operations a run without faults needs, and how many changes.
fn operations() -> (u64, u64) {
    simulate(async {
        let site = Site::new(0);
        let ran = site.run(site.machine.process(), usual()).await;
        let summary = ran.result.unwrap();
        assert!(summary.checkpoints >= 3, "{} checkpoints", summary.checkpoints);
        site.check_all_rows_once("no faults");
        (site.machine.operations(), site.machine.changes())
    })
}

#[test]
fn a_cut_at_any_operation_loses_and_doubles_nothing() {
    let (_, changes) = operations();
    for seed in 0..3 {
        for at in 0..changes {
            simulate(cut(seed, at, None, Next::Reboot));
        }
    }
}

#[test]
fn a_second_cut_while_it_recovers_loses_and_doubles_nothing() {
    let (_, changes) = operations();
    for at in 0..changes {
        let mut rng = StdRng::seed_from_u64(at);
        for (seed, then) in [(1, Next::Reboot), (2, Next::Process), (3, Next::Process)] {
            // Most of what is special happens at the start.
            let second = rng.random_range(0..if seed < 3 { 20 } else { changes });
            simulate(cut(seed, at, Some(second), then));
        }
    }
}

#[test]
fn a_disk_that_fails_fails_the_job_in_plain_words_and_the_next_run_is_right() {
    let (all, _) = operations();
    for (fault, says) in [
        (Fault::Fails(ENOSPC), "the disk is full: see `df -h /"),
        (Fault::FailsOn(ENOSPC), "the disk is full: see `df -h /"),
        (Fault::Fails(EIO), "the device reported an error: see `dmesg`"),
    ] {
        for at in 0..all {
            let then = if at % 2 == 0 { Next::Process } else { Next::Reboot };
            simulate(async {
                let said = format!("{fault:?} at {at}, then {then:?}");
                let site = Site::new(at);
                let disk = site.machine.process();
                site.machine.arm(at, fault);
                let ran = site.run(disk, usual()).await;
                let said = format!("{said}; {}", site.machine.last());
                if let Err(e) = &ran.result {
                    assert_eq!(e.kind(), Kind::Storage, "{said}: {e}");
                    assert!(e.message().contains(says), "{said}: {e}");
                    assert!(e.message().contains("try again (a job that ended goes on"), "{said}: {e}");
                    assert!(e.message().contains(" /"), "{said}: {e} names no path");
                }
                site.machine.mend();
                let next = site.run(then.storage(&site.machine), usual()).await;
                let summary = next.result.unwrap_or_else(|e| panic!("{said}: {e}"));
                assert!(summary.restored_from.unwrap_or(0) >= ran.complete, "{said}");
                site.check_all_rows_once(&said);
            });
        }
    }
}

/// A site that has some checkpoints, and whose job was killed. The first of them covers no output: nothing is answered by then.
async fn begun(seed: u64, checkpoints: u64) -> (Site, u64) {
    let site = Site::new(seed);
    let ran = site.run_until(site.machine.process(), usual(), |n| n >= checkpoints).await;
    assert_eq!(ran.result.unwrap_err().message(), "killed by the test");
    // Going back asks again for what was acknowledged.
    *site.log.lock().unwrap() = Log::default();
    let files = site.machine.files(Path::new(STATE));
    let number =
        |name: &String| name.strip_prefix("checkpoint-")?.strip_suffix("/manifest.json")?.parse().ok();
    let newest = files.keys().filter_map(number).max().unwrap();
    (site, newest)
}

#[test]
fn a_cut_while_the_job_goes_back_to_an_older_checkpoint_loses_and_doubles_nothing() {
    let back = |number| Options { restore_from: Some(number), ..usual() };
    let all = simulate(async {
        let (site, newest) = begun(0, 3).await;
        let before = site.machine.changes();
        let summary = site.run(site.machine.process(), back(newest - 1)).await.result.unwrap();
        assert_eq!(summary.restored_from, Some(newest - 1));
        site.check_all_rows_once("back");
        site.machine.changes() - before
    });
    for seed in 0..3 {
        for at in 0..all {
            simulate(async {
                let said = format!("seed {seed}, cut at {at}");
                let (site, newest) = begun(seed, 2 + seed % 2).await;
                let disk = site.machine.process();
                site.machine.arm(at, Fault::Cut);
                let ran = site.run(disk, back(newest - 1)).await;
                let said = format!("{said}; {}", site.machine.last());
                let disk = site.machine.reboot();
                *site.log.lock().unwrap() = Log::default();
                let next = site.run(disk, usual()).await;
                let summary = next.result.unwrap_or_else(|e| panic!("{said}: {e}"));
                assert!(summary.restored_from >= Some(newest - 1), "{said}");
                assert!(summary.restored_from >= Some(ran.complete), "{said}: {} was complete", ran.complete);
                site.check_all_rows_once(&said);
            });
        }
    }
}

#[test]
fn a_cut_while_all_is_forgotten_leaves_a_job_that_can_be_started() {
    for seed in 0..3 {
        for at in 0..30 {
            simulate(async {
                let said = format!("seed {seed}, cut at {at}");
                let (site, _) = begun(seed, 2).await;
                let disk = site.machine.process();
                site.machine.arm(at, Fault::Cut);
                let _ = site.run(disk, Options { fresh: true, ..usual() }).await;
                *site.log.lock().unwrap() = Log::default();
                let next = site.run(site.machine.reboot(), usual()).await;
                let summary = next.result.unwrap_or_else(|e| panic!("{said}: {e}"));
                assert!(matches!(summary.end, End::Finished | End::AlreadyFinished), "{said}");
                let mut rows: Vec<i64> = site.visible().values().flat_map(|content| rows(content)).collect();
                rows.sort_unstable();
                rows.dedup();
                assert_eq!(rows, site.numbers.all(), "{said}");
            });
        }
    }
}

#[test]
fn damage_to_any_file_of_a_checkpoint_is_found_and_named_and_the_one_before_is_offered() {
    simulate(async {
        let (site, newest) = begun(7, 3).await;
        let folder = PathBuf::from(STATE).join(format!("checkpoint-{newest:06}"));
        let files = site.machine.files(&folder);
        assert_eq!(files.len(), 2, "{:?}", files.keys());
        let refused = async |path: &Path, what: String| {
            let ran = site.run(site.machine.process(), usual()).await;
            let error = ran.result.expect_err(&what);
            let before = newest - 1;
            for part in [
                format!("checkpoint {newest} in {STATE} cannot be restored: "),
                format!("{} is damaged", path.display()),
                format!("go back to checkpoint {before} (--from-checkpoint {before};"),
            ] {
                assert!(error.message().contains(&part), "{what}: {error}");
            }
        };
        for (name, content) in files {
            let path = folder.join(&name);
            let offsets = (0..8).map(|i| i * (content.len() - 1) / 7);
            for at in offsets {
                for bit in [0, 5] {
                    site.machine.damage(&path, |bytes| bytes[at] ^= 1 << bit);
                    refused(&path, format!("{name}: bit {bit} of byte {at}")).await;
                    site.machine.damage(&path, |bytes| bytes[at] ^= 1 << bit);
                }
                site.machine.damage(&path, |bytes| bytes.truncate(at));
                refused(&path, format!("{name}: cut to {at} bytes")).await;
                site.machine.damage(&path, |bytes| bytes.clone_from(&content));
            }
        }
        // A job that was going back, and whose note of it is damaged.
        let path = Path::new(STATE).join("rewind");
        site.machine.process().create(&path).unwrap();
        let error = site.run(site.machine.process(), usual()).await.result.unwrap_err();
        assert!(error.message().contains("rewind is damaged"), "{error}");
        assert!(error.message().contains("--from-checkpoint NUMBER"), "{error}");
        let back = Options { restore_from: Some(newest - 1), ..usual() };
        assert_eq!(site.run(site.machine.process(), back).await.result.unwrap().end, End::Finished);
        site.check_all_rows_once("after the damage");
    });
}

#[test]
fn what_waits_for_long_is_written_once() {
    let site = Site::new(1);
    let script = |n: i64| match n % 1_000_000 {
        0 => Answer::After(Duration::from_millis(950)),
        _ => Answer::After(Duration::from_secs(3_600)),
    };
    simulate(async {
        let running = site.start_with(site.machine.process(), usual(), script).unwrap();
        let mut progress = running.progress();
        let mut new = Vec::new();
        for number in 2..=12 {
            let at = progress.wait_for(|p| p.checkpoint.is_some_and(|c| c.number >= number)).await.unwrap();
            let last = at.checkpoint.unwrap();
            assert!(last.bytes > 100_000, "the state is {} bytes", last.bytes);
            new.push(last.new);
        }
        // Nothing changes but that two rows are answered: a batch of each.
        assert!(new.iter().all(|bytes| *bytes < 60_000), "{new:?}");
        assert!(new.iter().filter(|bytes| **bytes > 16_000).count() <= 2, "{new:?}");
        kill(running).await;
        *site.log.lock().unwrap() = Log::default();
        // What it was shared with is gone by now.
        let next = site.run(site.machine.reboot(), usual()).await;
        assert_eq!(next.result.unwrap().end, End::Finished);
        site.check_all_rows_once("shared");
    });
}
