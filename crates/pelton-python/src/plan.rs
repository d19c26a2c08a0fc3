//! A graph in the making, told by Python node by node.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow_array::RecordBatch;
use pelton::files::{Folder, JsonLines, Lines, Parquet, Selection, Tables, folder, lines, sink, tables};
use pelton::restart::Strategy;
use pelton::scripted;
use pelton::{Declaration, Error, Job, Result, ServiceHandle, Settings, Stream};
use pelton_core::call::ErrorPolicy;
use pelton_core::service::{Cardinality, Definition, MethodSpec};
use pelton_dataflow::sink::Sink;
use pelton_dataflow::source::Source;
use pelton_text::chunk::Size;
use pelton_text::{Chunk, Chunker, Extract};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use serde::Deserialize;

use crate::arrow;
use crate::errors::{OrRaise, raise};
use crate::expression::{Keep, Select};
use crate::feed::{Feed, Shared, feed};
use crate::gather::{Log, Nowhere, gather};
use crate::methods::{Options, definition, elsewhere};
use crate::packing::{Pack, Unpack};
use crate::patience::Patience;
use crate::progress::Seen;
use crate::running::Running;
use crate::tables::Table;

/// What puts one node into a job. Nodes are named by their place in the order in which they were told.
type Step = Box<dyn FnOnce(&mut Building) -> Result<Option<Stream>> + Send>;

/// A method's name, input and output columns, whether it streams, and how many batches of it run at a time.
type ToldMethod<'py> = (String, Bound<'py, PyAny>, Bound<'py, PyAny>, bool, Option<usize>);

struct Building {
    job: Job,
    services: Vec<ServiceHandle>,
    streams: Vec<Option<Stream>>,
}

impl Building {
    fn stream(&self, node: usize) -> Result<Stream> {
        let stream = self.streams.get(node).cloned().flatten();
        stream.ok_or_else(|| Error::internal(format!("node {node} gives no rows")))
    }
}

fn select_of(columns: Vec<(String, String)>) -> PyResult<Select> {
    let made = columns.into_iter().map(|(name, tree)| Ok((name, parsed("an expression", &tree)?)));
    Ok(Select(made.collect::<PyResult<Vec<_>>>()?.into()))
}

/// The columns that expressions give: (name, JSON).
#[pyfunction]
pub(crate) fn expression_types<'py>(
    py: Python<'py>,
    input: &Bound<'py, PyAny>,
    columns: Vec<(String, String)>,
) -> PyResult<Bound<'py, PyAny>> {
    let input = arrow::schema(input)?;
    let columns = select_of(columns)?.columns(&input).or_raise()?;
    arrow::schema_to_python(py, &columns)
}

/// What marks the first column as one of an extension type.
#[pyfunction]
pub(crate) fn field_marks(columns: &Bound<'_, PyAny>) -> PyResult<HashMap<String, String>> {
    let columns = arrow::schema(columns)?;
    Ok(columns.fields().first().map(|field| field.metadata().clone()).unwrap_or_default())
}

/// The columns of files of rows.
#[pyfunction]
pub(crate) fn table_columns<'py>(
    py: Python<'py>,
    kind: &str,
    selection: &str,
) -> PyResult<Bound<'py, PyAny>> {
    let (kind, selection) = (kind_of(kind)?, selected(selection)?);
    let tables = py.detach(|| Tables::new(kind, &selection, None)).or_raise()?;
    arrow::schema_to_python(py, &tables.schema())
}

fn kind_of(kind: &str) -> PyResult<tables::Kind> {
    parsed("a kind of files", &format!("{kind:?}"))
}

/// How a job runs, as JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wishes {
    state: String,
    fresh: bool,
    checkpoint_interval: f64,
    stop_grace: Option<f64>,
    restarts: Option<u32>,
    threads: Option<usize>,
    pending_rows: Option<u64>,
    edge_bytes: Option<u64>,
}

/// How a method is called, as JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manner {
    ordered: bool,
    timeout: Option<f64>,
    attempt_timeout: Option<f64>,
    in_order_by: Option<String>,
    affinity_by: Option<String>,
    on_error: Option<ErrorPolicy>,
}

#[derive(Default)]
struct Told {
    services: Vec<(Declaration, Definition)>,
    steps: Vec<Step>,
    tables: Vec<RecordBatch>,
    rows: Option<Receiver<RecordBatch>>,
}

/// A graph in the making. Started or explained, it is used up.
#[pyclass(module = "pelton._pelton")]
pub(crate) struct Plan(Mutex<Option<Told>>);

