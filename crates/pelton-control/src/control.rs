//! All services of a job: their supervisors, those who follow their endpoints, and those who look.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pelton_core::declaration::Declaration;
use pelton_core::endpoint::{Endpoint, EndpointDelta};
use pelton_core::{BoxFuture, Error, Result};
use pelton_discovery::ask::{Follow, Followed, MAX_MESSAGE, Reply};
use pelton_discovery::report::{CallerReport, InstanceReport, JobReport, RemoteReport, ServiceReport};
use pelton_discovery::rundir::{Card, RunDir};
use pelton_discovery::served::{self, Audience, Reach};
use pelton_env::{Connection, Env, Listener, Place as Pool, Task};
use pelton_link::{Door, Link, Receiver, Sender, Sharing};
use pelton_wire::{Frame, State, Status, Welcome};
use tokio::sync::{mpsc, watch};

use crate::adoption::{self, Adopted, Survey};
use crate::supervisor::{Place, Supervisor, Wish, wished};

/// What control needs to know of a job.
pub struct Settings {
    pub name: String,
    /// Where sockets and the job's card go (see [`crate::rundir::base`]).
    pub run_base: PathBuf,
    /// Where the instances' logs go.
    pub logs: PathBuf,
    /// Where the job keeps its state: runs with the same one are runs of one job.
    pub home: PathBuf,
    /// Of that state. A job that begins anew has another one, and nothing of what instances ran for the old one is of use to it.
    pub lineage: String,
    pub services: Vec<Declaration>,
    /// How the instances of those services are reached that have endpoints, by name.
    pub reaches: BTreeMap<String, Reach>,
}

/// Asks the data plane how far it is; called from control's own tasks, must not block.
pub type Progress = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// Asks the clients of a service, by its name, what they have seen; as [`Progress`].
pub type Callers = Arc<dyn Fn(&str) -> CallerReport + Send + Sync>;
/// Does what somebody asks of the job, and says what came of it. Both are the business of who sets it; takes as long as it takes.
pub type Commands = Arc<dyn Fn(serde_json::Value) -> BoxFuture<Result<serde_json::Value>> + Send + Sync>;
/// Asks what the callers of services that are not ours see; called from control's own tasks, must not block.
pub type Remotes = Arc<dyn Fn() -> Vec<RemoteReport> + Send + Sync>;

/// Supervises a job's services. Dropping it leaves the instances to their leases; [`Control::stop`] ends them.
pub struct Control {
    shared: Arc<Shared>,
    /// For those who watch instances that others serve.
    stop: watch::Sender<Wish>,
    /// What is wanted of each instance, by service and number.
    wishes: Mutex<BTreeMap<(usize, u32), watch::Sender<Wish>>>,
    logs: PathBuf,
    /// How many supervisors are still at work.
    working: watch::Receiver<usize>,
    at_work: Arc<watch::Sender<usize>>,
    tasks: Mutex<Vec<Task>>,
}

/// How long requests wait, at the start, for the word of endpoints that have not answered.
const SURVEY: Duration = Duration::from_secs(3);
/// How long a job that has ended waits until its last answers are read.
const ANSWERING: Duration = Duration::from_secs(1);

pub(crate) struct Shared {
    env: Env,
    pub(crate) job: String,
    pub(crate) token: String,
    card: Card,
    pub(crate) directory: RunDir,
    services: Mutex<Vec<ServiceState>>,
    failure: watch::Sender<Option<Error>>,
    progress: Mutex<Option<Progress>>,
    callers: Mutex<Option<Callers>>,
    remotes: Mutex<Option<Remotes>>,
    commands: Mutex<Option<Commands>>,
    /// Commands that are carried out, or whose answer is on its way.
    commanded: watch::Sender<usize>,
    /// Counts changes of any instance.
    changed: watch::Sender<u64>,
}

