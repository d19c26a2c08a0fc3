//! The decisions of the service plane: facts and time in, a decision out.
//!
//! Nothing here waits, sends, reads a clock or draws a random number, so that all of it runs unchanged in a simulation.

pub mod backoff;
pub mod balance;
pub mod batch;
pub mod budget;
pub mod health;
pub mod limiter;
pub mod memory;
pub mod permit;
pub mod restart;
pub mod retry;
pub mod run_time;
pub mod stall;
