//! What says that a checkpoint is complete, and what it is made of.

use std::collections::BTreeMap;

use pelton_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::sink::Staged;

/// The layout that this code writes and reads.
pub(crate) const VERSION: u32 = 3;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) version: u32,
    pub(crate) number: u64,
    pub(crate) generation: u64,
    /// Milliseconds since the Unix epoch, for people.
    pub(crate) made_at: u64,
    /// See [`Topology::identity`](crate::topology::Topology::identity).
    pub(crate) identity: Vec<String>,
    /// Whether everything was read, answered and staged.
    pub(crate) finished: bool,
    /// By sink.
    pub(crate) staged: BTreeMap<String, Vec<Staged>>,
    /// The files that hold the pieces of all parts: the last one was written with this checkpoint, those before it are shared with earlier
    /// ones. One new file: a checkpoint costs few waits for the disk.
    pub(crate) files: Vec<String>,
    pub(crate) parts: Vec<Part>,
}

/// One subtask's pieces.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Part {
    /// The head of the stage.
    pub(crate) stage: String,
    pub(crate) pieces: Vec<Piece>,
}

/// A piece of one of the files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Piece {
    /// What it is to the subtask's state.
    pub(crate) name: String,
    /// Which of the manifest's files has it.
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

impl Manifest {
    /// Says no to a checkpoint of another job.
    pub(crate) fn check_identity(&self, identity: &[String], folder: &str) -> Result<()> {
        if self.identity == identity {
            return Ok(());
        }
        let differs = |a: &[String], b: &[String]| a.iter().find(|line| !b.contains(line)).cloned();
        let theirs = differs(&self.identity, identity);
        let ours = differs(identity, &self.identity);
        let say = |line: Option<String>| line.unwrap_or_else(|| "nothing of its own".to_owned());
        Err(Error::invalid(format!(
            "checkpoint {} in {folder} was made by another job: it has {}, this job has {}; use another state folder, or start \
             anew with --fresh",
            self.number,
            say(theirs),
            say(ours)
        )))
    }
}
