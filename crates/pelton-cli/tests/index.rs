//! `pelton index` through everything that can happen to it: every chunk is in the output exactly once.

mod support;

use support::{World, is_alive, signal, wait_for};

const INDEX: [&str; 9] = [
    "index",
    "--input",
    "{}/docs",
    "--output",
    "{}/index",
    "--service",
    "{}/embedder.toml",
    "--checkpoint-interval",
    "200ms",
];

/// A world with 60 documents, what their index shall be, and a slow scripted embedder for it.
fn slow_world() -> (World, std::collections::BTreeMap<(String, u32), usize>) {
    let world = World::new();
    world.documents(60, 8);
    world.scripted("");
    world.run(&INDEX).succeeded();
    let expected = world.chunks("index");
    assert!(expected.len() > 300 && expected.values().all(|n| *n == 1), "{} chunks", expected.len());
    std::fs::rename(world.path("index"), world.path("expected")).unwrap();
    world.scripted("latency = \"20ms\"\nper_row = \"2ms\"\njitter = 0.5");
    (world, expected)
}

#[test]
fn an_instance_that_is_killed_is_nobody_elses_problem() {
    let (world, expected) = slow_world();
    let job = world.start(&INDEX);
    let pids = world.instances_after(40);
    signal(pids[0], "KILL");
    let after = wait_for("another instance in its place", || {
        let now = world.instances_after(0);
        (now.len() == 2 && now[0] != pids[0]).then_some(now)
    });
    assert_eq!(after[1], pids[1], "the other instance was restarted");
    assert!(is_alive(job.pid()));
    let ran = job.wait().succeeded();
    assert!(ran.stderr.contains("finished"), "{}", ran.stderr);
    world.holds("index", &expected);
    assert!(!is_alive(after[0]) && !is_alive(after[1]), "an instance was left behind");
}

#[test]
fn a_job_that_is_killed_goes_on_where_it_was() {
    let (world, expected) = slow_world();
    for executed in [30, 60] {
        let job = world.start(&INDEX);
        let pids = world.instances_after(executed);
        job.kill();
        wait_for("the instances to end by themselves", || {
            pids.iter().all(|pid| !is_alive(*pid)).then_some(())
        });
    }
    let ran = world.run(&INDEX).succeeded();
    assert!(ran.stderr.contains("went on from checkpoint"), "{}", ran.stderr);
    world.holds("index", &expected);

    let again = world.run(&INDEX).succeeded();
    assert!(again.stderr.contains("nothing new to do"), "{}", again.stderr);
    world.holds("index", &expected);

    world.write("docs/new.md", "# Something new\n\nThat was not there before.");
    world.run(&INDEX).succeeded();
    assert_eq!(world.chunks("index").len(), expected.len() + 1);
}

#[test]
fn ctrl_c_stops_with_a_checkpoint_and_twice_ends_at_once() {
    let (world, expected) = slow_world();
    let job = world.start(&INDEX);
    let pids = world.instances_after(40);
    signal(job.pid(), "INT");
    let ran = job.wait();
    assert_eq!(ran.code, Some(75), "{}", ran.stderr);
    assert!(ran.stderr.contains("run the same command again"), "{}", ran.stderr);
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "an instance was left behind");
    let so_far = world.chunks("index");
    assert!(!so_far.is_empty() && so_far.len() < expected.len());

    // Calls of a minute: the first Ctrl-C waits for them, the second does not.
    world.scripted("latency = \"60s\"");
    let job = world.start(&INDEX);
    let pids = world.instances_after(0);
    wait_for("requests to be held", || {
        let jobs = world.status();
        (jobs.first()?["services"][0]["instances"][0]["held"].as_u64()? > 0).then_some(())
    });
    signal(job.pid(), "INT");
    signal(job.pid(), "INT");
    let ran = job.wait();
    assert_eq!(ran.code, Some(130), "{}", ran.stderr);
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "an instance was left behind");
    assert_eq!(
        std::fs::read_dir(world.path("run/pelton")).unwrap().count(),
        0,
        "a run folder was left behind"
    );

    world.scripted("");
    world.run(&INDEX).succeeded();
    world.holds("index", &expected);
}

#[test]
fn a_service_that_fails_now_and_then_loses_nothing() {
    let (world, expected) = slow_world();
    world.scripted("latency = \"2ms\"\nfailure_rate = 0.1\ncrash_after = 40");
    world.run(&INDEX).succeeded();
    world.holds("index", &expected);
}
