//! The loop around an instance's state: connections, the worker, the lease.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pelton_core::declaration::Declaration;
use pelton_core::service::{Context, Counters, Definition, Gauge};
use pelton_core::{Error, Result};
use pelton_env::{Connection, Env, Place};
use pelton_link::{Caller, Door, Link, Sender};
use pelton_wire::{Bootstrap, Frame, Role, Status, Welcome};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::spill::{self, Store};
use crate::state::{Action, ConnectionId, Event, State};
use crate::worker::{self, Job};

/// How often an instance tells those who supervise it how it is, when nothing special happens.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Connections at a time; more are turned away.
const MAX_CONNECTIONS: usize = 4096;
/// How long `close` may take at the end.
const CLOSING: Duration = Duration::from_secs(5);
/// How long callers may take to read the last results of an instance that drained.
const FAREWELL: Duration = Duration::from_secs(5);
/// From the decision to end an instance that does not get on to its end.
const ABORTING: Duration = Duration::from_millis(50);
/// Why it leaves when it was told to drain and has.
const DRAINED: &str = "drained";

/// Runs an instance until it is told to leave, has drained, or nobody supervises it any more. Returns why it ended.
pub async fn serve(env: Env, bootstrap: Bootstrap, definition: Definition) -> Result<String> {
    let mut listener = (env.network.listen(&bootstrap.address))
        .map_err(|e| Error::from(e).context(format_args!("listening at {}", bootstrap.address)))?;
    let (worker, jobs) = mpsc::unbounded_channel();
    let (leave, mut left) = watch::channel(None);
    let (orders, ordered) = spill::orders();
    let declaration = &bootstrap.declaration;
    let server = Server {
        env: env.clone(),
        state: Mutex::new(Inner {
            state: State::new(declaration.clone(), definition.methods.clone()),
            callers: BTreeMap::new(),
            worker: worker.clone(),
            disk: orders,
            next_connection: 0,
            gauged: None,
        }),
        definition: definition.clone(),
        timer: Notify::new(),
        changed: watch::channel(0).0,
        supervised: watch::channel(0).0,
        callers: watch::channel(0).0,
        leave,
        abort: Notify::new(),
        gauge: Gauge::default(),
        counters: Counters::default(),
        bootstrap: bootstrap.clone(),
    };
    let server = Arc::new(server);

    let context = context(&env, &bootstrap, declaration, server.gauge.clone(), server.counters.clone());
    let events = {
        let server = Arc::downgrade(&server);
        move |event| {
            if let Some(server) = server.upgrade() {
                server.apply(event);
            }
        }
    };
    let _disk = declaration.ledger.spill.as_deref().map(|folder| {
        let limit = declaration.ledger.spill_bytes;
        let store = Store::new(env.storage.clone(), folder, limit, definition.methods.clone());
        env.spawn(Place::Dedicated, spill::work(env.clone(), store, ordered, events.clone()))
    });
    let _worker = env.spawn(Place::Dedicated, worker::work(definition, context, jobs, events));
    let _timer = env.spawn(Place::Network, server.clone().tick());
    let _lease = env.spawn(Place::Network, server.clone().watch_lease(declaration.lease));

    let mut visits = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = async { let _ = left.wait_for(Option::is_some).await; } => break,
            () = server.abort.notified() => {
                // Callers have been told to go elsewhere; give that a moment to get out.
                env.sleep(ABORTING).await;
                (env.crash)("the instance does not get on");
                std::future::pending::<()>().await;
            }
            connection = listener.accept() => match connection {
                Ok(connection) => {
                    visits.retain(|(done, _): &(watch::Receiver<bool>, _)| !*done.borrow());
                    if visits.len() < MAX_CONNECTIONS {
                        let (ended, done) = watch::channel(false);
                        let server = server.clone();
                        visits.push((done, env.spawn(Place::Network, async move {
                            server.visit(connection).await;
                            let _ = ended.send(true);
                        })));
                    }
                }
                Err(e) => {
                    // Out of descriptors, most likely; those who are connected go on.
                    tracing::warn!("a connection could not be accepted: {e}");
                    env.sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    let drained = left.borrow().as_deref() == Some(DRAINED);
    if drained {
        server.take_leave().await;
    }
    // Only an idle service is closed in good order: a method that runs cannot be interrupted, nor can `open`.
    let may_close = {
        let state = &server.lock().state;
        state.is_open() && state.is_idle()
    };
    if may_close {
        let (done, closed) = oneshot::channel();
        let _ = worker.send(Job::Close(done));
        let _ = env.within(CLOSING, closed).await;
    }
    let why = left.borrow().clone();
    Ok(why.unwrap_or_default())
}

fn context(
    env: &Env,
    bootstrap: &Bootstrap,
    declaration: &Declaration,
    gauge: Gauge,
    counters: Counters,
) -> Context {
    Context {
        service: declaration.name.clone(),
        instance: bootstrap.instance.number,
        options: declaration.options.clone(),
        resources: declaration.resources,
        clock: env.clock.clone(),
        seed: env.entropy.seed(),
        gauge,
        counters,
        crash: env.crash.clone(),
    }
}

struct Server {
    env: Env,
    bootstrap: Bootstrap,
    definition: Definition,
    state: Mutex<Inner>,
    /// The timer has to look again.
    timer: Notify,
    /// Counts changes of the status.
    changed: watch::Sender<u64>,
    /// How many supervisors are connected.
    supervised: watch::Sender<usize>,
    /// How many callers are connected.
    callers: watch::Sender<usize>,
    leave: watch::Sender<Option<String>>,
    /// It does not get on.
    abort: Notify,
    /// What the service says of its memory.
    gauge: Gauge,
    /// What the service counts.
    counters: Counters,
}

struct Inner {
    state: State,
    callers: BTreeMap<ConnectionId, Connected>,
    worker: mpsc::UnboundedSender<Job>,
    disk: spill::Orders,
    next_connection: ConnectionId,
    /// What the state knows of the gauge.
    gauged: Option<(f64, f64)>,
}

/// A caller that is connected.
struct Connected {
    /// None once all has been said.
    sender: Option<Sender>,
    close: Arc<Notify>,
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Hands an event to the state and does what it says.
    fn apply(&self, event: Event) {
        let mut inner = self.lock();
        let before = inner.state.wake_at();
        let now = self.env.now();
        let mut actions = Vec::new();
        let gauged = self.gauge.read();
        if gauged != inner.gauged
            && let Some((used, total)) = gauged
        {
            inner.gauged = gauged;
            actions = inner.state.handle(Event::Gauge { used, total }, now);
        }
        actions.extend(inner.state.handle(event, now));
        for action in actions {
            match action {
                Action::Send(to, message) => {
                    if let Some(sender) = inner.callers.get(&to).and_then(|c| c.sender.as_ref()) {
                        sender.send(message);
                    }
                }
                Action::Close(connection) => {
                    if let Some(caller) = inner.callers.get(&connection) {
                        caller.close.notify_one();
                    }
                }
                Action::Run(batch) => {
                    let _ = inner.worker.send(Job::Run(batch));
                }
                Action::Disk(order) => inner.disk.send(order),
                Action::Report => self.changed.send_modify(|n| *n += 1),
                Action::Leave => self.depart(DRAINED),
                Action::Abort(dump) => {
                    tracing::error!(
                        "the instance does not get on and ends itself: {dump}{}",
                        crate::dump::threads()
                    );
                    self.abort.notify_one();
                }
            }
        }
        if inner.state.wake_at() != before {
            self.timer.notify_one();
        }
    }

    fn depart(&self, why: &str) {
        self.leave.send_if_modified(|left| left.is_none().then(|| *left = Some(why.to_owned())).is_some());
    }

    /// Ends its half of each connection, and waits until callers have read what is on it and ended theirs: results that
    /// are lost with the process would be computed again elsewhere.
    async fn take_leave(&self) {
        for caller in self.lock().callers.values_mut() {
            caller.sender = None;
        }
        let mut callers = self.callers.subscribe();
        let _ = self.env.within(FAREWELL, async { callers.wait_for(|n| *n == 0).await.is_ok() }).await;
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

    /// Nobody supervises it for as long as the lease: it ends.
    async fn watch_lease(self: Arc<Self>, lease: Duration) {
        let mut supervised = self.supervised.subscribe();
        loop {
            let somebody = self.env.within(lease, supervised.wait_for(|n| *n > 0)).await.is_some();
            if !somebody {
                return self.depart("nobody supervises it any more");
            }
            if supervised.wait_for(|n| *n == 0).await.is_err() {
                return;
            }
        }
    }

    async fn visit(&self, connection: Connection) {
        let door =
            Door { token: self.bootstrap.token.clone(), max_message: self.bootstrap.declaration.max_message };
        match door.answer(&self.env, connection).await {
            Ok(caller) => match caller.greeting.role {
                Role::Caller => self.serve_caller(caller).await,
                Role::Control | Role::Observer => self.serve_supervisor(caller).await,
            },
            // Not a warning: whoever knocks a thousand times must not fill the log.
            Err(e) => tracing::debug!("a connection was refused: {e}"),
        }
    }

    fn status(&self) -> Status {
        let mut status = self.lock().state.status(std::process::id(), self.env.now());
        status.meter.counted = self.counters.read();
        status
    }

    fn welcome(&self, version: u16) -> Welcome {
        Welcome {
            version,
            instance: self.bootstrap.instance.clone(),
            config: self.bootstrap.config.clone(),
            methods: self.definition.methods.to_vec(),
            max_message: self.bootstrap.declaration.max_message,
            status: self.status(),
        }
    }

    async fn serve_caller(&self, caller: Caller) {
        let (client, epoch) = (caller.greeting.client.clone(), caller.greeting.epoch);
        let admitted = self.lock().state.admit(&client, epoch);
        if let Err(e) = admitted {
            return caller.refuse(e).await;
        }
        let welcome = self.welcome(caller.version);
        let Ok(Link { sender, mut receiver }) = caller.welcome(&self.env, welcome).await else { return };
        let close = Arc::new(Notify::new());
        let room = sender.room();
        let id = {
            let mut inner = self.lock();
            inner.next_connection += 1;
            let id = inner.next_connection;
            self.callers.send_modify(|n| *n += 1);
            inner.callers.insert(id, Connected { sender: Some(sender), close: close.clone() });
            id
        };
        self.apply(Event::Joined { connection: id, client: client.clone(), epoch });
        loop {
            let next = tokio::select! {
                biased;
                () = close.notified() => break,
                // Who does not read what it asked for is not listened to until it does.
                next = async { room.wait().await; receiver.next().await } => next,
            };
            match next {
                Ok(Some(message)) => self.apply(Event::Received { connection: id, message }),
                Ok(None) => break,
                Err(e) => {
                    tracing::warn!("the connection of client `{client}` ends: {e}");
                    break;
                }
            }
        }
        self.lock().callers.remove(&id);
        self.callers.send_modify(|n| *n -= 1);
        self.apply(Event::Left(id));
    }

    async fn serve_supervisor(&self, caller: Caller) {
        let controls = caller.greeting.role == Role::Control;
        let mut changed = self.changed.subscribe();
        let welcome = self.welcome(caller.version);
        let Ok(Link { sender, mut receiver }) = caller.welcome(&self.env, welcome).await else { return };
        let room = sender.room();
        let _lease = controls.then(|| Lease::take(&self.supervised));
        let report = async {
            loop {
                let _ = self.env.within(HEARTBEAT, changed.changed()).await;
                if !room.is_there() {
                    continue;
                }
                let status = self.status();
                sender.send(Frame::Status(Box::new(status)));
            }
        };
        let listen = async {
            while let Ok(Some(message)) = receiver.next().await {
                room.wait().await;
                match message.frame {
                    Frame::Ping(n) => sender.send(Frame::Pong(n)),
                    Frame::Drain if controls => self.apply(Event::Drain),
                    Frame::Stop if controls => self.depart("told to stop"),
                    _ => return,
                }
            }
        };
        tokio::select! {
            biased;
            () = listen => {}
            () = report => {}
        }
    }
}

/// Somebody supervises the instance as long as this lives.
struct Lease<'a>(&'a watch::Sender<usize>);

impl<'a> Lease<'a> {
    fn take(supervised: &'a watch::Sender<usize>) -> Self {
        supervised.send_modify(|n| *n += 1);
        Lease(supervised)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}
