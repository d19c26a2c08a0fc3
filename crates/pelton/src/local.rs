//! A service opened in this very process, without instance or wire: for one quick answer, for tests, and as the yardstick of
//! benchmarks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::RecordBatch;
use pelton_core::service::{
    Cardinality, Context, Definition, Emitter, Gate, Invocation, Opened, Service, Started, check_columns,
};
use pelton_core::{Declaration, Error, Result};
use pelton_env::{Env, Place};

use pelton_call::Part;

/// An opened service.
pub struct Local {
    env: Env,
    declaration: Declaration,
    definition: Definition,
    /// None while a stream has it.
    opened: Option<Box<dyn Opened>>,
}

/// The parts of answers that a method of a [`Local`] gives on a thread of its own: it runs ahead by one part. Dropping it stops the
/// method, and waits until it has.
pub struct LocalParts<'a> {
    local: &'a mut Local,
    /// None once it is dropped.
    parts: Option<Receiver<Result<Part>>>,
    back: Receiver<Box<dyn Opened>>,
    dropped: Arc<AtomicBool>,
}

impl Local {
    /// Opens a service here. Blocks for as long as its `open` takes.
    pub fn open<S: Service>(env: &Env, declaration: Declaration) -> Result<Local> {
        Local::open_with(env, declaration, Definition::of::<S>())
    }

    pub fn open_with(env: &Env, declaration: Declaration, definition: Definition) -> Result<Local> {
        let declaration = declaration.checked()?;
        if declaration.is_remote() {
            return Err(Error::invalid(format!(
                "service `{}` is of kind `remote`, and nothing of it can be opened here; call it through a job's services",
                declaration.name
            )));
        }
        if declaration.has_endpoints() {
            return Err(Error::invalid(format!(
                "service `{}` has `endpoints`, and nothing of it can be opened here; call it through a job's services",
                declaration.name
            )));
        }
        let definition = crate::job::resolve(&declaration, definition)?;
        let context = Context {
            service: declaration.name.clone(),
            instance: 0,
            options: declaration.options.clone(),
            resources: declaration.resources,
            clock: env.clock.clone(),
            seed: env.entropy.seed(),
            gauge: Default::default(),
            counters: Default::default(),
            crash: env.crash.clone(),
        };
        let opened = futures::executor::block_on(definition.open(context))?;
        Ok(Local { env: env.clone(), declaration, definition, opened: Some(opened) })
    }

    /// Calls a method with one row of arguments a request, as one batch. A streaming method's rows come behind one another.
    pub fn call(&mut self, method: &str, arguments: RecordBatch) -> Result<RecordBatch> {
        let index = self.checked(method, &arguments)?;
        let spec = &self.definition.methods[index];
        let parts: Arc<Mutex<Vec<RecordBatch>>> = Arc::default();
        let emitter = Emitter::new(Gate::default(), {
            let parts = parts.clone();
            move |rows| {
                parts.lock().unwrap_or_else(PoisonError::into_inner).push(rows);
                Ok(())
            }
        });
        let result = run(opened(&mut self.opened)?, index, arguments, &Invocation::default(), &emitter)?;
        if spec.cardinality == Cardinality::One {
            return Ok(result);
        }
        let parts = parts.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(arrow_select::concat::concat_batches(&spec.output, &*parts)?)
    }

    /// The same, part by part: one row of arguments after another.
    pub fn stream(&mut self, method: &str, arguments: RecordBatch) -> Result<LocalParts<'_>> {
        let index = self.checked(method, &arguments)?;
        opened(&mut self.opened)?;
        let mut service = self.opened.take().expect("it was there just now");
        let (give, parts) = sync_channel(1);
        let (give_back, back) = sync_channel(1);
        let dropped = Arc::new(AtomicBool::new(false));
        let invocation = Invocation::new(None, dropped.clone());
        let many = self.definition.methods[index].cardinality == Cardinality::Many;
        let work = async move {
            for request in 0..arguments.num_rows() {
                let row = arguments.slice(request, 1);
                let one = || stream_one(&mut service, index, request, row, many, &invocation, &give);
                // Nobody listens if it was dropped.
                match catch_unwind(AssertUnwindSafe(one)) {
                    Ok(Ok(())) => {}
                    Ok(Err(e)) => {
                        let _ = give.send(Err(e));
                        break;
                    }
                    Err(_) => {
                        let _ = give.send(Err(Error::user("the method panicked")));
                        return;
                    }
                }
            }
            let _ = give_back.send(service);
        };
        self.env.spawn(Place::Dedicated, work).detach();
        Ok(LocalParts { local: self, parts: Some(parts), back, dropped })
    }

    fn checked(&self, method: &str, arguments: &RecordBatch) -> Result<usize> {
        let index = self.definition.method(&self.declaration.name, method)?;
        let what = format!("arguments of `{}.{method}`", self.declaration.name);
        check_columns(&what, arguments, &self.definition.methods[index].input)?;
        Ok(index)
    }

    /// Closes the service.
    pub fn close(mut self) -> Result<()> {
        opened(&mut self.opened)?;
        self.opened.take().map_or(Ok(()), |opened| opened.close())
    }
}

fn opened(opened: &mut Option<Box<dyn Opened>>) -> Result<&mut Box<dyn Opened>> {
    opened.as_mut().ok_or_else(|| Error::user("the service is gone: one of its methods panicked"))
}

fn run(
    opened: &mut Box<dyn Opened>,
    method: usize,
    arguments: RecordBatch,
    invocation: &Invocation,
    emitter: &Emitter,
) -> Result<RecordBatch> {
    match opened.run(method, arguments, invocation, emitter) {
        Started::Done(result) => result,
        Started::Pending(future) => futures::executor::block_on(future),
    }
}

/// Runs one request. The parts go to `give`, which blocks while nobody takes them: this thread has nothing else to do.
fn stream_one(
    opened: &mut Box<dyn Opened>,
    method: usize,
    request: usize,
    row: RecordBatch,
    many: bool,
    invocation: &Invocation,
    give: &SyncSender<Result<Part>>,
) -> Result<()> {
    let put = {
        let give = give.clone();
        move |rows| give.send(Ok(Part { request, rows })).map_err(|_| Error::user("nobody wants the rest"))
    };
    let emitter = Emitter::new(Gate::default(), put.clone());
    let rows = run(opened, method, row, invocation, &emitter)?;
    if many { Ok(()) } else { put(rows) }
}

impl Iterator for LocalParts<'_> {
    type Item = Result<Part>;

    fn next(&mut self) -> Option<Result<Part>> {
        self.parts.as_ref()?.recv().ok()
    }
}

impl Drop for LocalParts<'_> {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::Relaxed);
        drop(self.parts.take());
        self.local.opened = self.back.recv().ok();
    }
}
