//! HTTP/1.1 with hyper: a POST on a connection that is kept.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// One call at a time. A connection that broke, or that the server has closed, is made anew by the next call.
pub struct Lane {
    address: SocketAddr,
    path: String,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Lane {
    pub fn new(address: SocketAddr, path: String) -> Lane {
        Lane { address, path, sender: None }
    }

    pub async fn call(&mut self, payload: Bytes) -> Result<Bytes, String> {
        let mut sender = match self.sender.take() {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        // A server may close a connection that nothing is under way on.
        if sender.ready().await.is_err() {
            sender = self.connect().await?;
            sender.ready().await.map_err(|e| format!("not ready: {e}"))?;
        }
        let request = Request::post(&self.path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(Full::new(payload))
            .map_err(|e| e.to_string())?;
        let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
        self.sender = Some(sender);
        if status == StatusCode::OK { Ok(body) } else { Err(format!("status {status}")) }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let stream = TcpStream::connect(self.address).await;
        let stream = stream.map_err(|e| format!("connecting: {:?}", e.kind()))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        let serve = async move {
            // What breaks it is told to the call that is under way.
            let _ = connection.await;
        };
        #[expect(clippy::disallowed_methods, reason = "a program of other libraries")]
        tokio::spawn(serve);
        Ok(sender)
    }
}
