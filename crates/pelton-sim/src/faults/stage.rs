//! What a scenario plays on: control, clients and instances, and a book of what became of each request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use pelton_client::Client;
use pelton_control::{Control, Survey};
use pelton_core::call::{Acknowledge, Caller, Outcome, Priority, Receiver, Submission};
use pelton_core::service::MethodSpec;
use pelton_core::{Bytes, Declaration, Kind, RequestId, Time};
use pelton_wire::{Role, Status};

use crate::faults::network::{Net, Weather};
use crate::faults::probe::{self, Executions, Plan};
use crate::faults::process::Machine;
use crate::faults::trace::Trace;
use crate::faults::world::{HOST, Pid, World};

/// Everything that a scenario can set.
#[derive(Clone, Debug)]
pub struct Setup {
    pub declaration: Declaration,
    pub plan: Plan,
    pub weather: Weather,
}

/// A simulation that runs.
#[derive(Clone)]
pub struct Stage {
    pub world: World,
    pub net: Net,
    pub machine: Machine,
    pub trace: Trace,
    pub executions: Executions,
    pub book: Book,
    pub setup: Setup,
    /// Parts of streams that were delivered and not taken, by callers who say when they take them.
    pub untaken: Arc<Mutex<Vec<RequestId>>>,
    control: Arc<Mutex<Option<Control>>>,
    methods: Arc<[MethodSpec]>,
    folder: Arc<tempfile::TempDir>,
}

impl Stage {
    pub fn new(world: World, trace: Trace, setup: Setup) -> Result<Stage, String> {
        let net = Net::new(world.clone(), trace.clone(), setup.weather);
        let executions = Executions::default();
        let program = {
            let (world, executions, plan) = (world.clone(), executions.clone(), setup.plan.clone());
            Arc::new(move |started: &crate::faults::process::Started| {
                probe::definition(&world, &executions, &plan, started)
            })
        };
        let machine = Machine::new(world.clone(), net.clone(), trace.clone(), program);
        let folder = tempfile::Builder::new().prefix("ps").tempdir_in("/tmp").map_err(|e| e.to_string())?;
        Ok(Stage {
            book: Book::new(world.clone(), trace.clone()),
            world,
            net,
            trace,
            executions,
            methods: probe::specs(setup.plan.concurrency).into(),
            control: Arc::default(),
            machine,
            setup,
            untaken: Arc::default(),
            folder: Arc::new(folder),
        })
    }

    /// Starts control, which takes over what an earlier one left.
    pub async fn start_control(&self) -> Result<(), String> {
        let settings = pelton_control::Settings {
            name: "sim".into(),
            run_base: self.folder.path().join("r"),
            logs: self.folder.path().join("logs"),
            home: self.folder.path().join("home"),
            lineage: "one".into(),
            services: vec![self.setup.declaration.clone()],
            reaches: Default::default(),
        };
        let env = self.machine.env(HOST, "control");
        let survey = Survey::make(&env, &settings).await.map_err(|e| e.to_string())?;
        let control = Control::start(&env, settings, survey).map_err(|e| e.to_string())?;
        *self.control.lock().expect("nobody panics with it") = Some(control);
        Ok(())
    }

    /// A client, as a restarted host would make it too: the same name and a higher epoch.
    pub fn client(&self, name: &str, epoch: u64) -> Arc<Client> {
        let settings = pelton_client::Settings {
            declaration: self.setup.declaration.clone(),
            methods: self.methods.clone(),
            job: self.with_control(|c| c.job().to_owned()),
            token: self.with_control(|c| c.token().to_owned()),
            client: name.to_owned(),
            epoch,
        };
        let deltas = self.with_control(|c| c.follow(&self.setup.declaration.name));
        Client::start(self.machine.env(HOST, name), settings, deltas)
    }

    pub fn with_control<T>(&self, f: impl FnOnce(&Control) -> T) -> T {
        f(self.control.lock().expect("nobody panics with it").as_ref().expect("control is there"))
    }

