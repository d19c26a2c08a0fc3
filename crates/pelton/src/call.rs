//! Services without a pipeline around them: start them, call them, stop them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use pelton_call::{Answers, CallOptions, Calls, Ids, given_up};
use pelton_client::{Client, Stats};
use pelton_control::Control;
use pelton_core::call::Caller;
use pelton_core::{Error, Result};
use pelton_env::Env;
use pelton_remote::RemoteCaller;

/// The running services of a job, and a client for each.
pub struct Services {
    env: Env,
    control: Control,
    clients: BTreeMap<String, Arc<Client>>,
    remotes: BTreeMap<String, Arc<RemoteCaller>>,
    ids: Arc<Ids>,
}

impl Services {
    pub(crate) fn new(
        env: Env,
        control: Control,
        clients: BTreeMap<String, Arc<Client>>,
        remotes: BTreeMap<String, Arc<RemoteCaller>>,
    ) -> Self {
        let ids = Ids::new(env.entropy.seed());
        Services { env, control, clients, remotes, ids }
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

    /// Calls of a service, one after another or side by side, with options of their own.
    pub fn calls(&self, service: &str) -> Result<Calls> {
        Ok(Calls::new(self.caller(service)?, self.ids.clone(), self.control.failure()))
    }

    /// Calls a method: one request a row of `arguments`, one row (or, of a streaming method, any number) for each in the
    /// answer, in the same order. The first request that fails fails the call. Dropping the future takes the requests back.
    /// The whole answer is in memory; for a streamed one that is large see [`stream`](Services::stream).
    pub async fn call(&self, service: &str, method: &str, arguments: RecordBatch) -> Result<RecordBatch> {
        self.calls(service)?.call(method, arguments, CallOptions::default()).await
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
        self.calls(service)?.stream(method, arguments, CallOptions::default())
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
