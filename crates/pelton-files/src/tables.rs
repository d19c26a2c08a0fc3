//! Files of rows as a source: Parquet, JSON lines and CSV.

use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use arrow_array::{RecordBatch, RecordBatchReader};
use arrow_schema::{ArrowError, Schema, SchemaRef};
use pelton_core::service::{check_columns, show_columns};
use pelton_core::{Error, Result};
use pelton_dataflow::source::{Read, Reader, Source, Split};
use pelton_env::storage::failed;
use serde::{Deserialize, Serialize};

use crate::name;
use crate::selection::Selection;
use crate::walk::Files;

/// Rows of a batch.
const ROWS: usize = 1024;
/// Records by which the columns of JSON and CSV are found out.
const LOOKED_AT: usize = 1000;

/// How the files are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Parquet,
    /// An object a line.
    Json,
    /// With a line of column names first.
    Csv,
}

/// Files with the same columns. A file is a split, its position the number of rows before it.
#[derive(Debug)]
pub struct Tables {
    files: Files,
    kind: Kind,
    schema: SchemaRef,
    base: OnceLock<PathBuf>,
}

impl Tables {
    /// Without a schema, the columns are those of the first file; of JSON and CSV, what its first 1000 records tell.
    pub fn new(kind: Kind, selection: &Selection, schema: Option<SchemaRef>) -> Result<Tables> {
        let files = Files::new(selection)?;
        let schema = match schema {
            Some(schema) => schema,
            None => {
                let first = files.splits()?.swap_remove(0);
                let path = path_of(&files.base(), &first)?;
                Arc::new(columns(kind, &path)?)
            }
        };
        Ok(Tables { files, kind, schema, base: OnceLock::new() })
    }
}

fn path_of(base: &Path, split: &Split) -> Result<PathBuf> {
    name::path(base, &split.uri).map_err(|e| failed("reading", &base.join(&split.uri), &e))
}

fn columns(kind: Kind, path: &Path) -> Result<Schema> {
    let wrong = |e: &dyn std::fmt::Display| unreadable(path, e);
    let file = File::open(path).map_err(|e| failed("reading", path, &e))?;
    match kind {
        Kind::Parquet => {
            let opened = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| wrong(&e))?;
            Ok(Schema::new(opened.schema().fields().clone()))
        }
        Kind::Json => arrow_json::reader::infer_json_schema(BufReader::new(file), Some(LOOKED_AT))
            .map_err(|e| wrong(&e))
            .map(|(s, _)| s),
        Kind::Csv => csv_format()
            .infer_schema(BufReader::new(file), Some(LOOKED_AT))
            .map_err(|e| wrong(&e))
            .map(|(s, _)| s),
    }
}

fn csv_format() -> arrow_csv::reader::Format {
    arrow_csv::reader::Format::default().with_header(true)
}

fn unreadable(path: &Path, e: &dyn std::fmt::Display) -> Error {
    Error::invalid(format!("{}: {e}", path.display()))
}

impl Source for Tables {
    fn describe(&self) -> String {
        let kind = match self.kind {
            Kind::Parquet => "Parquet",
            Kind::Json => "JSON",
            Kind::Csv => "CSV",
        };
        format!("{kind} rows of {}", self.files.describe())
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn splits(&self) -> Result<Vec<Split>> {
        self.files.splits()
    }

    fn open(&self, split: &Split, position: u64) -> Result<Box<dyn Reader>> {
        let path = path_of(self.base.get_or_init(|| self.files.base()), split)?;
        let file = File::open(&path).map_err(|e| failed("reading", &path, &e))?;
        let wrong = |e: &dyn std::fmt::Display| unreadable(&path, e);
        // Parquet knows where its rows are; of text, those before are read again.
        let (rows, skip): (Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>> + Send>, u64) =
            match self.kind {
                Kind::Parquet => {
                    let opened = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| wrong(&e))?;
                    let rows = opened
                        .with_batch_size(ROWS)
                        .with_offset(position as usize)
                        .build()
                        .map_err(|e| wrong(&e))?;
                    let none = RecordBatch::new_empty(rows.schema());
                    check_columns(path.display(), &none, &nullable(&self.schema)).map_err(|e| {
                        Error::invalid(format!("{}; the first file's are those of all", e.message()))
                    })?;
                    (Box::new(rows), 0)
                }
                Kind::Json => {
                    let reader = arrow_json::ReaderBuilder::new(self.schema.clone()).with_batch_size(ROWS);
                    (Box::new(reader.build(BufReader::new(file)).map_err(|e| wrong(&e))?), position)
                }
                Kind::Csv => {
                    let mut file = file;
                    check_header(&mut file, &path, &self.schema)?;
                    let reader = arrow_csv::ReaderBuilder::new(self.schema.clone())
                        .with_format(csv_format())
                        .with_batch_size(ROWS);
                    (Box::new(reader.build(file).map_err(|e| wrong(&e))?), position)
                }
            };
        Ok(Box::new(Pass { path, schema: self.schema.clone(), rows, skip, position }))
    }
}