    pub fn take_control(&self) -> Control {
        self.control.lock().expect("nobody panics with it").take().expect("control is there")
    }

    /// Sends requests for these keys.
    pub fn submit(&self, client: &Client, order: Order, keys: std::ops::Range<u64>) -> Vec<RequestId> {
        let Order { operator, method, timeout, acknowledge, priority } = order;
        let paced = method == probe::FLOW;
        let id = |key| RequestId { operator, group: 7, sequence: key };
        let ids: Vec<RequestId> = keys.clone().map(id).collect();
        let real: Vec<u64> = keys.map(|key| key_of(id(key))).collect();
        self.book.opened(&ids, method, timeout);
        let arguments = probe::arguments(&real);
        let submission = Submission {
            timeout,
            priority,
            acknowledge,
            paced,
            ..Submission::new(method, ids.clone(), arguments)
        };
        let untaken = paced.then(|| self.untaken.clone());
        let page = Page { book: self.book.clone(), generation: self.book.generation(), untaken };
        client.submit(submission, Arc::new(page));
        ids
    }

    /// Takes the oldest parts of streams, up to so many. Returns how many there were.
    pub fn take(&self, client: &Client, most: usize) -> usize {
        let mut untaken = self.untaken.lock().expect("nobody panics with it");
        let there = untaken.len();
        let taken: Vec<RequestId> = untaken.drain(..there.min(most)).collect();
        drop(untaken);
        client.took(&taken);
        there
    }

    /// What each instance that can be reached says of itself.
    pub async fn statuses(&self) -> Vec<(Pid, Status)> {
        let env = self.machine.env(HOST, "observer");
        let mut statuses = Vec::new();
        for (pid, bootstrap) in self.machine.running() {
            let (token, job) = (&bootstrap.token, &bootstrap.job);
            let greeting = pelton_link::greeting(Role::Observer, token, job, "observer", 1);
            if let Ok((welcome, _)) =
                pelton_link::connect(&env, &bootstrap.address, greeting, Bytes::kib(64)).await
            {
                statuses.push((pid, welcome.status));
            }
        }
        statuses
    }

    /// A connection to an instance as control has one.
    pub async fn supervise(&self, pid: Pid) -> Option<pelton_link::Link> {
        let (_, bootstrap) = self.machine.running().into_iter().find(|(p, _)| *p == pid)?;
        let env = self.machine.env(HOST, "other-control");
        let (token, job) = (&bootstrap.token, &bootstrap.job);
        let greeting = pelton_link::greeting(Role::Control, token, job, "other", 1);
        pelton_link::connect(&env, &bootstrap.address, greeting, Bytes::kib(64))
            .await
            .ok()
            .map(|(_, link)| link)
    }

    pub async fn sleep_ms(&self, least: u64, most: u64) {
        let d = self.world.between(Duration::from_millis(least), Duration::from_millis(most));
        self.world.sleep(d).await;
    }

