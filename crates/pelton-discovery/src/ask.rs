//! What a running job says, and does, for those who ask at its control's socket.

use pelton_core::endpoint::EndpointDelta;
use pelton_core::{Bytes, Declaration, Error, Result};
use pelton_env::Env;
use pelton_link::Link;
use pelton_wire::{Frame, Role};
use serde::{Deserialize, Serialize};

use crate::report::JobReport;
use crate::rundir::Found;

/// The largest message of such a conversation; a report may be longer.
pub const MAX_MESSAGE: Bytes = Bytes::kib(64);

/// What came of a command.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Done(serde_json::Value),
    Refused(String),
}

/// The command of control's own: say where the instances of a service are, and go on saying it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Follow {
    Follow { service: String },
}

/// Its answer. What follows are [`EndpointDelta`]s, the first of them a reset.
#[derive(Debug, Serialize, Deserialize)]
pub struct Followed {
    /// The service's declaration, without the `options` of its own.
    pub declaration: Declaration,
}

async fn meet(env: &Env, found: &Found, who: &str) -> Result<Link> {
    let greeting = pelton_link::greeting(Role::Observer, found.card.token(), &found.card.job, who, 1);
    let (_, link) = pelton_link::connect(env, &found.control, greeting, MAX_MESSAGE).await?;
    Ok(link)
}

/// Asks the control process of a job what runs.
pub async fn query(env: &Env, found: &Found) -> Result<JobReport> {
    let Link { sender, mut receiver } = meet(env, found, "status").await?;
    sender.send(Frame::Query);
    match receiver.next().await?.map(|m| m.frame) {
        Some(Frame::Report(report)) => serde_json::from_str(&report)
            .map_err(|e| Error::protocol(format!("the report cannot be read: {e}"))),
        _ => Err(Error::protocol("control did not answer")),
    }
}

/// Asks a job to do something, and returns when it is done.
pub async fn command(env: &Env, found: &Found, command: &serde_json::Value) -> Result<serde_json::Value> {
    ordered(env, found, command).await.map(|(done, _)| done)
}

async fn ordered(env: &Env, found: &Found, command: &serde_json::Value) -> Result<(serde_json::Value, Link)> {
    let mut link = meet(env, found, "command").await?;
    link.sender.send(Frame::Command(command.to_string()));
    let ended = |why: String| {
        Error::protocol(format!(
            "job {} ended before it answered, or is of a version that takes no commands{why}",
            found.card.job
        ))
    };
    match link.receiver.next().await.map_err(|e| ended(format!(": {e}")))?.map(|m| m.frame) {
        Some(Frame::Report(reply)) => match serde_json::from_str(&reply) {
            Ok(Reply::Done(value)) => Ok((value, link)),
            Ok(Reply::Refused(why)) => Err(Error::invalid(why)),
            Err(e) => Err(Error::protocol(format!("the answer cannot be read: {e}"))),
        },
        _ => Err(ended(String::new())),
    }
}

/// The endpoints of one service of a running job, as its control tells of them.
pub struct Endpoints {
    /// The service's declaration, without the `options` of its own.
    pub declaration: Declaration,
    link: Link,
}

/// Asks where the instances of a service are. An error of kind invalid is the job's own word: it has no such service.
pub async fn follow(env: &Env, found: &Found, service: &str) -> Result<Endpoints> {
    let command = Follow::Follow { service: service.to_owned() };
    let command = serde_json::to_value(command).expect("a command is plain data");
    let (answer, link) = ordered(env, found, &command).await?;
    let Followed { declaration } = serde_json::from_value(answer).map_err(|e| {
        Error::protocol(format!(
            "job {} is of another version: its answer cannot be read: {e}",
            found.card.job
        ))
    })?;
    Ok(Endpoints { declaration, link })
}

impl Endpoints {
    /// The next change, the present endpoints first. None: the job is gone, or its control is.
    pub async fn next(&mut self) -> Option<EndpointDelta> {
        match self.link.receiver.next().await.ok()??.frame {
            Frame::Report(delta) => serde_json::from_str(&delta).ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use pelton_core::endpoint::{Address, Endpoint};
    use pelton_core::id::InstanceId;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_said_of_endpoints_is_as_the_protocol_says() {
        let service = || "s".to_owned();
        let asked = serde_json::to_value(Follow::Follow { service: service() }).unwrap();
        assert_eq!(asked, json!({"command": "follow", "service": "s"}));
        let instance = InstanceId { service: service(), number: 1, incarnation: 2 };
        let named = json!({"service": "s", "number": 1, "incarnation": 2});
        let endpoint = Endpoint { instance: instance.clone(), address: Address::Unix("/a.sock".into()) };
        let there = json!({"instance": named, "address": {"unix": "/a.sock"}});
        for (delta, expected) in [
            (EndpointDelta::Reset(vec![endpoint.clone()]), json!({"reset": [there]})),
            (EndpointDelta::Add(endpoint), json!({"add": there})),
            (EndpointDelta::Drain(instance.clone()), json!({"drain": named})),
            (EndpointDelta::Remove(instance), json!({"remove": named})),
        ] {
            assert_eq!(serde_json::to_value(&delta).unwrap(), expected);
            assert_eq!(serde_json::from_value::<EndpointDelta>(expected).unwrap(), delta);
        }
    }
}
