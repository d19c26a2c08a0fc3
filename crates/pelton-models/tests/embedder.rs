//! The embedding model itself, against numbers of an independent implementation. Needs the model's files.

mod common;

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use common::{call, context, embedding_model, refusal};
use pelton_core::service::Definition;
use pelton_models::Embedder;
use serde_json::json;

const CAT: &str = "A cat sleeps on the sofa.";
const KITTEN: &str = "A kitten is napping on the couch.";
const PARLIAMENT: &str = "The parliament passed the budget.";
const UNUSUAL: &str = "Größe, naïve café: 日本語 😀";

fn embed(cpu: f64, texts: &[&str]) -> Vec<Vec<f32>> {
    let definition = Definition::of::<Embedder>();
    let schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, false)]));
    let rows = RecordBatch::try_new(schema, vec![Arc::new(StringArray::from(texts.to_vec()))]).unwrap();
    let out = call(&definition, &context(cpu, json!({ "model": embedding_model() })), rows).unwrap();
    assert_eq!(out.schema(), definition.methods[0].output);
    assert_eq!(out.num_rows(), texts.len());
    for version in out["model"].as_string::<i32>() {
        assert!(version.unwrap().ends_with("@53aa51172d14"), "{version:?}");
    }
    let lists = out["embedding"].as_fixed_size_list();
    (0..lists.len()).map(|i| lists.value(i).as_primitive::<Float32Type>().values().to_vec()).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The expected numbers come from the same weights run in double precision with numpy (attention, erf-GELU, mean over
/// the tokens, length 1), written from the BERT paper and not from candle.
#[test]
fn embeddings_are_those_of_an_independent_implementation() {
    let long = "the quick brown fox jumps over the lazy dog ".repeat(400);
    let texts = [CAT, KITTEN, &long, PARLIAMENT, UNUSUAL, ""];
    let vectors = embed(1.0, &texts);
    let expected = [
        [0.164547, -0.069705, -0.050108, 0.051221, 0.002274, 0.042625],
        [0.049465, -0.020473, -0.040179, 0.056828, 0.021864, 0.020997],
        [0.052869, -0.037107, 0.071428, 0.004931, -0.060187, -0.016994],
        [0.047296, 0.099551, -0.02118, 0.079572, 0.035456, 0.024568],
        [0.012775, 0.038315, 0.036962, -0.018852, -0.028588, 0.047943],
        [-0.118838, 0.048299, -0.002548, -0.011011, 0.051951, 0.010292],
    ];
    for ((vector, expected), text) in vectors.iter().zip(expected).zip(texts) {
        assert!((cosine(vector, vector) - 1.0).abs() < 1e-5);
        for (found, expected) in vector.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-5, "{:.40}: {found} and not {expected}", text);
        }
    }
    for (a, b, expected) in [(0, 1, 0.75287), (0, 3, 0.07874), (1, 3, 0.04518), (4, 5, 0.133)] {
        assert!((cosine(&vectors[a], &vectors[b]) - expected).abs() < 1e-4);
    }
}

#[test]
fn a_text_has_the_same_embedding_in_any_batch_and_on_any_number_of_threads() {
    let alone: Vec<Vec<f32>> = embed(1.0, &[CAT]);
    let fill: Vec<String> = (1..60).map(|n| format!("{PARLIAMENT} ").repeat(n % 30 + 1)).collect();
    let texts: Vec<&str> = fill.iter().map(String::as_str).chain([CAT]).collect();
    let together = embed(2.0, &texts);
    assert!(alone[0].iter().zip(&together[59]).all(|(a, b)| (a - b).abs() < 1e-5));
    assert!(embed(1.0, &[]).is_empty());
}

#[test]
fn a_wrong_digest_and_a_wrong_dimension_are_refused() {
    let model = embedding_model();
    let message = refusal(&Definition::of::<Embedder>(), json!({ "model": model, "digest": "00ff" }));
    assert!(
        message.contains("has the sha256 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
        "{message}"
    );
    assert!(message.contains("`digest` says 00ff; run `cargo xtask setup`"), "{message}");
    let message = refusal(&Embedder::definition(768), json!({ "model": model }));
    assert!(
        message.contains(
            "gives 384 dimensions, the method's are 768; declare it with Embedder::definition(384)"
        )
    );
    let message = refusal(&Definition::of::<Embedder>(), json!({ "model": model, "max_tokens": 600 }));
    assert!(message.contains("`max_tokens` is 600; this model takes 3 to 512"), "{message}");
}
