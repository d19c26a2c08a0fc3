//! What a job shall do: nodes and edges, before anything is checked.
//!
//! A plan is a description; [`Plan::validate`] turns it, as a whole, into a [`Topology`](crate::topology::Topology).

use std::sync::Arc;
use std::time::Duration;

use pelton_core::Bytes;
use pelton_core::call::{ErrorPolicy, Priority};

use crate::operator::Operator;
use crate::sink::Sink;
use crate::source::Source;

/// A node of one plan, as its builder methods return it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub usize);

impl NodeId {
    /// The port of the rows that could not be processed.
    pub fn errors(self) -> Output {
        Output { node: self, port: Port::Errors }
    }
}

/// Which of a node's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    Rows,
    /// Rows of [`error_schema`](crate::batch::error_schema).
    Errors,
}

/// One output of one node; a [`NodeId`] alone stands for its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    pub node: NodeId,
    pub port: Port,
}

impl From<NodeId> for Output {
    fn from(node: NodeId) -> Self {
        Output { node, port: Port::Rows }
    }
}

/// What happens with records that a source cannot read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The job fails with the first.
    #[default]
    Fail,
    /// They go to the source's error output.
    ErrorOutput,
}

/// In which order answers leave a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The rows of a split leave in the order in which they came. Rows of different splits overtake one another.
    #[default]
    Ordered,
    /// As answers come, but never across a watermark.
    Unordered,
}

/// That a call's input is a changelog: rows that insert, update and delete.
///
/// Each row says what it does in its *row kind*, in the short words of Apache Flink's `org.apache.flink.types.RowKind`: `+I` inserts a row,
/// `+U` is what a row is after an update; `-U` takes back what it was before one, `-D` deletes it. `+I` and `+U` are called, and the result
/// that is given out is stored under the row's key. `-U` and `-D` (retractions) are never sent to the service: they get the stored
/// result, and it is forgotten; where an error went to the error output, the retraction goes there with the same error. So each answer that
/// was given out is taken back as it was given out, whatever the model would say today.
///
/// The call must be ordered, and rows of one key must come in one source split, in order. A retraction of a key with nothing stored, another row
/// kind and a key with a null are errors of that row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changelog {
    /// The input column (text) that has the row kind.
    pub operation: String,
    /// The input columns (text or whole numbers) that together say which row is meant.
    pub key: Vec<String>,
    /// What the stored keys and results of one subtask may take, in memory and in every checkpoint. With more, the job fails.
    pub max_bytes: Bytes,
}

impl Changelog {
    /// The most that a limit can be: what a split has stored is written as one table.
    pub const MOST: Bytes = Bytes::mib(1024);

    /// With 256 MiB of stored results a subtask.
    pub fn new(operation: &str, key: &[&str]) -> Self {
        Changelog {
            operation: operation.to_owned(),
            key: key.iter().map(|k| (*k).to_owned()).collect(),
            max_bytes: Bytes::mib(256),
        }
    }

    /// Another limit for the stored results of one subtask.
    pub fn max_bytes(self, max_bytes: Bytes) -> Self {
        Changelog { max_bytes, ..self }
    }
}

/// A call of a service's method, once for each row.
#[derive(Clone, Debug)]
pub struct Call {
    pub service: String,
    pub method: String,
    /// Columns of the input that are the method's arguments, in the method's order.
    pub arguments: Vec<String>,
    pub order: Order,
    /// How long a row may take in all, from when it is submitted. None: as long as it takes.
    pub timeout: Option<Duration>,
    /// How long one attempt may take, from when it is sent. None: the service's own.
    pub attempt_timeout: Option<Duration>,
    /// The input column of keys (text or whole numbers) whose rows go one after another, those of different keys side by side. The
    /// order is that of one subtask: rows of one key shall come through one.
    pub key: Option<String>,
    /// The input column of keys (text or whole numbers) whose rows go to the same instance as long as it is there.
    pub affinity: Option<String>,
    /// Its input inserts, updates and deletes.
    pub changelog: Option<Changelog>,
    pub priority: Priority,
    pub on_error: ErrorPolicy,
}

