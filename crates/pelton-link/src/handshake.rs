//! Who is there? Version, role and token, before anything else is read.

use std::io;
use std::time::Duration;

use pelton_core::endpoint::Address;
use pelton_core::{Bytes, Error, Fate, Kind, Result, Retry};
use pelton_env::{Connection, Env};
use pelton_wire::{Frame, Greeting, VERSION, Welcome};

use crate::receive::{Receiver, broken};
use crate::send::{Sender, write_frame};
use crate::{Link, Methods};

/// A peer that takes longer than this to say who it is is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest name of a client or job, in bytes.
const LONGEST_NAME: usize = 256;

/// Connects and greets. The error's fate is `NotSent`: no request has been near this connection.
pub async fn connect(
    env: &Env,
    to: &Address,
    greeting: Greeting,
    max_message: Bytes,
) -> Result<(Welcome, Link)> {
    let attempt = async {
        let mut connection = env.network.connect(to).await.map_err(|e| unreachable(to, &e))?;
        write_frame(&mut *connection.write, &Frame::Hello(greeting))
            .await
            .map_err(|e| unreachable(to, &e))?;
        let mut receiver = Receiver::of_known(connection.read, max_message);
        match receiver.next().await?.map(|m| m.frame) {
            Some(Frame::Welcome(welcome)) => {
                receiver.methods = Methods(welcome.methods.clone().into());
                let sender = Sender::start(env, connection.write);
                Ok((*welcome, Link { sender, receiver }))
            }
            Some(Frame::Refused(error)) => Err(error),
            Some(_) => {
                Err(Error::protocol(format!("{to} did not answer the greeting; is it a Pelton endpoint?")))
            }
            None => Err(unreachable(to, &io::ErrorKind::UnexpectedEof.into())),
        }
    };
    let late = || {
        Error::new(
            Kind::Connect,
            Fate::NotSent,
            Retry::Elsewhere,
            format!("{to} did not answer within {PATIENCE:?}"),
        )
    };
    env.within(PATIENCE, attempt).await.unwrap_or_else(|| Err(late())).map_err(|e| e.with_fate(Fate::NotSent))
}

fn unreachable(to: &Address, e: &io::Error) -> Error {
    Error::new(Kind::Connect, Fate::NotSent, Retry::Elsewhere, format!("no connection to {to}: {e}"))
}

/// What a listening side asks of whoever comes.
#[derive(Clone)]
pub struct Door {
    /// The job's token; a greeting with another is refused.
    pub token: String,
    pub max_message: Bytes,
}

/// Somebody who greeted properly and waits for an answer.
pub struct Caller {
    pub greeting: Greeting,
    pub version: u16,
    connection_write: Box<dyn tokio::io::AsyncWrite + Send + Sync + Unpin>,
    receiver: Receiver,
}

impl Door {
    /// Reads a greeting from a new connection and checks it; who fails the check is told why, and dropped.
    pub async fn answer(&self, env: &Env, connection: Connection) -> Result<Caller> {
        let Connection { read, mut write } = connection;
        // No body is read before the token has been seen.
        let mut receiver = Receiver::of_stranger(read);
        let greeting = match env.within(PATIENCE, receiver.next()).await {
            Some(Ok(Some(message))) => match message.frame {
                Frame::Hello(greeting) => self.check(&greeting).map(|version| (greeting, version)),
                _ => Err(Error::protocol("the first frame was no greeting")),
            },
            Some(Ok(None)) => Err(broken(&io::ErrorKind::UnexpectedEof.into())),
            Some(Err(e)) => Err(e),
            None => Err(Error::protocol(format!("no greeting within {PATIENCE:?}"))),
        };
        match greeting {
            Ok((greeting, version)) => {
                receiver.trust(self.max_message);
                Ok(Caller { greeting, version, connection_write: write, receiver })
            }
            Err(error) => {
                let _ = write_frame(&mut *write, &Frame::Refused(error.clone())).await;
                Err(error)
            }
        }
    }

    fn check(&self, greeting: &Greeting) -> Result<u16> {
        if !same_secret(&greeting.token, &self.token) {
            return Err(Error::new(Kind::Denied, Fate::Refused, Retry::Never, "the token is not this job's"));
        }
        let longest = greeting.client.len().max(greeting.job.len());
        if longest > LONGEST_NAME {
            return Err(Error::protocol(format!(
                "a name of {longest} bytes in a greeting is over the limit of {LONGEST_NAME}"
            )));
        }
        greeting.agree(VERSION, VERSION)
    }
}

/// Takes as long for a secret that is nearly right as for one that is all wrong.
fn same_secret(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

impl Caller {
    /// Lets them in.
    pub async fn welcome(mut self, env: &Env, welcome: Welcome) -> Result<Link> {
        self.receiver.methods = Methods(welcome.methods.clone().into());
        let frame = Frame::Welcome(Box::new(welcome));
        write_frame(&mut *self.connection_write, &frame).await.map_err(|e| broken(&e))?;
        Ok(Link { sender: Sender::start(env, self.connection_write), receiver: self.receiver })
    }

    /// Tells them why not.
    pub async fn refuse(mut self, error: Error) {
        let _ = write_frame(&mut *self.connection_write, &Frame::Refused(error)).await;
    }
}

/// A greeting in today's version.
pub fn greeting(role: pelton_wire::Role, token: &str, job: &str, client: &str, epoch: u64) -> Greeting {
    Greeting {
        oldest: VERSION,
        newest: VERSION,
        role,
        token: token.to_owned(),
        job: job.to_owned(),
        client: client.to_owned(),
        epoch,
    }
}
