//! Acts for one instance: its process, the connection to it, and what its state machine says.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pelton_core::declaration::Declaration;
use pelton_core::endpoint::{Address, Endpoint, EndpointDelta};
use pelton_core::id::InstanceId;
use pelton_core::{Error, Fate, Kind, Result, Retry};
use pelton_discovery::report::{InstanceReport, Phase};
use pelton_discovery::served::SILENCE;
use pelton_env::{Env, Exit, Process, ProcessSpec};
use pelton_link::Link;
use pelton_wire::{Bootstrap, Frame, Role, Status};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::watch;

use crate::adoption::Adopted;
use crate::control::Shared;
use crate::lifecycle::{Action, Event, Facts, Lifecycle};

/// How long a new process may take until it can be connected to. Its `open` does not count.
const ARRIVAL: Duration = Duration::from_secs(60);
/// How long an instance that was asked to stop may take before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long after the end of its connection the end of a process that is to stop may take: it has not heard of it otherwise.
const LAST_GASP: Duration = Duration::from_millis(500);
/// What the usual libraries size their thread pools by, once and for the process: an instance gets the cores that were declared for it.
const THREADS: [&str; 5] =
    ["CANDLE_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"];
const KNOCK_EVERY: Duration = Duration::from_millis(10);

/// What the job wants of its instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Run,
    Stop,
    Kill,
}

/// Which instance, and what it shall be.
#[derive(Clone)]
pub(crate) struct Place {
    /// The service's number within the job.
    pub(crate) service: usize,
    pub(crate) number: u32,
    pub(crate) declaration: Declaration,
    /// What it is made of.
    pub(crate) config: String,
    pub(crate) log: PathBuf,
    /// The newest incarnation that there was.
    pub(crate) incarnation: u32,
}

pub(crate) struct Supervisor {
    env: Env,
    shared: Arc<Shared>,
    place: Place,
    life: Lifecycle,
    rng: StdRng,
    /// Where the process that runs now, or ran last, is reached.
    address: Address,
    /// The process that runs now, and what there is to it.
    process: Option<Box<dyn Process>>,
    connection: Option<Link>,
    status: Option<Status>,
    gave_up: bool,
}

impl Supervisor {
    pub(crate) fn new(env: Env, shared: Arc<Shared>, place: Place) -> Self {
        let life = Lifecycle::new(place.declaration.name.clone(), place.declaration.retry, place.incarnation);
        let rng = env.rng();
        let address = shared.directory.instance(place.service, place.number, place.incarnation);
        Supervisor {
            env,
            shared,
            place,
            life,
            rng,
            address,
            process: None,
            connection: None,
            status: None,
            gave_up: false,
        }
    }

    /// Goes on with one that an earlier run of the job started.
    pub(crate) fn adopt(&mut self, adopted: Adopted) {
        let Adopted { instance, address, status, link, process } = adopted;
        self.address = address;
        self.process = Some(process);
        self.connection = Some(link);
        self.handle(Event::Adopted(instance.incarnation));
        self.handle(Event::Reported(status.state.clone()));
        self.status = Some(status);
        self.report();
    }

