//! The Open Inference Protocol, version 2, over gRPC
//! (github.com/kserve/open-inference-protocol, specification/protocol/inference_grpc.md; the numbers of the fields are its own).
//!
//! One unary call is little enough to be written down here: a message behind five bytes, and a status in the trailers
//! (github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md).

use std::collections::HashMap;

use arrow_array::RecordBatch;
use bytes::{BufMut, Bytes, BytesMut};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE};
use pelton_core::{Error, Result};
use prost::Message;
use serde_json::Value;

use super::Call;
use super::oip::{inputs, rows};
use crate::failure;
use crate::mapping::Tensors;
use crate::state::Failure;
use crate::tensor::{Tensor, Values};

const PATH: &str = "/inference.GRPCInferenceService/ModelInfer";
/// Flag and length before a message.
const PREFIX: usize = 5;

#[derive(Clone, PartialEq, Message)]
struct InferRequest {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(string, tag = "2")]
    model_version: String,
    #[prost(map = "string, message", tag = "4")]
    parameters: HashMap<String, Parameter>,
    #[prost(message, repeated, tag = "5")]
    inputs: Vec<WireTensor>,
    #[prost(message, repeated, tag = "6")]
    outputs: Vec<RequestedOutput>,
}

#[derive(Clone, PartialEq, Message)]
struct InferResponse {
    #[prost(message, repeated, tag = "5")]
    outputs: Vec<WireTensor>,
    #[prost(bytes = "bytes", repeated, tag = "6")]
    raw_output_contents: Vec<Bytes>,
}

/// Inputs and outputs are laid out alike.
#[derive(Clone, PartialEq, Message)]
struct WireTensor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
    #[prost(message, optional, tag = "5")]
    contents: Option<Contents>,
}

