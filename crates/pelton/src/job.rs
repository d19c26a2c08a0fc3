//! A job: its services, its graph, and how it is run.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pelton_core::service::{Definition, Service};
use pelton_core::weigh::Scales;
use pelton_core::{Bytes, Declaration, Error, Result, remote};
use pelton_dataflow::job::{Options, Summary};
use pelton_dataflow::plan::{OnError, Plan};
use pelton_dataflow::source::Source;
use pelton_dataflow::topology::{Checked, Topology};
use pelton_policy::restart::Strategy;

use crate::call::Services;
use crate::ending::{End, Stopper};
use crate::host::{self, Snapshot};
use crate::instance::serve_if_asked;
use crate::region::Region;
use crate::stream::{Method, Stream};

/// How a job runs. Data, with a default for each.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the job's checkpoints and logs.
    pub state: PathBuf,
    /// Start from nothing, whatever checkpoints there are.
    pub fresh: bool,
    /// Begin from this savepoint of another run (see [`Options::from`]).
    pub from: Option<PathBuf>,
    /// Start from this checkpoint, not the newest.
    pub restore_from: Option<u64>,
    /// From checkpoint to checkpoint.
    pub checkpoint_interval: Duration,
    /// How long a stop waits for what instances are working on.
    pub stop_grace: Duration,
    /// What the rows that wait at one call operator may hold.
    pub pending_bytes: Bytes,
    /// How many they may be. None: as many as their bytes allow, which of small rows are very many.
    pub pending_rows: Option<u64>,
    /// What one edge may hold, over all pairs of its subtasks: how far a source reads ahead.
    pub edge_bytes: Bytes,
    /// When a region of the data plane that failed starts again from its newest checkpoint. Errors of rows and mistakes in the plan are
    /// none that pass, and fail the job at once.
    pub restart: Strategy,
    /// Threads of the data plane. None: as many as there are cores.
    pub threads: Option<usize>,
}

impl Settings {
    pub fn new(state: impl Into<PathBuf>) -> Self {
        let options = Options::new("");
        Settings {
            state: state.into(),
            fresh: false,
            from: None,
            restore_from: None,
            checkpoint_interval: options.interval,
            stop_grace: options.stop_grace,
            pending_bytes: options.pending_bytes,
            pending_rows: options.pending_rows,
            edge_bytes: options.edge_bytes,
            restart: Strategy::default(),
            threads: None,
        }
    }

    fn options(&self) -> Options {
        let options = Options::new(self.state.join("checkpoints"));
        Options {
            fresh: self.fresh,
            from: self.from.clone(),
            restore_from: self.restore_from,
            interval: self.checkpoint_interval,
            stop_grace: self.stop_grace,
            pending_bytes: self.pending_bytes,
            pending_rows: self.pending_rows,
            edge_bytes: self.edge_bytes,
            // Whoever asks for checkpoints more often than the usual pause between two means it.
            pause: options.pause.min(self.checkpoint_interval),
            ..options
        }
    }
}

/// One dataflow program.
pub struct Job {
    name: String,
    settings: Settings,
    plan: Rc<RefCell<Plan>>,
    services: Vec<(Declaration, Definition)>,
}

/// A service that was declared.
#[derive(Clone, Debug)]
pub struct ServiceHandle {
    declaration: Declaration,
}

impl ServiceHandle {
    /// One of its methods, to call. Whether there is such a method is checked with the whole graph.
    pub fn method(&self, name: &str) -> Method {
        Method::new(&self.declaration, name)
    }

    pub fn declaration(&self) -> &Declaration {
        &self.declaration
    }
}

impl Job {
    /// A job that keeps its state below `.pelton/NAME`.
    pub fn new(name: &str) -> Self {
        Job::with(name, Settings::new(PathBuf::from(".pelton").join(name)))
    }

    pub fn with(name: &str, settings: Settings) -> Self {
        Job { name: name.to_owned(), settings, plan: Rc::default(), services: Vec::new() }
    }

    /// Declares a service. In a process that was started as an instance of it, serves it and never returns.
    pub fn service<S: Service>(&mut self, declaration: Declaration) -> Result<ServiceHandle> {
        self.service_with(declaration, Definition::of::<S>())
    }

    /// The same for a service whose methods are known only at run time.
    pub fn service_with(
        &mut self,
        declaration: Declaration,
        definition: Definition,
    ) -> Result<ServiceHandle> {
        let declaration = declaration.checked()?;
        let definition = resolve(&declaration, definition)?;
        if self.services.iter().any(|(d, _)| d.name == declaration.name) {
            return Err(Error::invalid(format!(
                "two services are called `{}`; give one another name",
                declaration.name
            )));
        }
        check_definition(&declaration, &definition)?;
        serve_if_asked(&declaration, &definition);
        self.services.push((declaration.clone(), definition));
        Ok(ServiceHandle { declaration })
    }

    /// Reads a source; the first record that cannot be read fails the job.
    pub fn read(&mut self, name: &str, source: impl Source) -> Stream {
        self.source(name, source, OnError::Fail)
    }

