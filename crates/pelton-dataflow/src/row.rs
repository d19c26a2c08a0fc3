//! Single rows as text, for messages and error outputs.

use arrow_array::RecordBatch;

/// Longer ones are cut: nobody reads more, and a row may be megabytes.
const LONGEST: usize = 512;

/// A row as JSON, cut short where it is long.
pub fn show(rows: &RecordBatch, row: usize) -> String {
    let mut writer = arrow_json::LineDelimitedWriter::new(Vec::new());
    let written = writer.write(&rows.slice(row, 1)).and_then(|()| writer.finish());
    match written {
        Ok(()) => cut(String::from_utf8_lossy(&writer.into_inner()).trim_end()),
        Err(e) => format!("(a row that cannot be shown: {e})"),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}
