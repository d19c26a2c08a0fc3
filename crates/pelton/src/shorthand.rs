//! Sources and sinks with every setting at its default.

use std::path::PathBuf;

use pelton_core::Result;
use pelton_files::{Console, Folder, JsonLines, Lines, Parquet, Selection, folder, lines, sink};

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

/// JSON lines on standard output, at least once.
pub fn console() -> Console {
    Console::new()
}

/// A table of PostgreSQL, exactly once. `connection` is `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`; the table has every column of
/// the stream.
#[cfg(feature = "postgres")]
pub fn postgres(connection: &str, table: &str) -> Result<pelton_postgres::Postgres> {
    use pelton_postgres::{Connection, Postgres, Settings};
    Postgres::new(Settings::new(Connection::new(connection)?, table))
}

/// Parquet objects below a url (`s3://BUCKET/PREFIX`, `file:///FOLDER`), exactly once. Region, keys and endpoint come as options.
#[cfg(feature = "objects")]
pub fn objects(url: &str, options: &[(&str, &str)]) -> Result<pelton_objects::Objects> {
    use pelton_objects::{Objects, Settings, Store};
    Objects::new(Settings::new(Store::open(url, options.iter().copied())?))
}
