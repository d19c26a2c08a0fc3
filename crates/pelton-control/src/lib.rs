//! Desired against actual: starts instances, watches over them, and tells clients where they are.
//!
//! [`lifecycle`] decides (pure) for one instance; [`supervisor`] acts for it; [`control`] holds all of a job's services
//! together. None of it is in the data path: while control is away, requests go on.

mod adoption;
mod control;
mod lifecycle;
mod supervisor;

pub use adoption::Survey;
pub use control::{Callers, Commands, Control, Progress, Remotes, Settings};
pub use pelton_discovery::ask::{command, query};
pub use pelton_discovery::report::{
    CallerReport, InstanceReport, JobReport, RemoteEndpointReport, RemoteReport, ServiceReport,
};
pub use pelton_discovery::served::Reach;
pub use pelton_discovery::{report, rundir};
