//! Checkpoints: that they do not wait for calls, that what they hold is bounded, and what they refuse.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use pelton_core::{Bytes, Kind};
use pelton_dataflow::job::{End, Options};
use pelton_dataflow::plan::{Call, OnError, Plan};

use crate::support::{Answer, Numbers, Shelf, World, at_once, env, kill, numbers_schema, simulate, turns};

fn double() -> Call {
    Call::new("maths", "double", &["n"])
}

fn world(numbers: &Numbers, call: Call) -> (World, Shelf) {
    let shelf = Shelf::default();
    let mut plan = Plan::new();
    let source = plan.source("numbers", 1, Arc::new(numbers.clone()), OnError::Fail);
    let same = pelton_dataflow::operator::Map { output: numbers_schema(), function: Arc::new(Ok) };
    let map = plan.map("same", 2, source, Arc::new(same));
    let call = plan.call("double", 1, map, call);
    plan.sink("shelf", 1, call, Arc::new(shelf.clone()));
    (World::new(plan), shelf)
}

#[test]
fn a_checkpoint_waits_for_no_call_and_its_state_is_bounded() {
    // 160 MB of rows, in batches of 8 KiB; nothing is ever answered.
    let numbers = Numbers::new(4, 5_000_000, 1024);
    let (world, _) = world(&numbers, double());
    let (edge, pending) = (Bytes::kib(64), Bytes::kib(256));
    let options = Options { edge_bytes: edge, pending_bytes: pending, ..world.options() };
    simulate(async {
        let running = world.try_start(options, |_| Answer::Never).unwrap();
        let mut progress = running.progress();
        let (mut biggest, mut read) = (0, 0);
        let at = |n: u64| progress_at(n);
        for n in [3, 40] {
            let seen = progress.wait_for(at(n)).await.unwrap().clone();
            let last = seen.checkpoint.unwrap();
            assert_eq!(last.took, Duration::ZERO, "in virtual time, only waiting takes time");
            biggest = biggest.max(last.bytes);
            if n == 3 {
                read = numbers.reads.load(Relaxed);
            }
        }
        // Two edges, what is pending, and a batch in hand here and there; Arrow's own headers come on top.
        assert!(biggest < 2 * (2 * edge.get() + pending.get()), "{biggest} bytes");
        assert_eq!(numbers.reads.load(Relaxed), read, "no checkpoint lets more rows in");
        kill(running).await;
    });
}

fn progress_at(number: u64) -> impl FnMut(&pelton_dataflow::progress::Progress) -> bool {
    move |p| p.checkpoint.is_some_and(|c| c.number >= number)
}

#[test]
fn checkpoints_that_are_always_given_up_fail_the_job() {
    let (world, _) = world(&Numbers::new(1, 100, 10), double());
    let options = Options { timeout: Duration::ZERO, tolerated: 2, ..world.options() };
    simulate(async {
        let running = world.try_start(options, |_| Answer::Never).unwrap();
        let error = running.wait().await.unwrap_err();
        assert_eq!(error.kind(), Kind::NoProgress);
        assert!(error.message().contains("3 checkpoints in a row"), "{error}");
    });
}

#[test]
fn one_batch_above_every_budget_passes() {
    let numbers = Numbers::new(2, 1000, 500);
    let (world, shelf) = world(&numbers, double());
    let options = Options { edge_bytes: Bytes(100), pending_bytes: Bytes(100), ..world.options() };
    simulate(async { world.try_start(options, at_once).unwrap().wait().await.unwrap() });
    assert_eq!(shelf.sorted("n"), numbers.all());
}

#[test]
fn a_finished_job_has_nothing_more_to_do_until_there_are_new_splits() {
    let mut numbers = Numbers::new(2, 100, 10);
    let (mut world, shelf) = world(&numbers, double());
    simulate(async {
        world.start(at_once).wait().await.unwrap();
        let before = shelf.batches();
        let again = world.start(at_once).wait().await.unwrap();
        assert_eq!((again.end, again.checkpoints, shelf.batches()), (End::AlreadyFinished, 0, before));
        assert!(again.restored_from.is_some());
        // A new split is read, a changed one is reported and not read again.
        numbers.splits[0].2 = "2".to_owned();
        numbers.splits.push((2, 50, "1".to_owned()));
        world.plan = self::world_with(&numbers, &shelf);
        let more = world.start(at_once).wait().await.unwrap();
        assert_eq!((more.end, more.changed), (End::Finished, 1));
        assert_eq!(shelf.sorted("n"), numbers.all());
    });
}

