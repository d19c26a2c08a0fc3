//! The loop around a remote service's state: calls that are made, a timer, and the [`Caller`] that others hold.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use pelton_core::call::{Caller, Holder, Receiver, Submission};
use pelton_core::declaration::Declaration;
use pelton_core::remote::{Protocol, Url};
use pelton_core::service::MethodSpec;
use pelton_core::{Error, RequestId, Result};
use pelton_env::{Env, Place, Task};
use tokio::sync::Notify;

use crate::http::{Http, Spoken, tls};
use crate::mapping::{Mapped, mapped};
use crate::protocol;
use crate::secret::Secret;
use crate::state::{self, Action, CallKey, EndpointStats, Event, Start, State};

/// What a remote service's caller has in hand at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Requests that have not ended.
    pub unended: usize,
    /// Of those, the ones that servers have.
    pub sent: usize,
    /// Attempts beyond the first, so far.
    pub retries: u64,
    /// Each endpoint with its address.
    pub endpoints: Vec<(String, EndpointStats)>,
}

/// The caller of one remote service; one a process, shared by all who call it. Its tasks end when it is dropped.
pub struct RemoteCaller {
    shared: Arc<Shared>,
    _tick: Task,
}

struct Shared {
    env: Env,
    service: String,
    methods: Arc<[MethodSpec]>,
    protocol: Protocol,
    model: String,
    mapped: Vec<Mapped>,
    urls: Vec<Url>,
    endpoints: Vec<Arc<Http>>,
    limit: u64,
    inner: Mutex<Inner>,
    timer: Notify,
}

struct Inner {
    state: State,
    calls: BTreeMap<CallKey, Task>,
}

impl RemoteCaller {
    /// A caller of the service that this declaration of kind `remote` describes. `key`: what the variable held that `api_key_env` names.
    pub fn start(
        env: &Env,
        declaration: &Declaration,
        methods: Arc<[MethodSpec]>,
        key: Option<Secret>,
    ) -> Result<Arc<RemoteCaller>> {
        let (mapped, rows): (Vec<Mapped>, Vec<usize>) = mapped(declaration, &methods)?.into_iter().unzip();
        let remote = declaration
            .remote
            .as_ref()
            .ok_or_else(|| Error::internal("a remote service without `[remote]`"))?;
        let urls: Vec<Url> = remote.urls.iter().map(|url| Url::parse(url)).collect::<Result<_>>()?;
        let spoken = if remote.protocol == Protocol::OipGrpc { Spoken::Two } else { Spoken::One };
        let tls = if urls.iter().any(|u| u.tls) { Some(tls(spoken)?) } else { None };
        let endpoints = urls.iter().map(|url| {
            let tls = tls.clone().filter(|_| url.tls);
            Http::new(env.clone(), url.clone(), spoken, tls, key.clone())
        });
        let endpoints = endpoints
            .collect::<Result<Vec<_>>>()
            .map_err(|e| e.context(format_args!("service `{}`", declaration.name)))?;
        let settings = state::Settings {
            service: declaration.name.clone(),
            methods: methods.clone(),
            rows,
            endpoints: endpoints.len(),
            batch: declaration.batch,
            retry: declaration.retry,
            timeout: declaration.timeout,
            attempt_timeout: declaration.attempt_timeout,
            weight: declaration.weight.clone(),
        };
        let shared = Arc::new(Shared {
            env: env.clone(),
            service: declaration.name.clone(),
            methods,
            protocol: remote.protocol,
            model: remote.model.clone(),
            mapped,
            urls,
            endpoints,
            limit: declaration.max_message.get(),
            inner: Mutex::new(Inner {
                state: State::new(settings, env.rng(), env.now()),
                calls: BTreeMap::new(),
            }),
            timer: Notify::new(),
        });
        let tick = env.spawn(Place::Network, shared.clone().tick());
        Ok(Arc::new(RemoteCaller { shared, _tick: tick }))
    }

    pub fn stats(&self) -> Stats {
        let now = self.shared.env.now();
        let inner = self.shared.lock();
        let endpoints = inner.state.endpoints(now);
        Stats {
            unended: inner.state.unended(),
            sent: inner.state.sent(),
            retries: inner.state.retries(),
            endpoints: self.shared.urls.iter().map(Url::to_string).zip(endpoints).collect(),
        }
    }
}

impl Drop for RemoteCaller {
    fn drop(&mut self) {
        // The tasks of calls hold the shared part, and it holds them.
        let calls = std::mem::take(&mut self.shared.lock().calls);
        drop(calls);
    }
}

impl Caller for RemoteCaller {
    fn service(&self) -> &str {
        &self.shared.service
    }

    fn methods(&self) -> &[MethodSpec] {
        &self.shared.methods
    }

    fn submit(&self, submission: Submission, receiver: Arc<dyn Receiver>) {
        self.shared.apply(Event::Submitted { submission, receiver });
    }

    fn cancel(&self, ids: &[RequestId]) {
        self.shared.apply(Event::Cancelled(ids.to_vec()));
    }

    /// Nobody remembers requests there, so they are taken back.
    fn abandon(&self, operators: &[u32]) {
        self.shared.apply(Event::Abandoned(operators.to_vec()));
    }

    fn hold(&self) {
        self.shared.apply(Event::Held);
    }

    /// Nobody remembers requests there.
    fn acknowledge(&self, _ids: &[RequestId]) {}

    fn holders(&self, ids: &[RequestId]) -> Vec<Holder> {
        let inner = self.shared.lock();
        ids.iter().map(|id| inner.state.holder(*id)).collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Hands an event to the state and does what it says, under the lock, so that what is delivered keeps its order. Nothing of it waits.
    fn apply(self: &Arc<Self>, event: Event) {
        let mut inner = self.lock();
        let before = inner.state.wake_at();
        if let Event::Ended { call, .. } = &event
            && let Some(task) = inner.calls.remove(call)
        {
            // It is the one that says so, and ends by itself.
            task.detach();
        }
        for action in inner.state.handle(event, self.env.now()) {
            match action {
                Action::Start(start) => {
                    let call = start.call;
                    let task = self.env.spawn(Place::Network, self.clone().call(start));
                    inner.calls.insert(call, task);
                }
                Action::Abort(call) => {
                    inner.calls.remove(&call);
                }
                Action::Deliver(receiver, outcomes) => receiver.deliver(outcomes),
            }
        }
        if inner.state.wake_at() != before {
            self.timer.notify_one();
        }
    }

    async fn tick(self: Arc<Self>) {
        loop {
            let wake = self.lock().state.wake_at();
            let due = tokio::select! {
                biased;
                () = self.timer.notified() => false,
                () = self.env.sleep_until(wake) => true,
            };
            if due {
                self.apply(Event::Tick);
            }
        }
    }

    /// One call, from its beginning to its end.
    async fn call(self: Arc<Self>, start: Start) {
        let Start { call: key, endpoint, method, arguments, within } = start;
        let call = protocol::Call {
            http: &self.endpoints[endpoint],
            model: &self.model,
            spec: &self.methods[method],
            arguments: &arguments,
            within,
            limit: self.limit,
        };
        let part = |rows| self.apply(Event::Part { call: key, rows });
        let result = protocol::call(self.protocol, &self.mapped[method], call, part).await;
        self.apply(Event::Ended { call: key, result });
    }
}
