//! What a seed sets up, and what goes wrong under it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema};
use pelton_core::call::{ErrorPolicy, Priority};
use pelton_core::{Bytes, Declaration, Result as Outcomes};
use pelton_dataflow::job::{End, Options};
use pelton_dataflow::operator::Map;
use pelton_dataflow::plan::{Call, OnError, Order, Plan};
use pelton_dataflow::topology::Topology;
use pelton_env::simulated::{EIO, Fault};
use pelton_policy::restart::Strategy;
use pelton_wire::{Frame, Role, Status};

use crate::chaos::disk::Disk;
use crate::chaos::facts::Facts;
use crate::chaos::host::{Hosts, Life, Outcome};
use crate::chaos::laws::{Register, Terms, nothing_ran_twice};
use crate::chaos::service::{self, Manner, STEP, is_poison};
use crate::chaos::storage::{self, BadCommit, Mischief, Numbers, Shelf, numbers_schema};
use crate::faults::network::{Cut, Net, Weather};
use crate::faults::probe::Executions;
use crate::faults::process::{Machine, Started};
use crate::faults::trace::Trace;
use crate::faults::world::{HOST, Pid, World};

/// Virtual time in which a job ends once nothing goes wrong any more.
const PATIENCE: Duration = Duration::from_secs(300);
/// What the results of batches that end at the same time take at most.
const WRITTEN_AT_ONCE: u64 = 4 << 10;
/// Most subtasks of one node.
const PARALLEL: u32 = 3;

/// What is the same for all hosts of a run.
#[derive(Clone)]
struct Design {
    numbers: Numbers,
    order: [Order; 2],
    /// How many calls a row goes through.
    calls: u64,
    /// The second call is one of another service.
    apart: bool,
    /// A map stands between the calls.
    between: bool,
    poison: bool,
    terms: Terms,
    /// The only call gives any number of rows for one.
    stream: bool,
    priority: Priority,
    /// Rows of one key go one after another.
    keyed: bool,
    affine: bool,
    interval: Duration,
    timeout: Duration,
    stop_grace: Duration,
    edge_bytes: Bytes,
    pending_bytes: Bytes,
}

/// What a run plays on.
#[derive(Clone)]
pub(crate) struct Ground {
    world: World,
    net: Net,
    machine: Machine,
    trace: Trace,
    facts: Facts,
    executions: Executions,
    register: Register,
    mischief: Mischief,
    hosts: Hosts,
    design: Design,
    shelf: Shelf,
    failures: Shelf,
    /// Goes with the run.
    _folder: Arc<tempfile::TempDir>,
}

fn ms(least: u64, most: u64, world: &World) -> Duration {
    world.between(Duration::from_millis(least), Duration::from_millis(most))
}

fn one_of<T: Copy>(world: &World, choices: &[T]) -> T {
    choices[world.below(choices.len() as u64) as usize]
}

fn design(world: &World, mischief: &Mischief) -> Design {
    let rows = (0..1 + world.below(5)).map(|_| world.below(150)).collect();
    let numbers = Numbers { rows, batch: 3 + world.below(30), mischief: mischief.clone() };
    let calls = 1 + u64::from(world.chance(0.4));
    let stream = calls == 1 && world.chance(0.25);
    let attempt = world.chance(0.1).then(|| ms(20, 200, world));
    let terms = |small_ledger| Terms { small_ledger, spills: small_ledger && world.chance(0.5), attempt };
    Design {
        numbers,
        order: [(); 2].map(|()| one_of(world, &[Order::Ordered, Order::Unordered])),
        calls,
        stream,
        apart: world.chance(0.5),
        between: world.chance(0.5),
        poison: !stream && world.chance(0.2),
        terms: terms(world.chance(0.15)),
        priority: one_of(world, &[Priority::Interactive, Priority::Normal, Priority::Bulk]),
        keyed: world.chance(0.15),
        affine: world.chance(0.15),
        interval: ms(1, 60, world),
        timeout: if world.chance(0.2) { ms(2, 60, world) } else { Duration::from_secs(600) },
        stop_grace: ms(0, 300, world),
        edge_bytes: Bytes(100 + world.below(10_000)),
        pending_bytes: Bytes(100 + world.below(10_000)),
    }
}

