//! What both sides say first, and what an instance says of itself. Rare frames, so their meta is JSON.

use std::time::Duration;

use pelton_core::endpoint::Address;
use pelton_core::id::InstanceId;
use pelton_core::meter::InstanceMeter;
use pelton_core::service::MethodSpec;
use pelton_core::{Bytes, Declaration, Error, Result};
use serde::{Deserialize, Serialize};

/// What an instance is told when it is started, as JSON on its standard input.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    pub instance: InstanceId,
    pub job: String,
    /// Whoever connects must know it.
    pub token: String,
    /// Where to listen.
    pub address: Address,
    /// What it is made of: whoever wants the same may adopt it.
    pub config: String,
    pub declaration: Declaration,
}

/// The protocol's version. Peers agree on the highest that both speak.
pub const VERSION: u16 = 4;

/// Why somebody connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sends requests.
    Caller,
    /// Supervises: its presence is the instance's lease.
    Control,
    /// Looks.
    Observer,
}

/// The first frame of whoever connects.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    pub oldest: u16,
    pub newest: u16,
    pub role: Role,
    /// The job's token.
    pub token: String,
    pub job: String,
    /// Tells callers of one job apart; the same after a restart.
    pub client: String,
    /// Grows with each start of the same client; a newer one fences off the older.
    pub epoch: u64,
}

/// The token stays out of logs.
impl std::fmt::Debug for Greeting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Greeting { oldest, newest, role, job, client, epoch, .. } = self;
        write!(f, "Greeting {{ v{oldest}..=v{newest}, {role:?}, job {job}, client {client}, epoch {epoch} }}")
    }
}

/// The answer to a greeting that was accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    pub version: u16,
    pub instance: InstanceId,
    /// What it is made of (see [`Bootstrap::config`]).
    pub config: String,
    pub methods: Vec<MethodSpec>,
    /// The largest frame that this side takes.
    pub max_message: Bytes,
    pub status: Status,
}

/// Where an instance is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// `open` runs.
    Opening,
    /// Takes requests.
    Ready,
    /// Finishes what it holds, takes nothing new.
    Draining,
    /// `open` gave this error.
    Failed { message: String, permanent: bool },
}

/// What an instance says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub state: State,
    pub pid: u32,
    /// Requests queued or running now.
    pub held: u64,
    /// Requests that ended since the start.
    pub executed: u64,
    /// Batches run since the start.
    pub batches: u64,
    /// Bytes in the ledger.
    pub ledger_bytes: u64,
    /// Results that the ledger had to forget before they were acknowledged.
    pub evicted: u64,
    /// How long the longest run goes on without giving anything.
    pub standstill: Duration,
    /// Where the time of its requests went.
    pub meter: InstanceMeter,
}

impl Greeting {
    /// The version that both speak, or why there is none.
    pub fn agree(&self, oldest: u16, newest: u16) -> Result<u16> {
        let version = self.newest.min(newest);
        if version < oldest || version < self.oldest {
            return Err(Error::protocol(format!(
                "the peer speaks protocol versions {} to {}, this side {oldest} to {newest}; use the same Pelton on both",
                self.oldest, self.newest
            )));
        }
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(oldest: u16, newest: u16) -> Greeting {
        let (token, job, client) = ("secret".into(), "j".into(), "c".into());
        Greeting { oldest, newest, role: Role::Caller, token, job, client, epoch: 1 }
    }

    #[test]
    fn the_highest_common_version_is_agreed() {
        assert_eq!(greeting(1, 3).agree(1, 2), Ok(2));
        assert_eq!(greeting(1, 1).agree(1, 4), Ok(1));
        assert!(greeting(3, 5).agree(1, 2).unwrap_err().message().contains("versions 3 to 5"));
        assert!(greeting(1, 1).agree(2, 2).is_err());
    }

    #[test]
    fn a_greeting_does_not_print_its_token() {
        assert!(!format!("{:?}", greeting(1, 1)).contains("secret"));
    }
}
