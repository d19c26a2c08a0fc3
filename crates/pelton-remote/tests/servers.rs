//! The protocols against servers that nobody here wrote: KServe for the Open Inference Protocol over HTTP and gRPC, LitServe for the
//! OpenAI-compatible interface.

mod common;
#[path = "common/real.rs"]
mod real;

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int64Type};
use arrow_array::{ArrayRef, BooleanArray, FixedSizeListArray, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use common::{Inbox, caller, chat, declaration, id, spec, submit, text};
use pelton_core::Kind;
use pelton_core::call::{Caller, Submission};
use pelton_core::service::{Cardinality, MethodSpec};
use pelton_env::Env;
use pelton_env::real::Host;
use real::Server;

fn run(body: impl AsyncFnOnce(Env)) {
    let host = Host::new(2, 2).unwrap();
    let env = host.env().clone();
    host.block_on(body(env));
}

fn vector(n: i32) -> DataType {
    DataType::new_fixed_size_list(DataType::Float32, n, false)
}

/// Text in, three numbers out: characters, bytes, letters e.
fn embed() -> MethodSpec {
    spec("embed", ("text", DataType::Utf8), ("vector", vector(3)), Cardinality::One)
}

/// What the servers' models compute, once more.
fn expected(text: &str) -> Vec<f32> {
    vec![text.chars().count() as f32, text.len() as f32, text.matches('e').count() as f32]
}

fn numbers(rows: &RecordBatch) -> Vec<f32> {
    rows.column(0).as_fixed_size_list().value(0).as_primitive::<Float32Type>().values().to_vec()
}

fn sentences(n: usize) -> Vec<String> {
    (0..n)
        .map(|i| {
            format!("sentence {i} with {} and \"ünïcödé\" 日本 {}", "e".repeat(i % 7), "x".repeat(i % 40))
        })
        .collect()
}

/// Sends sentences, and compares each answer.
async fn check_embeddings(env: &Env, declaration: &pelton_core::Declaration) {
    let caller = caller(env, declaration, embed(), None);
    let texts = sentences(300);
    let inbox = submit(&caller, &texts.iter().map(String::as_str).collect::<Vec<_>>());
    for (id, parts) in inbox.ended(env, texts.len()).await {
        let [Ok(rows)] = &parts[..] else { panic!("request {id} gave {parts:?}") };
        assert_eq!(numbers(rows), expected(&texts[id as usize]), "{}", texts[id as usize]);
    }
    let (_, endpoint) = caller.stats().endpoints.remove(0);
    assert_eq!((endpoint.refusals, endpoint.failures, caller.stats().unended), (0, 0, 0));
    assert!(endpoint.answers < 300, "rows share calls: {endpoint:?}");
}

#[test]
fn litserve_embeds() {
    run(async |env| {
        let Some(server) = Server::start(&env, "openai.py", 1, &["embeddings"]).await else { return };
        let url = format!("http://localhost:{}", server.ports[0]);
        check_embeddings(&env, &declaration("openai", &[url], "batch = { rows = 8 }\n", "")).await;
    });
}

#[test]
fn litserve_chats_whole_and_streaming() {
    run(async |env| {
        let Some(server) = Server::start(&env, "openai.py", 1, &["chat"]).await else { return };
        let url = format!("http://127.0.0.1:{}/v1", server.ports[0]);
        for cardinality in [Cardinality::One, Cardinality::Many] {
            let declaration = declaration(
                "openai",
                std::slice::from_ref(&url),
                "",
                "[remote.methods.chat]\nextra = { max_tokens = 50 }\n",
            );
            let caller = caller(&env, &declaration, chat(cardinality), None);
            let ended = submit(&caller, &["hello dear world", "x"]).ended(&env, 2).await;
            let whole = |id: u64| -> String {
                ended[&id].iter().map(|p| text(p.as_ref().expect("an answer"))).collect()
            };
            assert_eq!((whole(0).trim(), whole(1).trim()), ("HELLO DEAR WORLD", "X"));
            if cardinality == Cardinality::Many {
                assert!(ended[&0].len() >= 3, "word by word: {:?}", ended[&0]);
            }
        }
    });
}

#[test]
fn kserve_answers_over_http_and_grpc() {
    run(async |env| {
        let Some(server) = Server::start(&env, "oip.py", 2, &[]).await else { return };
        for (protocol, port) in [("oip-http", server.ports[0]), ("oip-grpc", server.ports[1])] {
            let url = format!("http://127.0.0.1:{port}");
            let model = "[remote.methods.embed]\nmodel = \"sums\"\n";
            check_embeddings(
                &env,
                &declaration(protocol, std::slice::from_ref(&url), "batch = { rows = 8 }\n", model),
            )
            .await;
            check_tensors(&env, protocol, &url).await;
            check_errors(&env, protocol, &url).await;
        }
    });
}

/// Columns of many types, renamed on the way.
fn columns() -> MethodSpec {
    let schema = |all: Vec<(&str, DataType)>| {
        Arc::new(Schema::new(all.into_iter().map(|(n, t)| Field::new(n, t, false)).collect::<Vec<_>>()))
    };
    let input = schema(vec![("vector", vector(3)), ("ok", DataType::Boolean), ("name", DataType::Utf8)]);
    let output = schema(vec![
        ("total", DataType::Float64),
        ("doubled", DataType::new_list(DataType::Float32, false)),
        ("rank", DataType::Int64),
        ("flag", DataType::Boolean),
        ("name", DataType::Utf8),
    ]);
    MethodSpec { name: "columns".into(), input, output, cardinality: Cardinality::One, concurrency: None }
}

fn arguments(spec: &MethodSpec, names: &[&str]) -> RecordBatch {
    let n = names.len();
    let field = Arc::new(Field::new_list_field(DataType::Float32, false));
    let values: Vec<f32> = (0..n).flat_map(|i| [i as f32, 0.5, 2.0]).collect();
    let values = Arc::new(arrow_array::Float32Array::from(values));
    let vectors: ArrayRef = Arc::new(FixedSizeListArray::try_new(field, 3, values, None).unwrap());
    let flags: ArrayRef = Arc::new(BooleanArray::from_iter((0..n).map(|i| Some(i % 2 == 0))));
    let names: ArrayRef = Arc::new(StringArray::from(names.to_vec()));
    RecordBatch::try_new(spec.input.clone(), vec![vectors, flags, names]).unwrap()
}

const RENAMED: &str =
    "[remote.methods.columns]\nmodel = \"sums\"\ntensors = { ok = \"flag\", total = \"sum\" }\n";

async fn check_tensors(env: &Env, protocol: &str, url: &str) {
    let caller = caller(env, &declaration(protocol, &[url.to_owned()], "", RENAMED), columns(), None);
    let inbox = Arc::new(Inbox::default());
    let names = ["a", "é", "", "dd", "bad", "f"];
    let rows = arguments(&caller.methods()[0], &names);
    caller.submit(Submission::new(0, (0..names.len() as u64).map(id).collect(), rows), inbox.clone());
    for (i, parts) in inbox.ended(env, names.len()).await {
        let rows = match &parts[..] {
            [Ok(rows)] => rows,
            // The server refuses it, and the call that it is in; the others are tried without it.
            [Err(e)] => {
                assert_eq!((names[i as usize], e.kind()), ("bad", Kind::Invalid), "{protocol}: {e:?}");
                continue;
            }
            other => panic!("request {i} gave {other:?}"),
        };
        let x = i as f32;
        assert_eq!(rows.column(0).as_primitive::<Float64Type>().value(0), f64::from(x) + 2.5);
        let doubled = rows.column(1).as_list::<i32>().value(0);
        assert_eq!(doubled.as_primitive::<Float32Type>().values().to_vec(), [2.0 * x, 1.0, 4.0]);
        assert_eq!(rows.column(2).as_primitive::<Int64Type>().value(0), if x >= 2.0 { 0 } else { 2 });
        assert_eq!(rows.column(3).as_boolean().value(0), i % 2 == 1);
        assert_eq!(rows.column(4).as_string::<i32>().value(0), names[i as usize].to_uppercase());
    }
}

async fn check_errors(env: &Env, protocol: &str, url: &str) {
    let quick = "[retry]\nattempts = 2\nbackoff = \"5ms\"\n";
    for (method, within, expected) in [
        (embed(), "[remote.methods.embed]\nmodel = \"nobody\"\n", "nobody"),
        (
            embed(),
            "[remote.methods.embed]\nmodel = \"sums\"\ntensors = { vector = \"elsewhere\" }\n",
            "elsewhere",
        ),
    ] {
        let caller = caller(env, &declaration(protocol, &[url.to_owned()], quick, within), method, None);
        let parts = submit(&caller, &["hello"]).ended(env, 1).await.remove(&0).unwrap();
        let error = parts[0].as_ref().expect_err(expected);
        assert!(error.message().contains(expected), "{protocol}: {error:?}");
    }
}
