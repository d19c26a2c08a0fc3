//! Calls through a [`Caller`], whosever it is: one batch there, one answer back, whole or part by part.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow_array::RecordBatch;
use pelton_core::call::{Affinity, Caller, Outcome, Priority, Receiver, Submission, no_such_method};
use pelton_core::{Error, RequestId, Result};
use tokio::sync::{oneshot, watch};

use crate::answers::{Answers, Inbox};

/// The operator number of calls that come from no operator.
const BY_HAND: u32 = u32::MAX;

/// How a call is made. Every field has a default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallOptions {
    /// The overall deadline of each request, attempts and waiting included. None: the service's own, or as long as it takes.
    pub timeout: Option<Duration>,
    /// How long one attempt may take until another is made. None: the service's own.
    pub attempt_timeout: Option<Duration>,
    /// Who goes first where not all can go. A call by hand is interactive unless it says otherwise.
    pub priority: Priority,
    /// One key a row, if rows of the same key shall run one after another, in their order.
    pub keys: Option<Vec<u64>>,
    /// Which instances the rows may go to.
    pub affinity: Affinity,
}

impl Default for CallOptions {
    fn default() -> Self {
        CallOptions {
            timeout: None,
            attempt_timeout: None,
            priority: Priority::Interactive,
            keys: None,
            affinity: Affinity::Any,
        }
    }
}

/// Request ids of calls that come from no operator. Those of two sources of them are never the same.
#[derive(Debug)]
pub struct Ids {
    group: u64,
    next: AtomicU64,
}

impl Ids {
    /// `group`: drawn by chance, from all that there are.
    pub fn new(group: u64) -> Arc<Ids> {
        Arc::new(Ids { group, next: AtomicU64::new(0) })
    }

    fn take(&self, rows: usize) -> Vec<RequestId> {
        let rows = rows as u64;
        let first = self.next.fetch_add(rows, Ordering::Relaxed);
        let id = |sequence| RequestId { operator: BY_HAND, group: self.group, sequence };
        (first..first + rows).map(id).collect()
    }
}

/// Calls of one service.
#[derive(Clone)]
pub struct Calls {
    caller: Arc<dyn Caller>,
    ids: Arc<Ids>,
    /// What ends all calls while it is there.
    failure: watch::Receiver<Option<Error>>,
}

impl Calls {
    /// `failure`: why the service cannot be called, for as long as it cannot.
    pub fn new(caller: Arc<dyn Caller>, ids: Arc<Ids>, failure: watch::Receiver<Option<Error>>) -> Calls {
        Calls { caller, ids, failure }
    }

    pub fn caller(&self) -> &Arc<dyn Caller> {
        &self.caller
    }

    fn method(&self, method: &str) -> Result<usize> {
        let specs = self.caller.methods();
        let index = specs.iter().position(|m| m.name == method);
        index.ok_or_else(|| no_such_method(self.caller.service(), method, specs))
    }

    fn submission(
        &self,
        method: usize,
        ids: Vec<RequestId>,
        arguments: RecordBatch,
        how: CallOptions,
    ) -> Submission {
        let CallOptions { timeout, attempt_timeout, priority, keys, affinity } = how;
        let plain = Submission::new(method, ids, arguments);
        Submission { timeout, attempt_timeout, priority, keys, affinity, ..plain }
    }

