//! Files as sources and sinks of a dataflow.
//!
//! Sources: [`Folder`] gives one row a file, [`References`] one row a file that says where it is, [`Lines`] one row a line. Sinks: [`Parquet`] and [`JsonLines`], exactly
//! once, and [`Console`], at least once. [`read_parquet`] reads back what the sink made. Everything here blocks; none of it knows an async runtime.

pub mod console;
pub mod filter;
pub mod folder;
pub mod json_lines;
pub mod lines;
mod name;
pub mod parquet;
pub mod read;
pub mod references;
pub mod selection;
pub mod sink;
mod staging;
pub mod tables;
mod walk;

pub use console::Console;
pub use folder::Folder;
pub use json_lines::JsonLines;
pub use lines::Lines;
pub use parquet::Parquet;
pub use read::read_parquet;
pub use references::References;
pub use selection::Selection;
pub use tables::Tables;
pub use walk::version;
