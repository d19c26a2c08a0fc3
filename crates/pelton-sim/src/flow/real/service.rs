//! The service that a scenario's backend is, as it would be declared.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::{ArrayRef, Float64Array, RecordBatch, UInt32Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::Declaration;
use pelton_core::call::{Outcome, Receiver};
use pelton_core::endpoint::{Address, Endpoint};
use pelton_core::id::InstanceId;
use pelton_core::service::{Cardinality, MethodSpec};

use crate::flow::scenario::{Backend, Scenario};

const NAME: &str = "model";
/// The argument column with a row's cost.
const WEIGHT: &str = "weight";
/// The argument column with how much a language model will write. Nothing but the model looks at it.
const WRITES: &str = "writes";
/// The result column with how much it wrote.
const WRITTEN: &str = "written";
/// Rows that a service may batch that sets no bound of its own.
const ANY_ROWS: u32 = 4096;
/// A language model gives nothing before its answer is complete; the longest of all take minutes.
const LONG_ANSWER: Duration = Duration::from_secs(900);

pub(super) struct Service {
    pub(super) declaration: Declaration,
    pub(super) methods: Arc<[MethodSpec]>,
    pub(super) receiver: Arc<dyn Receiver>,
    /// Whether requests have deadlines of their own, and so are submitted one by one.
    pub(super) one_by_one: bool,
    input: SchemaRef,
    output: SchemaRef,
    /// Answers of a service that writes nothing.
    blank: RecordBatch,
}

/// Outcomes are taken from the actions, not from here.
struct Nobody;
impl Receiver for Nobody {
    fn deliver(&self, _: Vec<Outcome>) {}
}

impl Service {
    pub(super) fn of(scenario: &Scenario) -> Self {
        let input: SchemaRef = Arc::new(Schema::new(vec![
            Field::new(WEIGHT, DataType::Float64, false),
            Field::new(WRITES, DataType::UInt32, false),
        ]));
        let output: SchemaRef = Arc::new(Schema::new(vec![Field::new(WRITTEN, DataType::UInt32, false)]));
        let method = MethodSpec {
            name: "call".into(),
            input: input.clone(),
            output: output.clone(),
            cardinality: Cardinality::One,
            concurrency: concurrency(scenario),
        };
        Service {
            declaration: declaration(scenario),
            methods: Arc::from([method]),
            receiver: Arc::new(Nobody),
            one_by_one: scenario.callers.deadline_per_token > 0.0,
            blank: written(&output, vec![0; ANY_ROWS as usize]),
            input,
            output,
        }
    }

    pub(super) fn id(&self, number: usize, incarnation: u32) -> InstanceId {
        InstanceId { service: NAME.into(), number: number as u32, incarnation }
    }

    pub(super) fn endpoint(&self, number: usize, incarnation: u32) -> Endpoint {
        let address = Address::Unix(PathBuf::from(format!("/{NAME}-{number}.{incarnation}")));
        Endpoint { instance: self.id(number, incarnation), address }
    }

    pub(super) fn arguments(&self, costs: Vec<f64>, writes: Vec<u32>) -> RecordBatch {
        let columns: Vec<ArrayRef> =
            vec![Arc::new(Float64Array::from(costs)), Arc::new(UInt32Array::from(writes))];
        RecordBatch::try_new(self.input.clone(), columns).expect("columns as the schema says")
    }

    /// The answer to so many rows, each of which wrote nothing.
    pub(super) fn answers(&self, rows: usize) -> RecordBatch {
        self.blank.slice(0, rows)
    }

    /// The answer to one row that wrote so much.
    pub(super) fn answer(&self, tokens: u32) -> RecordBatch {
        written(&self.output, vec![tokens])
    }
}

fn written(schema: &SchemaRef, tokens: Vec<u32>) -> RecordBatch {
    RecordBatch::try_new(schema.clone(), vec![Arc::new(UInt32Array::from(tokens))])
        .expect("columns as the schema says")
}

/// The cost and the output of all rows of a batch.
pub(super) fn sums(rows: &RecordBatch) -> (f64, u32) {
    use arrow_array::cast::AsArray;
    use arrow_array::types::{Float64Type, UInt32Type};
    let costs = rows.column(0).as_primitive::<Float64Type>();
    let writes = rows.column(1).as_primitive::<UInt32Type>();
    (costs.values().iter().sum(), writes.values().iter().sum())
}

/// How many batches may run side by side.
fn concurrency(scenario: &Scenario) -> Option<usize> {
    let of = |backend: &Backend| match backend {
        Backend::Batching(_) | Backend::Gateway(_) => None,
        Backend::LanguageModel(m) => Some(m.sequences),
        Backend::Cpu(c) => Some(c.cores),
    };
    scenario.regimes.iter().flat_map(|r| &r.replicas).filter_map(|replica| of(&replica.backend)).max()
}

/// What a user declares: what the service is like. How much may be in flight is nowhere in it.
fn declaration(scenario: &Scenario) -> Declaration {
    let mut declaration = Declaration::new(NAME).instances(scenario.replicas() as u32);
    declaration.weight.column = Some(WEIGHT.into());
    // A source that always has more tries again until it has its answer.
    declaration.retry.attempts = 1000;
    declaration.retry.backoff = Duration::from_secs_f64(scenario.callers.retry_after);
    declaration.retry.max_backoff = declaration.retry.backoff * 10;
    let memory = match &scenario.regimes[0].replicas[0].backend {
        Backend::Batching(b) => {
            declaration.batch.rows = b.max_rows;
            b.memory
        }
        Backend::LanguageModel(m) => {
            declaration.batch.rows = 1;
            declaration.weight.output = Some(WRITTEN.into());
            declaration.stall = Some(LONG_ANSWER);
            Some(m.memory)
        }
        Backend::Gateway(_) => None,
        Backend::Cpu(_) => {
            declaration.batch.rows = ANY_ROWS;
            None
        }
    };
    // The service reports its memory; only a belief that is wrong is declared.
    if scenario.belief != 1.0 {
        declaration.weight.memory = memory.map(|memory| memory * scenario.belief);
    }
    declaration
}
