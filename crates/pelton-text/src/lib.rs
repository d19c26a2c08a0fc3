//! Reading documents: from the bytes of a file to chunks that fit an embedding model.
//!
//! [`Extract`] makes text of Markdown, HTML and plain text; [`Chunk`] cuts the text by tokens. Both are operators of the
//! data plane; [`document::read`] and [`chunk::Chunker`] are the same without one. This crate opens no document itself:
//! a source brings the bytes. The one file that it reads is the tokenizer's.

pub mod chunk;
pub mod document;
mod extract;
mod html;
mod markdown;
mod media;
mod prose;
mod rows;

pub use chunk::{Chunk, Chunker};
pub use document::{Document, read};
pub use extract::Extract;
pub use media::Media;
