//! What becomes of rows that are sent to a service.

use std::sync::Arc;
use std::time::Duration;

use pelton_core::call::ErrorPolicy;
use pelton_dataflow::job::{End, Summary};
use pelton_dataflow::operator::{Map, Operator, Output, Transform};
use pelton_dataflow::plan::{Call, OnError, Order, Plan};

use crate::support::{Answer, Numbers, Shelf, World, at_once, numbers_schema, simulate};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// source -> map -> call -> sink.
fn world(numbers: &Numbers, call: Call) -> (World, Shelf, Shelf) {
    let (shelf, errors) = (Shelf::default(), Shelf::default());
    let mut plan = Plan::new();
    let source = plan.source("numbers", 2, Arc::new(numbers.clone()), OnError::Fail);
    let same = Arc::new(Map { output: numbers_schema(), function: Arc::new(Ok) });
    let map = plan.map("same", 2, source, same);
    let wants_errors = call.on_error == ErrorPolicy::ErrorOutput;
    let call = plan.call("double", 2, map, call);
    plan.sink("shelf", 1, call, Arc::new(shelf.clone()));
    if wants_errors {
        plan.sink("errors", 1, call.errors(), Arc::new(errors.clone()));
    }
    (World::new(plan), shelf, errors)
}

fn double() -> Call {
    Call::new("maths", "double", &["n"])
}

fn run(world: &World, script: impl Fn(i64) -> Answer + Send + Sync + 'static) -> Summary {
    simulate(async { world.start(script).wait().await.unwrap() })
}

#[test]
fn every_row_is_answered_and_stored() {
    let numbers = Numbers::new(5, 1000, 64);
    let (world, shelf, _) = world(&numbers, double());
    let summary = run(&world, at_once);
    assert_eq!(summary.end, End::Finished);
    assert_eq!(shelf.sorted("n"), numbers.all());
    assert!(shelf.column("n").iter().zip(shelf.column("twice")).all(|(n, twice)| n * 2 == twice));
    let rows: Vec<(u64, u64)> = summary.nodes.iter().map(|n| (n.rows_in, n.rows_out)).collect();
    assert_eq!(rows, [(0, 5000), (5000, 5000), (5000, 5000), (5000, 0)]);
    assert_eq!((summary.nodes[0].splits_done, summary.nodes[0].splits_total), (5, 5));
    assert_eq!(summary.nodes[2].pending, 0);
    // The last checkpoint covers everything, and the ledgers hear of it.
    assert_eq!(world.log.lock().unwrap().acknowledged.len(), 5000);
    assert!(world.log.lock().unwrap().submissions < 200, "batches are submitted whole");
    assert!(shelf.batches() < 200, "results leave joined");
}

#[test]
fn the_end_waits_for_answers() {
    let numbers = Numbers::new(2, 10, 10);
    let (world, shelf, _) = world(&numbers, double());
    let summary = run(&world, |n| Answer::After(ms(if n == 3 { 1_000 } else { 1 })));
    assert!(summary.elapsed >= ms(1_000));
    assert!(summary.checkpoints > 20, "checkpoints go on behind the end of the sources");
    assert_eq!(shelf.sorted("n"), numbers.all());
}

#[test]
fn ordered_keeps_the_order_of_a_split_and_unordered_does_not() {
    let numbers = Numbers::new(3, 200, 16);
    let slow_first = |n: i64| Answer::After(ms(300 - (n % 100) as u64 * 3));
    let (one, shelf, _) = world(&numbers, double());
    run(&one, slow_first);
    for split in 0..3 {
        let of: Vec<i64> = shelf.column("n").into_iter().filter(|n| n / 1_000_000 == split).collect();
        assert!(of.is_sorted() && of.len() == 200, "split {split}: {of:?}");
    }
    let (other, shelf, _) = world(&numbers, Call { order: Order::Unordered, ..double() });
    run(&other, slow_first);
    assert_eq!(shelf.sorted("n"), numbers.all());
    assert!(!shelf.column("n").into_iter().filter(|n| *n < 1_000_000).is_sorted());
}

#[test]
fn an_error_fails_the_job_and_says_where() {
    let numbers = Numbers::new(1, 100, 10);
    let (world, ..) = world(&numbers, double());
    let script = |n| if n == 42 { Answer::Fails } else { Answer::Never };
    let error = simulate(async { world.start(script).wait().await.unwrap_err() });
    assert!(error.message().starts_with("call `double`, request "), "{error}");
    assert!(error.message().ends_with("/42, row {\"n\":42}: no good"), "{error}");
}

