//! Documents to text, as an operator.

use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Schema, SchemaRef};
use pelton_core::{Error, Result};
use pelton_dataflow::batch::RowError;
use pelton_dataflow::operator::{Operator, Output, Transform};

use crate::document;
use crate::rows::{self, MAX_BYTES, MAX_ROWS};

/// `uri: Utf8`, `content: Binary` becomes `uri: Utf8`, `title: Utf8`, `text: Utf8`; other columns are not carried on. A
/// document that cannot be read is an error row that names it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extract;

fn output() -> SchemaRef {
    rows::schema(vec![rows::text("uri"), rows::text("title"), rows::text("text")])
}

impl Operator for Extract {
    fn output(&self, input: &Schema) -> Result<SchemaRef> {
        rows::require("extract", input, &[("uri", DataType::Utf8), ("content", DataType::Binary)])?;
        Ok(output())
    }

    fn create(&self) -> Result<Box<dyn Transform>> {
        Ok(Box::new(Extracting(output())))
    }
}

struct Extracting(SchemaRef);

impl Transform for Extracting {
    fn process(&mut self, rows: RecordBatch, output: &mut Output) -> Result<()> {
        let uris = rows::strings(&rows, "uri")?;
        let contents = (rows::column(&rows, "content")?.as_binary_opt::<i32>())
            .ok_or_else(|| Error::internal("the column content of a batch is not binary"))?;
        let mut part = Part::default();
        for row in 0..rows.num_rows() {
            let uri = rows::value(uris, row).unwrap_or("(no uri)");
            let content = if contents.is_valid(row) { contents.value(row) } else { b"" };
            match document::read(uri, content) {
                Ok(document) => {
                    part.uri.append_value(uri);
                    part.title.append_value(&document.title);
                    part.text.append_value(&document.text);
                    part.rows += 1;
                    part.bytes += document.text.len();
                }
                Err(error) => output.errors.push(RowError { row: uri.to_owned(), error }),
            }
            if part.rows >= MAX_ROWS || part.bytes >= MAX_BYTES {
                output.rows.push(part.finish(&self.0)?);
            }
        }
        if part.rows > 0 {
            output.rows.push(part.finish(&self.0)?);
        }
        Ok(())
    }
}

#[derive(Default)]
struct Part {
    uri: StringBuilder,
    title: StringBuilder,
    text: StringBuilder,
    rows: usize,
    bytes: usize,
}

impl Part {
    fn finish(&mut self, schema: &SchemaRef) -> Result<RecordBatch> {
        (self.rows, self.bytes) = (0, 0);
        let [uri, title, text] = [&mut self.uri, &mut self.title, &mut self.text].map(StringBuilder::finish);
        Ok(RecordBatch::try_new(schema.clone(), vec![Arc::new(uri), Arc::new(title), Arc::new(text)])?)
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{BinaryArray, StringArray};
    use arrow_schema::Field;

    use super::*;

    fn run(documents: &[(&str, &[u8])]) -> Output {
        let input = Arc::new(Schema::new(vec![
            Field::new("uri", DataType::Utf8, false),
            Field::new("content", DataType::Binary, false),
        ]));
        assert_eq!(Extract.output(&input).unwrap(), output());
        let uris = StringArray::from_iter_values(documents.iter().map(|d| d.0));
        let contents = BinaryArray::from_iter_values(documents.iter().map(|d| d.1));
        let rows = RecordBatch::try_new(input, vec![Arc::new(uris), Arc::new(contents)]).unwrap();
        let mut output = Output::default();
        Extract.create().unwrap().process(rows, &mut output).unwrap();
        output
    }

    #[test]
    fn good_documents_flow_on_and_bad_ones_become_error_rows() {
        let out = run(&[
            ("a.md", b"# A\n\ntext"),
            ("b.bin", b"\0\0"),
            ("c.txt", b""),
            ("d.txt", "größer".as_bytes()),
        ]);
        assert_eq!(out.rows.len(), 1);
        assert_eq!(rows::strings(&out.rows[0], "title").unwrap(), &StringArray::from(vec!["A", "d.txt"]));
        assert_eq!(
            rows::strings(&out.rows[0], "text").unwrap(),
            &StringArray::from(vec!["A\n\ntext", "größer"])
        );
        let errors: Vec<_> = out.errors.iter().map(|e| (e.row.as_str(), e.error.to_string())).collect();
        assert_eq!(errors[0].0, "b.bin");
        assert!(errors[0].1.contains("document b.bin: not a text document: a NUL byte at 0"), "{errors:?}");
        assert_eq!(errors[1], ("c.txt", "document c.txt: empty: there is no text in it".to_owned()));
    }

    #[test]
    fn much_text_comes_in_several_batches() {
        let long = "x".repeat(MAX_BYTES);
        let out = run(&[("a.txt", long.as_bytes()), ("b.txt", long.as_bytes()), ("c.txt", b"short")]);
        assert_eq!(out.rows.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [1, 1, 1]);
    }

    #[test]
    fn a_missing_column_is_named() {
        let input = Schema::new(vec![Field::new("uri", DataType::Utf8, false)]);
        let message = Extract.output(&input).unwrap_err().to_string();
        assert_eq!(message, "extract needs a column content: Binary, and is given (uri: Utf8)");
    }
}
