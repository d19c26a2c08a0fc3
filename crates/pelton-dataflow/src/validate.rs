//! Checks a plan as a whole, before anything starts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::call::{ErrorPolicy, no_such_method};
use pelton_core::id::stable_hash;
use pelton_core::service::{Cardinality, MethodSpec, show_columns};
use pelton_core::{Error, Result};

use crate::batch::error_schema;
use crate::default::default_row;
use crate::keys;
use crate::plan::{Call, Changelog, Node, NodeId, OnError, Order, Output, Plan, Port, Work};
use crate::sink::Guarantee;
use crate::stage::cut;
use crate::topology::{CallShape, ChangelogShape, Checked, Topology};

impl Plan {
    /// Checks everything; `services` says what the services can do, `None` where there is no such service.
    pub fn validate(&self, services: &dyn Fn(&str) -> Option<Vec<MethodSpec>>) -> Result<Topology> {
        self.check_names()?;
        self.check_edges()?;
        let mut checked: BTreeMap<usize, Checked> = BTreeMap::new();
        for at in self.in_order()? {
            let node = &self.nodes[at];
            let input = self.input(at, &checked)?;
            let call = match &node.work {
                Work::Call(call) => {
                    let input = input.as_ref().expect("a call has an input");
                    self.check_changes(at, call)?;
                    let kept = self.kept(at, input);
                    Some(check_call(node, call, input, services, kept, self.is_replayable(at, &checked))?)
                }
                _ => None,
            };
            let output = output(node, input.as_ref(), call.as_ref())?;
            let (name, number) = (node.name.clone(), number(&node.name));
            let (parallelism, work) = (node.parallelism, node.work.clone());
            checked.insert(at, Checked { name, number, parallelism, work, input, output, call, stage: 0 });
        }
        let sinks = self
            .nodes
            .iter()
            .filter_map(|n| if let Work::Sink(s) = &n.work { Some(s.guarantee()) } else { None });
        let weakest = |a, b| if a == Guarantee::ExactlyOnce { b } else { a };
        let guarantee = sinks.fold(Guarantee::ExactlyOnce, weakest);
        Ok(cut(checked.into_values().collect(), self.edges.clone(), &self.in_order()?, guarantee))
    }

    fn name(&self, node: NodeId) -> &str {
        &self.nodes[node.0].name
    }

    fn check_names(&self) -> Result<()> {
        if !self.nodes.iter().any(|n| matches!(n.work, Work::Source { .. })) {
            return Err(Error::invalid("the plan has no source; add one for the rows to come from"));
        }
        let mut numbers: BTreeMap<u32, &str> = BTreeMap::new();
        for node in &self.nodes {
            let name = &node.name;
            if name.is_empty() {
                return Err(Error::invalid(format!("a {} has no name; give it one", node.work.kind())));
            }
            if node.parallelism == 0 {
                return Err(Error::invalid(format!("`{name}` has parallelism 0; give it at least 1")));
            }
            match numbers.insert(number(name), name) {
                None => {}
                Some(other) if other == name => {
                    return Err(Error::invalid(format!("two nodes are called `{name}`; rename one of them")));
                }
                Some(other) => {
                    let number = number(name);
                    return Err(Error::invalid(format!(
                        "the names `{other}` and `{name}` give the same operator number {number}; rename one of them"
                    )));
                }
            }
        }
        Ok(())
    }

