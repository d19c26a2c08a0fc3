//! A source with one row a line of text.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Seek, SeekFrom, Take};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use arrow_array::RecordBatch;
use arrow_array::builder::{StringBuilder, UInt64Builder};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use pelton_core::{Bytes, Error, Result};
use pelton_dataflow::batch::RowError;
use pelton_dataflow::source::{Read, Reader, Source, Split};
use pelton_env::storage::failed;
use serde::{Deserialize, Serialize};

use crate::name;
use crate::selection::Selection;
use crate::walk::Files;

/// A batch ends with whichever comes first.
const BATCH_LINES: usize = 1024;
const BATCH_BYTES: usize = 1 << 20;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub files: Selection,
    /// A longer line becomes a bad row, unread. 16 MiB; 1 GiB at most.
    #[serde(default = "default_max_line")]
    pub max_line: Bytes,
}

impl Settings {
    pub fn new(files: Selection) -> Self {
        Settings { files, max_line: default_max_line() }
    }
}

fn default_max_line() -> Bytes {
    Bytes::mib(16)
}

/// Reads text files line by line: `line` (its number, from 1) and `text` (without its end, `\n` or `\r\n`). A file is
/// a split, its position the byte offset of the next line. What is not UTF-8, and what is too long, becomes a bad row.
#[derive(Debug)]
pub struct Lines {
    files: Files,
    max_line: Bytes,
    schema: SchemaRef,
    base: OnceLock<PathBuf>,
}

impl Lines {
    pub fn new(settings: &Settings) -> Result<Lines> {
        let most = Bytes::mib(1024);
        if settings.max_line > most {
            let message = format!("max_line is {}, and {most} is the most", settings.max_line);
            return Err(Error::invalid(message));
        }
        Ok(Lines {
            files: Files::new(&settings.files)?,
            max_line: settings.max_line,
            schema: Arc::new(Schema::new(vec![
                Field::new("line", DataType::UInt64, false),
                Field::new("text", DataType::Utf8, false),
            ])),
            base: OnceLock::new(),
        })
    }
}

impl Source for Lines {
    fn describe(&self) -> String {
        format!("lines of {}", self.files.describe())
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn splits(&self) -> Result<Vec<Split>> {
        self.files.splits()
    }

    fn open(&self, split: &Split, position: u64) -> Result<Box<dyn Reader>> {
        let base = self.base.get_or_init(|| self.files.base());
        let path = name::path(base, &split.uri).map_err(|e| failed("reading", &base.join(&split.uri), &e))?;
        let wrong = |e| failed("reading", &path, &e);
        let mut file = File::open(&path).map_err(wrong)?;
        let skipped = count_lines(BufReader::new((&mut file).take(position))).map_err(wrong)?;
        file.seek(SeekFrom::Start(position)).map_err(wrong)?;
        Ok(Box::new(OneText {
            // No further than it went when the splits were found: what is appended meanwhile is another version.
            text: BufReader::with_capacity(256 << 10, file.take(split.bytes.saturating_sub(position))),
            path,
            uri: split.uri.clone(),
            length: split.bytes,
            max_line: self.max_line,
            schema: self.schema.clone(),
            line: skipped,
            position,
        }))
    }
}

fn count_lines(mut text: impl BufRead) -> std::io::Result<u64> {
    let mut lines = 0;
    loop {
        let read = text.fill_buf()?;
        if read.is_empty() {
            return Ok(lines);
        }
        lines += read.iter().filter(|b| **b == b'\n').count() as u64;
        let n = read.len();
        text.consume(n);
    }
}

struct OneText {
    text: BufReader<Take<File>>,
    path: PathBuf,
    uri: String,
    length: u64,
    max_line: Bytes,
    schema: SchemaRef,
    /// How many lines there are before the position.
    line: u64,
    position: u64,
}

enum Line {
    End,
    Good(String),
    Bad(Error),
}

impl Reader for OneText {
    fn next(&mut self) -> Result<Option<Read>> {
        let (mut numbers, mut texts, mut bad) = (UInt64Builder::new(), StringBuilder::new(), Vec::new());
        let mut bytes = 0;
        let begin = self.position;
        while numbers.values_slice().len() + bad.len() < BATCH_LINES && bytes < BATCH_BYTES {
            match self.read_line()? {
                Line::End => break,
                Line::Good(text) => {
                    bytes += text.len();
                    numbers.append_value(self.line);
                    texts.append_value(text);
                }
                Line::Bad(error) => bad.push(RowError { row: format!("{}:{}", self.uri, self.line), error }),
            }
        }
        if self.position == begin {
            return self.ended().map(|()| None);
        }
        let rows = RecordBatch::try_new(
            self.schema.clone(),
            vec![Arc::new(numbers.finish()), Arc::new(texts.finish())],
        )?;
        Ok(Some(Read { rows, bad, position: self.position }))
    }
}

impl OneText {
    fn read_line(&mut self) -> Result<Line> {
        let wrong = |e| failed("reading", &self.path, &e);
        // As long as a line may be, and two more for its end.
        let most = self.max_line.get() + 2;
        let mut line = Vec::new();
        let mut read = (&mut self.text).take(most).read_until(b'\n', &mut line).map_err(wrong)? as u64;
        if read == 0 {
            return Ok(Line::End);
        }
        let ended = line.pop_if(|b| *b == b'\n').is_some();
        if ended {
            line.pop_if(|b| *b == b'\r');
        }
        let too_long = line.len() as u64 > self.max_line.get();
        if too_long && !ended {
            read += self.text.skip_until(b'\n').map_err(wrong)? as u64;
        }
        if self.position == 0 && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        self.position += read;
        self.line += 1;
        if too_long {
            return Ok(Line::Bad(Error::limit(format!(
                "{} line {}: {read} bytes, over the limit of {} a line; raise max_line (`--max-line`) to read it",
                self.path.display(),
                self.line,
                self.max_line
            ))));
        }
        Ok(String::from_utf8(line).map_or_else(|e| Line::Bad(self.not_utf8(&e)), Line::Good))
    }

    fn not_utf8(&self, e: &std::string::FromUtf8Error) -> Error {
        let (file, line) = (self.path.display(), self.line);
        Error::invalid(format!(
            "{file} line {line}: not UTF-8 from byte {} on",
            e.utf8_error().valid_up_to() + 1
        ))
    }

    fn ended(&self) -> Result<()> {
        if self.position < self.length {
            return Err(Error::storage(format!(
                "{} ends after {} bytes and had {} when the job started; it was changed while it was read: start again \
                 without the checkpoints of this job",
                self.path.display(),
                self.position,
                self.length
            )));
        }
        Ok(())
    }
}