    /// Calls a method: one request a row of `arguments`, one row (or, of a streaming method, any number) for each in the
    /// answer, in the same order. The first request that fails fails the call. Dropping the future takes the requests back.
    /// The whole answer is in memory; for a streamed one that is large see [`stream`](Calls::stream).
    pub async fn call(&self, method: &str, arguments: RecordBatch, how: CallOptions) -> Result<RecordBatch> {
        let index = self.method(method)?;
        let output = self.caller.methods()[index].output.clone();
        if arguments.num_rows() == 0 {
            return Ok(RecordBatch::new_empty(output));
        }
        let mut failure = self.failure.clone();
        let failed = failure.borrow_and_update().clone();
        if let Some(error) = failed {
            return Err(error.with_fate(pelton_core::Fate::NotSent));
        }
        let ids = self.ids.take(arguments.num_rows());
        let first = ids[0].sequence;
        let (done, answer) = oneshot::channel();
        let gathering =
            Gathering { first, parts: vec![Vec::new(); ids.len()], missing: ids.len(), done: Some(done) };
        let mut cancel = CancelOnDrop { caller: self.caller.clone(), ids: ids.clone() };
        let submission = self.submission(index, ids, arguments, how);
        self.caller.submit(submission, Arc::new(Gather(Mutex::new(gathering))));
        let parts = tokio::select! {
            biased;
            answer = answer => answer.map_err(|_| Error::internal("a request ended without an answer"))??,
            error = given_up(&mut failure) => return Err(error),
        };
        // All have ended: there is nothing to take back.
        cancel.ids.clear();
        let mut rows = parts.into_iter().flatten();
        match (rows.next(), rows.next()) {
            (Some(only), None) => Ok(only),
            (first, second) => {
                let all: Vec<RecordBatch> = first.into_iter().chain(second).chain(rows).collect();
                Ok(arrow_select::concat::concat_batches(&output, &all)?)
            }
        }
    }

    /// The same for a thread that may block, and that serves no async runtime.
    pub fn call_blocking(
        &self,
        method: &str,
        arguments: RecordBatch,
        how: CallOptions,
    ) -> Result<RecordBatch> {
        futures::executor::block_on(self.call(method, arguments, how))
    }

    /// Calls a method, and gives the answers part by part as they come: one request a row of `arguments`, any number of parts for each.
    /// The methods run ahead of who takes the parts by the bounds of the declaration's `stream`, and then wait.
    pub fn stream(&self, method: &str, arguments: RecordBatch, how: CallOptions) -> Result<Answers> {
        let index = self.method(method)?;
        let ids = self.ids.take(arguments.num_rows());
        let mut failure = self.failure.clone();
        let failed = Box::pin(async move { given_up(&mut failure).await });
        let inbox = Arc::new(Inbox::default());
        let answers = Answers::new(self.caller.clone(), ids.clone(), inbox.clone(), failed);
        if !ids.is_empty() {
            let submission = Submission { paced: true, ..self.submission(index, ids, arguments, how) };
            self.caller.submit(submission, inbox);
        }
        Ok(answers)
    }
}

/// The error that a service gave up with, as soon as one does.
pub async fn given_up(failure: &mut watch::Receiver<Option<Error>>) -> Error {
    match failure.wait_for(Option::is_some).await.map(|f| f.clone()) {
        Ok(Some(error)) => error,
        _ => std::future::pending().await,
    }
}

/// Puts the answers of one call together.
struct Gather(Mutex<Gathering>);

type Parts = Vec<Vec<RecordBatch>>;

struct Gathering {
    first: u64,
    parts: Parts,
    missing: usize,
    done: Option<oneshot::Sender<Result<Parts>>>,
}

impl Receiver for Gather {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        let mut gathering = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for Outcome { id, rows, last } in outcomes {
            match rows {
                Ok(rows) => gathering.parts_of(id).push(rows),
                Err(error) => {
                    if let Some(done) = gathering.done.take() {
                        let _ = done.send(Err(error));
                    }
                }
            }
            gathering.ended(usize::from(last));
        }
    }

    fn deliver_rows(&self, first: RequestId, rows: RecordBatch) {
        let mut gathering = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let requests = rows.num_rows();
        // In the place of the first: those of the others stay empty.
        gathering.parts_of(first).push(rows);
        gathering.ended(requests);
    }
}

impl Gathering {
    /// Some requests more have ended.
    fn ended(&mut self, requests: usize) {
        self.missing -= requests;
        if self.missing == 0
            && let Some(done) = self.done.take()
        {
            let _ = done.send(Ok(std::mem::take(&mut self.parts)));
        }
    }

    fn parts_of(&mut self, id: RequestId) -> &mut Vec<RecordBatch> {
        &mut self.parts[(id.sequence - self.first) as usize]
    }
}

struct CancelOnDrop {
    caller: Arc<dyn Caller>,
    ids: Vec<RequestId>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        // Ids that have ended are no longer known, and nothing happens.
        if !self.ids.is_empty() {
            self.caller.cancel(&self.ids);
        }
    }
}
