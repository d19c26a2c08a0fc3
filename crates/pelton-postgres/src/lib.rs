//! A PostgreSQL table as a sink, exactly once.
//!
//! Rows go by `COPY` into a table beside the target, in one transaction for each subtask and checkpoint: durable, and out of
//! sight of whoever reads the target. When the checkpoint is complete, one transaction moves them and notes in
//! `pelton_commits` that it did. A commit that is repeated finds the note; a commit whose answer was lost with the
//! connection is repeated.
//!
//! Everything here blocks its caller; the connections live on threads of the sink's own.

mod columns;
mod encode;
mod failure;
mod layout;
mod link;
mod moving;
mod settings;
mod sink;
mod sql;
mod starting;
mod writing;

pub use settings::{Connection, Settings};
pub use sink::Postgres;