/// A CSV file whose columns are others, or in another order, would be read into the wrong ones.
fn check_header(file: &mut File, path: &Path, expected: &Schema) -> Result<()> {
    let found =
        csv_format().infer_schema(BufReader::new(&mut *file), Some(0)).map_err(|e| unreadable(path, &e))?.0;
    file.rewind().map_err(|e| failed("reading", path, &e))?;
    let names = |schema: &Schema| schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>();
    if names(&found) == names(expected) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{}: its columns are ({}), and those of the others are ({})",
        path.display(),
        names(&found).join(", "),
        show_columns(expected)
    )))
}

fn nullable(schema: &Schema) -> Schema {
    Schema::new(schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect::<Vec<_>>())
}

struct Pass {
    path: PathBuf,
    schema: SchemaRef,
    rows: Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>> + Send>,
    /// Rows to leave out still.
    skip: u64,
    position: u64,
}

impl Reader for Pass {
    fn next(&mut self) -> Result<Option<Read>> {
        loop {
            let Some(read) = self.rows.next() else { return Ok(None) };
            let rows = read.map_err(|e| {
                let after = self.position - self.skip.min(self.position);
                Error::invalid(format!("{}, after {after} rows: {e}", self.path.display()))
            })?;
            let left_out = self.skip.min(rows.num_rows() as u64);
            self.skip -= left_out;
            let rows = rows.slice(left_out as usize, rows.num_rows() - left_out as usize);
            if rows.num_rows() == 0 {
                continue;
            }
            self.position += rows.num_rows() as u64;
            let rows = RecordBatch::try_new(self.schema.clone(), rows.columns().to_vec())
                .map_err(|e| unreadable(&self.path, &e))?;
            return Ok(Some(Read { rows, bad: vec![], position: self.position }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use arrow_array::{ArrayRef, Int64Array, StringArray};

    use super::*;
    use crate::parquet::writer;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let rows = 3000;
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|n| format!("t{n}"))));
        let batch = RecordBatch::try_from_iter([("n", numbers), ("t", texts)]).unwrap();
        let mut parquet = writer(Vec::new(), batch.schema(), &[]).unwrap();
        parquet.write(&batch).unwrap();
        fs::write(folder.path().join("a.parquet"), parquet.into_inner().unwrap()).unwrap();
        let text = |line: &dyn Fn(i64) -> String| (0..rows).map(line).collect::<String>();
        fs::write(folder.path().join("a.json"), text(&|n| format!("{{\"n\":{n},\"t\":\"t{n}\"}}\n")))
            .unwrap();
        fs::write(folder.path().join("a.csv"), "n,t\n".to_owned() + &text(&|n| format!("{n},t{n}\n")))
            .unwrap();
        folder
    }

    fn only(folder: &Path, extension: &str) -> Selection {
        Selection { extensions: vec![extension.to_owned()], ..Selection::all([folder]) }
    }

    #[test]
    fn each_kind_gives_the_same_rows_from_any_position() {
        let folder = folder();
        for (kind, extension) in [(Kind::Parquet, "parquet"), (Kind::Json, "json"), (Kind::Csv, "csv")] {
            let tables = Tables::new(kind, &only(folder.path(), extension), None).unwrap();
            assert_eq!(show_columns(&tables.schema()).replace('?', ""), "n: Int64, t: Utf8", "{kind:?}");
            let [split] = &tables.splits().unwrap()[..] else { panic!("one file") };
            for position in [0, 1, 1024, 2999, 3000] {
                let mut reader = tables.open(split, position).unwrap();
                let mut next = position as i64;
                while let Some(read) = reader.next().unwrap() {
                    for (n, t) in read
                        .rows
                        .column(0)
                        .as_any()
                        .downcast_ref::<Int64Array>()
                        .unwrap()
                        .iter()
                        .zip(read.rows.column(1).as_any().downcast_ref::<StringArray>().unwrap())
                    {
                        assert_eq!((n, t), (Some(next), Some(format!("t{next}").as_str())));
                        next += 1;
                    }
                    assert_eq!(read.position, next as u64);
                }
                assert_eq!(next, 3000, "{kind:?} from {position}");
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = folder();
        let read = |extension: &str, kind| {
            let tables = Tables::new(kind, &only(folder.path(), extension), None)?;
            for split in tables.splits()? {
                let mut reader = tables.open(&split, 0)?;
                while reader.next()?.is_some() {}
            }
            Ok::<_, Error>(())
        };
        fs::write(folder.path().join("b.csv"), "t,n\nx,1\n").unwrap();
        assert!(read("csv", Kind::Csv).unwrap_err().message().contains("b.csv: its columns are (t, n)"));
        fs::write(folder.path().join("b.json"), "{\"n\":1}\n{\"n\": \"text\"}\n").unwrap();
        assert!(read("json", Kind::Json).unwrap_err().message().contains("b.json, after 0 rows"));
        assert!(read("json", Kind::Parquet).unwrap_err().message().contains("a.json"));
    }
}