impl Call {
    /// An ordered call without timeout, that fails the job with the first error.
    pub fn new(service: &str, method: &str, arguments: &[&str]) -> Self {
        Call {
            service: service.to_owned(),
            method: method.to_owned(),
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            order: Order::default(),
            timeout: None,
            attempt_timeout: None,
            key: None,
            affinity: None,
            changelog: None,
            priority: Priority::default(),
            on_error: ErrorPolicy::default(),
        }
    }
}

/// What a node does.
#[derive(Clone)]
pub enum Work {
    Source {
        source: Arc<dyn Source>,
        on_error: OnError,
    },
    /// Bad rows go to the error port where something consumes it; where nothing does, the first fails the job.
    Map(Arc<dyn Operator>),
    Call(Box<Call>),
    Sink(Arc<dyn Sink>),
}

impl Work {
    pub fn kind(&self) -> &'static str {
        match self {
            Work::Source { .. } => "source",
            Work::Map(_) => "map",
            Work::Call(_) => "call",
            Work::Sink(_) => "sink",
        }
    }
}

#[derive(Clone)]
pub struct Node {
    pub name: String,
    /// How many subtasks it has.
    pub parallelism: u32,
    pub work: Work,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    pub from: Output,
    pub to: NodeId,
}

/// A graph in the making.
#[derive(Clone, Default)]
pub struct Plan {
    pub(crate) nodes: Vec<Node>,
    pub(crate) edges: Vec<Edge>,
}

impl Plan {
    pub fn new() -> Self {
        Plan::default()
    }

    pub fn source(
        &mut self,
        name: &str,
        parallelism: u32,
        source: Arc<dyn Source>,
        on_error: OnError,
    ) -> NodeId {
        self.add(name, parallelism, Work::Source { source, on_error })
    }

    pub fn map(
        &mut self,
        name: &str,
        parallelism: u32,
        input: impl Into<Output>,
        operator: Arc<dyn Operator>,
    ) -> NodeId {
        let node = self.add(name, parallelism, Work::Map(operator));
        self.connect(input, node);
        node
    }

    pub fn call(&mut self, name: &str, parallelism: u32, input: impl Into<Output>, call: Call) -> NodeId {
        let node = self.add(name, parallelism, Work::Call(Box::new(call)));
        self.connect(input, node);
        node
    }

    pub fn sink(
        &mut self,
        name: &str,
        parallelism: u32,
        input: impl Into<Output>,
        sink: Arc<dyn Sink>,
    ) -> NodeId {
        let node = self.add(name, parallelism, Work::Sink(sink));
        self.connect(input, node);
        node
    }

    /// One more input for a node: the union of all its inputs is what it takes, so they have the same columns.
    pub fn connect(&mut self, from: impl Into<Output>, to: NodeId) {
        self.edges.push(Edge { from: from.into(), to });
    }

    /// The parts of the graph that nothing connects, each a plan of its own. They share no state, so they are checkpointed, restarted and
    /// rescaled apart.
    pub fn regions(&self) -> Vec<Plan> {
        let mut region: Vec<usize> = (0..self.nodes.len()).collect();
        // Each edge makes one of two: as often as there are edges is enough.
        for Edge { from, to } in &self.edges {
            let (one, other) = (region[from.node.0], region[to.0]);
            let (least, most) = (one.min(other), one.max(other));
            region.iter_mut().filter(|r| **r == most).for_each(|r| *r = least);
        }
        let mut names = region.clone();
        names.sort_unstable();
        names.dedup();
        let part = |name: usize| {
            let of: Vec<usize> = (0..self.nodes.len()).filter(|node| region[*node] == name).collect();
            let place =
                |node: NodeId| NodeId(of.binary_search(&node.0).expect("an edge stays in its region"));
            let edge =
                |e: &Edge| Edge { from: Output { node: place(e.from.node), ..e.from }, to: place(e.to) };
            let edges = self.edges.iter().filter(|e| region[e.to.0] == name).map(edge).collect();
            Plan { nodes: of.iter().map(|node| self.nodes[*node].clone()).collect(), edges }
        };
        names.into_iter().map(part).collect()
    }

    fn add(&mut self, name: &str, parallelism: u32, work: Work) -> NodeId {
        self.nodes.push(Node { name: name.to_owned(), parallelism, work });
        NodeId(self.nodes.len() - 1)
    }
}
