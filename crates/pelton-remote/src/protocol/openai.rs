//! The part of OpenAI's HTTP interface that many servers have (platform.openai.com/docs/api-reference): embeddings and chat completions.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow_schema::DataType;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::sse::Events;
use super::{Call, JSON, read_json};
use crate::failure;
use crate::http::Reply;
use crate::state::Failure;
use crate::tensor::{Tensor, Values, to_column};

/// Where the interface is, for a url without a path.
fn path(call: &Call<'_>, route: &str) -> String {
    format!("{}{route}", if call.http.has_path() { "" } else { "/v1" })
}

/// The texts of the one column.
fn texts<'a>(call: &Call<'a>) -> Result<Vec<&'a str>, Failure> {
    let column = call.arguments.column(0);
    if column.null_count() > 0 {
        let name = call.spec.input.field(0).name();
        return Err(failure::invalid(
            format!("column `{name}` holds a null, and this protocol has no words for it"),
            true,
        ));
    }
    Ok(column.as_string::<i32>().iter().flatten().collect())
}

#[derive(Deserialize)]
struct EmbeddingList {
    data: Vec<Embedding>,
}

#[derive(Deserialize)]
struct Embedding {
    index: usize,
    embedding: Vec<f64>,
}

pub(super) async fn embeddings(call: Call<'_>, extra: &Map<String, Value>) -> Result<RecordBatch, Failure> {
    let texts = texts(&call)?;
    let rows = texts.len();
    let mut body = json!({ "model": call.model, "input": texts, "encoding_format": "float" });
    extend(&mut body, extra);
    let reply = call.http.post(&path(&call, "/embeddings"), &[JSON], call.json(&body)?).await?;
    let answer = reply.success().await?.all(call.limit).await?;
    let mut list: EmbeddingList = read_json(&answer)?;
    list.data.sort_by_key(|e| e.index);
    if list.data.len() != rows || list.data.iter().enumerate().any(|(i, e)| e.index != i) {
        return Err(failure::nonsense(format!(
            "{} embeddings came for {rows} texts, or not one for each",
            list.data.len()
        )));
    }
    let width = list.data.first().map_or(0, |e| e.embedding.len());
    if let DataType::FixedSizeList(_, n) = call.spec.output.field(0).data_type()
        && width != *n as usize
    {
        let message =
            format!("model `{}` gives vectors of {width} numbers, and the column holds {n}", call.model);
        let mut failure = failure::invalid(message, false);
        failure.error = failure.error.with_fate(pelton_core::Fate::Executed);
        return Err(failure);
    }
    if list.data.iter().any(|e| e.embedding.len() != width) {
        return Err(failure::nonsense("the vectors of one answer have different lengths"));
    }
    let values = Values::F64(list.data.into_iter().flat_map(|e| e.embedding).collect());
    let tensor = Tensor { shape: vec![rows as i64, width as i64], values };
    let column = to_column(tensor, call.spec.output.field(0).data_type(), rows)
        .map_err(|e| failure::nonsense(e.to_string()))?;
    batch(&call, column)
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<Text>,
    delta: Option<Text>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Text {
    content: Option<String>,
}

pub(super) async fn chat(
    call: Call<'_>,
    system: Option<&str>,
    extra: &Map<String, Value>,
    mut part: impl FnMut(RecordBatch),
) -> Result<RecordBatch, Failure> {
    let texts = texts(&call)?;
    let prompt = texts.first().copied().unwrap_or_default();
    let system = system.map(|text| json!({ "role": "system", "content": text }));
    let messages: Vec<Value> =
        system.into_iter().chain([json!({ "role": "user", "content": prompt })]).collect();
    let streaming = call.spec.cardinality == pelton_core::service::Cardinality::Many;
    let mut body = json!({ "model": call.model, "messages": messages, "stream": streaming });
    extend(&mut body, extra);
    let reply = call.http.post(&path(&call, "/chat/completions"), &[JSON], call.json(&body)?).await?;
    let reply = reply.success().await?;
    if reply.content_type().starts_with("text/event-stream") {
        let mut whole = String::new();
        let mut failed = None;
        stream(&call, reply, |text| {
            if !streaming {
                whole.push_str(&text);
            } else if failed.is_none() {
                match one_text(&call, Some(text)) {
                    Ok(rows) => part(rows),
                    Err(e) => failed = Some(e),
                }
            }
        })
        .await?;
        return match failed {
            Some(e) => Err(e),
            None if streaming => Ok(RecordBatch::new_empty(call.spec.output.clone())),
            None => one_text(&call, Some(whole)),
        };
    }
    let answer = reply.all(call.limit).await?;
    let completion: Completion = read_json(&answer)?;
    let message = completion.choices.into_iter().next().and_then(|c| c.message);
    let message = message.ok_or_else(|| failure::nonsense("the answer has no choice with a message"))?;
    one_text(&call, message.content)
}

/// Reads a stream of deltas to its end. One that ends before it says so is half an answer.
async fn stream(call: &Call<'_>, mut reply: Reply, mut text: impl FnMut(String)) -> Result<(), Failure> {
    let (mut events, mut size, mut finished) = (Events::default(), 0u64, false);
    while let Some(frame) = reply.frame().await? {
        let Ok(data) = frame.into_data() else { continue };
        size += data.len() as u64;
        if size > call.limit {
            return Err(failure::too_large(size, call.limit));
        }
        for event in events.push(&data) {
            if event == b"[DONE]" {
                finished = true;
                continue;
            }
            let value: Value = read_json(&event)?;
            if let Some(error) = value.get("error") {
                let said: String = error.to_string().chars().take(400).collect();
                return Err(failure::broken(format!("the server ends its stream with an error: {said}")));
            }
            let completion: Completion = read_json(&event)?;
            for choice in completion.choices.into_iter().take(1) {
                finished |= choice.finish_reason.is_some();
                let content = choice.delta.or(choice.message).and_then(|t| t.content);
                if let Some(content) = content.filter(|c| !c.is_empty()) {
                    text(content);
                }
            }
        }
    }
    if finished { Ok(()) } else { Err(failure::broken("the stream ended before the answer did".into())) }
}

fn one_text(call: &Call<'_>, text: Option<String>) -> Result<RecordBatch, Failure> {
    let nullable = call.spec.output.field(0).is_nullable();
    let text = if nullable { text } else { Some(text.unwrap_or_default()) };
    batch(call, Arc::new(StringArray::from(vec![text])))
}

fn batch(call: &Call<'_>, column: ArrayRef) -> Result<RecordBatch, Failure> {
    RecordBatch::try_new(call.spec.output.clone(), vec![column]).map_err(|e| failure::nonsense(e.to_string()))
}

fn extend(body: &mut Value, extra: &Map<String, Value>) {
    if let Value::Object(body) = body {
        body.extend(extra.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
}
