//! A source with one row a file, which says where the file is and does not read it.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use arrow_array::{RecordBatch, StringArray, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::object::{self, ObjectRef, media, uri};
use pelton_core::{Error, Result};
use pelton_dataflow::batch::RowError;
use pelton_dataflow::source::{Read, Reader, Source, Split};
use pelton_env::storage::failed;

use crate::name;
use crate::selection::Selection;
use crate::walk::Files;

/// Reads each file as one row: `uri` (text, as [`Folder`](crate::Folder) gives it), `object` (a reference to all of the file, with its
/// version and its media type) and `bytes` (its size). A file is a split of its own, with position 0 before it and 1 after it. What
/// cannot be found becomes a bad row named by its uri. Files are looked at when the job starts; whoever reads them later finds out if
/// they were changed.
#[derive(Debug)]
pub struct References {
    files: Files,
    base: OnceLock<PathBuf>,
}

impl References {
    pub fn new(selection: &Selection) -> Result<References> {
        Ok(References { files: Files::new(selection)?, base: OnceLock::new() })
    }
}

/// The columns of references: `uri: Utf8`, `object: pelton.object`, `bytes: UInt64`.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("uri", DataType::Utf8, false),
        object::field("object", false),
        Field::new("bytes", DataType::UInt64, false),
    ]))
}

/// A reader that gives one reference, or says why there is none.
pub fn reader(split: &Split, position: u64, object: Result<ObjectRef>) -> Box<dyn Reader> {
    let row = (position == 0).then(|| Row { uri: split.uri.clone(), bytes: split.bytes, object });
    Box::new(OneRow(row))
}

impl Source for References {
    fn describe(&self) -> String {
        format!("references to files of {}", self.files.describe())
    }

    fn schema(&self) -> SchemaRef {
        schema()
    }

    fn splits(&self) -> Result<Vec<Split>> {
        self.files.splits()
    }

    fn open(&self, split: &Split, position: u64) -> Result<Box<dyn Reader>> {
        let base = self.base.get_or_init(|| self.files.base());
        let path = name::path(base, &split.uri).map_err(|e| failed("finding", &base.join(&split.uri), &e));
        let object = path.and_then(|path| {
            // What could not be looked at when the job started has no version.
            if split.version.is_empty() {
                std::fs::metadata(&path).map_err(|e| failed("finding", &path, &e))?;
                let message =
                    format!("finding {}: it failed when the job started; start it again", path.display());
                return Err(Error::storage(message));
            }
            let object = ObjectRef::new(format!("file://{}", uri::encode(path.as_os_str().as_bytes())))?;
            typed(object.with_version(&split.version)?, &split.uri)
        });
        Ok(reader(split, position, object))
    }
}

/// A reference with the media type that a name speaks of.
pub fn typed(object: ObjectRef, name: &str) -> Result<ObjectRef> {
    match media::guess(name) {
        Some(media_type) => object.with_media_type(media_type),
        None => Ok(object),
    }
}

struct Row {
    uri: String,
    bytes: u64,
    object: Result<ObjectRef>,
}

struct OneRow(Option<Row>);

impl Reader for OneRow {
    fn next(&mut self) -> Result<Option<Read>> {
        let Some(Row { uri, bytes, object }) = self.0.take() else { return Ok(None) };
        let (rows, bad) = match object {
            Ok(object) => {
                let columns: Vec<arrow_array::ArrayRef> = vec![
                    Arc::new(StringArray::from_iter_values([uri])),
                    object::column([Some(&object)]),
                    Arc::new(UInt64Array::from(vec![bytes])),
                ];
                (RecordBatch::try_new(schema(), columns)?, vec![])
            }
            Err(error) => (RecordBatch::new_empty(schema()), vec![RowError { row: uri, error }]),
        };
        Ok(Some(Read { rows, bad, position: 1 }))
    }
}
