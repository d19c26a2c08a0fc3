//! Object stores as sinks, exactly once: S3 and servers that speak its language, and folders by the same interface.
//!
//! A part is uploaded below `_staging/` when its checkpoint is prepared, and copied to its final name, inside the store, when the
//! checkpoint is complete. Names are never used twice, so a copy can be repeated by any process on any machine. An upload that was
//! never completed shows in no listing: see [`Objects`] for what to set up against those.
//!
//! Everything here blocks its caller; requests run on threads of the sink's own.

mod names;
mod settings;
mod sink;
mod store;
mod upload;

pub use object_store;
pub use settings::{Format, Settings};
pub use sink::Objects;
pub use store::Store;
