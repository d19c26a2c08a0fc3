//! Savepoints: that another job goes on where one was taken, with exactly the rows that come after it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pelton_core::Result;
use pelton_dataflow::job::{End, Options, Running};
use pelton_dataflow::savepoint::Saved;
use pelton_env::Storage;
use pelton_env::simulated::Fault;

use crate::site::{STATE, Site, rows, usual};
use crate::support::{env, simulate};

const SAVED: &str = "/data/saved/a";

/// There is output by then, and more to come.
const MIDDLE: Duration = Duration::from_millis(250);

/// Waits for output, and takes a savepoint.
async fn save(running: &Running, folder: &str, stop: bool) -> Result<Saved> {
    env().sleep(MIDDLE).await;
    running.orders().savepoint(Path::new(folder), stop).await
}

/// Another job with a state and an output of its own, on the same disk.
fn other(site: &Site) -> (Site, Options) {
    let (machine, numbers) = (site.machine.clone(), site.numbers.clone());
    let other = Site { machine, out: "/data/other", parallelism: 3, numbers, log: Arc::default() };
    let state = PathBuf::from("/data/jobs/b/state");
    (other, Options { state, from: Some(SAVED.into()), ..usual() })
}

/// What the first job had made visible by this checkpoint, with what the second has, are all rows once.
fn check_exactly_the_rest(site: &Site, other: &Site, checkpoint: u64, said: &str) {
    let number = |name: &str| name.rsplit(['-', '.']).nth(1).unwrap().parse::<u64>().unwrap();
    let before = site.visible().into_iter().filter(|(name, _)| number(name) <= checkpoint);
    let before: Vec<i64> = before.flat_map(|(_, content)| rows(&content)).collect();
    let after: Vec<i64> = other.visible().values().flat_map(|content| rows(content)).collect();
    assert!(!before.is_empty() && !after.is_empty(), "{said}: in the middle");
    let mut all = [before, after].concat();
    all.sort_unstable();
    assert_eq!(all, site.numbers.all(), "{said}");
}

#[test]
fn another_job_goes_on_from_it_at_another_parallelism_with_exactly_the_rest() {
    for stop in [false, true] {
        simulate(async {
            let site = Site::new(1);
            let running = site.start(site.machine.process(), usual()).unwrap();
            let saved = save(&running, SAVED, stop).await.unwrap();
            let ended = running.wait().await.unwrap().end;
            assert_eq!(ended, if stop { End::Stopped } else { End::Finished });
            let said = format!("stop {stop}");
            let (next, from) = other(&site);
            let summary = next.run(site.machine.process(), from.clone()).await.result.unwrap();
            assert_eq!(summary.restored_from, Some(saved.checkpoint));
            check_exactly_the_rest(&site, &next, saved.checkpoint, &said);
            if stop {
                let newest =
                    site.visible().keys().map(|n| n.rsplit(['-', '.']).nth(1).unwrap().to_owned()).max();
                assert!(newest.unwrap().parse::<u64>().unwrap() <= saved.checkpoint, "nothing came after it");
                site.run(site.machine.process(), usual()).await.result.unwrap();
            }
            site.check_all_rows_once(&said);
            // It says what it is to others, and finds what is damaged.
            for file in site.machine.files(Path::new(SAVED)).into_keys() {
                let path = Path::new(SAVED).join(file);
                site.machine.damage(&path, |bytes| bytes[20] ^= 1);
                let fresh = Options { fresh: true, ..from.clone() };
                let error = next.run(site.machine.process(), fresh).await.result.unwrap_err();
                let says = format!("savepoint {SAVED} cannot be read: {} is damaged", path.display());
                assert!(error.message().contains(&says), "{error}");
                site.machine.damage(&path, |bytes| bytes[20] ^= 1);
            }
            // The second one has a state of its own now.
            let error = next.run(site.machine.process(), from.clone()).await.result.unwrap_err();
            assert!(error.message().contains("leave --from out to go on"), "{error}");
            let again = Options { from: None, ..from };
            assert_eq!(
                next.run(site.machine.process(), again).await.result.unwrap().end,
                End::AlreadyFinished
            );
        });
    }
}

/// Runs a job that takes a savepoint. Whether it was told that it is there.
async fn run_and_save(site: &Site, disk: Arc<dyn Storage>) -> Option<Saved> {
    let running = site.start(disk, usual()).ok()?;
    let orders = running.orders();
    let saving = async move {
        env().sleep(MIDDLE).await;
        orders.savepoint(Path::new(SAVED), false).await.ok()
    };
    tokio::join!(saving, running.wait()).0
}

