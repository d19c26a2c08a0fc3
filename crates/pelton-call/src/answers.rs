//! Answers part by part, as they come.

use std::any::Any;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use arrow_array::RecordBatch;
use futures::Stream;
use pelton_core::call::{Caller, Outcome, Receiver};
use pelton_core::{BoxFuture, Error, RequestId, Result};

/// Some rows of the answer to one request. Several parts of one request come in their order; those of different requests come mixed.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Which row of the arguments it answers, from 0.
    pub request: usize,
    /// With the method's output columns.
    pub rows: RecordBatch,
}

/// The parts of the answers to one or more requests: a [`Stream`], or with [`blocking`](Answers::blocking) an iterator. It ends after the
/// last part of the last request, or with the first error. Each part counts as taken when it is handed out; while none is taken, the
/// methods wait, and at most the declaration's `stream.total` is in memory here. Dropping it takes back what has not ended.
pub struct Answers {
    caller: Arc<dyn Caller>,
    ids: Vec<RequestId>,
    inbox: Arc<Inbox>,
    missing: usize,
    /// Ends when the service gives up.
    given_up: BoxFuture<Error>,
    /// What carries the caller, as long as these are wanted.
    _keeps: Option<Arc<dyn Any + Send + Sync>>,
}

/// Where the client delivers.
#[derive(Default)]
pub(crate) struct Inbox(Mutex<Delivered>);

#[derive(Default)]
struct Delivered {
    outcomes: VecDeque<Outcome>,
    waker: Option<Waker>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Delivered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Receiver for Inbox {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        let mut delivered = self.lock();
        delivered.outcomes.extend(outcomes);
        let waker = delivered.waker.take();
        drop(delivered);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Answers {
    /// Of requests with consecutive ids that are about to be submitted, paced, with this inbox.
    pub(crate) fn new(
        caller: Arc<dyn Caller>,
        ids: Vec<RequestId>,
        inbox: Arc<Inbox>,
        given_up: BoxFuture<Error>,
    ) -> Self {
        let missing = ids.len();
        Answers { caller, ids, inbox, missing, given_up, _keeps: None }
    }

    pub(crate) fn keeping(mut self, carrier: Arc<dyn Any + Send + Sync>) -> Self {
        self._keeps = Some(carrier);
        self
    }

    /// The same for a thread that may block, and that serves no async runtime.
    pub fn blocking(self) -> impl Iterator<Item = Result<Part>> {
        futures::executor::block_on_stream(self)
    }

    fn end(&mut self, error: Error) -> Poll<Option<Result<Part>>> {
        self.missing = 0;
        self.caller.cancel(&self.ids);
        Poll::Ready(Some(Err(error)))
    }
}

impl Stream for Answers {
    type Item = Result<Part>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Part>>> {
        while self.missing > 0 {
            let outcome = {
                let mut delivered = self.inbox.lock();
                let outcome = delivered.outcomes.pop_front();
                if outcome.is_none() {
                    delivered.waker = Some(context.waker().clone());
                }
                outcome
            };
            let Some(Outcome { id, rows, last }) = outcome else {
                return match self.given_up.as_mut().poll(context) {
                    Poll::Ready(error) => self.end(error),
                    Poll::Pending => Poll::Pending,
                };
            };
            let rows = match rows {
                Ok(rows) => rows,
                Err(error) => return self.end(error),
            };
            if last {
                self.missing -= 1;
            } else {
                self.caller.took(&[id]);
            }
            if rows.num_rows() > 0 {
                let request = (id.sequence - self.ids[0].sequence) as usize;
                return Poll::Ready(Some(Ok(Part { request, rows })));
            }
        }
        Poll::Ready(None)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        // Also of those that have ended, whose last parts nobody will take.
        self.caller.cancel(&self.ids);
    }
}
