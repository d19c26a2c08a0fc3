//! Where instances are reached, as control pushes it to clients.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::InstanceId;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(addr) => write!(f, "tcp:{addr}"),
        }
    }
}

/// An instance that takes requests, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub instance: InstanceId,
    pub address: Address,
}

/// A change to the set of endpoints of one service, in the order in which they happened.
/// Law: a client that has applied all deltas since the last `Reset` knows the whole set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndpointDelta {
    /// The set is exactly this.
    Reset(Vec<Endpoint>),
    /// It is ready for traffic.
    Add(Endpoint),
    /// It finishes what it holds and takes nothing new.
    Drain(InstanceId),
    /// It is gone, and with it whatever it held.
    Remove(InstanceId),
}
