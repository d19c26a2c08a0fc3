//! The command `pelton`, as the Python package brings it.

use std::ffi::OsString;
use std::process::ExitCode;

use pyo3::prelude::*;

/// Runs it with these arguments, the program's name first, and returns its exit code.
#[pyfunction]
pub(crate) fn command(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    let code = py.detach(|| pelton_cli::run(arguments));
    (0..=u8::MAX).find(|n| ExitCode::from(*n) == code).unwrap_or(1)
}
