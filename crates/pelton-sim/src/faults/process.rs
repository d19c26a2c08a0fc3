//! Simulated processes: each an instance with tasks of its own, which can be killed at once.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pelton_core::BoxFuture;
use pelton_core::service::Definition;
use pelton_env::storage::make_folders;
use pelton_env::{Entropy, Env, Exit, Place, Process, ProcessSpec, Processes, Task, Tasks};
use pelton_wire::Bootstrap;
use tokio::sync::watch;

use crate::faults::network::Net;
use crate::faults::trace::Trace;
use crate::faults::world::{HOST, Pid, World};

/// What a started process runs: its definition, told who it is.
pub type Program = Arc<dyn Fn(&Started) -> Definition + Send + Sync>;

/// A process that was started.
#[derive(Clone)]
pub struct Started {
    pub pid: Pid,
    pub bootstrap: Bootstrap,
    /// The how-manieth start this is, from 0.
    pub start: u64,
}

/// All processes. Cheap to clone.
#[derive(Clone)]
pub struct Machine {
    pub world: World,
    pub net: Net,
    pub trace: Trace,
    program: Program,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    running: BTreeMap<Pid, Running>,
    started: u64,
    ended: Vec<(Pid, pelton_core::Time)>,
    /// Processes that are no instances.
    hosts: BTreeMap<Pid, watch::Sender<bool>>,
    begun_hosts: Pid,
    /// The disks of instances.
    disks: BTreeMap<Pid, pelton_env::simulated::Machine>,
}

/// The first number of processes that are no instances.
const HOSTS: Pid = 1_000_000;

struct Running {
    bootstrap: Bootstrap,
    exit: watch::Sender<Option<Exit>>,
}

impl Machine {
    pub fn new(world: World, net: Net, trace: Trace, program: Program) -> Self {
        Machine { world, net, trace, program, inner: Arc::default() }
    }

    /// The seams of one process. `name` stands in the trace for who connects.
    pub fn env(&self, pid: Pid, name: &str) -> Env {
        self.env_with(pid, name, Duration::ZERO)
    }

    /// The same; what runs on a thread of its own is up to this late, as if its disk were slow.
    pub fn env_with(&self, pid: Pid, name: &str, late: Duration) -> Env {
        let machine = self.clone();
        let disk = pelton_env::simulated::Machine::new(0);
        if self.is_instance(pid) {
            self.lock().disks.insert(pid, disk.clone());
        }
        Env {
            clock: Arc::new(self.world.clone()),
            network: self.net.of(pid, name),
            processes: Arc::new(self.clone()),
            tasks: Arc::new(TasksOf { world: self.world.clone(), pid, late }),
            entropy: Arc::new(Seeded(self.world.clone())),
            storage: disk.process(),
            crash: Arc::new(move |why| machine.end(pid, false, &format!("crashed: {why}"))),
        }
    }

    /// Begins a process that is no instance: whatever it spawns is its own, and ends with it. Says when it has ended.
    pub fn begin_host(&self) -> (Pid, watch::Receiver<bool>) {
        let (over, ended) = watch::channel(false);
        let mut inner = self.lock();
        let pid = HOSTS + inner.begun_hosts;
        inner.begun_hosts += 1;
        inner.hosts.insert(pid, over);
        (pid, ended)
    }

    /// Ends such a process at once. What it has is dropped when nobody can hear of it any more.
    pub fn end_host(&self, pid: Pid, how: &str) {
        let Some(over) = self.lock().hosts.remove(&pid) else { return };
        self.trace.add(self.world.now(), format_args!("host {pid} ends: {how}"));
        self.net.end_process(pid);
        self.world.end_process(pid);
        over.send_replace(true);
    }

    /// Whether a process is, or was, an instance.
    pub fn is_instance(&self, pid: Pid) -> bool {
        (HOST + 1..HOSTS).contains(&pid)
    }

    pub fn is_host(&self, pid: Pid) -> bool {
        self.lock().hosts.contains_key(&pid)
    }

    /// What an instance has for a disk.
    pub fn disk(&self, pid: Pid) -> Option<pelton_env::simulated::Machine> {
        self.lock().disks.get(&pid).cloned()
    }

    /// The instances that run, by process.
    pub fn running(&self) -> Vec<(Pid, Bootstrap)> {
        self.lock().running.iter().map(|(pid, r)| (*pid, r.bootstrap.clone())).collect()
    }

    /// Processes that were started so far.
    pub fn started(&self) -> u64 {
        self.lock().started
    }

    pub fn is_running(&self, pid: Pid) -> bool {
        self.lock().running.contains_key(&pid)
    }

