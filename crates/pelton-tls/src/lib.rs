//! TLS around the connections between machines, and the certificates for it.
//!
//! [`Secured`] is a network whose `tls://` addresses are connected to under TLS: the peer's certificate is checked against the authorities
//! of the deployment and no others. [`Gate`] is the other side: what comes in passes through it before a byte of it is read. Both stand
//! around a [`pelton_env::Network`], whichever it is. [`certificates`] makes what they read. Protocol: TLS 1.3, and `pelton` as its application.

#[cfg(feature = "certificates")]
pub mod certificates;
mod client;
mod files;
mod server;
mod words;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use client::{Secured, Trust};
pub use files::Identity;
use pelton_env::{Clock, Connection};
pub use server::Gate;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::time_provider::TimeProvider;

/// The application that is spoken inside (RFC 7301): another one is refused in the handshake.
const APPLICATION: &[u8] = b"pelton";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The time by which certificates are checked.
struct Now(Arc<dyn Clock>);

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the clock")
    }
}

impl TimeProvider for Now {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.unix_millis())))
    }
}

/// A stream under TLS as a connection. What the peer says of our side comes with the first byte that is read, and is put into words there.
fn connection(
    stream: impl AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
    explain: impl Fn(io::Error) -> io::Error + Send + Sync + Unpin + 'static,
) -> Connection {
    let (read, write) = tokio::io::split(stream);
    // Memory is shared on one machine only, without TLS.
    let read = Box::new(words::Explained { inner: read, explain });
    Connection { read, write: Box::new(write), descriptors: None }
}