struct ServiceState {
    declaration: Declaration,
    /// How many instances there shall be.
    wanted: u32,
    endpoints: Vec<Endpoint>,
    followers: Vec<mpsc::UnboundedSender<EndpointDelta>>,
    instances: Vec<Option<InstanceReport>>,
    ever_ready: bool,
    /// Its endpoints have not all been asked yet; followers are told of none until then.
    surveying: bool,
}

/// Instances run on this machine, so the folder for their results has to be here.
fn check_spill(env: &Env, declaration: &Declaration) -> Result<()> {
    let Some(folder) = &declaration.ledger.spill else { return Ok(()) };
    let bad = |what: String| {
        let (service, folder) = (&declaration.name, folder.display());
        let next = "name one that exists and can be written to, or leave `ledger.spill` out";
        Err(Error::invalid(format!("service `{service}`: `ledger.spill` is {folder}, {what}; {next}")))
    };
    match env.storage.look(folder) {
        Ok(Some(there)) if there.folder => match env.storage.scratch(folder) {
            Ok(_) => Ok(()),
            Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                bad(format!("where no file can be made: {e}"))
            }
            // It may pass; an instance goes on without it.
            Err(_) => Ok(()),
        },
        Ok(Some(_)) => bad("which is not a folder".into()),
        Ok(None) => bad("and there is no such folder on this machine".into()),
        Err(e) => bad(format!("which cannot be looked at: {e}")),
    }
}

impl Control {
    /// Takes over the instances that `survey` found, starts those that are missing, and returns at once.
    pub fn start(env: &Env, settings: Settings, survey: Survey) -> Result<Control> {
        let Settings { logs, services, mut reaches, .. } = settings;
        services.iter().try_for_each(|declaration| check_spill(env, declaration))?;
        let Survey { directory, card, mut adopted, incarnations } = survey;
        let (job, token) = (card.job.clone(), card.token().to_owned());
        std::fs::create_dir_all(&logs)
            .map_err(|e| Error::from(e).context(format_args!("making {}", logs.display())))?;
        let listener = env.network.listen(&directory.control())?;
        let states = services.iter().map(|d| ServiceState {
            declaration: d.clone(),
            wanted: d.instances.initial,
            endpoints: Vec::new(),
            followers: Vec::new(),
            instances: vec![None; d.instances.initial as usize],
            ever_ready: false,
            surveying: d.has_endpoints(),
        });
        let shared = Arc::new(Shared {
            env: env.clone(),
            job,
            token,
            card,
            directory,
            services: Mutex::new(states.collect()),
            failure: watch::channel(None).0,
            progress: Mutex::new(None),
            callers: Mutex::new(None),
            remotes: Mutex::new(None),
            commands: Mutex::new(None),
            commanded: watch::channel(0).0,
            changed: watch::channel(0).0,
        });
        let (stop, stopped) = watch::channel(Wish::Run);
        let (at_work, working) = watch::channel(0);
        let at_work = Arc::new(at_work);
        let receiving = env.spawn(Pool::Network, shared.clone().receive(env.clone(), listener));
        let control = Control {
            shared,
            stop,
            wishes: Mutex::default(),
            logs,
            working,
            at_work,
            tasks: Mutex::new(vec![receiving]),
        };
        for (service, declaration) in services.iter().enumerate() {
            if declaration.has_endpoints() {
                let reach = reaches.remove(&declaration.name).ok_or_else(|| {
                    Error::internal(format!("nobody said how service `{}` is reached", declaration.name))
                })?;
                let watching =
                    control.shared.watch(&reach, service, declaration, &stopped, &control.at_work)?;
                control.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(watching);
                continue;
            }
            for number in 0..declaration.instances.initial {
                let key = (declaration.name.clone(), number);
                let incarnation = incarnations.get(&key).copied().unwrap_or_default();
                control.seat(service, declaration, number, incarnation, adopted.remove(&key));
            }
        }
        Ok(control)
    }

