//! Calls, to be measured: one after another in several lanes, or at a fixed rate.
//!
//! With the feature `program` there is also a program with callers and servers made of other libraries: tonic's gRPC ([`grpc`]) and
//! HTTP of hyper ([`http`]). It is built by itself, so that no other build has those libraries.
//!
//! Nothing of Pelton's is in here, not even its clock.

#[cfg(feature = "program")]
pub mod grpc;
#[cfg(feature = "program")]
pub mod http;
pub mod load;
