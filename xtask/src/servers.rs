//! Inference servers that nobody here wrote, for the tests of remote services: KServe and LitServe, in an environment of their own.

use anyhow::Result;

use crate::places::Places;
use crate::process::step;
use crate::python::Python;

/// The interpreter that has them.
pub(crate) fn install(places: &Places) -> Result<Python> {
    let requirements = places.root.join("crates/pelton-remote/tests/servers/requirements.txt");
    let python = Python::find()?;
    if let Some(there) = python.made(places, "servers", &requirements)? {
        println!("inference servers: there ({there})");
        return Ok(there);
    }
    step("installing inference servers (about 90 MB to download, 460 MB on disk)", || {
        python.environment(places, "servers", &requirements)
    })
}
