//! Where instances are reached, as control pushes it to clients.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::InstanceId;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
    /// A host by its name, and a port; looked up anew for each connection.
    Host(String, u16),
    /// A host by its name or number, and a port, under TLS: its certificate has to be for this very name.
    Tls(String, u16),
}

impl Address {
    /// Whether nothing of what is said there leaves this machine.
    pub fn is_local(&self) -> bool {
        match self {
            Address::Unix(_) => true,
            Address::Tcp(at) => at.ip().is_loopback(),
            Address::Host(host, _) | Address::Tls(host, _) => host == "localhost",
        }
    }
}

/// `unix:/PATH`, `tcp://HOST:PORT` or `tls://HOST:PORT`; an IPv6 number stands in brackets.
impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::invalid(format!(
                "`{text}` is no address: {why}; write tls://HOST:PORT, tcp://HOST:PORT or unix:/PATH"
            ))
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
            return match path.is_absolute() {
                true => Ok(Address::Unix(path)),
                false => Err(wrong("a socket has an absolute path")),
            };
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("it does not say how to connect"))?;
        if scheme != "tcp" && scheme != "tls" {
            return Err(wrong(&format!("`{scheme}` is not known")));
        }
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| wrong("it has no port"))?;
        let port: u16 = port.parse().map_err(|_| wrong(&format!("`{port}` is no port")))?;
        let numeric = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = numeric.unwrap_or(host);
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let known = match numeric {
            Some(number) => number.parse::<Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.len() <= 253 && host.chars().all(plain),
        };
        if !known {
            return Err(wrong(&format!("`{host}` is no name of a host")));
        }
        match (scheme, host.parse()) {
            ("tls", _) => Ok(Address::Tls(host.to_owned(), port)),
            (_, Ok(ip)) => Ok(Address::Tcp(SocketAddr::new(ip, port))),
            (_, Err(_)) => Ok(Address::Host(host.to_owned(), port)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(addr) => write!(f, "tcp:{addr}"),
            Address::Host(host, port) => write!(f, "tcp://{host}:{port}"),
            Address::Tls(host, port) if host.contains(':') => write!(f, "tls://[{host}]:{port}"),
            Address::Tls(host, port) => write!(f, "tls://{host}:{port}"),
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
#[serde(rename_all = "lowercase")]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused_by_what_is_wrong_with_them() {
        for (text, expected) in [
            ("unix:/run/a.sock", "unix:/run/a.sock local"),
            ("unix:///run/a.sock", "unix:/run/a.sock local"),
            ("tcp://127.0.0.1:7000", "tcp:127.0.0.1:7000 local"),
            ("tcp://[::1]:7000", "tcp:[::1]:7000 local"),
            ("tcp://10.0.0.1:7000", "tcp:10.0.0.1:7000"),
            ("tcp://localhost:7000", "tcp://localhost:7000 local"),
            ("tcp://gpu1:7000", "tcp://gpu1:7000"),
            ("tls://gpu1.example:7000", "tls://gpu1.example:7000"),
            ("tls://10.0.0.1:7000", "tls://10.0.0.1:7000"),
            ("tls://[fe80::1]:7000", "tls://[fe80::1]:7000"),
            ("gpu1:7000", "how to connect"),
            ("http://gpu1:7000", "`http`"),
            ("tls://gpu1", "no port"),
            ("tls://gpu1:70000", "`70000`"),
            ("tls://:7000", "no name of a host"),
            ("tls://a b:7000", "`a b`"),
            ("tls://me@gpu1:7000", "`me@gpu1`"),
            ("tls://fe80::1:7000", "no name of a host"),
            ("unix:a.sock", "absolute"),
        ] {
            let read =
                text.parse::<Address>().map(|a| format!("{a}{}", if a.is_local() { " local" } else { "" }));
            match read {
                Ok(shown) => assert_eq!(shown, expected, "{text}"),
                Err(e) => assert!(e.message().contains(expected), "{text}: {e}"),
            }
        }
    }
}