#[test]
fn a_cut_while_it_is_taken_leaves_a_whole_one_or_none() {
    let (changes, whole) = simulate(async {
        let site = Site::new(0);
        let whole = run_and_save(&site, site.machine.process()).await.is_some();
        (site.machine.changes(), whole)
    });
    assert!(whole);
    for at in 0..changes {
        simulate(async {
            let site = Site::new(at);
            let disk = site.machine.process();
            site.machine.arm(at, Fault::Cut);
            let said = run_and_save(&site, disk).await;
            let disk = site.machine.reboot();
            let (next, from) = other(&site);
            let result = next.run(disk, from).await.result;
            if site.machine.files(Path::new(SAVED)).contains_key("manifest.json") || said.is_some() {
                let summary = result.unwrap_or_else(|e| panic!("cut at {at}: {e}"));
                let checkpoint = summary.restored_from.unwrap();
                assert!(said.is_none_or(|s| s.checkpoint == checkpoint), "cut at {at}");
                site.run(site.machine.process(), usual()).await.result.unwrap();
                check_exactly_the_rest(&site, &next, checkpoint, &format!("cut at {at}"));
            } else {
                let error = result.expect_err("there is no savepoint");
                assert!(error.message().contains("is no savepoint: it has no manifest.json"), "{error}");
            }
            site.machine.mend();
            site.run(site.machine.process(), usual()).await.result.unwrap();
            site.check_all_rows_once(&format!("cut at {at}"));
        });
    }
}

#[test]
fn a_cut_while_a_job_begins_from_it_loses_and_doubles_nothing() {
    // The start, and some of what follows.
    for at in 0..60 {
        for seed in 0..2 {
            simulate(async {
                let site = Site::new(seed);
                let saved = run_and_save(&site, site.machine.process()).await.unwrap();
                let (next, from) = other(&site);
                let disk = site.machine.process();
                site.machine.arm(at, Fault::Cut);
                let _ = next.run(disk, from.clone()).await;
                let disk = site.machine.reboot();
                site.machine.mend();
                let said = format!("seed {seed}, cut at {at}");
                // The same command, or without the savepoint where the state has begun.
                if let Err(e) = next.run(disk, from.clone()).await.result {
                    assert!(e.message().contains("leave --from out to go on"), "{said}: {e}");
                    let on = Options { from: None, ..from };
                    next.run(site.machine.process(), on).await.result.unwrap();
                }
                check_exactly_the_rest(&site, &next, saved.checkpoint, &said);
            });
        }
    }
}

#[test]
fn what_cannot_be_saved_or_begun_from_is_refused_in_plain_words() {
    simulate(async {
        let site = Site::new(3);
        let disk = site.machine.process();
        let running = site.start(disk.clone(), usual()).unwrap();
        disk.create(Path::new("/file")).unwrap();
        let inside = format!("{STATE}/mine");
        env().sleep(MIDDLE).await;
        for (folder, says) in [
            ("/data/out", "the folder is not empty; name a folder that is empty or does not exist"),
            ("/file", "this is a file"),
            ("saved", "name a folder by its whole path"),
            (&inside, "outside the job's state"),
        ] {
            let error = running.orders().savepoint(Path::new(folder), true).await.unwrap_err();
            assert!(error.message().contains(says), "{folder}: {error}");
        }
        // Where only the savepoint finds no room, before or while it is written, the job goes on.
        let orders = running.orders();
        for room in 1..8 {
            let folder = PathBuf::from(format!("/data/saved/{room}"));
            site.machine.fill(&folder, room);
            let error = orders.savepoint(&folder, false).await.unwrap_err();
            assert!(error.message().contains("the disk is full: see `df -h /data/saved"), "{error}");
            assert!(
                room < 4 || error.message().contains("was not written; the job is none the worse"),
                "{error}"
            );
            site.machine.mend();
            assert!(site.machine.files(&folder).keys().all(|name| name == ".probe"), "room for {room}");
        }
        let ended = running.wait().await.unwrap();
        assert_eq!(ended.end, End::Finished);
        let error = orders.savepoint(Path::new("/data/saved/late"), false).await.unwrap_err();
        assert!(error.message().contains("the job is finishing"), "{error}");
        site.check_all_rows_once("after refusals");
    });
}
