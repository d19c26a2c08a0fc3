//! One checkpoint in a folder: the rows and state of all subtasks in a file, what has not changed since earlier checkpoints in further names of
//! theirs, and a manifest that makes it complete.
//!
//! The manifest is put there last, under a name that must not exist, when all that it speaks of is durable.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use pelton_core::{Error, Result};
use pelton_env::Storage;
use pelton_env::storage::{WriteFile, failed, sync_folder, write_synced};

use super::encode::{decode, encode};
use super::manifest::{Manifest, Part, Piece, VERSION};
use super::reuse::Reusable;
use super::seal::{self, digest};
use crate::subtask::state::State;

pub(crate) const MANIFEST: &str = "manifest.json";

/// A checkpoint that was read back: parts by stage.
pub(crate) struct Loaded {
    pub(crate) manifest: Manifest,
    pub(crate) parts: BTreeMap<String, Vec<State>>,
}

/// An earlier checkpoint, and what can be used of it.
pub(crate) struct Earlier {
    pub(crate) folder: PathBuf,
    pub(crate) pieces: Reusable,
}

/// How big a checkpoint is, and how much of it was written for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    pub(crate) new: u64,
}

/// What was written, and what can be used of it.
pub(crate) struct Written {
    pub(crate) size: Size,
    pub(crate) pieces: Reusable,
}

/// Makes a checkpoint durable, or fails and leaves none; the folder's own name is the caller's. `parts` have the head of their
/// stage. `check` is asked last, before it counts.
pub(crate) fn write(
    storage: &dyn Storage,
    folder: &Path,
    mut manifest: Manifest,
    parts: &[(String, State)],
    earlier: Option<&Earlier>,
    check: impl FnOnce() -> Result<()>,
) -> Result<Written> {
    match storage.create_folder(folder) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        made => made.map_err(|e| failed("making the folder", folder, &e))?,
    }
    let mut writing = Writing::begin(storage, folder, &manifest, earlier)?;
    for (stage, state) in parts {
        let mut pieces = Vec::new();
        encode(state, |name, content| writing.put(name, &content).map(|piece| pieces.push(piece)))?;
        manifest.parts.push(Part { stage: stage.clone(), pieces });
    }
    let sizes = writing.end(&mut manifest)?;
    check()?;
    let json = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::internal(format!("manifest: {e}")))?;
    let draft = folder.join(format!("g{}-{MANIFEST}", manifest.generation));
    write_synced(storage, &draft, &seal::seal(&json))?;
    // The names of the files: were the manifest's to survive without them, the checkpoint would seem complete.
    sync_folder(storage, folder)?;
    let target = folder.join(MANIFEST);
    // A link is made only where nothing has the name yet.
    storage.hard_link(&draft, &target).map_err(|e| failed("completing", &target, &e))?;
    storage.remove_file(&draft).map_err(|e| failed("removing", &draft, &e))?;
    sync_folder(storage, folder)?;
    let bytes = manifest.parts.iter().flat_map(|part| &part.pieces).map(|piece| piece.bytes).sum();
    let new = sizes.last().copied().unwrap_or(0);
    Ok(Written { size: Size { bytes, new }, pieces: Reusable::of(&manifest, &sizes) })
}

/// The files of a checkpoint that is being written.
struct Writing<'a> {
    storage: &'a dyn Storage,
    folder: &'a Path,
    earlier: Option<&'a Earlier>,
    /// Of earlier checkpoints, with their sizes, in the order in which they were needed.
    shared: Vec<(String, u64)>,
    /// The new one.
    name: String,
    file: Box<dyn WriteFile>,
    bytes: u64,
}

/// Stands for the new file until it is known how many others there are.
const NEW: usize = usize::MAX;

impl<'a> Writing<'a> {
    fn begin(
        storage: &'a dyn Storage,
        folder: &'a Path,
        manifest: &Manifest,
        earlier: Option<&'a Earlier>,
    ) -> Result<Self> {
        // The number keeps it apart from the files of other checkpoints, and the generation a process that was fenced off from writing into it.
        let name = format!("g{}-rows-{:06}", manifest.generation, manifest.number);
        let path = folder.join(&name);
        let file = storage.create(&path).map_err(|e| failed("making", &path, &e))?;
        Ok(Writing { storage, folder, earlier, shared: Vec::new(), name, file, bytes: 0 })
    }

    /// Puts a piece into the new file, unless an earlier one has it.
    fn put(&mut self, name: String, content: &[u8]) -> Result<Piece> {
        let (bytes, sha256) = (content.len() as u64, digest(content));
        let there = self.earlier.and_then(|e| Some((e, e.pieces.find(&sha256, bytes)?)));
        if let Some((earlier, (file, offset))) = there {
            let file = self.share(&earlier.folder, file)?;
            return Ok(Piece { name, file, offset: *offset, bytes, sha256 });
        }
        self.file.write_all(content).map_err(|e| failed("writing", &self.folder.join(&self.name), &e))?;
        let offset = self.bytes;
        self.bytes += bytes;
        Ok(Piece { name, file: NEW, offset, bytes, sha256 })
    }

