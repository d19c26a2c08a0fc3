//! `pelton savepoint` with real processes: what was covered and what comes after it are all rows, each once.

mod support;

use std::collections::BTreeMap;
use std::fs;

use support::{Ran, World, wait_for};

type Chunks = BTreeMap<(String, u32), usize>;

const SERVICE: [&str; 4] = ["--service", "{}/embedder.toml", "--checkpoint-interval", "200ms"];

/// `pelton index` of the documents into this folder.
fn index<'a>(output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["index", "--input", "{}/docs", "--output", output], &SERVICE[..], more].concat()
}

/// Documents, what their index shall be, and an embedder that takes its time.
fn slow_world() -> (World, Chunks) {
    let world = World::new();
    world.documents(40, 8);
    world.scripted("");
    world.run(&index("{}/expected", &[])).succeeded();
    let expected = world.chunks("expected");
    world.scripted("latency = \"40ms\"\nper_row = \"2ms\"");
    (world, expected)
}

/// The checkpoint that a savepoint said it is.
fn checkpoint(saved: &Ran) -> u64 {
    let word = saved.stderr.split_whitespace().skip_while(|w| *w != "checkpoint").nth(1);
    word.and_then(|w| w.parse().ok()).unwrap_or_else(|| panic!("no checkpoint in {}", saved.stderr))
}

/// What an index had by a checkpoint.
fn covered(world: &World, output: &str, checkpoint: u64) -> Chunks {
    let before = world.path("before");
    let _ = fs::remove_dir_all(&before);
    fs::create_dir(&before).unwrap();
    for part in fs::read_dir(world.path(output)).unwrap().map(|e| e.unwrap().path()) {
        let name = part.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(stem) = name.strip_suffix(".parquet") else { continue };
        if stem.rsplit('-').next().unwrap().parse::<u64>().unwrap() <= checkpoint {
            fs::copy(&part, before.join(&name)).unwrap();
        }
    }
    world.chunks("before")
}

fn check_exactly_the_rest(world: &World, checkpoint: u64, expected: &Chunks) {
    let (before, after) = (covered(world, "index", checkpoint), world.chunks("rest"));
    assert!(before.len() > 20 && after.len() > 20, "{} before, {} after", before.len(), after.len());
    let mut all = before;
    for (chunk, n) in after {
        *all.entry(chunk).or_default() += n;
    }
    assert_eq!(&all, expected);
}

#[test]
fn a_savepoint_in_the_middle_and_a_job_from_it_give_every_row_once() {
    let (world, expected) = slow_world();
    let job = world.start(&index("{}/index", &[]));
    world.instances_after(60);
    let saved = world.run(&["savepoint", "--output", "{}/saved"]).succeeded();
    job.wait().succeeded();
    world.holds("index", &expected);
    world.scripted("");
    let from = index("{}/rest", &["--from", "{}/saved", "--instances", "3"]);
    let ran = world.run(&from).succeeded();
    assert!(ran.stderr.contains("began from savepoint "), "{}", ran.stderr);
    check_exactly_the_rest(&world, checkpoint(&saved), &expected);
    // It has a state of its own now; and is not mixed with the output of the first.
    world.run(&from).refused(&["already has checkpoints", "leave --from out", "--fresh"]);
    world.run(&index("{}/index", &["--from", "{}/saved"])).refused(&["already has checkpoints"]);
    world.run(&index("{}/new", &["--from", "{}/docs"])).refused(&["is no savepoint", "pelton savepoint"]);
    world.run(&[&from[..], &["--fresh"]].concat()).succeeded();
    check_exactly_the_rest(&world, checkpoint(&saved), &expected);
}

#[test]
fn a_job_that_is_stopped_with_a_savepoint_can_go_on_in_both_ways() {
    let (world, expected) = slow_world();
    let job = world.start(&index("{}/index", &[]));
    world.instances_after(60);
    let saved = world.run(&["savepoint", "index", "--stop", "--output", "{}/saved"]).succeeded();
    assert!(saved.stderr.contains("and stopped it"), "{}", saved.stderr);
    let ran = job.wait();
    assert_eq!(ran.code, Some(75), "{}", ran.stderr);
    let covered = covered(&world, "index", u64::MAX);
    world.scripted("");
    world.run(&index("{}/rest", &["--from", "{}/saved"])).succeeded();
    check_exactly_the_rest(&world, checkpoint(&saved), &expected);
    assert_eq!(self::covered(&world, "index", checkpoint(&saved)), covered, "nothing came after it");
    world.run(&index("{}/index", &[])).succeeded();
    world.holds("index", &expected);
}

#[test]
fn what_cannot_be_done_is_said_in_one_message() {
    let world = World::new();
    world.documents(30, 8);
    world.scripted("latency = \"200ms\"");
    world.run(&["savepoint", "--output", "{}/saved"]).refused(&["no jobs run here"]);
    let first = world.start(&index("{}/one", &[]));
    world.instances_after(4);
    world
        .run(&["savepoint", "nobody", "--output", "{}/saved"])
        .refused(&["no job `nobody` runs here", "index-"]);
    world.run(&["savepoint", "--output", "{}/docs"]).refused(&["the folder is not empty"]);
    world.run(&["savepoint", "--output", "{}/embedder.toml"]).refused(&["this is a file"]);
    world
        .run(&["savepoint", "--output", "{}/one/_pelton/checkpoints/mine"])
        .refused(&["outside the job's state"]);
    let second = world.start(&index("{}/two", &[]));
    let jobs = wait_for("two jobs", || Some(world.status()).filter(|jobs| jobs.len() == 2));
    for name in [None, Some("index")] {
        let command: Vec<&str> =
            ["savepoint"].into_iter().chain(name).chain(["--output", "{}/saved"]).collect();
        let ids: Vec<&str> = jobs.iter().map(|j| j["job"].as_str().unwrap()).collect();
        world.run(&command).refused(&["several jobs", ids[0], ids[1], "name one"]);
    }
    assert!(!world.path("saved").exists());
    drop(second);
    drop(first);
}
