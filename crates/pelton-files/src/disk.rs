//! What a failure of the disk means, in words, with the next step.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

use pelton_core::{Error, Result};

/// `doing` is what was tried, as in `reading`, `writing`.
pub(crate) fn failed(doing: &str, path: &Path, e: &io::Error) -> Error {
    let shown = path.display();
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).display();
    let next = match e.kind() {
        ErrorKind::StorageFull => format!(
            "; the disk is full: see `df -h {folder}`, make room, and start the job again: it goes on from its last checkpoint"
        ),
        ErrorKind::QuotaExceeded => {
            format!("; the quota is used up: make room in {folder} and start the job again")
        }
        ErrorKind::FileTooLarge => {
            "; it is over the file size limit (`ulimit -f`) or the file system's".to_owned()
        }
        ErrorKind::ReadOnlyFilesystem => "; the file system is read-only: choose another folder".to_owned(),
        ErrorKind::PermissionDenied => format!("; see `ls -ld {folder}`"),
        _ => String::new(),
    };
    Error::storage(format!("{doing} {shown}: {e}{next}"))
}

/// Makes the names in a folder durable: after a file was made, renamed or removed there.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| failed("making durable", folder, &e))
}
