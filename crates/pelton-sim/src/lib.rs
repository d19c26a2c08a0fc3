//! Simulations of the service plane: one thread, virtual time, everything decided by a seed.
//!
//! [`faults`] asks whether it is correct: the real client, control and instances, with their tasks and connections, while
//! processes die and links break. [`chaos`] asks the same of whole jobs, data plane and all. [`flow`] asks whether it is good: the real state machines of client and instance against
//! modelled backends, beside other ways to decide how much may be in flight, and beside the best that hindsight finds.

pub mod chaos;
pub mod faults;
pub mod flow;