    /// Keeps the instance there until `stop` says so; returns when its process is gone, with the last incarnation; none if it
    /// gave up.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<Wish>) -> Option<u32> {
        let mut event = if self.process.is_some() { self.next(&mut stop).await } else { Event::Begin };
        loop {
            self.handle(event);
            self.report();
            if self.life.phase == Phase::Stopped && self.process.is_none() {
                return (!self.gave_up).then_some(self.life.incarnation);
            }
            event = self.next(&mut stop).await;
        }
    }

    fn id(&self) -> InstanceId {
        let service = self.place.declaration.name.clone();
        InstanceId { service, number: self.place.number, incarnation: self.life.incarnation }
    }

    fn handle(&mut self, event: Event) {
        let ever_ready = self.shared.ever_ready(self.place.service);
        let facts = Facts { now: self.env.now(), random: self.rng.random(), ever_ready };
        for action in self.life.handle(event, facts) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start(_) => {
                if let Err(e) = self.start() {
                    self.handle(Event::NotStarted(e.message().to_owned()));
                }
            }
            Action::Kill => {
                if let Some(process) = &mut self.process {
                    process.kill();
                }
            }
            Action::AskToStop => {
                match (&self.connection, &mut self.process) {
                    (Some(link), _) => link.sender.send(Frame::Stop),
                    // It cannot be asked, and nobody needs it any more.
                    (None, Some(process)) => process.kill(),
                    (None, None) => {}
                }
            }
            Action::Add => {
                let endpoint = Endpoint { instance: self.id(), address: self.address.clone() };
                self.shared.publish(self.place.service, EndpointDelta::Add(endpoint));
            }
            Action::Drain => self.shared.publish(self.place.service, EndpointDelta::Drain(self.id())),
            Action::Remove => self.shared.publish(self.place.service, EndpointDelta::Remove(self.id())),
            Action::GiveUp(error) => {
                self.gave_up = true;
                let error = error.context(format_args!("instance {}", self.id()));
                self.shared.fail(with_log(&error, &self.place.log));
            }
        }
    }

    fn start(&mut self) -> Result<()> {
        let instance = self.id();
        let Place { service, number, .. } = self.place;
        self.address = self.shared.directory.instance(service, number, self.life.incarnation);
        let bootstrap = Bootstrap {
            instance: instance.clone(),
            job: self.shared.job.clone(),
            token: self.shared.token.clone(),
            address: self.address.clone(),
            config: self.place.config.clone(),
            declaration: self.place.declaration.clone(),
        };
        let threads = self.place.declaration.resources.cpu.ceil().to_string();
        let spec = ProcessSpec {
            name: instance.to_string(),
            service: instance.service,
            program: self.place.declaration.program.clone(),
            bootstrap: serde_json::to_string(&bootstrap).expect("a bootstrap is plain data"),
            environment: THREADS.map(|name| (name, threads.clone())).to_vec(),
            log: self.place.log.clone(),
        };
        self.status = None;
        let process = self.env.processes.start(spec).map_err(|e| {
            Error::from(e)
                .context(format_args!("starting a process that logs to {}", self.place.log.display()))
        })?;
        let id = self.id();
        tracing::info!("instance {id} starts as process {}", process.pid());
        self.shared.directory.note(&id, &self.place.config, process.pid(), &self.address);
        self.process = Some(process);
        Ok(())
    }

    /// Waits for the next thing that happens.
    async fn next(&mut self, stop: &mut watch::Receiver<Wish>) -> Event {
        let wish = *stop.borrow();
        let wait_until = self.life.wait_until;
        let (address, id) = (self.address.clone(), self.id());
        let Supervisor { env, shared, process, connection, status, .. } = self;
        let Some(process) = process else {
            return tokio::select! {
                biased;
                () = wished(stop, |w| w != Wish::Run) => Event::Stop,
                () = env.sleep_until(wait_until) => Event::Tick,
            };
        };
        let event = if wish != Wish::Run {
            see_off(env, process, connection.as_mut(), stop, &id).await
        } else if let Some(link) = connection {
            tokio::select! {
                biased;
                exit = process.exited() => exited(&exit),
                () = wished(stop, |w| w != Wish::Run) => Event::Stop,
                heard = env.within(SILENCE, link.receiver.next()) => match heard {
                    Some(Ok(Some(message))) => match message.frame {
                        Frame::Status(news) => {
                            let state = news.state.clone();
                            *status = Some(*news);
                            Event::Reported(state)
                        }
                        _ => Event::Tick,
                    },
                    // The connection broke, or was closed: connect again, or learn that the process is gone.
                    Some(_) => {
                        *connection = None;
                        Event::Tick
                    }
                    None => Event::Silent,
                },
            }
        } else {
            tokio::select! {
                biased;
                exit = process.exited() => exited(&exit),
                () = wished(stop, |w| w != Wish::Run) => Event::Stop,
                connected = connect(env, shared, &address) => match connected {
                    Ok((news, link)) => {
                        let state = news.state.clone();
                        *status = Some(news);
                        *connection = Some(link);
                        Event::Reported(state)
                    }
                    Err(e) => {
                        tracing::warn!("instance {id}: {e}");
                        Event::Silent
                    }
                },
            }
        };
        if matches!(event, Event::Exited(_)) {
            tracing::info!("instance {id} is gone: {event:?}");
            self.process = None;
            self.connection = None;
            self.shared.directory.strike(&self.address);
        }
        event
    }

    fn report(&self) {
        let status = self.status.as_ref();
        let report = InstanceReport {
            instance: self.id().to_string(),
            phase: self.life.phase,
            pid: self.process.as_ref().map(|p| p.pid()),
            restarts: self.life.restarts,
            held: status.map_or(0, |s| s.held),
            executed: status.map_or(0, |s| s.executed),
            batches: status.map_or(0, |s| s.batches),
            standstill: status.map_or(Duration::ZERO, |s| s.standstill),
            meter: status.map(|s| s.meter.clone()).unwrap_or_default(),
            last_error: self.life.last_error.clone(),
            log: self.place.log.display().to_string(),
            address: None,
        };
        self.shared.report(self.place.service, self.place.number, report);
    }
}

