//! Who answers: the service in Rust, or the same in another language.

use std::process::Command;

use pelton::service::{Definition, MethodSpec, Service};
use pelton::{Declaration, Error, Job, Result, ServiceHandle};
use serde_json::{Map, Value};

use crate::service::Conforming;

/// Which peer a process plays.
pub(crate) const PEER: &str = "PELTON_TEST_PEER";
/// Prints what a declaration's options say of the service in Python.
const IN_PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pelton-python/tests/conforming.py");

pub(crate) struct Peer {
    pub(crate) name: String,
    /// What declares it, beside what is declared of any.
    program: Vec<String>,
    options: Map<String, Value>,
}

impl Peer {
    pub(crate) fn told() -> Peer {
        let name = std::env::var(PEER).expect("the process is told which peer it plays");
        if name != "python" {
            return Peer { name, program: Vec::new(), options: Map::new() };
        }
        let python = std::env::var(crate::PYTHON).expect("whoever plays Python has an interpreter");
        let told = Command::new(&python).arg(IN_PYTHON).output().expect("the interpreter runs");
        assert!(told.status.success(), "{IN_PYTHON}: {}", String::from_utf8_lossy(&told.stderr));
        let mut options: Map<String, Value> = serde_json::from_slice(&told.stdout).expect("it prints JSON");
        // The methods are told once, in Rust.
        options.insert("methods".into(), serde_json::to_value(specs()).expect("methods are plain data"));
        Peer { name, program: vec![python, "-m".into(), "pelton._instance".into()], options }
    }

    /// Declares the service in a job.
    pub(crate) fn declare(&self, job: &mut Job, mut declaration: Declaration) -> Result<ServiceHandle> {
        declaration.program = self.program.clone();
        declaration.options = self.options.clone();
        job.service_with(declaration, Definition::of::<Conforming>())
    }

    /// Says that a scenario went well.
    pub(crate) fn ok(&self, scenario: &str) {
        println!("ok: {}: {scenario}", self.name);
    }
}

fn specs() -> Vec<MethodSpec> {
    Conforming::methods().specs().to_vec()
}

/// An error of the test's own.
pub(crate) fn expected(what: impl std::fmt::Display) -> Error {
    Error::internal(format!("expected {what}"))
}