    /// From now on there shall be so many instances of a service. Those beyond it finish what they hold and leave; a later call brings their
    /// places back. Of a service that others serve, nothing changes.
    pub fn scale(&self, service: &str, instances: u32) {
        let (service, declaration, seats) = {
            let mut services = self.shared.lock();
            let Some(index) = services.iter().position(|s| s.declaration.name == service) else { return };
            let state = &mut services[index];
            if state.declaration.has_endpoints() {
                return;
            }
            state.wanted = instances;
            let seats = state.instances.len() as u32;
            state.instances.resize(seats.max(instances) as usize, None);
            (index, state.declaration.clone(), seats)
        };
        for number in seats..instances {
            self.seat(service, &declaration, number, 0, None);
        }
        let wishes = self.wishes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for ((_, number), wish) in wishes.range((service, 0)..(service + 1, 0)) {
            let wanted = if *number < instances { Wish::Run } else { Wish::Stop };
            wish.send_if_modified(|wish| std::mem::replace(wish, wanted) != wanted);
        }
    }

    /// Makes the place of an instance, in which one is kept whenever it is wanted.
    fn seat(
        &self,
        service: usize,
        declaration: &Declaration,
        number: u32,
        incarnation: u32,
        adopted: Option<Adopted>,
    ) {
        let (env, shared, at_work) = (self.shared.env.clone(), self.shared.clone(), self.at_work.clone());
        let log = self.logs.join(format!("{}-{number}.log", declaration.name));
        let config = adoption::config(&env, declaration);
        let declaration = declaration.clone();
        let mut place = Place { service, number, declaration, config, log, incarnation };
        let (wish, mut wished_for) = watch::channel(Wish::Run);
        at_work.send_modify(|n| *n += 1);
        let mut supervisor = Supervisor::new(env.clone(), shared.clone(), place.clone());
        if let Some(adopted) = adopted {
            supervisor.adopt(adopted);
        }
        let seat = self.shared.env.spawn(Pool::Network, async move {
            loop {
                let ended = supervisor.run(wished_for.clone()).await;
                at_work.send_modify(|n| *n -= 1);
                // One that gave up is not tried again.
                let Some(incarnation) = ended else { return };
                place.incarnation = incarnation;
                wished(&mut wished_for, |w| w == Wish::Run).await;
                at_work.send_modify(|n| *n += 1);
                supervisor = Supervisor::new(env.clone(), shared.clone(), place.clone());
            }
        });
        self.wishes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert((service, number), wish);
        self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(seat);
    }

    fn wish(&self, what: Wish) {
        let _ = self.stop.send(what);
        let wishes = self.wishes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        wishes.values().for_each(|wish| _ = wish.send_replace(what));
    }

    /// The job's id: its name with something random.
    pub fn job(&self) -> &str {
        &self.shared.job
    }

    /// Grows with each run of the job; callers of an older one are fenced off.
    pub fn epoch(&self) -> u64 {
        self.shared.epoch()
    }

    /// What callers have to show to the instances.
    pub fn token(&self) -> &str {
        &self.shared.token
    }

    /// The endpoints of a service from now on, the present ones first.
    pub fn follow(&self, service: &str) -> mpsc::UnboundedReceiver<EndpointDelta> {
        self.shared.follow(service)
    }

    /// The error that a service gave up with, once there is one.
    pub fn failure(&self) -> watch::Receiver<Option<Error>> {
        self.shared.failure.subscribe()
    }

