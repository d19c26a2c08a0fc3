//! A service whose methods are Python's: the same definition in the job, which only looks at its methods, and in the instance, which runs
//! them.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use pelton_core::BoxFuture;
use pelton_core::service::{
    Cardinality, Context as Opening, Definition, Emitter, Invocation, MethodSpec, Methods,
};
use pelton_core::{Declaration, Error, Result};
use pyo3::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::arrow;
use crate::context::{Call, Context, Parts, Reply, nobody_answered};
use crate::errors::raised;

/// The module that runs the user's code in an instance.
const WORKER: &str = "pelton._worker";

/// What a declaration's options say of a service in Python.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// The pickled service, in base64.
    pub(crate) service: String,
    /// Where its modules are found, beside where the interpreter looks.
    pub(crate) path: Vec<String>,
    pub(crate) device: String,
    /// Which build of this package the job has.
    pub(crate) build: String,
    pub(crate) methods: Vec<MethodSpec>,
}

/// The definition for a declaration whose options are [`Options`].
pub(crate) fn definition(declaration: &Declaration) -> Result<Definition> {
    let options = serde_json::Value::Object(declaration.options.clone());
    let options: Options = serde_json::from_value(options).map_err(|e| {
        Error::invalid(format!(
            "service `{}` is not one that the Python package declared: {e}",
            declaration.name
        ))
    })?;
    let mut methods = Methods::new();
    for (index, spec) in options.methods.iter().enumerate() {
        methods = add(methods, index, spec);
    }
    Ok(Definition::with(
        move |opening| {
            let opened = Worker::open(&options, opening);
            Box::pin(async move { opened })
        },
        methods,
        Worker::close,
    ))
}

/// The definition of methods that others run: what callers see of them.
pub(crate) fn elsewhere(specs: &[MethodSpec]) -> Definition {
    fn nothing_here<T>() -> Result<T> {
        Err(Error::internal("nothing of this service runs here"))
    }
    let methods = specs.iter().fold(Methods::<()>::new(), |methods, spec| {
        let (input, output) = (spec.input.fields().clone(), spec.output.fields().clone());
        match spec.cardinality {
            Cardinality::One => methods.serial(&spec.name, input, output, |(), _, _| nothing_here()),
            Cardinality::Many => methods.streaming(&spec.name, input, output, |(), _, _, _| nothing_here()),
        }
    });
    Definition::with(|_| Box::pin(async { nothing_here() }), methods, Ok)
}

/// The user's service, opened.
struct Worker {
    worker: Py<PyAny>,
    /// Of each method.
    gates: Vec<arrow::Gate>,
}

fn add(methods: Methods<Worker>, index: usize, spec: &MethodSpec) -> Methods<Worker> {
    let fields = |schema: &Arc<Schema>| schema.fields().clone();
    let (name, input, output) = (&spec.name, fields(&spec.input), fields(&spec.output));
    match (spec.cardinality, spec.concurrency) {
        (Cardinality::One, None) => methods.serial(name, input, output, move |worker, rows, invocation| {
            worker.run(index, &rows, invocation)
        }),
        (Cardinality::One, Some(bound)) => {
            methods.concurrent(name, bound, input, output, move |worker, rows, invocation| {
                worker.submit(index, &rows, &invocation)
            })
        }
        (Cardinality::Many, None) => {
            methods.streaming(name, input, output, move |worker, rows, invocation, emit| {
                worker.stream(index, &rows, invocation, emit)
            })
        }
        (Cardinality::Many, Some(bound)) => {
            methods.flowing(name, bound, input, output, move |worker, rows, invocation, emitter| {
                worker.flow(index, &rows, &invocation, emitter)
            })
        }
    }
}

