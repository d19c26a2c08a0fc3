//! Both ends of a connection in one process, over real sockets; and ends that lie.

mod bodies;
mod lies;
#[path = "../support/mod.rs"]
mod support;
