//! Files and folders that must outlive a cut of the power: checkpoints, and what sinks stage.
//!
//! What a process has written, it sees; what is durable is another matter. A file's content is durable once the file was
//! synced, a name once its folder was synced. Of the rest a cut may leave all, nothing or a part. What is of no use to another
//! process goes to a [`Scratch`] file, of which nothing is ever left.

use std::any::Any;
use std::fmt::Debug;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use pelton_core::{Error, Result};

/// A file system. Every call may block.
///
/// Law: a rename is atomic. After a cut a file has its old name or its new one, or, across folders, both; never neither.
pub trait Storage: Debug + Send + Sync + 'static {
    /// An empty file under this name, in place of what had the name before.
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>>;
    /// An empty file under a name that nothing has.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile>>;
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// So many bytes from there; an error if the file ends before.
    fn read_at(&self, path: &Path, offset: u64, bytes: usize) -> io::Result<Vec<u8>>;
    /// What has this name, if anything.
    fn look(&self, path: &Path) -> io::Result<Option<Entry>>;
    /// The names in a folder, in no order.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;
    /// The folder that it is to be in exists, it does not.
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    /// In place of what had the new name before.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// A second name for a file. Nothing has that name.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// With all that is in it. May be cut off at any file.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// An empty file in this folder without a name: it is gone when it is dropped, and with this process, however that ends.
    fn scratch(&self, folder: &Path) -> io::Result<Box<dyn Scratch>>;
    /// Makes this file, if it is missing, and holds it for this process alone. `note` is written into it, for others to read.
    fn lock(&self, path: &Path, note: &str) -> io::Result<Lock>;
}

/// A file that is being written.
pub trait WriteFile: Write + Debug + Send {
    /// Makes what was written durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file that nobody else sees (see [`Storage::scratch`]). Nothing of it has to be durable: nobody looks for it after this process.
pub trait Scratch: Debug + Send {
    /// All of these bytes, from there on. After an error some of them may be there.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// So many bytes from there; an error if the file ends before.
    fn read_at(&mut self, offset: u64, bytes: usize) -> io::Result<Vec<u8>>;
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub folder: bool,
    pub bytes: u64,
    /// Two names with the same are two names of one file.
    pub identity: (u64, u64),
}

/// Whether a lock could be had.
pub enum Lock {
    /// It is ours until this is dropped.
    Held(Box<dyn Any + Send + Sync>),
    /// Somebody has it, and left this note.
    Taken(String),
}

/// Makes a folder, and those above it that are missing; all their names are durable when this returns.
pub fn make_folders(storage: &dyn Storage, path: &Path) -> Result<()> {
    let above = path.parent().filter(|p| !p.as_os_str().is_empty());
    match storage.look(path).map_err(|e| failed("looking at", path, &e))? {
        // A name below it was made durable after its own: only the last one may not be.
        Some(_) => match above.map_or(Ok(()), |above| storage.sync_folder(above)) {
            // Not ours, so it was there long before.
            Err(e) if e.kind() == ErrorKind::PermissionDenied => Ok(()),
            synced => synced.map_err(|e| failed("making durable", path, &e)),
        },
        None => {
            if let Some(above) = above {
                make_folders(storage, above)?;
            }
            match storage.create_folder(path) {
                // Somebody else makes the same.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                made => made.map_err(|e| failed("making the folder", path, &e))?,
            }
            above.map_or(Ok(()), |above| sync_folder(storage, above))
        }
    }
}

/// Makes the names in a folder durable: after something was made, renamed or removed there.
pub fn sync_folder(storage: &dyn Storage, folder: &Path) -> Result<()> {
    storage.sync_folder(folder).map_err(|e| failed("making durable", folder, &e))
}

/// A file with this content, which is durable; its name is not yet.
pub fn write_synced(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = storage.create(path)?;
        file.write_all(bytes)?;
        file.sync()
    };
    write().map_err(|e| failed("writing", path, &e))
}

/// A file with this content, durable, name and all. Whoever reads finds what was there before, or this, whole.
pub fn replace(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> Result<()> {
    let draft = path.with_extension("tmp");
    write_synced(storage, &draft, bytes)?;
    storage.rename(&draft, path).map_err(|e| failed("writing", path, &e))?;
    path.parent().map_or(Ok(()), |folder| sync_folder(storage, folder))
}

/// A failure of the disk in words, with the next step. `doing` is what was tried, as in `reading`, `writing`.
pub fn failed(doing: &str, path: &Path, e: &io::Error) -> Error {
    /// EIO has no kind of its own.
    const DEVICE: i32 = 5;
    let shown = path.display();
    let above = path.parent().unwrap_or(path);
    let folder = if above.as_os_str().is_empty() { Path::new(".") } else { above }.display();
    let next = match e.kind() {
        ErrorKind::StorageFull => format!(
            "; the disk is full: see `df -h {folder}`, make room, and try again (a job that ended goes on from its last checkpoint)"
        ),
        ErrorKind::QuotaExceeded => {
            format!("; the quota is used up: make room in {folder} and try again")
        }
        ErrorKind::FileTooLarge => {
            "; it is over the file size limit (`ulimit -f`) or the file system's".to_owned()
        }
        ErrorKind::ReadOnlyFilesystem => "; the file system is read-only: choose another folder".to_owned(),
        ErrorKind::PermissionDenied => format!("; see `ls -ld {folder}`"),
        _ if e.raw_os_error() == Some(DEVICE) => {
            "; the device reported an error: see `dmesg`, then try again (a job that ended goes on from its last checkpoint)".to_owned()
        }
        _ => String::new(),
    };
    Error::storage(format!("{doing} {shown}: {e}{next}"))
}