impl Worker {
    fn open(options: &Options, opening: Opening) -> Result<Worker> {
        Python::attach(|py| {
            let context = Py::new(py, Context::new(opening, options.device.clone()));
            let method = |m: &MethodSpec| Ok((m.name.clone(), arrow::schema_to_python(py, &m.output)?));
            let opened = (|| {
                let methods = options.methods.iter().map(method).collect::<PyResult<Vec<_>>>()?;
                let arguments = (&options.service, &options.path, methods, context?);
                let worker = py.import(WORKER)?.call_method1("open", arguments)?.unbind();
                let gates = options.methods.iter().map(|m| arrow::Gate::new(py, &m.input));
                Ok(Worker { worker, gates: gates.collect::<PyResult<_>>()? })
            })();
            // Whether it may pass another time, an exception says; most do not.
            opened.map_err(|e| raised(py, &e))
        })
    }

    fn run(&mut self, method: usize, rows: &RecordBatch, invocation: &Invocation) -> Result<RecordBatch> {
        self.attached(|py, worker| {
            let call = Py::new(py, Call::new(invocation.clone()))?;
            let result = worker.call_method1("run", (method, self.gates[method].pass(py, rows)?, call))?;
            arrow::owned(&result)
        })
    }

    fn stream(
        &mut self,
        method: usize,
        rows: &RecordBatch,
        invocation: &Invocation,
        emit: &mut (dyn FnMut(RecordBatch) -> Result<()> + Send),
    ) -> Result<()> {
        let parts = self.attached(|py, worker| {
            let call = Py::new(py, Call::new(invocation.clone()))?;
            Ok(worker.call_method1("stream", (method, self.gates[method].pass(py, rows)?, call))?.unbind())
        })?;
        // Waits for the caller between two parts, and not under the interpreter's lock.
        loop {
            let part = self.attached(|py, _| {
                parts.bind(py).try_iter()?.next().transpose()?.map(|part| arrow::owned(&part)).transpose()
            });
            let refused = match part {
                Ok(Some(rows)) => emit(rows).err(),
                Ok(None) => return Ok(()),
                Err(e) => Some(e),
            };
            if let Some(error) = refused {
                self.attached(|py, _| parts.call_method0(py, "close").map(drop))?;
                return Err(error);
            }
        }
    }

    fn submit(
        &mut self,
        method: usize,
        rows: &RecordBatch,
        invocation: &Invocation,
    ) -> BoxFuture<Result<RecordBatch>> {
        let (answer, answered) = oneshot::channel();
        let begun = self.attached(|py, worker| {
            let call = Py::new(py, Call::new(invocation.clone()))?;
            let reply = Py::new(py, Reply::new(answer))?;
            worker.call_method1("submit", (method, self.gates[method].pass(py, rows)?, call, reply)).map(drop)
        });
        Box::pin(async move {
            begun?;
            answered.await.unwrap_or_else(|_| Err(nobody_answered()))
        })
    }

    fn flow(
        &mut self,
        method: usize,
        rows: &RecordBatch,
        invocation: &Invocation,
        emitter: Emitter,
    ) -> BoxFuture<Result<()>> {
        let (answer, answered) = oneshot::channel();
        let begun = self.attached(|py, worker| {
            let call = Py::new(py, Call::new(invocation.clone()))?;
            let (parts, reply) = (Py::new(py, Parts::new(emitter))?, Py::new(py, Reply::new(answer))?);
            let arguments = (method, self.gates[method].pass(py, rows)?, call, parts, reply);
            worker.call_method1("flow", arguments).map(drop)
        });
        Box::pin(async move {
            begun?;
            answered.await.unwrap_or_else(|_| Err(nobody_answered())).map(drop)
        })
    }

    fn close(self) -> Result<()> {
        self.attached(|_, worker| worker.call_method0("close").map(drop))
    }

    /// Runs something under the interpreter's lock.
    fn attached<T>(&self, run: impl FnOnce(Python<'_>, &Bound<'_, PyAny>) -> PyResult<T>) -> Result<T> {
        Python::attach(|py| run(py, self.worker.bind(py)).map_err(|e| raised(py, &e)))
    }
}
