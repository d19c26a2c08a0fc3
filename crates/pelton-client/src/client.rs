//! The loop around a client's state: connections, timer, and the [`Caller`] that others hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pelton_core::call::{Caller, Holder, Receiver, Submission};
use pelton_core::declaration::Declaration;
use pelton_core::endpoint::{Endpoint, EndpointDelta};
use pelton_core::meter::CallerMeter;
use pelton_core::service::{MethodSpec, are_called_as};
use pelton_core::{Bytes, Error, RequestId, Time};
use pelton_env::{Env, Place, Task};
use pelton_link::{Sender, Sharing};
use pelton_wire::Role;
use tokio::sync::{Notify, mpsc, watch};

use crate::peer::{ConnectionId, PeerKey};
use crate::state::{Action, Event, State};

/// How often is looked whether more was submitted, and how many turns of the other tasks lie between two looks.
const GATHERED: usize = 16;
const LOOKS: usize = 8;

/// Who calls whom.
#[derive(Clone)]
pub struct Settings {
    pub declaration: Declaration,
    pub methods: Arc<[MethodSpec]>,
    pub job: String,
    pub token: String,
    /// Tells this client from others of the job; the same after a restart.
    pub client: String,
    /// Grows with each restart.
    pub epoch: u64,
}

/// What a client has in hand at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Instances that take requests from here.
    pub ready: usize,
    /// Requests that have not ended.
    pub unended: usize,
    /// Of those, the ones that instances hold.
    pub held: usize,
    /// Attempts beyond the first, so far.
    pub retries: u64,
    /// Where the time of the requests went, and how they ended.
    pub meter: CallerMeter,
}

/// Whether anything takes requests from here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reached {
    /// Instances that do.
    pub ready: usize,
    /// What became of the last attempt to connect that failed.
    pub error: Option<Error>,
}

/// A client of one service. Its tasks end when it is dropped.
pub struct Client {
    shared: Arc<Shared>,
    _tasks: [Task; 2],
}

struct Shared {
    env: Env,
    service: String,
    methods: Arc<[MethodSpec]>,
    settings: Settings,
    /// What lets one in, for connections that are made from now on.
    token: Mutex<String>,
    max_message: Bytes,
    inner: Mutex<Inner>,
    reached: watch::Sender<Reached>,
    /// What was submitted and the state has not heard of. Whoever locks the state next tells it.
    submitted: Mutex<Vec<Event>>,
    /// Whether requests were under way when the state last handled something, or several ended.
    busy: AtomicBool,
    /// There is something to do: submissions, or the time to sleep is shorter.
    timer: Notify,
}

struct Inner {
    state: State,
    connections: BTreeMap<PeerKey, (ConnectionId, Sender)>,
    tasks: BTreeMap<PeerKey, Task>,
    next_connection: ConnectionId,
    /// Instances that take requests, as was last said.
    ready: usize,
}

impl Client {
    /// A client that follows these changes of the service's endpoints.
    pub fn start(
        env: Env,
        settings: Settings,
        deltas: mpsc::UnboundedReceiver<EndpointDelta>,
    ) -> Arc<Client> {
        let Declaration { name, max_message, .. } = settings.declaration.clone();
        let state = State::new(&settings.declaration, settings.methods.clone(), env.rng(), env.now());
        let inner = Inner {
            state,
            connections: BTreeMap::new(),
            tasks: BTreeMap::new(),
            next_connection: 0,
            ready: 0,
        };
        let shared = Arc::new(Shared {
            env: env.clone(),
            service: name,
            methods: settings.methods.clone(),
            token: Mutex::new(settings.token.clone()),
            settings,
            max_message,
            inner: Mutex::new(inner),
            reached: watch::channel(Reached::default()).0,
            submitted: Mutex::default(),
            busy: AtomicBool::new(false),
            timer: Notify::new(),
        });
        let follow = env.spawn(Place::Network, shared.clone().follow(deltas));
        let tick = env.spawn(Place::Network, shared.clone().tick());
        Arc::new(Client { shared, _tasks: [follow, tick] })
    }

