//! What plans are refused, and why.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::call::ErrorPolicy;
use pelton_core::{Bytes, Result};
use pelton_dataflow::Budgets;
use pelton_dataflow::operator::{Map, Operator, Transform};
use pelton_dataflow::plan::{Call, Changelog, NodeId, OnError, Order, Plan};
use pelton_dataflow::topology::Topology;

use crate::support::{Numbers, Shelf, methods, numbers_schema};

fn double() -> Call {
    Call::new("maths", "double", &["n"])
}

fn source(plan: &mut Plan) -> NodeId {
    plan.source("numbers", 1, Arc::new(Numbers::new(1, 1, 1)), OnError::Fail)
}

fn shelf() -> Arc<Shelf> {
    Arc::default()
}

fn same() -> Arc<dyn Operator> {
    Arc::new(Map { output: numbers_schema(), function: Arc::new(Ok) })
}

fn validate(plan: &Plan) -> Result<Topology> {
    plan.validate(&|name| (name == "maths").then(methods))
}

/// The message that a plan around these nodes is refused with.
fn refused(build: impl FnOnce(&mut Plan)) -> String {
    let mut plan = Plan::new();
    build(&mut plan);
    validate(&plan).err().expect("it is refused").to_string()
}

/// source -> call -> sink.
fn refused_call(call: Call) -> String {
    refused(|plan| {
        let s = source(plan);
        let c = plan.call("c", 1, s, call);
        plan.sink("out", 1, c, shelf());
    })
}

/// Gives text.
struct Texts;

impl Operator for Texts {
    fn output(&self, _: &Schema) -> Result<SchemaRef> {
        Ok(Arc::new(Schema::new(vec![Field::new("n", DataType::Utf8, true)])))
    }
    fn create(&self) -> Result<Box<dyn Transform>> {
        unreachable!("it is only checked")
    }
}

#[test]
fn every_mistake_has_its_message() {
    assert_eq!(refused(|_| ()), "the plan has no source; add one for the rows to come from");
    let dangling = refused(|plan| _ = source(plan));
    assert_eq!(dangling, "nothing takes the rows of `numbers`; connect a sink or another node");
    let twice = refused(|plan| {
        let s = source(plan);
        plan.sink("numbers", 1, s, shelf());
    });
    assert_eq!(twice, "two nodes are called `numbers`; rename one of them");
    let none = refused(|plan| {
        let s = source(plan);
        plan.sink("out", 0, s, shelf());
    });
    assert_eq!(none, "`out` has parallelism 0; give it at least 1");
    let cycle = refused(|plan| {
        let s = source(plan);
        let a = plan.map("a", 1, s, same());
        let b = plan.map("b", 1, a, same());
        plan.connect(b, a);
        plan.sink("out", 1, b, shelf());
    });
    assert_eq!(
        cycle,
        "there is a cycle through some of `a`, `b`, `out`; rows must flow one way, so remove an edge of it"
    );
    let into_source = refused(|plan| {
        let s = source(plan);
        plan.connect(s, s);
    });
    assert_eq!(into_source, "source `numbers` has an input; rows cannot go to a source");
    let out_of_sink = refused(|plan| {
        let s = source(plan);
        let out = plan.sink("out", 1, s, shelf());
        plan.sink("out2", 1, out, shelf());
    });
    assert_eq!(out_of_sink, "sink `out` has no outputs; take the rows from the node before it");
    let errors = refused_call(Call { on_error: ErrorPolicy::ErrorOutput, ..double() });
    assert_eq!(
        errors,
        "nothing takes the errors of `c`; connect its error output to a sink, or choose another error policy"
    );
    let no_errors = refused(|plan| {
        let s = source(plan);
        plan.sink("out", 1, s, shelf());
        plan.sink("bad", 1, s.errors(), shelf());
    });
    assert!(
        no_errors.starts_with("something takes the errors of `numbers`, but its error policy sends none"),
        "{no_errors}"
    );
    let differ = refused(|plan| {
        let s = source(plan);
        let texts = plan.map("texts", 1, s, Arc::new(Texts));
        let out = plan.sink("out", 1, s, shelf());
        plan.connect(texts, out);
    });
    assert_eq!(
        differ,
        "the inputs of `out` differ: `numbers` gives (n: Int64), `texts` gives (n: Utf8?); make them the same with a map"
    );
}