    /// Reads a source; records that cannot be read go to its error output, which has to be consumed.
    pub fn read_with_errors(&mut self, name: &str, source: impl Source) -> Stream {
        self.source(name, source, OnError::ErrorOutput)
    }

    fn source(&mut self, name: &str, source: impl Source, on_error: OnError) -> Stream {
        let node = self.plan.borrow_mut().source(name, 1, Arc::new(source), on_error);
        Stream::new(self.plan.clone(), node.into(), 1)
    }

    fn validated(&self) -> Result<Topology> {
        self.validate(&self.plan.borrow())
    }

    fn validate(&self, plan: &Plan) -> Result<Topology> {
        let methods = |name: &str| {
            self.services
                .iter()
                .find(|(d, _)| d.name == name)
                .map(|(_, definition)| definition.methods.to_vec())
        };
        plan.validate(&methods)
    }

    /// The parts of the graph that nothing connects; each has checkpoints of its own.
    fn regions(&self) -> Result<Vec<Region>> {
        // As a whole first: what two parts have in common, names for example, is checked there.
        self.validated()?;
        let plans = self.plan.borrow().regions();
        let alone = plans.len() == 1;
        let region = |plan: &Plan| {
            let topology = self.validate(plan)?;
            let Checked { name, number, .. } = &topology.nodes[0];
            let name = name.clone();
            let mut options = self.settings.options();
            let folder = (!alone).then(|| {
                let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
                format!("{}-{number:08x}", name.chars().take(32).map(plain).collect::<String>())
            });
            if let Some(folder) = &folder {
                options.state.push(folder);
                options.from = options.from.map(|from| from.join(folder));
            }
            Ok(Region::new(name, folder, topology, options, self.settings.restart))
        };
        plans.iter().map(region).collect()
    }

    /// The validated graph, its services, their resources and the guarantees, for people.
    pub fn explain(&self) -> Result<String> {
        let topology = self.validated()?;
        let mut text = topology.explain(self.settings.options().budgets());
        text.push_str("\nservices\n");
        for (declaration, definition) in &self.services {
            text.push_str(&host::explain_service(declaration, definition));
        }
        Ok(text)
    }

    /// Runs the job to its end, or to Ctrl-C: the first stops it with a checkpoint, the second at once.
    pub fn run(self) -> Result<Summary> {
        self.run_observed(|_| {})
    }

    /// The same, and tells `observe` a few times a second how far it is.
    pub fn run_observed(self, observe: impl FnMut(&Snapshot)) -> Result<Summary> {
        self.run_to(End::Signals, observe)
    }

    /// The same, but leaves signals alone: it ends when `stopper` says so. For programs in which a job is one thing among others.
    pub fn run_until(self, stopper: &Stopper, observe: impl FnMut(&Snapshot)) -> Result<Summary> {
        self.run_to(End::By(stopper.clone()), observe)
    }

    fn run_to(self, end: End, observe: impl FnMut(&Snapshot)) -> Result<Summary> {
        let regions = self.regions()?;
        host::run(&self.name, &self.settings, self.services, regions, end, observe)
    }

    /// Starts the services alone, without a graph, and hands them to `body`.
    pub fn serve<T>(self, body: impl AsyncFnOnce(&Services) -> Result<T>) -> Result<T> {
        host::serve(&self.name, &self.settings, self.services, body)
    }
}

/// What a declaration's `kind` means for the type that the program has for it.
pub(crate) fn resolve(declaration: &Declaration, definition: Definition) -> Result<Definition> {
    match declaration.kind.as_deref() {
        None => Ok(definition),
        Some(kind) if kind == declaration.name => Ok(definition),
        // Nothing of it runs here; its methods are what callers see.
        Some(remote::KIND) => Ok(definition),
        Some(pelton_scripted::KIND) => pelton_scripted::in_place_of(&definition.methods)
            .map_err(|e| e.context(format_args!("service `{}`", declaration.name))),
        Some(other) => Err(Error::invalid(format!(
            "service `{}`: kind `{other}` is not known; leave it out for the program's own, or write `{}` or `{}`",
            declaration.name,
            pelton_scripted::KIND,
            remote::KIND
        ))),
    }
}

pub(crate) fn check_definition(declaration: &Declaration, definition: &Definition) -> Result<()> {
    let name = &declaration.name;
    Scales::new(&declaration.weight).check(name, &definition.methods)?;
    if definition.methods.is_empty() {
        return Err(Error::invalid(format!("service `{name}` has no methods")));
    }
    for (i, method) in definition.methods.iter().enumerate() {
        let what = format!("method `{name}.{}`", method.name);
        if method.input.fields().is_empty() {
            return Err(Error::invalid(format!(
                "{what} takes no columns; a request is a row of at least one"
            )));
        }
        if definition.methods[..i].iter().any(|m| m.name == method.name) {
            return Err(Error::invalid(format!("{what} is declared twice")));
        }
        pelton_wire::body::check_schema(&what, &method.input)?;
        pelton_wire::body::check_schema(&what, &method.output)?;
    }
    if declaration.is_remote() {
        pelton_remote::mapping::check(declaration, &definition.methods)?;
    }
    Ok(())
}
