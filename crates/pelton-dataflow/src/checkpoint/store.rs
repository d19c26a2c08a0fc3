//! Checkpoints in a local folder.
//!
//! `checkpoint-000012/` holds the rows and state of all subtasks in one file, and `manifest.json`, which is put there last,
//! under a name that must not exist, and makes it complete. `committed` says, to people, that its outputs are visible: a
//! restart makes them visible anyhow.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use pelton_core::{Error, Result};
use sha2::{Digest, Sha256};

use super::encode::{decode, encode};
use super::fence::Fence;
use super::manifest::{Manifest, Part, Piece, VERSION};
use crate::subtask::state::State;

const CHECKPOINT: &str = "checkpoint-";
const MANIFEST: &str = "manifest.json";
const COMMITTED: &str = "committed";
/// Names the checkpoint that the job is going back to, until all that came after it is withdrawn.
const REWIND: &str = "rewind";
/// Complete checkpoints that are kept.
const KEPT: usize = 2;

pub(crate) struct Store {
    folder: PathBuf,
    fence: Fence,
}

/// A checkpoint that was read back: parts by stage.
pub(crate) struct Loaded {
    pub(crate) manifest: Manifest,
    pub(crate) parts: BTreeMap<String, Vec<State>>,
}

impl Store {
    /// Takes the folder over, and makes it where it is missing. What is incomplete in it is removed.
    pub(crate) fn open(folder: &Path) -> Result<Store> {
        fs::create_dir_all(folder).map_err(at("creating", folder))?;
        let fence = Fence::raise(folder)?;
        let store = Store { folder: folder.to_owned(), fence };
        for number in store.numbers()? {
            if !store.path(number).join(MANIFEST).exists() {
                store.remove(number)?;
            }
        }
        Ok(store)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.fence.generation
    }

    /// Forgets all checkpoints.
    pub(crate) fn clear(&self) -> Result<()> {
        if self.rewinding()?.is_some() {
            self.end_rewind(0)?;
        }
        self.numbers()?.into_iter().try_for_each(|n| self.remove(n))
    }

    /// Notes that the job goes back to a checkpoint: a run that is killed on the way is followed by one that goes on with it.
    pub(crate) fn begin_rewind(&self, number: u64) -> Result<()> {
        let (path, whole) = (self.folder.join("rewind.tmp"), self.folder.join(REWIND));
        write_synced(&path, number.to_string().as_bytes())?;
        fs::rename(&path, &whole).map_err(at("writing", &whole))?;
        sync_folder(&self.folder)
    }

