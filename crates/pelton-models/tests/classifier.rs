//! The digit classifier that is part of the repository, on digits drawn by hand here.

mod common;

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type};
use arrow_array::{FixedSizeListArray, Float32Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use common::{call, context, workspace};
use pelton_core::service::Definition;
use pelton_models::Classifier;
use pelton_models::engine::{Engine, Rten, Tensor};
use serde_json::json;

const ZERO: [&str; 8] =
    ["..####..", ".##..##.", ".##..##.", ".##..##.", ".##..##.", ".##..##.", ".##..##.", "..####.."];
const ONE: [&str; 8] =
    ["...##...", "..###...", ".####...", "...##...", "...##...", "...##...", "...##...", "...##..."];
const SEVEN: [&str; 8] =
    [".######.", ".#####..", "....##..", "...###..", ".#####..", "...##...", "..##....", "..##...."];

fn pixels(drawing: [&str; 8]) -> Vec<f32> {
    drawing.concat().chars().map(|c| if c == '#' { 0.9 } else { 0.0 }).collect()
}

fn rows(values: Vec<f32>) -> RecordBatch {
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let column = FixedSizeListArray::try_new(item, 64, Arc::new(Float32Array::from(values)), None).unwrap();
    let schema =
        Schema::new(vec![Field::new("pixels", arrow_array::Array::data_type(&column).clone(), false)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(column)]).unwrap()
}

#[test]
fn drawn_digits_are_recognised_whatever_the_batch() {
    let definition = Definition::of::<Classifier>();
    let ctx = context(1.0, json!({ "model": workspace().join("models/digits/digits.onnx") }));
    let all = rows([ZERO, ONE, SEVEN].map(pixels).concat());
    let out = call(&definition, &ctx, all.clone()).unwrap();
    assert_eq!(out.schema(), definition.methods[0].output);
    assert_eq!(out["label"].as_primitive::<Int32Type>().values()[..], [0, 1, 7]);
    let scores = out["score"].as_primitive::<Float32Type>();
    assert!(scores.values().iter().all(|s| (0.3..=1.0).contains(s)), "{scores:?}");
    // A slice of a batch, alone, and no rows at all.
    let last = call(&definition, &ctx, all.slice(2, 1)).unwrap();
    assert_eq!(last["label"].as_primitive::<Int32Type>().values()[..], [7]);
    assert!((last["score"].as_primitive::<Float32Type>().value(0) - scores.value(2)).abs() < 1e-6);
    assert_eq!(call(&definition, &ctx, all.slice(0, 0)).unwrap().num_rows(), 0);
}

/// What every engine keeps: the law of [`Engine`], and an error for an input that does not fit.
fn keeps_the_law(mut engine: impl Engine) {
    let input = |drawings: &[[&str; 8]]| Tensor {
        shape: vec![drawings.len(), 64],
        values: drawings.iter().flat_map(|d| pixels(*d)).collect(),
    };
    let both = engine.run(input(&[ONE, SEVEN])).unwrap();
    assert_eq!(both.shape, [2, 10]);
    assert_eq!(engine.run(input(&[ONE, SEVEN])).unwrap(), both);
    for (i, drawing) in [ONE, SEVEN].into_iter().enumerate() {
        let alone = engine.run(input(&[drawing])).unwrap();
        assert!(alone.values.iter().zip(&both.values[i * 10..]).all(|(a, b)| (a - b).abs() < 1e-6));
    }
    assert!(engine.run(Tensor { shape: vec![1, 63], values: vec![0.0; 63] }).is_err());
    assert!(engine.run(Tensor { shape: vec![1, 64], values: vec![0.0; 63] }).is_err());
}

#[test]
fn rten_keeps_the_law() {
    let onnx = std::fs::read(workspace().join("models/digits/digits.onnx")).unwrap();
    keeps_the_law(Rten::load(onnx, 1).unwrap());
}
