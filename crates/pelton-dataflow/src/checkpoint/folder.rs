//! One checkpoint in a folder: the rows and state of all subtasks in one file, and a manifest that makes it complete.
//!
//! The manifest is put there last, under a name that must not exist, when all that it speaks of is durable.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::Path;

use pelton_core::{Error, Result};
use pelton_env::Storage;
use pelton_env::storage::{failed, sync_folder, write_synced};

use super::encode::{decode, encode};
use super::manifest::{Manifest, Part, Piece, VERSION};
use super::seal::{self, digest};
use crate::subtask::state::State;

pub(crate) const MANIFEST: &str = "manifest.json";

/// A checkpoint that was read back: parts by stage.
pub(crate) struct Loaded {
    pub(crate) manifest: Manifest,
    pub(crate) parts: BTreeMap<String, Vec<State>>,
}

/// Makes a checkpoint durable, or fails and leaves none; the folder's own name is the caller's. `parts` have the head of their
/// stage. `check` is asked last, before it counts. Says how big it is.
pub(crate) fn write(
    storage: &dyn Storage,
    folder: &Path,
    mut manifest: Manifest,
    parts: &[(String, State)],
    check: impl FnOnce() -> Result<()>,
) -> Result<u64> {
    match storage.create_folder(folder) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        made => made.map_err(|e| failed("making the folder", folder, &e))?,
    }
    // The generation keeps a process that was fenced off from writing into our file.
    manifest.rows = format!("g{}-rows", manifest.generation);
    let total = write_rows(storage, &folder.join(&manifest.rows), &mut manifest.parts, parts)?;
    check()?;
    let json = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::internal(format!("manifest: {e}")))?;
    let draft = folder.join(format!("g{}-{MANIFEST}", manifest.generation));
    write_synced(storage, &draft, &seal::seal(&json))?;
    // The name of the rows file: were the manifest's to survive without it, the checkpoint would seem complete.
    sync_folder(storage, folder)?;
    let target = folder.join(MANIFEST);
    // A link is made only where nothing has the name yet.
    storage.hard_link(&draft, &target).map_err(|e| failed("completing", &target, &e))?;
    storage.remove_file(&draft).map_err(|e| failed("removing", &draft, &e))?;
    sync_folder(storage, folder)?;
    Ok(total)
}

/// Whether there is a manifest: without one, it is no checkpoint.
pub(crate) fn is_complete(storage: &dyn Storage, folder: &Path) -> Result<bool> {
    let path = folder.join(MANIFEST);
    Ok(storage.look(&path).map_err(|e| failed("looking at", &path, &e))?.is_some())
}

/// Reads a checkpoint and checks every byte of it.
pub(crate) fn read(storage: &dyn Storage, folder: &Path) -> Result<Loaded> {
    let manifest = read_manifest(storage, &folder.join(MANIFEST))?;
    let mut parts: BTreeMap<String, Vec<State>> = BTreeMap::new();
    let rows = folder.join(&manifest.rows);
    let looked = storage.look(&rows).map_err(|e| failed("looking at", &rows, &e))?;
    let size = looked.ok_or_else(|| Error::storage(format!("{} is missing", rows.display())))?.bytes;
    for part in &manifest.parts {
        let mut pieces = BTreeMap::new();
        for piece in &part.pieces {
            pieces.insert(piece.name.clone(), read_checked(storage, &rows, size, piece)?);
        }
        parts.entry(part.stage.clone()).or_default().push(decode(pieces)?);
    }
    Ok(Loaded { manifest, parts })
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

/// Writes the pieces of all parts one behind the other, and notes where. Says how many bytes that is.
fn write_rows(
    storage: &dyn Storage,
    path: &Path,
    noted: &mut Vec<Part>,
    parts: &[(String, State)],
) -> Result<u64> {
    let mut file = storage.create(path).map_err(|e| failed("making", path, &e))?;
    let mut offset = 0;
    for (stage, state) in parts {
        let mut pieces = Vec::new();
        for (name, content) in encode(state)? {
            file.write_all(&content).map_err(|e| failed("writing", path, &e))?;
            let bytes = content.len() as u64;
            pieces.push(Piece { name, offset, bytes, sha256: digest(&content) });
            offset += bytes;
        }
        noted.push(Part { stage: stage.clone(), pieces });
    }
    file.sync().map_err(|e| failed("writing", path, &e))?;
    Ok(offset)
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
