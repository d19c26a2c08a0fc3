//! `pelton instance`: the command that a declaration names in its `program` where the program that calls is not this one.

use std::process::ExitCode;

use anyhow::Result;
use pelton::Error;
use pelton::service::Definition;
use pelton_models::{Classifier, Embedder};

/// Serves the instance that this process was started as: `embedder` or `classifier`, by the name of its service, of any kind.
pub(crate) fn run() -> Result<ExitCode> {
    pelton::serve_instance(|declaration| match declaration.name.as_str() {
        "embedder" => Ok(Definition::of::<Embedder>()),
        "classifier" => Ok(Definition::of::<Classifier>()),
        other => Err(Error::invalid(format!(
            "`pelton instance` serves `embedder` and `classifier`, and not `{other}`; name your own program in `program`"
        ))),
    })?;
    Ok(ExitCode::SUCCESS)
}
