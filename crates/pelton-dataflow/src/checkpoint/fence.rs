//! One process at a time works with a state folder.
//!
//! A lock keeps two processes of one machine apart. Where locks don't reach, a fence does: each start takes the next
//! generation, and a process that finds a higher one than its own writes no more.

use std::any::Any;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pelton_core::{Error, Fate, Kind, Result, Retry};
use pelton_env::Storage;
use pelton_env::storage::{Lock, failed, sync_folder};

use super::store::names;

const LOCK: &str = "LOCK";
const GENERATION: &str = "generation-";

pub(crate) struct Fence {
    storage: Arc<dyn Storage>,
    folder: PathBuf,
    pub(crate) generation: u64,
    /// Held for as long as this lives.
    _lock: Box<dyn Any + Send + Sync>,
}

impl Fence {
    pub(crate) fn raise(storage: &Arc<dyn Storage>, folder: &Path) -> Result<Fence> {
        let lock = lock(&**storage, folder)?;
        let mut generation = newest(&**storage, folder)? + 1;
        loop {
            let path = fence_file(folder, generation);
            // It is empty: all that it says is its name.
            match storage.create_new(&path) {
                Ok(_) => break,
                Err(e) if e.kind() == ErrorKind::AlreadyExists => generation += 1,
                Err(e) => return Err(failed("making", &path, &e)),
            }
        }
        sync_folder(&**storage, folder)?;
        for old in numbers(&**storage, folder)?.into_iter().filter(|n| *n < generation) {
            let path = fence_file(folder, old);
            storage.remove_file(&path).map_err(|e| failed("removing", &path, &e))?;
        }
        Ok(Fence { storage: storage.clone(), folder: folder.to_owned(), generation, _lock: lock })
    }

    /// Says no if somebody else has taken over.
    pub(crate) fn check(&self) -> Result<()> {
        let newest = newest(&*self.storage, &self.folder)?;
        if newest == self.generation {
            return Ok(());
        }
        let message = format!(
            "this job (generation {}) was replaced by generation {newest} on state folder {}; it writes no more",
            self.generation,
            self.folder.display()
        );
        Err(Error::new(Kind::Denied, Fate::NotSent, Retry::Never, message))
    }
}

fn lock(storage: &dyn Storage, folder: &Path) -> Result<Box<dyn Any + Send + Sync>> {
    let path = folder.join(LOCK);
    match storage
        .lock(&path, &format!("{}\n", std::process::id()))
        .map_err(|e| failed("locking", &path, &e))?
    {
        Lock::Held(lock) => Ok(lock),
        Lock::Taken(note) => Err(Error::new(
            Kind::Denied,
            Fate::NotSent,
            Retry::Never,
            format!(
                "state folder {} is used by a running job, process {}; stop that one, or give this job another folder",
                folder.display(),
                note.trim()
            ),
        )),
    }
}

fn fence_file(folder: &Path, generation: u64) -> PathBuf {
    folder.join(format!("{GENERATION}{generation:06}"))
}

fn numbers(storage: &dyn Storage, folder: &Path) -> Result<Vec<u64>> {
    let names = names(storage, folder)?;
    Ok(names.iter().filter_map(|n| n.strip_prefix(GENERATION)?.parse().ok()).collect())
}

fn newest(storage: &dyn Storage, folder: &Path) -> Result<u64> {
    Ok(numbers(storage, folder)?.into_iter().max().unwrap_or(0))
}
