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

/// References to the objects below a url (`s3://BUCKET/PREFIX`, `file:///FOLDER`) or in a folder: columns `uri: Utf8`,
/// `object: pelton.object`, `bytes: UInt64`. Nothing of an object is read. Region, keys and endpoint of S3 come as options, or from the
/// environment (`AWS_REGION`, `AWS_ACCESS_KEY_ID`, ..), or are those of the machine's role.
#[cfg(feature = "objects")]
pub fn read_objects(url: &str, options: &[(&str, &str)]) -> Result<pelton_objects::Listing> {
    use pelton_core::Error;
    use pelton_objects::{Listing, ListingSettings, Store};

    let local = match url.contains("://") {
        true => None,
        false => {
            let path =
                std::path::absolute(url).map_err(|e| Error::invalid(format!("folder `{url}`: {e}")))?;
            let path = path.to_str().ok_or_else(|| {
                Error::invalid(format!(
                    "folder `{url}`: its path is not UTF-8; use pelton::files::References"
                ))
            })?;
            Some(format!("file://{path}"))
        }
    };
    let environment = if url.starts_with("s3://") { s3_environment() } else { vec![] };
    let environment = environment.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    let store = Store::open(local.as_deref().unwrap_or(url), environment.chain(options.iter().copied()))?;
    Listing::new(ListingSettings::new(store))
}

/// What the methods of a service read objects with. Keys for S3 come from the instance's environment, which is the job's
/// (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, ..), or are those of the machine's role.
#[cfg(feature = "objects")]
pub fn object_reader(
    ctx: &pelton_core::service::Context,
    settings: &pelton_objects::ReaderSettings,
) -> Result<pelton_objects::ObjectReader> {
    pelton_objects::ObjectReader::open(&ctx.service, settings, &s3_environment(), &ctx.counters)
}

#[cfg(feature = "objects")]
fn s3_environment() -> Vec<(String, String)> {
    let text =
        |(k, v): (std::ffi::OsString, std::ffi::OsString)| k.into_string().ok().zip(v.into_string().ok());
    pelton_objects::s3_options(std::env::vars_os().filter_map(text))
}