fn world_with(numbers: &Numbers, shelf: &Shelf) -> Plan {
    let mut plan = Plan::new();
    let source = plan.source("numbers", 1, Arc::new(numbers.clone()), OnError::Fail);
    let same = pelton_dataflow::operator::Map { output: numbers_schema(), function: Arc::new(Ok) };
    let map = plan.map("same", 2, source, Arc::new(same));
    let call = plan.call("double", 1, map, double());
    plan.sink("shelf", 1, call, Arc::new(shelf.clone()));
    plan
}

#[test]
fn two_jobs_do_not_share_a_folder() {
    let (world, _) = world(&Numbers::new(1, 10, 10), double());
    simulate(async {
        let running = world.start(|_| Answer::Never);
        let error = world.try_start(world.options(), at_once).err().unwrap();
        assert_eq!(error.kind(), Kind::Denied);
        let pid = format!("is used by a running job, process {};", std::process::id());
        assert!(error.message().contains(&pid), "{error}");
        running.cancel().await;
        world.start(at_once).wait().await.unwrap();
    });
}

#[test]
fn a_job_that_was_replaced_writes_no_more() {
    let (world, shelf) = world(&Numbers::new(1, 10, 10), double());
    simulate(async {
        let running = world.start(|_| Answer::After(Duration::from_millis(50)));
        // What a process on another machine would leave, where the lock does not reach.
        std::fs::write(world.folder.path().join("generation-000099"), "").unwrap();
        let error = running.wait().await.unwrap_err();
        assert!(error.message().contains("was replaced by generation 99"), "{error}");
        assert!(shelf.column("n").is_empty());
    });
}

#[test]
fn a_damaged_checkpoint_is_refused_and_the_one_before_is_offered() {
    let numbers = Numbers::new(1, 1000, 10);
    let (world, shelf) = world(&numbers, double());
    simulate(async {
        let running = world.start(|n| Answer::After(Duration::from_millis(n as u64)));
        running.progress().wait_for(progress_at(3)).await.unwrap();
        kill(running).await;
        let mut there: Vec<_> =
            std::fs::read_dir(world.folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
        there.retain(|p| p.file_name().unwrap().to_string_lossy().starts_with("checkpoint-"));
        there.sort();
        assert_eq!(there.len(), 2, "two are kept");
        let state = std::fs::read_dir(&there[1]).unwrap().map(|e| e.unwrap().path());
        let victim = state.into_iter().find(|p| p.to_string_lossy().contains("-rows-")).unwrap();
        let mut bytes = std::fs::read(&victim).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&victim, bytes).unwrap();
        let error = world.try_start(world.options(), at_once).err().unwrap();
        let number =
            |p: &std::path::Path| p.to_string_lossy().rsplit('-').next().unwrap().parse::<u64>().unwrap();
        let (before, newest) = (number(&there[0]), number(&there[1]));
        assert!(error.message().starts_with(&format!("checkpoint {newest} in ")), "{error}");
        assert!(error.message().contains("is damaged: the SHA-256 of `"), "{error}");
        assert!(error.message().contains(&format!("(--from-checkpoint {before};")), "{error}");
        // Going back behind a complete checkpoint asks again for what was answered, acknowledged and forgotten.
        world.log.lock().unwrap().acknowledged.clear();
        let options = Options { restore_from: Some(before), ..world.options() };
        let summary = world.try_start(options, at_once).unwrap().wait().await.unwrap();
        assert_eq!(summary.restored_from, Some(before));
        let mut seen = shelf.sorted("n");
        seen.dedup();
        assert_eq!(seen, numbers.all());
    });
}

