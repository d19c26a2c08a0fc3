//! Connections for reading: what a server's answer means for another try, and nothing in an error that nobody should see.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};

pub(super) const CONNECTING: Duration = Duration::from_secs(5);

/// A server that may answer another time.
#[derive(Debug)]
struct Busy {
    status: u16,
    /// It says itself when.
    after: Option<Duration>,
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered {}", self.status)
    }
}

impl StdError for Busy {}

/// Connections to S3.
#[derive(Debug, Default)]
pub(super) struct S3(ReqwestConnector);

impl HttpConnector for S3 {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Watched(self.0.connect(options)?)))
    }
}

/// Connections to other servers. Redirects are not followed: they would lead out of the roots.
#[derive(Debug)]
pub(super) struct Http;

impl HttpConnector for Http {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECTING)
            .user_agent(concat!("pelton/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| object_store::Error::Generic { store: "HTTP", source: Box::new(e) })?;
        Ok(HttpClient::new(Watched(HttpClient::new(client))))
    }
}

#[derive(Debug)]
struct Watched(HttpClient);

#[async_trait]
impl HttpService for Watched {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.0.execute(request).await?;
        let status = response.status();
        if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) {
            let after = response.headers().get("retry-after").and_then(|v| v.to_str().ok());
            let after = after.and_then(|v| v.parse().ok()).map(Duration::from_secs);
            return Err(HttpError::new(HttpErrorKind::Unknown, Busy { status: status.as_u16(), after }));
        }
        if status.is_client_error() {
            // Servers repeat keys and tokens in what they say of a request that they refuse.
            let (parts, _) = response.into_parts();
            return Ok(HttpResponse::from_parts(parts, String::new().into()));
        }
        Ok(response)
    }
}

/// Whether another try may go better, and when, if the server says so.
pub(super) fn may_pass(e: &object_store::Error) -> Option<Option<Duration>> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(e);
    while let Some(e) = next {
        if let Some(busy) = e.downcast_ref::<Busy>() {
            return Some(busy.after);
        }
        if let Some(http) = e.downcast_ref::<HttpError>() {
            let busy = http.source().and_then(|e| e.downcast_ref::<Busy>());
            return match http.kind() {
                _ if busy.is_some() => Some(busy.and_then(|b| b.after)),
                // What breaks within a body is told as what could not be decoded.
                HttpErrorKind::Connect
                | HttpErrorKind::Request
                | HttpErrorKind::Timeout
                | HttpErrorKind::Interrupted
                | HttpErrorKind::Decode => Some(None),
                _ => None,
            };
        }
        next = e.source();
    }
    None
}

/// The innermost reasons of an error, without the urls around them.
pub(super) fn reason(e: &object_store::Error) -> String {
    let mut inner: &dyn StdError = e;
    let mut shown = inner.to_string();
    while let Some(source) = inner.source() {
        inner = source;
        let text = source.to_string();
        if !text.is_empty() {
            shown = text;
        }
    }
    shown.truncate(shown.floor_char_boundary(300));
    shown
}
