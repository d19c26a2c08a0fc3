//! The wire protocol between callers, instances and control.
//!
//! One connection a (caller process, instance), full duplex. A [`Frame`] is a fixed header, a small binary *meta* part
//! that says what it is about, and maybe a *body*: one Arrow record batch. This crate turns frames into bytes and back, and
//! checks every length before it is believed. It opens no socket.

pub mod body;
pub mod frame;
pub mod greeting;
pub mod in_place;
mod scalar;

pub use frame::{Deadlines, Demand, Entry, Frame, HEADER, Header, MAX_REQUESTS, Place};
pub use greeting::{Bootstrap, Greeting, Role, State, Status, VERSION, Welcome};
