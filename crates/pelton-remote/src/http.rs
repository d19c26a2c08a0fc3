//! HTTP to one endpoint: connections that are kept, answers whose size is bounded before it is believed.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use pelton_core::endpoint::Address;
use pelton_core::remote::Url;
use pelton_core::{Error, Result};
use pelton_env::{Env, Place};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::failure;
use crate::secret::Secret;
use crate::state::Failure;

/// How long a connection may take to be there, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// Connections kept for later.
const IDLE: usize = 256;
/// Most bytes of an error's text that are read.
const ERROR_TEXT: u64 = 16 << 10;

/// Which HTTP an endpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    One,
    /// gRPC's; without TLS it is spoken from the first byte on.
    Two,
}

pub(crate) struct Http {
    env: Env,
    url: Url,
    spoken: Spoken,
    authorization: Option<HeaderValue>,
    key: Option<Secret>,
    tls: Option<TlsConnector>,
    idle: Mutex<Vec<http1::SendRequest<Full<Bytes>>>>,
    /// All calls share one connection of HTTP/2.
    shared: tokio::sync::Mutex<Option<http2::SendRequest<Full<Bytes>>>>,
}

/// An answer that has begun.
pub(crate) struct Reply {
    http: Arc<Http>,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    /// Goes back to the idle ones when the answer is read to its end.
    sender: Option<http1::SendRequest<Full<Bytes>>>,
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// What TLS needs of this machine, once for all endpoints.
pub(crate) fn tls(spoken: Spoken) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(Error::invalid(
            "no certificates of authorities are found on this machine, so that no https server can be trusted; install them (on Debian \
             and Ubuntu: `apt install ca-certificates`)",
        ));
    }
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal(format!("TLS: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![if spoken == Spoken::Two { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Http {
    pub(crate) fn new(
        env: Env,
        url: Url,
        spoken: Spoken,
        tls: Option<TlsConnector>,
        key: Option<Secret>,
    ) -> Result<Arc<Http>> {
        let authorization = match &key {
            None => None,
            Some(key) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {}", key.reveal())).map_err(|_| {
                    Error::invalid("the API key holds a character that cannot be sent, such as a line break")
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Arc::new(Http {
            env,
            url,
            spoken,
            authorization,
            key,
            tls,
            idle: Mutex::default(),
            shared: tokio::sync::Mutex::default(),
        }))
    }

    /// Whether the declaration says where below the host the interface is.
    pub(crate) fn has_path(&self) -> bool {
        !self.url.path.is_empty()
    }

    /// A server's text without our key.
    pub(crate) fn redacted(&self, text: &str) -> String {
        self.key.as_ref().map_or_else(|| text.to_owned(), |key| key.redact(text))
    }

    /// Posts a body to a path below the endpoint's own; gives the answer's head.
    pub(crate) async fn post(
        self: &Arc<Self>,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Bytes,
    ) -> Result<Reply, Failure> {
        let request = self.request(path, headers, body)?;
        match self.spoken {
            Spoken::One => self.post_one(request).await,
            Spoken::Two => self.post_two(request).await,
        }
    }

    fn request(
        &self,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let path = format!("{}{path}", self.url.path);
        let mut request = Request::builder().method(Method::POST);
        if self.spoken == Spoken::Two {
            let scheme = if self.url.tls { "https" } else { "http" };
            request =
                request.version(Version::HTTP_2).uri(format!("{scheme}://{}{path}", self.url.authority()));
        } else {
            request = request.uri(path).header(HOST, self.url.authority()).header(ACCEPT, "*/*");
        }
        request = request.header(USER_AGENT, concat!("pelton/", env!("CARGO_PKG_VERSION")));
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value);
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request
            .body(Full::new(body))
            .map_err(|e| failure::invalid(format!("no request can be made of this: {e}"), false))
    }

    async fn post_one(self: &Arc<Self>, mut request: Request<Full<Bytes>>) -> Result<Reply, Failure> {
        loop {
            let kept = self.lock_idle().pop();
            let fresh = kept.is_none();
            let mut sender = match kept {
                Some(kept) => kept,
                None => self.connect_one().await?,
            };
            if sender.ready().await.is_err() && !fresh {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.reply(response, Some(sender))),
                Err(mut e) => match e.take_message() {
                    // Closed by the server while it lay idle; nothing of this has left.
                    Some(unsent) if !fresh => request = unsent,
                    Some(_) => {
                        return Err(failure::not_connected(self.describe("cannot be spoken to", e.error())));
                    }
                    None => {
                        return Err(failure::broken(self.describe("broke off before an answer", e.error())));
                    }
                },
            }
        }
    }

    async fn post_two(self: &Arc<Self>, request: Request<Full<Bytes>>) -> Result<Reply, Failure> {
        let mut sender = {
            let mut shared = self.shared.lock().await;
            match shared.as_ref().filter(|s| !s.is_closed()) {
                Some(sender) => sender.clone(),
                None => shared.insert(self.connect_two().await?).clone(),
            }
        };
        if let Err(e) = sender.ready().await {
            return Err(failure::not_connected(self.describe("cannot be spoken to", &e)));
        }
        match sender.send_request(request).await {
            Ok(response) => Ok(self.reply(response, None)),
            Err(e) => Err(failure::broken(self.describe("broke off before an answer", &e))),
        }
    }

    fn reply(
        self: &Arc<Self>,
        response: Response<Incoming>,
        sender: Option<http1::SendRequest<Full<Bytes>>>,
    ) -> Reply {
        let (head, body) = response.into_parts();
        Reply { http: self.clone(), status: head.status, headers: head.headers, body, sender }
    }

    async fn connect_one(&self) -> Result<http1::SendRequest<Full<Bytes>>, Failure> {
        let io = self.connect().await?;
        let (sender, connection) = http1::handshake(TokioIo::new(io))
            .await
            .map_err(|e| failure::not_connected(self.describe("does not speak HTTP", &e)))?;
        self.drive(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    async fn connect_two(&self) -> Result<http2::SendRequest<Full<Bytes>>, Failure> {
        let io = self.connect().await?;
        let (sender, connection) = http2::Builder::new(Spawner(self.env.clone()))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|e| failure::not_connected(self.describe("does not speak HTTP/2", &e)))?;
        self.drive(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    fn drive(&self, connection: impl Future<Output = ()> + Send + 'static) {
        // It ends with the connection, and that with its sender.
        self.env.spawn(Place::Network, connection).detach();
    }

    async fn connect(&self) -> Result<Box<dyn Io>, Failure> {
        match self.env.within(CONNECT, self.try_connect()).await {
            Some(Ok(io)) => Ok(io),
            Some(Err(e)) => Err(failure::not_connected(self.describe("cannot be reached", &e))),
            None => Err(failure::not_connected(format!("{} cannot be reached within {CONNECT:?}", self.url))),
        }
    }

    async fn try_connect(&self) -> io::Result<Box<dyn Io>> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no addresses");
        for address in self.env.network.resolve(&self.url.host, self.url.port).await? {
            match self.env.network.connect(&Address::Tcp(address)).await {
                Ok(connection) => {
                    let plain = tokio::io::join(connection.read, connection.write);
                    let Some(tls) = &self.tls else { return Ok(Box::new(plain)) };
                    let name = ServerName::try_from(self.url.host.clone()).map_err(io::Error::other)?;
                    return Ok(Box::new(tls.connect(name, plain).await?));
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    fn describe(&self, what: &str, error: &dyn std::error::Error) -> String {
        let mut text = format!("{} {what}: {error}", self.url);
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        text
    }

    fn lock_idle(&self) -> std::sync::MutexGuard<'_, Vec<http1::SendRequest<Full<Bytes>>>> {
        let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        idle.retain(|s| !s.is_closed());
        idle
    }
}

impl Reply {
    pub(crate) fn content_type(&self) -> &str {
        self.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("")
    }

    /// This reply, unless it is an error's.
    pub(crate) async fn success(self) -> Result<Reply, Failure> {
        if self.status.is_success() {
            return Ok(self);
        }
        let (status, headers, http) = (self.status, self.headers.clone(), self.http.clone());
        let text = self.beginning(ERROR_TEXT).await;
        let text = http.redacted(&String::from_utf8_lossy(&text));
        let pause = failure::retry_after(&headers, http.env.clock.unix_millis());
        let mut failure = failure::status(status, pause, &text);
        failure.error = failure.error.context(&http.url);
        Err(failure)
    }

    /// The whole body, if it is no larger than `limit`.
    pub(crate) async fn all(mut self, limit: u64) -> Result<Bytes, Failure> {
        let announced = self.body.size_hint().lower();
        if announced > limit {
            return Err(failure::too_large(announced, limit));
        }
        let mut all = BytesMut::new();
        while let Some(frame) = self.frame().await? {
            if let Ok(data) = frame.into_data() {
                let size = (all.len() + data.len()) as u64;
                if size > limit {
                    return Err(failure::too_large(size, limit));
                }
                all.extend_from_slice(&data);
            }
        }
        Ok(all.freeze())
    }

    /// The next data or trailers; after the last, the connection is ready for another call.
    pub(crate) async fn frame(&mut self) -> Result<Option<Frame<Bytes>>, Failure> {
        match self.body.frame().await {
            Some(Ok(frame)) => Ok(Some(frame)),
            Some(Err(e)) => {
                Err(failure::broken(self.http.describe("broke off in the middle of an answer", &e)))
            }
            None => {
                if let Some(sender) = self.sender.take().filter(|s| !s.is_closed()) {
                    let mut idle = self.http.lock_idle();
                    if idle.len() < IDLE {
                        idle.push(sender);
                    }
                }
                Ok(None)
            }
        }
    }

    /// As much of an error's text as comes, up to a limit.
    async fn beginning(mut self, limit: u64) -> Vec<u8> {
        let mut text = Vec::new();
        while let Ok(Some(frame)) = self.frame().await {
            if let Ok(data) = frame.into_data() {
                let room = (limit as usize).saturating_sub(text.len());
                text.extend_from_slice(&data[..data.len().min(room)]);
                if text.len() >= limit as usize {
                    break;
                }
            }
        }
        text
    }
}

#[derive(Clone)]
struct Spawner(Env);

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, future: F) {
        let future: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            let _ = future.await;
        });
        self.0.spawn(Place::Network, future).detach();
    }
}
