//! Reads back what the Parquet sink wrote.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ::parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use arrow_array::RecordBatch;
use arrow_schema::{Fields, SchemaRef};
use pelton_core::{Error, Result};
use pelton_env::real::Disk;
use pelton_env::storage::failed;

use crate::staging::parts;

const BATCH_ROWS: usize = 4096;

/// All rows of the parts `PREFIX-*.parquet` that are visible in a folder, in the order of their names.
pub fn read_parquet(folder: impl AsRef<Path>, prefix: &str) -> Result<Parts> {
    let folder = folder.as_ref();
    let wrong = |e: std::io::Error| match e.kind() {
        ErrorKind::NotFound => Error::invalid(format!(
            "no index here: there is no folder {}; run `pelton index`",
            folder.display()
        )),
        ErrorKind::NotADirectory => {
            Error::invalid(format!("{} is a file; give the folder", folder.display()))
        }
        _ => failed("listing", folder, &e),
    };
    let names = parts(&Disk, folder, prefix, "parquet").map_err(wrong)?;
    let files: Vec<PathBuf> = names.into_iter().map(|(name, _)| folder.join(name)).collect();
    let Some(first) = files.first() else {
        let message =
            format!("no index here: no {prefix}-*.parquet in {}; run `pelton index`", folder.display());
        return Err(Error::invalid(message));
    };
    let builder = open(first)?;
    let metadata = builder.metadata().file_metadata().key_value_metadata();
    let metadata = metadata.into_iter().flatten().filter(|k| k.key != "ARROW:schema");
    Ok(Parts {
        schema: builder.schema().clone(),
        metadata: metadata.filter_map(|k| Some((k.key.clone(), k.value.clone()?))).collect(),
        files,
        next: 0,
        current: None,
    })
}

/// An iterator over the rows, which reads as it goes.
pub struct Parts {
    files: Vec<PathBuf>,
    schema: SchemaRef,
    metadata: BTreeMap<String, String>,
    /// Index of the file that is opened next.
    next: usize,
    current: Option<ParquetRecordBatchReader>,
}

impl Parts {
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The keys and values that the sink was told to write, from the first part.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn open_next(&mut self) -> Option<Result<()>> {
        let path = self.files.get(self.next)?;
        self.next += 1;
        Some(open(path).and_then(|builder| {
            if !same_columns(builder.schema().fields(), self.schema.fields()) {
                return Err(Error::invalid(format!(
                    "{} has other columns than {}; they are of different runs: make the index again in an empty folder",
                    path.display(),
                    self.files[0].display()
                )));
            }
            let reader = builder.with_batch_size(BATCH_ROWS).build().map_err(|e| damaged(path, &e))?;
            self.current = Some(reader);
            Ok(())
        }))
    }
}

/// After an error in one file, it goes on with the next.
impl Iterator for Parts {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.current.as_mut().and_then(Iterator::next) {
                Some(Ok(rows)) => return Some(Ok(rows)),
                Some(Err(e)) => {
                    self.current = None;
                    return Some(Err(damaged(&self.files[self.next - 1], &e)));
                }
                None => {
                    self.current = None;
                    if let Err(e) = self.open_next()? {
                        return Some(Err(e));
                    }
                }
            }
        }
    }
}

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(|e| failed("reading", path, &e))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(path, &e))
}

fn same_columns(a: &Fields, b: &Fields) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.name() == b.name() && a.data_type() == b.data_type())
}

fn damaged(path: &Path, e: &dyn std::fmt::Display) -> Error {
    let hint = "the file is damaged or not Parquet: make the index again in an empty folder";
    Error::storage(format!("reading {}: {e}; {hint}", path.display()))
}