impl Plan {
    fn told(&mut self) -> PyResult<&mut Told> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut().ok_or_else(used_up)
    }

    fn use_up(&mut self) -> PyResult<Told> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(used_up)
    }

    fn step(
        &mut self,
        step: impl FnOnce(&mut Building) -> Result<Option<Stream>> + Send + 'static,
    ) -> PyResult<usize> {
        let told = self.told()?;
        told.steps.push(Box::new(step));
        Ok(told.steps.len() - 1)
    }

    fn sink(&mut self, name: String, input: usize, sink: impl Sink) -> PyResult<()> {
        let step = move |b: &mut Building| {
            b.stream(input)?.write(&name, sink);
            Ok(None)
        };
        self.step(step).map(drop)
    }

    fn declare(&mut self, declaration: Declaration, definition: Definition) -> PyResult<usize> {
        let told = self.told()?;
        told.services.push((declaration, definition));
        Ok(told.services.len() - 1)
    }

    fn source(&mut self, name: String, source: Arc<dyn Source>) -> PyResult<usize> {
        self.step(move |b| Ok(Some(b.job.read(&name, Shared(source)))))
    }
}

fn declared(json: &str) -> PyResult<Declaration> {
    parsed("service settings", json)
}

fn specs_of(methods: Vec<ToldMethod<'_>>) -> PyResult<Vec<MethodSpec>> {
    let specs = methods.into_iter().map(|(name, input, output, many, concurrency)| {
        let cardinality = if many { Cardinality::Many } else { Cardinality::One };
        let (input, output) = (arrow::schema(&input)?, arrow::schema(&output)?);
        Ok(MethodSpec { name, input, output, cardinality, concurrency })
    });
    specs.collect()
}

fn used_up() -> PyErr {
    PyRuntimeError::new_err("this plan was used up")
}

#[pymethods]
impl Plan {
    #[new]
    fn new() -> Self {
        Plan(Mutex::new(Some(Told::default())))
    }

    /// Declares a service in Python and returns its number: `declaration` is JSON.
    #[expect(clippy::too_many_arguments, reason = "told by name, in one place")]
    #[pyo3(signature = (declaration, identity, service, path, device, build, methods))]
    fn service(
        &mut self,
        declaration: &str,
        identity: Option<String>,
        service: String,
        path: Vec<String>,
        device: String,
        build: String,
        methods: Vec<ToldMethod<'_>>,
    ) -> PyResult<usize> {
        let mut declaration = declared(declaration)?;
        let options = Options { service, path, device, build, methods: specs_of(methods)? };
        let serde_json::Value::Object(options) = serde_json::to_value(options)
            .map_err(|e| raise(Error::internal(format!("a service's options: {e}"))))?
        else {
            return Err(raise(Error::internal("a service's options are no object")));
        };
        declaration.options = options;
        declaration.identity = identity;
        let declaration = declaration.checked().or_raise()?;
        let definition = definition(&declaration).or_raise()?;
        self.declare(declaration, definition)
    }

    /// Declares a service that is not written in Python, and returns its number: servers of others, or a script that stands in for one that is.
    fn other(&mut self, declaration: &str, methods: Vec<ToldMethod<'_>>) -> PyResult<usize> {
        let (mut declaration, methods) = (declared(declaration)?, specs_of(methods)?);
        if declaration.kind.as_deref() == Some(scripted::KIND) {
            let json = serde_json::to_string(&methods);
            declaration.program.push(json.map_err(|e| raise(Error::internal(format!("methods: {e}"))))?);
        }
        let declaration = declaration.checked().or_raise()?;
        self.declare(declaration, elsewhere(&methods))
    }

    /// The declaration of a service, by its number, as TOML.
    fn declaration(&mut self, service: usize) -> PyResult<String> {
        self.told()?.services[service].0.to_toml().or_raise()
    }

    /// Rows in memory.
    fn table(
        &mut self,
        name: String,
        schema: &Bound<'_, PyAny>,
        parts: Vec<Bound<'_, PyAny>>,
    ) -> PyResult<usize> {
        let parts = parts.iter().map(arrow::borrowed).collect::<PyResult<Vec<_>>>()?;
        self.told()?.tables.extend(parts.iter().cloned());
        let table = Table::new(&name, arrow::schema(schema)?, parts);
        self.source(name, Arc::new(table))
    }

