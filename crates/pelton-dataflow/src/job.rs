//! Starts a job, and is its handle.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pelton_core::call::Caller;
use pelton_core::{Bytes, Error, Result};
use pelton_env::{Env, Place, Task};
use tokio::sync::{oneshot, watch};

use crate::checkpoint::folder::Loaded;
use crate::checkpoint::store::Store;
use crate::conduct::Conductor;
use crate::explain::Budgets;
use crate::plan::Work;
use crate::progress::{NodeProgress, Progress};
use crate::savepoint::{self, Orders};
use crate::topology::Topology;
use crate::wiring::wire;

/// How a job runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder for its checkpoints. One job's own.
    pub state: PathBuf,
    /// Forget the checkpoints that are there, and outputs that are staged and not visible. Visible ones stay.
    pub fresh: bool,
    /// Begin a new state from this savepoint. Refused where there are checkpoints, unless `fresh`. Output that the job that took
    /// it had made visible by then is not made again.
    pub from: Option<PathBuf>,
    /// Start from this checkpoint, not the newest. Later ones are removed, and sinks withdraw what they had made visible.
    pub restore_from: Option<u64>,
    /// From the begin of one checkpoint to that of the next.
    pub interval: Duration,
    /// The least time between the end of a checkpoint and the begin of the next.
    pub pause: Duration,
    /// A checkpoint that takes longer is given up.
    pub timeout: Duration,
    /// So many that are given up in a row are tolerated; with one more the job fails (and may be started again from its newest one).
    pub tolerated: u32,
    /// How long a stop waits for what instances are working on.
    pub stop_grace: Duration,
    /// What one edge may hold, over all pairs of its subtasks.
    pub edge_bytes: Bytes,
    /// What the pending rows and results of one call subtask may hold.
    pub pending_bytes: Bytes,
    /// How many rows may be pending there. None: as many as their bytes allow.
    pub pending_rows: Option<u64>,
}

impl Options {
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Options {
            state: state.into(),
            fresh: false,
            from: None,
            restore_from: None,
            interval: Duration::from_secs(5),
            pause: Duration::from_millis(500),
            timeout: Duration::from_secs(600),
            tolerated: 3,
            stop_grace: Duration::from_secs(10),
            edge_bytes: Bytes::mib(8),
            pending_bytes: Bytes::mib(32),
            pending_rows: None,
        }
    }

    pub fn budgets(&self) -> Budgets {
        Budgets { edge: self.edge_bytes, pending: self.pending_bytes }
    }
}

/// How a job ended, if it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything was read, answered and made visible.
    Finished,
    /// It had finished before, and there was nothing new to read.
    AlreadyFinished,
    /// It was stopped; started again, it goes on.
    Stopped,
}

#[derive(Clone, Debug)]
pub struct Summary {
    pub end: End,
    /// What each node did in this run.
    pub nodes: Vec<NodeProgress>,
    /// Complete checkpoints of this run.
    pub checkpoints: u64,
    pub restored_from: Option<u64>,
    /// How often it failed and was started again from its newest checkpoint.
    pub restarts: u64,
    /// Splits whose content has changed since they were read, in part or to their end. They were not read again.
    pub changed: u64,
    /// Splits that had been read in part and could not be read on.
    pub lost: u64,
    pub elapsed: Duration,
}

/// What the owner wants of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Run,
    Stop,
    /// Stop, and don't wait for what instances are working on.
    Switch,
    Cancel,
}

pub struct Job;

impl Job {
    /// Starts a job, or goes on with one from its newest checkpoint. Looks at files and folders, so it may block.
    pub fn start(
        topology: Topology,
        callers: BTreeMap<String, Arc<dyn Caller>>,
        env: Env,
        options: Options,
    ) -> Result<Running> {
        check_callers(&topology, &callers)?;
        let store = Store::open(&env.storage, &options.state)?;
        let restored = restore(&topology, &store, &options)?;
        publish(&topology, &store, restored.as_ref())?;
        if let (Some(_), Some(loaded)) = (&options.from, &restored) {
            savepoint::adopt(&store, loaded)?;
        }
        let last = store.numbers()?.into_iter().max().unwrap_or(0);
        let wired = wire(&topology, &callers, &store, &options, restored.as_ref(), last)?;
        let (progress, watched) = watch::channel(Progress::default());
        let (wish, wishes) = watch::channel(Wish::Run);
        let (orders, requests) = savepoint::orders(&env, &options.state);
        let (done, result) = oneshot::channel();
        let restored = restored.map(|r| r.manifest);
        let conductor =
            Conductor::new(env.clone(), topology, callers, options, Arc::new(store), wired, restored, last);
        let task = env.spawn(Place::Network, async move {
            let ended = conductor.conduct(wishes, requests, progress).await;
            // Nobody waits for it if the handle is gone.
            let _ = done.send(ended);
        });
        Ok(Running { progress: watched, wish, orders, result, _task: task })
    }
}

