//! Files that are written out of sight and appear, whole, under their final name.
//!
//! A part is written to `OUT/_staging/PREFIX-GENERATION-SUBTASK-N.EXT.tmp`, made durable, and renamed to
//! `OUT/PREFIX-GENERATION-SUBTASK-CHECKPOINT.EXT`. A rename is atomic, so whoever lists `OUT` sees whole parts only.

use std::collections::BTreeSet;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pelton_core::{Error, Result};
use pelton_dataflow::sink::Staged;
use pelton_env::Storage;
use pelton_env::real::Disk;
use pelton_env::storage::{Entry, WriteFile, failed, make_folders, sync_folder};
use serde::{Deserialize, Serialize};

const STAGING: &str = "_staging";

/// Where parts go and how they are called.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    storage: Arc<dyn Storage>,
    folder: PathBuf,
    prefix: String,
    extension: &'static str,
}

/// What a [`Staged`] says; names without a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    staged: String,
    part: String,
    bytes: u64,
    rows: u64,
}

impl Target {
    pub(crate) fn new(folder: &Path, prefix: &str, extension: &'static str) -> Result<Target> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !prefix.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !prefix.chars().all(plain)
            || prefix.len() > 64
        {
            return Err(Error::invalid(format!(
                "prefix `{prefix}`: begin with a letter or digit, go on with letters, digits, `-` and `_`, 64 at most"
            )));
        }
        let folder = std::path::absolute(folder)
            .map_err(|e| Error::invalid(format!("output `{}`: {e}", folder.display())))?;
        Ok(Target { storage: Arc::new(Disk), folder, prefix: prefix.to_owned(), extension })
    }

    pub(crate) fn stored_on(self, storage: Arc<dyn Storage>) -> Target {
        Target { storage, ..self }
    }

    pub(crate) fn describe(&self) -> String {
        format!("{}/{}-*.{}", self.folder.display(), self.prefix, self.extension)
    }

    /// Makes the folders, finds out whether they can be written, and removes what nobody will commit any more.
    pub(crate) fn start(&self, generation: u64, recorded: &[Staged]) -> Result<()> {
        let context = |e: Error| e.context("output folder");
        if self.look(&self.folder).map_err(context)?.is_some_and(|entry| !entry.folder) {
            return Err(Error::invalid(format!("output {} is a file; give a folder", self.folder.display())));
        }
        let staging = self.staging();
        make_folders(&*self.storage, &staging).map_err(context)?;
        let probe = staging.join(format!(".probe-{}-{}", self.prefix, self.extension));
        let write = || self.storage.create(&probe)?.write_all(b"?");
        write()
            .and_then(|()| self.storage.remove_file(&probe))
            .map_err(|e| failed("writing to the output folder", &probe, &e))?;
        self.refuse_other_run(generation)?;
        self.discard(generation, recorded)
    }

    /// Removes the parts that checkpoints after this one have made visible.
    pub(crate) fn rewind(&self, checkpoint: u64) -> Result<()> {
        if self.look(&self.folder)?.is_none() {
            return Ok(());
        }
        for (name, [.., covered_by]) in self.list(&self.folder, self.extension)? {
            if covered_by > checkpoint {
                let path = self.folder.join(name);
                self.storage.remove_file(&path).map_err(|e| failed("withdrawing", &path, &e))?;
            }
        }
        sync_folder(&*self.storage, &self.folder)
    }

    fn refuse_other_run(&self, generation: u64) -> Result<()> {
        for (name, [of, ..]) in self.list(&self.folder, self.extension)? {
            if of >= generation {
                return Err(Error::invalid(format!(
                    "output {} already holds {name}, which another run wrote; choose another folder, empty this one, or go \
                     on with the checkpoints of that run",
                    self.folder.display()
                )));
            }
        }
        Ok(())
    }

