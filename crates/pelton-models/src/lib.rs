//! The model services that come with Pelton, and the operator before the second one.
//!
//! [`Embedder`] makes sentence embeddings with a BERT model, in Rust alone. [`Classifier`] runs a small ONNX model over
//! images that [`Pixels`] has decoded; what runs ONNX stands behind [`engine::Engine`]. Models are files: this crate
//! fetches none.

mod classifier;
mod embedder;
pub mod engine;
mod image;
mod model_file;

pub use classifier::Classifier;
pub use embedder::{Embedder, THREADS_VARIABLE};
pub use image::Pixels;
