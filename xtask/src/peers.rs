//! Other systems, to be measured beside Pelton: servers each in a Python environment of its own, Flink as a project of Maven's.

use std::process::Command;

use anyhow::Result;

use crate::java;
use crate::places::Places;
use crate::process::step;
use crate::python::Python;

/// By name, with the variable that tells the measurements which interpreter has it.
const PEERS: [(&str, &str); 2] = [("mosec", "PELTON_PEER_MOSEC"), ("ray", "PELTON_PEER_RAY")];
/// The name of Flink, and the variable that tells the measurements where its job is.
const FLINK: (&str, &str) = ("flink", "PELTON_PEER_FLINK");

/// Installs those that are asked for, unless they are there, and tells `bench` where. One that cannot be installed is left out, with a
/// line that says so.
pub(crate) fn install(places: &Places, arguments: &[String], bench: &mut Command) {
    for (name, variable) in PEERS.into_iter().filter(|(name, _)| wanted(arguments, name)) {
        if std::env::var_os(variable).is_some() {
            continue;
        }
        let requirements = places.root.join(format!("crates/pelton-trials/peers/requirements-{name}.txt"));
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
