//! What runs inside an instance.
//!
//! [`state`] decides (pure: events and time in, actions out), with the [`ledger`] and the [`queue`]; [`worker`] runs the
//! user's methods, [`spill`] puts results on disk; [`server`] is the thin loop around them.

mod dump;
mod ledger;
mod queue;
mod scopes;
mod server;
mod spill;
pub mod state;
mod stream;
mod visits;
mod worker;

pub use server::{Standing, serve, serve_standing};
