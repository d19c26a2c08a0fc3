//! Sources and sinks with every setting at its default.

use std::path::PathBuf;

use pelton_core::Result;
use pelton_files::{Folder, JsonLines, Lines, Parquet, Selection, folder, lines, sink};

/// The lines of a text file, or of all files in a folder: columns `line: UInt64`, `text: Utf8`.
pub fn read_lines(path: impl Into<PathBuf>) -> Result<Lines> {
    Lines::new(&lines::Settings::new(Selection::all([path.into()])))
}

/// The files of a folder: columns `uri: Utf8`, `content: Binary`.
pub fn read_files(path: impl Into<PathBuf>) -> Result<Folder> {
    Folder::new(&folder::Settings::new(Selection::all([path.into()])))
}

/// JSON lines in files of a folder, exactly once.
pub fn json_lines(folder: impl Into<PathBuf>) -> Result<JsonLines> {
    JsonLines::new(&sink::Settings::new(folder))
}

/// Parquet files of a folder, exactly once.
pub fn parquet(folder: impl Into<PathBuf>) -> Result<Parquet> {
    Parquet::new(&sink::Settings::new(folder))
}
