//! Calls whose input inserts, updates and deletes, of a service that never answers the same twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::call::ErrorPolicy;
use pelton_core::id::stable_hash;
use pelton_core::{Bytes, Error, Kind, Result};
use pelton_dataflow::job::{End, Options};
use pelton_dataflow::operator::Map;
use pelton_dataflow::plan::{Call, Changelog, OnError, Plan};
use pelton_dataflow::source::{Read, Reader, Source, Split};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::{Answer, Shelf, World, env, kill, simulate, turns};

/// A row: its kind, its key, and what the service is asked. Retractions have a number that it must never see.
type Row = (&'static str, i64, i64);

const NEVER_ASKED: i64 = -1;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// One list a split.
#[derive(Clone)]
struct Changes {
    splits: Vec<Vec<Row>>,
    batch: usize,
}

fn schema() -> SchemaRef {
    let field = |name: &str, data_type| Field::new(name, data_type, true);
    Arc::new(Schema::new(vec![
        field("op", DataType::Utf8),
        field("id", DataType::Int64),
        field("n", DataType::Int64),
    ]))
}

impl Source for Changes {
    fn describe(&self) -> String {
        "changes".to_owned()
    }
    fn schema(&self) -> SchemaRef {
        schema()
    }
    fn splits(&self) -> Result<Vec<Split>> {
        let split = |s: usize| {
            let uri = format!("changes/{s}");
            Split { id: stable_hash(&uri), uri, bytes: 0, version: "1".to_owned() }
        };
        Ok((0..self.splits.len()).map(split).collect())
    }
    fn open(&self, split: &Split, position: u64) -> Result<Box<dyn Reader>> {
        let number: usize = split.uri.strip_prefix("changes/").unwrap().parse().unwrap();
        let rows = self.splits[number].clone();
        Ok(Box::new(ChangeReader { rows, batch: self.batch, position: position as usize }))
    }
}

struct ChangeReader {
    rows: Vec<Row>,
    batch: usize,
    position: usize,
}

impl Reader for ChangeReader {
    fn next(&mut self) -> Result<Option<Read>> {
        let rows: Vec<Row> = self.rows.iter().skip(self.position).take(self.batch).copied().collect();
        if rows.is_empty() {
            return Ok(None);
        }
        self.position += rows.len();
        let kinds = StringArray::from_iter_values(rows.iter().map(|r| r.0));
        let ids = Int64Array::from_iter_values(rows.iter().map(|r| r.1));
        let numbers = Int64Array::from_iter_values(rows.iter().map(|r| r.2));
        let rows = RecordBatch::try_new(schema(), vec![Arc::new(kinds), Arc::new(ids), Arc::new(numbers)])?;
        Ok(Some(Read { rows, bad: Vec::new(), position: self.position as u64 }))
    }
}

/// Another answer every time.
#[derive(Clone, Default)]
struct Moody {
    count: Arc<AtomicI64>,
    fails: bool,
    many: bool,
}

impl Moody {
    fn answer(&self, n: i64) -> Answer {
        assert_ne!(n, NEVER_ASKED, "a retraction was sent");
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        if self.fails && count % 5 == 2 {
            return Answer::Fails;
        }
        let values = match count % 4 {
            more if self.many => (0..more).map(|i| count * 10 + i).collect(),
            _ => vec![count * 10],
        };
        // An empty part has no columns to check; a streaming answer may be that.
        match values.is_empty() {
            true => Answer::Many(0),
            false => Answer::Gives(ms((count as u64).wrapping_mul(13) % 30), values),
        }
    }
}

fn call(service: &str) -> Call {
    Call { changelog: Some(Changelog::new("op", &["id"])), ..Call::new("maths", service, &["n"]) }
}

/// What becomes of a changelog: each row counts +1 or -1.
#[derive(Debug, Default, PartialEq)]
struct View(BTreeMap<(i64, i64), i64>);

impl View {
    /// Rows of this column, by key. Fails at the first moment at which something is there less than not at all.
    fn of(batches: &[RecordBatch], column: &str) -> View {
        let mut view = View::default();
        for rows in batches {
            let kinds = rows.column_by_name("op").unwrap().as_string::<i32>();
            let ids = rows.column_by_name("id").unwrap().as_primitive::<Int64Type>();
            let values = rows.column_by_name(column).unwrap().as_primitive::<Int64Type>();
            for i in 0..rows.num_rows() {
                view.add(kinds.value(i), ids.value(i), values.iter().nth(i).unwrap().unwrap_or(0));
            }
        }
        view.0.retain(|_, n| *n > 0);
        view
    }

    /// Rows of an error output: by key, and by what the message is.
    fn of_errors(shelf: &Shelf) -> View {
        let mut view = View::default();
        for (row, message) in shelf.texts("row").iter().zip(shelf.texts("message")) {
            let row: serde_json::Value = serde_json::from_str(row).unwrap();
            view.add(row["op"].as_str().unwrap(), row["id"].as_i64().unwrap(), stable_hash(&message) as i64);
        }
        view.0.retain(|_, n| *n > 0);
        view
    }

    fn add(&mut self, kind: &str, id: i64, value: i64) {
        let n = self.0.entry((id, value)).or_default();
        *n += if kind.starts_with('+') { 1 } else { -1 };
        assert!(*n >= 0, "{kind} of key {id} takes back {value}, which is not there");
    }

    fn keys(&self) -> Vec<i64> {
        self.0.iter().flat_map(|((id, _), n)| std::iter::repeat_n(*id, *n as usize)).collect()
    }
}

/// source -> call -> sink.
fn world(changes: &Changes, call: Call) -> (World, Shelf, Shelf) {
    let (shelf, errors) = (Shelf::default(), Shelf::default());
    let mut plan = Plan::new();
    let source = plan.source("changes", 1, Arc::new(changes.clone()), OnError::Fail);
    let wants_errors = call.on_error == ErrorPolicy::ErrorOutput;
    let call = plan.call("call", 2, source, call);
    plan.sink("shelf", 1, call, Arc::new(shelf.clone()));
    if wants_errors {
        plan.sink("errors", 1, call.errors(), Arc::new(errors.clone()));
    }
    (World::new(plan), shelf, errors)
}

const UPDATED: [Row; 7] = [
    ("+I", 1, 10),
    ("+I", 2, 20),
    ("+I", 3, 30),
    ("-U", 2, NEVER_ASKED),
    ("+U", 2, 21),
    ("-D", 1, NEVER_ASKED),
    ("-D", 3, NEVER_ASKED),
];

#[test]
fn retractions_take_back_what_was_given_out() {
    let changes = Changes { splits: vec![UPDATED.to_vec()], batch: 3 };
    let (world, shelf, _) = world(&changes, call("double"));
    let moody = Moody::default();
    let summary = simulate(async { world.start(move |n| moody.answer(n)).wait().await.unwrap() });
    assert_eq!(shelf.column("id"), [1, 2, 3, 2, 2, 1, 3], "ordered");
    let answers = shelf.column("twice");
    assert_eq!((answers[3], answers[5], answers[6]), (answers[1], answers[0], answers[2]));
    assert_eq!(View::of(&shelf.visible(), "twice").keys(), [2]);
    assert_eq!(world.log.lock().unwrap().rows.len(), 4, "retractions are not sent");
    let node = &summary.nodes[1];
    assert_eq!((node.rows_in, node.rows_out, node.stored_keys), (7, 7, 1), "key 2 may be taken back one day");
    assert!(node.stored_bytes > 0 && node.pending == 0);
}

#[test]
fn what_cannot_be_taken_back_is_an_error_of_its_row() {
    let rows = vec![("-D", 1, 5), ("+I", 2, 20), ("upsert", 3, 30), ("-D", 2, 20), ("-U", 2, 20)];
    let changes = Changes { splits: vec![rows], batch: 5 };
    let (one, shelf, errors) = world(&changes, Call { on_error: ErrorPolicy::ErrorOutput, ..call("double") });
    let asked = |n: i64| Answer::Gives(ms(1), vec![n + 1]);
    simulate(async { one.start(asked).wait().await.unwrap() });
    assert_eq!((shelf.column("id"), shelf.column("twice")), (vec![2, 2], vec![21, 21]));
    assert_eq!(errors.texts("kind"), ["invalid"; 3]);
    let messages = errors.texts("message");
    assert!(messages[0].starts_with("it takes back key (id) = (1), and no result of that is stored"));
    assert_eq!(messages[1], "`upsert` in column `op` is no row kind; they are +I, -U, +U and -D");
    assert!(messages[2].starts_with("it takes back key (id) = (2), and no result of that is stored"));
    assert_eq!(errors.texts("row")[2], r#"{"op":"-U","id":2,"n":20}"#);
    // Default values stand for it, as for any error.
    let policy = ErrorPolicy::Default(serde_json::json!({ "twice": 7 }).as_object().unwrap().clone());
    let (other, shelf, _) = world(&changes, Call { on_error: policy, ..call("double") });
    simulate(async { other.start(asked).wait().await.unwrap() });
    assert_eq!(shelf.column("twice"), [7, 21, 7, 21, 7]);
    let (last, ..) = world(&changes, call("double"));
    let error: Error = simulate(async { last.start(asked).wait().await.unwrap_err() });
    let says = ["it takes back key (id) = (1), and no", "`upsert` in column `op` is no row kind"];
    assert!(says.iter().any(|says| error.message().contains(says)), "{error}");
}

#[test]
fn a_job_with_more_to_store_than_it_may_fails_and_says_so() {
    let rows = |n: i64| (0..n).map(|id| ("+I", id, id)).collect();
    let small = Changelog::new("op", &["id"]).max_bytes(Bytes::kib(16));
    let limited = Call { changelog: Some(small), ..call("double") };
    let (world, ..) = world(&Changes { splits: vec![rows(1000)], batch: 10 }, limited);
    let error = simulate(async { world.start(|n| Answer::Gives(ms(1), vec![n])).wait().await.unwrap_err() });
    assert_eq!(error.kind(), Kind::Limit);
    let message = error.message();
    assert!(message.starts_with("call `call` has stored the results of "), "{message}");
    assert!(
        message.contains(" keys of its changelog, 16.") && message.contains("more than the 16 KiB"),
        "{message}"
    );
    assert!(message.contains("give its changelog a higher `max_bytes` or the call more tasks"), "{message}");
}

/// A changelog in which every key is taken back only while it is there.
fn random_changes(rng: &mut StdRng) -> (Changes, BTreeSet<i64>) {
    let mut live = BTreeSet::new();
    let mut asked = 0;
    let mut split = |s: i64| {
        let rows = (0..rng.random_range(20..150)).map(|_| {
            let id = s * 1000 + rng.random_range(0..12);
            let update = rng.random::<bool>();
            if live.remove(&id) {
                return (if update { "-U" } else { "-D" }, id, NEVER_ASKED);
            }
            live.insert(id);
            asked += 1;
            (if update { "+U" } else { "+I" }, id, asked)
        });
        rows.collect()
    };
    let splits = (0..3).map(&mut split).collect();
    (Changes { splits, batch: rng.random_range(1..20) }, live)
}

/// Runs it, killed at random again and again, with another parallelism each time.
fn run_and_kill(rng: &mut StdRng, plan: &dyn Fn(&mut StdRng) -> Plan, moody: &Moody) {
    let mut world = World::new(Plan::new());
    let script = |moody: &Moody| {
        let moody = moody.clone();
        move |n| moody.answer(n)
    };
    simulate(async {
        for _ in 0..rng.random_range(1..8) {
            world.plan = plan(rng);
            let (edge_bytes, pending_bytes) =
                (Bytes(rng.random_range(100..5_000)), Bytes(rng.random_range(100..5_000)));
            let interval = ms(rng.random_range(1..40));
            let options = Options { edge_bytes, pending_bytes, interval, ..world.options() };
            let running = world.try_start(options, script(moody)).unwrap();
            env().sleep(ms(rng.random_range(0..100))).await;
            turns(rng.random_range(0..60)).await;
            kill(running).await;
        }
        world.plan = plan(rng);
        world.start(script(moody)).wait().await.unwrap();
    });
}

#[test]
fn killed_at_random_each_live_key_is_there_once_and_nothing_is_taken_back_that_was_not_there() {
    for seed in 0..90 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (changes, live) = random_changes(&mut rng);
        let (policy, moody) = match seed % 3 {
            0 => (ErrorPolicy::Fail, Moody::default()),
            1 => (ErrorPolicy::ErrorOutput, Moody { fails: true, ..Moody::default() }),
            _ => (ErrorPolicy::Default(serde_json::Map::new()), Moody { fails: true, ..Moody::default() }),
        };
        let (shelf, errors) = (Shelf::default(), Shelf::default());
        let plan = |rng: &mut StdRng| {
            let mut p = |n| rng.random_range(1..=n);
            let mut plan = Plan::new();
            let source = plan.source("changes", p(3), Arc::new(changes.clone()), OnError::Fail);
            let call = Call { on_error: policy.clone(), ..call("double") };
            let call = plan.call("call", p(3), source, call);
            plan.sink("shelf", 1, call, Arc::new(shelf.clone()));
            if policy == ErrorPolicy::ErrorOutput {
                plan.sink("errors", 1, call.errors(), Arc::new(errors.clone()));
            }
            plan
        };
        run_and_kill(&mut rng, &plan, &moody);
        let mut keys = View::of(&shelf.visible(), "twice").keys();
        keys.extend(View::of_errors(&errors).keys());
        keys.sort_unstable();
        assert_eq!(keys, live.into_iter().collect::<Vec<_>>(), "seed {seed}");
        let rows: usize = changes.splits.iter().map(Vec::len).sum();
        assert_eq!(shelf.column("id").len() + errors.texts("row").len(), rows, "seed {seed}");
    }
}

#[test]
fn answers_of_many_rows_are_taken_back_whole() {
    for seed in 0..30 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (changes, live) = random_changes(&mut rng);
        let shelf = Shelf::default();
        let plan = |rng: &mut StdRng| {
            let mut plan = Plan::new();
            let source = plan.source("changes", 1, Arc::new(changes.clone()), OnError::Fail);
            let call = plan.call("call", rng.random_range(1..=3), source, call("repeat"));
            plan.sink("shelf", 1, call, Arc::new(shelf.clone()));
            plan
        };
        run_and_kill(&mut rng, &plan, &Moody { many: true, ..Moody::default() });
        let view = View::of(&shelf.visible(), "twice");
        assert!(
            view.0.values().all(|n| *n == 1) && view.0.keys().all(|(id, _)| live.contains(id)),
            "seed {seed}"
        );
        // As many as the last answer had, which is to be read off the values.
        for (id, values) in live.iter().map(|id| (id, view.0.keys().filter(|k| k.0 == *id).map(|k| k.1))) {
            let values: Vec<i64> = values.collect();
            let whole = values.first().is_none_or(|v| values.len() as i64 == v / 10 % 4);
            assert!(whole, "seed {seed}, key {id}: {values:?}");
        }
    }
}

