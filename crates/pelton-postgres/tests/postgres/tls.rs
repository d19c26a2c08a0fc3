//! TLS, which a proxy ends before the server.

use std::net::Ipv4Addr;
use std::sync::Arc;

use pelton_dataflow::sink::Sink;
use pelton_env::{Env, Place, Task};
use pelton_postgres::{Connection, Settings};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::server::Server;
use crate::{checked, holds, says, stage};

/// What a client says first if it wants TLS (PostgreSQL's documentation, "SSLRequest").
const WANTS_TLS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Takes TLS and nothing else, with a certificate for `name`. Gives its port.
async fn proxy(
    env: &Env,
    server: u16,
    issuer: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
) -> (u16, Task) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let own = env.clone();
    let task = env.spawn(Place::Network, async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            let serve = async move {
                let mut first = [0; 8];
                client.read_exact(&mut first).await?;
                if first != WANTS_TLS {
                    return Ok(0);
                }
                client.write_all(b"S").await?;
                let mut client = acceptor.accept(client).await?;
                let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await?;
                copy_bidirectional(&mut client, &mut server).await.map(|(sent, _)| sent)
            };
            own.spawn(Place::Network, async move { _ = serve.await }).detach();
        }
    });
    (port, task)
}

#[test]
fn an_encrypted_connection_needs_a_server_that_can_be_trusted() {
    let Some(server) = Server::start() else { return };
    let (trusted, other) = (authority(), authority());
    let env = server.host.env();
    let url = |port: u16, more: &str| {
        server.url().replace(&format!("port={}", server.port), &format!("port={port} {more}"))
    };
    let settings =
        |connection: pelton_core::Result<Connection>| Settings::new(connection.unwrap(), "t").create();

    let (port, _task) = server.host.block_on(proxy(env, server.port, &trusted, "127.0.0.1"));
    let sink = checked(settings(Connection::trusting(&url(port, ""), trusted.pem().as_bytes())));
    sink.start(1, &[]).unwrap();
    sink.commit(&stage(&sink, 1, 0, 1, 0..1000)).unwrap();
    holds(&server, "t", 0..1000);

    let strange =
        checked(settings(Connection::trusting(&url(port, "sslmode=verify-full"), other.pem().as_bytes())));
    says(strange.start(2, &[]), &["TLS", "certificate"]);
    let (named, _task) = server.host.block_on(proxy(env, server.port, &trusted, "elsewhere.example"));
    let wrong =
        checked(settings(Connection::trusting(&url(named, "sslmode=require"), trusted.pem().as_bytes())));
    says(wrong.start(2, &[]), &["TLS", "certificate", "elsewhere.example"]);
    // The server itself has no TLS: it is not left out in silence.
    let plain = checked(settings(Connection::trusting(&server.url(), trusted.pem().as_bytes())));
    says(plain.start(2, &[]), &["TLS"]);
}
