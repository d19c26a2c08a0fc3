//! What control says of a job to those who look.

use std::fmt;
use std::time::Duration;

use pelton_core::meter::{CallerMeter, InstanceMeter};
use serde::{Deserialize, Serialize};

/// A job, its services and what its data plane says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobReport {
    pub job: String,
    pub name: String,
    pub pid: u32,
    /// Milliseconds since the Unix epoch.
    pub started: u64,
    pub services: Vec<ServiceReport>,
    /// Services that are servers of other people.
    #[serde(default)]
    pub remotes: Vec<RemoteReport>,
    /// Progress of the data plane, if there is one.
    pub progress: serde_json::Value,
}

/// A service that is not ours, as its caller sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemoteReport {
    pub name: String,
    pub protocol: String,
    pub model: String,
    /// Requests that have not ended, and those of them that servers have.
    pub unended: u64,
    pub sent: u64,
    pub retries: u64,
    pub endpoints: Vec<RemoteEndpointReport>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemoteEndpointReport {
    pub url: String,
    /// Calls that may be in flight, as measured.
    pub window: f64,
    pub in_flight: u64,
    pub answers: u64,
    /// Answers that said "not now" (429).
    pub refusals: u64,
    pub failures: u64,
    /// It gets nothing but a call now and then that tries whether it is back.
    pub ejected: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    pub name: String,
    pub wanted: u32,
    pub instances: Vec<InstanceReport>,
    /// What the job's own callers have in hand and have seen.
    #[serde(default)]
    pub callers: CallerReport,
}

impl ServiceReport {
    pub fn ready(&self) -> usize {
        self.instances.iter().filter(|i| i.phase == Phase::Ready).count()
    }
}

/// The callers of a service in the job's process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallerReport {
    /// Requests that have not ended.
    pub unended: u64,
    /// Of those, the ones that instances hold.
    pub held: u64,
    pub meter: CallerMeter,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceReport {
    /// `service-number.incarnation`.
    pub instance: String,
    pub phase: Phase,
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
    pub held: u64,
    pub executed: u64,
    pub batches: u64,
    /// How long its longest run has given nothing.
    #[serde(default)]
    pub standstill: Duration,
    #[serde(default)]
    pub meter: InstanceMeter,
    pub last_error: Option<String>,
    /// Where it logs; empty if that is not on this machine, or not known.
    pub log: String,
    /// Where it is reached, if others started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// Where an instance is in its life, as control sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The process was started, and has not said anything yet.
    Starting,
    /// Its `open` runs.
    Opening,
    /// It takes requests.
    Ready,
    /// It finishes what it holds.
    Draining,
    /// It died, and is started again after a wait.
    Waiting,
    /// It is gone and stays so.
    Stopped,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Starting => "starting",
            Phase::Opening => "opening",
            Phase::Ready => "ready",
            Phase::Draining => "draining",
            Phase::Waiting => "waiting",
            Phase::Stopped => "stopped",
        })
    }
}
