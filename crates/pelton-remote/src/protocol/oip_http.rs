//! The Open Inference Protocol, version 2, as JSON over HTTP
//! (github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md).

use arrow_array::RecordBatch;
use pelton_core::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::oip::{inputs, rows};
use super::{Call, JSON, read_json};
use crate::failure;
use crate::mapping::Tensors;
use crate::state::Failure;
use crate::tensor::{Tensor, Values};

#[derive(Deserialize)]
struct Answer {
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default)]
    data: Vec<Value>,
}

pub(super) async fn infer(call: Call<'_>, tensors: &Tensors) -> Result<RecordBatch, Failure> {
    let inputs: Result<Vec<Value>, Failure> = inputs(&call, tensors)?
        .into_iter()
        .map(|i| {
            let data = to_json(&i.tensor.values)
                .map_err(|e| failure::invalid(format!("tensor `{}` {e}", i.name), true))?;
            Ok(json!({ "name": i.name, "shape": i.tensor.shape, "datatype": i.datatype, "data": data }))
        })
        .collect();
    let outputs: Vec<Value> = tensors.outputs.iter().map(|name| json!({ "name": name })).collect();
    let mut body = json!({ "inputs": inputs?, "outputs": outputs });
    if !tensors.parameters.is_empty() {
        body["parameters"] = Value::Object(tensors.parameters.clone());
    }
    let version = tensors.version.as_ref().map_or_else(String::new, |v| format!("/versions/{}", escaped(v)));
    let path = format!("/v2/models/{}{version}/infer", escaped(&tensors.model));
    let reply = call.http.post(&path, &[JSON], call.json(&body)?).await?;
    let answer = reply.success().await?.all(call.limit).await?;
    let answer: Answer = read_json(&answer)?;
    let came = answer.outputs.into_iter().map(|o| {
        let values = from_json(&o.datatype, o.data);
        (o.name, values.map(|values| Tensor { shape: o.shape, values }))
    });
    rows(&call, tensors, came.collect())
}

/// A name as one segment of a path.
fn escaped(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn to_json(values: &Values) -> Result<Vec<Value>> {
    fn all<T: Into<Value> + Clone>(values: &[T]) -> Vec<Value> {
        values.iter().map(|v| v.clone().into()).collect()
    }
    Ok(match values {
        Values::Bool(v) => all(v),
        Values::Int(v) => all(v),
        Values::Uint(v) => all(v),
        Values::F32(v) => finite(v.iter().map(|f| f64::from(*f)), all(v))?,
        Values::F64(v) => finite(v.iter().copied(), all(v))?,
        Values::Bytes(v) => {
            let texts = v.iter().map(|b| std::str::from_utf8(b).map(Value::from));
            texts.collect::<Result<_, _>>().map_err(|_| {
                Error::invalid(
                    "holds bytes that are no UTF-8, for which JSON has no words; use protocol `oip-grpc`",
                )
            })?
        }
    })
}

fn finite(mut values: impl Iterator<Item = f64>, json: Vec<Value>) -> Result<Vec<Value>> {
    if values.all(f64::is_finite) {
        return Ok(json);
    }
    Err(Error::invalid(
        "holds a number that is not finite, for which JSON has no words; use protocol `oip-grpc`",
    ))
}

/// Data is flat or nested; the shape says how it is meant.
fn from_json(datatype: &str, data: Vec<Value>) -> Result<Values> {
    let mut flat = Vec::with_capacity(data.len());
    // Serde has bounded the depth.
    let mut rest = data;
    rest.reverse();
    while let Some(value) = rest.pop() {
        match value {
            Value::Array(inner) => rest.extend(inner.into_iter().rev()),
            value => flat.push(value),
        }
    }
    fn all<T>(flat: &[Value], datatype: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>> {
        let read = flat
            .iter()
            .map(|v| read(v).ok_or_else(|| Error::protocol(format!("holds `{v}`, which is no {datatype}"))));
        read.collect()
    }
    Ok(match datatype {
        "BOOL" => Values::Bool(all(&flat, datatype, Value::as_bool)?),
        "INT8" | "INT16" | "INT32" | "INT64" => Values::Int(all(&flat, datatype, Value::as_i64)?),
        "UINT8" | "UINT16" | "UINT32" | "UINT64" => Values::Uint(all(&flat, datatype, Value::as_u64)?),
        "FP16" | "FP32" | "FP64" => Values::F64(all(&flat, datatype, Value::as_f64)?),
        "BYTES" => Values::Bytes(all(&flat, datatype, |v| v.as_str().map(|s| s.as_bytes().to_vec()))?),
        other => return Err(Error::protocol(format!("data type `{other}` is not known here"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_read_flat_or_nested() {
        for (datatype, data, expected) in [
            ("INT64", json!([1, 2, 3]), Ok(Values::Int(vec![1, 2, 3]))),
            ("INT64", json!([[1, 2], [3]]), Ok(Values::Int(vec![1, 2, 3]))),
            ("FP32", json!([[[1], [2.5]]]), Ok(Values::F64(vec![1.0, 2.5]))),
            ("BYTES", json!(["a"]), Ok(Values::Bytes(vec![b"a".to_vec()]))),
            ("BOOL", json!([true, 1]), Err("holds `1`, which is no BOOL")),
            ("INT8", json!([null]), Err("null")),
            ("COMPLEX", json!([]), Err("`COMPLEX`")),
        ] {
            let Value::Array(all) = data.clone() else { panic!("a list") };
            match (from_json(datatype, all), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(e), Err(expected)) => assert!(e.to_string().contains(expected), "{e}"),
                (found, _) => panic!("{datatype} {data} gave {found:?}"),
            }
        }
        assert_eq!(escaped("a/b c"), "a%2Fb%20c");
        assert!(to_json(&Values::F32(vec![f32::NAN])).is_err());
    }
}
