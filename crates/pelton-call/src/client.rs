//! A service, as a program that is no job calls it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use pelton_client::{Client, Stats};
use pelton_core::call::{Affinity, Caller, Priority, no_such_method};
use pelton_core::service::MethodSpec;
use pelton_core::{Error, Result};
use pelton_env::real::Host;
use pelton_env::{Place, Task};
use tokio::sync::oneshot;

use crate::answers::Answers;
use crate::calls::{CallOptions, Calls, Ids};
use crate::reaching::{Reaching, reach};
use crate::target::Target;

/// A service that can be called, wherever it runs. Cheap to clone; all clones share one connection to each instance.
///
/// Its connections live on a thread of its own, so that its futures can be awaited in any async runtime, or in none
/// ([`call_blocking`](ServiceClient::call_blocking)). They end with the last clone, method and stream.
#[derive(Clone)]
pub struct ServiceClient {
    inner: Arc<Inner>,
}

struct Inner {
    calls: Calls,
    client: Arc<Client>,
    _tasks: Vec<Task>,
    /// Last: its threads carry all of the above.
    _host: Host,
}

impl ServiceClient {
    /// Finds the service, and asks it what can be called. Fails if none of it answers within the target's patience, and at once if it is
    /// known that none will: a wrong token, a service that its job does not have.
    pub async fn connect(target: Target) -> Result<ServiceClient> {
        let host = Host::new(1, 1)?;
        let env = host.env().clone();
        let (done, reached) = oneshot::channel();
        let _reaching = host.env().spawn(Place::Network, async move {
            let _ = done.send(reach(&env, target).await);
        });
        let Reaching { client, failure, tasks } =
            reached.await.map_err(|_| Error::internal("the thread of a service's client has ended"))??;
        let calls = Calls::new(client.clone(), Ids::new(host.env().entropy.seed()), failure);
        Ok(ServiceClient { inner: Arc::new(Inner { calls, client, _tasks: tasks, _host: host }) })
    }

    /// The same for a thread that may block, and that serves no async runtime.
    pub fn connect_blocking(target: Target) -> Result<ServiceClient> {
        futures::executor::block_on(ServiceClient::connect(target))
    }

    /// What the service is called where it runs.
    pub fn service(&self) -> &str {
        self.inner.client.service()
    }

    /// What can be called, with the columns that go in and come out.
    pub fn methods(&self) -> &[MethodSpec] {
        self.inner.client.methods()
    }

    /// What is in hand, and how many instances there are.
    pub fn stats(&self) -> Stats {
        self.inner.client.stats()
    }

    /// What takes requests with ids of the caller's own: for a program that keeps them ([`Target::resuming`]). Its outcomes come on the
    /// client's threads.
    pub fn caller(&self) -> Arc<dyn Caller> {
        self.inner.client.clone()
    }

    /// A method, for calls that say more than the arguments.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn tell(client: pelton_call::ServiceClient, rows: pelton_call::RecordBatch) -> pelton_call::Result<()> {
    /// let shout = client.method("shout")?.timeout(Duration::from_secs(5)).attempt_timeout(Duration::from_secs(1));
    /// let loud = shout.call(rows).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn method(&self, name: &str) -> Result<Method> {
        let Some(spec) = self.methods().iter().find(|m| m.name == name) else {
            return Err(no_such_method(self.service(), name, self.methods()));
        };
        Ok(Method { inner: self.inner.clone(), spec: spec.clone(), how: CallOptions::default() })
    }

    /// Calls a method: one request a row of `arguments`, one row (or, of a streaming method, any number) for each in the
    /// answer, in the same order. The first request that fails fails the call, with its own error, whose
    /// [`fate`](Error::fate) says whether it may have run. Dropping the future takes the requests back.
    pub async fn call(&self, method: &str, arguments: RecordBatch) -> Result<RecordBatch> {
        self.inner.calls.call(method, arguments, CallOptions::default()).await
    }

    /// The same for a thread that may block, and that serves no async runtime.
    pub fn call_blocking(&self, method: &str, arguments: RecordBatch) -> Result<RecordBatch> {
        self.inner.calls.call_blocking(method, arguments, CallOptions::default())
    }

    /// Calls a method, and gives the answers part by part as they come: a stream, or with [`blocking`](Answers::blocking) an iterator.
    /// What is not taken holds the method up, and bounds what is in memory. Dropping it takes back what has not ended.
    pub fn stream(&self, method: &str, arguments: RecordBatch) -> Result<Answers> {
        self.method(method)?.stream(arguments)
    }
}

impl fmt::Debug for ServiceClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let methods: Vec<&str> = self.methods().iter().map(|m| m.name.as_str()).collect();
        f.debug_struct("ServiceClient").field("service", &self.service()).field("methods", &methods).finish()
    }
}

/// A method of a service, and how it is called. Cheap to clone.
#[derive(Clone)]
pub struct Method {
    inner: Arc<Inner>,
    spec: MethodSpec,
    how: CallOptions,
}

impl Method {
    /// Its columns, and how many rows it gives.
    pub fn spec(&self) -> &MethodSpec {
        &self.spec
    }

    /// The overall deadline of each request, attempts and waiting included.
    pub fn timeout(mut self, timeout: Duration) -> Method {
        self.how.timeout = Some(timeout);
        self
    }

    /// How long one attempt may take until another is made, as far as attempts and the retry budget go.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Method {
        self.how.attempt_timeout = Some(timeout);
        self
    }

    /// Who goes first where not all can go: interactive, unless it is said.
    pub fn priority(mut self, priority: Priority) -> Method {
        self.how.priority = priority;
        self
    }

    /// One key a row of the arguments: rows of the same key run one after another, in their order.
    pub fn keys(mut self, keys: Vec<u64>) -> Method {
        self.how.keys = Some(keys);
        self
    }

    /// Which instances the rows may go to.
    pub fn affinity(mut self, affinity: Affinity) -> Method {
        self.how.affinity = affinity;
        self
    }

    /// As [`ServiceClient::call`].
    pub async fn call(&self, arguments: RecordBatch) -> Result<RecordBatch> {
        self.inner.calls.call(&self.spec.name, arguments, self.how.clone()).await
    }

    /// As [`ServiceClient::call_blocking`].
    pub fn call_blocking(&self, arguments: RecordBatch) -> Result<RecordBatch> {
        self.inner.calls.call_blocking(&self.spec.name, arguments, self.how.clone())
    }

    /// As [`ServiceClient::stream`].
    pub fn stream(&self, arguments: RecordBatch) -> Result<Answers> {
        let answers = self.inner.calls.stream(&self.spec.name, arguments, self.how.clone())?;
        Ok(answers.keeping(self.inner.clone()))
    }
}