    fn check_edges(&self) -> Result<()> {
        for edge in &self.edges {
            for node in [edge.from.node, edge.to] {
                if node.0 >= self.nodes.len() {
                    return Err(Error::invalid(format!(
                        "an edge names node {}, which is not of this plan",
                        node.0
                    )));
                }
            }
        }
        for (at, node) in self.nodes.iter().enumerate() {
            let (id, name) = (NodeId(at), &node.name);
            let ways_in = self.edges.iter().filter(|e| e.to == id).count();
            let consumed = |port| self.edges.iter().any(|e| e.from == Output { node: id, port });
            let is_source = matches!(node.work, Work::Source { .. });
            if is_source && ways_in > 0 {
                return Err(Error::invalid(format!(
                    "source `{name}` has an input; rows cannot go to a source"
                )));
            }
            if !is_source && ways_in == 0 {
                return Err(Error::invalid(format!(
                    "`{name}` has no input; connect the node that its rows come from"
                )));
            }
            if matches!(node.work, Work::Sink(_)) {
                if consumed(Port::Rows) || consumed(Port::Errors) {
                    return Err(Error::invalid(format!(
                        "sink `{name}` has no outputs; take the rows from the node before it"
                    )));
                }
                continue;
            }
            if !consumed(Port::Rows) {
                return Err(Error::invalid(format!(
                    "nothing takes the rows of `{name}`; connect a sink or another node"
                )));
            }
            let wants_output = match &node.work {
                Work::Source { on_error, .. } => Some(*on_error == OnError::ErrorOutput),
                Work::Call(call) => Some(call.on_error == ErrorPolicy::ErrorOutput),
                Work::Map(_) | Work::Sink(_) => None,
            };
            match wants_output {
                Some(true) if !consumed(Port::Errors) => {
                    return Err(Error::invalid(format!(
                        "nothing takes the errors of `{name}`; connect its error output to a sink, or choose another error policy"
                    )));
                }
                Some(false) if consumed(Port::Errors) => {
                    return Err(Error::invalid(format!(
                        "something takes the errors of `{name}`, but its error policy sends none; choose the policy error-output"
                    )));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Upstream before downstream.
    fn in_order(&self) -> Result<Vec<usize>> {
        let mut missing: Vec<usize> =
            (0..self.nodes.len()).map(|n| self.edges.iter().filter(|e| e.to.0 == n).count()).collect();
        let mut order: Vec<usize> = Vec::new();
        while let Some(next) = (0..self.nodes.len()).find(|n| missing[*n] == 0 && !order.contains(n)) {
            order.push(next);
            self.edges.iter().filter(|e| e.from.node.0 == next).for_each(|e| missing[e.to.0] -= 1);
        }
        if order.len() < self.nodes.len() {
            let names: Vec<&str> =
                (0..self.nodes.len()).filter(|n| !order.contains(n)).map(|n| self.name(NodeId(n))).collect();
            return Err(Error::invalid(format!(
                "there is a cycle through some of `{}`; rows must flow one way, so remove an edge of it",
                names.join("`, `")
            )));
        }
        Ok(order)
    }

    /// The columns that reach a node: those of all its inputs, which must agree.
    fn input(&self, at: usize, checked: &BTreeMap<usize, Checked>) -> Result<Option<SchemaRef>> {
        let mut joined: Option<(SchemaRef, &str)> = None;
        for edge in self.edges.iter().filter(|e| e.to.0 == at) {
            let from = self.name(edge.from.node);
            let given = match edge.from.port {
                Port::Rows => checked[&edge.from.node.0].output.clone(),
                Port::Errors => error_schema(),
            };
            joined = Some(match joined {
                None => (given, from),
                Some((schema, first)) => {
                    let union = union(&schema, &given).ok_or_else(|| {
                        Error::invalid(format!(
                            "the inputs of `{}` differ: `{first}` gives ({}), `{from}` gives ({}); make them the same with a map",
                            self.nodes[at].name,
                            show_columns(&schema),
                            show_columns(&given)
                        ))
                    })?;
                    (union, first)
                }
            });
        }
        Ok(joined.map(|(schema, _)| schema))
    }

    /// Whether what reaches a node is the same in every run: no call before it whose answers decide what comes. A map
    /// behind a call may decide by its answers, so only calls that are chained directly pass.
    fn is_replayable(&self, at: usize, checked: &BTreeMap<usize, Checked>) -> bool {
        let one = |n| checked[&n].call.as_ref().is_some_and(|c| c.method.cardinality == Cardinality::One);
        let steady = |n: usize| match &self.nodes[n].work {
            Work::Call(call) => call.order == Order::Ordered && call.on_error == ErrorPolicy::Fail && one(n),
            Work::Source { .. } => true,
            Work::Map(_) | Work::Sink(_) => !self.is_behind_call(n),
        };
        let mut before = self.edges.iter().filter(|e| e.to.0 == at).map(|e| e.from.node.0);
        before.all(|n| steady(n) && self.is_replayable(n, checked))
    }

    /// The columns of a call's input that somebody behind it looks at.
    fn kept(&self, at: usize, input: &Schema) -> Vec<usize> {
        let rows = Output::from(NodeId(at));
        let mut read: Option<BTreeSet<String>> = Some(BTreeSet::new());
        for edge in self.edges.iter().filter(|e| e.from == rows) {
            let theirs = match &self.nodes[edge.to.0].work {
                Work::Map(map) => map.reads(),
                Work::Source { .. } | Work::Call(_) | Work::Sink(_) => None,
            };
            read = read.zip(theirs).map(|(all, theirs)| all.into_iter().chain(theirs).collect());
        }
        let is_read = |name: &str| read.as_ref().is_none_or(|read| read.contains(name));
        let fields = input.fields().iter().enumerate();
        fields.filter(|(_, field)| is_read(field.name())).map(|(column, _)| column).collect()
    }

    /// Retractions must come behind what they take back, and leave behind it.
    fn check_changes(&self, at: usize, call: &Call) -> Result<()> {
        if call.changelog.is_none() {
            return Ok(());
        }
        let name = &self.nodes[at].name;
        if call.order == Order::Unordered {
            return Err(Error::invalid(format!(
                "call `{name}` takes a changelog and is unordered, so a retraction could leave before what it takes back; make it ordered"
            )));
        }
        match self.unordered_before(at) {
            Some(before) => Err(Error::invalid(format!(
                "call `{name}` takes a changelog, and call `{before}` before it is unordered, so a retraction could come before what it \
                 takes back; make `{before}` ordered"
            ))),
            None => Ok(()),
        }
    }

    fn unordered_before(&self, at: usize) -> Option<&str> {
        let mut before = self.edges.iter().filter(|e| e.to.0 == at).map(|e| e.from.node);
        before.find_map(|node| match &self.nodes[node.0].work {
            Work::Call(call) if call.order == Order::Unordered => Some(self.name(node)),
            _ => self.unordered_before(node.0),
        })
    }

    fn is_behind_call(&self, at: usize) -> bool {
        let mut before = self.edges.iter().filter(|e| e.to.0 == at).map(|e| e.from.node.0);
        before.any(|n| matches!(self.nodes[n].work, Work::Call(_)) || self.is_behind_call(n))
    }
}

/// The operator's number in request ids.
fn number(name: &str) -> u32 {
    let hash = stable_hash(name);
    (hash ^ (hash >> 32)) as u32
}

/// The columns of both, nullable where one's is.
fn union(a: &Schema, b: &Schema) -> Option<SchemaRef> {
    let same = |(a, b): (&Arc<Field>, &Arc<Field>)| {
        let fits = a.name() == b.name() && a.data_type() == b.data_type();
        fits.then(|| a.as_ref().clone().with_nullable(a.is_nullable() || b.is_nullable()))
    };
    let fields: Option<Vec<Field>> = a.fields().iter().zip(b.fields()).map(same).collect();
    (a.fields().len() == b.fields().len()).then_some(Arc::new(Schema::new(fields?)))
}

fn output(node: &Node, input: Option<&SchemaRef>, call: Option<&CallShape>) -> Result<SchemaRef> {
    let name = &node.name;
    let output = match (&node.work, input) {
        (Work::Source { source, .. }, _) => source.schema(),
        (Work::Map(map), Some(input)) => map.output(input).map_err(|e| e.context(format!("map `{name}`")))?,
        (Work::Sink(sink), Some(input)) => {
            sink.check(input).map_err(|e| e.context(format!("sink `{name}`")))?;
            input.clone()
        }
        (Work::Call(_), Some(input)) => {
            let call = call.expect("a call has a shape");
            let kept = call.kept.iter().map(|column| input.fields()[*column].clone());
            Arc::new(Schema::new(kept.chain(call.method.output.fields().iter().cloned()).collect::<Vec<_>>()))
        }
        (_, None) => unreachable!("only sources have no input"),
    };
    let mut names: Vec<&str> = output.fields().iter().map(|f| f.name().as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
        return Err(Error::invalid(format!(
            "`{name}` would have two columns called `{}`; rename or drop one before it",
            twice[0]
        )));
    }
    Ok(output)
}

fn check_call(
    node: &Node,
    call: &Call,
    input: &SchemaRef,
    services: &dyn Fn(&str) -> Option<Vec<MethodSpec>>,
    kept: Vec<usize>,
    replayable: bool,
) -> Result<CallShape> {
    let (name, service) = (&node.name, &call.service);
    let methods = services(service).ok_or_else(|| {
        Error::invalid(format!(
            "call `{name}` names service `{service}`, which is not declared; declare it or correct the name"
        ))
    })?;
    let index = methods.iter().position(|m| m.name == call.method);
    let index = index
        .ok_or_else(|| no_such_method(service, &call.method, &methods).context(format!("call `{name}`")))?;
    let mut method = methods[index].clone();
    let what = format!("call `{name}` of `{service}.{}`", method.name);
    let expected = method.input.fields();
    if expected.len() != call.arguments.len() {
        return Err(Error::invalid(format!(
            "{what} gives {} arguments ({}); the method takes ({})",
            call.arguments.len(),
            call.arguments.join(", "),
            show_columns(&method.input)
        )));
    }
    let mut arguments = Vec::new();
    for (argument, expected) in call.arguments.iter().zip(expected) {
        let Some((column, field)) = input.column_with_name(argument) else {
            return Err(Error::invalid(format!(
                "{what} takes column `{argument}`, which its input does not have; it has ({})",
                show_columns(input)
            )));
        };
        if field.data_type() != expected.data_type() {
            return Err(Error::invalid(format!(
                "{what} takes column `{argument}`, which is {}, but the method's `{}` is {}; convert it in a map before the call",
                field.data_type(),
                expected.name(),
                expected.data_type()
            )));
        }
        arguments.push(column);
    }
    for (which, timeout) in [("a timeout", call.timeout), ("an attempt timeout", call.attempt_timeout)] {
        if timeout.is_some_and(|t| t.is_zero()) {
            return Err(Error::invalid(format!(
                "{what} has {which} of zero; leave it out to wait as long as it takes"
            )));
        }
    }
    let column = |name: &Option<String>, does: &str| {
        name.as_deref().map(|key| key_column(&what, does, key, input)).transpose()
    };
    let key = column(&call.key, "keeps the order by")?;
    let affinity = column(&call.affinity, "keeps rows with one instance by")?;
    let changelog = call.changelog.as_ref().map(|c| check_changelog(&what, c, input)).transpose()?;
    let default = match &call.on_error {
        ErrorPolicy::Default(_) if method.cardinality == Cardinality::Many => {
            return Err(Error::invalid(format!(
                "{what} has default values, but gives any number of rows; choose the error policy fail or error-output"
            )));
        }
        ErrorPolicy::Default(values) => {
            let row = default_row(values, &method.output)
                .map_err(|e| e.context(format!("default values of {what}")))?;
            // A missing value is null, also where the method itself never gives one.
            method.output = row.schema();
            Some(row)
        }
        ErrorPolicy::Fail | ErrorPolicy::ErrorOutput => None,
    };
    Ok(CallShape { method, index, arguments, kept, key, affinity, changelog, default, replayable })
}

fn check_changelog(what: &str, changelog: &Changelog, input: &Schema) -> Result<ChangelogShape> {
    let Changelog { operation, key, max_bytes } = changelog;
    let Some((column, field)) = input.column_with_name(operation) else {
        return Err(Error::invalid(format!(
            "{what} takes row kinds from column `{operation}`, which its input does not have; it has ({})",
            show_columns(input)
        )));
    };
    if *field.data_type() != DataType::Utf8 {
        return Err(Error::invalid(format!(
            "{what} takes row kinds from column `{operation}`, which is {}; a row kind is a text: +I, -U, +U or -D",
            field.data_type()
        )));
    }
    if key.is_empty() || key.contains(operation) {
        return Err(Error::invalid(format!(
            "{what} takes a changelog by ({}); name the columns that say which row is meant, and not that of the row kind",
            key.join(", ")
        )));
    }
    if max_bytes.get() == 0 || *max_bytes > Changelog::MOST {
        return Err(Error::invalid(format!(
            "{what} may store {max_bytes} of results a task; choose more than nothing and at most {}, and more tasks where that is too \
             little",
            Changelog::MOST
        )));
    }
    let columns = key.iter().map(|key| key_column(what, "stores results by", key, input));
    let key = columns.collect::<Result<_>>()?;
    Ok(ChangelogShape { operation: column, key, max_bytes: *max_bytes })
}

fn key_column(what: &str, does: &str, key: &str, input: &Schema) -> Result<usize> {
    let Some((column, field)) = input.column_with_name(key) else {
        return Err(Error::invalid(format!(
            "{what} {does} column `{key}`, which its input does not have; it has ({})",
            show_columns(input)
        )));
    };
    if !keys::can_be(field.data_type()) {
        return Err(Error::invalid(format!(
            "{what} {does} column `{key}`, which is {}; a key is a text or a whole number",
            field.data_type()
        )));
    }
    Ok(column)
}