#[test]
fn errors_and_timeouts_go_to_the_error_output() {
    let numbers = Numbers::new(1, 100, 10);
    let call = Call { on_error: ErrorPolicy::ErrorOutput, timeout: Some(ms(50)), ..double() };
    let (world, shelf, errors) = world(&numbers, call);
    let summary = run(&world, |n| match n {
        7 => Answer::Fails,
        8 => Answer::After(ms(1000)),
        _ => Answer::After(ms(1)),
    });
    assert_eq!(shelf.column("n").len(), 98);
    assert_eq!(errors.texts("row"), [r#"{"n":7}"#, r#"{"n":8}"#]);
    assert_eq!(errors.texts("kind"), ["user", "deadline"]);
    assert!(errors.texts("request")[0].ends_with("/7"));
    assert_eq!(summary.nodes[2].errors, 2);
}

#[test]
fn errors_give_default_values() {
    let numbers = Numbers::new(1, 10, 10);
    let values = serde_json::json!({ "twice": 0 }).as_object().unwrap().clone();
    let (one, shelf, _) = world(&numbers, Call { on_error: ErrorPolicy::Default(values), ..double() });
    let script = |n| {
        if n == 3 { Answer::Fails } else { Answer::After(ms(1)) }
    };
    run(&one, script);
    assert_eq!(shelf.column("twice"), [0, 2, 4, 0, 8, 10, 12, 14, 16, 18]);
    // What is left out is null.
    let (other, shelf, _) =
        world(&numbers, Call { on_error: ErrorPolicy::Default(serde_json::Map::new()), ..double() });
    run(&other, script);
    assert_eq!(shelf.column("twice")[3], -1);
}

#[test]
fn a_streaming_method_repeats_the_row() {
    let numbers = Numbers::new(1, 5, 5);
    let (world, shelf, _) = world(&numbers, Call { method: "repeat".to_owned(), ..double() });
    run(&world, Answer::Many);
    assert_eq!(shelf.column("n"), [1, 2, 2, 3, 3, 3, 4, 4, 4, 4]);
    assert_eq!(shelf.column("twice"), [2, 4, 4, 6, 6, 6, 8, 8, 8, 8]);
}

#[test]
fn bad_records_go_to_the_error_output_or_fail_the_job() {
    let numbers = Numbers { bad: vec![5, 6], ..Numbers::new(1, 20, 4) };
    let shelf = Shelf::default();
    let mut plan = Plan::new();
    let source = plan.source("numbers", 1, Arc::new(numbers.clone()), OnError::ErrorOutput);
    plan.sink("good", 1, source, Arc::new(Shelf::default()));
    plan.sink("bad", 1, source.errors(), Arc::new(shelf.clone()));
    run(&World::new(plan), at_once);
    assert_eq!(shelf.texts("row"), ["5", "6"]);
    let (world, ..) = world(&numbers, double());
    let error = simulate(async { world.start(at_once).wait().await.unwrap_err() });
    assert_eq!(error.message(), "`numbers` failed on 5: not a number");
}

struct Panics;

impl Operator for Panics {
    fn output(&self, input: &arrow_schema::Schema) -> pelton_core::Result<arrow_schema::SchemaRef> {
        Ok(Arc::new(input.clone()))
    }
    fn create(&self) -> pelton_core::Result<Box<dyn Transform>> {
        Ok(Box::new(Panics))
    }
}

impl Transform for Panics {
    fn process(&mut self, _: arrow_array::RecordBatch, _: &mut Output) -> pelton_core::Result<()> {
        panic!("out of luck")
    }
}

#[test]
fn a_panic_fails_the_job_with_its_message() {
    let mut plan = Plan::new();
    let source = plan.source("numbers", 1, Arc::new(Numbers::new(1, 20, 4)), OnError::Fail);
    let map = plan.map("panics", 2, source, Arc::new(Panics));
    plan.sink("shelf", 1, map, Arc::new(Shelf::default()));
    let error = simulate(async { World::new(plan).start(at_once).wait().await.unwrap_err() });
    assert_eq!(error.message(), "`panics` panicked: out of luck");
}

#[test]
fn several_ways_lead_to_one_node() {
    let numbers = Numbers::new(3, 100, 7);
    let shelf = Shelf::default();
    let same = || Arc::new(Map { output: numbers_schema(), function: Arc::new(Ok) });
    let mut plan = Plan::new();
    let source = plan.source("numbers", 2, Arc::new(numbers.clone()), OnError::Fail);
    let a = plan.map("a", 1, source, same());
    let b = plan.map("b", 3, source, same());
    let join = plan.map("join", 2, a, same());
    plan.connect(b, join);
    let call = plan.call("double", 2, join, double());
    plan.sink("shelf", 2, call, Arc::new(shelf.clone()));
    run(&World::new(plan), at_once);
    let mut twice: Vec<i64> = numbers.all().into_iter().flat_map(|n| [n, n]).collect();
    twice.sort_unstable();
    assert_eq!(shelf.sorted("n"), twice);
}
