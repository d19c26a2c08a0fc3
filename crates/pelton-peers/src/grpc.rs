//! gRPC with tonic: a unary method and one with a streamed answer, whose messages are one field of bytes.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tokio::sync::Mutex;
use tonic::body::Body;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Service, http};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::load::{FILL, PART, taken};

/// The name in certificates that [`certificate`] makes.
const NAME: &str = "wire.pelton.test";
const SERVICE: &str = "pelton.Wire";
const METHOD: &str = "/pelton.Wire/Call";
/// Gives as many bytes as the number in its message says, in parts.
const PARTS: &str = "/pelton.Wire/Parts";
/// So much may be under way on a stream or connection: what 10 MB need.
const WINDOW: u32 = 16 << 20;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Payload {
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
}

/// Whether the connection is encrypted.
#[derive(Clone, Debug)]
pub enum Security {
    Plain,
    /// With TLS; the certificate, in PEM, that the client trusts.
    Tls {
        certificate: String,
    },
}

/// A certificate and its key, in PEM, for [`serve`].
#[derive(Clone, Debug)]
pub struct Own {
    pub certificate: String,
    pub key: String,
}

/// A certificate that signs itself.
pub fn certificate() -> Result<Own, String> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).map_err(|e| e.to_string())?;
    Ok(Own { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() })
}

/// Serves until the process ends. It gives back what it gets: at once, or one call after another with so long for each.
pub async fn serve(at: SocketAddr, each: Option<Duration>, tls: Option<Own>) -> Result<(), String> {
    let mut server = Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    if let Some(Own { certificate, key }) = tls {
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
        server = server.tls_config(tls).map_err(|e| e.to_string())?;
    }
    let echo = Echo { each, turn: Arc::default() };
    server.add_service(echo).serve(at).await.map_err(|e| e.to_string())
}

#[derive(Clone)]
struct Echo {
    each: Option<Duration>,
    turn: Arc<Mutex<()>>,
}

/// Exactly so long; a timer of tokio's rounds up to whole milliseconds.
async fn rest(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "a program of other libraries")]
    let _ = tokio::task::spawn_blocking(move || std::thread::sleep(time)).await;
}

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl tonic::server::NamedService for Echo {
    const NAME: &'static str = SERVICE;
}

impl tonic::server::UnaryService<Payload> for Echo {
    type Response = Payload;
    type Future = Answer<Result<Response<Payload>, Status>>;

    fn call(&mut self, request: Request<Payload>) -> Self::Future {
        let Echo { each, turn } = self.clone();
        Box::pin(async move {
            if let Some(each) = each {
                let _turn = turn.lock().await;
                rest(each).await;
            }
            Ok(Response::new(request.into_inner()))
        })
    }
}

struct Parts;

impl tonic::server::ServerStreamingService<Payload> for Parts {
    type Response = Payload;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Payload, Status>> + Send>>;
    type Future = Answer<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Payload>) -> Self::Future {
        Box::pin(async move {
            let wanted = <[u8; 8]>::try_from(&request.into_inner().data[..]);
            let wanted = wanted.map_err(|_| Status::invalid_argument("a number has eight bytes"))?;
            let next = |left: usize| {
                let part = left.min(PART);
                (part > 0).then(|| (Ok(Payload { data: vec![FILL; part].into() }), left - part))
            };
            let parts = futures::stream::unfold(u64::from_le_bytes(wanted) as usize, move |left| {
                std::future::ready(next(left))
            });
            Ok(Response::new(Box::pin(parts) as Self::ResponseStream))
        })
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<Payload, Payload>::default();
            let unlimited = Some(usize::MAX);
            let mut grpc =
                tonic::server::Grpc::new(codec).apply_max_message_size_config(unlimited, unlimited);
            match request.uri().path() {
                PARTS => Ok(grpc.server_streaming(Parts, request).await),
                _ => Ok(grpc.unary(method, request).await),
            }
        })
    }
}

/// A connection to each server, made when it is needed. Clones share it.
#[derive(Clone)]
pub struct Client {
    grpc: tonic::client::Grpc<Channel>,
}

impl Client {
    /// With several servers, calls go to the one with the least to do.
    pub fn to(addresses: &[SocketAddr], security: &Security) -> Result<Client, String> {
        let endpoints: Vec<Endpoint> =
            addresses.iter().map(|address| endpoint(address, security)).collect::<Result<_, String>>()?;
        let channel = match endpoints.as_slice() {
            [only] => only.connect_lazy(),
            several => Channel::balance_list(several.iter().cloned()),
        };
        let grpc = tonic::client::Grpc::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        Ok(Client { grpc })
    }

    pub async fn call(&mut self, data: Bytes) -> Result<Bytes, String> {
        self.grpc.ready().await.map_err(|e| format!("not ready: {e}"))?;
        let codec = ProstCodec::<Payload, Payload>::default();
        let path = PathAndQuery::from_static(METHOD);
        let answer = self.grpc.unary(Request::new(Payload { data }), path, codec).await;
        Ok(answer.map_err(said)?.into_inner().data)
    }

    /// A streamed answer of so many bytes, of which nothing is kept.
    pub async fn parts(&mut self, bytes: u64) -> Result<(), String> {
        self.grpc.ready().await.map_err(|e| format!("not ready: {e}"))?;
        let codec = ProstCodec::<Payload, Payload>::default();
        let request = Request::new(Payload { data: bytes.to_le_bytes().to_vec().into() });
        let answer = self.grpc.server_streaming(request, PathAndQuery::from_static(PARTS), codec).await;
        let (mut parts, mut came) = (answer.map_err(said)?.into_inner(), 0);
        while let Some(part) = parts.message().await.map_err(said)? {
            taken(&part.data)?;
            came += part.data.len() as u64;
        }
        if came == bytes { Ok(()) } else { Err(format!("{came} bytes came of {bytes}")) }
    }
}

fn said(status: Status) -> String {
    format!("{}: {}", status.code(), status.message())
}

fn endpoint(address: &SocketAddr, security: &Security) -> Result<Endpoint, String> {
    let scheme = if matches!(security, Security::Plain) { "http" } else { "https" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(|e| e.to_string())?
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    match security {
        Security::Plain => Ok(endpoint),
        Security::Tls { certificate } => {
            let trusted = Certificate::from_pem(certificate);
            let tls = ClientTlsConfig::new().ca_certificate(trusted).domain_name(NAME);
            endpoint.tls_config(tls).map_err(|e| e.to_string())
        }
    }
}
