//! What a failed handshake means, in words that name the file or setting and the next step.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

/// The side that reads, with errors in words.
pub(crate) struct Explained<R, F> {
    pub(crate) inner: R,
    pub(crate) explain: F,
}

impl<R, F> AsyncRead for Explained<R, F>
where
    R: AsyncRead + Unpin,
    F: Fn(io::Error) -> io::Error + Unpin,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        read.map_err(|e| (self.explain)(e))
    }
}

fn of_tls(e: &io::Error) -> Option<&Error> {
    e.get_ref()?.downcast_ref()
}

/// How the caller sees it. `PermissionDenied` where trust is missing, on either side: trying again does not help.
pub(crate) fn to_caller(e: io::Error, host: &str, authorities: &Path, shows: Option<&Path>) -> io::Error {
    let denied = |text: String| io::Error::new(io::ErrorKind::PermissionDenied, text);
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let Some(tls) = of_tls(&e) else {
        return match e.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(
                e.kind(),
                "it ended the connection within TLS; is it a Pelton instance that is served with --tls?",
            ),
            _ => e,
        };
    };
    match tls {
        Error::InvalidCertificate(why) => denied(certificate(why, host, authorities)),
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => denied(
                "it wants a certificate of its callers, and got none: set `access.certificate` and `access.key`, or put `client.pem` and \
                 `client-key.pem` of `pelton certificates` into `access.certificates`"
                    .into(),
            ),
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied => {
                let ours = shows.map_or_else(|| "none".to_owned(), |path| path.display().to_string());
                denied(format!(
                    "it does not accept this side's certificate ({ours}; {alert:?}): it has to be of the instance's own authority and \
                     not expired; run `pelton certificates` where that authority is, and copy `client.pem` and its key"
                ))
            }
            AlertDescription::NoApplicationProtocol => {
                invalid("it speaks TLS, but it is no Pelton instance; is it the right port?".into())
            }
            _ => invalid(format!("it refused TLS ({alert:?}); use the same Pelton on both sides")),
        },
        Error::InvalidMessage(_) => invalid(
            "it does not speak TLS: serve the instance with --tls, or write tcp:// if it is meant to be in plain text".into(),
        ),
        Error::PeerIncompatible(why) => {
            invalid(format!("it has no TLS in common with this side ({why:?}); use the same Pelton on both"))
        }
        other => io::Error::new(e.kind(), format!("TLS: {other}")),
    }
}

fn certificate(why: &CertificateError, host: &str, authorities: &Path) -> String {
    let renew =
        "run `pelton certificates` again where its authority is, and copy the new server.pem to the instance";
    match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "its certificate is of an authority that {} does not hold; use the ca.pem that was made with the certificate \
             (`access.certificates` or `access.ca`)",
            authorities.display()
        ),
        CertificateError::ExpiredContext { time, not_after } => {
            let days = time.as_secs().saturating_sub(not_after.as_secs()) / 86_400;
            format!("its certificate expired {days} days ago; {renew}")
        }
        CertificateError::Expired => format!("its certificate has expired; {renew}"),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; compare the clocks of both machines".into()
        }
        CertificateError::NotValidForName => {
            format!("its certificate is not for `{host}`; run `pelton certificates` with --host {host}, too")
        }
        CertificateError::NotValidForNameContext { presented, .. } => format!(
            "its certificate is for {}, and not for `{host}`; connect by one of these, or run `pelton certificates` with --host {host}, too",
            presented.join(", ")
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not one for servers; serve with server.pem, not client.pem".into()
        }
        other => format!("its certificate is not accepted: {other:?}"),
    }
}

/// How the side that was connected to sees it.
pub(crate) fn to_server(e: io::Error, authorities: Option<&Path>) -> io::Error {
    let named = || authorities.map_or_else(|| "none".to_owned(), |path| path.display().to_string());
    let text = match of_tls(&e) {
        Some(Error::NoCertificatesPresented) => {
            "a caller showed no certificate, and this instance wants one".to_owned()
        }
        Some(Error::InvalidCertificate(why)) => {
            format!("a caller's certificate is not accepted ({why:?}); authorities: {}", named())
        }
        Some(Error::AlertReceived(alert)) => {
            format!("a caller does not accept this instance's certificate, or gave up ({alert:?})")
        }
        Some(other) => format!("TLS with a caller failed: {other}"),
        None => return e,
    };
    io::Error::new(e.kind(), text)
}