/// Waits until the job wants such a thing. For ever if control is dropped: that leaves the instances to their leases.
pub(crate) async fn wished(stop: &mut watch::Receiver<Wish>, what: impl Fn(Wish) -> bool) {
    if stop.wait_for(|wish| what(*wish)).await.is_err() {
        std::future::pending().await
    }
}

/// It was told to stop: wait for its end, but not for ever.
async fn see_off(
    env: &Env,
    process: &mut Box<dyn Process>,
    link: Option<&mut Link>,
    stop: &mut watch::Receiver<Wish>,
    id: &InstanceId,
) -> Event {
    let out_of_reach = async {
        if let Some(link) = link {
            while let Ok(Some(_)) = link.receiver.next().await {}
        }
        env.sleep(LAST_GASP).await;
    };
    tokio::select! {
        biased;
        exit = process.exited() => return exited(&exit),
        () = out_of_reach => tracing::warn!("instance {id} could not be told to stop and is killed"),
        () = wished(stop, |w| w == Wish::Kill) => {}
        () = env.sleep(PATIENCE) => tracing::warn!("instance {id} did not stop within {PATIENCE:?} and is killed"),
    }
    process.kill();
    exited(&process.exited().await)
}

fn exited(exit: &Exit) -> Event {
    Event::Exited(exit.description.clone())
}

fn with_log(error: &Error, log: &std::path::Path) -> Error {
    let message = format!("{}; its log is {}", error.message(), log.display());
    Error::new(error.kind(), error.fate(), error.retry(), message)
}

/// Knocks until the instance listens.
async fn connect(env: &Env, shared: &Shared, address: &Address) -> Result<(Status, Link)> {
    let knock = async {
        loop {
            let greeting =
                pelton_link::greeting(Role::Control, &shared.token, &shared.job, "control", shared.epoch());
            match pelton_link::connect(env, address, greeting, pelton_core::Bytes::kib(64)).await {
                Ok((welcome, link)) => return Ok((welcome.status, link)),
                // Also one that broke in the middle of the greeting: that is no reason to kill an instance that works.
                Err(e) if e.kind().counts_against_endpoint() => env.sleep(KNOCK_EVERY).await,
                Err(e) => return Err(e),
            }
        }
    };
    let late = || {
        Error::new(
            Kind::Connect,
            Fate::NotSent,
            Retry::Elsewhere,
            format!("{address} did not answer within {ARRIVAL:?}"),
        )
    };
    env.within(ARRIVAL, knock).await.unwrap_or_else(|| Err(late()))
}
