//! One region of the data plane: run to its end, and started again from its newest checkpoint when it fails.

use pelton_core::{Error, Kind, Result, Retry};
use pelton_dataflow::job::{End, Job, Options, Summary};
use pelton_dataflow::progress::Progress;
use pelton_dataflow::topology::Topology;
use pelton_env::Env;
use pelton_policy::restart::{Restarts, Strategy};
use rand::RngExt;
use tokio::sync::watch;

use crate::call::Services;

/// A part of the graph that nothing connects with the rest.
pub(crate) struct Region {
    /// Its first node.
    pub(crate) name: String,
    pub(crate) topology: Topology,
    pub(crate) options: Options,
    pub(crate) strategy: Strategy,
}

impl Region {
    /// Runs it to its end, or until `stop` says so. Services and other regions notice nothing of its failures.
    pub(crate) async fn run(
        self,
        env: &Env,
        services: &Services,
        stop: watch::Receiver<bool>,
        progress: &watch::Sender<Progress>,
    ) -> Result<Summary> {
        let mut options = self.options.clone();
        let mut restarts = Restarts::new(self.strategy);
        let mut rng = env.rng();
        let operators: Vec<u32> =
            self.topology.nodes.iter().filter(|n| n.call.is_some()).map(|n| n.number).collect();
        loop {
            let error = match self.attempt(env, services, options.clone(), stop.clone(), progress).await {
                Ok(summary) => {
                    let end = match summary.end {
                        // It failed after its last checkpoint was complete: what was to be done was done in this run.
                        End::AlreadyFinished if restarts.count() > 0 => End::Finished,
                        end => end,
                    };
                    return Ok(Summary { end, restarts: restarts.count(), ..summary });
                }
                Err(error) => error,
            };
            let may = passes(&error) && !*stop.borrow();
            let wait = may.then(|| restarts.failed(env.now(), rng.random())).flatten();
            let Some(wait) = wait else {
                return Err(match restarts.count() {
                    0 => error,
                    n => error.context(format_args!("the data plane failed again after {n} restarts")),
                });
            };
            tracing::warn!(
                "region `{}` failed and starts again in {wait:.1?} from its newest checkpoint: {error}",
                self.name
            );
            progress.send_modify(|p| {
                p.restarts = restarts.count();
                p.failure = Some(error.message().to_owned());
            });
            services.callers().values().for_each(|caller| caller.abandon(&operators));
            let mut stopped = stop.clone();
            let _ = env.within(wait, stopped.wait_for(|stop| *stop)).await;
            (options.fresh, options.restore_from) = (false, None);
        }
    }

    async fn attempt(
        &self,
        env: &Env,
        services: &Services,
        options: Options,
        mut stop: watch::Receiver<bool>,
        progress: &watch::Sender<Progress>,
    ) -> Result<Summary> {
        let running = Job::start(self.topology.clone(), services.callers(), env.clone(), options)?;
        let mut news = running.progress();
        let stopper = running.stopper();
        let mut ended = std::pin::pin!(running.wait());
        let mut stopping = false;
        loop {
            tokio::select! {
                biased;
                summary = &mut ended => {
                    tell(progress, &news.borrow());
                    return summary;
                }
                _ = stop.wait_for(|stop| *stop), if !stopping => {
                    stopping = true;
                    stopper.stop();
                }
                Ok(()) = news.changed() => tell(progress, &news.borrow_and_update()),
            }
        }
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
