//! Text to chunks of a bounded number of tokens, which overlap.
//!
//! An embedding model reads a bounded number of tokens, so the model's own tokenizer counts them. A chunk is an exact
//! slice of its text. Text is tokenized a paragraph at a time and chunks come out as the text goes in: the time is
//! linear and the memory bounded, however long the document is.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::builder::{StringBuilder, UInt32Builder};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::{Error, Result};
use pelton_dataflow::batch::RowError;
use pelton_dataflow::operator::{Operator, Output, Transform};
use tokenizers::Tokenizer;

use crate::rows::{self, MAX_BYTES, MAX_ROWS};

/// How large chunks are. Checked by [`Chunker::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Most tokens in a chunk, those included that the model sets around every text.
    pub tokens: usize,
    /// Most tokens that a chunk repeats of the one before it.
    pub overlap: usize,
}

impl Default for Size {
    /// 128 tokens, 16 of them repeated.
    fn default() -> Self {
        Size { tokens: 128, overlap: 16 }
    }
}

/// No token is longer than this, nor a chunk longer than so many bytes a token: a tokenizer may take a megabyte without a
/// space for a single unknown word.
const BYTES_A_TOKEN: usize = 32;

/// Cuts text.
#[derive(Clone)]
pub struct Chunker {
    tokenizer: Arc<Tokenizer>,
    /// Most tokens in a chunk, without those around it.
    room: usize,
    overlap: usize,
}

/// A slice of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice<'a> {
    pub text: &'a str,
    /// Where it begins in the whole text, in bytes.
    pub start: usize,
}

impl Chunker {
    /// `tokenizer` is a model's `tokenizer.json`. Its settings for truncation and padding are left aside.
    pub fn new(tokenizer: &Path, size: Size) -> Result<Self> {
        let refused =
            |what: String| Err(Error::invalid(format!("tokenizer {}: {what}", tokenizer.display())));
        let bytes = match std::fs::read(tokenizer) {
            Ok(bytes) => bytes,
            Err(e) => {
                return refused(format!(
                    "{e}; it comes with the embedding model: run `cargo xtask setup`, or name the model's folder with `--model DIR`"
                ));
            }
        };
        match Tokenizer::from_bytes(bytes) {
            Ok(tokenizer) => Chunker::with(tokenizer, size),
            Err(e) => refused(e.to_string()),
        }
    }

    /// The same with a tokenizer that is already loaded.
    pub fn with(mut tokenizer: Tokenizer, size: Size) -> Result<Self> {
        tokenizer.with_truncation(None).map_err(|e| Error::internal(format!("tokenizer: {e}")))?;
        tokenizer.with_padding(None);
        let around = tokenizer.encode("", true).map_err(failed)?.len();
        let Size { tokens, overlap } = size;
        let room = tokens.saturating_sub(around);
        if room < 8 {
            return Err(Error::invalid(format!(
                "chunks of {tokens} tokens are too small: at least {}",
                around + 8
            )));
        }
        if overlap > room / 2 {
            let most = room / 2;
            return Err(Error::invalid(format!(
                "an overlap of {overlap} tokens is too large: at most {most} of {tokens}"
            )));
        }
        Ok(Chunker { tokenizer: Arc::new(tokenizer), room, overlap })
    }

    /// The chunks of a text, in order. Together they hold every token of it.
    pub fn chunks<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Result<Slice<'a>>> + 'a {
        let pieces = Pieces { text, at: 0, most: self.room * BYTES_A_TOKEN };
        Chunks { chunker: self, text, pieces, window: VecDeque::new(), repeated: 0, ended: false }
    }
}

fn failed(e: tokenizers::Error) -> Error {
    Error::user(format!("tokenizer: {e}"))
}

/// How good a place a token is for a chunk to begin at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Begin {
    /// Within a word.
    Inside,
    Word,
    /// A sentence or a line.
    Sentence,
    Paragraph,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    start: usize,
    end: usize,
    begin: Begin,
}

