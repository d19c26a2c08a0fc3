//! The error that crosses every face of Pelton.
//!
//! In a distributed system two facts decide what a caller does next, so the error carries them: what the far side may
//! have done ([`Fate`]), and what to do about it ([`Retry`]). No caller has to match strings.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the far side may have done with the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fate {
    /// It never left this process.
    NotSent,
    /// The far side took it and said no, without running it.
    Refused,
    /// It was sent; whether it ran is not known.
    Unknown,
    /// It ran.
    Executed,
}

/// What the caller should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Retry {
    /// Sending it again gives the same error.
    Never,
    /// The same endpoint may answer.
    Here,
    /// Another endpoint may answer.
    Elsewhere,
    /// Any endpoint may answer, once this time has passed.
    After(Duration),
}

/// What went wrong. Every kind has one line in [`Kind::ALL`], which bindings walk in their tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Kind {
    /// No connection could be made. Counts against the endpoint.
    Connect = 1,
    /// A connection broke. Counts against the endpoint.
    Reset = 2,
    /// The far side holds as much as it will. Counts against the endpoint.
    Overload = 3,
    /// Work is held and nothing moves. Counts against the endpoint.
    NoProgress = 4,
    /// The deadline passed.
    Deadline = 5,
    /// Somebody took the request back.
    Cancelled = 6,
    /// The caller's mistake: bad arguments, schema, name, configuration.
    Invalid = 7,
    /// The user's method, operator or `open` failed.
    User = 8,
    /// A limit was hit; the message names it.
    Limit = 9,
    /// The far side broke the protocol, or speaks another version.
    Protocol = 10,
    /// Not authenticated, or fenced off by a newer epoch.
    Denied = 11,
    /// Files and other storage.
    Storage = 12,
    /// A mistake of Pelton's own.
    Internal = 13,
    /// The user's method ran out of memory. The instance runs the batch again in halves, and smaller ones from then on.
    OutOfMemory = 14,
}

impl Kind {
    pub const ALL: [Kind; 14] = [
        Kind::Connect,
        Kind::Reset,
        Kind::Overload,
        Kind::NoProgress,
        Kind::Deadline,
        Kind::Cancelled,
        Kind::Invalid,
        Kind::User,
        Kind::Limit,
        Kind::Protocol,
        Kind::Denied,
        Kind::Storage,
        Kind::Internal,
        Kind::OutOfMemory,
    ];

    /// The stable number that stands for this kind on the wire.
    pub fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.code() == code)
    }

    /// The stable name, as it stands in error rows and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Connect => "connect",
            Kind::Reset => "reset",
            Kind::Overload => "overload",
            Kind::NoProgress => "no-progress",
            Kind::Deadline => "deadline",
            Kind::Cancelled => "cancelled",
            Kind::Invalid => "invalid",
            Kind::User => "user",
            Kind::Limit => "limit",
            Kind::Protocol => "protocol",
            Kind::Denied => "denied",
            Kind::Storage => "storage",
            Kind::Internal => "internal",
            Kind::OutOfMemory => "out-of-memory",
        }
    }

    /// Whether an endpoint that gives this error is to blame for it: a caller's mistake never is.
    pub fn counts_against_endpoint(self) -> bool {
        matches!(self, Kind::Connect | Kind::Reset | Kind::Overload | Kind::NoProgress)
    }
}

/// An error of Pelton's: what failed, in words, with its [`Fate`] and [`Retry`].
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Inner {
    kind: Kind,
    fate: Fate,
    retry: Retry,
    message: String,
}

impl Error {
    pub fn new(kind: Kind, fate: Fate, retry: Retry, message: impl Into<String>) -> Self {
        Error { inner: Box::new(Inner { kind, fate, retry, message: message.into() }) }
    }

    /// The caller's mistake, found before anything was sent.
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(Kind::Invalid, Fate::NotSent, Retry::Never, message)
    }

    /// The user's code failed on this input and will fail again.
    pub fn user(message: impl Into<String>) -> Self {
        Error::new(Kind::User, Fate::Executed, Retry::Never, message)
    }

    /// The user's code failed, and the same input may pass another time.
    pub fn transient(message: impl Into<String>) -> Self {
        Error::new(Kind::User, Fate::Executed, Retry::Elsewhere, message)
    }

    /// The user's code ran out of memory and survived it. A batch of several rows is run again in halves.
    pub fn out_of_memory(message: impl Into<String>) -> Self {
        Error::new(Kind::OutOfMemory, Fate::Executed, Retry::Never, message)
    }

    /// A limit was hit; `message` names it and what to change.
    pub fn limit(message: impl Into<String>) -> Self {
        Error::new(Kind::Limit, Fate::NotSent, Retry::Never, message)
    }

    /// A file or other storage failed.
    pub fn storage(message: impl Into<String>) -> Self {
        Error::new(Kind::Storage, Fate::NotSent, Retry::Never, message)
    }

    /// The far side broke the protocol.
    pub fn protocol(message: impl Into<String>) -> Self {
        Error::new(Kind::Protocol, Fate::Unknown, Retry::Elsewhere, message)
    }

    /// A mistake of Pelton's own.
    pub fn internal(message: impl Into<String>) -> Self {
        Error::new(Kind::Internal, Fate::Unknown, Retry::Never, message)
    }

    pub fn kind(&self) -> Kind {
        self.inner.kind
    }
    pub fn fate(&self) -> Fate {
        self.inner.fate
    }
    pub fn retry(&self) -> Retry {
        self.inner.retry
    }
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    pub fn with_fate(mut self, fate: Fate) -> Self {
        self.inner.fate = fate;
        self
    }
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.inner.retry = retry;
        self
    }

    /// Puts what was being done before the message: `reading config.toml: no such file`.
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.inner.message = format!("{doing}: {}", self.inner.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, fate, retry, message } = &*self.inner;
        write!(f, "{message} [{}, {fate:?}, retry {retry:?}]", kind.name())
    }
}

impl std::error::Error for Error {}

/// Files and sockets of this machine; what a socket error means for a request, its owner says with
/// [`Error::with_fate`].
impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        Error::storage(e.to_string())
    }
}

impl From<arrow_schema::ArrowError> for Error {
    fn from(e: arrow_schema::ArrowError) -> Self {
        Error::new(Kind::User, Fate::NotSent, Retry::Never, e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_code_and_name() {
        for (i, a) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(Kind::from_code(a.code()), Some(a));
            for b in &Kind::ALL[i + 1..] {
                assert_ne!(a.code(), b.code());
                assert_ne!(a.name(), b.name());
            }
        }
        assert_eq!(Kind::from_code(0), None);
    }
}