fn declaration(world: &World, name: &str, design: &Design, folder: &Path) -> Declaration {
    let mut d =
        Declaration::new(name).instances(1 + world.below(3) as u32).max_rows(1 + world.below(8) as u32);
    d.batch.linger = Duration::from_micros(world.below(3) * 700);
    d.retry.backoff = Duration::from_millis(5);
    d.retry.max_backoff = Duration::from_millis(100);
    // Where errors have an output, those of lost instances would go there, too.
    let few = !design.poison && design.terms.attempt.is_none() && world.chance(0.1);
    (d.retry.attempts, d.retry.starts) = (if few { 2 } else { 1000 }, 1000);
    d.attempt_timeout = design.terms.attempt;
    d.stall = Some(ms(200, 2_000, world));
    if design.terms.small_ledger {
        d.ledger.bytes = Bytes(500 + world.below(2_000));
    }
    if design.terms.spills {
        d.ledger.bytes = Bytes(d.ledger.bytes.get() / 4);
        d.ledger.spill = Some(folder.to_owned());
    } else if design.terms.small_ledger {
        d.ledger.age = if world.chance(0.5) { ms(20, 400, world) } else { d.ledger.age };
    }
    if world.chance(0.3) {
        d.lease = ms(200, 1_000, world);
    }
    d
}