#[test]
fn a_checkpoint_of_another_job_is_refused() {
    let (mut world, shelf) = world(&Numbers::new(1, 10, 10), double());
    simulate(async {
        world.start(at_once).wait().await.unwrap();
        let mut plan = Plan::new();
        let source = plan.source("numbers", 1, Arc::new(Numbers::new(1, 10, 10)), OnError::Fail);
        plan.sink("shelf", 1, source, Arc::new(shelf.clone()));
        world.plan = plan;
        let error = world.try_start(world.options(), at_once).err().unwrap();
        assert!(error.message().contains("was made by another job: it has map `same`"), "{error}");
        assert!(error.message().ends_with("or start anew with --fresh"), "{error}");
        let options = Options { fresh: true, ..world.options() };
        assert_eq!(world.try_start(options, at_once).unwrap().wait().await.unwrap().end, End::Finished);
    });
}

#[test]
fn an_unknown_layout_is_refused() {
    let (world, _) = world(&Numbers::new(1, 10, 10), double());
    simulate(async {
        world.start(at_once).wait().await.unwrap();
        let newest =
            std::fs::read_dir(world.folder.path()).unwrap().map(|e| e.unwrap().path().join("manifest.json"));
        let manifest = newest.into_iter().filter(|p| p.exists()).max().unwrap();
        let text = std::fs::read_to_string(&manifest).unwrap().replace("\"version\": 3,", "\"version\": 1,");
        // The layout before this one had no digest around it.
        let sealed: serde_json::Value = serde_json::from_str(&text).unwrap();
        std::fs::write(&manifest, sealed["sealed"].to_string()).unwrap();
        let error = world.try_start(world.options(), at_once).err().unwrap();
        assert!(error.message().contains("it has layout version 1, this program knows 3"), "{error}");
    });
}

#[test]
fn storage_that_fails_fails_the_job_and_nothing_is_lost() {
    let numbers = Numbers::new(1, 500, 10);
    let (world, shelf) = world(&numbers, double());
    let script = |n: i64| Answer::After(Duration::from_millis(n as u64 * 4));
    simulate(async {
        let running = world.start(script);
        running.progress().wait_for(progress_at(3)).await.unwrap();
        // The checkpoint is durable, its outputs are not visible yet: the next start makes them so.
        shelf.refuse(1);
        let error = running.wait().await.unwrap_err();
        assert!(error.message().contains("sink `shelf`: the shelf is full"), "{error}");
        let running = world.start(script);
        running.progress().wait_for(progress_at(6)).await.unwrap();
        // No file can be made where a file is in the way of the folder.
        let next = running.progress().borrow().checkpoint.unwrap().number + 20;
        let blocked = world.folder.path().join(format!("checkpoint-{next:06}"));
        std::fs::write(&blocked, "").unwrap();
        let error = running.wait().await.unwrap_err();
        assert!(error.message().contains(&blocked.display().to_string()), "{error}");
        assert!(!shelf.column("n").is_empty());
        std::fs::remove_file(&blocked).unwrap();
        world.start(at_once).wait().await.unwrap();
    });
    assert_eq!(shelf.sorted("n"), numbers.all());
}

#[test]
fn a_stop_waits_for_what_runs_and_a_restart_goes_on() {
    let numbers = Numbers::new(2, 1000, 10);
    let (world, shelf) = world(&numbers, double());
    simulate(async {
        let running = world.start(|n| Answer::After(Duration::from_millis(100 + n as u64 % 1000 * 10)));
        running.progress().wait_for(|p| p.nodes.first().is_some_and(|n| n.rows_out > 0)).await.unwrap();
        running.stop();
        let stopped = running.wait().await.unwrap();
        assert_eq!(stopped.end, End::Stopped);
        assert!(
            stopped.elapsed >= Duration::from_secs(9),
            "answers came up to 10 s later: {:?}",
            stopped.elapsed
        );
        let summary = world.start(at_once).wait().await.unwrap();
        assert_eq!((summary.end, summary.changed), (End::Finished, 0));
    });
    assert_eq!(shelf.sorted("n"), numbers.all());
}

#[test]
fn a_stop_does_not_wait_for_ever() {
    let (world, shelf) = world(&Numbers::new(2, 100, 10), double());
    simulate(async {
        let running = world.start(|_| Answer::Never);
        let start = env();
        turns(50).await;
        running.stop();
        assert_eq!(running.wait().await.unwrap().end, End::Stopped);
        assert!(start.now().since_origin() < Duration::from_secs(11));
        world.start(at_once).wait().await.unwrap();
    });
    assert_eq!(shelf.column("n").len(), 200);
}
