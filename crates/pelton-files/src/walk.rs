//! Which files are there?

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use pelton_core::id::stable_hash;
use pelton_core::{Error, Result};
use pelton_dataflow::source::Split;
use pelton_env::storage::failed;

use crate::filter::Filter;
use crate::name;
use crate::selection::Selection;

/// A selection that was checked.
#[derive(Debug)]
pub(crate) struct Files {
    inputs: Vec<PathBuf>,
    skip: Vec<PathBuf>,
    filter: Filter,
}

impl Files {
    pub(crate) fn new(selection: &Selection) -> Result<Files> {
        if selection.inputs.is_empty() {
            return Err(Error::invalid("no input: name a folder or a file to read"));
        }
        let absolute = |p: &PathBuf| {
            std::path::absolute(p).map_err(|e| Error::invalid(format!("input `{}`: {e}", p.display())))
        };
        Ok(Files {
            inputs: selection.inputs.iter().map(absolute).collect::<Result<_>>()?,
            skip: selection.skip.clone(),
            filter: Filter::new(selection)?,
        })
    }

    pub(crate) fn describe(&self) -> String {
        let inputs: Vec<String> = self.inputs.iter().take(3).map(|i| i.display().to_string()).collect();
        let more = match self.inputs.len() {
            0..=3 => String::new(),
            n => format!(" and {} more", n - 3),
        };
        format!("{}{more}{}", inputs.join(", "), self.filter)
    }

    /// What uris are relative to.
    pub(crate) fn base(&self) -> PathBuf {
        let folder = |input: &PathBuf| match (input.is_file(), input.parent()) {
            (true, Some(parent)) => parent.to_owned(),
            _ => input.clone(),
        };
        let mut folders = self.inputs.iter().map(folder);
        let mut base = folders.next().unwrap_or_default();
        for folder in folders {
            while !folder.starts_with(&base) && base.pop() {}
        }
        base
    }

    /// All files that match, in the order of their uris; fails if there are none.
    pub(crate) fn splits(&self) -> Result<Vec<Split>> {
        let mut walk = Walk {
            base: self.base(),
            filter: &self.filter,
            skip: self.skip.iter().filter_map(|s| fs::canonicalize(s).ok()).collect(),
            seen: BTreeSet::new(),
            folders: Vec::new(),
            links: BTreeSet::new(),
            splits: Vec::new(),
        };
        for input in &self.inputs {
            walk.input(input)?;
        }
        walk.run();
        let mut splits = walk.splits;
        splits.sort_by(|a, b| a.uri.cmp(&b.uri));
        splits.dedup_by(|a, b| a.uri == b.uri);
        if splits.is_empty() {
            return Err(Error::invalid(format!("no file{} in {}", self.filter, self.describe_inputs())));
        }
        distinct(&splits)?;
        Ok(splits)
    }

    fn describe_inputs(&self) -> String {
        let inputs: Vec<String> = self.inputs.iter().map(|i| i.display().to_string()).collect();
        format!("{} (hidden files are left out)", inputs.join(", "))
    }
}

/// Splits are told apart by a hash of 64 bits; that two share one is next to impossible, and must not lose a file.
fn distinct(splits: &[Split]) -> Result<()> {
    let mut ids: Vec<(u64, &str)> = splits.iter().map(|s| (s.id, s.uri.as_str())).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|w| w[0].0 == w[1].0) {
        Some(w) => Err(Error::limit(format!("`{}` and `{}` have the same hash; rename one", w[0].1, w[1].1))),
        None => Ok(()),
    }
}

/// A file's version: `SIZE-NANOSECONDS`, its size and when it was modified.
pub fn version(metadata: &Metadata) -> String {
    let modified = metadata.modified().ok().and_then(|m| m.duration_since(UNIX_EPOCH).ok());
    format!("{}-{}", metadata.len(), modified.map_or(0, |m| m.as_nanos()))
}

