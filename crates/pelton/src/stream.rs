//! The graph, as a program writes it down.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::{Fields, Schema, SchemaRef};
use pelton_core::call::{ErrorPolicy, Priority};
use pelton_core::{Declaration, Result};
use pelton_dataflow::operator::{Map, Operator, Output as Rows, Transform};
use pelton_dataflow::plan::{Call, Changelog, Order, Output, Plan};
use pelton_dataflow::sink::Sink;

/// A method of a service, and how it is called from one place.
#[derive(Clone, Debug)]
pub struct Method {
    name: String,
    call: Call,
}

impl Method {
    pub(crate) fn new(declaration: &Declaration, method: &str) -> Self {
        let mut call = Call::new(&declaration.name, method, &[]);
        call.on_error = declaration.on_error.clone();
        Method { name: format!("{}.{method}", declaration.name), call }
    }

    /// The call's name in the graph; by default `service.method`. Needed where one method is called from several places.
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// Answers leave as they come. By default the rows of each split leave in their order.
    pub fn unordered(mut self) -> Self {
        self.call.order = Order::Unordered;
        self
    }

    /// How long a row may take in all.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.call.timeout = Some(timeout);
        self
    }

    /// How long one attempt at a row may take, from when it is sent; then another is made, as far as attempts and the retry budget go.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.call.attempt_timeout = Some(timeout);
        self
    }

    /// Rows with the same value in this column (text or whole numbers) are called one after another, in their order; those of different
    /// values go side by side. Rows of one value must come through the same subtask for that.
    pub fn in_order_by(mut self, column: &str) -> Self {
        self.call.key = Some(column.to_owned());
        self
    }

    /// Rows with the same value in this column (text or whole numbers) go to the same instance as long as it is there, for the sake of
    /// what it has cached of them: sessions, prefixes of prompts.
    pub fn affinity_by(mut self, column: &str) -> Self {
        self.call.affinity = Some(column.to_owned());
        self
    }

    /// The rows that are called insert, update and delete: `+I` and `+U` are called, and what is given out for them is stored; `-U` and `-D`
    /// never reach the service, and are given what was stored. See [`Changelog`] for the columns it takes, and what is an error.
    ///
    /// Refused when the job starts: an unordered call, or one behind an unordered call; columns that are missing or of other types; a limit of
    /// nothing or of more than 1 GiB.
    pub fn changelog(mut self, changelog: Changelog) -> Self {
        self.call.changelog = Some(changelog);
        self
    }

    pub fn priority(mut self, priority: Priority) -> Self {
        self.call.priority = priority;
        self
    }

    /// What happens with a row whose request failed.
    pub fn on_error(mut self, policy: ErrorPolicy) -> Self {
        self.call.on_error = policy;
        self
    }
}

/// Rows on their way.
#[derive(Clone)]
pub struct Stream {
    plan: Rc<RefCell<Plan>>,
    output: Output,
    parallelism: u32,
}

impl Stream {
    pub(crate) fn new(plan: Rc<RefCell<Plan>>, output: Output, parallelism: u32) -> Self {
        Stream { plan, output, parallelism }
    }

    fn next(&self, output: impl Into<Output>) -> Stream {
        Stream { plan: self.plan.clone(), output: output.into(), parallelism: self.parallelism }
    }

    /// How many subtasks the operators added from here on have.
    pub fn parallelism(mut self, n: u32) -> Stream {
        self.parallelism = n;
        self
    }

    /// Applies an operator.
    pub fn apply(&self, name: &str, operator: impl Operator) -> Stream {
        let node = self.plan.borrow_mut().map(name, self.parallelism, self.output, Arc::new(operator));
        self.next(node)
    }

    /// Applies a function to each batch; `output` are the columns that it gives.
    pub fn map(
        &self,
        name: &str,
        output: impl Into<Fields>,
        function: impl Fn(RecordBatch) -> Result<RecordBatch> + Send + Sync + 'static,
    ) -> Stream {
        let output = Arc::new(Schema::new(output));
        self.apply(name, Map { output, function: Arc::new(function) })
    }

    /// The rows of this stream and of `others` with the same columns.
    pub fn union(&self, name: &str, others: &[Stream]) -> Stream {
        let mut plan = self.plan.borrow_mut();
        let node = plan.map(name, self.parallelism, self.output, Arc::new(Same));
        for other in others {
            plan.connect(other.output, node);
        }
        drop(plan);
        self.next(node)
    }

    /// Keeps the rows for which the function gives true.
    pub fn filter(
        &self,
        name: &str,
        keep: impl Fn(&RecordBatch) -> Result<BooleanArray> + Send + Sync + 'static,
    ) -> Stream {
        self.apply(name, Filter(Arc::new(keep)))
    }

    /// Calls a service's method once for each row; `arguments` are the columns it gets. Its output columns are added to the row.
    pub fn call(&self, method: &Method, arguments: &[&str]) -> Stream {
        let mut call = method.call.clone();
        call.arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        let node = self.plan.borrow_mut().call(&method.name, self.parallelism, self.output, call);
        self.next(node)
    }

    /// The rows that the operator just added could not process, with the errors.
    pub fn errors(&self) -> Stream {
        self.next(self.output.node.errors())
    }

    /// Writes the rows of this stream, and of `others` with the same columns.
    pub fn write_with(&self, name: &str, others: &[Stream], sink: impl Sink) {
        let mut plan = self.plan.borrow_mut();
        let node = plan.sink(name, self.parallelism, self.output, Arc::new(sink));
        for other in others {
            plan.connect(other.output, node);
        }
    }

    /// Writes the rows.
    pub fn write(&self, name: &str, sink: impl Sink) {
        self.write_with(name, &[], sink);
    }
}

struct Same;

impl Operator for Same {
    fn output(&self, input: &Schema) -> Result<SchemaRef> {
        Ok(Arc::new(input.clone()))
    }

    fn create(&self) -> Result<Box<dyn Transform>> {
        Ok(Box::new(Same))
    }
}

impl Transform for Same {
    fn process(&mut self, rows: RecordBatch, output: &mut Rows) -> Result<()> {
        output.rows.push(rows);
        Ok(())
    }
}

type Keep = dyn Fn(&RecordBatch) -> Result<BooleanArray> + Send + Sync;

struct Filter(Arc<Keep>);

impl Operator for Filter {
    fn output(&self, input: &Schema) -> Result<SchemaRef> {
        Ok(Arc::new(input.clone()))
    }

    fn create(&self) -> Result<Box<dyn Transform>> {
        Ok(Box::new(Filter(self.0.clone())))
    }
}

impl Transform for Filter {
    fn process(&mut self, rows: RecordBatch, output: &mut Rows) -> Result<()> {
        let kept = arrow_select::filter::filter_record_batch(&rows, &(self.0)(&rows)?)?;
        output.rows.push(kept);
        Ok(())
    }
}
