//! One host: control, a client for each service, and the job, as one process that can be killed at any moment.
//!
//! A killed process runs no code of its own at its end. Here what it had is dropped, so its connections and tasks are ended first, and its
//! run folder is put out of reach of what tidies up, and back before the next host comes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use pelton_client::Client;
use pelton_control::{Control, Survey};
use pelton_core::call::Caller;
use pelton_core::service::MethodSpec;
use pelton_core::{Declaration, Error, Kind, Result, Retry};
use pelton_dataflow::job::{End, Job, Options};
use pelton_dataflow::topology::Topology;
use pelton_env::Env;
use pelton_policy::restart::{Restarts, Strategy};
use rand::RngExt;
use tokio::sync::watch;

use crate::chaos::disk::Disk;
use crate::chaos::facts::Facts;
use crate::chaos::laws::{Register, Registered};
use crate::chaos::storage::{ASKED_FOR, FAILED, FULL};
use crate::faults::process::Machine;
use crate::faults::world::Pid;

/// What every host of a run has in common.
#[derive(Clone)]
pub(crate) struct Hosts {
    pub(crate) machine: Machine,
    pub(crate) facts: Facts,
    pub(crate) register: Register,
    pub(crate) services: Arc<[Declaration]>,
    pub(crate) methods: Arc<[MethodSpec]>,
    pub(crate) folder: PathBuf,
    pub(crate) strategy: Strategy,
    /// How late its disk is, at most.
    pub(crate) late: Duration,
    pub(crate) disk: Disk,
    view: Arc<Mutex<View>>,
    /// By job.
    epochs: Arc<Mutex<BTreeMap<String, u64>>>,
}

/// What others may look at of the host that runs.
#[derive(Default)]
struct View {
    pid: Option<Pid>,
    clients: Vec<Weak<Client>>,
}

/// How a host ended by itself.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Ended(End),
    Failed(Error),
}

/// A host that was started.
pub(crate) struct Life {
    pub(crate) pid: Pid,
    pub(crate) ended: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
    outcome: Arc<Mutex<Option<Outcome>>>,
}

impl Life {
    /// Asks it to end in good order.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    pub(crate) fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// None if it was killed.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.outcome.lock().expect("nobody panics with it").clone()
    }
}