#[test]
fn calls_are_checked_against_the_service() {
    let message = refused_call(Call { service: "math".to_owned(), ..double() });
    assert_eq!(
        message,
        "call `c` names service `math`, which is not declared; declare it or correct the name"
    );
    let message = refused_call(Call { method: "halve".to_owned(), ..double() });
    assert_eq!(message, "call `c`: service `maths` has no method `halve`; it has: double, repeat");
    let message = refused_call(Call { arguments: vec!["m".to_owned()], ..double() });
    assert_eq!(
        message,
        "call `c` of `maths.double` takes column `m`, which its input does not have; it has (n: Int64)"
    );
    let message = refused_call(Call { arguments: Vec::new(), ..double() });
    assert_eq!(message, "call `c` of `maths.double` gives 0 arguments (); the method takes (x: Int64)");
    let message = refused(|plan| {
        let s = source(plan);
        let texts = plan.map("texts", 1, s, Arc::new(Texts));
        let c = plan.call("c", 1, texts, double());
        plan.sink("out", 1, c, shelf());
    });
    assert_eq!(
        message,
        "call `c` of `maths.double` takes column `n`, which is Utf8, but the method's `x` is Int64; convert it in a map before the call"
    );
    let message = refused(|plan| {
        let s = source(plan);
        let a = plan.call("a", 1, s, double());
        let b = plan.call("b", 1, a, double());
        plan.sink("out", 1, b, shelf());
    });
    assert_eq!(message, "`b` would have two columns called `twice`; rename or drop one before it");
    let default = |value: serde_json::Value| ErrorPolicy::Default(value.as_object().unwrap().clone());
    let message = refused_call(Call { on_error: default(serde_json::json!({ "thrice": 1 })), ..double() });
    assert_eq!(
        message,
        "default values of call `c` of `maths.double`: the method has no column `thrice`; it has: twice"
    );
    let message = refused_call(Call { on_error: default(serde_json::json!({ "twice": [1] })), ..double() });
    assert!(
        message.starts_with("default values of call `c` of `maths.double`: they do not fit the columns: "),
        "{message}"
    );
    let repeat = Call { method: "repeat".to_owned(), on_error: default(serde_json::json!({})), ..double() };
    assert!(refused_call(repeat).contains("has default values, but gives any number of rows"));
}

/// Gives rows of a changelog.
struct Changes;

impl Operator for Changes {
    fn output(&self, _: &Schema) -> Result<SchemaRef> {
        let field = |name: &str, data_type| Field::new(name, data_type, true);
        let number = |name| field(name, DataType::Int64);
        let columns =
            vec![field("op", DataType::Utf8), number("id"), number("n"), field("x", DataType::Float64)];
        Ok(Arc::new(Schema::new(columns)))
    }
    fn create(&self) -> Result<Box<dyn Transform>> {
        unreachable!("it is only checked")
    }
}

