//! Runs the user's methods: on a thread of its own, strictly one after another; only futures of methods that opted in
//! go on side by side.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::RecordBatch;
use futures::StreamExt;
use futures::future::FutureExt;
use futures::stream::FuturesUnordered;
use pelton_core::service::{Context, Definition, Emitter, MethodSpec, Opened, Started, check_columns};
use pelton_core::{BoxFuture, Error, Fate, Kind, Result, Retry};
use tokio::sync::{mpsc, oneshot};

use crate::state::{Batch, BatchId, Event};

/// What the worker is asked to do.
pub(crate) enum Job {
    Run(Batch),
    Close(oneshot::Sender<()>),
}

/// Opens the service, then runs batches until it is told to close. What happens goes to `events`.
pub(crate) async fn work(
    definition: Definition,
    context: Context,
    mut jobs: mpsc::UnboundedReceiver<Job>,
    events: impl Fn(Event) + Send + Sync + Clone + 'static,
) {
    let opened = AssertUnwindSafe(async { definition.open(context).await }).catch_unwind().await;
    let mut service = match opened.unwrap_or_else(|panic| Err(panicked("`open`", &*panic))) {
        Ok(service) => {
            events(Event::Opened(Ok(())));
            service
        }
        Err(e) => {
            events(Event::Opened(Err(e)));
            // Whoever asks for the end of a service that never began has it at once.
            while let Some(job) = jobs.recv().await {
                if let Job::Close(done) = job {
                    let _ = done.send(());
                }
            }
            return;
        }
    };
    let mut pending: FuturesUnordered<BoxFuture<(BatchId, Result<RecordBatch>)>> = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            job = jobs.recv() => match job {
                Some(Job::Run(batch)) => run(&definition.methods, &mut *service, batch, &events, &mut pending),
                Some(Job::Close(done)) => {
                    if let Err(e) = service.close() {
                        tracing::warn!("`close` failed: {e}");
                    }
                    let _ = done.send(());
                    return;
                }
                None => return,
            },
            Some((batch, result)) = pending.next() => events(Event::Ended { batch, result }),
        }
    }
}

fn run(
    methods: &Arc<[MethodSpec]>,
    service: &mut dyn Opened,
    batch: Batch,
    events: &(impl Fn(Event) + Send + Sync + Clone + 'static),
    pending: &mut FuturesUnordered<BoxFuture<(BatchId, Result<RecordBatch>)>>,
) {
    let Batch { id, method, rows, invocation, gate } = batch;
    let spec = &methods[usize::from(method)];
    let emitter = Emitter::new(gate, {
        let (methods, invocation, events) = (methods.clone(), invocation.clone(), events.clone());
        move |rows| {
            if invocation.is_cancelled() {
                return Err(Error::new(
                    Kind::Cancelled,
                    Fate::Executed,
                    Retry::Never,
                    "nobody waits for the rest",
                ));
            }
            let spec = &methods[usize::from(method)];
            check_columns(format_args!("rows of method `{}`", spec.name), &rows, &spec.output)?;
            events(Event::Emitted { batch: id, rows });
            Ok(())
        }
    });
    // A method that panics has its batch failed and goes on with the state it left.
    let started =
        catch_unwind(AssertUnwindSafe(|| service.run(usize::from(method), rows, &invocation, &emitter)));
    match started {
        Ok(Started::Done(result)) => events(Event::Ended { batch: id, result }),
        Ok(Started::Pending(future)) => {
            let name = spec.name.clone();
            pending.push(Box::pin(async move {
                let result = AssertUnwindSafe(future).catch_unwind().await;
                (id, result.unwrap_or_else(|panic| Err(panicked(&format!("method `{name}`"), &*panic))))
            }));
        }
        Err(panic) => {
            let result = Err(panicked(&format!("method `{}`", spec.name), &*panic));
            events(Event::Ended { batch: id, result });
        }
    }
}

fn panicked(what: &str, panic: &(dyn std::any::Any + Send)) -> Error {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    Error::user(format!("{what} panicked: {message}"))
}
