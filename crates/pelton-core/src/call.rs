//! A service as its callers see it. The data plane knows no more of a service than this.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::{InstanceId, RequestId};
use crate::service::MethodSpec;

/// Who goes first where not all can go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    Interactive,
    #[default]
    Normal,
    Bulk,
}

/// When a client may tell the ledgers of the instances to forget a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acknowledge {
    /// As soon as its outcome was handed to the caller.
    #[default]
    OnReceipt,
    /// Once the caller says so, with [`Caller::acknowledge`]: when a checkpoint covers it.
    Explicit,
}

/// Which instances some requests may go to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    /// Those with the least work.
    #[default]
    Any,
    /// One key a row: requests of the same key go to the same instance as long as it is there, for the sake of what it has cached of
    /// them (sessions, prefixes). Where it goes, its keys move to others, and no other key does.
    Keys(Vec<u64>),
    /// The instance of this number, from 0, and no other: they wait for it.
    Instance(u32),
}

/// Requests that are handed to a client together: one row of `arguments` each.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Index of the method in [`Caller::methods`].
    pub method: usize,
    /// One id a row. Law: an id that is in flight is not submitted again.
    pub ids: Vec<RequestId>,
    /// The method's input columns, in its order.
    pub arguments: RecordBatch,
    /// The overall deadline, from now; attempts and waiting included. None: wait as long as it takes.
    pub timeout: Option<Duration>,
    /// How long one attempt may take, from when it is sent; then another is made, as far as attempts and the retry budget
    /// go. None: the service's own.
    pub attempt_timeout: Option<Duration>,
    pub priority: Priority,
    /// One key a row, if requests of the same key shall run one after another, in the order in which they were submitted. Requests
    /// of different keys go side by side.
    pub keys: Option<Vec<u64>>,
    /// Which instances these may go to.
    pub affinity: Affinity,
    pub acknowledge: Acknowledge,
    /// Whoever submits says with [`Caller::took`] when it has done with each part of a streamed answer, and what it has not taken is
    /// bounded. Otherwise each counts as taken when it is delivered, and the receiver bounds what it keeps.
    pub paced: bool,
}

impl Submission {
    /// A submission with everything else at its default: the service's timeouts, normal priority, no keys.
    pub fn new(method: usize, ids: Vec<RequestId>, arguments: RecordBatch) -> Self {
        Submission {
            method,
            ids,
            arguments,
            timeout: None,
            attempt_timeout: None,
            priority: Priority::default(),
            keys: None,
            affinity: Affinity::Any,
            acknowledge: Acknowledge::default(),
            paced: false,
        }
    }
}

/// What became of one request, or one part of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub id: RequestId,
    /// For a method with one row a request: exactly that row. For a streaming method: the next rows, maybe none.
    pub rows: Result<RecordBatch>,
    /// Whether this ends the request. An error always does.
    pub last: bool,
}

/// Where outcomes are delivered. Called from the client's own task: must not block.
/// Law: after its last outcome a request is never delivered again.
pub trait Receiver: Send + Sync + 'static {
    fn deliver(&self, outcomes: Vec<Outcome>);

    /// The same of requests whose numbers follow one another, each of which ended with one of these rows. Who has no use for them together gets
    /// them one by one.
    fn deliver_rows(&self, first: RequestId, rows: RecordBatch) {
        let outcome = |row: usize| Outcome {
            id: RequestId { sequence: first.sequence + row as u64, ..first },
            rows: Ok(rows.slice(row, 1)),
            last: true,
        };
        self.deliver((0..rows.num_rows()).map(outcome).collect());
    }
}

/// Where a request is, as the client knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holder {
    /// Not sent.
    Client,
    /// Sent to this instance, no outcome yet.
    Instance(InstanceId),
}

/// A client of one service: takes requests, gives back exactly one final outcome each.
pub trait Caller: Send + Sync + 'static {
    /// The service's name.
    fn service(&self) -> &str;

    /// What can be called.
    fn methods(&self) -> &[MethodSpec];

    /// Takes the requests and returns at once; outcomes go to `receiver`. The caller bounds what it has in flight.
    fn submit(&self, submission: Submission, receiver: Arc<dyn Receiver>);

    /// Parts of streamed answers have been used up, one each time that an id is named; not those that ended their request.
    /// See [`Submission::paced`].
    fn took(&self, _ids: &[RequestId]) {}

    /// Takes requests back. Those that did not start never will; those that run are asked to stop.
    /// Each still ends with one outcome, an error of kind `Cancelled` unless it had ended before.
    fn cancel(&self, ids: &[RequestId]);

    /// Nobody hears of the requests of these operators any more: whoever submitted them is gone, and will submit them again, or not. Where a
    /// service remembers requests, what runs goes on, and the ids that come again are given what became of them.
    fn abandon(&self, operators: &[u32]);

    /// Stops sending what has not been sent; what is sent goes on. Used before a stop with a checkpoint.
    fn hold(&self);

    /// Tells the ledgers to forget these ended requests (see [`Acknowledge::Explicit`]).
    fn acknowledge(&self, ids: &[RequestId]);

    /// Where these unended requests are now, in the same order. For a checkpoint.
    fn holders(&self, ids: &[RequestId]) -> Vec<Holder>;
}

/// What to do with a row whose request ended in an error.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ErrorPolicy {
    /// The job fails with the error.
    #[default]
    Fail,
    /// The row goes to the operator's error output, with the error.
    ErrorOutput,
    /// The row goes on with these values in the method's output columns (JSON, by column name; a missing one is null).
    Default(serde_json::Map<String, serde_json::Value>),
}

/// The error that a [`Caller`] gives for requests of a method it does not have.
pub fn no_such_method(service: &str, method: &str, methods: &[MethodSpec]) -> Error {
    let names: Vec<&str> = methods.iter().map(|m| m.name.as_str()).collect();
    Error::invalid(format!("service `{service}` has no method `{method}`; it has: {}", names.join(", ")))
}
