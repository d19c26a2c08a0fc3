//! One region of the data plane: run to its end, started again from its newest checkpoint when it fails, and started anew with other numbers
//! of subtasks when somebody wants that.

use std::time::Duration;

use pelton_core::{Error, Kind, Result, Retry, Time};
use pelton_dataflow::job::{End, Job, Options, Summary};
use pelton_dataflow::progress::Progress;
use pelton_dataflow::savepoint::Orders;
use pelton_dataflow::topology::Topology;
use pelton_env::Env;
use pelton_policy::restart::{Restarts, Strategy};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::call::Services;

/// Most subtasks of an operator.
pub(crate) const MOST_SUBTASKS: u32 = 1024;

/// A part of the graph that nothing connects with the rest.
pub(crate) struct Region {
    /// Its first node.
    name: String,
    /// What its folders are called, where there are several regions.
    folder: Option<String>,
    topology: Topology,
    options: Options,
    restarts: Restarts,
    /// The way to what runs now.
    orders: watch::Sender<Option<Orders>>,
    wishes: mpsc::Receiver<Rescale>,
    /// For handles.
    wish: mpsc::Sender<Rescale>,
}

/// What others may ask of a region.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) folder: Option<String>,
    /// Its operators.
    pub(crate) operators: Vec<String>,
    pub(crate) orders: watch::Receiver<Option<Orders>>,
    wish: mpsc::Sender<Rescale>,
}

/// An operator that has another number of subtasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescaled {
    pub operator: String,
    pub from: u32,
    pub to: u32,
    /// From the order to stop at a checkpoint until the new subtasks ran.
    pub took: Duration,
}

struct Rescale {
    operator: String,
    parallelism: u32,
    done: oneshot::Sender<Result<Rescaled>>,
}

/// How one attempt ended, if it did not fail.
enum Ended {
    Well(Summary),
    /// At a checkpoint, to go on with other numbers of subtasks.
    ToSwitch(Rescale, Time),
}

impl Region {
    pub(crate) fn new(
        name: String,
        folder: Option<String>,
        topology: Topology,
        options: Options,
        restart: Strategy,
    ) -> Region {
        let (wish, wishes) = mpsc::channel(1);
        let (restarts, orders) = (Restarts::new(restart), watch::Sender::default());
        Region { name, folder, topology, options, restarts, orders, wishes, wish }
    }

    pub(crate) fn handle(&self) -> Handle {
        Handle {
            folder: self.folder.clone(),
            operators: self.topology.nodes.iter().map(|n| n.name.clone()).collect(),
            orders: self.orders.subscribe(),
            wish: self.wish.clone(),
        }
    }

    /// Runs it to its end, or until `stop` says so. Services and other regions notice nothing of its failures.
    pub(crate) async fn run(
        mut self,
        env: &Env,
        services: &Services,
        stop: watch::Receiver<bool>,
        progress: &watch::Sender<Progress>,
    ) -> Result<Summary> {
        let mut rng = env.rng();
        let operators: Vec<u32> =
            self.topology.nodes.iter().filter(|n| n.call.is_some()).map(|n| n.number).collect();
        // What cannot begin is told at once.
        let mut started = false;
        let mut switched: Option<(Rescale, Rescaled, Time)> = None;
        loop {
            let ended = match self.start(env, services) {
                Ok(running) => {
                    started = true;
                    if let Some((rescale, rescaled, since)) = switched.take() {
                        let took = env.now().since(since);
                        tracing::info!(
                            "{} has {} subtasks, after {took:.1?}",
                            rescaled.operator,
                            rescaled.to
                        );
                        let _ = rescale.done.send(Ok(Rescaled { took, ..rescaled }));
                    }
                    self.attend(env, running, stop.clone(), progress).await
                }
                Err(error) => Err(error),
            };
            let error = match ended {
                Ok(Ended::Well(summary)) => {
                    let restarts = self.restarts.count();
                    let end = match summary.end {
                        // It failed after its last checkpoint was complete: what was to be done was done in this run.
                        End::AlreadyFinished if restarts > 0 => End::Finished,
                        end => end,
                    };
                    return Ok(Summary { end, restarts, ..summary });
                }
                Ok(Ended::ToSwitch(rescale, since)) => {
                    services.callers().values().for_each(|caller| caller.abandon(&operators));
                    if let Some(from) = self.topology.rescale(&rescale.operator, rescale.parallelism) {
                        let (operator, to) = (rescale.operator.clone(), rescale.parallelism);
                        let rescaled = Rescaled { operator, from, to, took: Duration::ZERO };
                        switched = Some((rescale, rescaled, since));
                    }
                    continue;
                }
                Err(error) => error,
            };
            let may = started && passes(&error) && !*stop.borrow();
            let wait = may.then(|| self.restarts.failed(env.now(), rng.random())).flatten();
            let Some(wait) = wait else {
                return Err(match self.restarts.count() {
                    0 => error,
                    n => error.context(format_args!("the data plane failed again after {n} restarts")),
                });
            };
            tracing::warn!(
                "region `{}` failed and starts again in {wait:.1?} from its newest checkpoint: {error}",
                self.name
            );
            progress.send_modify(|p| {
                p.restarts = self.restarts.count();
                p.failure = Some(error.message().to_owned());
            });
            services.callers().values().for_each(|caller| caller.abandon(&operators));
            let mut stopped = stop.clone();
            let _ = env.within(wait, stopped.wait_for(|stop| *stop)).await;
        }
    }

