//! Runs a job: starts its subtasks, takes checkpoints, and sees it to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pelton_core::call::Caller;
use pelton_core::{Error, Fate, Kind, Result, Retry, Time};
use pelton_env::{Env, Place, Task};
use tokio::sync::{mpsc, oneshot, watch};

use crate::checkpoint::coordinator::{Coordinator, Decision, Pace};
use crate::checkpoint::folder::Size;
use crate::checkpoint::manifest::{Manifest, VERSION};
use crate::checkpoint::store::Store;
use crate::job::{End, Options, Summary, Wish};
use crate::plan::Work;
use crate::progress::{Counters, LastCheckpoint, NodeProgress, Progress};
use crate::savepoint::{Request, Waiting};
use crate::sink::{Sink, Staged};
use crate::subtask::state::State;
use crate::subtask::{self, Command, Control, Head, Report, Subtask};
use crate::topology::Topology;
use crate::wiring::{Wired, upstream};

/// How often numbers are brought up to date.
const REFRESH: Duration = Duration::from_millis(200);

enum Event {
    Report(Report),
    Written(Result<Size>),
    Wish(Wish),
    Savepoint(Request),
    Tick,
}

/// A checkpoint on its way to the disk.
struct Writing {
    number: u64,
    is_final: bool,
    done: oneshot::Receiver<Result<Size>>,
    _task: Task,
}

struct Stopping {
    /// Calls that instances may still be working for.
    busy: BTreeSet<usize>,
    until: Time,
    /// The checkpoint that ends the job.
    last: Option<u64>,
}

pub(crate) struct Conductor {
    env: Env,
    topology: Topology,
    callers: BTreeMap<String, Arc<dyn Caller>>,
    options: Options,
    store: Arc<Store>,
    subtasks: Vec<Subtask>,
    controls: Vec<Arc<Control>>,
    /// The stage of each subtask.
    stages: Vec<usize>,
    reports: mpsc::UnboundedReceiver<Report>,
    counters: Vec<Arc<Counters>>,
    calls: BTreeSet<usize>,
    /// Calls that need no instance any more.
    quiet: BTreeSet<usize>,
    coordinator: Coordinator,
    started: Time,
    writing: Option<Writing>,
    stopping: Option<Stopping>,
    savepoints: Waiting,
    checkpoints: u64,
    aborted_in_a_row: u32,
    latest: Progress,
    summary: Summary,
}

impl Conductor {
    #[expect(clippy::too_many_arguments, reason = "the parts of a job meet here, once")]
    pub(crate) fn new(
        env: Env,
        topology: Topology,
        callers: BTreeMap<String, Arc<dyn Caller>>,
        options: Options,
        store: Arc<Store>,
        wired: Wired,
        restored: Option<Manifest>,
        last: u64,
    ) -> Self {
        let now = env.now();
        let pace = Pace { interval: options.interval, pause: options.pause, timeout: options.timeout };
        let calls =
            wired.subtasks.iter().filter(|s| matches!(s.head, Head::Call(_))).map(|s| s.index).collect();
        let had_finished = wired.nothing_new && restored.as_ref().is_some_and(|r| r.finished);
        let summary = Summary {
            end: if had_finished { End::AlreadyFinished } else { End::Finished },
            nodes: Vec::new(),
            checkpoints: 0,
            restored_from: restored.map(|r| r.number),
            restarts: 0,
            changed: wired.changed,
            lost: wired.lost,
            elapsed: Duration::ZERO,
        };
        Conductor {
            coordinator: Coordinator::new(pace, upstream(&topology, &wired.stages), last, now),
            env,
            topology,
            callers,
            options,
            store,
            subtasks: wired.subtasks,
            controls: wired.controls,
            stages: wired.stages,
            reports: wired.reports,
            counters: wired.counters,
            calls,
            quiet: BTreeSet::new(),
            started: now,
            writing: None,
            stopping: None,
            savepoints: Waiting::default(),
            checkpoints: 0,
            aborted_in_a_row: 0,
            latest: Progress::default(),
            summary,
        }
    }

    pub(crate) async fn conduct(
        mut self,
        mut wishes: watch::Receiver<Wish>,
        mut requests: mpsc::Receiver<Request>,
        progress: watch::Sender<Progress>,
    ) -> Result<Summary> {
        let mut tasks: Vec<Task> = Vec::new();
        if self.summary.end != End::AlreadyFinished {
            let subtasks = std::mem::take(&mut self.subtasks);
            tasks.extend(subtasks.into_iter().map(|s| self.env.spawn(Place::Compute, subtask::run(s))));
        }
        let ended = match self.summary.end {
            End::AlreadyFinished => Ok(End::AlreadyFinished),
            _ => self.until_end(&mut wishes, &mut requests, &progress).await,
        };
        // One that is being written is let finish, so that the folder is free when we have ended.
        if let Some(writing) = self.writing.take() {
            let _ = writing.done.await;
        }
        drop(tasks);
        progress.send_replace(self.progress());
        Ok(Summary {
            end: ended?,
            nodes: self.nodes(),
            checkpoints: self.checkpoints,
            elapsed: self.env.now().since(self.started),
            ..self.summary
        })
    }

