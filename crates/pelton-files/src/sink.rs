//! The sink that all file formats share: stage a part for each subtask and checkpoint, publish it by renaming.

use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use pelton_core::{Error, Result};
use pelton_dataflow::sink::{Guarantee, Sink, Staged, Writer};
use pelton_env::Storage;
use serde::{Deserialize, Serialize};

use crate::staging::{StagedFile, Target};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Made if it does not exist.
    pub folder: PathBuf,
    /// What file names begin with: sinks with different prefixes share a folder. `part`.
    #[serde(default = "default_prefix")]
    pub prefix: String,
}

impl Settings {
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Settings { folder: folder.into(), prefix: default_prefix() }
    }

    pub fn with_prefix(self, prefix: impl Into<String>) -> Self {
        Settings { prefix: prefix.into(), ..self }
    }
}

fn default_prefix() -> String {
    "part".to_owned()
}

/// How rows become bytes.
pub(crate) trait Format: Send + Sync + 'static {
    const NAME: &str;
    const EXTENSION: &str;

    /// Refuses columns that it cannot write.
    fn check(&self, schema: &Schema) -> Result<()>;

    fn encoder(&self, file: StagedFile, schema: SchemaRef) -> Result<Box<dyn Encoder>>;
}

/// One file being written.
pub(crate) trait Encoder: Send {
    fn write(&mut self, rows: &RecordBatch) -> Result<()>;

    /// Writes what is still to be written; nothing is written after that.
    fn finish(&mut self) -> Result<&mut StagedFile>;
}

/// A folder that receives parts of one format, exactly once.
pub(crate) struct FileSink<F> {
    target: Target,
    format: Arc<F>,
}

impl<F: Format> FileSink<F> {
    pub(crate) fn new(settings: &Settings, format: F) -> Result<Self> {
        let target = Target::new(&settings.folder, &settings.prefix, F::EXTENSION)?;
        Ok(FileSink { target, format: Arc::new(format) })
    }

    pub(crate) fn stored_on(self, storage: Arc<dyn Storage>) -> Self {
        FileSink { target: self.target.stored_on(storage), ..self }
    }
}

impl<F: Format> Sink for FileSink<F> {
    fn describe(&self) -> String {
        format!("{} files {}", F::NAME, self.target.describe())
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn check(&self, input: &Schema) -> Result<()> {
        if input.fields().is_empty() {
            return Err(Error::invalid(format!("{}: there are no columns to write", self.describe())));
        }
        self.format.check(input).map_err(|e| e.context(self.describe()))
    }

    fn start(&self, generation: u64, recorded: &[Staged]) -> Result<()> {
        self.target.start(generation, recorded)
    }

    fn rewind(&self, checkpoint: u64) -> Result<()> {
        self.target.rewind(checkpoint)
    }

    fn writer(&self, subtask: u32, generation: u64, schema: SchemaRef) -> Result<Box<dyn Writer>> {
        self.check(&schema)?;
        Ok(Box::new(FileWriter {
            target: self.target.clone(),
            format: self.format.clone(),
            schema,
            subtask,
            generation,
            begun: 0,
            rows: 0,
            current: None,
        }))
    }

    fn commit(&self, staged: &[Staged]) -> Result<()> {
        self.target.commit(staged)
    }
}

struct FileWriter<F> {
    target: Target,
    format: Arc<F>,
    schema: SchemaRef,
    subtask: u32,
    generation: u64,
    /// How many files were begun.
    begun: u64,
    /// In the current one.
    rows: u64,
    current: Option<Box<dyn Encoder>>,
}

impl<F: Format> Writer for FileWriter<F> {
    fn write(&mut self, rows: RecordBatch) -> Result<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let rows = RecordBatch::try_new(self.schema.clone(), rows.columns().to_vec())
            .map_err(|e| Error::internal(format!("rows for {}: {e}", self.target.describe())))?;
        let encoder = match &mut self.current {
            Some(encoder) => encoder,
            none => {
                let file = self.target.create(self.subtask, self.generation, self.begun)?;
                self.begun += 1;
                none.insert(self.format.encoder(file, self.schema.clone())?)
            }
        };
        encoder.write(&rows)?;
        self.rows += rows.num_rows() as u64;
        Ok(())
    }

    fn prepare(&mut self, checkpoint: u64) -> Result<Vec<Staged>> {
        let Some(mut encoder) = self.current.take() else {
            return Ok(vec![]);
        };
        let rows = std::mem::take(&mut self.rows);
        let file = encoder.finish()?;
        Ok(vec![self.target.seal(file, self.subtask, self.generation, checkpoint, rows)?])
    }
}

/// Makes a public sink out of a [`FileSink`] in its field 0.
macro_rules! forward_sink {
    ($sink:ident) => {
        impl $sink {
            /// The same on another storage than this machine's file system.
            pub fn stored_on(self, storage: std::sync::Arc<dyn pelton_env::Storage>) -> Self {
                $sink(self.0.stored_on(storage))
            }
        }

        impl pelton_dataflow::sink::Sink for $sink {
            fn describe(&self) -> String {
                self.0.describe()
            }
            fn guarantee(&self) -> pelton_dataflow::sink::Guarantee {
                self.0.guarantee()
            }
            fn check(&self, input: &arrow_schema::Schema) -> pelton_core::Result<()> {
                self.0.check(input)
            }
            fn start(
                &self,
                generation: u64,
                recorded: &[pelton_dataflow::sink::Staged],
            ) -> pelton_core::Result<()> {
                self.0.start(generation, recorded)
            }
            fn rewind(&self, checkpoint: u64) -> pelton_core::Result<()> {
                self.0.rewind(checkpoint)
            }
            fn writer(
                &self,
                subtask: u32,
                generation: u64,
                schema: arrow_schema::SchemaRef,
            ) -> pelton_core::Result<Box<dyn pelton_dataflow::sink::Writer>> {
                self.0.writer(subtask, generation, schema)
            }
            fn commit(&self, staged: &[pelton_dataflow::sink::Staged]) -> pelton_core::Result<()> {
                self.0.commit(staged)
            }
        }
    };
}
pub(crate) use forward_sink;
