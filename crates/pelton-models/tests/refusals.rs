//! Models that are not there or are no good: none of these tests needs one.

mod common;

use common::refusal;
use pelton_core::service::Definition;
use pelton_models::{Classifier, Embedder};
use serde_json::json;

const CONFIG: &str = r#"{"vocab_size": 6, "hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 12,
    "intermediate_size": 8, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "max_position_embeddings": 512,
    "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0, "model_type": "bert"}"#;

#[test]
fn an_embedder_without_good_files_says_which_and_what_to_do() {
    let embedder = Definition::of::<Embedder>();
    let folder = tempfile::tempdir().unwrap();
    let options = json!({ "model": folder.path() });
    let refused = |expected: &str| {
        let message = refusal(&embedder, options.clone());
        assert!(message.contains(expected), "{message}");
        assert!(message.ends_with(
            "run `cargo xtask setup`, or name the model's folder with `--model DIR` or the option `model`"
        ));
    };
    let put = |name: &str, content: &str| std::fs::write(folder.path().join(name), content).unwrap();
    let message = refusal(&embedder, json!({ "model": "/nowhere" }));
    assert!(message.starts_with("there is no model folder /nowhere; run `cargo xtask setup`"), "{message}");
    refused("model.safetensors: No such file");
    put("model.safetensors", "no tensors");
    refused("config.json: No such file");
    put("config.json", "{}");
    refused("config.json: no BERT model's configuration: missing field `vocab_size`");
    put("config.json", &CONFIG.replace("\"bert\"", "\"roberta\""));
    refused("config.json: a roberta model, where a bert model is needed");
    put("config.json", &CONFIG.replace(": 12", ": 0"));
    refused("config.json: 0 attention heads of 384 dimensions");
    put("config.json", CONFIG);
    refused("tokenizer.json: No such file");
    put("tokenizer.json", "{");
    refused("tokenizer.json: EOF");
    put(
        "tokenizer.json",
        r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": {"type": "WordPiece", "unk_token": "a",
        "continuing_subword_prefix": "", "max_input_chars_per_word": 9, "vocab": {"a": 0, "b": 1}}}"#,
    );
    refused("model.safetensors: ");
    put("config.json", &CONFIG.replace("\"vocab_size\": 6", "\"vocab_size\": 1"));
    refused("tokenizer.json: 2 words, the model knows 1: it belongs to another model");
    assert!(refusal(&embedder, json!({ "modle": "x" })).contains("unknown field `modle`"));
}

#[test]
fn a_classifier_without_a_good_file_says_what_to_do() {
    let classifier = Definition::of::<Classifier>();
    let message = refusal(&classifier, json!({ "model": "/nowhere.onnx" }));
    assert!(message.starts_with("model file /nowhere.onnx: No such file"), "{message}");
    assert!(message.ends_with("give the path of an .onnx file in the option `model`"), "{message}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.onnx");
    std::fs::write(&path, "no model").unwrap();
    let message = refusal(&classifier, json!({ "model": path }));
    assert!(message.contains("bad.onnx: no ONNX model that runs here"), "{message}");
}
