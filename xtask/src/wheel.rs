//! The Python package: built as a wheel, installed, and tested as users have it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::places::{Places, remove};
use crate::process::{self, cargo, step};
use crate::python::Python;

/// What its tests need, and the tool that builds it.
const REQUIREMENTS: &str = "crates/pelton-python/tests/requirements.txt";

/// The environment for the tests, without the package.
pub(crate) fn install(places: &Places) -> Result<Python> {
    let (name, requirements) = ("wheel", places.root.join(REQUIREMENTS));
    let python = Python::find()?;
    if let Some(there) = python.made(places, name, &requirements)? {
        println!("{name}: there ({there})");
        return Ok(there);
    }
    let what = "installing what the Python package is tested with (about 150 MB to download, 600 MB on disk)";
    step(what, || python.environment(places, name, &requirements))
}

/// Builds the wheel, installs it, and runs its tests and type checks. `servers` are told to the tests. Returns the interpreter that has it.
pub(crate) fn test(places: &Places, servers: &[(&str, String)]) -> Result<Python> {
    let python = install(places)?;
    let wheel = step("building the wheel", || build(places, &python, "wheels", &[]))?;
    put(&python, &wheel)?;
    python
        .run(["-m", "pip", "check"], [""; 0])
        .context("the wheel asks for other packages than it is tested with")?;
    let run = |arguments: &[&str]| {
        let mut command = Command::new(python.program());
        command.args(arguments).current_dir(&places.root);
        command.envs(servers.iter().map(|(variable, value)| (*variable, value.as_str())));
        command.env("PELTON_MODEL", places.model()).env("PELTON_DIGITS", places.digits());
        process::run(&mut command)
    };
    run(&["-m", "pytest", "-q"]).context("the Python package's tests failed")?;
    run(&["-m", "mypy"]).context("mypy found mistakes in the Python package")?;
    let interpreter = python.to_string();
    run(&["-m", "pyright", "--pythonpath", &interpreter])
        .context("pyright found mistakes in what users write")?;
    Ok(python)
}

/// Plays the scenarios that services in Rust pass against a service in Python.
pub(crate) fn conformance(places: &Places, python: &Python) -> Result<()> {
    let mut test = cargo(&places.root, ["test", "--workspace", "--test", "conformance"]);
    process::run(test.env("PELTON_PYTHON", python.program()))
        .context("a service in Python does not keep to what all services do")
}

/// An environment with these requirements and the wheel as users have it, to be measured. What it gives is its interpreter.
pub(crate) fn measured(places: &Places, requirements: &Path) -> Result<OsString> {
    let builder = install(places)?;
    let wheel = step("building the wheel with all optimizations (the first time about ten minutes)", || {
        build(places, &builder, "wheels-release", &["--release"])
    })?;
    let python = step("the Python that Pelton is measured in", || {
        Python::find()?.environment(places, "python-pelton", requirements)
    })?;
    put(&python, &wheel)?;
    Ok(python.program().to_owned())
}

fn put(python: &Python, wheel: &Path) -> Result<()> {
    let pip = [
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--force-reinstall",
    ];
    python.run(pip, [wheel]).context("the wheel does not install")
}

fn build(places: &Places, python: &Python, folder: &str, how: &[&str]) -> Result<PathBuf> {
    let folder = places.cache().join(folder);
    remove(&folder)?;
    let mut maturin = Command::new(python.program());
    maturin
        .args(["-m", "maturin", "build", "--quiet", "--out"])
        .arg(&folder)
        .args(how)
        .current_dir(&places.root);
    process::run(&mut maturin)?;
    let mut wheels = std::fs::read_dir(&folder)?.collect::<Result<Vec<_>, _>>()?;
    match (wheels.pop(), wheels.is_empty()) {
        (Some(wheel), true) => Ok(wheel.path()),
        _ => bail!("{} does not have one wheel", folder.display()),
    }
}
