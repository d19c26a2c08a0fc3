//! The loop around an instance's state: connections, the worker, the lease.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pelton_core::declaration::Declaration;
use pelton_core::service::{Context, Counters, Definition, Gauge};
use pelton_core::{Error, Fate, Kind, Result, Retry, Time};
use pelton_env::{Address, Connection, Env, Guard, Place};
use pelton_link::{Caller, Door, Link, Sender, Sharing};
use pelton_wire::{Bootstrap, Frame, Role, State as Phase, Status, Welcome};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::scopes::Scopes;
use crate::spill::{self, Store};
use crate::state::{Action, ConnectionId, Event, State};
use crate::visits::{Pass, Visits};
use crate::worker::{self, Job};

/// How often an instance tells those who supervise it how it is, when nothing special happens.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long a connection's guard may take to let it in.
const GUARDED: Duration = Duration::from_secs(10);
/// How often is said that connections were refused.
const REFUSALS_EVERY: Duration = Duration::from_secs(10);
/// How long `close` may take at the end.
const CLOSING: Duration = Duration::from_secs(5);
/// How long callers may take to read the last results of an instance that drained.
const FAREWELL: Duration = Duration::from_secs(5);
/// From the decision to end an instance that does not get on to its end.
const ABORTING: Duration = Duration::from_millis(50);
/// Why it leaves when it was told to drain and has.
const DRAINED: &str = "drained";

/// How an instance is served that no job has started: nobody's presence keeps it, and it leaves when its own host says so.
pub struct Standing {
    /// What connections pass through first.
    pub guard: Option<Arc<dyn Guard>>,
    /// Becomes true when it shall hand back what has not started, finish the rest, and leave.
    pub drain: watch::Receiver<bool>,
    /// Told where it listens, once it does.
    pub listening: Box<dyn FnOnce(&Address) + Send>,
}

/// Runs an instance until it is told to leave, has drained, or nobody supervises it any more. Returns why it ended.
pub async fn serve(env: Env, bootstrap: Bootstrap, definition: Definition) -> Result<String> {
    run(env, bootstrap, definition, None).await
}

/// Runs an instance until it has drained, or its `open` failed.
pub async fn serve_standing(
    env: Env,
    bootstrap: Bootstrap,
    definition: Definition,
    standing: Standing,
) -> Result<String> {
    run(env, bootstrap, definition, Some(standing)).await
}

async fn run(
    env: Env,
    bootstrap: Bootstrap,
    definition: Definition,
    standing: Option<Standing>,
) -> Result<String> {
    let mut listener = (env.network.listen(&bootstrap.address))
        .map_err(|e| Error::from(e).context(format_args!("listening at {}", bootstrap.address)))?;
    let stands = standing.is_some();
    let (guard, drain) = match standing {
        Some(Standing { guard, drain, listening }) => {
            listening(&listener.address());
            (guard, Some(drain))
        }
        None => (None, None),
    };
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
            scopes: Scopes::default(),
            refused: (Time::ZERO, 0),
        }),
        stands,
        guard,
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
    let _life = match drain {
        Some(drain) => env.spawn(Place::Network, server.clone().watch_drain(drain)),
        None => env.spawn(Place::Network, server.clone().watch_lease(declaration.lease)),
    };

    let mut visits = Visits::new();
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
                Ok(connection) => visits.knock(|pass| {
                    let server = server.clone();
                    env.spawn(Place::Network, async move { server.visit(connection, pass).await })
                }),
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
    if let (true, Phase::Failed { message, .. }) = (stands, server.status().state) {
        return Err(Error::user(format!("the service cannot be opened: {message}")));
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
    /// Nobody supervises it (see [`Standing`]).
    stands: bool,
    guard: Option<Arc<dyn Guard>>,
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
    scopes: Scopes,
    /// When was last said that connections were refused, and how many were since.
    refused: (Time, u64),
}

/// A caller that is connected.
struct Connected {
    /// None once all has been said.
    sender: Option<Sender>,
    job: Arc<str>,
    close: Arc<Notify>,
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn apply(&self, event: Event) {
        self.apply_all(vec![event]);
    }