    /// Rows that a thread of Python's puts in.
    fn feed(&mut self, name: String, schema: &Bound<'_, PyAny>) -> PyResult<(usize, Feed)> {
        let (feed, fountain) = feed(&name, arrow::schema(schema)?);
        Ok((self.source(name, Arc::new(fountain))?, feed))
    }

    /// Whole files: `uri`, `content`.
    fn files(&mut self, name: String, selection: &str, max_bytes: Option<u64>) -> PyResult<usize> {
        let mut settings = folder::Settings::new(selected(selection)?);
        settings.max_bytes = max_bytes.map_or(settings.max_bytes, pelton::Bytes);
        let source = Folder::new(&settings).or_raise()?;
        self.source(name, Arc::new(source))
    }

    /// Lines of text: `line`, `text`.
    fn lines(&mut self, name: String, selection: &str) -> PyResult<usize> {
        let source = Lines::new(&lines::Settings::new(selected(selection)?)).or_raise()?;
        self.source(name, Arc::new(source))
    }

    /// Files of rows, `parquet`, `json` or `csv`, with the columns that [`table_columns`] gives for them.
    fn tables(
        &mut self,
        name: String,
        kind: &str,
        selection: &str,
        schema: &Bound<'_, PyAny>,
    ) -> PyResult<usize> {
        let source =
            Tables::new(kind_of(kind)?, &selected(selection)?, Some(arrow::schema(schema)?)).or_raise()?;
        self.source(name, Arc::new(source))
    }

    /// Calls a method of a service with these columns.
    fn call(
        &mut self,
        name: String,
        input: usize,
        service: usize,
        method: String,
        columns: Vec<String>,
        manner: &str,
    ) -> PyResult<usize> {
        let manner: Manner = parsed("how a method is called", manner)?;
        self.step(move |b| {
            let mut method = b.services[service].method(&method).named(&name);
            if !manner.ordered {
                method = method.unordered();
            }
            if let Some(timeout) = manner.timeout {
                method = method.timeout(Duration::from_secs_f64(timeout));
            }
            if let Some(timeout) = manner.attempt_timeout {
                method = method.attempt_timeout(Duration::from_secs_f64(timeout));
            }
            if let Some(column) = &manner.in_order_by {
                method = method.in_order_by(column);
            }
            if let Some(column) = &manner.affinity_by {
                method = method.affinity_by(column);
            }
            if let Some(policy) = manner.on_error {
                method = method.on_error(policy);
            }
            let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
            Ok(Some(b.stream(input)?.call(&method, &columns)))
        })
    }

    /// The rows that a node could not process, with the errors.
    fn errors(&mut self, input: usize) -> PyResult<usize> {
        self.step(move |b| Ok(Some(b.stream(input)?.errors())))
    }

    /// The rows of several nodes with the same columns.
    fn union(&mut self, name: String, first: usize, others: Vec<usize>) -> PyResult<usize> {
        self.step(move |b| {
            let others = others.iter().map(|o| b.stream(*o)).collect::<Result<Vec<_>>>()?;
            Ok(Some(b.stream(first)?.union(&name, &others)))
        })
    }

    /// Columns made by expressions: (name, JSON).
    fn select(&mut self, name: String, input: usize, columns: Vec<(String, String)>) -> PyResult<usize> {
        let select = select_of(columns)?;
        self.step(move |b| Ok(Some(b.stream(input)?.apply(&name, select))))
    }

    /// The rows for which an expression (JSON) is true.
    fn filter(&mut self, name: String, input: usize, condition: &str) -> PyResult<usize> {
        let keep = Keep(Arc::new(parsed("an expression", condition)?));
        self.step(move |b| Ok(Some(b.stream(input)?.apply(&name, keep))))
    }

    /// Rows as lists of at most so many rows.
    fn pack(&mut self, name: String, input: usize, column: String, rows: usize) -> PyResult<usize> {
        self.step(move |b| Ok(Some(b.stream(input)?.apply(&name, Pack { column, rows }))))
    }

    /// The rows of the lists in a column.
    fn unpack(&mut self, name: String, input: usize, column: String) -> PyResult<usize> {
        self.step(move |b| Ok(Some(b.stream(input)?.apply(&name, Unpack { column }))))
    }

    /// The text of documents: `uri`, `content` becomes `uri`, `title`, `text`.
    fn extract(&mut self, name: String, input: usize) -> PyResult<usize> {
        self.step(move |b| Ok(Some(b.stream(input)?.apply(&name, Extract))))
    }

