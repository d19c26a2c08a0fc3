//! What a sink is told.

use pelton_core::Result;

use crate::names::Names;
use crate::store::Store;

/// How rows become bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// With zstd.
    #[default]
    Parquet,
    /// One object a row, with every column.
    JsonLines,
}

impl Format {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::Parquet => "Parquet",
            Format::JsonLines => "JSON",
        }
    }

    pub(crate) fn extension(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::JsonLines => "jsonl",
        }
    }
}

/// A sink's settings. Data, with a default for all but where to write.
#[derive(Clone, Debug)]
pub struct Settings {
    pub store: Store,
    /// Parquet.
    pub format: Format,
    /// What names begin with: sinks with different prefixes share a folder. `part`.
    pub prefix: String,
}

impl Settings {
    pub fn new(store: Store) -> Self {
        Settings { store, format: Format::default(), prefix: "part".to_owned() }
    }

    pub fn with_format(self, format: Format) -> Self {
        Settings { format, ..self }
    }

    pub fn with_prefix(self, prefix: impl Into<String>) -> Self {
        Settings { prefix: prefix.into(), ..self }
    }

    pub(crate) fn names(&self) -> Result<Names> {
        Names::new(&self.prefix, self.format.extension())
    }

    pub(crate) fn describe(&self) -> String {
        format!(
            "{} objects {}/{}-*.{}",
            self.format.name(),
            self.store.shown,
            self.prefix,
            self.format.extension()
        )
    }
}
