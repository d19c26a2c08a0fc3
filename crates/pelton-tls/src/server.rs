//! The side that is connected to: what comes in shakes hands under TLS before anything of it is read.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use pelton_core::{BoxFuture, Error, Fate, Kind, Result, Retry, Time};
use pelton_env::{Clock, Connection, Guard};
use pelton_wire::{Frame, Header, Place};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ServerConfig, version};

use crate::files::{Identity, authorities};
use crate::{APPLICATION, Now, connection, provider, words};

/// How often is looked whether the files have changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The first byte of TLS: a handshake record.
const HANDSHAKE: u8 = 0x16;
/// The first byte of a greeting in plain text.
const HELLO: u8 = 1;
/// Most that is read of a peer that has been told that this is the wrong way to speak.
const FAREWELL: u64 = 64 << 10;

/// Lets connections in under TLS. Renewed files are used from the next connection on.
pub struct Gate {
    identity: Identity,
    /// Whose certificates callers have to show, if they have to.
    callers: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    stamps: Vec<Option<SystemTime>>,
    looked: Time,
}

impl Gate {
    /// Shows this certificate; callers have to show one of the authorities in `callers`, if that is given.
    pub fn new(identity: Identity, callers: Option<PathBuf>, clock: Arc<dyn Clock>) -> Result<Gate> {
        let config = Arc::new(config(&identity, callers.as_deref(), &clock)?);
        let stamps = stamps(&identity, callers.as_deref());
        let loaded = Mutex::new(Loaded { config, stamps, looked: clock.now() });
        Ok(Gate { identity, callers, clock, loaded })
    }

    fn config(&self) -> Arc<ServerConfig> {
        let mut loaded = self.loaded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = self.clock.now();
        if now.since(loaded.looked) >= LOOK_EVERY {
            loaded.looked = now;
            let stamps = stamps(&self.identity, self.callers.as_deref());
            if stamps != loaded.stamps {
                loaded.stamps = stamps;
                match config(&self.identity, self.callers.as_deref(), &self.clock) {
                    Ok(config) => {
                        tracing::info!("{} is used as it is now", self.identity.certificate.display());
                        loaded.config = Arc::new(config);
                    }
                    Err(e) => tracing::warn!("the certificates that were read before are used on: {e}"),
                }
            }
        }
        loaded.config.clone()
    }
}

fn config(identity: &Identity, callers: Option<&Path>, clock: &Arc<dyn Clock>) -> Result<ServerConfig> {
    let (chain, key) = identity.load()?;
    let config = ServerConfig::builder_with_details(provider(), Arc::new(Now(clock.clone())))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|e| Error::internal(format!("TLS: {e}")))?;
    let config = match callers {
        None => config.with_no_client_auth(),
        Some(path) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(authorities(path)?), provider());
            let verifier = verifier.build().map_err(|e| {
                Error::invalid(format!("callers cannot be held against {}: {e}", path.display()))
            })?;
            config.with_client_cert_verifier(verifier)
        }
    };
    let mut config = config.with_single_cert(chain, key).map_err(|e| {
        Error::invalid(format!(
            "{} and {} do not belong together: {e}",
            identity.certificate.display(),
            identity.key.display()
        ))
    })?;
    config.alpn_protocols = vec![APPLICATION.to_vec()];
    Ok(config)
}

fn stamps(identity: &Identity, callers: Option<&Path>) -> Vec<Option<SystemTime>> {
    let files = [Some(identity.certificate.as_path()), Some(identity.key.as_path()), callers];
    let stamp = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    files.into_iter().flatten().map(stamp).collect()
}

impl Guard for Gate {
    fn admit(&self, plain: Connection) -> BoxFuture<io::Result<Connection>> {
        let config = self.config();
        let callers = self.callers.clone();
        Box::pin(async move {
            let Connection { mut read, mut write, .. } = plain;
            let mut first = [0];
            read.read_exact(&mut first).await?;
            match first[0] {
                HANDSHAKE => {}
                HELLO => {
                    let text = "this instance speaks TLS, and was spoken to in plain text; write tls:// for tcp://, \
                                with `access.certificates`";
                    write.write_all(&refusal(text)).await?;
                    write.shutdown().await?;
                    // A connection that is closed while something of it is unread may lose what was said last.
                    tokio::io::copy(&mut read.take(FAREWELL), &mut tokio::io::sink()).await?;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a caller spoke in plain text"));
                }
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "what came was not TLS")),
            }
            let explain = move |e| words::to_server(e, callers.as_deref());
            let whole = io::Cursor::new(first).chain(read);
            let stream =
                TlsAcceptor::from(config).accept(tokio::io::join(whole, write)).await.map_err(&explain)?;
            Ok(connection(stream, explain))
        })
    }
}

/// A refusal as a peer without TLS reads it.
fn refusal(text: &str) -> Vec<u8> {
    let frame = Frame::Refused(Error::new(Kind::Protocol, Fate::NotSent, Retry::Never, text));
    let meta = frame.encode_meta();
    let mut bytes = Header { kind: frame.kind(), meta: meta.len() as u32, body: 0, place: Place::Inline }
        .encode()
        .to_vec();
    bytes.extend(meta);
    bytes
}
