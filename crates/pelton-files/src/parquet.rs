//! A sink of Parquet files.

use std::io::Write;

use ::parquet::arrow::{ArrowSchemaConverter, ArrowWriter};
use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::properties::WriterProperties;
use arrow_array::RecordBatch;
use arrow_schema::{DataType, Schema, SchemaRef};
use pelton_core::{Error, Result};

use crate::sink::{Encoder, FileSink, Format, Settings, forward_sink};
use crate::staging::StagedFile;

/// A row group is kept in memory until it is this large.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// Writes Parquet with zstd: a file for each subtask and checkpoint, `PREFIX-GENERATION-SUBTASK-CHECKPOINT.parquet`,
/// visible once the checkpoint is complete.
pub struct Parquet(FileSink<ParquetFormat>);

impl Parquet {
    pub fn new(settings: &Settings) -> Result<Parquet> {
        Parquet::with_metadata(settings, [])
    }

    /// Also writes these keys and values into each file: which model made it, say.
    pub fn with_metadata(
        settings: &Settings,
        metadata: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Parquet> {
        let metadata = metadata.into_iter().map(|(k, v)| KeyValue::new(k, v)).collect();
        FileSink::new(settings, ParquetFormat { metadata }).map(Parquet)
    }
}

forward_sink!(Parquet);

struct ParquetFormat {
    metadata: Vec<KeyValue>,
}

impl Format for ParquetFormat {
    const NAME: &str = "Parquet";
    const EXTENSION: &str = "parquet";

    fn check(&self, schema: &Schema) -> Result<()> {
        check(schema)
    }

    fn encoder(&self, file: StagedFile, schema: SchemaRef) -> Result<Box<dyn Encoder>> {
        Ok(Box::new(ParquetFile(writer(file, schema, &self.metadata)?)))
    }
}

/// Refuses columns that it cannot write.
pub fn check(schema: &Schema) -> Result<()> {
    // The converter panics on these.
    if let Some(union) =
        schema.flattened_fields().into_iter().find(|f| matches!(f.data_type(), DataType::Union(..)))
    {
        return Err(Error::invalid(format!(
            "column `{}` is a union, which Parquet cannot hold",
            union.name()
        )));
    }
    ArrowSchemaConverter::new().convert(schema).map(drop).map_err(|e| Error::invalid(e.to_string()))
}

/// A file as the sink writes it, in memory or elsewhere.
pub fn writer<W: Write + Send>(to: W, schema: SchemaRef, metadata: &[KeyValue]) -> Result<ArrowWriter<W>> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        .set_created_by(concat!("pelton ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(metadata.to_vec()))
        .build();
    ArrowWriter::try_new(to, schema, Some(properties)).map_err(|e| Error::storage(e.to_string()))
}

struct ParquetFile(ArrowWriter<StagedFile>);

impl Encoder for ParquetFile {
    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        self.0.write(rows).map_err(|e| self.0.inner_mut().explain(e))
    }

    fn finish(&mut self) -> Result<&mut StagedFile> {
        self.0.finish().map_err(|e| self.0.inner_mut().explain(e))?;
        Ok(self.0.inner_mut())
    }
}
