//! One process at a time works with a state folder.
//!
//! A lock keeps two processes of one machine apart. Where locks don't reach, a fence does: each start takes the next
//! generation, and a process that finds a higher one than its own writes no more.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use pelton_core::{Error, Fate, Kind, Result, Retry};

use super::store::{at, names, sync_folder};

const LOCK: &str = "LOCK";
const GENERATION: &str = "generation-";

pub(crate) struct Fence {
    folder: PathBuf,
    pub(crate) generation: u64,
    /// Held for as long as this lives.
    _lock: File,
}

impl Fence {
    pub(crate) fn raise(folder: &Path) -> Result<Fence> {
        let lock = lock(folder)?;
        let mut generation = newest(folder)? + 1;
        loop {
            let path = fence_file(folder, generation);
            match File::options().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    file.sync_all().map_err(at("writing", &path))?;
                    break;
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => generation += 1,
                Err(e) => return Err(at("creating", &path)(e)),
            }
        }
        sync_folder(folder)?;
        for old in numbers(folder)?.into_iter().filter(|n| *n < generation) {
            let path = fence_file(folder, old);
            std::fs::remove_file(&path).map_err(at("removing", &path))?;
        }
        Ok(Fence { folder: folder.to_owned(), generation, _lock: lock })
    }

    /// Says no if somebody else has taken over.
    pub(crate) fn check(&self) -> Result<()> {
        let newest = newest(&self.folder)?;
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

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(at("opening", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(Error::new(
                Kind::Denied,
                Fate::NotSent,
                Retry::Never,
                format!(
                    "state folder {} is used by a running job, process {}; stop that one, or give this job another folder",
                    folder.display(),
                    pid.trim()
                ),
            ));
        }
        Err(TryLockError::Error(e)) => return Err(at("locking", &path)(e)),
    }
    file.set_len(0).map_err(at("writing", &path))?;
    file.rewind().map_err(at("writing", &path))?;
    writeln!(file, "{}", std::process::id()).map_err(at("writing", &path))?;
    Ok(file)
}

fn fence_file(folder: &Path, generation: u64) -> PathBuf {
    folder.join(format!("{GENERATION}{generation:06}"))
}

fn numbers(folder: &Path) -> Result<Vec<u64>> {
    let names = names(folder)?;
    Ok(names.iter().filter_map(|n| n.strip_prefix(GENERATION)?.parse().ok()).collect())
}

fn newest(folder: &Path) -> Result<u64> {
    Ok(numbers(folder)?.into_iter().max().unwrap_or(0))
}