impl Hosts {
    pub(crate) fn new(
        machine: &Machine,
        facts: &Facts,
        register: &Register,
        services: Vec<Declaration>,
        methods: Vec<MethodSpec>,
        folder: &Path,
        disk: Disk,
    ) -> Self {
        Hosts {
            machine: machine.clone(),
            facts: facts.clone(),
            register: register.clone(),
            services: services.into(),
            methods: methods.into(),
            folder: folder.to_owned(),
            strategy: Strategy::default(),
            late: Duration::ZERO,
            disk,
            view: Arc::default(),
            epochs: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn clients(&self) -> Vec<Arc<Client>> {
        self.lock().clients.iter().filter_map(Weak::upgrade).collect()
    }

    /// Starts a host, which goes on with what the one before it left.
    pub(crate) fn start(&self, topology: Topology, options: Options) -> std::result::Result<Life, String> {
        self.exhume().map_err(|e| format!("the run folder cannot be put back: {e}"))?;
        let (pid, ended) = self.machine.begin_host();
        *self.lock() = View { pid: Some(pid), clients: Vec::new() };
        self.facts.count("host starts");
        self.facts.host_started(self.machine.world.now());
        self.machine.trace.add(self.machine.world.now(), format_args!("host {pid} starts"));
        let (stop, stopped) = watch::channel(false);
        let outcome = Arc::new(Mutex::new(None));
        let (hosts, slot) = (self.clone(), outcome.clone());
        let main = async move {
            let outcome = match hosts.live(pid, topology, options, stopped).await {
                Ok(end) => Outcome::Ended(end),
                Err(e) => Outcome::Failed(e),
            };
            let how = match &outcome {
                Outcome::Ended(end) => format!("{end:?}"),
                Outcome::Failed(e) => format!("failed: {} error", e.kind().name()),
            };
            *slot.lock().expect("nobody panics with it") = Some(outcome);
            hosts.machine.end_host(pid, &how);
        };
        self.machine.world.spawn(pid, Box::pin(main));
        Ok(Life { pid, ended, stop, outcome })
    }

    /// Kills the host that runs, as `kill -9` does.
    pub(crate) fn kill(&self) {
        let Some(pid) = self.lock().pid.filter(|pid| self.machine.is_host(*pid)) else { return };
        let (run, kept) = self.run_folder();
        if run.exists()
            && let Err(e) = std::fs::rename(&run, &kept)
        {
            self.machine.world.fail(format!("the run folder cannot be moved: {e}"));
        }
        self.facts.count("host kills");
        self.machine.end_host(pid, "killed");
    }

    fn run_folder(&self) -> (PathBuf, PathBuf) {
        (self.folder.join("r"), self.folder.join("r.kept"))
    }

    /// Puts back the run folder of a host that was killed, as that process left it. Its process is gone, which these files tell by the
    /// number of ours.
    fn exhume(&self) -> std::io::Result<()> {
        let (run, kept) = self.run_folder();
        if !kept.exists() {
            return Ok(());
        }
        if run.exists() {
            std::fs::remove_dir_all(&run)?;
        }
        std::fs::rename(&kept, &run)?;
        for job in std::fs::read_dir(&run)? {
            let card = job?.path().join("job.json");
            if let Ok(text) = std::fs::read(&card) {
                let mut json: serde_json::Value = serde_json::from_slice(&text)?;
                json["pid"] = 0.into();
                std::fs::write(&card, serde_json::to_vec(&json)?)?;
            }
        }
        Ok(())
    }

    /// A host from its start to its end.
    async fn live(
        &self,
        pid: Pid,
        topology: Topology,
        options: Options,
        stop: watch::Receiver<bool>,
    ) -> Result<End> {
        let settings = pelton_control::Settings {
            name: "sim".into(),
            run_base: self.folder.join("r"),
            logs: self.folder.join("logs"),
            home: self.folder.join("home"),
            lineage: "one".into(),
            services: self.services.to_vec(),
            reaches: Default::default(),
        };
        // Where ledgers spill it looks at the real folder; what they write is on simulated disks.
        let env = Env { storage: Arc::new(pelton_env::real::Disk), ..self.machine.env(pid, "control") };
        let survey = Survey::make(&env, &settings).await?;
        let control = Control::start(&env, settings, survey)?;
        self.epoch_grows(&control);
        let env = Env { storage: self.disk.storage(), ..self.machine.env_with(pid, "host", self.late) };
        let clients = self.services.iter().map(|declaration| {
            let settings = pelton_client::Settings {
                declaration: declaration.clone(),
                methods: self.methods.clone(),
                job: control.job().to_owned(),
                token: control.token().to_owned(),
                client: "host".into(),
                epoch: control.epoch(),
            };
            Client::start(env.clone(), settings, control.follow(&declaration.name))
        });
        let clients: Vec<Arc<Client>> = clients.collect();
        self.lock().clients = clients.iter().map(Arc::downgrade).collect();
        let callers = clients.into_iter().map(|client| {
            let registered = Registered { client, register: self.register.clone() };
            (registered.service().to_owned(), Arc::new(registered) as Arc<dyn Caller>)
        });
        let callers: BTreeMap<String, Arc<dyn Caller>> = callers.collect();
        let mut failure = control.failure();
        let result = tokio::select! {
            biased;
            result = self.region(&env, &callers, topology, options, stop) => result,
            Ok(error) = failure.wait_for(Option::is_some) => {
                Err(error.clone().unwrap_or_else(|| Error::internal("a failure without an error")))
            }
        };
        drop(callers);
        control.stop().await;
        result
    }

    /// Instances of a job hear the caller of the highest epoch: each host's has to be higher than those before. One that was stopped in
    /// good order left nothing to take over, and the next is another job.
    fn epoch_grows(&self, control: &Control) {
        let (job, epoch) = (control.job().to_owned(), control.epoch());
        let before = self.epochs.lock().expect("nobody panics with it").insert(job, epoch);
        if before.is_some_and(|before| before >= epoch) {
            self.machine.world.fail(format!("epoch {epoch} follows {before:?}"));
        }
        if before.is_some() {
            self.facts.count("takeovers");
        }
    }

    /// Runs the job to its end, and starts it again from its newest checkpoint when it fails.
    async fn region(
        &self,
        env: &Env,
        callers: &BTreeMap<String, Arc<dyn Caller>>,
        topology: Topology,
        mut options: Options,
        mut stop: watch::Receiver<bool>,
    ) -> Result<End> {
        let operators: Vec<u32> =
            topology.nodes.iter().filter(|n| n.call.is_some()).map(|n| n.number).collect();
        let mut restarts = Restarts::new(self.strategy);
        let mut rng = env.rng();
        loop {
            let attempt = attempt(env, callers, topology.clone(), options.clone(), stop.clone());
            let error = match attempt.await {
                Ok(end) => return Ok(end),
                Err(error) => error,
            };
            let now = env.now();
            self.machine.trace.add(now, format_args!("the job fails: {} error", error.kind().name()));
            self.facts.count("job failures");
            if !is_expected(&error) {
                self.machine.world.fail(format!("the job failed with an error of its own: {error}"));
            }
            let may = passes(&error) && !*stop.borrow();
            let Some(wait) = may.then(|| restarts.failed(now, rng.random())).flatten() else {
                return Err(error);
            };
            self.facts.count("job restarts");
            callers.values().for_each(|caller| caller.abandon(&operators));
            let _ = env.within(wait, stop.wait_for(|stop| *stop)).await;
            (options.fresh, options.restore_from) = (false, None);
        }
    }
}

async fn attempt(
    env: &Env,
    callers: &BTreeMap<String, Arc<dyn Caller>>,
    topology: Topology,
    options: Options,
    mut stop: watch::Receiver<bool>,
) -> Result<End> {
    let running = Job::start(topology, callers.clone(), env.clone(), options)?;
    let stopper = running.stopper();
    let mut ended = std::pin::pin!(running.wait());
    let stopped = async {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    tokio::select! {
        biased;
        summary = &mut ended => return Ok(summary?.end),
        () = stopped => stopper.stop(),
    }
    Ok(ended.await?.end)
}

/// Whether the same may go well another time.
fn passes(error: &Error) -> bool {
    let outside = matches!(
        error.kind(),
        Kind::Connect | Kind::Reset | Kind::Overload | Kind::NoProgress | Kind::Storage | Kind::Internal
    );
    outside || error.retry() != Retry::Never
}

/// Storage fails when it is told to, and instances may be lost too often. Everything else is somebody's mistake.
fn is_expected(error: &Error) -> bool {
    match error.kind() {
        Kind::Connect | Kind::Reset | Kind::NoProgress => true,
        Kind::Storage => [ASKED_FOR, FULL, FAILED].iter().any(|why| error.message().contains(why)),
        _ => false,
    }
}