struct Chunks<'a> {
    chunker: &'a Chunker,
    text: &'a str,
    pieces: Pieces<'a>,
    /// Tokens from the begin of the next chunk on.
    window: VecDeque<Token>,
    /// How many of them the last chunk held, too.
    repeated: usize,
    ended: bool,
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Result<Slice<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let room = self.chunker.room;
        // One more than fits: it tells whether the text goes on, and what a chunk would cut.
        while self.window.len() <= room {
            let Some((at, piece)) = self.pieces.next() else {
                break;
            };
            if let Err(e) = self.push(at, piece) {
                self.ended = true;
                return Some(Err(e));
            }
        }
        if self.window.len() <= self.repeated {
            self.ended = true;
            return None;
        }
        let (start, most) = (self.window[0].start, room * BYTES_A_TOKEN);
        let fits = self
            .window
            .iter()
            .take(room)
            .take_while(|t| t.end - start <= most)
            .count()
            .max(self.repeated + 1);
        let cut = if fits == self.window.len() { fits } else { self.cut(fits) };
        let slice = Slice { text: &self.text[start..self.window[cut - 1].end], start };
        if cut == self.window.len() {
            self.ended = true;
        } else {
            let next = self.back(cut);
            self.window.drain(..next);
            self.repeated = cut - next;
        }
        Some(Ok(slice))
    }
}

impl Chunks<'_> {
    fn push(&mut self, at: usize, piece: &str) -> Result<()> {
        let encoding = self.chunker.tokenizer.encode(piece, false).map_err(failed)?;
        for &(start, end) in encoding.get_offsets() {
            // A character that the tokenizer takes apart gives tokens with the same offsets; a slice never cuts it.
            let start = self.text.floor_char_boundary(at + start);
            let end = self.text.ceil_char_boundary(at + end).max(start);
            let before = self.window.back().map_or(0, |t| t.end);
            self.window.push_back(Token { start, end, begin: begin(self.text, before.min(start), start) });
        }
        Ok(())
    }

    /// Where to end a chunk of at most `fits` tokens: at the best place in its last quarter, the last of equals.
    fn cut(&self, fits: usize) -> usize {
        let least = (fits - fits / 4).max(self.repeated + 1);
        (least..=fits).max_by_key(|i| (self.window[*i].begin, *i)).unwrap_or(fits)
    }

    /// Where the next chunk begins after a cut: at most the overlap before it, at the begin of a sentence or of a word.
    fn back(&self, cut: usize) -> usize {
        let (overlap, end) = (self.chunker.overlap, self.window[cut - 1].end);
        let close = |i: &usize| end - self.window[*i].start <= overlap * BYTES_A_TOKEN;
        let Some(from) = (cut - overlap.min(cut - 1)..cut).find(close) else {
            return cut;
        };
        let first = |least| (from..cut).find(|i| self.window[*i].begin >= least);
        let otherwise = if self.window[cut].begin >= Begin::Word { cut } else { from };
        first(Begin::Sentence).or_else(|| first(Begin::Word)).unwrap_or(otherwise)
    }
}

/// What a token that begins at `start` begins, seen by the text between it and the token before.
fn begin(text: &str, before: usize, start: usize) -> Begin {
    let gap = &text[before..start];
    if start == 0 || gap.matches('\n').count() > 1 {
        Begin::Paragraph
    } else if gap.contains('\n') {
        Begin::Sentence
    } else if gap.chars().any(char::is_whitespace) {
        match text[..before].chars().next_back() {
            Some('.' | '!' | '?' | '。' | '！' | '？') => Begin::Sentence,
            _ => Begin::Word,
        }
    } else {
        Begin::Inside
    }
}

