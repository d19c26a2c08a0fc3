//! The checkpoints of a job in a folder of its own: which there are, and which are kept.
//!
//! `checkpoint-000012/` is one ([`folder`](super::folder) has what is in it). `removed-000011/` was one, and is on its way out.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pelton_core::{Error, Result};
use pelton_env::Storage;
use pelton_env::storage::{failed, make_folders, replace, sync_folder};

use super::fence::Fence;
use super::folder::{self, Earlier, Loaded, Size, Written};
use super::manifest::Manifest;
use super::seal;
use crate::subtask::state::State;

const CHECKPOINT: &str = "checkpoint-";
const REMOVED: &str = "removed-";
/// Names the checkpoint that the job is going back to, until all that came after it is withdrawn.
const REWIND: &str = "rewind";
/// Complete checkpoints that are kept.
const KEPT: usize = 2;

pub(crate) struct Store {
    storage: Arc<dyn Storage>,
    folder: PathBuf,
    fence: Fence,
    /// The newest one that was written or read: what has not changed since is not written again.
    newest: Mutex<Option<Earlier>>,
}

impl Store {
    /// Takes the folder over, and makes it where it is missing. What is incomplete in it is removed.
    pub(crate) fn open(storage: &Arc<dyn Storage>, folder: &Path) -> Result<Store> {
        make_folders(&**storage, folder)?;
        let fence = Fence::raise(storage, folder)?;
        let store =
            Store { storage: storage.clone(), folder: folder.to_owned(), fence, newest: Mutex::new(None) };
        store.remove_retired()?;
        let numbers = store.numbers()?;
        if numbers.is_empty() {
            // Everything was being forgotten.
            store.remove_note()?;
        }
        for number in numbers {
            if !folder::is_complete(&**storage, &store.path(number))? {
                store.remove(&store.path(number))?;
            }
        }
        Ok(store)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.fence.generation
    }

    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Forgets all checkpoints.
    pub(crate) fn clear(&self) -> Result<()> {
        self.forget_after(None)
    }

    /// Notes that the job goes back to a checkpoint: a run that is cut off on the way is followed by one that goes on with it.
    pub(crate) fn begin_rewind(&self, number: u64) -> Result<()> {
        replace(&*self.storage, &self.folder.join(REWIND), &seal::seal(number.to_string().as_bytes()))
    }

    /// The checkpoint that a run before this one was going back to.
    pub(crate) fn rewinding(&self) -> Result<Option<u64>> {
        let path = self.folder.join(REWIND);
        if self.storage.look(&path).map_err(|e| failed("looking at", &path, &e))?.is_none() {
            return Ok(None);
        }
        let bytes = self.storage.read(&path).map_err(|e| failed("reading", &path, &e))?;
        let next =
            "; say again where to go back to with --from-checkpoint NUMBER, or start anew with --fresh";
        let json = seal::open(&path, &bytes).map_err(|e| Error::storage(format!("{}{next}", e.message())))?;
        let number = std::str::from_utf8(json).ok().and_then(|text| text.parse().ok());
        number
            .map(Some)
            .ok_or_else(|| Error::storage(format!("{} names no checkpoint{next}", path.display())))
    }

    /// Sinks have withdrawn what came after it; now the checkpoints after it go, and the note last.
    pub(crate) fn end_rewind(&self, number: u64) -> Result<()> {
        self.forget_after(Some(number))
    }

    /// Their removal is durable before the note goes: without it, a later checkpoint would be restored whose output is withdrawn.
    /// The note's own removal becomes durable with the next checkpoint, which lies in the same folder.
    fn forget_after(&self, number: Option<u64>) -> Result<()> {
        self.numbers()?.into_iter().filter(|n| Some(*n) > number).try_for_each(|n| self.retire(n))?;
        sync_folder(&*self.storage, &self.folder)?;
        self.remove_note()?;
        self.remove_retired()
    }

    fn remove_note(&self) -> Result<()> {
        let path = self.folder.join(REWIND);
        match self.storage.remove_file(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|e| failed("removing", &path, &e)),
        }
    }

    /// The numbers of all checkpoints, rising.
    pub(crate) fn numbers(&self) -> Result<Vec<u64>> {
        self.numbered(CHECKPOINT)
    }

    fn numbered(&self, prefix: &str) -> Result<Vec<u64>> {
        let names = names(&*self.storage, &self.folder)?;
        let mut numbers: Vec<u64> =
            names.iter().filter_map(|n| n.strip_prefix(prefix)?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Reads a checkpoint and checks every byte of it. One that is damaged is refused, and another one is named.
    pub(crate) fn load(&self, number: u64) -> Result<Loaded> {
        let path = self.path(number);
        let (loaded, pieces) = folder::read(&*self.storage, &path).map_err(|e| {
            let before = self.numbers().unwrap_or_default().into_iter().rfind(|n| *n < number);
            let next = match before {
                Some(n) => format!(
                    "go back to checkpoint {n} (--from-checkpoint {n}; what was done since is done again), or start anew with \
                     --fresh"
                ),
                None => "there is none before it; start anew with --fresh".to_owned(),
            };
            Error::storage(format!("checkpoint {number} in {} cannot be restored: {e}; {next}", self.folder.display()))
        })?;
        // Whoever made it may have ended before its manifest was durable, and output is about to follow from it.
        sync_folder(&*self.storage, &path)?;
        *self.newest() = Some(Earlier { folder: path, pieces });
        Ok(loaded)
    }

    /// Makes a checkpoint durable, or fails and leaves none. `parts` have the head of their stage. Says how big it is, and how much of it is new.
    pub(crate) fn write(&self, manifest: Manifest, parts: &[(String, State)]) -> Result<Size> {
        let path = self.path(manifest.number);
        let mut newest = self.newest();
        let check = || self.fence.check();
        let written = folder::write(&*self.storage, &path, manifest, parts, newest.as_ref(), check)?;
        sync_folder(&*self.storage, &self.folder)?;
        let Written { size, pieces } = written;
        *newest = Some(Earlier { folder: path, pieces });
        Ok(size)
    }

    fn newest(&self) -> MutexGuard<'_, Option<Earlier>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes all but the newest ones. Nothing waits for that to be durable: none but the newest is ever restored unasked.
    pub(crate) fn collect(&self) -> Result<()> {
        let numbers = self.numbers()?;
        numbers.iter().rev().skip(KEPT).try_for_each(|n| self.retire(*n))?;
        self.remove_retired()
    }

    /// From one moment to the next it is no checkpoint any more.
    fn retire(&self, number: u64) -> Result<()> {
        let (path, retired) = (self.path(number), self.folder.join(format!("{REMOVED}{number:06}")));
        self.storage.rename(&path, &retired).map_err(|e| failed("removing", &path, &e))
    }

    fn remove_retired(&self) -> Result<()> {
        let retired = self.numbered(REMOVED)?;
        retired.into_iter().try_for_each(|n| self.remove(&self.folder.join(format!("{REMOVED}{n:06}"))))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.storage.remove_folder(path).map_err(|e| failed("removing", path, &e))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{CHECKPOINT}{number:06}"))
    }
}

pub(super) fn names(storage: &dyn Storage, folder: &Path) -> Result<Vec<String>> {
    storage.list(folder).map_err(|e| failed("listing", folder, &e))
}