    /// Cuts text into chunks of so many tokens: `uri`, `title`, `chunk`, `text`.
    fn chunk(
        &mut self,
        py: Python<'_>,
        name: String,
        input: usize,
        tokenizer: PathBuf,
        tokens: usize,
        overlap: usize,
    ) -> PyResult<usize> {
        let chunker = py.detach(|| Chunker::new(&tokenizer, Size { tokens, overlap })).or_raise()?;
        self.step(move |b| Ok(Some(b.stream(input)?.apply(&name, Chunk::new(chunker)))))
    }

    /// Tells the program's log of error rows.
    fn log_errors(&mut self, name: String, input: usize) -> PyResult<()> {
        self.sink(name, input, Log::default())
    }

    /// Drops the rows.
    fn discard(&mut self, name: String, input: usize) -> PyResult<()> {
        self.sink(name, input, Nowhere)
    }

    /// Writes Parquet, exactly once.
    fn write_parquet(&mut self, name: String, input: usize, folder: String, prefix: String) -> PyResult<()> {
        let sink = Parquet::new(&sink::Settings::new(folder).with_prefix(prefix)).or_raise()?;
        self.sink(name, input, sink)
    }

    /// Writes JSON lines, exactly once.
    fn write_json(&mut self, name: String, input: usize, folder: String, prefix: String) -> PyResult<()> {
        let sink = JsonLines::new(&sink::Settings::new(folder).with_prefix(prefix)).or_raise()?;
        self.sink(name, input, sink)
    }

    /// Writes to a table of PostgreSQL, exactly once.
    fn write_postgres(&mut self, name: String, input: usize, connection: &str, table: &str) -> PyResult<()> {
        let sink = pelton::postgres(connection, table).or_raise()?;
        self.sink(name, input, sink)
    }

    /// The program takes the rows itself, from [`Running::next_batch`].
    fn gather(&mut self, name: String, input: usize) -> PyResult<()> {
        let (sink, rows) = gather();
        self.told()?.rows = Some(rows);
        self.sink(name, input, sink)
    }

    /// Starts the job.
    fn start(&mut self, name: String, settings: &str) -> PyResult<Running> {
        let settings = settings_of(parsed("a job's settings", settings)?);
        let Told { services, steps, tables, rows } = self.use_up()?;
        let run = move |stopper: &pelton::Stopper, seen: &Seen| {
            let job = build(&name, settings, services, steps)?;
            let mut patience = Patience::default();
            job.run_until(stopper, |snapshot| {
                patience.look(snapshot);
                seen.note(snapshot);
            })
        };
        Ok(Running::start(run, rows, tables))
    }

    /// The checked graph, for people.
    fn explain(&mut self, py: Python<'_>, name: String, settings: &str) -> PyResult<String> {
        let settings = settings_of(parsed("a job's settings", settings)?);
        let Told { services, steps, tables, rows } = self.use_up()?;
        let text = py.detach(|| build(&name, settings, services, steps).and_then(|job| job.explain()));
        drop((tables, rows));
        text.or_raise()
    }
}

fn build(
    name: &str,
    settings: Settings,
    services: Vec<(Declaration, Definition)>,
    steps: Vec<Step>,
) -> Result<Job> {
    let mut job = Job::with(name, settings);
    let handles =
        services.into_iter().map(|(declaration, definition)| job.service_with(declaration, definition));
    let services = handles.collect::<Result<_>>()?;
    let mut building = Building { job, services, streams: Vec::new() };
    for step in steps {
        let stream = step(&mut building)?;
        building.streams.push(stream);
    }
    Ok(building.job)
}

fn settings_of(wishes: Wishes) -> Settings {
    let mut settings = Settings::new(wishes.state);
    settings.fresh = wishes.fresh;
    settings.checkpoint_interval = Duration::from_secs_f64(wishes.checkpoint_interval);
    if let Some(grace) = wishes.stop_grace {
        settings.stop_grace = Duration::from_secs_f64(grace);
    }
    if let Some(restarts) = wishes.restarts {
        settings.restart = Strategy { restarts, ..settings.restart };
    }
    settings.threads = wishes.threads;
    settings.pending_rows = wishes.pending_rows;
    settings.edge_bytes = wishes.edge_bytes.map_or(settings.edge_bytes, pelton::Bytes);
    settings
}

fn selected(json: &str) -> PyResult<Selection> {
    parsed("which files to read", json)
}

fn parsed<T: serde::de::DeserializeOwned>(what: &str, json: &str) -> PyResult<T> {
    serde_json::from_str(json).map_err(|e| raise(Error::invalid(format!("{what}: {e}"))))
}
