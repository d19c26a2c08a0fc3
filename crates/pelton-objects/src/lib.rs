//! Object stores: as sinks, exactly once (S3 and servers that speak its language, and folders by the same interface); as sources of
//! references to objects; and as what such references are read from, where they are needed.
//!
//! [`Objects`] is the sink, [`Listing`] the source, [`ObjectReader`] reads.
//!
//! A part is uploaded below `_staging/` when its checkpoint is prepared, and copied to its final name, inside the store, when the
//! checkpoint is complete. Names are never used twice, so a copy can be repeated by any process on any machine. An upload that was
//! never completed shows in no listing: see [`Objects`] for what to set up against those.
//!
//! Everything here blocks its caller; requests run on threads of the sink's own.
//!
//! ```no_run
//! use pelton_objects::{Format, Objects, Settings, Store};
//!
//! # fn sink(key: String, secret: String) -> pelton_core::Result<()> {
//! let store = Store::open("s3://bucket/logs", [
//!     ("endpoint", "http://10.0.0.7:9000"), ("allow_http", "true"), ("region", "us-east-1"),
//!     ("access_key_id", key.as_str()), ("secret_access_key", secret.as_str()),
//! ])?;
//! let lines = Objects::new(Settings::new(store).with_format(Format::JsonLines).with_prefix("log"))?;
//! # Ok(())
//! # }
//! ```

mod listing;
mod names;
mod reading;
mod settings;
mod sink;
mod store;
mod upload;

pub use listing::{Listing, ListingSettings};
pub use object_store;
pub use reading::{ObjectReader, ObjectStream, ReaderSettings};
pub use settings::{Format, Settings};
pub use sink::Objects;
pub use store::{Store, s3_options};
