//! Where things are, and how a folder gets there whole.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

pub(crate) struct Places {
    pub(crate) root: PathBuf,
}

impl Places {
    pub(crate) fn of_this_workspace() -> Places {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        Places { root: here.parent().unwrap_or(here).to_owned() }
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.root.join(".cache")
    }

    /// The sentence model: model.safetensors, config.json, tokenizer.json.
    pub(crate) fn model(&self) -> PathBuf {
        self.cache().join("models/all-minilm-l6-v2")
    }

    /// Images of digits as PNG, with labels.json.
    pub(crate) fn digits(&self) -> PathBuf {
        self.cache().join("digits/images")
    }

    fn unfinished(&self) -> PathBuf {
        self.cache().join("tmp")
    }

    /// A folder to build something in, beside its final place, so that a rename moves it there.
    pub(crate) fn temporary(&self) -> Result<TempDir> {
        let folder = self.unfinished();
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        tempfile::tempdir_in(&folder).with_context(|| format!("making a folder in {}", folder.display()))
    }

    /// Removes what an interrupted run left. Only under the set-up's lock.
    pub(crate) fn remove_unfinished(&self) -> Result<()> {
        remove(&self.unfinished())
    }
}

/// Removes a folder, which may not exist.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Moves a finished folder to its final place, where an older one makes way.
pub(crate) fn publish(finished: &Path, place: &Path) -> Result<()> {
    let moving = || format!("moving {} to {}", finished.display(), place.display());
    remove(place)?;
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).with_context(moving)?;
    }
    fs::rename(finished, place).with_context(moving)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_published_whole_and_replaces_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { root: dir.path().to_owned() };
        for content in ["one", "two"] {
            let temporary = places.temporary().unwrap();
            let finished = temporary.path().join("finished");
            fs::create_dir(&finished).unwrap();
            fs::write(finished.join(content), content).unwrap();
            publish(&finished, &places.model()).unwrap();
            let names: Vec<_> =
                fs::read_dir(places.model()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(names, [content]);
        }
        fs::write(places.temporary().unwrap().keep().join("left by an interrupted run"), "").unwrap();
        places.remove_unfinished().unwrap();
        places.remove_unfinished().unwrap();
        assert!(!places.unfinished().exists());
    }
}