    /// Hands events to the state and does what it says.
    fn apply_all(&self, mut events: Vec<Event>) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        for event in &mut events {
            if let Event::Received { connection, message } = event
                && let Some(caller) = inner.callers.get(connection)
                && !inner.scopes.receive(&caller.job, &mut message.frame, || inner.state.operators())
            {
                tracing::warn!(
                    "a caller of job `{}` is refused: too many operators have results here",
                    caller.job
                );
                return caller.close.notify_one();
            }
        }
        let failed = events.iter().any(|event| matches!(event, Event::Opened(Err(_))));
        let before = inner.state.wake_at();
        let now = self.env.now();
        let gauged = self.gauge.read();
        if gauged != inner.gauged
            && let Some((used, total)) = gauged
        {
            inner.gauged = gauged;
            events.insert(0, Event::Gauge { used, total });
        }
        let mut spoken = BTreeSet::new();
        for action in inner.state.handle_all(events, now) {
            match action {
                Action::Send(to, mut message) => {
                    if let Some(Connected { sender: Some(sender), job, .. }) = inner.callers.get(&to) {
                        inner.scopes.send(job, &mut message.frame);
                        sender.queue(message);
                        spoken.insert(to);
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
        let senders = spoken.iter().filter_map(|to| inner.callers.get(to)?.sender.as_ref());
        senders.for_each(Sender::write);
        if comes_earlier(inner.state.wake_at(), before) {
            self.timer.notify_one();
        }
        if failed && self.stands {
            // Whoever started it is to see it, and may start it again.
            self.depart("it cannot be opened");
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
            // What was due may have moved to later meanwhile.
            if due && self.lock().state.wake_at().is_some_and(|at| at <= self.env.now()) {
                self.apply(Event::Tick);
            }
        }
    }

    /// It is to leave in good order.
    async fn watch_drain(self: Arc<Self>, mut drain: watch::Receiver<bool>) {
        // Without anybody who could say so, it stays.
        if drain.wait_for(|asked| *asked).await.is_ok() {
            self.apply(Event::Drain);
        }
        std::future::pending().await
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

    async fn visit(&self, connection: Connection, pass: Pass) {
        let connection = match &self.guard {
            None => connection,
            Some(guard) => match self.env.within(GUARDED, guard.admit(connection)).await {
                Some(Ok(connection)) => connection,
                Some(Err(e)) => return self.refused(&e),
                None => return self.refused(&format!("no handshake within {GUARDED:?}")),
            },
        };
        let door = Door {
            token: self.bootstrap.token.clone(),
            max_message: self.bootstrap.declaration.max_message,
            sharing: Sharing::of(self.bootstrap.declaration.shared_memory),
        };
        match door.answer(&self.env, connection).await {
            Ok(caller) => {
                pass.enter();
                match caller.greeting.role {
                    Role::Caller => self.serve_caller(caller).await,
                    Role::Control if self.stands => caller.refuse(not_controlled()).await,
                    Role::Control | Role::Observer => self.serve_supervisor(caller).await,
                }
            }
            Err(e) => self.refused(&e),
        }
    }

    /// Whoever knocks a thousand times must not fill the log.
    fn refused(&self, why: &dyn std::fmt::Display) {
        tracing::debug!("a connection was refused: {why}");
        if !self.stands {
            return;
        }
        let now = self.env.now();
        let mut inner = self.lock();
        let (said, others) = &mut inner.refused;
        if *said == Time::ZERO || now.since(*said) >= REFUSALS_EVERY {
            tracing::warn!("a connection was refused: {why} (and {others} before it)");
            (*said, *others) = (now, 0);
        } else {
            *others += 1;
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
            segment: 0,
            status: self.status(),
        }
    }

    async fn serve_caller(&self, caller: Caller) {
        let job: Arc<str> = caller.greeting.job.as_str().into();
        // Clients of two jobs may be called the same.
        let client = format!("{job}/{}", caller.greeting.client);
        let epoch = caller.greeting.epoch;
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
            inner.callers.insert(id, Connected { sender: Some(sender), job, close: close.clone() });
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
                Ok(Some(message)) => {
                    let received = |message| Event::Received { connection: id, message };
                    let mut events = vec![received(message)];
                    events.extend(receiver.next_now().into_iter().map(received));
                    self.apply_all(events);
                }
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

fn not_controlled() -> Error {
    Error::new(
        Kind::Denied,
        Fate::Refused,
        Retry::Never,
        "this instance is served on its own, and no job controls it; stop it where it was started",
    )
}

/// Whether the timer sleeps too long, which was set for `before` or something earlier.
fn comes_earlier(now: Option<Time>, before: Option<Time>) -> bool {
    now.is_some_and(|now| before.is_none_or(|before| now < before))
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
