//! What stands in files: certificates and keys. A key is never shown, nor a file's content.

use std::path::{Path, PathBuf};

use pelton_core::{Error, Result};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Where a certificate and its key stand (PEM).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

type Chain = Vec<CertificateDer<'static>>;

impl Identity {
    pub(crate) fn load(&self) -> Result<(Chain, PrivateKeyDer<'static>)> {
        let chain = certificates(&self.certificate)?;
        let pem = read(&self.key)?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
            Error::invalid(format!(
                "{} holds no private key (PEM); make one with `pelton certificates`",
                self.key.display()
            ))
        })?;
        Ok((chain, key))
    }
}

/// The authorities in a file.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if roots.add_parsable_certificates(certificates(path)?).0 == 0 {
        return Err(Error::invalid(format!(
            "{} holds no certificate that can be trusted; name the `ca.pem` that `pelton certificates` made",
            path.display()
        )));
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Chain> {
    let pem = read(path)?;
    let found: Result<Chain, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(Error::invalid(format!(
            "{} holds no certificate (PEM); make one with `pelton certificates`",
            path.display()
        ))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| {
        Error::invalid(format!(
            "{} cannot be read: {e}; `pelton certificates` makes such files, and they are copied to where they are used",
            path.display()
        ))
    })
}