    /// When a process ended.
    pub fn ended_at(&self, pid: Pid) -> Option<pelton_core::Time> {
        self.lock().ended.iter().find(|(p, _)| *p == pid).map(|(_, at)| *at)
    }

    /// Kills a process as `kill -9` does.
    pub fn kill(&self, pid: Pid) {
        self.end(pid, false, "killed");
    }

    fn end(&self, pid: Pid, success: bool, how: &str) {
        let now = self.world.now();
        let running = {
            let mut inner = self.lock();
            let Some(running) = inner.running.remove(&pid) else { return };
            inner.ended.push((pid, now));
            inner.disks.remove(&pid);
            running
        };
        self.trace.add(now, format_args!("process {pid} ({}) ends: {how}", running.bootstrap.instance));
        self.net.end_process(pid);
        self.world.end_process(pid);
        let exit = Exit { success, description: how.to_owned() };
        // Its parent learns of it a little later than its peers, or earlier.
        let (world, delay) =
            (self.world.clone(), self.world.between(Duration::ZERO, Duration::from_millis(3)));
        self.world.spawn(
            HOST,
            Box::pin(async move {
                world.sleep(delay).await;
                let _ = running.exit.send(Some(exit));
            }),
        );
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Processes for Machine {
    fn start(&self, spec: ProcessSpec) -> io::Result<Box<dyn Process>> {
        let bootstrap: Bootstrap = serde_json::from_str(&spec.bootstrap).map_err(io::Error::other)?;
        let (exit, exited) = watch::channel(None);
        let started = {
            let mut inner = self.lock();
            inner.started += 1;
            let start = inner.started - 1;
            let pid = HOST + 1 + start as Pid;
            inner.running.insert(pid, Running { bootstrap: bootstrap.clone(), exit });
            Started { pid, bootstrap, start }
        };
        let pid = started.pid;
        self.trace.add(self.world.now(), format_args!("process {pid} starts: {}", spec.name));
        let machine = self.clone();
        let env = self.env(pid, &started.bootstrap.instance.to_string());
        if let Some(folder) = &started.bootstrap.declaration.ledger.spill {
            make_folders(&*env.storage, folder).map_err(io::Error::other)?;
        }
        let begins = self.world.between(Duration::from_millis(1), Duration::from_millis(20));
        let main = async move {
            machine.world.sleep(begins).await;
            let definition = (machine.program)(&started);
            let result = pelton_instance::serve(env, started.bootstrap, definition).await;
            // As a real process, it ends with its main function, whatever its other tasks are at.
            match result {
                Ok(why) => machine.end(pid, true, &format!("exits: {why}")),
                Err(e) => machine.end(pid, false, &format!("exits: {} error", e.kind().name())),
            }
        };
        self.world.spawn(pid, Box::pin(main));
        Ok(Box::new(Child { machine: self.clone(), pid, exited }))
    }

    fn adopt(&self, pid: u32) -> io::Result<Box<dyn Process>> {
        let running = self.lock().running.get(&pid).map(|r| r.exit.subscribe());
        let exited = running.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Box::new(Child { machine: self.clone(), pid, exited }))
    }

    fn program(&self) -> String {
        "simulated".into()
    }
}

struct Child {
    machine: Machine,
    pid: Pid,
    exited: watch::Receiver<Option<Exit>>,
}

impl Process for Child {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn exited(&mut self) -> Pin<Box<dyn Future<Output = Exit> + Send + '_>> {
        Box::pin(async {
            match self.exited.wait_for(Option::is_some).await {
                Ok(exit) => exit.clone().expect("waited for"),
                Err(_) => Exit { success: false, description: "the simulation ended".into() },
            }
        })
    }

    fn kill(&mut self) {
        self.machine.kill(self.pid);
    }
}

struct TasksOf {
    world: World,
    pid: Pid,
    late: Duration,
}

impl Tasks for TasksOf {
    fn spawn(&self, place: Place, future: BoxFuture<()>) -> Task {
        let future = match place {
            Place::Dedicated if !self.late.is_zero() => {
                let waits = self.world.sleep(self.world.between(Duration::ZERO, self.late));
                Box::pin(async move {
                    waits.await;
                    future.await;
                })
            }
            _ => future,
        };
        match self.world.spawn(self.pid, future) {
            Some(id) => {
                let world = self.world.clone();
                Task::new(move || world.abort(id))
            }
            None => Task::new(|| {}),
        }
    }
}

struct Seeded(World);

impl Entropy for Seeded {
    fn seed(&self) -> u64 {
        self.0.random()
    }

    fn secret(&self) -> String {
        format!("{:016x}{:016x}", self.0.random(), self.0.random())
    }
}
