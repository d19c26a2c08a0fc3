//! Pelton: dataflows whose model-inference steps are *services inside the job*, deployed, scaled and recovered apart
//! from the data plane.
//!
//! A program declares its services first, then the graph, then runs it:
//!
//! ```no_run
#![doc = include_str!("../examples/shout.rs")]
//! ```
//!
//! An instance of a service is the same program, started once more: [`Job::service`] notices, serves, and does not
//! return. So declare services before anything with an effect.

mod call;
mod command;
mod ending;
mod host;
mod instance;
mod job;
mod local;
mod reach;
mod region;
mod server;
mod shorthand;
mod stream;

pub use call::Services;
pub use command::Command;
pub use ending::Stopper;
pub use host::Snapshot;
pub use instance::{log, serve_instance};
pub use job::{Job, ServiceHandle, Settings};
pub use local::{Local, LocalParts};
pub use pelton_call as client;
pub use pelton_call::{Answers, CallOptions, Calls, Part};
pub use pelton_client::Stats;
pub use pelton_control as control;
pub use pelton_core::{
    Bytes, Declaration, Error, Fate, Kind, ObjectRef, RequestId, Result, Retry, Time, call::ErrorPolicy,
    call::Priority, declaration, meter, object, service,
};
pub use pelton_dataflow as dataflow;
pub use pelton_dataflow::plan::Changelog;
pub use pelton_env as env;
pub use pelton_files as files;
#[cfg(feature = "objects")]
pub use pelton_objects as objects;
pub use pelton_policy::restart;
#[cfg(feature = "postgres")]
pub use pelton_postgres as postgres;
pub use pelton_remote as remote;
pub use pelton_scripted as scripted;
pub use pelton_tls::certificates;
pub use region::Rescaled;
pub use server::{Server, Serving, serve};
#[cfg(feature = "postgres")]
pub use shorthand::postgres;
pub use shorthand::{console, json_lines, parquet, read_files, read_lines};
#[cfg(feature = "objects")]
pub use shorthand::{object_reader, objects, read_objects};
pub use stream::{Method, Stream};

/// What most programs use.
pub mod prelude {
    pub use crate::service::{Context, Invocation, Methods, Service};
    pub use crate::{
        Declaration, Error, ErrorPolicy, Job, Result, console, json_lines, parquet, read_files, read_lines,
    };
    pub use arrow_array::{self, RecordBatch};
    pub use arrow_schema::{DataType, Field};
}
