//! Servers that nobody here wrote, for the tests: each kind in an environment of its own.

use anyhow::Result;

use crate::places::Places;
use crate::process::step;
use crate::python::Python;

pub(crate) struct Servers {
    /// Of the environment.
    name: &'static str,
    what: &'static str,
    requirements: &'static str,
    /// Tells the tests which interpreter has them.
    pub(crate) variable: &'static str,
}

pub(crate) const ALL: [Servers; 4] = [
    Servers {
        name: "servers",
        what: "inference servers (about 90 MB to download, 460 MB on disk)",
        requirements: "crates/pelton-remote/tests/servers/requirements.txt",
        variable: "PELTON_SERVERS",
    },
    Servers {
        name: "postgres",
        what: "PostgreSQL (about 14 MB to download, 60 MB on disk)",
        requirements: "crates/pelton-postgres/tests/servers/requirements.txt",
        variable: "PELTON_POSTGRES",
    },
    Servers {
        name: "objects",
        what: "an object store (about 30 MB to download, 150 MB on disk)",
        requirements: "crates/pelton-objects/tests/servers/requirements.txt",
        variable: "PELTON_OBJECTS",
    },
    // The other way round: something that nobody here compiled, and that calls.
    Servers {
        name: "pyarrow",
        what: "pyarrow, for a caller in Python (about 55 MB to download, 180 MB on disk)",
        requirements: "crates/pelton/tests/python/requirements.txt",
        variable: "PELTON_PYARROW",
    },
];

impl Servers {
    /// The interpreter that has them.
    pub(crate) fn install(&self, places: &Places) -> Result<Python> {
        let requirements = places.root.join(self.requirements);
        let python = Python::find()?;
        if let Some(there) = python.made(places, self.name, &requirements)? {
            println!("{}: there ({there})", self.name);
            return Ok(there);
        }
        step(&format!("installing {}", self.what), || python.environment(places, self.name, &requirements))
    }
}
