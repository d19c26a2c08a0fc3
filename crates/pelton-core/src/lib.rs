//! The words that every part of Pelton shares.
//!
//! Ids, quantities, errors, service declarations, and the few traits through which the parts see one another.
//! This crate does no I/O, knows no wire format and no async runtime.

pub mod access;
pub mod call;
pub mod declaration;
pub mod endpoint;
pub mod error;
pub mod gate;
pub mod id;
pub mod meter;
pub mod object;
pub mod quantity;
pub mod remote;
pub mod service;
pub mod time;
pub mod weigh;

pub use declaration::Declaration;
pub use error::{Error, Fate, Kind, Result, Retry};
pub use id::{RequestId, RequestRun};
pub use object::ObjectRef;
pub use quantity::Bytes;
pub use time::Time;

/// A boxed future that owns what it needs.
pub type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;
