//! Keeps the instances of a service for hosts whose own processes come and go, such as the tasks of a Flink job.
//!
//! An *agent* is a process of its own, one for each pool of instances on a machine. Whoever wants one instance of it there *holds* the pool:
//! an open connection is one instance wanted. Holds that break are waited for, for the lease, so that what takes their place finds its
//! instances warm; then the pool shrinks, and the agent of an empty one ends. Instances are started, adopted and supervised by
//! `pelton-control`, as in any job; the run folder is that of a job, so that callers and `pelton status` find them there.
//!
//! `order.rs` says what is wanted, `pool.rs` decides how many instances there are (pure), `agent.rs` is the process, `hold.rs` the other end
//! of a hold, for threads that may block.

mod agent;
mod hold;
mod order;
mod pool;

pub use agent::{detach, run};
pub use hold::{Hold, tell};
pub use order::Order;
