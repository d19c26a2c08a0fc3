//! The caller's side of a service.
//!
//! A [`Client`] holds the backlog, tells the instances how much it has, sends what they permit, and sees each request to exactly
//! one end: through deaths of instances, lost connections and retries. [`state`] decides; [`client`] is the loop. It is told where instances
//! are and what can be called; the crate `pelton-call` finds both out.

mod claims;
mod client;
pub mod peer;
mod requests;
pub mod state;

pub use client::{Client, Reached, Settings, Stats};