#[test]
fn changelogs_are_checked() {
    let check = |changelog: Changelog, order: Order, expected: &str| {
        let message = refused(|plan| {
            let s = source(plan);
            let changes = plan.map("changes", 1, s, Arc::new(Changes));
            let c = plan.call("c", 1, changes, Call { order, changelog: Some(changelog), ..double() });
            plan.sink("out", 1, c, shelf());
        });
        assert_eq!(message, expected);
    };
    let by = Changelog::new;
    check(
        by("op", &["id"]),
        Order::Unordered,
        "call `c` takes a changelog and is unordered, so a retraction could leave before what it takes back; make it ordered",
    );
    let takes = "call `c` of `maths.double` takes";
    for (changelog, expected) in [
        (
            by("kind", &["id"]),
            "row kinds from column `kind`, which its input does not have; it has (op: Utf8?, id: Int64?, n: Int64?, x: Float64?)",
        ),
        (
            by("n", &["id"]),
            "row kinds from column `n`, which is Int64; a row kind is a text: +I, -U, +U or -D",
        ),
        (
            by("op", &[]),
            "a changelog by (); name the columns that say which row is meant, and not that of the row kind",
        ),
        (
            by("op", &["id", "op"]),
            "a changelog by (id, op); name the columns that say which row is meant, and not that of the row kind",
        ),
    ] {
        check(changelog, Order::Ordered, &format!("{takes} {expected}"));
    }
    for (changelog, expected) in [
        (
            by("op", &["key"]),
            "stores results by column `key`, which its input does not have; it has (op: Utf8?, id: Int64?, n: Int64?, x: Float64?)",
        ),
        (
            by("op", &["x"]),
            "stores results by column `x`, which is Float64; a key is a text or a whole number",
        ),
        (
            by("op", &["id"]).max_bytes(Bytes(0)),
            "may store 0 B of results a task; choose more than nothing and at most 1 GiB, and more tasks where that is too little",
        ),
        (
            by("op", &["id"]).max_bytes(Bytes::mib(1025)),
            "may store 1.0 GiB of results a task; choose more than nothing and at most 1 GiB, and more tasks where that is too little",
        ),
    ] {
        check(changelog, Order::Ordered, &format!("call `c` of `maths.double` {expected}"));
    }
    let behind = refused(|plan| {
        let s = source(plan);
        let first = plan.call("first", 1, s, Call { order: Order::Unordered, ..double() });
        let changes = plan.map("changes", 1, first, Arc::new(Changes));
        let c = plan.call("c", 1, changes, Call { changelog: Some(by("op", &["id"])), ..double() });
        plan.sink("out", 1, c, shelf());
    });
    assert_eq!(
        behind,
        "call `c` takes a changelog, and call `first` before it is unordered, so a retraction could come before what it takes back; make \
         `first` ordered"
    );
}

#[test]
fn a_call_explains_its_changelog() {
    let mut plan = Plan::new();
    let s = source(&mut plan);
    let changes = plan.map("changes", 1, s, Arc::new(Changes));
    let c = plan.call("c", 2, changes, Call { changelog: Some(Changelog::new("op", &["id"])), ..double() });
    plan.sink("out", 1, c, shelf());
    let budgets = Budgets { edge: Bytes::mib(8), pending: Bytes::mib(32) };
    let text = validate(&plan).unwrap().explain(budgets);
    let expected = "\
  call `c`: maths.double(n); ordered within a split; a changelog by (id), row kinds in `op`: retractions get the stored results; no timeout; \
an error fails the job; the same ids after a restart
    gives (op: Utf8?, id: Int64?, n: Int64?, x: Float64?, twice: Int64)
    holds up to 32 MiB of rows and results a task
    stores up to 256 MiB of results for retractions a task
";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn a_plan_explains_itself() {
    let mut plan = Plan::new();
    let s = source(&mut plan);
    let map = plan.map("same", 1, s, same());
    let call = plan.call("first", 2, map, Call { order: Order::Unordered, ..double() });
    let texts = Arc::new(Map { output: numbers_schema(), function: Arc::new(Ok) });
    let drop = plan.map("drop", 2, call, texts);
    let second = plan.call("second", 1, drop, double());
    plan.sink("out", 1, second, shelf());
    let topology = validate(&plan).unwrap();
    let budgets = Budgets { edge: Bytes::mib(8), pending: Bytes::mib(32) };
    let text = topology.explain(budgets);
    let expected = "\
stage 0, 1 task
  source `numbers`: numbers; bad records fail the job
    gives (n: Int64)
  map `same`: row by row
    gives (n: Int64)
  rows of `same` -> `first`, up to 8 MiB
stage 1, 2 tasks
  call `first`: maths.double(n); unordered; no timeout; an error fails the job; the same ids after a restart
    gives (n: Int64, twice: Int64)
    holds up to 32 MiB of rows and results a task
  map `drop`: row by row
    gives (n: Int64)
  rows of `drop` -> `second`, up to 8 MiB
stage 2, 1 task
  call `second`: maths.double(n); ordered within a split; no timeout; an error fails the job; new ids after a restart for rows \
that no checkpoint covers, as an earlier call decides what comes
    gives (n: Int64, twice: Int64)
    holds up to 32 MiB of rows and results a task
  rows of `second` -> `out`, up to 8 MiB
stage 3, 1 task
  sink `out`: a shelf; every row is visible exactly once
guarantee: every row is visible exactly once
";
    assert_eq!(text, expected, "{text}");
}
