//! What every service keeps to, whatever language it is written in: one list of named scenarios, played with real processes against each
//! [`Peer`]. The service is the same everywhere: the methods of [`service::specs`].
//!
//! This test has its own `main`: the program is started again as the host of each peer, and as the instances of the Rust one. The
//! service in Python is played where `PELTON_PYTHON` names an interpreter that has the package, as `cargo xtask test` does once it has built
//! it. Words after the program's name are the scenarios to play; all without them.

#![expect(clippy::disallowed_methods, reason = "a test starts and kills processes, and waits")]

mod jobs;
mod peer;
mod scenarios;
mod service;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use pelton::prelude::*;
use pelton::service::Definition;

use crate::peer::Peer;

/// The folder of the peer that is played, for its instances, too.
const FOLDER: &str = "PELTON_TEST_FOLDER";
/// The interpreter for the service in Python.
const PYTHON: &str = "PELTON_PYTHON";

fn folder() -> PathBuf {
    PathBuf::from(std::env::var_os(FOLDER).expect("whoever plays a peer has a folder"))
}

fn main() -> ExitCode {
    if std::env::var_os(pelton::env::INSTANCE_VARIABLE).is_some() {
        let served = pelton::serve_instance(|_| Ok(Definition::of::<service::Conforming>()));
        return ended(served.map(|why| println!("the instance leaves: {why}")));
    }
    // A flag is one of the usual test runner's, and means nothing here.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    if std::env::var_os(FOLDER).is_some() {
        let peer = Peer::told();
        return ended(scenarios::play(&peer, &wanted).and_then(|()| jobs::play(&peer, &wanted)));
    }
    let mut peers = vec!["rust"];
    match std::env::var_os(PYTHON) {
        Some(_) => peers.push("python"),
        None => println!("python: not played; {PYTHON} names no interpreter (`cargo xtask test` does)"),
    }
    for peer in peers {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let played = Command::new(std::env::current_exe().expect("this program has a name"))
            .args(&wanted)
            .env(FOLDER, folder.path())
            .env(peer::PEER, peer)
            .status();
        if !played.is_ok_and(|status| status.success()) {
            println!("FAILED: {peer}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn ended(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            println!("FAILED: {e:?}");
            ExitCode::FAILURE
        }
    }
}
