//! Other systems, to be measured beside Pelton: servers each in a Python environment of its own, Flink as a project of Maven's.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::java;
use crate::places::Places;
use crate::process::{self, cargo, step};
use crate::python::Python;

/// By name, with the variable that tells the measurements which interpreter has it.
const PEERS: [(&str, &str); 7] = [
    ("mosec", "PELTON_PEER_MOSEC"),
    ("ray", "PELTON_PEER_RAY"),
    ("litserve", "PELTON_PEER_LITSERVE"),
    ("grpcio", "PELTON_PEER_GRPCIO"),
    ("python-mosec", "PELTON_PYTHON_MOSEC"),
    ("python-ray", "PELTON_PYTHON_RAY"),
    ("python-daft", "PELTON_PYTHON_DAFT"),
];
/// Those that `bench flow` measures.
pub(crate) const FLOW: [&str; 2] = ["mosec", "ray"];
/// Those of `bench wire` that have an environment of their own.
pub(crate) const WIRE: [&str; 4] = ["mosec", "ray", "litserve", "grpcio"];
/// Those of `bench python`, where `--peers` names them without what they begin with.
pub(crate) const PYTHON: [&str; 3] = ["python-mosec", "python-ray", "python-daft"];
/// The variable that tells the measurements where the program of `pelton-peers` is.
const PROGRAM: &str = "PELTON_PEERS";
/// The name of Flink, and the variable that tells the measurements where its job is.
const FLINK: (&str, &str) = ("flink", "PELTON_PEER_FLINK");

/// Installs those of the `known` ones that are asked for, unless they are there, and tells `bench` where. One that cannot be installed is left out, with a
/// line that says so.
pub(crate) fn install(places: &Places, known: &[&str], arguments: &[String], bench: &mut Command) {
    for (name, variable) in PEERS
        .into_iter()
        .filter(|(name, _)| known.contains(name) && wanted(arguments, name.trim_start_matches("python-")))
    {
        if std::env::var_os(variable).is_some() {
            continue;
        }
        let requirements = requirements(places, name);
        let installed = step(&format!("{name}, to be measured beside Pelton"), || {
            Python::find()?.environment(places, name, &requirements)
        });
        match installed {
            Ok(python) => {
                bench.env(variable, python.program());
            }
            Err(e) => eprintln!("NOT MEASURED: {name} could not be installed: {e:#}"),
        }
    }
}

pub(crate) fn requirements(places: &Places, name: &str) -> PathBuf {
    places.root.join(format!("crates/pelton-trials/peers/requirements-{name}.txt"))
}

/// Builds the callers and servers of other libraries, unless it is told where they are, and tells `bench`. By itself: its libraries would change
/// how all others are built.
pub(crate) fn program(places: &Places, bench: &mut Command) -> Result<()> {
    if std::env::var_os(PROGRAM).is_some() {
        return Ok(());
    }
    bench.env(PROGRAM, built(places, &["--package", "pelton-peers", "--features", "program"])?);
    Ok(())
}

/// Builds one program with all optimizations, and says where it is.
pub(crate) fn built(places: &Places, what: &[&str]) -> Result<String> {
    let build = ["build", "--release", "--message-format", "json"];
    let messages = process::output(cargo(&places.root, build).args(what).stderr(Stdio::inherit()))?;
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(message["executable"].as_str()?.to_owned())
    };
    let program = String::from_utf8_lossy(&messages).lines().find_map(executable);
    program.with_context(|| format!("cargo named no program of {what:?}"))
}

/// Builds Flink's job if it is asked for, unless it is there, and tells `bench` where. Who asks for it by name wants no run without it.
pub(crate) fn build(places: &Places, arguments: &[String], bench: &mut Command) -> Result<()> {
    let (name, variable) = FLINK;
    if named(arguments).is_empty() || !wanted(arguments, name) || std::env::var_os(variable).is_some() {
        return Ok(());
    }
    let project = places.root.join("crates/pelton-trials/peers/flink");
    let folder =
        step("Flink's job, to be measured beside Pelton (the first time about 100 MB are fetched)", || {
            java::project(places, name, &project)
        })?;
    bench.env(variable, folder);
    Ok(())
}

/// Whether `--peers` names it, or there is no `--peers`.
fn wanted(arguments: &[String], name: &str) -> bool {
    let named = named(arguments);
    let names = |value: &str| value.trim_start_matches("--peers=").split(',').any(|n| n == name);
    named.is_empty() || named.into_iter().any(|value| names(value))
}

/// What follows each `--peers`.
fn named(arguments: &[String]) -> Vec<&String> {
    let mut named = Vec::new();
    for (i, argument) in arguments.iter().enumerate() {
        match argument.strip_prefix("--peers") {
            Some("") => named.extend(arguments.get(i + 1)),
            Some(_) => named.push(argument),
            None => {}
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_peers_that_are_named_are_wanted() {
        for (arguments, expected) in [
            (&["flow", "--quick"][..], [true, true]),
            (&["flow", "--peers", "ray"], [false, true]),
            (&["flow", "--peers=mosec"], [true, false]),
            (&["flow", "--peers=mosec,ray", "--json"], [true, true]),
        ] {
            let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
            assert_eq!(["mosec", "ray"].map(|name| wanted(&arguments, name)), expected, "{arguments:?}");
        }
    }
}