impl Ground {
    pub(crate) fn new(world: World, trace: Trace, facts: Facts) -> Result<Ground, String> {
        let weather = Weather {
            latency: Duration::from_micros(20 + world.below(500)),
            jitter: Duration::from_micros(world.below(1500)),
            buffer: one_of(&world, &[600, 4096, 65536]),
        };
        let net = Net::new(world.clone(), trace.clone(), weather);
        let (executions, mischief) = (Executions::default(), Mischief::default());
        let design = design(&world, &mischief);
        let manner = Manner {
            concurrency: 1 + world.below(3) as usize,
            batch: Duration::from_micros(200 + world.below(8_000)),
            row: Duration::from_micros(10 + world.below(800)),
            poison: design.poison,
            open: ms(0, 60, &world),
        };
        let program = {
            let parts = (world.clone(), executions.clone(), mischief.clone());
            Arc::new(move |started: &Started| {
                service::definition(&parts.0, &parts.1, &parts.2, manner, started)
            })
        };
        let machine = Machine::new(world.clone(), net.clone(), trace.clone(), program);
        // For what control notes.
        let folder = tempfile::Builder::new();
        let folder = { folder }.prefix("pc").tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir_in("/tmp"));
        let folder = Arc::new(folder.map_err(|e| e.to_string())?);
        let mut services = vec![declaration(&world, "s", &design, folder.path())];
        if design.calls == 2 && design.apart {
            services.push(declaration(&world, "t", &design, folder.path()));
        }
        let register = Register::new(&world);
        let methods = service::specs(manner.concurrency);
        let disk = Disk::new(world.random());
        let mut hosts = Hosts::new(&machine, &facts, &register, services, methods, folder.path(), disk);
        hosts.strategy = Strategy {
            restarts: 1 + world.below(5) as u32,
            window: Duration::from_secs(60),
            delay: ms(1, 100, &world),
            max_delay: Duration::from_millis(500),
        };
        hosts.late = if world.chance(0.5) { ms(0, 30, &world) } else { Duration::ZERO };
        let kill: Arc<dyn Fn() + Send + Sync> = {
            let hosts = hosts.clone();
            Arc::new(move || hosts.kill())
        };
        let read = if design.stream { storage::in_parts } else { storage::numbers };
        let shelf = Shelf::new(&world, &mischief, read, kill.clone());
        let failures = Shelf::new(&world, &mischief, storage::failures, kill);
        Ok(Ground {
            world,
            net,
            machine,
            trace,
            facts,
            executions,
            register,
            mischief,
            hosts,
            design,
            shelf,
            failures,
            _folder: folder,
        })
    }

    /// The graph; how many subtasks its nodes have is another matter at every start.
    fn topology(&self) -> Outcomes<Topology> {
        let Design { numbers, order, calls, apart, between, poison, stream, priority, .. } =
            self.design.clone();
        let p = || 1 + self.world.below(u64::from(PARALLEL)) as u32;
        let mut plan = Plan::new();
        // Maps run together with what is before them, or another number of subtasks would make it another job.
        let sources = p();
        let source = plan.source("numbers", sources, Arc::new(numbers), OnError::Fail);
        let same = Arc::new(Map { output: numbers_schema(), function: Arc::new(Ok) });
        let map = plan.map("map", sources, source, same);
        let on_error = || if poison { ErrorPolicy::ErrorOutput } else { ErrorPolicy::Fail };
        let method = if stream { "many" } else { "first" };
        let column = |wanted: bool| wanted.then(|| "k".to_owned());
        let (key, affinity) = (column(self.design.keyed), column(self.design.affine));
        let first = Call {
            order: order[0],
            on_error: on_error(),
            priority,
            key,
            affinity,
            ..Call::new("s", method, &["n"])
        };
        let firsts = p();
        let first = plan.call("first", firsts, map, first);
        let mut last = first;
        if calls == 2 {
            if between {
                let columns = ["n", "k", "y"].map(|name| Field::new(name, DataType::UInt64, false));
                let columns = Arc::new(Schema::new(columns.to_vec()));
                let same = |rows: RecordBatch| Ok(rows.project(&[0, 1, 2])?);
                last = plan.map(
                    "between",
                    firsts,
                    last,
                    Arc::new(Map { output: columns, function: Arc::new(same) }),
                );
            }
            let service = if apart { "t" } else { "s" };
            let second = Call { order: order[1], ..Call::new(service, "second", &["y"]) };
            last = plan.call("second", p(), last, second);
        }
        plan.sink("shelf", p(), last, Arc::new(self.shelf.clone()));
        if poison {
            plan.sink("failures", 1, first.errors(), Arc::new(self.failures.clone()));
        }
        plan.validate(&|_| Some(self.hosts.methods.to_vec()))
    }

    fn options(&self) -> Options {
        let Design { interval, timeout, stop_grace, edge_bytes, pending_bytes, .. } = self.design;
        let pause = Duration::from_millis(1);
        Options {
            interval,
            timeout,
            stop_grace,
            edge_bytes,
            pending_bytes,
            pause,
            ..Options::new(Disk::state())
        }
    }

    fn start(&self) -> Result<Life, String> {
        self.start_with(self.options())
    }

    fn start_with(&self, options: Options) -> Result<Life, String> {
        let topology = self.topology().map_err(|e| e.to_string())?;
        self.hosts.start(topology, options)
    }

    /// Starts a host that goes back to the oldest checkpoint there is, if there are two.
    fn start_back(&self) -> Result<Life, String> {
        let mut options = self.options();
        let complete = self.hosts.disk.checkpoints();
        let [first, .., _] = complete[..] else { return self.start() };
        self.trace.add(self.world.now(), format_args!("trouble: back to checkpoint {first}"));
        self.facts.count("rewinds");
        self.facts.rewound(self.world.now());
        self.register.go_back();
        options.restore_from = Some(first);
        self.start_with(options)
    }

    async fn sleep_ms(&self, least: u64, most: u64) {
        self.world.sleep(ms(least, most, &self.world)).await;
    }

    fn some_instance(&self) -> Option<Pid> {
        let running = self.machine.running();
        (!running.is_empty()).then(|| running[self.world.below(running.len() as u64) as usize].0)
    }

    /// Looks at what is held, now and then, for as long as the run lasts.
    async fn watch(self) {
        // What waits at a call is bounded by bytes; a batch is always taken whole, and what one subtask leaves another may take over.
        let Design { numbers, pending_bytes, calls, .. } = &self.design;
        let one = pending_bytes.get() / 8 + numbers.batch;
        let most = one * u64::from(PARALLEL) * calls;
        loop {
            self.sleep_ms(5, 80).await;
            let unended: usize = self.hosts.clients().iter().map(|c| c.stats().unended).sum();
            if unended as u64 > most {
                self.world.fail(format!("{unended} requests have not ended, of {most} that may wait"));
            }
            let env = self.machine.env(HOST, "observer");
            let statuses = env.within(Duration::from_millis(30), self.statuses()).await;
            for (pid, status) in statuses.unwrap_or_default() {
                self.facts.evicted(pid, status.evicted);
                let running = self.machine.running();
                // What is being written is in memory beside it.
                let most = |d: &Declaration| {
                    d.ledger.bytes.get() + if d.ledger.spill.is_some() { WRITTEN_AT_ONCE } else { 0 }
                };
                let most = running.iter().find(|(p, _)| *p == pid).map(|(_, b)| most(&b.declaration));
                if status.meter.ledger.spilled > 0 {
                    self.facts.spilled(pid);
                }
                if most.is_some_and(|most| status.ledger_bytes > most) {
                    self.world.fail(format!("the ledger of process {pid} is over its limit: {status:?}"));
                }
            }
        }
    }

    async fn statuses(&self) -> Vec<(Pid, Status)> {
        let env = self.machine.env(HOST, "observer");
        let asked = self.machine.running().into_iter().map(|(pid, bootstrap)| {
            let env = env.clone();
            async move {
                let (token, job) = (&bootstrap.token, &bootstrap.job);
                let greeting = pelton_link::greeting(Role::Observer, token, job, "observer", 1);
                let answer = pelton_link::connect(&env, &bootstrap.address, greeting, Bytes::kib(64));
                // One that does not answer must not hide what the others say.
                let answer = env.within(Duration::from_millis(20), answer).await;
                answer.and_then(|a| a.ok()).map(|(welcome, _)| (pid, welcome.status))
            }
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    fn pause(&self, pid: Pid, how_long: Duration) {
        let now = self.world.now();
        self.trace.add(now, format_args!("pause process {pid} for {how_long:?}"));
        self.facts.away(pid, now, now + how_long);
        self.world.pause(pid);
        let world = self.world.clone();
        let resume = async move {
            world.sleep(how_long).await;
            world.resume(pid);
        };
        self.world.spawn(HOST, Box::pin(resume));
    }

    fn stall(&self, pid: Pid, how_long: Duration) {
        self.facts.away(pid, self.world.now(), self.world.now() + how_long);
        self.net.stall(pid, how_long);
    }

    /// Tells an instance to finish what it has and leave, as control does.
    fn drain(&self, pid: Pid) {
        let Some((_, bootstrap)) = self.machine.running().into_iter().find(|(p, _)| *p == pid) else {
            return;
        };
        self.facts.drained(pid, self.world.now());
        let env = self.machine.env(HOST, "drainer");
        let drain = async move {
            let greeting =
                pelton_link::greeting(Role::Control, &bootstrap.token, &bootstrap.job, "drainer", 1);
            let connect = pelton_link::connect(&env, &bootstrap.address, greeting, Bytes::kib(64));
            if let Some(Ok((_, link))) = env.within(Duration::from_millis(50), connect).await {
                link.sender.send(Frame::Drain);
                env.sleep(Duration::from_millis(50)).await;
            }
        };
        self.world.spawn(HOST, Box::pin(drain));
    }

    fn cut(&self) {
        let late = Duration::from_micros(self.world.below(20_000));
        let how = if self.world.chance(0.5) { Cut::Sharp } else { Cut::Late(late) };
        let (all, world) = (self.world.chance(0.3), self.world.clone());
        self.net.cut(how, |from, _| from != "observer" && (all || world.chance(0.5)));
    }

    /// One thing goes wrong.
    async fn trouble(&self, life: &mut Life) -> Result<(), String> {
        let instance = self.some_instance();
        let world = &self.world;
        let what = match (world.below(22), instance) {
            (0, Some(pid)) => {
                self.machine.kill(pid);
                "instance kills"
            }
            (1, Some(pid)) => {
                self.stall(pid, ms(0, one_of(world, &[100, 5_000]), world));
                "partitions"
            }
            (2, Some(pid)) => {
                let how_long = ms(0, 3_000, world);
                self.facts.away(pid, world.now(), world.now() + how_long);
                self.net.refuse(pid, how_long);
                "refusals"
            }
            (3..=5, _) => {
                self.cut();
                "cuts"
            }
            (6, Some(pid)) => {
                self.pause(pid, ms(0, one_of(world, &[50, 4_000, 20_000]), world));
                "hangs"
            }
            (7..=9, _) => {
                self.hosts.kill();
                if world.chance(0.2) {
                    // Its machine was switched off.
                    self.hosts.disk.cut_power();
                    self.facts.count("power cuts");
                    self.machine.running().iter().for_each(|(pid, _)| self.machine.kill(*pid));
                }
                "kills"
            }
            (10, _) => {
                let bad = BadCommit { done: world.below(3) as usize, kills: false };
                self.mischief.lock().commits.push_back(bad);
                "bad commits"
            }
            (11, _) => {
                let bad = BadCommit { done: world.below(3) as usize, kills: true };
                self.mischief.lock().commits.push_back(bad);
                "kills while committing"
            }
            (12, _) if world.chance(0.5) => {
                self.hosts.disk.fail(world.below(60));
                "bad disks"
            }
            (12, _) => {
                self.hosts.disk.fill(world.below(60));
                let (disk, world) = (self.hosts.disk.clone(), self.world.clone());
                let room = async move {
                    world.sleep(ms(0, 1_000, &world)).await;
                    disk.mend();
                };
                self.world.spawn(HOST, Box::pin(room));
                "full disks"
            }
            (13, _) => {
                let day = 24 * 3_600_000;
                world.jump(world.below(2 * day) as i64 - day as i64);
                "calendar jumps"
            }
            (14, _) => {
                life.stop();
                "stops"
            }
            (15, _) => {
                self.pause(life.pid, ms(0, one_of(world, &[50, 2_000, 6_000]), world));
                "host hangs"
            }
            (16, _) => {
                self.stall(life.pid, ms(0, one_of(world, &[100, 4_000]), world));
                "host partitions"
            }
            (17, _) => {
                self.mischief.lock().crashes += 1;
                "crashes"
            }
            (18, _) => {
                let mut armed = self.mischief.lock();
                *one_of_three(world.below(3), &mut armed) += 1;
                "bad reads and writes"
            }
            (19, Some(pid)) => {
                self.drain(pid);
                "drains"
            }
            (20, _) => {
                self.mischief.lock().sticks += 1;
                "stuck batches"
            }
            (21, Some(pid)) if self.design.terms.spills => {
                let Some(disk) = self.machine.disk(pid) else { return Ok(()) };
                self.facts.bad_disk(pid);
                match world.below(4) {
                    0 => disk.fill(Path::new("/"), world.below(10)),
                    1 => disk.arm(world.below(10), Fault::Fails(EIO)),
                    2 => disk.garble(1 + world.below(5)),
                    _ => disk.mend(),
                }
                "bad disks of ledgers"
            }
            _ => return Ok(()),
        };
        self.trace.add(world.now(), format_args!("trouble: {what}"));
        self.facts.count(what);
        Ok(())
    }

    /// After a host's end, another one; after a while.
    async fn next_host(&self, life: &mut Life) -> Result<(), String> {
        let most = if self.world.chance(0.1) { 2_000 } else { 300 };
        self.sleep_ms(1, most).await;
        *life = self.start()?;
        Ok(())
    }

    /// Waits until the job is done, with as many hosts as that takes.
    async fn finish(&self, life: &mut Life) -> Result<(), String> {
        let end = self.world.now() + PATIENCE;
        loop {
            let mut ended = life.ended.clone();
            let env = self.machine.env(HOST, "director");
            let left = end.since(self.world.now());
            if env.within(left, ended.wait_for(|ended| *ended)).await.is_none() {
                return Err(format!("the job does not end within {PATIENCE:?}; {}", self.missing()));
            }
            match life.outcome() {
                Some(Outcome::Ended(End::Finished | End::AlreadyFinished)) => return Ok(()),
                Some(Outcome::Failed(e)) => {
                    self.trace.add(self.world.now(), format_args!("the host failed: {e}"));
                    self.facts.count("host failures");
                }
                Some(Outcome::Ended(End::Stopped)) | None => {}
            }
            self.next_host(life).await?;
        }
    }

    /// What shall be visible in the end: in the main output, and in that of errors.
    fn expected(&self) -> [BTreeMap<u64, u64>; 2] {
        let Design { numbers, calls, poison, stream, .. } = &self.design;
        let (failed, well): (Vec<u64>, Vec<u64>) = numbers.all().partition(|n| *poison && is_poison(*n));
        let row = |n: u64| match stream {
            true => (0..service::parts(n)).map(|part| (n * 4 + part, n + STEP)).collect::<Vec<_>>(),
            false => vec![(n, n + calls * STEP)],
        };
        [well.into_iter().flat_map(row).collect(), failed.into_iter().map(|n| (n, 1)).collect()]
    }

    /// What of it is not there, or not so.
    fn missing(&self) -> String {
        let mut text = String::new();
        for (what, expected, there) in
            [("rows", 0, self.shelf.visible()), ("failures", 1, self.failures.visible())]
        {
            let expected = &self.expected()[expected];
            let wrong: Vec<_> = expected.iter().filter(|(n, answer)| there.get(n) != Some(answer)).collect();
            let some: Vec<_> = wrong.iter().take(5).map(|(n, answer)| (n, answer, there.get(n))).collect();
            let _ = write!(
                text,
                "{} of {} {what} are there, {} wrong or missing {some:?}; ",
                there.len(),
                expected.len(),
                wrong.len()
            );
        }
        text
    }

    /// Every row is there once, with the right answer. (That none is there twice is looked at when it comes.)
    fn everything_is_there(&self) -> Result<(), String> {
        let there = [self.shelf.visible(), self.failures.visible()];
        if there == self.expected() { Ok(()) } else { Err(self.missing()) }
    }

    fn laws(&self) -> Result<(), String> {
        self.everything_is_there()?;
        let terms = self.design.terms;
        nothing_ran_twice(&self.executions, &self.register, &self.machine, &self.facts, terms)
    }
}

fn one_of_three(which: u64, armed: &mut storage::Armed) -> &mut u32 {
    match which {
        0 => &mut armed.reads,
        1 => &mut armed.prepares,
        _ => &mut armed.starts,
    }
}

/// A whole run.
pub(crate) async fn play(ground: Ground) -> Result<(), String> {
    let mut life = ground.start()?;
    ground.world.spawn(HOST, Box::pin(ground.clone().watch()));
    let spacing = one_of(&ground.world, &[20, 60, 200]);
    for _ in 0..ground.world.below(16) {
        ground.sleep_ms(0, spacing).await;
        if life.has_ended() {
            if matches!(life.outcome(), Some(Outcome::Ended(End::Finished | End::AlreadyFinished))) {
                break;
            }
            if ground.world.chance(0.2) {
                ground.sleep_ms(1, 300).await;
                life = ground.start_back()?;
            } else {
                ground.next_host(&mut life).await?;
            }
        }
        ground.trouble(&mut life).await?;
    }
    ground.mischief.clear();
    ground.hosts.disk.mend();
    ground.finish(&mut life).await?;
    ground.laws()?;
    // What could not be told to leave leaves by itself.
    let end = ground.world.now() + Duration::from_secs(90);
    while !ground.machine.running().is_empty() {
        if ground.world.now() > end {
            let pids: Vec<Pid> = ground.machine.running().into_iter().map(|(pid, _)| pid).collect();
            return Err(format!("processes {pids:?} run after the end of the job"));
        }
        ground.sleep_ms(50, 500).await;
    }
    if ground.world.chance(0.2) {
        // Started once more, it finds that there is nothing to do.
        ground.next_host(&mut life).await?;
        ground.finish(&mut life).await?;
        if !matches!(life.outcome(), Some(Outcome::Ended(End::AlreadyFinished))) {
            return Err(format!("a job that had finished ended as {:?}", life.outcome()));
        }
        ground.laws()?;
    }
    Ok(())
}
