//! Instances that somebody else started. Nothing is started or stopped here: each endpoint is asked how it is, and clients are told of those
//! that take requests.
//!
//! An instance is known by its incarnation, which no two processes share. When another one answers at an endpoint, the one before it is gone, and
//! what it held with it. One that only cannot be connected to may come back: clients find out by themselves, and give what it held to others. One that
//! has said nothing for long is taken away until it does.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pelton_core::declaration::Declaration;
use pelton_core::endpoint::{Address, Endpoint, EndpointDelta};
use pelton_core::id::InstanceId;
use pelton_core::service::{MethodSpec, are_called_as};
use pelton_core::{Bytes, Error, Fate, Kind, Result, Retry, Time};
use pelton_env::Env;
use pelton_link::Link;
use pelton_policy::backoff;
use pelton_wire::{Frame, Role, State, Status, Welcome};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::report::{InstanceReport, Phase};

/// An instance says how it is twice a second; one that has said nothing for this long is not coming back.
pub const SILENCE: Duration = Duration::from_secs(15);
/// Waits between attempts to connect.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long an endpoint that was never there may take to be.
const ARRIVAL: Duration = Duration::from_secs(10);

/// How the instances of one service are reached.
#[derive(Clone)]
pub struct Reach {
    /// Its network knows how to connect there.
    pub env: Env,
    pub token: String,
    /// Whose requests these are: the same for all runs of one job, and another one once it begins anew.
    pub job: String,
    pub methods: Arc<[MethodSpec]>,
}

/// Who is told of the endpoints of one service.
pub trait Audience: Send + Sync + 'static {
    /// A change of those that take requests.
    fn publish(&self, delta: EndpointDelta);
    /// Each has answered, or could not be asked, once.
    fn surveyed(&self);
    /// Whether any ever took requests.
    fn ever_ready(&self) -> bool;
    /// None was ever there, and there is no hope of any.
    fn give_up(&self, error: Error);
    /// How one of them is.
    fn report(&self, number: u32, report: InstanceReport);
}

/// What all endpoints of a service have said.
struct Group {
    audience: Arc<dyn Audience>,
    /// Of the run that watches.
    epoch: u64,
    inner: Mutex<Said>,
}

struct Said {
    /// Those that have not answered yet, nor failed to.
    unheard: Vec<bool>,
    /// Why there is no hope of those.
    hopeless: Vec<Option<Error>>,
}

impl Group {
    fn new(audience: Arc<dyn Audience>, epoch: u64, endpoints: usize) -> Arc<Group> {
        let said = Said { unheard: vec![true; endpoints], hopeless: vec![None; endpoints] };
        Arc::new(Group { audience, epoch, inner: Mutex::new(said) })
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn heard(&self, number: u32) {
        let mut said = self.lock();
        said.unheard[number as usize] = false;
        if said.unheard.iter().all(|unheard| !unheard) {
            self.audience.surveyed();
        }
    }

    /// No hope of this one, or new hope. If there is none of any, and none was ever there, the service gives up.
    fn despair(&self, number: u32, error: Option<Error>) {
        let mut said = self.lock();
        said.hopeless[number as usize] = error;
        let all: Option<Vec<&Error>> = said.hopeless.iter().map(Option::as_ref).collect();
        if let Some([first, ..]) = all.as_deref()
            && !self.audience.ever_ready()
        {
            self.audience.give_up((*first).clone());
        }
    }
}

/// A watcher for each endpoint of a declaration. `epoch`: of the run that watches.
pub fn watchers(
    reach: &Reach,
    declaration: &Declaration,
    epoch: u64,
    audience: Arc<dyn Audience>,
) -> Result<Vec<Watcher>> {
    let addresses = declaration.addresses()?;
    let group = Group::new(audience, epoch, addresses.len());
    let watch =
        |(number, address)| Watcher::new(group.clone(), reach.clone(), declaration.clone(), number, address);
    Ok((0..).zip(addresses).map(watch).collect())
}

/// Watches one endpoint.
pub struct Watcher {
    group: Arc<Group>,
    reach: Reach,
    declaration: Declaration,
    number: u32,
    address: Address,
    rng: StdRng,
    began: Time,
    /// The process that was there last.
    incarnation: Option<u32>,
    /// Clients have been told of it.
    published: bool,
    /// When it last said something.
    heard: Time,
    phase: Phase,
    status: Option<Status>,
    /// Attempts in a row that came to nothing.
    failures: u32,
    restarts: u32,
    last_error: Option<String>,
}

impl Watcher {
    fn new(group: Arc<Group>, reach: Reach, declaration: Declaration, number: u32, address: Address) -> Self {
        let (rng, began) = (reach.env.rng(), reach.env.now());
        Watcher {
            group,
            reach,
            declaration,
            number,
            address,
            rng,
            began,
            incarnation: None,
            published: false,
            heard: began,
            phase: Phase::Starting,
            status: None,
            failures: 0,
            restarts: 0,
            last_error: None,
        }
    }

