//! A checked plan as text that people read.

use std::fmt::Write;

use pelton_core::Bytes;
use pelton_core::call::ErrorPolicy;
use pelton_core::service::show_columns;

use crate::plan::{OnError, Order, Port, Work};
use crate::sink::Guarantee;
use crate::topology::{Checked, Topology};

/// The bounds that a job runs with.
#[derive(Clone, Copy, Debug)]
pub struct Budgets {
    /// What one edge may hold.
    pub edge: Bytes,
    /// What the pending rows and results of one call subtask may hold.
    pub pending: Bytes,
}

impl Topology {
    /// Stages in order, each with its nodes, columns, edges and budgets; then the guarantee.
    pub fn explain(&self, budgets: Budgets) -> String {
        let mut text = String::new();
        self.write(&mut text, budgets).expect("writing to a string does not fail");
        text
    }

    fn write(&self, text: &mut String, budgets: Budgets) -> std::fmt::Result {
        for (number, stage) in self.stages.iter().enumerate() {
            let tasks =
                if stage.parallelism == 1 { "1 task" } else { &format!("{} tasks", stage.parallelism) };
            writeln!(text, "stage {number}, {tasks}")?;
            for member in &stage.members {
                let node = &self.nodes[*member];
                writeln!(text, "  {} `{}`: {}", node.work.kind(), node.name, what(node))?;
                if !matches!(node.work, Work::Sink(_)) {
                    writeln!(text, "    gives ({})", show_columns(&node.output))?;
                }
                if let Some(call) = &node.call {
                    writeln!(text, "    holds up to {} of rows and results a task", budgets.pending)?;
                    if let Some(changes) = &call.changelog {
                        let limit = changes.max_bytes;
                        writeln!(text, "    stores up to {limit} of results for retractions a task")?;
                    }
                }
            }
            for output in &stage.outputs {
                let edge = self.edges[output.edge];
                let port = if output.port == Port::Errors { "errors" } else { "rows" };
                let (from, to) = (&self.nodes[edge.from.node.0], &self.nodes[edge.to.0]);
                writeln!(text, "  {port} of `{}` -> `{}`, up to {}", from.name, to.name, budgets.edge)?;
            }
        }
        writeln!(text, "guarantee: {}", self.guarantee.describe())
    }
}

fn what(node: &Checked) -> String {
    match &node.work {
        Work::Source { source, on_error } => {
            let bad = if *on_error == OnError::Fail { "fail the job" } else { "go to the error output" };
            format!("{}; bad records {bad}", source.describe())
        }
        Work::Map(_) => "row by row".to_owned(),
        Work::Sink(sink) => format!("{}; {}", sink.describe(), sink.guarantee().describe()),
        Work::Call(call) => {
            let order = if call.order == Order::Ordered { "ordered within a split" } else { "unordered" };
            let timeout = call.timeout.map_or("no timeout".to_owned(), |t| format!("timeout {t:?}"));
            let attempt = call.attempt_timeout.map_or(String::new(), |t| format!(", {t:?} an attempt"));
            let by_key = call.key.as_ref().map_or(String::new(), |k| format!(", one after another by `{k}`"));
            let with =
                call.affinity.as_ref().map_or(String::new(), |k| format!(", `{k}` stays with one instance"));
            let changes = call.changelog.as_ref().map_or(String::new(), |c| {
                let (key, kinds) = (c.key.join(", "), &c.operation);
                format!(
                    "; a changelog by ({key}), row kinds in `{kinds}`: retractions get the stored results"
                )
            });
            let errors = match &call.on_error {
                ErrorPolicy::Fail => "an error fails the job",
                ErrorPolicy::ErrorOutput => "errors go to the error output",
                ErrorPolicy::Default(_) => "errors give default values",
            };
            let again = if node.call.as_ref().is_some_and(|c| c.replayable) {
                "the same ids after a restart"
            } else {
                "new ids after a restart for rows that no checkpoint covers, as an earlier call decides what comes"
            };
            format!(
                "{}.{}({}); {order}{by_key}{with}{changes}; {timeout}{attempt}; {errors}; {again}",
                call.service,
                call.method,
                call.arguments.join(", ")
            )
        }
    }
}

impl Guarantee {
    pub fn describe(self) -> &'static str {
        match self {
            Guarantee::ExactlyOnce => "every row is visible exactly once",
            Guarantee::AtLeastOnce => "every row is visible, some more than once after a failure",
        }
    }
}
