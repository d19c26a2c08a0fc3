//! Jobs that are killed at random, again and again: every row is visible once, and its request has one id.

use std::sync::Arc;
use std::time::Duration;

use pelton_core::Bytes;
use pelton_core::call::ErrorPolicy;
use pelton_dataflow::job::Options;
use pelton_dataflow::operator::Map;
use pelton_dataflow::plan::{Call, OnError, Order, Plan};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::{Answer, Numbers, Shelf, World, kill, numbers_schema, simulate, turns};

struct Case {
    numbers: Numbers,
    shelf: Shelf,
    errors: Shelf,
    order: Order,
    on_error: ErrorPolicy,
}

impl Case {
    fn random(rng: &mut StdRng) -> Self {
        let numbers =
            Numbers::new(rng.random_range(1..6), rng.random_range(50..400), rng.random_range(3..40));
        let order = if rng.random() { Order::Ordered } else { Order::Unordered };
        let on_error = if rng.random() { ErrorPolicy::Fail } else { ErrorPolicy::ErrorOutput };
        Case { numbers, shelf: Shelf::default(), errors: Shelf::default(), order, on_error }
    }

    /// The parallelism is another one at every start.
    fn plan(&self, rng: &mut StdRng) -> Plan {
        let mut p = |n| rng.random_range(1..=n);
        let same = || Arc::new(Map { output: numbers_schema(), function: Arc::new(Ok) });
        let mut plan = Plan::new();
        let source = plan.source("numbers", p(3), Arc::new(self.numbers.clone()), OnError::Fail);
        // Two ways in make it a stage of its own, whatever the parallelism.
        let map = plan.map("map", p(3), source, same());
        plan.connect(source, map);
        let (order, on_error) = (self.order, self.on_error.clone());
        let call = Call { order, on_error, ..Call::new("maths", "double", &["n"]) };
        let call = plan.call("double", p(3), map, call);
        plan.sink("shelf", p(2), call, Arc::new(self.shelf.clone()));
        if self.on_error == ErrorPolicy::ErrorOutput {
            plan.sink("errors", 1, call.errors(), Arc::new(self.errors.clone()));
        }
        plan
    }
}

fn case(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let case = Case::random(&mut rng);
    let mut world = World::new(Plan::new());
    let fails = case.on_error == ErrorPolicy::ErrorOutput;
    let script = move |n: i64| match n % 50 {
        13 if fails => Answer::Fails,
        k => Answer::After(Duration::from_millis(n as u64 * 7 % 40 + if k == 0 { 100 } else { 0 })),
    };
    simulate(async {
        for _ in 0..rng.random_range(3..8) {
            world.plan = case.plan(&mut rng);
            let options = small(&world, &mut rng);
            let running = world.try_start(options, script).unwrap();
            #[expect(clippy::disallowed_methods, reason = "virtual time")]
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..150))).await;
            turns(rng.random_range(0..60)).await;
            kill(running).await;
        }
        world.plan = case.plan(&mut rng);
        world.start(script).wait().await.unwrap();
    });
    // Each number comes over two ways.
    let all = case.numbers.all();
    let good = all.iter().filter(|n| !fails || *n % 50 != 13);
    let mut expected: Vec<i64> = good.clone().chain(good).copied().collect();
    expected.sort_unstable();
    assert_eq!(case.shelf.sorted("n"), expected, "seed {seed}");
    let log = world.log.lock().unwrap();
    assert_eq!(log.rows.len(), all.len() * 2, "seed {seed}: one id a row");
    if fails {
        assert_eq!(case.errors.texts("row").len() + expected.len(), all.len() * 2, "seed {seed}");
    }
}

/// Bounds that are met all the time.
fn small(world: &World, rng: &mut StdRng) -> Options {
    let edge_bytes = Bytes(rng.random_range(100..10_000));
    let pending_bytes = Bytes(rng.random_range(100..10_000));
    let interval = Duration::from_millis(rng.random_range(1..60));
    Options { edge_bytes, pending_bytes, interval, ..world.options() }
}

#[test]
fn killed_at_random_every_row_is_visible_once() {
    for seed in 0..60 {
        case(seed);
    }
}

#[test]
fn calls_behind_calls_keep_their_rows_apart_from_run_to_run() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let numbers = Numbers::new(3, 100, 7);
        let shelf = Shelf::default();
        let mut plan = Plan::new();
        let source = plan.source("numbers", 1, Arc::new(numbers.clone()), OnError::Fail);
        let first = Call { order: Order::Unordered, ..Call::new("maths", "double", &["n"]) };
        let first = plan.call("first", 2, source, first);
        let drop = Arc::new(Map {
            output: numbers_schema(),
            function: Arc::new(|rows: arrow_array::RecordBatch| Ok(rows.project(&[0])?)),
        });
        let map = plan.map("drop", 2, first, drop);
        let second = plan.call("second", 2, map, Call::new("maths", "double", &["n"]));
        plan.sink("shelf", 1, second, Arc::new(shelf.clone()));
        let world = World::new(plan);
        simulate(async {
            for run in 0..5 {
                // Answers come in another order in each run.
                let script =
                    move |n: i64| Answer::After(Duration::from_millis((n as u64 * 7 + run * 13) % 40));
                let running = world.try_start(small(&world, &mut rng), script).unwrap();
                #[expect(clippy::disallowed_methods, reason = "virtual time")]
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..150))).await;
                turns(rng.random_range(0..60)).await;
                kill(running).await;
            }
            world.start(crate::support::at_once).wait().await.unwrap();
        });
        assert_eq!(shelf.sorted("n"), numbers.all(), "seed {seed}");
    }
}

#[test]
fn a_split_that_vanished_when_it_was_read_in_part_is_an_error_row_or_refused() {
    for on_error in [OnError::Fail, OnError::ErrorOutput] {
        let (shelf, errors) = (Shelf::default(), Shelf::default());
        let plan = |numbers: &Numbers| {
            let mut plan = Plan::new();
            let source = plan.source("numbers", 1, Arc::new(numbers.clone()), on_error);
            let call = plan.call("double", 1, source, Call::new("maths", "double", &["n"]));
            plan.sink("shelf", 1, call, Arc::new(shelf.clone()));
            if on_error == OnError::ErrorOutput {
                plan.sink("errors", 1, source.errors(), Arc::new(errors.clone()));
            }
            plan
        };
        let mut numbers = Numbers::new(2, 1000, 10);
        let mut world = World::new(plan(&numbers));
        simulate(async {
            let options = Options { edge_bytes: Bytes(500), pending_bytes: Bytes(500), ..world.options() };
            let running = world.try_start(options, |_| Answer::After(Duration::from_millis(10))).unwrap();
            running.progress().wait_for(|p| p.checkpoint.is_some_and(|c| c.number > 2)).await.unwrap();
            kill(running).await;
            numbers.splits.remove(0);
            world.plan = plan(&numbers);
            match on_error {
                OnError::Fail => {
                    let error = world.try_start(world.options(), crate::support::at_once).err().unwrap();
                    let message = error.message();
                    assert!(
                        message.starts_with("source `numbers`: numbers/0 was read up to position "),
                        "{message}"
                    );
                    assert!(message.contains("and has vanished since; put it back"), "{message}");
                }
                OnError::ErrorOutput => {
                    let summary = world.start(crate::support::at_once).wait().await.unwrap();
                    assert_eq!((summary.lost, errors.texts("row")), (1, vec!["numbers/0".to_owned()]));
                    assert!(shelf.column("n").len() > 1000, "what was read of it stays");
                }
            }
        });
    }
}
