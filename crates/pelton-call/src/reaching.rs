//! From a target to a client that knows where its instances are and what can be called.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::select_ok;
use pelton_client::{Client, Reached, Settings};
use pelton_core::endpoint::{Address, Endpoint, EndpointDelta};
use pelton_core::id::InstanceId;
use pelton_core::service::MethodSpec;
use pelton_core::{Bytes, Declaration, Error, Fate, Kind, Result, Retry};
use pelton_discovery::report::InstanceReport;
use pelton_discovery::served::{self, Audience, Reach};
use pelton_env::{Env, Place as Pool, Task};
use pelton_wire::{Role, Welcome};
use tokio::sync::{mpsc, watch};

use crate::access::access;
use crate::following::{News, follow};
use crate::target::{Identity, JobTarget, Place, Target};

/// Waits between attempts to hear of a first instance.
const KNOCK_EVERY: Duration = Duration::from_millis(100);
/// What a call may be tried again after, once nothing could be reached.
const LATER: Duration = Duration::from_secs(1);

/// A client, and what keeps it up to date.
pub(crate) struct Reaching {
    pub(crate) client: Arc<Client>,
    /// Why the service cannot be called, for as long as it cannot.
    pub(crate) failure: watch::Receiver<Option<Error>>,
    pub(crate) tasks: Vec<Task>,
}

/// Finds a service, and learns what can be called.
pub(crate) async fn reach(env: &Env, target: Target) -> Result<Reaching> {
    let patience = target.patience;
    // Nobody else's requests: what others have left at the instances is not told.
    let nobody_else =
        || Identity { scope: format!("call-{}", env.entropy.secret()), client: "call".into(), epoch: 1 };
    let who = target.identity.clone().unwrap_or_else(nobody_else);
    match target.checked()? {
        Place::Served { declaration, learn } => served(env, *declaration, learn, who, patience).await,
        Place::Job(target) => job(env, target, who, patience).await,
    }
}

// --- instances that are served on their own ---

async fn served(
    env: &Env,
    mut declaration: Declaration,
    learn: bool,
    who: Identity,
    patience: Duration,
) -> Result<Reaching> {
    let (token, reaching) = access(env, &declaration)?;
    let welcome = first(&reaching, &declaration.addresses()?, &token, &who.scope, patience).await?;
    if learn {
        declaration.name.clone_from(&welcome.instance.service);
        declaration.max_message = welcome.max_message;
        declaration.max_backlog = declaration.max_backlog.max(welcome.max_message);
    }
    let methods: Arc<[MethodSpec]> = welcome.methods.into();
    let what = format!("service `{}`", declaration.name);
    let (deltas, changes) = mpsc::unbounded_channel();
    let _ = deltas.send(EndpointDelta::Reset(Vec::new()));
    let (trouble, troubled) = watch::channel(None);
    let audience = Arc::new(Told { deltas, trouble, ready: AtomicBool::new(false) });
    let job = who.scope.clone();
    let reach = Reach { env: reaching.clone(), token: token.clone(), job, methods: methods.clone() };
    let watchers = served::watchers(&reach, &declaration, who.epoch, audience)?;
    let watching = watchers.into_iter().map(|watcher| env.spawn(Pool::Network, watcher.run()));
    let tasks: Vec<Task> = watching.collect();
    let client = start(&reaching, declaration, methods, who, token, changes);
    Ok(supervised(env, client, troubled, patience, what, tasks))
}

/// The first of some endpoints that answers. Where all refuse for good, that is not waited for.
async fn first(
    env: &Env,
    addresses: &[Address],
    token: &str,
    scope: &str,
    patience: Duration,
) -> Result<Welcome> {
    let (failed, last) = watch::channel(None);
    let ask = |address| {
        let failed = &failed;
        Box::pin(async move {
            loop {
                match meet(env, address, token, scope).await {
                    Err(e) if e.kind().counts_against_endpoint() => _ = failed.send_replace(Some(e)),
                    other => return other,
                }
                env.sleep(KNOCK_EVERY).await;
            }
        })
    };
    let asked = env.within(patience, select_ok(addresses.iter().map(ask))).await;
    match asked {
        Some(answer) => answer.map(|(welcome, _)| welcome),
        None => Err(unreached("no endpoint", patience, last.borrow().as_ref()).with_fate(Fate::NotSent)),
    }
}

/// What an instance says of itself.
async fn meet(env: &Env, address: &Address, token: &str, scope: &str) -> Result<Welcome> {
    let greeting = pelton_link::greeting(Role::Observer, token, scope, "call", 1);
    pelton_link::connect(env, address, greeting, Bytes::kib(64)).await.map(|(welcome, _)| welcome)
}

/// Passes on what is heard of endpoints.
struct Told {
    deltas: mpsc::UnboundedSender<EndpointDelta>,
    trouble: watch::Sender<Option<Error>>,
    ready: AtomicBool,
}

impl Audience for Told {
    fn publish(&self, delta: EndpointDelta) {
        if matches!(delta, EndpointDelta::Add(_)) {
            self.ready.store(true, Ordering::Relaxed);
            self.trouble.send_replace(None);
        }
        let _ = self.deltas.send(delta);
    }

    fn surveyed(&self) {}

    fn ever_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    fn give_up(&self, error: Error) {
        self.trouble.send_replace(Some(error));
    }

    fn report(&self, _: u32, report: InstanceReport) {
        if let Some(error) = report.last_error {
            let error = Error::new(Kind::Connect, Fate::NotSent, Retry::Elsewhere, error);
            self.trouble.send_replace(Some(error));
        }
    }
}

// --- a job on this machine ---

