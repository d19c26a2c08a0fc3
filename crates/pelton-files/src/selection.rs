//! Which files a source reads: settings.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Which files to read. Hidden files and folders (a name that begins with a dot) below an input are left out; links are
/// followed, but never in circles, and no folder is read twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// Folders, with all that is below them, and single files. A file that is named here is read whatever the filters say.
    ///
    /// A row's uri is the path relative to the input (for a file: to its folder); with several inputs, relative to
    /// the deepest folder that holds them all.
    pub inputs: Vec<PathBuf>,
    /// Extensions without a dot, upper and lower case alike; empty for all.
    pub extensions: Vec<String>,
    /// Patterns with `*`, `?`, `[a-z]` and `**`; a file that matches any of them is read; empty for all. A pattern
    /// without a `/` is held against the file's name, one with a `/` against the whole uri.
    pub globs: Vec<String>,
    /// Patterns as in `globs`; a file that matches any of them is left out.
    pub exclude: Vec<String>,
    /// Folders and files that are left out: the output, say, where it lies below an input.
    pub skip: Vec<PathBuf>,
}

impl Selection {
    /// Everything in these folders and files.
    pub fn all(inputs: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Selection { inputs: inputs.into_iter().map(Into::into).collect(), ..Selection::default() }
    }
}