    async fn until_end(
        &mut self,
        wishes: &mut watch::Receiver<Wish>,
        requests: &mut mpsc::Receiver<Request>,
        progress: &watch::Sender<Progress>,
    ) -> Result<End> {
        let mut refresh = self.env.now();
        loop {
            let now = self.env.now();
            if now >= refresh {
                refresh = now + REFRESH;
                progress.send_replace(self.progress());
            }
            self.stop_when_quiet(now);
            while let Some(decision) = self.coordinator.decide(now) {
                self.act(decision)?;
            }
            let wake = [
                self.coordinator.next_at(),
                self.stopping.as_ref().filter(|s| s.last.is_none()).map(|s| s.until),
            ];
            let wake = wake.into_iter().flatten().filter(|t| *t > now).chain([refresh]).min();
            let event = tokio::select! {
                biased;
                Ok(()) = wishes.changed() => Event::Wish(*wishes.borrow_and_update()),
                Some(request) = requests.recv() => Event::Savepoint(request),
                Some(report) = self.reports.recv() => Event::Report(report),
                written = written(&mut self.writing) => Event::Written(written),
                () = self.env.sleep_until(wake) => Event::Tick,
            };
            match event {
                Event::Tick => {}
                Event::Wish(Wish::Cancel) => return Err(Error::internal("the job was cancelled")),
                Event::Wish(Wish::Stop) => self.stop(),
                Event::Wish(Wish::Switch) => self.begin_stop(Duration::ZERO),
                Event::Wish(Wish::Run) => {}
                Event::Savepoint(request) => self.begin_savepoint(request),
                Event::Report(report) => self.note(report)?,
                Event::Written(bytes) => {
                    if let Some(end) = self.note_written(bytes)? {
                        let last = self.latest.checkpoint.map_or(0, |c| c.number);
                        self.until_acknowledged(last).await;
                        return Ok(end);
                    }
                }
            }
        }
    }

    fn act(&mut self, decision: Decision) -> Result<()> {
        match decision {
            Decision::Begin { number, tell } => {
                if let Some(stopping) = &mut self.stopping
                    && stopping.busy.is_empty()
                {
                    stopping.last = Some(number);
                }
                let last = self.stopping.as_ref().is_some_and(|s| s.last == Some(number));
                self.savepoints.begun(number, last);
                self.tell(&tell, number);
            }
            Decision::Tell { number, tell } => self.tell(&tell, number),
            Decision::Abort { number } => {
                tracing::warn!(number, timeout = ?self.options.timeout, "a checkpoint took too long and was given up");
                self.latest.aborted += 1;
                self.aborted_in_a_row += 1;
                if let Some(stopping) = self.stopping.as_mut().filter(|s| s.last == Some(number)) {
                    stopping.last = None;
                }
                self.savepoints.aborted(number);
                self.controls.iter().for_each(|c| c.tell(Command::Aborted(number)));
                let Options { timeout, tolerated, .. } = self.options;
                if self.aborted_in_a_row > tolerated {
                    let n = self.aborted_in_a_row;
                    let message = format!(
                        "{n} checkpoints in a row took longer than {timeout:?} and were given up, which is more than the {tolerated} that are \
                         tolerated; an operator may be stuck, or the storage too slow"
                    );
                    return Err(Error::new(Kind::NoProgress, Fate::Unknown, Retry::Here, message));
                }
            }
            Decision::Write { number } => self.write(number),
        }
        Ok(())
    }

    fn tell(&self, subtasks: &[usize], number: u64) {
        subtasks.iter().for_each(|s| self.controls[*s].tell(Command::Checkpoint(number)));
    }

    fn note(&mut self, report: Report) -> Result<()> {
        match report {
            Report::Failed(e) => return Err(e),
            Report::Acked { subtask, number, state } => self.coordinator.acked(subtask, number, state),
            Report::Finished { subtask, state } => {
                self.coordinator.finished(subtask, state);
                self.note_quiet(subtask);
            }
            Report::Quiet { subtask } => self.note_quiet(subtask),
            Report::Acknowledged { .. } => {}
        }
        Ok(())
    }

    fn note_quiet(&mut self, subtask: usize) {
        self.quiet.insert(subtask);
        if let Some(stopping) = &mut self.stopping {
            stopping.busy.remove(&subtask);
        }
    }

    fn begin_savepoint(&mut self, request: Request) {
        if self.stopping.is_some() || self.coordinator.all_finished() {
            return request.refuse_at_end();
        }
        if request.stop {
            self.stop();
        } else {
            self.coordinator.ask();
        }
        self.savepoints.add(request);
    }

    /// Nothing new goes to instances, and what they have is waited for.
    fn stop(&mut self) {
        self.callers.values().for_each(|c| c.hold());
        self.begin_stop(self.options.stop_grace);
    }