async fn job(env: &Env, target: JobTarget, who: Identity, patience: Duration) -> Result<Reaching> {
    let what = format!("service `{}` of job {}", target.service, target.job);
    let (tell, mut news) = mpsc::unbounded_channel();
    let (trouble, mut troubled) = watch::channel(None);
    let following = env.spawn(Pool::Network, follow(env.clone(), target, tell, trouble));
    let mut begun = Begun::default();
    let learnt = env.within(patience, begun.learn(env, &who.scope, &mut news, &mut troubled)).await;
    let Some(learnt) = learnt else {
        let last = begun.failed.or_else(|| troubled.borrow().clone());
        let what = match begun.declaration {
            Some(_) => format!("{what} has no instance that is ready, and"),
            None => what,
        };
        return Err(unreached(&what, patience, last.as_ref()).with_fate(Fate::NotSent));
    };
    let (declaration, methods) = learnt?;
    let (deltas, changes) = mpsc::unbounded_channel();
    let _ = deltas.send(EndpointDelta::Reset(begun.endpoints.into_values().collect()));
    let client = start(env, declaration, methods, who, begun.token, changes);
    let for_news = Arc::downgrade(&client);
    let passing = env.spawn(Pool::Network, async move {
        while let Some(news) = news.recv().await {
            match news {
                News::Found { token, .. } => match for_news.upgrade() {
                    Some(client) => client.set_token(token),
                    None => return,
                },
                News::Endpoint(delta) => _ = deltas.send(delta),
            }
        }
    });
    Ok(supervised(env, client, troubled, patience, what, vec![following, passing]))
}

/// What is known before there is a client.
#[derive(Default)]
struct Begun {
    token: String,
    declaration: Option<Declaration>,
    endpoints: BTreeMap<InstanceId, Endpoint>,
    /// The last attempt to ask an instance.
    failed: Option<Error>,
}

impl Begun {
    fn hear(&mut self, news: News) {
        match news {
            News::Found { token, declaration } => {
                (self.token, self.declaration) = (token, Some(*declaration));
            }
            News::Endpoint(EndpointDelta::Add(e)) => _ = self.endpoints.insert(e.instance.clone(), e),
            News::Endpoint(EndpointDelta::Drain(id) | EndpointDelta::Remove(id)) => {
                self.endpoints.remove(&id);
            }
            News::Endpoint(EndpointDelta::Reset(all)) => {
                self.endpoints = all.into_iter().map(|e| (e.instance.clone(), e)).collect();
            }
        }
    }

    /// Listens until an instance has said what can be called.
    async fn learn(
        &mut self,
        env: &Env,
        scope: &str,
        news: &mut mpsc::UnboundedReceiver<News>,
        troubled: &mut watch::Receiver<Option<Error>>,
    ) -> Result<(Declaration, Arc<[MethodSpec]>)> {
        loop {
            while let Ok(news) = news.try_recv() {
                self.hear(news);
            }
            if let Some(declaration) = &self.declaration {
                for endpoint in self.endpoints.values() {
                    match meet(env, &endpoint.address, &self.token, scope).await {
                        Ok(welcome) => return Ok((declaration.clone(), welcome.methods.into())),
                        Err(e) => self.failed = Some(e),
                    }
                }
            }
            // The job's own word: waiting does not help.
            if let Some(e) = troubled.borrow_and_update().as_ref().filter(|e| e.kind() == Kind::Invalid) {
                return Err(e.clone());
            }
            tokio::select! {
                biased;
                Some(news) = news.recv() => self.hear(news),
                Ok(()) = troubled.changed() => {}
                () = env.sleep(KNOCK_EVERY), if !self.endpoints.is_empty() => {}
            }
        }
    }
}

// --- both ---

fn start(
    env: &Env,
    declaration: Declaration,
    methods: Arc<[MethodSpec]>,
    who: Identity,
    token: String,
    changes: mpsc::UnboundedReceiver<EndpointDelta>,
) -> Arc<Client> {
    let Identity { scope: job, client, epoch } = who;
    let settings = Settings { declaration, methods, job, token, client, epoch };
    Client::start(env.clone(), settings, changes)
}

fn supervised(
    env: &Env,
    client: Arc<Client>,
    troubled: watch::Receiver<Option<Error>>,
    patience: Duration,
    what: String,
    mut tasks: Vec<Task>,
) -> Reaching {
    let (fail, failure) = watch::channel(None);
    let reached = client.reached();
    tasks.push(env.spawn(Pool::Network, look(env.clone(), reached, troubled, patience, what, fail)));
    Reaching { client, failure, tasks }
}

/// Says so when nothing could be reached for too long, and when something can again.
async fn look(
    env: Env,
    mut reached: watch::Receiver<Reached>,
    troubled: watch::Receiver<Option<Error>>,
    patience: Duration,
    what: String,
    fail: watch::Sender<Option<Error>>,
) {
    loop {
        if reached.wait_for(|r| r.ready == 0).await.is_err() {
            return;
        }
        let back = env.within(patience, reached.wait_for(|r| r.ready > 0)).await.map(|back| back.is_ok());
        match back {
            Some(true) => continue,
            Some(false) => return,
            None => {}
        }
        let last = troubled.borrow().clone().or_else(|| reached.borrow().error.clone());
        fail.send_replace(Some(unreached(&what, patience, last.as_ref())));
        if reached.wait_for(|r| r.ready > 0).await.is_err() {
            return;
        }
        fail.send_replace(None);
    }
}

fn unreached(what: &str, patience: Duration, last: Option<&Error>) -> Error {
    let last = last.map_or_else(String::new, |e| format!("; last: {}", e.message()));
    let message = format!("{what} could not be reached for {patience:?} (Target::patience){last}");
    Error::new(Kind::Connect, Fate::Unknown, Retry::After(LATER), message)
}