/// A text in pieces to tokenize one by one: paragraphs, the long ones cut at white space or, without any, anywhere.
struct Pieces<'a> {
    text: &'a str,
    at: usize,
    most: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = (usize, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.text[self.at..];
        if rest.is_empty() {
            return None;
        }
        let head = &rest[..rest.floor_char_boundary(self.most)];
        let end = match head.find("\n\n") {
            Some(i) => i + 2,
            None if head.len() == rest.len() => head.len(),
            // White space goes to the piece after it, as tokenizers that mark the begin of words expect.
            None => head
                .rfind('\n')
                .or_else(|| head.rfind(char::is_whitespace))
                .filter(|i| *i > 0)
                .unwrap_or(head.len()),
        };
        let piece = (self.at, &rest[..end]);
        self.at += end;
        Some(piece)
    }
}

/// `uri: Utf8`, `title: Utf8`, `text: Utf8` becomes `uri: Utf8`, `title: Utf8`, `chunk: UInt32`, `text: Utf8`: a row for
/// each chunk, counted from 0; other columns are not carried on.
pub struct Chunk {
    chunker: Chunker,
}

impl Chunk {
    pub fn new(chunker: Chunker) -> Self {
        Chunk { chunker }
    }
}

fn output() -> SchemaRef {
    let number = Field::new("chunk", DataType::UInt32, false);
    rows::schema(vec![rows::text("uri"), rows::text("title"), number, rows::text("text")])
}

impl Operator for Chunk {
    fn output(&self, input: &Schema) -> Result<SchemaRef> {
        rows::require("chunk", input, &["uri", "title", "text"].map(|name| (name, DataType::Utf8)))?;
        Ok(output())
    }

    fn create(&self) -> Result<Box<dyn Transform>> {
        Ok(Box::new(Chunking { chunker: self.chunker.clone(), schema: output() }))
    }
}

struct Chunking {
    chunker: Chunker,
    schema: SchemaRef,
}

impl Transform for Chunking {
    fn process(&mut self, rows: RecordBatch, output: &mut Output) -> Result<()> {
        let [uris, titles, texts] = ["uri", "title", "text"].map(|name| rows::strings(&rows, name));
        let (uris, titles, texts) = (uris?, titles?, texts?);
        let mut part = Part::default();
        for row in 0..rows.num_rows() {
            let uri = rows::value(uris, row).unwrap_or("(no uri)");
            let title = rows::value(titles, row).unwrap_or_default();
            let text = rows::value(texts, row).unwrap_or_default();
            let mut number = 0;
            let mut bad = None;
            for slice in self.chunker.chunks(text) {
                let slice = match slice {
                    Ok(slice) => slice,
                    Err(e) => {
                        bad = Some(e);
                        break;
                    }
                };
                part.push(uri, title, number, slice.text);
                number += 1;
                if part.rows >= MAX_ROWS || part.bytes >= MAX_BYTES {
                    output.rows.push(part.finish(&self.schema)?);
                }
            }
            let none =
                || (number == 0).then(|| Error::user("there is nothing in it that the tokenizer can read"));
            if let Some(error) = bad.or_else(none) {
                let error = error.context(format!("document {uri}"));
                output.errors.push(RowError { row: uri.to_owned(), error });
            }
        }
        if part.rows > 0 {
            output.rows.push(part.finish(&self.schema)?);
        }
        Ok(())
    }
}

#[derive(Default)]
struct Part {
    uri: StringBuilder,
    title: StringBuilder,
    chunk: UInt32Builder,
    text: StringBuilder,
    rows: usize,
    bytes: usize,
}

impl Part {
    fn push(&mut self, uri: &str, title: &str, chunk: u32, text: &str) {
        self.uri.append_value(uri);
        self.title.append_value(title);
        self.chunk.append_value(chunk);
        self.text.append_value(text);
        self.rows += 1;
        self.bytes += uri.len() + title.len() + text.len();
    }

    fn finish(&mut self, schema: &SchemaRef) -> Result<RecordBatch> {
        (self.rows, self.bytes) = (0, 0);
        let [uri, title, text] =
            [&mut self.uri, &mut self.title, &mut self.text].map(|b| Arc::new(b.finish()));
        Ok(RecordBatch::try_new(schema.clone(), vec![uri, title, Arc::new(self.chunk.finish()), text])?)
    }
}

#[cfg(test)]
mod tests;
