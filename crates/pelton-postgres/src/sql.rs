//! Names and statements. Pure.

use pelton_core::id::stable_hash;
use pelton_core::{Error, Result};

/// Columns that rows have while they wait.
pub(crate) const PART: &str = "pelton_part";
pub(crate) const GENERATION: &str = "pelton_generation";

/// Whether the server would take it for the same name: longer ones it cuts.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let wrong = |why: &str| Err(Error::invalid(format!("the name `{}` {why}", name.escape_debug())));
    match name {
        "" => wrong("is empty"),
        _ if name.len() > 63 => wrong("is longer than PostgreSQL's 63 bytes"),
        _ if name.contains('\0') => wrong("holds a NUL character"),
        _ => Ok(()),
    }
}

pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(crate) fn list(names: &[String]) -> String {
    names.iter().map(|n| quoted(n)).collect::<Vec<_>>().join(", ")
}

/// A sink's tables, by their full quoted names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) schema: String,
    pub(crate) target: String,
    /// Rows that wait for their checkpoint.
    pub(crate) staged: String,
    /// The index on it, which has no schema of its own.
    pub(crate) index: String,
    /// A row for each sink: the newest generation.
    pub(crate) sinks: String,
    /// A row for each part that was made visible.
    pub(crate) commits: String,
}

impl Names {
    pub(crate) fn new(schema: &str, table: &str, sink: &str) -> Names {
        let of = |name: &str| format!("{}.{}", quoted(schema), quoted(name));
        Names {
            schema: schema.to_owned(),
            target: of(table),
            staged: of(&format!("pelton_staged_{sink}")),
            index: quoted(&format!("pelton_index_{sink}")),
            sinks: of("pelton_sinks"),
            commits: of("pelton_commits"),
        }
    }

    /// The key of the lock under which tables are made: of all sinks in a schema, one at a time.
    pub(crate) fn lock(&self) -> i64 {
        stable_hash(&format!("pelton {}", self.schema)) as i64
    }

    pub(crate) fn make_bookkeeping(&self) -> String {
        format!(
            "create table if not exists {} (
                 sink text primary key,
                 generation bigint not null);
             create table if not exists {} (
                 sink text not null,
                 part text not null,
                 generation bigint not null,
                 subtask integer not null,
                 checkpoint bigint not null,
                 row_count bigint not null,
                 committed_at timestamptz not null default now(),
                 primary key (sink, part))",
            self.sinks, self.commits
        )
    }

    /// `columns` with their types and whether they may hold nothing.
    pub(crate) fn make_staged(&self, columns: &[(String, String, bool)]) -> String {
        let columns: String = columns
            .iter()
            .map(|(name, kind, required)| {
                format!(", {} {kind}{}", quoted(name), if *required { " not null" } else { "" })
            })
            .collect();
        format!(
            "create table {staged} ({PART} text not null, {GENERATION} bigint not null{columns});
             create index {index} on {staged} ({PART})",
            staged = self.staged,
            index = self.index,
        )
    }

    pub(crate) fn copy(&self, columns: &[String]) -> String {
        format!("copy {} ({PART}, {GENERATION}, {}) from stdin (format binary)", self.staged, list(columns))
    }

    pub(crate) fn note(&self) -> String {
        format!(
            "insert into {} (sink, part, generation, subtask, checkpoint, row_count) values ($1, $2, $3, $4, $5, $6)
             on conflict do nothing",
            self.commits
        )
    }

    pub(crate) fn show(&self, columns: &[String], part_column: Option<&str>) -> String {
        let columns = list(columns);
        let (into, from) = match part_column {
            Some(column) => (format!("{columns}, {}", quoted(column)), format!("{columns}, {PART}")),
            None => (columns.clone(), columns),
        };
        format!("insert into {} ({into}) select {from} from {} where {PART} = $1", self.target, self.staged)
    }

    pub(crate) fn clear(&self) -> String {
        format!("delete from {} where {PART} = $1", self.staged)
    }

    pub(crate) fn discard(&self) -> String {
        format!("delete from {} where {GENERATION} < $1 and {PART} <> all ($2)", self.staged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_wherever_they_stand() {
        let names = Names::new("a\"b", "or;der", "s");
        assert_eq!(names.target, r#""a""b"."or;der""#);
        assert_eq!(
            names.show(&["x\"".into(), "y".into()], Some("p")),
            format!(
                r#"insert into {} ("x""", "y", "p") select "x""", "y", pelton_part from {} where pelton_part = $1"#,
                names.target, names.staged
            )
        );
    }
}
