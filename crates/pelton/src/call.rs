//! Services without a pipeline around them: start them, call them, stop them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arrow_array::RecordBatch;
use pelton_client::{Client, Stats};
use pelton_control::Control;
use pelton_core::call::{Caller, Outcome, Priority, Receiver, Submission, no_such_method};
use pelton_core::{Error, RequestId, Result};
use pelton_env::Env;
use pelton_remote::RemoteCaller;
use tokio::sync::{oneshot, watch};

use crate::answers::{Answers, Inbox};

/// The operator number of calls that come from no operator.
const BY_HAND: u32 = u32::MAX;

/// The running services of a job, and a client for each.
pub struct Services {
    env: Env,
    control: Control,
    clients: BTreeMap<String, Arc<Client>>,
    remotes: BTreeMap<String, Arc<RemoteCaller>>,
    /// Calls of this process are told from those of others by it.
    group: u64,
    next: AtomicU64,
}

impl Services {
    pub(crate) fn new(
        env: Env,
        control: Control,
        clients: BTreeMap<String, Arc<Client>>,
        remotes: BTreeMap<String, Arc<RemoteCaller>>,
    ) -> Self {
        let group = env.entropy.seed();
        Services { env, control, clients, remotes, group, next: AtomicU64::new(0) }
    }

    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    /// What runs.
    pub fn report(&self) -> pelton_control::JobReport {
        self.control.report()
    }

    /// What the callers of services that are not ours have in hand, and see of the servers.
    pub fn remotes(&self) -> BTreeMap<String, pelton_remote::Stats> {
        self.remotes.iter().map(|(name, caller)| (name.clone(), caller.stats())).collect()
    }

    /// What each client of instances has in hand.
    pub fn stats(&self) -> BTreeMap<String, Stats> {
        self.clients.iter().map(|(name, client)| (name.clone(), client.stats())).collect()
    }

    /// The caller of a service, be it instances of ours or servers of others.
    pub fn caller(&self, service: &str) -> Result<Arc<dyn Caller>> {
        if let Some(client) = self.clients.get(service) {
            return Ok(client.clone());
        }
        if let Some(remote) = self.remotes.get(service) {
            return Ok(remote.clone());
        }
        let names: Vec<String> = self.callers().into_keys().collect();
        Err(Error::invalid(format!("no service `{service}` in this job; it has: {}", names.join(", "))))
    }

    pub(crate) fn callers(&self) -> BTreeMap<String, Arc<dyn Caller>> {
        let ours = self.clients.iter().map(|(name, c)| (name.clone(), c.clone() as Arc<dyn Caller>));
        let others = self.remotes.iter().map(|(name, c)| (name.clone(), c.clone() as Arc<dyn Caller>));
        ours.chain(others).collect()
    }

    /// Waits until every instance of every service is ready, or a service gives up.
    pub async fn ready(&self) -> Result<()> {
        let (mut changes, mut failure) = (self.control.changes(), self.control.failure());
        loop {
            if self.control.report().services.iter().all(|s| s.ready() == s.wanted as usize) {
                return Ok(());
            }
            tokio::select! {
                biased;
                error = given_up(&mut failure) => return Err(error),
                _ = changes.changed() => {}
            }
        }
    }

    fn method(&self, service: &str, method: &str) -> Result<(Arc<dyn Caller>, usize)> {
        let caller = self.caller(service)?;
        let specs = caller.methods();
        let index = specs
            .iter()
            .position(|m| m.name == method)
            .ok_or_else(|| no_such_method(service, method, specs))?;
        Ok((caller, index))
    }

    fn ids(&self, rows: usize) -> Vec<RequestId> {
        let rows = rows as u64;
        let first = self.next.fetch_add(rows, Ordering::Relaxed);
        let id = |sequence| RequestId { operator: BY_HAND, group: self.group, sequence };
        (first..first + rows).map(id).collect()
    }

    /// Calls a method: one request a row of `arguments`, one row (or, of a streaming method, any number) for each in the
    /// answer, in the same order. The first request that fails fails the call. Dropping the future takes the requests back.
    /// The whole answer is in memory; for a streamed one that is large see [`stream`](Services::stream).
    pub async fn call(&self, service: &str, method: &str, arguments: RecordBatch) -> Result<RecordBatch> {
        let (caller, index) = self.method(service, method)?;
        let output = caller.methods()[index].output.clone();
        if arguments.num_rows() == 0 {
            return Ok(RecordBatch::new_empty(output));
        }
        let ids = self.ids(arguments.num_rows());
        let first = ids[0].sequence;
        let (done, answer) = oneshot::channel();
        let gathering =
            Gathering { first, parts: vec![Vec::new(); ids.len()], missing: ids.len(), done: Some(done) };
        let submission =
            Submission { priority: Priority::Interactive, ..Submission::new(index, ids.clone(), arguments) };
        let mut cancel = CancelOnDrop { caller: caller.clone(), ids };
        caller.submit(submission, Arc::new(Gather(Mutex::new(gathering))));
        let mut failure = self.control.failure();
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
    pub fn call_blocking(&self, service: &str, method: &str, arguments: RecordBatch) -> Result<RecordBatch> {
        futures::executor::block_on(self.call(service, method, arguments))
    }

    /// Calls a method, and gives the answers part by part as they come: one request a row of `arguments`, any number of parts for each.
    /// The methods run ahead of who takes the parts by the bounds of the declaration's `stream`, and then wait.
    ///
    /// ```no_run
    /// # use futures::StreamExt;
    /// # async fn tell(services: &pelton::Services, prompts: pelton::prelude::RecordBatch) -> pelton::Result<()> {
    /// let mut answers = services.stream("model", "generate", prompts)?;
    /// while let Some(part) = answers.next().await {
    ///     let part = part?;
    ///     println!("{}: {} rows", part.request, part.rows.num_rows());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn stream(&self, service: &str, method: &str, arguments: RecordBatch) -> Result<Answers> {
        let (caller, index) = self.method(service, method)?;
        let ids = self.ids(arguments.num_rows());
        let mut failure = self.control.failure();
        let failed = Box::pin(async move { given_up(&mut failure).await });
        let inbox = Arc::new(Inbox::default());
        let answers = Answers::new(caller.clone(), ids.clone(), inbox.clone(), failed);
        if !ids.is_empty() {
            let submission = Submission {
                priority: Priority::Interactive,
                paced: true,
                ..Submission::new(index, ids, arguments)
            };
            caller.submit(submission, inbox);
        }
        Ok(answers)
    }

    /// Ends all instances, and returns when they are gone.
    pub async fn stop(self) {
        let Services { control, clients, remotes, .. } = self;
        drop((clients, remotes));
        control.stop().await;
    }

    pub fn env(&self) -> &Env {
        &self.env
    }
}

/// The error that a service gave up with, as soon as one does.
pub(crate) async fn given_up(failure: &mut watch::Receiver<Option<Error>>) -> Error {
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
        let mut gathering = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for Outcome { id, rows, last } in outcomes {
            match rows {
                Ok(rows) => gathering.parts_of(id).push(rows),
                Err(error) => {
                    if let Some(done) = gathering.done.take() {
                        let _ = done.send(Err(error));
                    }
                }
            }
            gathering.missing -= usize::from(last);
        }
        if gathering.missing == 0
            && let Some(done) = gathering.done.take()
        {
            let parts = std::mem::take(&mut gathering.parts);
            let _ = done.send(Ok(parts));
        }
    }
}

impl Gathering {
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
