//! Requests in a protocol's words, and answers as rows. Each function here makes one call, from its arguments to its end.

mod oip;
mod oip_grpc;
mod oip_http;
mod openai;
mod sse;

use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use pelton_core::remote::Protocol;
use pelton_core::service::MethodSpec;

use crate::failure;
use crate::http::Http;
use crate::mapping::Mapped;
use crate::state::Failure;

/// One call.
pub(crate) struct Call<'a> {
    pub(crate) http: &'a Arc<Http>,
    /// What the server calls the model.
    pub(crate) model: &'a str,
    pub(crate) spec: &'a MethodSpec,
    pub(crate) arguments: &'a RecordBatch,
    pub(crate) within: Duration,
    /// Most bytes of a message, in either direction.
    pub(crate) limit: u64,
}

/// Makes a call; `part` gets the rows of a streaming method as they come.
pub(crate) async fn call(
    protocol: Protocol,
    mapped: &Mapped,
    call: Call<'_>,
    part: impl FnMut(RecordBatch),
) -> Result<RecordBatch, Failure> {
    match (mapped, protocol) {
        (Mapped::Embeddings { extra }, _) => openai::embeddings(call, extra).await,
        (Mapped::Chat { system, extra }, _) => openai::chat(call, system.as_deref(), extra, part).await,
        (Mapped::Tensors(tensors), Protocol::OipGrpc) => oip_grpc::infer(call, tensors).await,
        (Mapped::Tensors(tensors), _) => oip_http::infer(call, tensors).await,
    }
}

impl Call<'_> {
    /// A request's body as JSON, if it is not too large.
    fn json(&self, body: &serde_json::Value) -> Result<Bytes, Failure> {
        let bytes = serde_json::to_vec(body).map_err(|e| failure::invalid(e.to_string(), true))?;
        self.bounded(bytes.into())
    }

    fn bounded(&self, body: Bytes) -> Result<Bytes, Failure> {
        if body.len() as u64 > self.limit {
            let message = format!(
                "a request of {} bytes is over `max_message` ({} bytes); raise it in the service's declaration",
                body.len(),
                self.limit
            );
            let mut failure = failure::invalid("", true);
            failure.error = pelton_core::Error::limit(message);
            return Err(failure);
        }
        Ok(body)
    }
}

const JSON: (HeaderName, HeaderValue) = (CONTENT_TYPE, HeaderValue::from_static("application/json"));

/// Reads an answer that should be JSON of this shape.
fn read_json<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|e| {
        let begins: String = String::from_utf8_lossy(&body[..body.len().min(80)]).escape_debug().collect();
        failure::nonsense(format!("the answer is not what the protocol says: {e}; it begins `{begins}`"))
    })
}
