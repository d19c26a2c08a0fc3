//! Services that are servers of other people.
//!
//! [`state`] decides, [`caller`] is the loop, `protocol` puts requests into a protocol's words and answers into rows, `http` holds the
//! connections. What a declaration says is checked against the service's methods by [`mapping`].

mod caller;
mod failure;
mod http;
pub mod mapping;
mod protocol;
mod requests;
mod secret;
pub mod state;
mod tensor;

pub use caller::{RemoteCaller, Stats};
pub use secret::Secret;