    /// The checkpoint that a run before this one was going back to.
    pub(crate) fn rewinding(&self) -> Result<Option<u64>> {
        let path = self.folder.join(REWIND);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let damaged = |_| {
                    Error::storage(format!(
                        "{} is damaged; remove it, or start anew with --fresh",
                        path.display()
                    ))
                };
                text.parse().map(Some).map_err(damaged)
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(at("reading", &path)(e)),
        }
    }

    /// Sinks have withdrawn what came after it; now the checkpoints after it go, and the note last.
    pub(crate) fn end_rewind(&self, number: u64) -> Result<()> {
        self.numbers()?.into_iter().filter(|n| *n > number).try_for_each(|n| self.remove(n))?;
        let path = self.folder.join(REWIND);
        fs::remove_file(&path).map_err(at("removing", &path))
    }

    /// The numbers of all checkpoints, rising.
    pub(crate) fn numbers(&self) -> Result<Vec<u64>> {
        let names = names(&self.folder)?;
        let mut numbers: Vec<u64> =
            names.iter().filter_map(|n| n.strip_prefix(CHECKPOINT)?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Reads a checkpoint and checks every byte of it. One that is damaged is refused, and another one is named.
    pub(crate) fn load(&self, number: u64) -> Result<Loaded> {
        let path = self.path(number);
        self.read(&path).map_err(|e| {
            let before = self.numbers().unwrap_or_default().into_iter().rfind(|n| *n < number);
            let next = match before {
                Some(n) => format!(
                    "go back to checkpoint {n} (--from-checkpoint {n}; what was done since is done again), or start anew with \
                     --fresh"
                ),
                None => "there is none before it; start anew with --fresh".to_owned(),
            };
            Error::storage(format!("checkpoint {number} in {} cannot be restored: {e}; {next}", self.folder.display()))
        })
    }

    fn read(&self, path: &Path) -> Result<Loaded> {
        let file = path.join(MANIFEST);
        let json = fs::read(&file).map_err(at("reading", &file))?;
        let version = serde_json::from_slice::<serde_json::Value>(&json).ok();
        let version = version.and_then(|v| v.get("version")?.as_u64());
        if version.is_some_and(|v| v != u64::from(VERSION)) {
            return Err(Error::storage(format!(
                "it has layout version {}, this program knows {VERSION}",
                version.unwrap_or_default()
            )));
        }
        let manifest: Manifest = serde_json::from_slice(&json)
            .map_err(|e| Error::storage(format!("its manifest {} is damaged: {e}", file.display())))?;
        let mut parts: BTreeMap<String, Vec<State>> = BTreeMap::new();
        let rows = path.join(&manifest.rows);
        let mut file = File::open(&rows).map_err(at("opening", &rows))?;
        for part in &manifest.parts {
            let mut pieces = BTreeMap::new();
            for piece in &part.pieces {
                pieces.insert(piece.name.clone(), read_checked(&mut file, &rows, piece)?);
            }
            parts.entry(part.stage.clone()).or_default().push(decode(pieces)?);
        }
        Ok(Loaded { manifest, parts })
    }

    /// Makes a checkpoint durable, or fails and leaves none. `parts` have the head of their stage. Says how big it is.
    pub(crate) fn write(&self, mut manifest: Manifest, parts: &[(String, State)]) -> Result<u64> {
        let path = self.path(manifest.number);
        fs::create_dir_all(&path).map_err(at("creating", &path))?;
        // The generation keeps a process that was fenced off from writing into our file.
        manifest.rows = format!("g{}-rows", manifest.generation);
        let total = write_rows(&path.join(&manifest.rows), &mut manifest.parts, parts)?;
        self.fence.check()?;
        let json =
            serde_json::to_vec_pretty(&manifest).map_err(|e| Error::internal(format!("manifest: {e}")))?;
        let draft = path.join(format!("g{}-{MANIFEST}", manifest.generation));
        write_synced(&draft, &json)?;
        sync_folder(&path)?;
        let target = path.join(MANIFEST);
        // A link is made only where nothing has the name yet.
        fs::hard_link(&draft, &target).map_err(at("completing", &target))?;
        fs::remove_file(&draft).map_err(at("removing", &draft))?;
        sync_folder(&path)?;
        sync_folder(&self.folder)?;
        Ok(total)
    }

    /// Its outputs are visible.
    pub(crate) fn mark_committed(&self, number: u64) -> Result<()> {
        let path = self.path(number).join(COMMITTED);
        fs::write(&path, b"").map_err(at("writing", &path))
    }

    /// Removes all but the newest ones.
    pub(crate) fn collect(&self) -> Result<()> {
        let numbers = self.numbers()?;
        numbers.iter().rev().skip(KEPT).try_for_each(|n| self.remove(*n))
    }

    fn remove(&self, number: u64) -> Result<()> {
        let path = self.path(number);
        // Without its manifest it is none any more, wherever this is cut off.
        match fs::remove_file(path.join(MANIFEST)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(at("removing", &path.join(MANIFEST))(e)),
            _ => {}
        }
        fs::remove_dir_all(&path).map_err(at("removing", &path))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{CHECKPOINT}{number:06}"))
    }
}

/// Writes the pieces of all parts one behind the other, and notes where. Says how many bytes that is.
fn write_rows(path: &Path, noted: &mut Vec<Part>, parts: &[(String, State)]) -> Result<u64> {
    let mut file = File::create(path).map_err(at("creating", path))?;
    let mut offset = 0;
    for (stage, state) in parts {
        let mut pieces = Vec::new();
        for (name, content) in encode(state)? {
            file.write_all(&content).map_err(at("writing", path))?;
            let bytes = content.len() as u64;
            pieces.push(Piece { name, offset, bytes, sha256: digest(&content) });
            offset += bytes;
        }
        noted.push(Part { stage: stage.clone(), pieces });
    }
    file.sync_all().map_err(at("writing", path))?;
    Ok(offset)
}

fn read_checked(file: &mut File, path: &Path, piece: &Piece) -> Result<Vec<u8>> {
    let size = file.metadata().map_err(at("reading", path))?.len();
    // Before anything is allocated: a damaged manifest may say any number.
    if piece.offset.checked_add(piece.bytes).is_none_or(|end| end > size) {
        return Err(Error::storage(format!(
            "{} has {size} bytes, `{}` lies behind its end",
            path.display(),
            piece.name
        )));
    }
    file.seek(SeekFrom::Start(piece.offset)).map_err(at("reading", path))?;
    let mut content = vec![0; piece.bytes as usize];
    file.read_exact(&mut content).map_err(at("reading", path))?;
    if digest(&content) != piece.sha256 {
        let (path, name) = (path.display(), &piece.name);
        return Err(Error::storage(format!(
            "{path} is damaged: the SHA-256 of `{name}` differs from the manifest's"
        )));
    }
    Ok(content)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(at("writing", path))
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(at("syncing", folder))
}

pub(super) fn names(folder: &Path) -> Result<Vec<String>> {
    let read = || fs::read_dir(folder)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect();
    let names: io::Result<Vec<String>> = read();
    names.map_err(at("reading", folder))
}

/// What was being done to what when storage failed.
pub(super) fn at<'a>(doing: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |e| Error::storage(format!("{doing} {}: {e}", path.display()))
}