    /// The first time as it was ordered, then from its own newest checkpoint.
    fn start(&mut self, env: &Env, services: &Services) -> Result<pelton_dataflow::job::Running> {
        let running =
            Job::start(self.topology.clone(), services.callers(), env.clone(), self.options.clone())?;
        (self.options.fresh, self.options.from, self.options.restore_from) = (false, None, None);
        self.orders.send_replace(Some(running.orders()));
        Ok(running)
    }

    async fn attend(
        &mut self,
        env: &Env,
        running: pelton_dataflow::job::Running,
        mut stop: watch::Receiver<bool>,
        progress: &watch::Sender<Progress>,
    ) -> Result<Ended> {
        let mut news = running.progress();
        let stopper = running.stopper();
        let mut ended = std::pin::pin!(running.wait());
        let mut stopping = false;
        let mut switching: Option<(Rescale, Time)> = None;
        loop {
            tokio::select! {
                biased;
                summary = &mut ended => {
                    tell(progress, &news.borrow());
                    return match (switching, summary) {
                        (Some((rescale, since)), Ok(summary)) if summary.end == End::Stopped => {
                            Ok(Ended::ToSwitch(rescale, since))
                        }
                        (Some((rescale, _)), summary) => {
                            let why = Error::invalid("the job ended before it came to a checkpoint to switch at");
                            let _ = rescale.done.send(Err(why));
                            summary.map(Ended::Well)
                        }
                        (None, summary) => summary.map(Ended::Well),
                    };
                }
                _ = stop.wait_for(|stop| *stop), if !stopping => {
                    stopping = true;
                    stopper.stop();
                }
                Some(rescale) = self.wishes.recv(), if switching.is_none() && !stopping => {
                    stopper.switch();
                    switching = Some((rescale, env.now()));
                }
                Ok(()) = news.changed() => tell(progress, &news.borrow_and_update()),
            }
        }
    }
}

impl Handle {
    /// Gives an operator another number of subtasks, from the next checkpoint on, which is taken at once.
    pub(crate) async fn rescale(&self, operator: &str, parallelism: u32) -> Result<Rescaled> {
        if !(1..=MOST_SUBTASKS).contains(&parallelism) {
            return Err(Error::invalid(format!(
                "{parallelism} subtasks for `{operator}`: 1 to {MOST_SUBTASKS} are possible"
            )));
        }
        let ending = |()| Error::invalid("the job is ending; start it again with another parallelism");
        let (done, rescaled) = oneshot::channel();
        let rescale = Rescale { operator: operator.to_owned(), parallelism, done };
        self.wish.send(rescale).await.map_err(|_| ending(()))?;
        rescaled.await.unwrap_or_else(|_| Err(ending(())))
    }
}

/// News of one attempt; what is known of earlier ones stays.
fn tell(progress: &watch::Sender<Progress>, news: &Progress) {
    progress.send_modify(|p| {
        *p = Progress { restarts: p.restarts, failure: p.failure.take(), ..news.clone() };
    });
}

/// Whether the same may go well another time.
fn passes(error: &Error) -> bool {
    let outside = matches!(
        error.kind(),
        Kind::Connect | Kind::Reset | Kind::Overload | Kind::NoProgress | Kind::Storage | Kind::Internal
    );
    outside || error.retry() != Retry::Never
}
