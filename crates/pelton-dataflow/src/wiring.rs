//! Makes the subtasks of a checked graph, with their edges and what a checkpoint held for them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use pelton_core::call::Caller;
use pelton_core::id::stable_hash;
use pelton_core::{Error, Result};
use tokio::sync::{Notify, mpsc};

use crate::checkpoint::folder::Loaded;
use crate::checkpoint::store::Store;
use crate::edge::{Receiver, edge};
use crate::inputs::Inputs;
use crate::job::Options;
use crate::outbox::{Outbox, Target};
use crate::pending::{Pending, Shape, Stored};
use crate::plan::{Port, Work};
use crate::progress::{Counters, add};
use crate::splits::merge;
use crate::subtask::calling::{Calling, Terms};
use crate::subtask::chain::{Chain, Member};
use crate::subtask::reading::{Pool, Reading};
use crate::subtask::state::{State, deal};
use crate::subtask::{Control, Head, Phase, Report, Subtask};
use crate::topology::{Stage, Topology, mix};

/// Subtasks that are ready to run, and what the coordinator needs to know of them.
pub(crate) struct Wired {
    pub(crate) subtasks: Vec<Subtask>,
    pub(crate) controls: Vec<Arc<Control>>,
    /// The stage of each subtask.
    pub(crate) stages: Vec<usize>,
    pub(crate) reports: mpsc::UnboundedReceiver<Report>,
    pub(crate) counters: Vec<Arc<Counters>>,
    pub(crate) changed: u64,
    pub(crate) lost: u64,
    /// Whether no source found anything that was not read before.
    pub(crate) nothing_new: bool,
}

/// What all stages share while they are made.
struct Maker<'a> {
    topology: &'a Topology,
    callers: &'a BTreeMap<String, Arc<dyn Caller>>,
    options: &'a Options,
    generation: u64,
    last: u64,
    wakes: Vec<Arc<Notify>>,
    /// The first subtask of each stage.
    offsets: Vec<usize>,
    counters: Vec<Arc<Counters>>,
    /// By subtask.
    receivers: Vec<Vec<Receiver>>,
    changed: u64,
    lost: u64,
    fresh: u64,
}

pub(crate) fn wire(
    topology: &Topology,
    callers: &BTreeMap<String, Arc<dyn Caller>>,
    store: &Store,
    options: &Options,
    restored: Option<&Loaded>,
    last: u64,
) -> Result<Wired> {
    let mut offsets = Vec::new();
    let mut stages = Vec::new();
    for (index, stage) in topology.stages.iter().enumerate() {
        offsets.push(stages.len());
        stages.extend(std::iter::repeat_n(index, stage.parallelism as usize));
    }
    let mut maker = Maker {
        topology,
        callers,
        options,
        generation: store.generation(),
        last,
        wakes: stages.iter().map(|_| Arc::default()).collect(),
        offsets,
        counters: topology.nodes.iter().map(|_| Arc::default()).collect(),
        receivers: stages.iter().map(|_| Vec::new()).collect(),
        changed: 0,
        lost: 0,
        fresh: 0,
    };
    // Reports are bounded: a subtask gives one a checkpoint, and one checkpoint goes on at a time.
    let (reporter, reports) = mpsc::unbounded_channel();
    let mut subtasks: Vec<Subtask> = Vec::new();
    for (index, stage) in topology.stages.iter().enumerate() {
        let parts =
            restored.and_then(|r| r.parts.get(&topology.head(stage).name)).cloned().unwrap_or_default();
        maker.stage(index, stage, parts, &reporter, &mut subtasks)?;
    }
    Ok(Wired {
        controls: subtasks.iter().map(|s| s.control.clone()).collect(),
        subtasks,
        stages,
        reports,
        counters: maker.counters,
        changed: maker.changed,
        lost: maker.lost,
        nothing_new: maker.fresh == 0,
    })
}

/// Whose output each subtask takes.
pub(crate) fn upstream(topology: &Topology, stages: &[usize]) -> Vec<Vec<usize>> {
    let of = |stage: &usize| {
        let inputs = &topology.stages[*stage].inputs;
        let before: Vec<usize> =
            inputs.iter().map(|e| topology.nodes[topology.edges[*e].from.node.0].stage).collect();
        (0..stages.len()).filter(|s| before.contains(&stages[*s])).collect()
    };
    stages.iter().map(of).collect()
}

