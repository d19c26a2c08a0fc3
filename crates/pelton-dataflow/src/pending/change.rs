//! What a row of a changelog does: insert or retract, and which key.

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use pelton_core::{Error, Result};

use super::block::Slot;
use crate::keys;
use crate::topology::ChangelogShape;

/// The key as text, the same for the same values and no others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// `+I` or `+U`.
    Insert(String),
    /// `-U` or `-D`.
    Retract(String),
}

impl ChangelogShape {
    /// What a row does, or why that cannot be told.
    pub(super) fn change(&self, rows: &RecordBatch, row: usize) -> Result<Change> {
        let column = rows.column(self.operation);
        let kind = if column.is_null(row) { "null" } else { column.as_string::<i32>().value(row) };
        match kind {
            "+I" | "+U" => Ok(Change::Insert(self.key(rows, row)?)),
            "-U" | "-D" => Ok(Change::Retract(self.key(rows, row)?)),
            _ => Err(Error::invalid(format!(
                "`{kind}` in column `{}` is no row kind; they are +I, -U, +U and -D",
                rows.schema_ref().field(self.operation).name()
            ))),
        }
    }

    fn key(&self, rows: &RecordBatch, row: usize) -> Result<String> {
        let value = |column: &usize| {
            keys::show(rows.column(*column), row).ok_or_else(|| {
                let name = rows.schema_ref().field(*column).name();
                Error::invalid(format!("key `{name}` is null, so nobody can tell which row is meant"))
            })
        };
        Ok(self.key.iter().map(value).collect::<Result<Vec<String>>>()?.join(", "))
    }

    /// How rows begin: retractions wait for no answer.
    pub(super) fn slots(&self, rows: &RecordBatch) -> Vec<Slot> {
        let slot = |row| match self.change(rows, row) {
            Ok(Change::Retract(_)) => Slot::Retraction,
            _ => Slot::Waiting,
        };
        (0..rows.num_rows()).map(slot).collect()
    }

    /// A retraction that takes back what was never given out.
    pub(super) fn unknown(&self, rows: &RecordBatch, key: &str) -> Error {
        let name = |column: &usize| rows.schema_ref().field(*column).name().as_str();
        let names: Vec<&str> = self.key.iter().map(name).collect();
        Error::invalid(format!(
            "it takes back key ({}) = ({key}), and no result of that is stored: no +I or +U of it came before in its split, or it was taken \
             back already; let all rows of a key come in one split, in order",
            names.join(", ")
        ))
    }
}