    fn begin_stop(&mut self, grace: Duration) {
        if self.stopping.is_some() {
            return;
        }
        self.controls.iter().for_each(|c| c.tell(Command::Stop));
        let until = self.env.now() + grace;
        self.stopping = Some(Stopping { busy: &self.calls - &self.quiet, until, last: None });
    }

    /// Asks for the last checkpoint once nothing runs for us, or the grace is over. What runs longer stays with its
    /// instance, and is asked for again after the restart.
    fn stop_when_quiet(&mut self, now: Time) {
        let Some(stopping) = &mut self.stopping else {
            return;
        };
        if now >= stopping.until {
            stopping.busy.clear();
        }
        if stopping.last.is_none() && stopping.busy.is_empty() && self.coordinator.is_idle() {
            self.coordinator.ask();
        }
    }

    /// Writes a checkpoint, makes its outputs visible, and removes old ones; away from the threads that must not block.
    fn write(&mut self, number: u64) {
        let (parts, is_final) = self.coordinator.parts();
        let mut staged: BTreeMap<String, Vec<Staged>> = BTreeMap::new();
        let mut sinks: Vec<(String, Arc<dyn Sink>)> = Vec::new();
        let mut named: Vec<(String, State)> = Vec::new();
        for (mut part, stage) in parts.into_iter().zip(&self.stages) {
            let head = self.topology.head(&self.topology.stages[*stage]);
            if let Work::Sink(sink) = &head.work {
                if !sinks.iter().any(|(name, _)| *name == head.name) {
                    sinks.push((head.name.clone(), sink.clone()));
                }
                staged.entry(head.name.clone()).or_default().append(&mut part.staged);
            }
            named.push((head.name.clone(), part));
        }
        let manifest = Manifest {
            version: VERSION,
            number,
            generation: self.store.generation(),
            made_at: self.env.clock.unix_millis(),
            identity: self.topology.identity.clone(),
            finished: is_final,
            staged: staged.clone(),
            files: Vec::new(),
            parts: Vec::new(),
        };
        let (store, savepoints) = (self.store.clone(), self.savepoints.take(number));
        let (tell, done) = oneshot::channel();
        let task = self.env.spawn(Place::Dedicated, async move {
            let write = move |store: &Store| {
                let size = store.write(manifest.clone(), &named)?;
                for (name, sink) in &sinks {
                    let staged = staged.get(name).map_or(&[][..], Vec::as_slice);
                    if !staged.is_empty() {
                        sink.commit(staged).map_err(|e| e.context(format!("sink `{name}`")))?;
                    }
                }
                savepoints.into_iter().for_each(|s| s.write(&**store.storage(), &manifest, &named));
                store.collect()?;
                Ok(size)
            };
            let written = write(&store).map_err(|e: Error| e.context(format!("checkpoint {number}")));
            // The folder is free as soon as the job hears of it.
            drop(store);
            let _ = tell.send(written);
        });
        self.writing = Some(Writing { number, is_final, done, _task: task });
    }

    fn note_written(&mut self, size: Result<Size>) -> Result<Option<End>> {
        let writing = self.writing.take().expect("something was written");
        let Size { bytes, new } = size?;
        let took = self.coordinator.written(self.env.now());
        self.checkpoints += 1;
        self.aborted_in_a_row = 0;
        self.latest.checkpoint = Some(LastCheckpoint { number: writing.number, took, bytes, new });
        self.controls.iter().for_each(|c| c.tell(Command::Completed(writing.number)));
        if writing.is_final {
            return Ok(Some(End::Finished));
        }
        let stopped = self.stopping.as_ref().is_some_and(|s| s.last == Some(writing.number));
        Ok(stopped.then_some(End::Stopped))
    }

    /// Waits until all calls have told their clients what the last checkpoint covers. The outputs are visible: nothing
    /// that fails now matters to the job.
    async fn until_acknowledged(&mut self, last: u64) {
        let mut missing = self.calls.clone();
        while !missing.is_empty() {
            match self.reports.recv().await {
                Some(Report::Acknowledged { subtask, number }) if number == last => {
                    _ = missing.remove(&subtask)
                }
                Some(Report::Failed(_)) | None => return,
                Some(_) => {}
            }
        }
    }

    fn nodes(&self) -> Vec<NodeProgress> {
        self.topology.nodes.iter().zip(&self.counters).map(|(n, c)| c.read(&n.name)).collect()
    }

    fn progress(&self) -> Progress {
        Progress { nodes: self.nodes(), ..self.latest.clone() }
    }
}

/// Waits for what is being written; for ever if nothing is.
async fn written(writing: &mut Option<Writing>) -> Result<Size> {
    match writing {
        Some(writing) => {
            let ended = (&mut writing.done).await;
            ended.unwrap_or_else(|_| {
                Err(Error::internal("the task that writes checkpoints ended without a result"))
            })
        }
        None => std::future::pending().await,
    }
}
