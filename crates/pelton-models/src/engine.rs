//! What runs ONNX models: one trait, an engine for each implementation.

use std::sync::Arc;

use pelton_core::{Error, Result};
use rten_tensor::prelude::*;

/// Numbers in rows: the last axis of `shape` is the innermost one.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// A loaded model with one input and one output of `float32`.
///
/// Law: the same input gives the same output, and a row's output does not depend on the other rows.
pub trait Engine: Send {
    fn run(&mut self, input: Tensor) -> Result<Tensor>;
}

/// The engine in Rust alone: no library to install.
pub struct Rten {
    model: rten::Model,
    pool: Arc<rten::ThreadPool>,
}

impl Rten {
    /// Loads an ONNX model, to run on so many threads.
    pub fn load(onnx: Vec<u8>, threads: usize) -> Result<Self> {
        let model = rten::Model::load(onnx)
            .map_err(|e| Error::invalid(format!("no ONNX model that runs here: {e}")))?;
        let (inputs, outputs) = (model.input_ids().len(), model.output_ids().len());
        if (inputs, outputs) != (1, 1) {
            return Err(Error::invalid(format!(
                "{inputs} inputs and {outputs} outputs; one of each is supported"
            )));
        }
        Ok(Rten { model, pool: Arc::new(rten::ThreadPool::with_num_threads(threads)) })
    }
}

impl Engine for Rten {
    fn run(&mut self, input: Tensor) -> Result<Tensor> {
        let failed = |e: &dyn std::fmt::Display| Error::user(format!("ONNX model: {e}"));
        let Tensor { shape, values } = input;
        let input = rten_tensor::Tensor::try_from_data(shape.as_slice(), values).map_err(|e| failed(&e))?;
        let options = rten::RunOptions::default().with_thread_pool(Some(self.pool.clone()));
        let output = self.model.run_one(input.into(), Some(options)).map_err(|e| failed(&e))?;
        let output: rten_tensor::Tensor<f32> = output.try_into().map_err(|e| failed(&e))?;
        Ok(Tensor { shape: output.shape().to_vec(), values: output.to_vec() })
    }
}
