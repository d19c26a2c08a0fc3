//! What the tests here share: a caller to try, and who receives its outcomes.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use pelton_core::call::{Caller, Outcome, Receiver, Submission};
use pelton_core::service::{Cardinality, MethodSpec};
use pelton_core::{Declaration, Error, RequestId};
use pelton_env::Env;
use pelton_remote::{RemoteCaller, Secret};
use tokio::sync::Notify;

/// Nothing here takes as long; a test that hangs ends with this and says what is missing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// All outcomes, in the order in which they came.
#[derive(Default)]
pub(crate) struct Inbox {
    all: Mutex<Vec<Outcome>>,
    changed: Notify,
}

impl Receiver for Inbox {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        self.all.lock().unwrap().extend(outcomes);
        self.changed.notify_one();
    }
}

impl Inbox {
    /// Waits until so many requests have ended, checks that each did so once and had nothing after, and gives each one's parts.
    pub(crate) async fn ended(
        &self,
        env: &Env,
        requests: usize,
    ) -> BTreeMap<u64, Vec<Result<RecordBatch, Error>>> {
        let count = || self.all.lock().unwrap().iter().filter(|o| o.last).count();
        let waiting = async {
            while count() < requests {
                self.changed.notified().await;
            }
        };
        let done = env.within(PATIENCE, waiting).await.is_some();
        assert!(done, "{} of {requests} requests have ended", count());
        let mut parts: BTreeMap<u64, Vec<Result<RecordBatch, Error>>> = BTreeMap::new();
        let mut over = BTreeMap::new();
        for outcome in self.all.lock().unwrap().iter() {
            let id = outcome.id.sequence;
            assert!(!over.contains_key(&id), "request {id} ended, and then came {outcome:?}");
            parts.entry(id).or_default().push(outcome.rows.clone());
            if outcome.last {
                over.insert(id, ());
            }
        }
        parts
    }
}

pub(crate) fn id(sequence: u64) -> RequestId {
    RequestId { operator: 1, group: 1, sequence }
}

fn schema(name: &str, column: DataType) -> Arc<Schema> {
    Arc::new(Schema::new(vec![Field::new(name, column, false)]))
}

pub(crate) fn spec(
    name: &str,
    input: (&str, DataType),
    output: (&str, DataType),
    cardinality: Cardinality,
) -> MethodSpec {
    let (input, output) = (schema(input.0, input.1), schema(output.0, output.1));
    MethodSpec { name: name.into(), input, output, cardinality, concurrency: None }
}

/// Text in, a vector of one number out.
pub(crate) fn embed() -> MethodSpec {
    let vector = DataType::new_fixed_size_list(DataType::Float32, 1, false);
    spec("embed", ("text", DataType::Utf8), ("vector", vector), Cardinality::One)
}

pub(crate) fn chat(cardinality: Cardinality) -> MethodSpec {
    spec("chat", ("text", DataType::Utf8), ("answer", DataType::Utf8), cardinality)
}

/// A declaration of kind remote, with more TOML before and in its table.
pub(crate) fn declaration(protocol: &str, urls: &[String], before: &str, within: &str) -> Declaration {
    let toml = format!(
        "name = \"s\"\nkind = \"remote\"\n{before}\n[remote]\nprotocol = \"{protocol}\"\nurls = {urls:?}\nmodel = \"m\"\n{within}"
    );
    Declaration::from_toml(&toml, "test").unwrap()
}

pub(crate) fn caller(
    env: &Env,
    declaration: &Declaration,
    method: MethodSpec,
    key: Option<&str>,
) -> Arc<RemoteCaller> {
    RemoteCaller::start(env, declaration, Arc::new([method]), key.map(Secret::new)).unwrap()
}

pub(crate) fn texts(caller: &RemoteCaller, texts: &[&str]) -> RecordBatch {
    let column = Arc::new(StringArray::from(texts.to_vec()));
    RecordBatch::try_new(caller.methods()[0].input.clone(), vec![column]).unwrap()
}

/// Submits these texts as requests 0, 1, 2 ...
pub(crate) fn submit(caller: &RemoteCaller, all: &[&str]) -> Arc<Inbox> {
    let inbox = Arc::new(Inbox::default());
    let ids = (0..all.len() as u64).map(id).collect();
    caller.submit(Submission::new(0, ids, texts(caller, all)), inbox.clone());
    inbox
}

/// The number in an embedding of one.
pub(crate) fn number(rows: &RecordBatch) -> f32 {
    assert_eq!(rows.num_rows(), 1);
    rows.column(0).as_fixed_size_list().value(0).as_primitive::<Float32Type>().value(0)
}

pub(crate) fn text(rows: &RecordBatch) -> String {
    rows.column(0).as_string::<i32>().iter().flatten().collect()
}
