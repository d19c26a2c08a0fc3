//! Savepoints: checkpoints that a user keeps, in folders of their own.
//!
//! A savepoint is a checkpoint without staged output: the job that took it makes that visible itself. So a job that starts from
//! it gives the rows that come after, and no other.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pelton_core::{Error, Result};
use pelton_env::storage::{failed, make_folders};
use pelton_env::{Env, Place, Storage};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::checkpoint::folder::{self, Loaded};
use crate::checkpoint::manifest::Manifest;
use crate::checkpoint::store::Store;
use crate::subtask::state::State;

/// A savepoint that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The job's checkpoint that it is: all output up to this one is visible, and is not made again.
    pub checkpoint: u64,
    pub bytes: u64,
}

/// Somebody wants a savepoint.
pub(crate) struct Request {
    folder: PathBuf,
    /// Of the job's last checkpoint, with which it stops.
    pub(crate) stop: bool,
    /// The checkpoint that it will be.
    checkpoint: Option<u64>,
    done: oneshot::Sender<Result<Saved>>,
}

/// The way to ask a running job for something.
#[derive(Clone)]
pub struct Orders {
    env: Env,
    state: PathBuf,
    sender: mpsc::Sender<Request>,
}

/// Requests that wait at the same time.
const WAITING: usize = 16;

pub(crate) fn orders(env: &Env, state: &Path) -> (Orders, mpsc::Receiver<Request>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let state = std::path::absolute(state).unwrap_or_else(|_| state.to_owned());
    (Orders { env: env.clone(), state, sender }, receiver)
}

impl Orders {
    /// Takes a savepoint into a folder that is empty or does not exist, and returns when it is durable. With `stop` it is the
    /// job's last checkpoint, and the job stops in good order.
    pub async fn savepoint(&self, folder: &Path, stop: bool) -> Result<Saved> {
        if !folder.is_absolute() || folder.starts_with(&self.state) {
            return Err(Error::invalid(format!(
                "savepoint {}: name a folder by its whole path, outside the job's state in {}",
                folder.display(),
                self.state.display()
            )));
        }
        // Before a checkpoint is taken for it, or the job stopped.
        let (storage, of_task) = (self.env.storage.clone(), folder.to_owned());
        let (tell, prepared) = oneshot::channel();
        let _task = self.env.spawn(Place::Dedicated, async move {
            let _ = tell.send(prepare(&*storage, &of_task));
        });
        prepared.await.unwrap_or_else(|_| Err(finishing()))?;
        let (done, saved) = oneshot::channel();
        let request = Request { folder: folder.to_owned(), stop, checkpoint: None, done };
        self.sender.send(request).await.map_err(|_| finishing())?;
        saved.await.unwrap_or_else(|_| Err(finishing()))
    }
}

/// There will be no more checkpoint that a savepoint could be of.
fn finishing() -> Error {
    Error::invalid(
        "no savepoint was taken: the job is finishing; once it has ended, its output is complete, or the same command goes on",
    )
}

fn prepare(storage: &dyn Storage, folder: &Path) -> Result<()> {
    let wrong = |what: &str| {
        let shown = folder.display();
        Error::invalid(format!("savepoint {shown}: {what}; name a folder that is empty or does not exist"))
    };
    if let Some(entry) = storage.look(folder).map_err(|e| failed("looking at", folder, &e))? {
        if !entry.folder {
            return Err(wrong("this is a file"));
        }
        if !storage.list(folder).map_err(|e| failed("listing", folder, &e))?.is_empty() {
            return Err(wrong("the folder is not empty"));
        }
    }
    make_folders(storage, folder)?;
    let probe = folder.join(".probe");
    let written = storage.create(&probe).and_then(|mut file| file.write_all(b"?"));
    written.and_then(|()| storage.remove_file(&probe)).map_err(|e| failed("writing to", &probe, &e))
}

/// Those who wait, until the checkpoint is written that is theirs.
#[derive(Default)]
pub(crate) struct Waiting(Vec<Request>);

