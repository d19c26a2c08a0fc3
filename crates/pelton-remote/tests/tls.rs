//! https: a server whose authority is trusted is spoken to, and one whose is not gets nothing.
//!
//! This test has its own `main`: which authorities are trusted is a matter of the environment, so it starts itself again with another one.

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::process::Command;
use std::sync::Arc;

use common::{caller, declaration, embed, number, submit};
use faulty::{Behaviour, Faulty, Wrap};
use pelton_core::{Fate, Kind};
use pelton_env::Connection;
use pelton_env::real::Host;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

const CERTIFICATE: &str = "PELTON_TEST_CERTIFICATE";
const KEY: &str = "PELTON_TEST_KEY";

fn main() {
    match std::env::var(CERTIFICATE) {
        Ok(certificate) => {
            with(&certificate, &std::env::var(KEY).expect("the key comes with the certificate"))
        }
        Err(_) => again(),
    }
}

/// Makes a certificate and starts this program once more, in an environment where it is trusted, and it alone.
fn again() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trusted.pem");
    std::fs::write(&file, made.cert.pem()).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .env("SSL_CERT_FILE", &file)
        .env_remove("SSL_CERT_DIR")
        .env(CERTIFICATE, made.cert.pem())
        .env(KEY, made.signing_key.serialize_pem())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

/// A server's side of TLS with this certificate.
fn tls(certificate: &str, key: &str) -> Wrap {
    use tokio_rustls::rustls::pki_types::CertificateDer;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Arc::new(move |plain| {
        let accepting = acceptor.accept(tokio::io::join(plain.read, plain.write));
        Box::pin(async move {
            let (read, write) = tokio::io::split(accepting.await?);
            Ok(Connection { read: Box::new(read), write: Box::new(write), descriptors: None })
        })
    })
}

fn with(certificate: &str, key: &str) {
    let host = Host::new(2, 2).unwrap();
    let env = host.env().clone();
    host.block_on(async {
        let quick = "[retry]\nattempts = 2\nbackoff = \"5ms\"\n";
        let trusted = Faulty::wrapped(&env, "https", tls(certificate, key), |_| Behaviour::Answer);
        let declared = declaration("openai", std::slice::from_ref(&trusted.url), quick, "");
        let good = caller(&env, &declared, embed(), None);
        let ended = submit(&good, &["0", "1", "2"]).ended(&env, 3).await;
        for (id, parts) in ended {
            assert_eq!(number(parts[0].as_ref().expect("an answer")), id as f32);
        }

        let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let other = tls(&other.cert.pem(), &other.signing_key.serialize_pem());
        let stranger = Faulty::wrapped(&env, "https", other, |_| Behaviour::Answer);
        let declared = declaration("openai", std::slice::from_ref(&stranger.url), quick, "");
        let bad = caller(&env, &declared, embed(), Some("sk-very-secret"));
        let parts = submit(&bad, &["7"]).ended(&env, 1).await.remove(&0).unwrap();
        let error = parts[0].as_ref().expect_err("a stranger");
        assert_eq!((error.kind(), error.fate()), (Kind::Connect, Fate::NotSent), "{error:?}");
        assert!(error.message().contains("certificate"), "{error}");
        assert_eq!(stranger.requests(), 0, "no key and no row goes to a stranger");
    });
    println!("a trusted server answers, and a stranger gets nothing");
}