struct Walk<'a> {
    base: PathBuf,
    filter: &'a Filter,
    /// Canonical paths.
    skip: BTreeSet<PathBuf>,
    /// Canonical paths of folders.
    seen: BTreeSet<PathBuf>,
    folders: Vec<Folder>,
    /// Links to folders, followed once all real folders are seen: what is there twice gets its real name.
    links: BTreeSet<PathBuf>,
    splits: Vec<Split>,
}

struct Folder {
    path: PathBuf,
    canonical: PathBuf,
}

impl Walk<'_> {
    fn input(&mut self, input: &Path) -> Result<()> {
        let unusable = |e: &io::Error| Error::invalid(failed("input", input, e).message());
        let metadata = fs::metadata(input).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                Error::invalid(format!("input {}: no such folder or file", input.display()))
            }
            _ => unusable(&e),
        })?;
        if metadata.is_dir() {
            // Unreadable below is a bad row; unreadable as a whole is nothing to start a job with.
            fs::read_dir(input).map_err(|e| unusable(&e))?;
            let canonical = fs::canonicalize(input).map_err(|e| unusable(&e))?;
            self.folder(input.to_owned(), canonical);
        } else if metadata.is_file() {
            self.file(input, Some(&metadata));
        } else {
            return Err(Error::invalid(format!("input {}: neither a folder nor a file", input.display())));
        }
        Ok(())
    }

    fn run(&mut self) {
        loop {
            while let Some(folder) = self.folders.pop() {
                if self.list(&folder).is_err() {
                    // The reader of this split finds the same and says so.
                    self.push(&folder.path, 0, String::new());
                }
            }
            let Some(link) = self.links.pop_first() else {
                return;
            };
            let Ok(target) = fs::canonicalize(&link) else {
                continue;
            };
            // A link to a folder that it lies in goes round in a circle.
            let place = link.parent().and_then(|p| fs::canonicalize(p).ok());
            if !place.is_some_and(|p| p.starts_with(&target)) {
                self.folder(link, target);
            }
        }
    }

    fn folder(&mut self, path: PathBuf, canonical: PathBuf) {
        if !self.skip.contains(&canonical) && self.seen.insert(canonical.clone()) {
            self.folders.push(Folder { path, canonical });
        }
    }

    fn list(&mut self, folder: &Folder) -> io::Result<()> {
        for entry in fs::read_dir(&folder.path)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let (path, canonical) = (folder.path.join(&name), folder.canonical.join(&name));
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.folder(path, canonical);
            } else if kind.is_symlink() {
                self.link(path);
            } else if kind.is_file() && self.matches(&path) && !self.skip.contains(&canonical) {
                self.file(&path, entry.metadata().ok().as_ref());
            }
        }
        Ok(())
    }

    fn link(&mut self, path: PathBuf) {
        match fs::metadata(&path) {
            Ok(target) if target.is_dir() => {
                self.links.insert(path);
            }
            Ok(target) if target.is_file() => {
                let skipped = fs::canonicalize(&path).is_ok_and(|c| self.skip.contains(&c));
                if self.matches(&path) && !skipped {
                    self.file(&path, Some(&target));
                }
            }
            Ok(_) => {}
            // It leads nowhere: its reader says so.
            Err(_) if self.matches(&path) => self.file(&path, None),
            Err(_) => {}
        }
    }

    fn matches(&self, path: &Path) -> bool {
        self.filter.takes(path, &name::uri(&self.base, path))
    }

    fn file(&mut self, path: &Path, metadata: Option<&Metadata>) {
        let Some(metadata) = metadata else {
            return self.push(path, 0, String::new());
        };
        self.push(path, metadata.len(), version(metadata));
    }

    fn push(&mut self, path: &Path, bytes: u64, version: String) {
        let uri = name::uri(&self.base, path);
        self.splits.push(Split { id: stable_hash(&uri), uri, bytes, version });
    }
}