    /// Changes whenever an instance does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    pub fn report(&self) -> JobReport {
        self.shared.job_report()
    }

    /// Lets the callers of services that are not ours say what they see, for those who look.
    pub fn set_remotes(&self, remotes: Remotes) {
        *self.shared.remotes.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(remotes);
    }

    /// Lets the data plane say how far it is, for those who look.
    pub fn set_progress(&self, progress: Progress) {
        *self.shared.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(progress);
    }

    /// Lets the clients say what they have seen, for those who look.
    pub fn set_callers(&self, callers: Callers) {
        *self.shared.callers.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(callers);
    }

    /// Lets the job do what others ask of it.
    pub fn set_commands(&self, commands: Commands) {
        *self.shared.commands.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(commands);
    }

    /// Ends all instances, and returns when their processes are gone, and those who asked for something have their answer.
    pub async fn stop(self) {
        self.wish(Wish::Stop);
        self.ended().await;
        let mut commanded = self.shared.commanded.subscribe();
        if *commanded.borrow() > 0 {
            let answered = commanded.wait_for(|n| *n == 0);
            let _ = self.shared.env.within(ANSWERING, answered).await;
        }
        self.remove_run_folder();
    }

    /// Returns when the processes of all instances are gone.
    pub async fn ended(&self) {
        let _ = self.working.clone().wait_for(|n| *n == 0).await;
    }

    /// For a process that ends without dropping anything.
    pub fn remove_run_folder(&self) {
        self.shared.directory.remove();
    }

    /// Kills all instances.
    pub fn kill(&self) {
        self.wish(Wish::Kill);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<ServiceState>> {
        self.services.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.card.epoch
    }

    pub(crate) fn ever_ready(&self, service: usize) -> bool {
        self.lock()[service].ever_ready
    }

    fn follow(&self, service: &str) -> mpsc::UnboundedReceiver<EndpointDelta> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut services = self.lock();
        if let Some(state) = services.iter_mut().find(|s| s.declaration.name == service) {
            if state.surveying {
                state.followers.push(sender);
                return receiver;
            }
            let _ = sender.send(EndpointDelta::Reset(state.endpoints.clone()));
            state.followers.push(sender);
        }
        receiver
    }

    pub(crate) fn publish(&self, service: usize, delta: EndpointDelta) {
        let mut services = self.lock();
        let state = &mut services[service];
        match &delta {
            EndpointDelta::Add(endpoint) => {
                state.endpoints.retain(|e| e.instance != endpoint.instance);
                state.endpoints.push(endpoint.clone());
                state.ever_ready = true;
            }
            EndpointDelta::Drain(instance) | EndpointDelta::Remove(instance) => {
                state.endpoints.retain(|e| e.instance != *instance);
            }
            EndpointDelta::Reset(endpoints) => state.endpoints.clone_from(endpoints),
        }
        if !state.surveying {
            state.followers.retain(|follower| follower.send(delta.clone()).is_ok());
        }
    }

    /// The endpoints of a service have been asked: followers are told of those that are there.
    pub(crate) fn surveyed(&self, service: usize) {
        let mut services = self.lock();
        let state = &mut services[service];
        if std::mem::take(&mut state.surveying) {
            let all = EndpointDelta::Reset(state.endpoints.clone());
            state.followers.retain(|follower| follower.send(all.clone()).is_ok());
        }
    }

    /// Watches the endpoints of a service.
    fn watch(
        self: &Arc<Self>,
        reach: &Reach,
        service: usize,
        declaration: &Declaration,
        stopped: &watch::Receiver<Wish>,
        at_work: &Arc<watch::Sender<usize>>,
    ) -> Result<Vec<Task>> {
        let audience = Arc::new(Told { shared: self.clone(), service });
        let watchers = served::watchers(reach, declaration, self.epoch(), audience)?;
        let late = {
            let (shared, env) = (self.clone(), self.env.clone());
            async move {
                env.sleep(SURVEY).await;
                shared.surveyed(service);
            }
        };
        let mut tasks = vec![self.env.spawn(Pool::Network, late)];
        for watcher in watchers {
            let (mut stopped, at_work) = (stopped.clone(), at_work.clone());
            at_work.send_modify(|n| *n += 1);
            tasks.push(self.env.spawn(Pool::Network, async move {
                tokio::select! {
                    biased;
                    () = wished(&mut stopped, |w| w != Wish::Run) => {}
                    () = watcher.run() => {}
                }
                at_work.send_modify(|n| *n -= 1);
            }));
        }
        Ok(tasks)
    }

    pub(crate) fn fail(&self, error: Error) {
        self.failure.send_if_modified(|failure| failure.is_none().then(|| *failure = Some(error)).is_some());
    }

    pub(crate) fn report(&self, service: usize, number: u32, report: InstanceReport) {
        self.lock()[service].instances[number as usize] = Some(report);
        self.changed.send_modify(|n| *n += 1);
    }

    fn job_report(&self) -> JobReport {
        let progress = self.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        // Asked before the lock below is taken: what others do in there is not ours to know.
        let progress = progress.map_or(serde_json::Value::Null, |p| p());
        let callers = self.callers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let names: Vec<String> = self.lock().iter().map(|s| s.declaration.name.clone()).collect();
        let callers: Vec<CallerReport> =
            names.iter().map(|name| callers.as_ref().map(|c| c(name)).unwrap_or_default()).collect();
        let remotes = self.remotes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let remotes = remotes.map_or_else(Vec::new, |r| r());
        let services = self.lock();
        let services = services.iter().zip(callers).map(|(state, callers)| ServiceReport {
            callers,
            name: state.declaration.name.clone(),
            wanted: state.wanted,
            instances: state.instances.iter().flatten().cloned().collect(),
        });
        JobReport {
            job: self.job.clone(),
            name: self.card.name.clone(),
            pid: self.card.pid,
            started: self.card.started,
            services: services.collect(),
            remotes,
            progress,
        }
    }

    /// Answers those who look, for as long as the job runs.
    async fn receive(self: Arc<Self>, env: Env, mut listener: Box<dyn Listener>) {
        loop {
            match listener.accept().await {
                Ok(connection) => {
                    let (shared, env_of_visit) = (self.clone(), env.clone());
                    env.spawn(Pool::Network, async move { shared.visit(&env_of_visit, connection).await })
                        .detach();
                }
                Err(e) => {
                    tracing::warn!("a connection could not be accepted: {e}");
                    env.sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn visit(&self, env: &Env, connection: Connection) {
        let door = Door { token: self.token.clone(), max_message: MAX_MESSAGE, sharing: Sharing::NONE };
        let visitor = match door.answer(env, connection).await {
            Ok(visitor) => visitor,
            // Not a warning: whoever knocks a thousand times must not fill the log.
            Err(e) => return tracing::debug!("a connection to control was refused: {e}"),
        };
        let pid = std::process::id();
        let status = Status {
            state: State::Ready,
            pid,
            held: 0,
            executed: 0,
            batches: 0,
            ledger_bytes: 0,
            evicted: 0,
            standstill: Duration::ZERO,
            meter: Default::default(),
        };
        let instance = pelton_core::id::InstanceId { service: "control".into(), number: 0, incarnation: 1 };
        let max_message = MAX_MESSAGE;
        let welcome = Welcome {
            version: visitor.version,
            instance,
            config: String::new(),
            methods: Vec::new(),
            max_message,
            segment: 0,
            status,
        };
        let Ok(Link { sender, mut receiver }) = visitor.welcome(env, welcome).await else { return };
        let room = sender.room();
        while let Ok(Some(message)) = receiver.next().await {
            room.wait().await;
            match message.frame {
                Frame::Query => {
                    let report = serde_json::to_string(&self.job_report()).expect("a report is plain data");
                    sender.send(Frame::Report(report));
                }
                Frame::Command(command) => {
                    if let Ok(Follow::Follow { service }) = serde_json::from_str(&command) {
                        return self.say_endpoints(&service, &sender, &mut receiver).await;
                    }
                    self.commanded.send_modify(|n| *n += 1);
                    let reply = self.carry_out(&command).await;
                    sender.send(Frame::Report(serde_json::to_string(&reply).expect("a reply is plain data")));
                    // Whoever asked leaves when the answer is there.
                    let _ = receiver.next().await;
                    self.commanded.send_modify(|n| *n -= 1);
                    return;
                }
                Frame::Ping(n) => sender.send(Frame::Pong(n)),
                _ => return,
            }
        }
    }
}

impl Shared {
    /// Says where the instances of a service are, and each change, for as long as whoever asked is there.
    async fn say_endpoints(&self, service: &str, sender: &Sender, receiver: &mut Receiver) {
        let say = |json: serde_json::Result<String>| sender.send(Frame::Report(json.expect("plain data")));
        let declaration = match self.callable(service) {
            Ok(declaration) => declaration,
            Err(e) => {
                say(serde_json::to_string(&Reply::Refused(e.message().to_owned())));
                let _ = receiver.next().await;
                return;
            }
        };
        let followed = serde_json::to_value(Followed { declaration }).expect("plain data");
        say(serde_json::to_string(&Reply::Done(followed)));
        let (mut changes, room) = (self.follow(service), sender.room());
        // Whoever follows has nothing more to say.
        let mut leaves = std::pin::pin!(receiver.next());
        loop {
            let change = tokio::select! {
                biased;
                _ = &mut leaves => return,
                change = changes.recv() => change,
            };
            let Some(delta) = change else { return };
            say(serde_json::to_string(&delta));
            room.wait().await;
        }
    }

    /// The declaration of a service whose instances are this job's, for those who call it from outside.
    fn callable(&self, service: &str) -> Result<Declaration> {
        let declarations: Vec<Declaration> = self.lock().iter().map(|s| s.declaration.clone()).collect();
        let remotes = self.remotes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let remotes = remotes.map_or_else(Vec::new, |r| r());
        if let Some(remote) = remotes.iter().find(|r| r.name == service) {
            return Err(Error::invalid(format!(
                "service `{service}` of job {} is a server of others ({}, {}); call that in its own protocol",
                self.job, remote.protocol, remote.model
            )));
        }
        let Some(found) = declarations.iter().find(|d| d.name == service) else {
            let names: Vec<&str> = declarations.iter().map(|d| d.name.as_str()).collect();
            return Err(Error::invalid(format!(
                "no service `{service}` in job {}; it has: {}",
                self.job,
                names.join(", ")
            )));
        };
        if found.has_endpoints() {
            return Err(Error::invalid(format!(
                "service `{service}` of job {} is served on its own, at {}; call it there, with the declaration that the job has of it",
                self.job,
                found.endpoints.join(", ")
            )));
        }
        Ok(Declaration { options: serde_json::Map::new(), ..found.clone() })
    }

    async fn carry_out(&self, command: &str) -> Reply {
        let commands = self.commands.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let Some(commands) = commands else {
            return Reply::Refused(format!(
                "job {} does not take commands, or not yet: its services are being started; try again",
                self.job
            ));
        };
        match serde_json::from_str(command) {
            Ok(command) => {
                commands(command).await.map_or_else(|e| Reply::Refused(e.message().to_owned()), Reply::Done)
            }
            Err(e) => Reply::Refused(format!("the command cannot be read: {e}")),
        }
    }
}

/// Tells a job of the instances of one service that others serve.
struct Told {
    shared: Arc<Shared>,
    service: usize,
}

impl Audience for Told {
    fn publish(&self, delta: EndpointDelta) {
        self.shared.publish(self.service, delta);
    }

    fn surveyed(&self) {
        self.shared.surveyed(self.service);
    }

    fn ever_ready(&self) -> bool {
        self.shared.ever_ready(self.service)
    }

    fn give_up(&self, error: Error) {
        self.shared.fail(error);
    }

    fn report(&self, number: u32, report: InstanceReport) {
        self.shared.report(self.service, number, report);
    }
}