impl Waiting {
    pub(crate) fn add(&mut self, request: Request) {
        self.0.push(request);
    }

    /// A checkpoint begins; whether it is the last one before a stop.
    pub(crate) fn begun(&mut self, number: u64, last: bool) {
        for request in self.0.iter_mut().filter(|r| r.checkpoint.is_none() && (last || !r.stop)) {
            request.checkpoint = Some(number);
        }
    }

    /// It was given up. Those who want the last one get the one that is tried next.
    pub(crate) fn aborted(&mut self, number: u64) {
        for mut request in self.take(number) {
            request.checkpoint = None;
            if request.stop {
                self.0.push(request);
            } else {
                request.refuse(Error::invalid(format!(
                    "no savepoint was taken: checkpoint {number} took too long and was given up; try again"
                )));
            }
        }
    }

    pub(crate) fn take(&mut self, number: u64) -> Vec<Request> {
        let (theirs, rest) =
            std::mem::take(&mut self.0).into_iter().partition(|r| r.checkpoint == Some(number));
        self.0 = rest;
        theirs
    }
}

impl Request {
    pub(crate) fn refuse(self, error: Error) {
        // Whoever asked may be gone.
        let _ = self.done.send(Err(error));
    }

    pub(crate) fn refuse_at_end(self) {
        self.refuse(finishing());
    }

    /// Writes this checkpoint, whose output is visible, to the folder, and all of it: it shall need nothing of the job's. A failure is for whoever
    /// asked, and not the job's.
    pub(crate) fn write(self, storage: &dyn Storage, manifest: &Manifest, parts: &[(String, State)]) {
        let manifest = without_output(manifest, manifest.generation);
        let checkpoint = manifest.number;
        let written = folder::write(storage, &self.folder, manifest, parts, None, || Ok(()));
        if written.is_err() {
            // What is there is of no use, and takes room.
            let names = storage.list(&self.folder).unwrap_or_default();
            names.iter().for_each(|name| _ = storage.remove_file(&self.folder.join(name)));
        }
        let saved = written.map(|w| Saved { checkpoint, bytes: w.size.bytes });
        let context = || {
            format!("savepoint {} was not written; the job is none the worse for it", self.folder.display())
        };
        let _ = self.done.send(saved.map_err(|e| e.context(context())));
    }
}

fn without_output(manifest: &Manifest, generation: u64) -> Manifest {
    Manifest {
        generation,
        staged: Default::default(),
        files: Vec::new(),
        parts: Vec::new(),
        ..manifest.clone()
    }
}

/// Reads a savepoint that a job is to start from. `fresh`: what checkpoints there are will be forgotten.
pub(crate) fn load(store: &Store, from: &Path, fresh: bool) -> Result<Loaded> {
    let there = store.numbers()?;
    if let Some(newest) = there.last().filter(|_| !fresh) {
        return Err(Error::invalid(format!(
            "this job already has checkpoints (the newest is {newest}), so it does not start from savepoint {}; leave --from out \
             to go on, name another output, or begin anew with --fresh",
            from.display()
        )));
    }
    let storage: &Arc<dyn Storage> = store.storage();
    if !folder::is_complete(&**storage, from)? {
        return Err(Error::invalid(format!(
            "{} is no savepoint: it has no {}; name the folder that `pelton savepoint` has written",
            from.display(),
            folder::MANIFEST
        )));
    }
    let read = folder::read(&**storage, from).map(|(loaded, _)| loaded);
    read.map_err(|e| {
        Error::storage(format!("savepoint {} cannot be read: {e}; start from another one", from.display()))
    })
}

/// Makes a savepoint the first checkpoint of this job: from now on it needs the savepoint no more.
pub(crate) fn adopt(store: &Store, loaded: &Loaded) -> Result<()> {
    let manifest = without_output(&loaded.manifest, store.generation());
    let parts: Vec<(String, State)> = loaded
        .parts
        .iter()
        .flat_map(|(stage, states)| states.iter().map(|state| (stage.clone(), state.clone())))
        .collect();
    store.write(manifest, &parts).map(drop)
}
