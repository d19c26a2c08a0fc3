//! The side that connects: a network with TLS for the addresses that ask for it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use pelton_core::{BoxFuture, Error, Result};
use pelton_env::{Address, Clock, Connection, Listener, Network};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, version};

use crate::files::{Identity, authorities};
use crate::{APPLICATION, Now, connection, provider, words};

/// Whom to trust, and what to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The file with the authorities' certificates.
    pub authorities: PathBuf,
    /// For instances that ask their callers for a certificate.
    pub identity: Option<Identity>,
}

impl Trust {
    /// Reads the files: anew for each connection, so that renewed certificates are used from the next one on.
    fn config(&self, clock: &Arc<dyn Clock>) -> Result<ClientConfig> {
        let roots = authorities(&self.authorities)?;
        let config = ClientConfig::builder_with_details(provider(), Arc::new(Now(clock.clone())))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|e| Error::internal(format!("TLS: {e}")))?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => config.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = identity.load()?;
                config.with_client_auth_cert(chain, key).map_err(|e| {
                    Error::invalid(format!(
                        "{} and {} do not belong together: {e}",
                        identity.certificate.display(),
                        identity.key.display()
                    ))
                })?
            }
        };
        config.alpn_protocols = vec![APPLICATION.to_vec()];
        Ok(config)
    }

    /// Whether all files are there and can be used.
    pub fn check(&self, clock: &Arc<dyn Clock>) -> Result<()> {
        self.config(clock).map(drop)
    }
}

/// A network that speaks TLS where an address says so, and is the inner one for the rest.
pub struct Secured {
    inner: Arc<dyn Network>,
    clock: Arc<dyn Clock>,
    trust: Trust,
}

impl Secured {
    pub fn new(inner: Arc<dyn Network>, clock: Arc<dyn Clock>, trust: Trust) -> Self {
        Secured { inner, clock, trust }
    }
}

impl Network for Secured {
    fn connect(&self, to: &Address) -> BoxFuture<io::Result<Connection>> {
        let Address::Tls(host, port) = to else { return self.inner.connect(to) };
        let (host, trust) = (host.clone(), self.trust.clone());
        let config = trust.config(&self.clock);
        let plain = match host.parse() {
            Ok(ip) => Address::Tcp(SocketAddr::new(ip, *port)),
            Err(_) => Address::Host(host.clone(), *port),
        };
        let connecting = self.inner.connect(&plain);
        Box::pin(async move {
            let config = config
                .map_err(|e| io::Error::new(io::ErrorKind::PermissionDenied, e.message().to_owned()))?;
            let name = ServerName::try_from(host.clone()).map_err(|_| {
                io::Error::new(io::ErrorKind::InvalidInput, format!("`{host}` is no name of a host"))
            })?;
            let explain = move |e| {
                let shows = trust.identity.as_ref().map(|i| i.certificate.as_path());
                words::to_caller(e, &host, &trust.authorities, shows)
            };
            let Connection { read, write, .. } = connecting.await?;
            let connector = TlsConnector::from(Arc::new(config));
            let stream = connector.connect(name, tokio::io::join(read, write)).await.map_err(&explain)?;
            Ok(connection(stream, explain))
        })
    }

    fn resolve(&self, host: &str, port: u16) -> BoxFuture<io::Result<Vec<SocketAddr>>> {
        self.inner.resolve(host, port)
    }

    fn listen(&self, at: &Address) -> io::Result<Box<dyn Listener>> {
        self.inner.listen(at)
    }
}