#[derive(Clone, PartialEq, Message)]
struct RequestedOutput {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Contents {
    #[prost(bool, repeated, tag = "1")]
    bools: Vec<bool>,
    #[prost(int32, repeated, tag = "2")]
    ints: Vec<i32>,
    #[prost(int64, repeated, tag = "3")]
    int64s: Vec<i64>,
    #[prost(uint32, repeated, tag = "4")]
    uints: Vec<u32>,
    #[prost(uint64, repeated, tag = "5")]
    uint64s: Vec<u64>,
    #[prost(float, repeated, tag = "6")]
    fp32s: Vec<f32>,
    #[prost(double, repeated, tag = "7")]
    fp64s: Vec<f64>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    bytes: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(oneof = "Choice", tags = "1, 2, 3")]
    choice: Option<Choice>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Choice {
    #[prost(bool, tag = "1")]
    Bool(bool),
    #[prost(int64, tag = "2")]
    Int(i64),
    #[prost(string, tag = "3")]
    Text(String),
}

pub(super) async fn infer(call: Call<'_>, tensors: &Tensors) -> Result<RecordBatch, Failure> {
    let inputs = inputs(&call, tensors)?.into_iter().map(|i| WireTensor {
        name: i.name.to_owned(),
        datatype: i.datatype.to_owned(),
        shape: i.tensor.shape,
        contents: Some(contents(i.datatype, i.tensor.values)),
    });
    let request = InferRequest {
        model_name: tensors.model.clone(),
        model_version: tensors.version.clone().unwrap_or_default(),
        parameters: tensors.parameters.iter().map(|(key, value)| (key.clone(), parameter(value))).collect(),
        inputs: inputs.collect(),
        outputs: tensors.outputs.iter().map(|name| RequestedOutput { name: name.clone() }).collect(),
    };
    let message = unary(&call, request.encode_to_vec()).await?;
    let response = InferResponse::decode(message)
        .map_err(|e| failure::nonsense(format!("the answer is no ModelInferResponse: {e}")))?;
    let mut raw = response.raw_output_contents.into_iter();
    let came = response.outputs.into_iter().map(|output| {
        let values = match raw.next() {
            Some(raw) => from_raw(&output.datatype, &raw),
            None => Ok(from_contents(output.contents.unwrap_or_default(), &output.datatype)),
        };
        (output.name, values.map(|values| Tensor { shape: output.shape, values }))
    });
    rows(&call, tensors, came.collect())
}

/// One call: a message there, a message back.
async fn unary(call: &Call<'_>, message: Vec<u8>) -> Result<Bytes, Failure> {
    let mut body = BytesMut::with_capacity(PREFIX + message.len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    body.extend_from_slice(&message);
    // At most eight digits: in milliseconds that is more than a day.
    let millis = call.within.as_millis().clamp(1, 99_999_999);
    let timeout =
        HeaderValue::from_str(&format!("{millis}m")).map_err(|e| failure::invalid(e.to_string(), false))?;
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto")),
        (TE, HeaderValue::from_static("trailers")),
        (HeaderName::from_static("grpc-timeout"), timeout),
    ];
    let mut reply = call.http.post(PATH, &headers, call.bounded(body.freeze())?).await?.success().await?;
    let mut answer = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = reply.frame().await? {
        match frame.into_data() {
            Ok(data) => {
                let size = (answer.len() + data.len()) as u64;
                if size > call.limit {
                    return Err(failure::too_large(size, call.limit));
                }
                answer.extend_from_slice(&data);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    // Without a message, the status may stand at the head.
    let status = trailers.as_ref().and_then(status).or_else(|| status(&reply.headers));
    match status {
        None => return Err(failure::broken("the answer ended without a gRPC status".into())),
        Some((0, _)) => {}
        Some((code, text)) => return Err(failure::grpc(code, &call.http.redacted(&text))),
    }
    let answer = answer.freeze();
    let length = answer.get(1..PREFIX).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    match length {
        Some(length) if answer[0] == 0 && answer.len() == PREFIX + length as usize => {
            Ok(answer.slice(PREFIX..))
        }
        _ => {
            Err(failure::nonsense(format!("{} bytes came that are not one plain gRPC message", answer.len())))
        }
    }
}

fn status(headers: &HeaderMap) -> Option<(u32, String)> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    let text = headers.get("grpc-message").map(|m| unescaped(m.as_bytes())).unwrap_or_default();
    Some((code, text))
}

/// A message in a header has its special characters as `%XX`.
fn unescaped(text: &[u8]) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        match digits.filter(|_| first == b'%').and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &after[2..];
            }
            None => {
                plain.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

fn parameter(value: &Value) -> Parameter {
    let choice = match value {
        Value::Bool(b) => Choice::Bool(*b),
        Value::Number(n) => Choice::Int(n.as_i64().unwrap_or_default()),
        Value::String(s) => Choice::Text(s.clone()),
        other => Choice::Text(other.to_string()),
    };
    Parameter { choice: Some(choice) }
}

fn contents(datatype: &str, values: Values) -> Contents {
    let mut c = Contents::default();
    match values {
        Values::Bool(v) => c.bools = v,
        Values::Int(v) if datatype == "INT64" => c.int64s = v,
        Values::Int(v) => c.ints = v.into_iter().map(|n| n as i32).collect(),
        Values::Uint(v) if datatype == "UINT64" => c.uint64s = v,
        Values::Uint(v) => c.uints = v.into_iter().map(|n| n as u32).collect(),
        Values::F32(v) => c.fp32s = v,
        Values::F64(v) => c.fp64s = v,
        Values::Bytes(v) => c.bytes = v,
    }
    c
}

fn from_contents(c: Contents, datatype: &str) -> Values {
    match datatype {
        "BOOL" => Values::Bool(c.bools),
        "INT64" => Values::Int(c.int64s),
        "INT8" | "INT16" | "INT32" => Values::Int(c.ints.into_iter().map(i64::from).collect()),
        "UINT64" => Values::Uint(c.uint64s),
        "UINT8" | "UINT16" | "UINT32" => Values::Uint(c.uints.into_iter().map(u64::from).collect()),
        "FP64" => Values::F64(c.fp64s),
        "BYTES" => Values::Bytes(c.bytes),
        _ => Values::F32(c.fp32s),
    }
}

/// Elements in little-endian order; texts and bytes behind their length in four bytes.
fn from_raw(datatype: &str, raw: &[u8]) -> Result<Values> {
    fn each<const N: usize, T>(raw: &[u8], read: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let (all, rest) = raw.as_chunks::<N>();
        if rest.is_empty() {
            return Ok(all.iter().map(|bytes| read(*bytes)).collect());
        }
        Err(Error::protocol(format!("{} bytes are no whole number of elements of {N}", raw.len())))
    }
    Ok(match datatype {
        "BOOL" => Values::Bool(each(raw, |b: [u8; 1]| b[0] != 0)?),
        "INT8" => Values::Int(each(raw, |b| i64::from(i8::from_le_bytes(b)))?),
        "INT16" => Values::Int(each(raw, |b| i64::from(i16::from_le_bytes(b)))?),
        "INT32" => Values::Int(each(raw, |b| i64::from(i32::from_le_bytes(b)))?),
        "INT64" => Values::Int(each(raw, i64::from_le_bytes)?),
        "UINT8" => Values::Uint(each(raw, |b| u64::from(u8::from_le_bytes(b)))?),
        "UINT16" => Values::Uint(each(raw, |b| u64::from(u16::from_le_bytes(b)))?),
        "UINT32" => Values::Uint(each(raw, |b| u64::from(u32::from_le_bytes(b)))?),
        "UINT64" => Values::Uint(each(raw, u64::from_le_bytes)?),
        "FP32" => Values::F32(each(raw, f32::from_le_bytes)?),
        "FP64" => Values::F64(each(raw, f64::from_le_bytes)?),
        "BYTES" => {
            let (mut all, mut rest) = (Vec::new(), raw);
            while !rest.is_empty() {
                let cut = || Error::protocol("texts or bytes are cut off");
                let (length, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
                let length = u32::from_le_bytes(*length) as usize;
                all.push(after.get(..length).ok_or_else(cut)?.to_vec());
                rest = &after[length..];
            }
            Values::Bytes(all)
        }
        other => return Err(Error::protocol(format!("data type `{other}` is not known here"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_contents_are_read_with_care() {
        for (datatype, raw, expected) in [
            ("FP32", &[0, 0, 128, 63][..], Ok(Values::F32(vec![1.0]))),
            ("INT16", &[255, 255, 1, 0], Ok(Values::Int(vec![-1, 1]))),
            ("BYTES", &[1, 0, 0, 0, b'a', 0, 0, 0, 0], Ok(Values::Bytes(vec![b"a".to_vec(), vec![]]))),
            ("BYTES", &[200, 255, 255, 255, b'a'], Err("cut off")),
            ("BYTES", &[1, 0], Err("cut off")),
            ("FP64", &[0, 0], Err("whole number")),
            ("FP8", &[0], Err("`FP8`")),
        ] {
            match (from_raw(datatype, raw), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(e), Err(expected)) => assert!(e.to_string().contains(expected), "{e}"),
                (found, _) => panic!("{datatype} {raw:?} gave {found:?}"),
            }
        }
        assert_eq!(unescaped(b"no%20model %zz%"), "no model %zz%");
    }
}
