//! The embedded data plane.
//!
//! It sees a service only as a [`Caller`](pelton_core::call::Caller).

pub mod batch;
pub mod operator;
pub mod sink;
pub mod source;
