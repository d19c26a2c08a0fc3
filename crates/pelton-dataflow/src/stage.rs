//! Cuts a checked graph into stages: what runs fused in one task, and where rows are exchanged between tasks.

use crate::plan::{Edge, NodeId, Output, Port, Work};
use crate::sink::Guarantee;
use crate::topology::{Checked, Stage, StageOutput, Topology};

/// A map joins the stage before it if that is the only place its rows come from, and it the only one they go to, with as
/// many subtasks. Everything else heads a stage of its own.
pub(crate) fn cut(
    mut nodes: Vec<Checked>,
    edges: Vec<Edge>,
    order: &[usize],
    guarantee: Guarantee,
) -> Topology {
    let mut stages: Vec<Stage> = Vec::new();
    let mut fused = vec![false; edges.len()];
    for &at in order {
        let before = fusible(at, &nodes, &edges);
        match before {
            Some((edge, upstream)) => {
                fused[edge] = true;
                nodes[at].stage = nodes[upstream].stage;
                stages[nodes[at].stage].members.push(at);
            }
            None => {
                nodes[at].stage = stages.len();
                let parallelism = nodes[at].parallelism;
                stages.push(Stage {
                    members: vec![at],
                    parallelism,
                    inputs: Vec::new(),
                    outputs: Vec::new(),
                });
            }
        }
    }
    for (index, edge) in edges.iter().enumerate().filter(|(index, _)| !fused[*index]) {
        let from = &mut stages[nodes[edge.from.node.0].stage];
        let member =
            from.members.iter().position(|m| *m == edge.from.node.0).expect("nodes are in their stage");
        from.outputs.push(StageOutput { member, port: edge.from.port, edge: index });
        stages[nodes[edge.to.0].stage].inputs.push(index);
    }
    let identity = identity(&nodes, &edges, &stages);
    Topology { nodes, edges, stages, identity, guarantee }
}

/// The edge over which a node may be fused, and the node before it.
fn fusible(at: usize, nodes: &[Checked], edges: &[Edge]) -> Option<(usize, usize)> {
    let mut ways_in = edges.iter().enumerate().filter(|(_, e)| e.to == NodeId(at));
    let (index, edge) = ways_in.next()?;
    let upstream = edge.from.node.0;
    let rows = Output { node: edge.from.node, port: Port::Rows };
    let fits = ways_in.next().is_none()
        && matches!(nodes[at].work, Work::Map(_))
        && edge.from == rows
        && edges.iter().filter(|e| e.from == rows).count() == 1
        && nodes[at].parallelism == nodes[upstream].parallelism;
    fits.then_some((index, upstream))
}

fn identity(nodes: &[Checked], edges: &[Edge], stages: &[Stage]) -> Vec<String> {
    let mut lines = Vec::new();
    for node in nodes {
        let what = match &node.work {
            Work::Call(call) => {
                let changes = call.changelog.as_ref().map_or(String::new(), |c| {
                    format!(" of a changelog by ({}), row kinds in `{}`,", c.key.join(", "), c.operation)
                });
                format!("call {}.{}({}){changes}", call.service, call.method, call.arguments.join(", "))
            }
            other => other.kind().to_owned(),
        };
        lines.push(format!(
            "{} `{}` gives ({})",
            what,
            node.name,
            pelton_core::service::show_columns(&node.output)
        ));
    }
    for edge in edges {
        let port = if edge.from.port == Port::Errors { ".errors" } else { "" };
        lines.push(format!("`{}`{port} goes to `{}`", nodes[edge.from.node.0].name, nodes[edge.to.0].name));
    }
    for stage in stages {
        let names: Vec<&str> = stage.members.iter().map(|m| nodes[*m].name.as_str()).collect();
        lines.push(format!("`{}` run together", names.join("`, `")));
    }
    lines
}
