//! A PostgreSQL table as a sink, exactly once.
//!
//! Rows go by `COPY` into a table beside the target, in one transaction for each subtask and checkpoint: durable, and out of
//! sight of whoever reads the target. When the checkpoint is complete, one transaction moves them and notes in
//! `pelton_commits` that it did. A commit that is repeated finds the note; a commit whose answer was lost with the
//! connection is repeated.
//!
//! Everything here blocks its caller; the connections live on threads of the sink's own.
//!
//! ```no_run
//! use pelton_postgres::{Connection, Postgres, Settings};
//!
//! # fn main() -> pelton_core::Result<()> {
//! let connection = Connection::new("host=db port=5432 user=etl password='..' dbname=shop")?;
//! let chunks = Postgres::new(
//!     Settings::new(connection, "chunks")
//!         .with_name("chunks_of_today")  // one name for each sink of each job
//!         .create()                      // makes the table if there is none
//!         .with_part_column("part"),     // a text column: makes it possible to go back
//! )?;
//! # Ok(())
//! # }
//! ```

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
mod tls;
mod writing;

pub use settings::{Connection, Settings};
pub use sink::Postgres;