    fn discard(&self, generation: u64, recorded: &[Staged]) -> Result<()> {
        let kept: BTreeSet<String> =
            recorded.iter().map(|s| record(s).map(|r| r.staged)).collect::<Result<_>>()?;
        let staging = self.staging();
        for (name, [of, ..]) in self.list(&staging, &self.staged_extension())? {
            if of < generation && !kept.contains(&name) {
                let path = staging.join(name);
                match self.storage.remove_file(&path) {
                    Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed("removing", &path, &e)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// A new staged file. `number` is where to begin to look for a name that is not taken.
    pub(crate) fn create(&self, subtask: u32, generation: u64, mut number: u64) -> Result<StagedFile> {
        loop {
            let numbers = [generation, u64::from(subtask), number];
            let name = part_name(&self.prefix, numbers, &self.staged_extension());
            let path = self.staging().join(&name);
            match self.storage.create_new(&path) {
                Ok(file) => return Ok(StagedFile::new(self.storage.clone(), file, path, name)),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => number += 1,
                Err(e) => return Err(failed("making", &path, &e)),
            }
        }
    }

    /// Ends a staged file: durable, and described by what this gives.
    pub(crate) fn seal(
        &self,
        file: &mut StagedFile,
        subtask: u32,
        generation: u64,
        checkpoint: u64,
        rows: u64,
    ) -> Result<Staged> {
        file.seal()?;
        sync_folder(&*self.storage, &self.staging())?;
        let part = part_name(&self.prefix, [generation, u64::from(subtask), checkpoint], self.extension);
        let record = Record { staged: file.name.clone(), part, bytes: file.bytes, rows };
        Ok(Staged(serde_json::to_value(record).map_err(|e| Error::internal(e.to_string()))?))
    }

    pub(crate) fn commit(&self, staged: &[Staged]) -> Result<()> {
        for one in staged {
            self.publish(&record(one)?)?;
        }
        // Also where all were there already: whoever renamed them may have died before this.
        if staged.is_empty() { Ok(()) } else { sync_folder(&*self.storage, &self.folder) }
    }

    fn publish(&self, record: &Record) -> Result<()> {
        let (staged, part) = (self.staging().join(&record.staged), self.folder.join(&record.part));
        let (waiting, there) = (self.look(&staged)?, self.look(&part)?);
        match (waiting, there) {
            (None, None) => Err(Error::storage(format!(
                "output {} is gone, and so is {} that was to become it: somebody removed files of a run that goes on; \
                 its rows are lost, so empty the folder and start again without checkpoints",
                part.display(),
                staged.display()
            ))),
            (None, Some(entry)) if entry.bytes == record.bytes => Ok(()),
            (None, Some(entry)) => Err(wrong_length(&part, entry.bytes, record.bytes)),
            // Renamed before the power was cut, and only the new name was durable.
            (Some(waiting), Some(there)) if waiting.identity == there.identity => {
                self.storage.remove_file(&staged).map_err(|e| failed("removing", &staged, &e))
            }
            (Some(_), Some(_)) => Err(Error::storage(format!(
                "output {} exists and is not the one of this run, which waits in {}: two runs write into one folder; \
                 move the first away or give this run a folder of its own",
                part.display(),
                staged.display()
            ))),
            (Some(entry), None) if entry.bytes == record.bytes => match self.storage.rename(&staged, &part) {
                // Somebody else commits the same at this moment.
                Err(e)
                    if e.kind() == ErrorKind::NotFound
                        && self.look(&part)?.is_some_and(|entry| entry.bytes == record.bytes) =>
                {
                    Ok(())
                }
                done => done.map_err(|e| failed("renaming to", &part, &e)),
            },
            (Some(entry), None) => Err(wrong_length(&staged, entry.bytes, record.bytes)),
        }
    }

    fn staging(&self) -> PathBuf {
        self.folder.join(STAGING)
    }

    fn staged_extension(&self) -> String {
        format!("{}.tmp", self.extension)
    }

    fn list(&self, folder: &Path, extension: &str) -> Result<Vec<(String, [u64; 3])>> {
        parts(&*self.storage, folder, &self.prefix, extension).map_err(|e| failed("listing", folder, &e))
    }

    fn look(&self, path: &Path) -> Result<Option<Entry>> {
        look(&*self.storage, path)
    }
}

fn wrong_length(path: &Path, found: u64, expected: u64) -> Error {
    Error::storage(format!(
        "output {} has {found} bytes and was written with {expected}: the disk lost some, or somebody changed it; empty \
         the folder and start again without checkpoints",
        path.display()
    ))
}

fn look(storage: &dyn Storage, path: &Path) -> Result<Option<Entry>> {
    storage.look(path).map_err(|e| failed("looking at", path, &e))
}

fn record(staged: &Staged) -> Result<Record> {
    let record: Record = serde_json::from_value(staged.0.clone())
        .map_err(|e| Error::storage(format!("a checkpoint names output that is not of a file sink: {e}")))?;
    for name in [&record.staged, &record.part] {
        if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(Error::storage(format!(
                "a checkpoint names output `{name}`, which is not a file's name"
            )));
        }
    }
    Ok(record)
}

/// `numbers` are generation, subtask, and checkpoint or counter; with zeros in front, so that names sort like numbers.
fn part_name(prefix: &str, [generation, subtask, last]: [u64; 3], extension: &str) -> String {
    format!("{prefix}-{generation:05}-{subtask:04}-{last:06}.{extension}")
}

/// All parts of a folder with their numbers, in order.
pub(crate) fn parts(
    storage: &dyn Storage,
    folder: &Path,
    prefix: &str,
    extension: &str,
) -> io::Result<Vec<(String, [u64; 3])>> {
    let names = storage.list(folder)?.into_iter();
    let mut found: Vec<_> =
        names.filter_map(|name| numbers(&name, prefix, extension).map(|n| (name, n))).collect();
    found.sort_by_key(|(_, numbers)| *numbers);
    Ok(found)
}

fn numbers(name: &str, prefix: &str, extension: &str) -> Option<[u64; 3]> {
    let inner = name.strip_prefix(prefix)?.strip_prefix('-')?.strip_suffix(extension)?.strip_suffix('.')?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let numbers: Vec<u64> = inner.split('-').map(digits).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

/// A file that is being written. Removed when dropped before it is sealed: nobody would commit it.
#[derive(Debug)]
pub(crate) struct StagedFile {
    storage: Arc<dyn Storage>,
    file: BufWriter<Box<dyn WriteFile>>,
    path: PathBuf,
    name: String,
    bytes: u64,
    failed: Option<Error>,
    sealed: bool,
}

impl StagedFile {
    fn new(storage: Arc<dyn Storage>, file: Box<dyn WriteFile>, path: PathBuf, name: String) -> StagedFile {
        let file = BufWriter::with_capacity(256 << 10, file);
        StagedFile { storage, file, path, name, bytes: 0, failed: None, sealed: false }
    }

    /// Why writing failed, which an encoder in between may have made less clear.
    pub(crate) fn explain(&mut self, encoder: impl ToString) -> Error {
        let unexplained =
            || Error::internal(format!("encoding {}: {}", self.path.display(), encoder.to_string()));
        self.failed.clone().unwrap_or_else(unexplained)
    }

    fn seal(&mut self) -> Result<()> {
        self.flush()
            .and_then(|()| self.file.get_mut().sync())
            .map_err(|e| failed("writing", &self.path, &e))?;
        let found = look(&*self.storage, &self.path)?.map_or(0, |entry| entry.bytes);
        if found != self.bytes {
            return Err(wrong_length(&self.path, found, self.bytes));
        }
        self.sealed = true;
        Ok(())
    }

    fn noted<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(e) = &result {
            self.failed = Some(failed("writing", &self.path, e));
        }
        result
    }
}

impl Write for StagedFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer);
        let written = self.noted(written)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.file.flush();
        self.noted(flushed)
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.sealed {
            let _ = self.storage.remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_names_are_read_back_and_do_not_mix() {
        let name = part_name("part", [3, 12, 4_000_000], "parquet");
        assert_eq!(name, "part-00003-0012-4000000.parquet");
        assert_eq!(numbers(&name, "part", "parquet"), Some([3, 12, 4_000_000]));
        for (other, prefix) in [
            ("part-errors-1-2-3.parquet", "part"),
            ("part-1-2-3.parquet.tmp", "part"),
            ("part-1-2.parquet", "part"),
            ("part-1-2-3-4.parquet", "part"),
            ("part-1-2-+3.parquet", "part"),
            ("part-1-2-.parquet", "part"),
            ("part-1-2-3.parquet", "par"),
            ("part-1-2-3parquet", "part"),
        ] {
            assert_eq!(numbers(other, prefix, "parquet"), None, "{other}");
        }
    }

    #[test]
    fn a_prefix_is_a_plain_name() {
        for bad in ["", "-a", "_a", ".a", "a/b", "a b", "..", &"a".repeat(65)] {
            assert!(Target::new(Path::new("x"), bad, "parquet").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_record_cannot_lead_out_of_the_folder() {
        for (staged, part) in [("../x", "y"), ("x", "/etc/passwd"), ("", "y"), ("x", "..")] {
            let value = serde_json::json!({ "staged": staged, "part": part, "bytes": 0, "rows": 0 });
            assert!(record(&Staged(value)).is_err(), "{staged} {part}");
        }
        assert!(record(&Staged(serde_json::json!("another sink's"))).is_err());
    }

    /// `/dev/full` fails every write like a full disk.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_explained() {
        let full = Path::new("/dev/full");
        let file = std::fs::File::options().write(true).open(full).unwrap();
        let mut staged = StagedFile::new(Arc::new(Disk), Box::new(file), full.to_owned(), "x".into());
        staged.sealed = true; // Or else the drop would remove the device.
        assert!(staged.write_all(&vec![1; 1 << 20]).is_err());
        let error = staged.explain("some encoder's words");
        assert_eq!(error.kind(), pelton_core::Kind::Storage);
        for part in ["writing /dev/full", "No space left on device", "df -h /dev", "last checkpoint"] {
            assert!(error.message().contains(part), "{error}");
        }
    }
}
