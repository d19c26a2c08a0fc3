//! A source with one row a file.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arrow_array::{BinaryArray, RecordBatch, StringArray};
use arrow_buffer::{Buffer, OffsetBuffer};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::{Bytes, Error, Result};
use pelton_dataflow::batch::RowError;
use pelton_dataflow::source::{Read, Reader, Source, Split};
use pelton_env::storage::failed;
use serde::{Deserialize, Serialize};

use crate::name;
use crate::selection::Selection;
use crate::walk::Files;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub files: Selection,
    /// A larger file becomes a bad row, unread. 64 MiB; 2047 MiB at most.
    #[serde(default = "default_max_bytes")]
    pub max_bytes: Bytes,
}

impl Settings {
    pub fn new(files: Selection) -> Self {
        Settings { files, max_bytes: default_max_bytes() }
    }
}

fn default_max_bytes() -> Bytes {
    Bytes::mib(64)
}

/// Reads each file as one row: `uri` (text) and `content` (binary). A file is a split of its own, with position 0
/// before it and 1 after it. What cannot be read, and what is too large, becomes a bad row named by its uri.
#[derive(Debug)]
pub struct Folder {
    files: Files,
    max_bytes: Bytes,
    schema: SchemaRef,
    base: OnceLock<PathBuf>,
}

impl Folder {
    pub fn new(settings: &Settings) -> Result<Folder> {
        let most = Bytes::mib(2047);
        if settings.max_bytes > most {
            let message = format!("max_bytes is {}, and one row can hold {most} at most", settings.max_bytes);
            return Err(Error::invalid(message));
        }
        Ok(Folder {
            files: Files::new(&settings.files)?,
            max_bytes: settings.max_bytes,
            schema: Arc::new(Schema::new(vec![
                Field::new("uri", DataType::Utf8, false),
                Field::new("content", DataType::Binary, false),
            ])),
            base: OnceLock::new(),
        })
    }
}

impl Source for Folder {
    fn describe(&self) -> String {
        format!("files of {}", self.files.describe())
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn splits(&self) -> Result<Vec<Split>> {
        self.files.splits()
    }

    fn open(&self, split: &Split, position: u64) -> Result<Box<dyn Reader>> {
        let base = self.base.get_or_init(|| self.files.base());
        Ok(Box::new(OneFile {
            base: base.clone(),
            uri: split.uri.clone(),
            max_bytes: self.max_bytes,
            schema: self.schema.clone(),
            done: position > 0,
        }))
    }
}

struct OneFile {
    base: PathBuf,
    uri: String,
    max_bytes: Bytes,
    schema: SchemaRef,
    done: bool,
}

impl Reader for OneFile {
    fn next(&mut self) -> Result<Option<Read>> {
        if std::mem::replace(&mut self.done, true) {
            return Ok(None);
        }
        let (rows, bad) = match read(&self.base, &self.uri, self.max_bytes) {
            Ok(content) => (self.row(content)?, vec![]),
            Err(error) => {
                (RecordBatch::new_empty(self.schema.clone()), vec![RowError { row: self.uri.clone(), error }])
            }
        };
        Ok(Some(Read { rows, bad, position: 1 }))
    }
}

impl OneFile {
    fn row(&self, content: Vec<u8>) -> Result<RecordBatch> {
        let uri = StringArray::from_iter_values([&self.uri]);
        let lengths = OffsetBuffer::from_lengths([content.len()]);
        let content = BinaryArray::try_new(lengths, Buffer::from_vec(content), None)?;
        Ok(RecordBatch::try_new(self.schema.clone(), vec![Arc::new(uri), Arc::new(content)])?)
    }
}

fn read(base: &Path, uri: &str, max: Bytes) -> Result<Vec<u8>> {
    let path = name::path(base, uri).map_err(|e| failed("reading", &base.join(uri), &e))?;
    let wrong = |e: io::Error| failed("reading", &path, &e);
    let kind = fs::metadata(&path).map_err(wrong)?;
    if kind.is_dir() {
        fs::read_dir(&path).map_err(|e| failed("listing", &path, &e))?;
        let message = format!("listing {}: it failed when the job started; start it again", path.display());
        return Err(Error::storage(message));
    }
    if !kind.is_file() {
        return Err(Error::storage(format!("reading {}: not a file", path.display())));
    }
    let too_large = |n: u64| {
        let size = Bytes(n);
        let hint = "raise max_bytes (`--max-file-size`) to read it";
        Error::limit(format!(
            "{}: {size} ({n} bytes) is over the limit of {max} a file; {hint}",
            path.display()
        ))
    };
    if kind.len() > max.get() {
        return Err(too_large(kind.len()));
    }
    let file = File::open(&path).map_err(wrong)?;
    let mut content = Vec::with_capacity(kind.len() as usize + 1);
    // It may grow while it is read.
    file.take(max.get() + 1).read_to_end(&mut content).map_err(wrong)?;
    if content.len() as u64 > max.get() { Err(too_large(content.len() as u64)) } else { Ok(content) }
}