    /// Waits until `what` holds; an error that says so if it does not within `limit`.
    pub async fn until(
        &self,
        limit: Duration,
        what: &str,
        mut holds: impl FnMut() -> bool,
    ) -> Result<(), String> {
        let end = self.world.now() + limit;
        while !holds() {
            if self.world.now() > end {
                return Err(format!("not so within {limit:?}: {what}"));
            }
            self.world.sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Waits until every request has ended.
    pub async fn all_ended(&self, limit: Duration) -> Result<(), String> {
        let book = self.book.clone();
        let ended = self.until(limit, "every request ends", || book.open() == 0).await;
        ended.map_err(|e| format!("{e}; open: {:?}", self.book.some_open()))
    }

    pub async fn some_ready(&self, n: usize) -> Result<(), String> {
        let ready = || self.with_control(|c| c.report().services[0].ready()) >= n;
        self.until(Duration::from_secs(60), "instances get ready", ready).await
    }

    /// No request ran again while what it ran on first was alive and had not failed.
    pub fn nothing_ran_twice(&self) -> Result<(), String> {
        for id in self.book.ids() {
            let runs = self.executions.of(key_of(id));
            for pair in runs.windows(2) {
                let [first, second] = pair else { unreachable!("windows of two") };
                let failed = first.ended.is_some_and(|(_, well)| !well);
                let died = self.machine.ended_at(first.pid).is_some_and(|at| at <= second.began);
                if !failed && !died {
                    return Err(format!("{id} ran again though it had run or was running: {runs:?}"));
                }
            }
        }
        Ok(())
    }

    /// Every instance holds nothing, and its ledger is within its bounds; and empty, if all was acknowledged and nothing was lost.
    pub async fn all_idle(&self, ledgers_empty: bool) -> Result<(), String> {
        let end = self.world.now() + Duration::from_secs(30);
        loop {
            let statuses = self.statuses().await;
            let limit = self.setup.declaration.ledger.bytes.get();
            let busy = statuses
                .iter()
                .find(|(_, s)| s.held > 0 || s.ledger_bytes > limit || (ledgers_empty && s.ledger_bytes > 0));
            let Some((pid, status)) = busy else { return Ok(()) };
            if self.world.now() > end {
                return Err(format!("process {pid} is not idle: {status:?}"));
            }
            self.sleep_ms(5, 10).await;
        }
    }
}

/// How requests are sent.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub operator: u32,
    pub method: usize,
    pub timeout: Option<Duration>,
    pub acknowledge: Acknowledge,
    pub priority: Priority,
}

impl Default for Order {
    fn default() -> Self {
        let (acknowledge, priority) = (Acknowledge::OnReceipt, Priority::Normal);
        Order { operator: 1, method: probe::CALL, timeout: None, acknowledge, priority }
    }
}

/// The key that a request carries, by which its answer is known.
pub fn key_of(id: RequestId) -> u64 {
    u64::from(id.operator) << 32 | id.sequence
}

/// What became of each request. Cheap to clone.
#[derive(Clone)]
pub struct Book {
    world: World,
    trace: Trace,
    entries: Arc<Mutex<BTreeMap<RequestId, Entry>>>,
    generation: Arc<AtomicU64>,
}

#[derive(Clone, Debug)]
struct Entry {
    method: usize,
    opened: Time,
    timeout: Option<Duration>,
    parts: u64,
    end: Option<(Time, Option<Kind>)>,
}

impl Book {
    fn new(world: World, trace: Trace) -> Self {
        Book { world, trace, entries: Arc::default(), generation: Arc::default() }
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Listens to no submission that was made so far.
    pub fn turn_over(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RequestId, Entry>> {
        self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn opened(&self, ids: &[RequestId], method: usize, timeout: Option<Duration>) {
        let opened = self.world.now();
        let entry = Entry { method, opened, timeout, parts: 0, end: None };
        self.lock().extend(ids.iter().map(|id| (*id, entry.clone())));
    }

    /// Requests that have not ended.
    pub fn open(&self) -> usize {
        self.lock().values().filter(|e| e.end.is_none()).count()
    }

    pub fn ended(&self) -> usize {
        self.lock().values().filter(|e| e.end.is_some()).count()
    }

    fn some_open(&self) -> Vec<(RequestId, Time)> {
        self.lock().iter().filter(|(_, e)| e.end.is_none()).take(5).map(|(id, e)| (*id, e.opened)).collect()
    }

    pub fn ids(&self) -> Vec<RequestId> {
        self.lock().keys().copied().collect()
    }

    /// Requests of an operator that ended well.
    pub fn well(&self, operator: u32) -> usize {
        self.lock()
            .iter()
            .filter(|(id, e)| id.operator == operator && matches!(e.end, Some((_, None))))
            .count()
    }

    /// Errors, by kind.
    pub fn errors(&self) -> BTreeMap<&'static str, usize> {
        let mut errors = BTreeMap::new();
        for kind in self.lock().values().filter_map(|e| e.end.and_then(|(_, kind)| kind)) {
            *errors.entry(kind.name()).or_default() += 1;
        }
        errors
    }

    /// Only these kinds of errors came, if any.
    pub fn only(&self, kinds: &[Kind]) -> Result<(), String> {
        let names: Vec<&str> = kinds.iter().map(|k| k.name()).collect();
        match self.errors().into_iter().find(|(name, _)| !names.contains(name)) {
            Some((name, n)) => Err(format!("{n} requests ended in `{name}`")),
            None => Ok(()),
        }
    }

    /// A request with a deadline ends by then; one ends in `deadline` only when its own has come, or is too near for an answer and more
    /// than half of its time is over.
    pub fn deadlines_held(&self) -> Result<(), String> {
        for (id, Entry { opened, timeout, end, .. }) in &*self.lock() {
            let Some((at, error)) = end else { continue };
            let due = timeout.map(|t| *opened + t);
            if due.is_some_and(|due| *at > due + Duration::from_millis(1)) {
                return Err(format!("{id} ended at {at}, past its deadline"));
            }
            let half = timeout.map(|t| *opened + t / 2);
            if *error == Some(Kind::Deadline) && half.is_none_or(|half| *at < half) {
                return Err(format!("{id} ended with a deadline that is not its own at {at}: {due:?}"));
            }
        }
        Ok(())
    }

    /// Forgets requests that nobody will ever hear of: their client is gone.
    pub fn forget(&self, operator: u32) {
        self.lock().retain(|id, e| id.operator != operator || e.end.is_some());
    }

    fn received(&self, Outcome { id, rows, last }: Outcome) -> Result<(), String> {
        let now = self.world.now();
        let mut entries = self.lock();
        let entry = entries.get_mut(&id).ok_or_else(|| format!("{id} was not asked for"))?;
        if let Some((at, _)) = entry.end {
            return Err(format!("{id} got something after its end at {at}"));
        }
        let error = match &rows {
            Ok(rows) => {
                check_answer(id, entry, rows, last)?;
                None
            }
            Err(e) if last => Some(e.kind()),
            Err(_) => return Err(format!("{id} got an error that does not end it")),
        };
        if last {
            entry.end = Some((now, error));
            let kind = error.map_or("ok", Kind::name);
            self.trace.add(now, format_args!("end {id} {kind}"));
        }
        Ok(())
    }
}

fn check_answer(
    id: RequestId,
    entry: &mut Entry,
    rows: &arrow_array::RecordBatch,
    last: bool,
) -> Result<(), String> {
    let key = key_of(id);
    if probe::keys(rows).iter().any(|k| *k != key) {
        return Err(format!("{id} got the answer of another request: {:?}", probe::keys(rows)));
    }
    if entry.method == probe::CALL {
        return if last && rows.num_rows() == 1 {
            Ok(())
        } else {
            Err(format!("{id} got {} rows", rows.num_rows()))
        };
    }
    for part in rows.column(1).as_primitive::<UInt64Type>().values() {
        if *part != entry.parts {
            return Err(format!("{id} got part {part} where part {} comes", entry.parts));
        }
        entry.parts += 1;
    }
    let all = if entry.method == probe::FLOW { probe::flow_parts(key) } else { key % 4 };
    if last && entry.parts != all {
        return Err(format!("{id} got {} parts of {all}", entry.parts));
    }
    Ok(())
}

/// Where one submission's outcomes go.
struct Page {
    book: Book,
    generation: u64,
    untaken: Option<Arc<Mutex<Vec<RequestId>>>>,
}

impl Receiver for Page {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        if self.generation != self.book.generation() {
            // Of a client that has been replaced, as far as those who look are concerned.
            return;
        }
        for outcome in outcomes {
            if let Some(untaken) = self.untaken.as_ref().filter(|_| !outcome.last) {
                untaken.lock().expect("nobody panics with it").push(outcome.id);
            }
            if let Err(why) = self.book.received(outcome) {
                self.book.world.fail(why);
            }
        }
    }
}