/// A job at work. Dropping it ends the job at once, as a crash would.
pub struct Running {
    progress: watch::Receiver<Progress>,
    wish: watch::Sender<Wish>,
    orders: Orders,
    result: oneshot::Receiver<Result<Summary>>,
    _task: Task,
}

impl Running {
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Stops in good order: what instances are working on is waited for, up to the grace; then a checkpoint; then the end.
    /// [`wait`](Running::wait) tells when.
    pub fn stop(&self) {
        self.stopper().stop();
    }

    /// What can ask something of the job while somebody else waits for it.
    pub fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// What can stop the job while somebody else waits for it.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.wish.clone())
    }

    /// Ends at once, without a checkpoint. Waits for one that is being written.
    pub async fn cancel(self) {
        self.wish.send_replace(Wish::Cancel);
        let _ = self.result.await;
    }

    pub async fn wait(self) -> Result<Summary> {
        self.result
            .await
            .unwrap_or_else(|_| Err(Error::internal("the job's own task ended without a result")))
    }
}

/// Stops a job, as [`Running::stop`] does.
#[derive(Clone)]
pub struct Stopper(watch::Sender<Wish>);

impl Stopper {
    pub fn stop(&self) {
        self.0.send_if_modified(|wish| {
            let first = *wish == Wish::Run;
            if first {
                *wish = Wish::Stop;
            }
            first
        });
    }

    /// Stops at the next checkpoint, which is taken at once, whatever instances are working on: they go on, and who starts the job again is
    /// given what came of it.
    pub fn switch(&self) {
        self.0.send_if_modified(|wish| {
            let first = *wish == Wish::Run;
            if first {
                *wish = Wish::Switch;
            }
            first
        });
    }
}

fn check_callers(topology: &Topology, callers: &BTreeMap<String, Arc<dyn Caller>>) -> Result<()> {
    for node in &topology.nodes {
        let (Work::Call(call), Some(shape)) = (&node.work, &node.call) else {
            continue;
        };
        let caller = callers.get(&call.service).ok_or_else(|| {
            Error::invalid(format!(
                "call `{}` needs service `{}`, for which no client was given",
                node.name, call.service
            ))
        })?;
        let given = caller.methods().get(shape.index);
        if given.is_none_or(|m| m.name != call.method || m.input != shape.method.input) {
            return Err(Error::invalid(format!(
                "call `{}`: the client of service `{}` has other methods than the plan was checked with; check it again",
                node.name, call.service
            )));
        }
    }
    Ok(())
}

fn restore(topology: &Topology, store: &Store, options: &Options) -> Result<Option<Loaded>> {
    let folder = options.state.display().to_string();
    let from = match &options.from {
        Some(from) => {
            let loaded = savepoint::load(store, from, options.fresh)?;
            loaded.manifest.check_identity(&topology.identity, &from.display().to_string())?;
            Some(loaded)
        }
        None => None,
    };
    // Not before the savepoint is known to be whole.
    if options.fresh {
        store.clear()?;
    }
    if options.fresh || from.is_some() {
        return Ok(from);
    }
    let numbers = store.numbers()?;
    let back_to = options.restore_from.map_or_else(|| store.rewinding(), |n| Ok(Some(n)))?;
    let number = match back_to {
        Some(n) if !numbers.contains(&n) => {
            let there: Vec<String> = numbers.iter().map(u64::to_string).collect();
            return Err(Error::invalid(format!(
                "there is no checkpoint {n} in {folder}; there are: {}",
                there.join(", ")
            )));
        }
        Some(n) => Some(n),
        None => numbers.last().copied(),
    };
    let Some(number) = number else { return Ok(None) };
    let loaded = store.load(number)?;
    loaded.manifest.check_identity(&topology.identity, &folder)?;
    if back_to.is_some() {
        store.begin_rewind(number)?;
    }
    Ok(Some(loaded))
}

/// Makes visible what the restored checkpoint had staged: the process that wrote it may have ended before it could.
fn publish(topology: &Topology, store: &Store, restored: Option<&Loaded>) -> Result<()> {
    let back_to = store.rewinding()?;
    for node in &topology.nodes {
        let Work::Sink(sink) = &node.work else { continue };
        let staged = restored.and_then(|r| r.manifest.staged.get(&node.name)).map_or(&[][..], Vec::as_slice);
        let context = |e: Error| e.context(format!("sink `{}`", node.name));
        if let Some(number) = back_to {
            sink.rewind(number).map_err(context)?;
        }
        sink.start(store.generation(), staged).map_err(context)?;
        if !staged.is_empty() {
            sink.commit(staged).map_err(context)?;
        }
    }
    if let Some(number) = back_to {
        store.end_rewind(number)?;
    }
    Ok(())
}
