//! A plan that was checked: what the runtime consumes. No question about the graph survives into run time.

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use pelton_core::Bytes;
use pelton_core::service::MethodSpec;

use crate::plan::{Edge, NodeId, Port, Work};
use crate::sink::Guarantee;

/// A checked graph, cut into stages.
#[derive(Clone)]
pub struct Topology {
    pub nodes: Vec<Checked>,
    pub edges: Vec<Edge>,
    /// Upstream before downstream.
    pub stages: Vec<Stage>,
    /// What a checkpoint of this job must have been made by, a line a node and a stage. Parallelism is no part of it.
    pub identity: Vec<String>,
    /// The weakest of the sinks' promises.
    pub guarantee: Guarantee,
}

/// A node, with what the check found out.
#[derive(Clone)]
pub struct Checked {
    pub name: String,
    /// The operator in its request ids: from its name, so that it does not change with the plan around it.
    pub number: u32,
    pub parallelism: u32,
    pub work: Work,
    /// The columns it takes; none for a source.
    pub input: Option<SchemaRef>,
    /// The columns of its rows port; for a sink, what it writes.
    pub output: SchemaRef,
    pub call: Option<CallShape>,
    /// Index of the stage it runs in.
    pub stage: usize,
}

/// How rows become requests, and answers rows.
#[derive(Clone)]
pub struct CallShape {
    pub method: MethodSpec,
    /// Index of the method in the caller's.
    pub index: usize,
    /// For each argument its column in the input.
    pub arguments: Vec<usize>,
    /// Columns of the input that leave with the answer.
    pub kept: Vec<usize>,
    /// The column of keys in the input.
    pub key: Option<usize>,
    /// The column of what keeps rows with one instance, in the input.
    pub affinity: Option<usize>,
    /// Where a changelog has its columns.
    pub changelog: Option<ChangelogShape>,
    /// The one row of the method's output columns that stands for a failed call.
    pub default: Option<RecordBatch>,
    /// Whether rows that are read again come in the same order and number, so that a row gets the id it had before.
    /// Not so behind another call whose answers decide what comes. Such a call's ids carry the generation, so that an id
    /// never means two rows: rows that no checkpoint covers are then sent anew.
    pub replayable: bool,
}

/// A changelog's columns in the input, and its limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangelogShape {
    /// The column of row kinds, which is text.
    pub operation: usize,
    pub key: Vec<usize>,
    pub max_bytes: Bytes,
}

/// Nodes that run fused in one task: a head, and the maps that follow it.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Nodes; the first is the head.
    pub members: Vec<usize>,
    pub parallelism: u32,
    /// Edges that come in.
    pub inputs: Vec<usize>,
    pub outputs: Vec<StageOutput>,
}

/// An edge that leaves a stage.
#[derive(Clone, Copy, Debug)]
pub struct StageOutput {
    /// Index in the stage's members.
    pub member: usize,
    pub port: Port,
    pub edge: usize,
}

impl Topology {
    pub fn head(&self, stage: &Stage) -> &Checked {
        &self.nodes[stage.members[0]]
    }

    /// Gives an operator, and what is fused with it, another number of subtasks. Says how many it had; none if there is no such operator.
    pub fn rescale(&mut self, operator: &str, parallelism: u32) -> Option<u32> {
        let stage = self.nodes.iter().find(|n| n.name == operator)?.stage;
        let stage = &mut self.stages[stage];
        for member in &stage.members {
            self.nodes[*member].parallelism = parallelism;
        }
        Some(std::mem::replace(&mut stage.parallelism, parallelism))
    }

    /// How many edges the node has coming in.
    pub fn fan_in(&self, node: NodeId) -> usize {
        self.edges.iter().filter(|e| e.to == node).count()
    }
}

/// Spreads a number evenly over all bits (the finalizer of splitmix64).
pub fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// Which subtask takes the rows of a split: always the same one, so that they keep their order.
pub fn route(split: u64, parallelism: usize) -> usize {
    (mix(split) % parallelism as u64) as usize
}