#[test]
fn behind_a_call_that_decides_what_comes_the_order_is_kept_over_restarts() {
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (changes, live) = random_changes(&mut rng);
        let shelves = [Shelf::default(), Shelf::default(), Shelf::default()];
        let plan = |rng: &mut StdRng| {
            let mut p = |n| rng.random_range(1..=n);
            let mut plan = Plan::new();
            let source = plan.source("changes", p(3), Arc::new(changes.clone()), OnError::Fail);
            let may_fail = |method| Call { on_error: ErrorPolicy::ErrorOutput, ..call(method) };
            let first = plan.call("first", p(3), source, may_fail("double"));
            let drop = |rows: RecordBatch| Ok(rows.project(&[0, 1, 2])?);
            let map =
                plan.map("drop", 4, first, Arc::new(Map { output: schema(), function: Arc::new(drop) }));
            let second = plan.call("second", p(3), map, may_fail("double"));
            plan.sink("shelf", 1, second, Arc::new(shelves[0].clone()));
            plan.sink("first errors", 1, first.errors(), Arc::new(shelves[1].clone()));
            plan.sink("second errors", 1, second.errors(), Arc::new(shelves[2].clone()));
            plan
        };
        run_and_kill(&mut rng, &plan, &Moody { fails: true, ..Moody::default() });
        let mut keys = View::of(&shelves[0].visible(), "twice").keys();
        keys.extend(shelves[1..].iter().flat_map(|s| View::of_errors(s).keys()));
        keys.sort_unstable();
        assert_eq!(keys, live.into_iter().collect::<Vec<_>>(), "seed {seed}");
    }
}

