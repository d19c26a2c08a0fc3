//! Calls a Pelton service from any Rust program, without the engine.
//!
//! ```no_run
#![doc = include_str!("../examples/call.rs")]
//! ```
//!
//! A [`Target`] says which service: instances that are served on their own, by their endpoints, or those of a job that runs on this
//! machine, by its name. What can be called, and with which columns, the service says itself ([`ServiceClient::methods`]).
//!
//! A call is what a job's own are: rows wait here until an instance permits them, batches form there across all callers, what an instance
//! held that dies runs elsewhere, and a request whose connection breaks is attached to, not run again. It ends once, with its
//! rows or an [`Error`] that says what may have happened ([`Fate`]).
//!
//! # What is here, and what for
//!
//! [`client`](ServiceClient) is the face; `calls.rs` and `answers.rs` are calls through any caller, which jobs make too; `reaching.rs`
//! finds instances and watches over them, with `following.rs` where a job is asked for them; `access.rs` reads tokens and certificates.

pub mod access;
mod answers;
mod calls;
mod client;
mod following;
mod known;
mod reaching;
mod target;

pub use answers::{Answers, Part};
pub use arrow_array::RecordBatch;
pub use calls::{CallOptions, Calls, Ids, given_up};
pub use client::{Method, ServiceClient};
pub use pelton_client::Stats;
pub use pelton_core::access::Access;
pub use pelton_core::call::{Affinity, Priority};
pub use pelton_core::service::{Cardinality, MethodSpec};
pub use pelton_core::{Declaration, Error, Fate, Kind, Result, Retry};
pub use target::Target;