    /// The place of an earlier file among ours, under the same name in our folder.
    fn share(&mut self, earlier: &Path, name: &str) -> Result<usize> {
        if let Some(at) = self.shared.iter().position(|(shared, _)| shared == name) {
            return Ok(at);
        }
        let (from, to) = (earlier.join(name), self.folder.join(name));
        match self.storage.hard_link(&from, &to) {
            // An attempt at this checkpoint got so far, and no further.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            linked => linked.map_err(|e| failed("sharing", &from, &e))?,
        }
        self.shared.push((name.to_owned(), size(self.storage, &to)?));
        Ok(self.shared.len() - 1)
    }

    /// Makes the new file durable, and notes all of them. Says how long they are.
    fn end(mut self, manifest: &mut Manifest) -> Result<Vec<u64>> {
        self.file.sync().map_err(|e| failed("writing", &self.folder.join(&self.name), &e))?;
        let new = self.shared.len();
        let pieces = manifest.parts.iter_mut().flat_map(|part| &mut part.pieces);
        pieces.filter(|piece| piece.file == NEW).for_each(|piece| piece.file = new);
        self.shared.push((self.name, self.bytes));
        let (files, sizes) = self.shared.into_iter().unzip();
        manifest.files = files;
        Ok(sizes)
    }
}

fn size(storage: &dyn Storage, path: &Path) -> Result<u64> {
    let looked = storage.look(path).map_err(|e| failed("looking at", path, &e))?;
    Ok(looked.ok_or_else(|| Error::storage(format!("{} is missing", path.display())))?.bytes)
}

/// Whether there is a manifest: without one, it is no checkpoint.
pub(crate) fn is_complete(storage: &dyn Storage, folder: &Path) -> Result<bool> {
    let path = folder.join(MANIFEST);
    Ok(storage.look(&path).map_err(|e| failed("looking at", &path, &e))?.is_some())
}

/// Reads a checkpoint and checks every byte of it. With what can be used of it for the next one.
pub(crate) fn read(storage: &dyn Storage, folder: &Path) -> Result<(Loaded, Reusable)> {
    let manifest = read_manifest(storage, &folder.join(MANIFEST))?;
    let mut parts: BTreeMap<String, Vec<State>> = BTreeMap::new();
    let files: Vec<PathBuf> = manifest.files.iter().map(|name| folder.join(name)).collect();
    let sizes = files.iter().map(|path| size(storage, path)).collect::<Result<Vec<u64>>>()?;
    for part in &manifest.parts {
        let mut pieces = Vec::new();
        for piece in &part.pieces {
            let file = files.get(piece.file).zip(sizes.get(piece.file));
            let (path, size) =
                file.ok_or_else(|| Error::storage(format!("the manifest has no file {}", piece.file)))?;
            pieces.push((piece.name.clone(), read_checked(storage, path, *size, piece)?));
        }
        parts.entry(part.stage.clone()).or_default().push(decode(pieces)?);
    }
    let reusable = Reusable::of(&manifest, &sizes);
    Ok((Loaded { manifest, parts }, reusable))
}

fn read_manifest(storage: &dyn Storage, path: &Path) -> Result<Manifest> {
    let bytes = storage.read(path).map_err(|e| failed("reading", path, &e))?;
    let unknown = |json: &[u8]| {
        let value: serde_json::Value = serde_json::from_slice(json).ok()?;
        let version = value.get("version")?.as_u64().filter(|v| *v != u64::from(VERSION))?;
        Some(Error::storage(format!("it has layout version {version}, this program knows {VERSION}")))
    };
    // Version 1 had no seal.
    let json = seal::open(path, &bytes).map_err(|damaged| unknown(&bytes).unwrap_or(damaged))?;
    if let Some(error) = unknown(json) {
        return Err(error);
    }
    serde_json::from_slice(json)
        .map_err(|e| Error::storage(format!("{} says something else than a manifest: {e}", path.display())))
}

fn read_checked(storage: &dyn Storage, path: &Path, size: u64, piece: &Piece) -> Result<Vec<u8>> {
    let shown = path.display();
    // Before anything is allocated: the file may have been cut.
    if piece.offset.checked_add(piece.bytes).is_none_or(|end| end > size) {
        return Err(Error::storage(format!(
            "{shown} is damaged: it has {size} bytes, `{}` lies behind its end",
            piece.name
        )));
    }
    let content = storage.read_at(path, piece.offset, piece.bytes as usize);
    let content = content.map_err(|e| failed("reading", path, &e))?;
    if digest(&content) != piece.sha256 {
        let name = &piece.name;
        return Err(Error::storage(format!(
            "{shown} is damaged: the SHA-256 of `{name}` differs from the manifest's"
        )));
    }
    Ok(content)
}