/// The third row is not answered in the first run, so what comes behind it waits; what is before it is given out.
#[test]
fn a_savepoint_carries_what_is_stored_to_another_job_at_another_parallelism() {
    let changes = Changes {
        splits: (0..4).map(|s| UPDATED.map(|(kind, id, n)| (kind, s * 10 + id, n)).to_vec()).collect(),
        batch: 2,
    };
    simulate(async {
        let (first, shelf, _) = world(&changes, call("double"));
        let moody = Moody::default();
        let script = |moody: Moody, stuck: bool| {
            move |n| if stuck && n == 30 { Answer::Never } else { moody.answer(n) }
        };
        let running = first.start(script(moody.clone(), true));
        while shelf.column("id").len() < 8 {
            env().sleep(ms(10)).await;
        }
        let saved = tempfile::tempdir().unwrap();
        running.orders().savepoint(&saved.path().join("s"), true).await.unwrap();
        assert_eq!(running.wait().await.unwrap().end, End::Stopped);
        let mut before = shelf.visible();
        assert_eq!(View::of(&before, "twice").keys(), [1, 2, 11, 12, 21, 22, 31, 32]);

        let mut plan = Plan::new();
        let after = Shelf::default();
        let source = plan.source("changes", 2, Arc::new(changes.clone()), OnError::Fail);
        let again = plan.call("call", 3, source, call("double"));
        plan.sink("shelf", 1, again, Arc::new(after.clone()));
        let next = World::new(plan);
        let options = Options { from: Some(saved.path().join("s")), ..next.options() };
        next.try_start(options, script(moody, false)).unwrap().wait().await.unwrap();
        assert_eq!(after.column("id").len(), 4 * 5, "exactly the rest");
        before.extend(after.visible());
        assert_eq!(View::of(&before, "twice").keys(), [2, 12, 22, 32]);
    });
}

#[test]
fn a_checkpoint_of_another_changelog_is_refused() {
    let changes = Changes { splits: vec![UPDATED.to_vec()], batch: 3 };
    let (mut one, ..) = world(&changes, call("double"));
    let answer = |n: i64| Answer::Gives(ms(1), vec![n]);
    simulate(async {
        one.start(answer).wait().await.unwrap();
        let by = |key: &[&str]| Call { changelog: Some(Changelog::new("op", key)), ..call("double") };
        one.plan = world(&changes, by(&["id", "n"])).0.plan;
        let error = one.try_start(one.options(), answer).err().unwrap();
        let says = "it has call maths.double(n) of a changelog by (id), row kinds in `op`, `call`";
        assert!(error.message().contains(says), "{error}");
    });
}
