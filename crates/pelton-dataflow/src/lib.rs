//! The embedded data plane.
//!
//! It sees a service only as a [`Caller`](pelton_core::call::Caller). A [`Plan`](plan::Plan) describes a graph,
//! [`Plan::validate`](plan::Plan::validate) checks it as a whole, [`Job::start`](job::Job::start) runs what came of it.
//!
//! Within: a [`Topology`](topology::Topology) is cut into stages, each a number of subtasks. A subtask is a state machine
//! whose `step` never waits; the loop around it sleeps until something wakes it. Subtasks see each other only through
//! byte-bounded edges, and the coordinator through commands and reports.

mod checkpoint;
mod conduct;
mod default;
mod edge;
mod explain;
mod inputs;
mod keys;
mod outbox;
mod pending;
mod row;
mod splits;
mod stage;
mod subtask;
mod validate;
mod wiring;

pub mod batch;
pub mod job;
pub mod operator;
pub mod plan;
pub mod progress;
pub mod savepoint;
pub mod sink;
pub mod source;
pub mod topology;

pub use explain::Budgets;
pub use row::show;
