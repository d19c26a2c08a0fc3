//! The extension module `pelton._pelton`: what the Python package is made of that is not Python.
//!
//! Two programs load it. In the user's, a [`Plan`](plan::Plan) is built, started, and waited for. In an instance's, [`serve`](instance::serve)
//! runs the same server as any instance does, and calls Python for the methods alone.
//!
//! The law of the lock: no thread of the engine takes the interpreter's lock but the instance's worker while it runs a method, and nobody
//! holds it who waits for the engine.

mod arrow;
mod command;
mod context;
mod errors;
mod expression;
mod feed;
mod gather;
mod instance;
mod methods;
mod packing;
mod patience;
mod plan;
mod progress;
mod running;
mod tables;

use pyo3::prelude::*;

#[pymodule]
mod _pelton {
    #[pymodule_export]
    use crate::command::command;
    #[pymodule_export]
    use crate::context::{Call, Context, Parts, Reply};
    #[pymodule_export]
    use crate::errors::kinds;
    #[pymodule_export]
    use crate::feed::Feed;
    #[pymodule_export]
    use crate::instance::serve;
    #[pymodule_export]
    use crate::plan::{Plan, expression_types, field_marks, table_columns};
    #[pymodule_export]
    use crate::running::Running;

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
