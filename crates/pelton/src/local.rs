//! A service opened in this very process, without instance or wire: for one quick answer, for tests, and as the yardstick of
//! benchmarks.

use arrow_array::RecordBatch;
use pelton_core::service::{
    Cardinality, Context, Definition, Invocation, Opened, Service, Started, check_columns,
};
use pelton_core::{Declaration, Error, Result};
use pelton_env::Env;

/// An opened service.
pub struct Local {
    declaration: Declaration,
    definition: Definition,
    opened: Box<dyn Opened>,
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
        Ok(Local { declaration, definition, opened })
    }

    /// Calls a method with one row of arguments a request, as one batch. A streaming method's rows come behind one another.
    pub fn call(&mut self, method: &str, arguments: RecordBatch) -> Result<RecordBatch> {
        let index = self.definition.method(&self.declaration.name, method)?;
        let spec = &self.definition.methods[index];
        check_columns(
            &format!("arguments of `{}.{method}`", self.declaration.name),
            &arguments,
            &spec.input,
        )?;
        let mut parts: Vec<RecordBatch> = Vec::new();
        let mut emit = |rows: RecordBatch| {
            parts.push(rows);
            Ok(())
        };
        let result = match self.opened.run(index, arguments, &Invocation::default(), &mut emit) {
            Started::Done(result) => result?,
            Started::Pending(future) => futures::executor::block_on(future)?,
        };
        if spec.cardinality == Cardinality::One {
            return Ok(result);
        }
        Ok(arrow_select::concat::concat_batches(&spec.output, &parts)?)
    }

    /// Closes the service.
    pub fn close(self) -> Result<()> {
        self.opened.close()
    }
}
