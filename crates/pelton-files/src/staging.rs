//! Files that are written out of sight and appear, whole, under their final name.
//!
//! A part is written to `OUT/_staging/PREFIX-GENERATION-SUBTASK-N.EXT.tmp`, made durable, and renamed to
//! `OUT/PREFIX-GENERATION-SUBTASK-CHECKPOINT.EXT`. A rename is atomic, so whoever lists `OUT` sees whole parts only.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use pelton_core::{Error, Result};
use pelton_dataflow::sink::Staged;
use serde::{Deserialize, Serialize};

use crate::disk::{failed, sync_folder};

const STAGING: &str = "_staging";

/// Where parts go and how they are called.
#[derive(Clone, Debug)]
pub(crate) struct Target {
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
        Ok(Target { folder, prefix: prefix.to_owned(), extension })
    }

    pub(crate) fn describe(&self) -> String {
        format!("{}/{}-*.{}", self.folder.display(), self.prefix, self.extension)
    }

    /// Makes the folders, finds out whether they can be written, and removes what nobody will commit any more.
    pub(crate) fn start(&self, generation: u64, recorded: &[Staged]) -> Result<()> {
        if self.folder.exists() && !self.folder.is_dir() {
            return Err(Error::invalid(format!("output {} is a file; give a folder", self.folder.display())));
        }
        let staging = self.staging();
        fs::create_dir_all(&staging).map_err(|e| failed("making the output folder", &staging, &e))?;
        let probe = staging.join(format!(".probe-{}-{}", self.prefix, self.extension));
        fs::write(&probe, b"?")
            .and_then(|()| fs::remove_file(&probe))
            .map_err(|e| failed("writing to the output folder", &probe, &e))?;
        self.refuse_other_run(generation)?;
        self.discard(generation, recorded)?;
        sync_folder(&staging)?;
        sync_folder(&self.folder)?;
        self.folder.parent().map_or(Ok(()), sync_folder)
    }

    /// Removes the parts that checkpoints after this one have made visible.
    pub(crate) fn rewind(&self, checkpoint: u64) -> Result<()> {
        if !self.folder.is_dir() {
            return Ok(());
        }
        for (name, [.., covered_by]) in self.list(&self.folder, self.extension)? {
            if covered_by > checkpoint {
                let path = self.folder.join(name);
                fs::remove_file(&path).map_err(|e| failed("withdrawing", &path, &e))?;
            }
        }
        sync_folder(&self.folder)
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
                match fs::remove_file(&path) {
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
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(StagedFile::new(file, path, name)),
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
        sync_folder(&self.staging())?;
        let part = part_name(&self.prefix, [generation, u64::from(subtask), checkpoint], self.extension);
        let record = Record { staged: file.name.clone(), part, bytes: file.bytes, rows };
        Ok(Staged(serde_json::to_value(record).map_err(|e| Error::internal(e.to_string()))?))
    }

    pub(crate) fn commit(&self, staged: &[Staged]) -> Result<()> {
        for one in staged {
            self.publish(&record(one)?)?;
        }
        // Also where all were there already: whoever renamed them may have died before this.
        if staged.is_empty() { Ok(()) } else { sync_folder(&self.folder) }
    }

    fn publish(&self, record: &Record) -> Result<()> {
        let (staged, part) = (self.staging().join(&record.staged), self.folder.join(&record.part));
        let (waiting, there) = (length(&staged)?, length(&part)?);
        match (waiting, there) {
            (None, None) => Err(Error::storage(format!(
                "output {} is gone, and so is {} that was to become it: somebody removed files of a run that goes on; \
                 its rows are lost, so empty the folder and start again without checkpoints",
                part.display(),
                staged.display()
            ))),
            (None, Some(bytes)) if bytes == record.bytes => Ok(()),
            (None, Some(bytes)) => Err(wrong_length(&part, bytes, record.bytes)),
            (Some(_), Some(_)) => Err(Error::storage(format!(
                "output {} exists and is not the one of this run, which waits in {}: two runs write into one folder; \
                 move the first away or give this run a folder of its own",
                part.display(),
                staged.display()
            ))),
            (Some(bytes), None) if bytes == record.bytes => match fs::rename(&staged, &part) {
                // Somebody else commits the same at this moment.
                Err(e) if e.kind() == ErrorKind::NotFound && length(&part)? == Some(record.bytes) => Ok(()),
                done => done.map_err(|e| failed("renaming to", &part, &e)),
            },
            (Some(bytes), None) => Err(wrong_length(&staged, bytes, record.bytes)),
        }
    }

    fn staging(&self) -> PathBuf {
        self.folder.join(STAGING)
    }

    fn staged_extension(&self) -> String {
        format!("{}.tmp", self.extension)
    }

    fn list(&self, folder: &Path, extension: &str) -> Result<Vec<(String, [u64; 3])>> {
        parts(folder, &self.prefix, extension).map_err(|e| failed("listing", folder, &e))
    }
}

fn wrong_length(path: &Path, found: u64, expected: u64) -> Error {
    Error::storage(format!(
        "output {} has {found} bytes and was written with {expected}: the disk lost some, or somebody changed it; empty \
         the folder and start again without checkpoints",
        path.display()
    ))
}

fn length(path: &Path) -> Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("looking at", path, &e)),
    }
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
pub(crate) fn parts(folder: &Path, prefix: &str, extension: &str) -> io::Result<Vec<(String, [u64; 3])>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        found.extend(numbers(name, prefix, extension).map(|n| (name.to_owned(), n)));
    }
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
    file: BufWriter<File>,
    path: PathBuf,
    name: String,
    bytes: u64,
    failed: Option<Error>,
    sealed: bool,
}

impl StagedFile {
    fn new(file: File, path: PathBuf, name: String) -> StagedFile {
        let file = BufWriter::with_capacity(256 << 10, file);
        StagedFile { file, path, name, bytes: 0, failed: None, sealed: false }
    }

    /// Why writing failed, which an encoder in between may have made less clear.
    pub(crate) fn explain(&mut self, encoder: impl ToString) -> Error {
        let unexplained =
            || Error::internal(format!("encoding {}: {}", self.path.display(), encoder.to_string()));
        self.failed.clone().unwrap_or_else(unexplained)
    }

    fn seal(&mut self) -> Result<()> {
        self.flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .map_err(|e| failed("writing", &self.path, &e))?;
        match length(&self.path)? {
            Some(bytes) if bytes == self.bytes => {}
            found => return Err(wrong_length(&self.path, found.unwrap_or(0), self.bytes)),
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
            let _ = fs::remove_file(&self.path);
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
        let file = OpenOptions::new().write(true).open(full).unwrap();
        let mut staged = StagedFile::new(file, full.to_owned(), "x".into());
        staged.sealed = true; // Or else the drop would remove the device.
        assert!(staged.write_all(&vec![1; 1 << 20]).is_err());
        let error = staged.explain("some encoder's words");
        assert_eq!(error.kind(), pelton_core::Kind::Storage);
        for part in ["writing /dev/full", "No space left on device", "df -h /dev", "last checkpoint"] {
            assert!(error.message().contains(part), "{error}");
        }
    }
}