    /// Another token, for connections that are made from now on: the service was started anew, and has another.
    pub fn set_token(&self, token: String) {
        *self.shared.token.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// Whether anything takes requests from here, from now on.
    pub fn reached(&self) -> watch::Receiver<Reached> {
        self.shared.reached.subscribe()
    }

    pub fn stats(&self) -> Stats {
        let inner = self.shared.lock_and_look();
        Stats {
            ready: inner.state.ready(),
            unended: inner.state.unended(),
            held: inner.state.sent(),
            retries: inner.state.retries(),
            meter: inner.state.meter().clone(),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The tasks of connections hold the shared part, and it holds them.
        let mut guard = self.shared.lock();
        let inner = &mut *guard;
        for action in inner.state.farewell() {
            if let Action::Send(peer, message) = action
                && let Some((_, sender)) = inner.connections.get(&peer)
            {
                sender.send(message);
            }
        }
        inner.connections.clear();
        let tasks = std::mem::take(&mut inner.tasks);
        drop(guard);
        drop(tasks);
    }
}

impl Caller for Client {
    fn service(&self) -> &str {
        &self.shared.service
    }

    fn methods(&self) -> &[MethodSpec] {
        &self.shared.methods
    }

    fn submit(&self, submission: Submission, receiver: Arc<dyn Receiver>) {
        self.shared.submit(Event::Submitted { submission, receiver });
    }

    fn cancel(&self, ids: &[RequestId]) {
        self.shared.apply(Event::Cancelled(ids.to_vec()));
    }

    fn took(&self, ids: &[RequestId]) {
        self.shared.apply(Event::Took(ids.to_vec()));
    }

    fn abandon(&self, operators: &[u32]) {
        self.shared.apply(Event::Abandoned(operators.to_vec()));
    }

    fn hold(&self) {
        self.shared.apply(Event::Held);
    }

    fn acknowledge(&self, ids: &[RequestId]) {
        self.shared.apply(Event::Acknowledged(ids.to_vec()));
    }

    fn holders(&self, ids: &[RequestId]) -> Vec<Holder> {
        let inner = self.shared.lock_and_look();
        ids.iter().map(|id| inner.state.holder(*id)).collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an event to the state and does what it says. All of it under the lock, so that what is sent and delivered keeps its
    /// order; nothing of it waits.
    fn apply(self: &Arc<Self>, event: Event) {
        let mut inner = self.lock();
        self.apply_locked(&mut inner, [event]);
    }

    /// The first of several requests goes out at once. The others are gathered for as long as it takes somebody to come round to them:
    /// what comes back together is often followed by what is submitted together, and then a frame, its encoding and its ways are shared.
    fn submit(self: &Arc<Self>, event: Event) {
        if !self.busy.load(Ordering::Relaxed) {
            return self.apply(event);
        }
        let mut submitted = self.submitted.lock().unwrap_or_else(PoisonError::into_inner);
        submitted.push(event);
        let first = submitted.len() == 1;
        drop(submitted);
        if first {
            self.timer.notify_one();
        }
    }

    fn take_submitted(&self) -> Vec<Event> {
        std::mem::take(&mut *self.submitted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells the state what was submitted.
    fn look(self: &Arc<Self>, inner: &mut Inner) {
        let submitted = self.take_submitted();
        if !submitted.is_empty() {
            self.apply_all(inner, submitted);
        }
    }

    fn lock_and_look(self: &Arc<Self>) -> MutexGuard<'_, Inner> {
        let mut inner = self.lock();
        self.look(&mut inner);
        inner
    }

    fn apply_locked(self: &Arc<Self>, inner: &mut Inner, more: impl IntoIterator<Item = Event>) {
        let mut events = self.take_submitted();
        events.extend(more);
        self.apply_all(inner, events);
    }

    fn apply_all(self: &Arc<Self>, inner: &mut Inner, events: Vec<Event>) {
        let before = inner.state.wake_at();
        let actions = inner.state.handle_all(events, self.env.now());
        let mut spoken = BTreeSet::new();
        let mut delivered = 0;
        for action in actions {
            match action {
                Action::Send(peer, message) => {
                    if let Some((_, sender)) = inner.connections.get(&peer) {
                        sender.queue(message);
                        spoken.insert(peer);
                    }
                }
                Action::Deliver(receiver, outcomes) => {
                    delivered += outcomes.len();
                    receiver.deliver(outcomes);
                }
                Action::DeliverRows(receiver, first, rows) => {
                    delivered += rows.num_rows();
                    receiver.deliver_rows(first, rows);
                }
                Action::Connect { peer, endpoint, after } => {
                    inner.connections.remove(&peer);
                    let task = self.env.spawn(Place::Network, self.clone().connect(peer, endpoint, after));
                    inner.tasks.insert(peer, task);
                }
                Action::Disconnect(peer) => {
                    inner.connections.remove(&peer);
                    inner.tasks.remove(&peer);
                }
            }
        }
        spoken.iter().filter_map(|peer| inner.connections.get(peer)).for_each(|(_, sender)| sender.write());
        self.busy.store(inner.state.unended() > 0 || delivered > 1, Ordering::Relaxed);
        let ready = inner.state.ready();
        if std::mem::replace(&mut inner.ready, ready) != ready {
            self.reached.send_modify(|reached| reached.ready = ready);
        }
        // A timer that was set for something earlier looks again by itself.
        let comes_earlier = |now: Time| before.is_none_or(|before| now < before);
        if inner.state.wake_at().is_some_and(comes_earlier) {
            self.timer.notify_one();
        }
    }

    async fn follow(self: Arc<Self>, mut deltas: mpsc::UnboundedReceiver<EndpointDelta>) {
        while let Some(delta) = deltas.recv().await {
            self.apply(Event::Endpoints(delta));
        }
    }

    async fn tick(self: Arc<Self>) {
        loop {
            self.gather().await;
            let wake = self.lock_and_look().state.wake_at();
            let due = tokio::select! {
                biased;
                () = self.timer.notified() => false,
                () = self.env.sleep_until(wake) => true,
            };
            if due && self.lock().state.wake_at().is_some_and(|at| at <= self.env.now()) {
                self.apply(Event::Tick);
            }
        }
    }

    /// Lets others submit as long as they do, for a moment: what goes out together costs little more than one alone.
    async fn gather(&self) {
        let waiting = || self.submitted.lock().unwrap_or_else(PoisonError::into_inner).len();
        let mut before = 0;
        for _ in 0..GATHERED {
            let now = waiting();
            if now == before {
                return;
            }
            before = now;
            for _ in 0..LOOKS {
                tokio::task::yield_now().await;
            }
        }
    }

    fn not_reached(&self, error: Error) {
        self.reached.send_if_modified(|reached| {
            reached.error = Some(error);
            false
        });
    }

    /// One connection, from its beginning to its end.
    async fn connect(self: Arc<Self>, peer: PeerKey, endpoint: Endpoint, after: Duration) {
        self.env.sleep(after).await;
        let Settings { job, client, epoch, .. } = &self.settings;
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let greeting = pelton_link::greeting(Role::Caller, &token, job, client, *epoch);
        let sharing = Sharing::of(self.settings.declaration.shared_memory);
        let connected =
            pelton_link::connect_sharing(&self.env, &endpoint.address, greeting, self.max_message, sharing);
        let (welcome, link) = match connected.await {
            Ok(connected) => connected,
            Err(error) => {
                self.not_reached(error.clone());
                return self.apply(Event::NotConnected { peer, error });
            }
        };
        if !are_called_as(&self.methods, &welcome.methods) {
            self.not_reached(Error::invalid(format!(
                "instance {} has other methods, or other columns, than this caller knows; start the caller anew",
                welcome.instance
            )));
        }
        let connection = {
            let mut inner = self.lock();
            // Disconnected in the very moment.
            if !inner.tasks.contains_key(&peer) {
                return;
            }
            inner.next_connection += 1;
            let connection = inner.next_connection;
            inner.connections.insert(peer, (connection, link.sender));
            let welcome = Box::new(welcome);
            self.apply_locked(&mut inner, [Event::Connected { peer, connection, welcome }]);
            connection
        };
        let mut receiver = link.receiver;
        loop {
            match receiver.next().await {
                Ok(Some(message)) => {
                    let received = |message| Event::Received { peer, connection, message };
                    let mut events = vec![received(message)];
                    events.extend(receiver.next_now().into_iter().map(received));
                    let mut inner = self.lock();
                    self.apply_locked(&mut inner, events);
                }
                Ok(None) => break,
                Err(e) => {
                    tracing::debug!("the connection to {} ends: {e}", endpoint.instance);
                    break;
                }
            }
        }
        self.apply(Event::Disconnected { peer, connection });
    }
}
