//! A document: a title and text.

use pelton_core::{Bytes, Error, Result};

use crate::media::{self, Media};
use crate::{html, markdown};

/// The largest document that is read; a page of HTML takes many times its size while it is parsed.
pub const MAX_DOCUMENT: Bytes = Bytes::mib(64);

/// What a document says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The document's own title, else its file name.
    pub title: String,
    /// Never blank. Paragraphs, headings and code blocks are set off by an empty line.
    pub text: String,
}

/// Reads a document. Errors name the uri, what is wrong, and what to do.
pub fn read(uri: &str, content: &[u8]) -> Result<Document> {
    extract(uri, content).map_err(|e| e.context(format!("document {uri}")))
}

fn extract(uri: &str, content: &[u8]) -> Result<Document> {
    if content.len() as u64 > MAX_DOCUMENT.get() {
        let size = Bytes(content.len() as u64);
        return Err(Error::limit(format!(
            "{size}, above the limit of {MAX_DOCUMENT}; split it, or leave it out"
        )));
    }
    let (media, text) = Media::detect(uri, content)?;
    let mut document = match media {
        Media::Markdown => markdown::read(text),
        Media::Html => html::read(text),
        Media::Text => Document { title: String::new(), text: text.to_owned() },
    };
    if document.text.trim().is_empty() {
        return Err(Error::user("there is no text in it, only markup"));
    }
    document.title = document.title.split_whitespace().collect::<Vec<_>>().join(" ");
    if document.title.is_empty() {
        document.title = media::file_name(uri).to_owned();
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn titles_fall_back_to_the_file_name() {
        assert_eq!(read("/a/notes.txt", b"hi").unwrap().title, "notes.txt");
        assert_eq!(read("/a/b.html", b"<p>x").unwrap().title, "b.html");
        assert_eq!(read("/a/b.md", b"# The\ttitle\n\nx").unwrap().title, "The title");
    }

    #[test]
    fn errors_name_the_document() {
        let message = read("/a/b.html", b"<script>1</script>").unwrap_err().to_string();
        assert_eq!(message, "document /a/b.html: there is no text in it, only markup");
        assert!(
            read("/a/c.pdf", b"%PDF-1.4")
                .unwrap_err()
                .to_string()
                .starts_with("document /a/c.pdf: not a text")
        );
    }
}