    /// Watches for ever. The instance goes on without it.
    pub async fn run(mut self) {
        self.report();
        loop {
            match self.meet().await {
                Ok(mut link) => {
                    let Reach { env, .. } = self.reach.clone();
                    while let Some(Ok(Some(message))) = env.within(SILENCE, link.receiver.next()).await {
                        if let Frame::Status(news) = message.frame {
                            self.says(*news);
                        }
                    }
                    self.lost();
                }
                Err(e) => self.failed(e),
            }
            self.report();
            let pause = backoff::delay(self.failures.max(1), RECONNECT.0, RECONNECT.1, self.rng.random());
            self.reach.env.sleep(pause).await;
        }
    }

    fn id(&self) -> InstanceId {
        let service = self.declaration.name.clone();
        InstanceId { service, number: self.number, incarnation: self.incarnation.unwrap_or_default() }
    }

    fn publish(&self, delta: EndpointDelta) {
        self.group.audience.publish(delta);
    }

    async fn meet(&mut self) -> Result<Link> {
        let Reach { env, token, job, .. } = &self.reach;
        let greeting = pelton_link::greeting(Role::Observer, token, job, "control", self.group.epoch);
        let (welcome, link) = pelton_link::connect(env, &self.address, greeting, Bytes::kib(64)).await?;
        self.check(&welcome)?;
        if self.incarnation != Some(welcome.instance.incarnation) {
            self.forget();
            self.restarts += u32::from(self.incarnation.is_some());
            self.incarnation = Some(welcome.instance.incarnation);
            tracing::info!("{} is at {}", self.id(), self.address);
        }
        (self.failures, self.last_error) = (0, None);
        self.group.despair(self.number, None);
        self.says(welcome.status);
        Ok(link)
    }

    fn check(&self, welcome: &Welcome) -> Result<()> {
        let refused = |what: String| {
            Err(Error::new(Kind::Invalid, Fate::NotSent, Retry::Never, format!("{}: {what}", self.address)))
        };
        if !are_called_as(&self.reach.methods, &welcome.methods) {
            let names: Vec<&str> = welcome.methods.iter().map(|m| m.name.as_str()).collect();
            return refused(format!(
                "the instance there ({}) has other methods, or other columns, than service `{}`: {}; is it of the same service and version?",
                welcome.instance,
                self.declaration.name,
                names.join(", ")
            ));
        }
        if welcome.max_message < self.declaration.max_message {
            return refused(format!(
                "the instance there takes messages of {}, and `max_message` of service `{}` is {}; set both to the same",
                welcome.max_message, self.declaration.name, self.declaration.max_message
            ));
        }
        Ok(())
    }

    /// What it says of itself.
    fn says(&mut self, news: Status) {
        let endpoint = Endpoint { instance: self.id(), address: self.address.clone() };
        self.phase = match &news.state {
            State::Opening => Phase::Opening,
            State::Ready => {
                if !std::mem::replace(&mut self.published, true) {
                    self.publish(EndpointDelta::Add(endpoint));
                }
                Phase::Ready
            }
            State::Draining => {
                if self.phase != Phase::Draining && self.published {
                    self.publish(EndpointDelta::Drain(endpoint.instance));
                }
                Phase::Draining
            }
            State::Failed { message, .. } => {
                self.last_error = Some(message.clone());
                Phase::Waiting
            }
        };
        self.status = Some(news);
        self.heard = self.reach.env.now();
        self.group.heard(self.number);
        self.report();
    }

    /// The connection ended.
    fn lost(&mut self) {
        if self.phase == Phase::Draining {
            self.forget();
        }
        self.phase = Phase::Waiting;
    }

    /// The process that clients know is gone.
    fn forget(&mut self) {
        if std::mem::take(&mut self.published) {
            self.publish(EndpointDelta::Remove(self.id()));
        }
        self.status = None;
    }

    fn failed(&mut self, error: Error) {
        self.failures += 1;
        self.phase = Phase::Waiting;
        let message = error.message().to_owned();
        if self.last_error.as_ref() != Some(&message) {
            tracing::warn!("service `{}`: {message}", self.declaration.name);
        }
        self.last_error = Some(message);
        if self.reach.env.now().since(self.heard) >= SILENCE {
            // Its machine may be gone, or it stands still: what it holds is tried elsewhere. If it comes back, it is used again.
            self.forget();
        }
        let late = self.reach.env.now().since(self.began) >= ARRIVAL;
        let passes = !matches!(error.kind(), Kind::Denied | Kind::Protocol | Kind::Invalid);
        if !passes || (late && self.failures >= self.declaration.retry.starts) {
            let error = error.context(format_args!("service `{}`", self.declaration.name));
            self.group.despair(self.number, Some(error));
        }
        self.group.heard(self.number);
    }

    fn report(&self) {
        let status = self.status.as_ref();
        let report = InstanceReport {
            instance: self.id().to_string(),
            phase: self.phase,
            pid: status.map(|s| s.pid),
            restarts: self.restarts,
            held: status.map_or(0, |s| s.held),
            executed: status.map_or(0, |s| s.executed),
            batches: status.map_or(0, |s| s.batches),
            standstill: status.map_or(Duration::ZERO, |s| s.standstill),
            meter: status.map(|s| s.meter.clone()).unwrap_or_default(),
            last_error: self.last_error.clone(),
            log: String::new(),
            address: Some(self.address.to_string()),
        };
        self.group.audience.report(self.number, report);
    }
}