impl Maker<'_> {
    /// Upstream stages are made before: their ends of the edges wait in `receivers`.
    fn stage(
        &mut self,
        index: usize,
        stage: &Stage,
        mut parts: Vec<State>,
        reporter: &mpsc::UnboundedSender<Report>,
        subtasks: &mut Vec<Subtask>,
    ) -> Result<()> {
        let pool = self.find_splits(stage, &mut parts)?;
        for (number, part) in deal(parts, stage.parallelism as usize).into_iter().enumerate() {
            let at = self.offsets[index] + number;
            let mut part = part;
            let (queued, unsent) = (std::mem::take(&mut part.queued), std::mem::take(&mut part.unsent));
            let mut outbox = Outbox::new(self.targets(at, stage));
            unsent.into_iter().for_each(|(output, batch)| outbox.push(output, batch));
            let wake = self.wakes[at].clone();
            let head = self.topology.head(stage);
            subtasks.push(Subtask {
                index: at,
                head: self.head(stage, number as u32, &wake, part, &pool)?,
                chain: self.chain(stage)?,
                columns: head.input.clone(),
                inputs: Inputs::new(std::mem::take(&mut self.receivers[at]), queued),
                outbox,
                control: Arc::new(Control::new(wake)),
                reports: reporter.clone(),
                last: self.last,
                phase: Phase::Running,
                stopping: false,
                said_quiet: false,
            });
        }
        Ok(())
    }

    /// For a source: what there is to read.
    fn find_splits(&mut self, stage: &Stage, parts: &mut [State]) -> Result<Pool> {
        let head = self.topology.head(stage);
        let Work::Source { source, on_error } = &head.work else {
            return Ok(Pool::default());
        };
        let found = source.splits().map_err(|e| e.context(format!("source `{}`", head.name)))?;
        let merged = merge(&head.name, found, parts, *on_error, &outputs(stage, 0, Port::Errors))?;
        let counters = &self.counters[stage.members[0]];
        add(&counters.splits_done, merged.done);
        add(&counters.splits_total, merged.total);
        add(&counters.errors, merged.lost);
        self.changed += merged.changed;
        self.lost += merged.lost;
        self.fresh += merged.fresh.len() as u64;
        Ok(Arc::new(Mutex::new(VecDeque::from(merged.fresh))))
    }

    /// The sending ends of a subtask's edges.
    fn targets(&mut self, at: usize, stage: &Stage) -> Vec<Target> {
        let mut targets = Vec::new();
        for output in &stage.outputs {
            let edge_of = self.topology.edges[output.edge];
            let to = &self.topology.nodes[edge_of.to.0];
            let next = &self.topology.stages[to.stage];
            let pairs = u64::from(stage.parallelism) * u64::from(next.parallelism);
            let limit = (self.options.edge_bytes.get() / pairs).max(1);
            let mut senders = Vec::new();
            for number in 0..next.parallelism as usize {
                let other = self.offsets[to.stage] + number;
                let (sender, receiver) = edge(limit, self.wakes[at].clone(), self.wakes[other].clone());
                senders.push(sender);
                self.receivers[other].push(receiver);
            }
            // A sink does not number rows, so it may take a split's rows from several ways.
            let mixes = self.topology.fan_in(edge_of.to) > 1 && !matches!(to.work, Work::Sink(_));
            // Even one output may lead there twice.
            let twins = self.topology.edges[..output.edge].iter().filter(|e| **e == edge_of).count();
            let way =
                format!("{}/{:?}/{twins}", self.topology.nodes[edge_of.from.node.0].name, edge_of.from.port);
            targets.push(Target { senders, salt: mixes.then(|| mix(stable_hash(&way))) });
        }
        targets
    }

    fn chain(&self, stage: &Stage) -> Result<Chain> {
        let member = |(index, node): (usize, &usize)| {
            let checked = &self.topology.nodes[*node];
            let transform = match &checked.work {
                Work::Map(map) => {
                    Some(map.create().map_err(|e| e.context(format!("map `{}`", checked.name)))?)
                }
                _ => None,
            };
            Ok(Member {
                name: checked.name.clone(),
                transform,
                schema: checked.output.clone(),
                rows: outputs(stage, index, Port::Rows),
                errors: outputs(stage, index, Port::Errors),
                counters: self.counters[*node].clone(),
            })
        };
        Ok(Chain { members: stage.members.iter().enumerate().map(member).collect::<Result<_>>()? })
    }

    fn head(&self, stage: &Stage, number: u32, wake: &Arc<Notify>, part: State, pool: &Pool) -> Result<Head> {
        let node = self.topology.head(stage);
        Ok(match &node.work {
            Work::Map(_) => Head::Map,
            Work::Source { source, .. } => Head::Source(Reading::new(source.clone(), pool.clone(), part)),
            Work::Sink(sink) => {
                let writer = sink.writer(number, self.generation, node.output.clone());
                Head::Sink(writer.map_err(|e| e.context(format!("sink `{}`", node.name)))?)
            }
            Work::Call(call) => {
                let shape = node.call.clone().ok_or_else(|| Error::internal("a call without its shape"))?;
                let caller = self.callers[&call.service].clone();
                let result = shape.method.output.clone();
                let (kept, cardinality) = (shape.kept.clone(), shape.method.cardinality);
                let rows = Shape { result, kept, output: node.output.clone(), cardinality };
                let stored = shape.changelog.clone();
                let stored = stored.map(|c| Stored::new(&node.name, c, shape.default.clone()));
                let budget = self.options.pending_bytes.get();
                let pending = Pending::new(node.number, call.order, rows, budget, stored)
                    .with_most_rows(self.options.pending_rows);
                let terms = Terms {
                    name: node.name.clone(),
                    shape,
                    timeout: call.timeout,
                    attempt_timeout: call.attempt_timeout,
                    priority: call.priority,
                    on_error: call.on_error.clone(),
                    generation: self.generation,
                };
                Head::Call(Box::new(Calling::new(terms, caller, wake.clone(), pending, part.lanes)?))
            }
        })
    }
}

/// The stage's outputs that take what a member gives on a port.
fn outputs(stage: &Stage, member: usize, port: Port) -> Vec<usize> {
    let all = stage.outputs.iter().enumerate();
    all.filter(|(_, o)| o.member == member && o.port == port).map(|(index, _)| index).collect()
}
