//! A small image classifier as a service.

use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, Float32Array, Int32Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use pelton_core::service::{Context, Invocation, Methods, Service};
use pelton_core::{Error, Result};

use crate::engine::{Engine, Rten, Tensor};
use crate::image::{PIXELS, pixels_field};
use crate::model_file;

const NEXT: &str = "give the path of an .onnx file in the option `model`";

/// An ONNX model that takes 64 pixels and gives the probability of each class.
///
/// Its method is `classify(pixels: FixedSizeList<Float32>[64]) -> (label: Int32, score: Float32)`: the likeliest class,
/// counted from 0, and its probability. Options: `model`, the path of the `.onnx` file; `digest`, the sha256 that the
/// file must have.
pub struct Classifier {
    engine: Box<dyn Engine>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    model: PathBuf,
    digest: Option<String>,
}

impl Service for Classifier {
    fn open(ctx: &Context) -> Result<Self> {
        let Options { model, digest } = ctx.options()?;
        let bytes = model_file::read(&model, NEXT)?;
        model_file::check_digest(&model, &model_file::digest(&bytes), digest.as_deref(), NEXT)?;
        let here = |e: Error| e.context(format!("model file {}", model.display()));
        let engine = Rten::load(bytes, model_file::threads(&ctx.resources)).map_err(here)?;
        let mut classifier = Classifier { engine: Box::new(engine) };
        // Warms up, and finds out now what would fail every request.
        let (classes, probabilities) = classifier.probabilities(2, vec![0.5; 2 * PIXELS]).map_err(here)?;
        let sum: f32 = probabilities.iter().take(classes).sum();
        if (sum - 1.0).abs() > 1e-3 {
            return Err(here(Error::invalid(format!(
                "its output sums to {sum} and not to 1: it must give probabilities, as a softmax at its end does"
            ))));
        }
        Ok(classifier)
    }

    fn methods() -> Methods<Self> {
        let label = Field::new("label", DataType::Int32, false);
        let score = Field::new("score", DataType::Float32, false);
        Methods::new().serial("classify", vec![pixels_field()], vec![label, score], Classifier::classify)
    }
}

impl Classifier {
    fn classify(&mut self, rows: RecordBatch, _: &Invocation) -> Result<RecordBatch> {
        let pixels = (rows.column_by_name("pixels").and_then(|c| c.as_fixed_size_list_opt()))
            .filter(|c| c.value_length() as usize == PIXELS)
            .ok_or_else(|| {
                Error::invalid(format!("classify needs a column pixels: FixedSizeList<Float32>[{PIXELS}]"))
            })?;
        // A slice of a list has the values of the whole list under it.
        let values = pixels.values().slice(pixels.value_offset(0) as usize, pixels.len() * PIXELS);
        let values = (values.as_primitive_opt::<Float32Type>())
            .filter(|v| v.null_count() == 0 && pixels.null_count() == 0)
            .ok_or_else(|| Error::invalid("classify needs pixels of Float32, none of them null"))?;
        let (classes, probabilities) = match rows.num_rows() {
            0 => (1, Vec::new()),
            n => self.probabilities(n, values.values().to_vec())?,
        };
        let best = |row: &[f32]| {
            (row.iter().copied().enumerate()).max_by(|a, b| a.1.total_cmp(&b.1)).expect("there is a class")
        };
        let (labels, scores): (Vec<i32>, Vec<f32>) =
            probabilities.chunks_exact(classes).map(best).map(|(label, score)| (label as i32, score)).unzip();
        let schema = Schema::new(Self::methods().specs()[0].output.fields().clone());
        let columns: [Arc<dyn Array>; 2] =
            [Arc::new(Int32Array::from(labels)), Arc::new(Float32Array::from(scores))];
        Ok(RecordBatch::try_new(Arc::new(schema), columns.into())?)
    }

    /// How many classes there are, and the probability of each, row by row.
    fn probabilities(&mut self, rows: usize, pixels: Vec<f32>) -> Result<(usize, Vec<f32>)> {
        let output = self.engine.run(Tensor { shape: vec![rows, PIXELS], values: pixels })?;
        match output.shape[..] {
            [n, classes] if n == rows && classes > 0 => Ok((classes, output.values)),
            ref shape => {
                let message =
                    format!("for an input of [{rows}, {PIXELS}] it gives {shape:?}, not [{rows}, classes]");
                Err(Error::invalid(message))
            }
        }
    }
}
