//! What kind of document some bytes are.

use pelton_core::{Error, Result};

/// The kinds of documents that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    Markdown,
    Html,
    /// Anything else that is UTF-8: plain text, source code, configuration.
    Text,
}

/// Where a file begins like this, it is no text, whatever its name.
const BINARY: [(&[u8], &str); 11] = [
    (b"%PDF-", "PDF"),
    (b"PK\x03\x04", "ZIP archive or office document"),
    (b"\xD0\xCF\x11\xE0", "office document"),
    (b"{\\rtf", "RTF"),
    (b"\x1f\x8b", "gzip archive"),
    (b"\x89PNG", "PNG image"),
    (b"GIF8", "GIF image"),
    (b"\xFF\xD8\xFF", "JPEG image"),
    (b"\x7fELF", "program"),
    (b"\xFF\xFE", "text in UTF-16"),
    (b"\xFE\xFF", "text in UTF-16"),
];

/// How much of a file without a telling name is looked at for signs of HTML.
const SNIFF: usize = 1024;

impl Media {
    /// Tells the kind by the name's extension and, where that says nothing, by how the content begins. The text comes
    /// back without a byte order mark. Errors name no uri: the caller does.
    pub fn detect<'a>(uri: &str, content: &'a [u8]) -> Result<(Media, &'a str)> {
        if let Some((_, what)) = BINARY.iter().find(|(magic, _)| content.starts_with(magic)) {
            let next = "convert it to UTF-8 text, Markdown or HTML, or leave it out of the source";
            return Err(Error::user(format!("not a text document but {}; {next}", article(what))));
        }
        if let Some(at) = content.iter().position(|b| *b == 0) {
            let next = "leave it out of the source";
            return Err(Error::user(format!("not a text document: a NUL byte at {at}; {next}")));
        }
        let text = std::str::from_utf8(content).map_err(|e| {
            let next = "convert it to UTF-8, or leave it out of the source";
            Error::user(format!(
                "not a text document in UTF-8: an invalid byte at {}; {next}",
                e.valid_up_to()
            ))
        })?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if text.trim().is_empty() {
            return Err(Error::user("empty: there is no text in it"));
        }
        let media = match extension(uri).as_deref() {
            Some("md" | "markdown" | "mdown" | "mkd") => Media::Markdown,
            Some("html" | "htm" | "xhtml") => Media::Html,
            Some("txt" | "text") => Media::Text,
            _ if looks_like_html(text) => Media::Html,
            _ => Media::Text,
        };
        Ok((media, text))
    }
}

fn article(what: &str) -> String {
    match what {
        "RTF" => "RTF".into(),
        w if w.starts_with("text") => w.into(),
        w => format!("a {w}"),
    }
}

/// The last part of the uri's path.
pub(crate) fn file_name(uri: &str) -> &str {
    let path = uri.split(['?', '#']).next().unwrap_or(uri).trim_end_matches('/');
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

fn extension(uri: &str) -> Option<String> {
    let (stem, extension) = file_name(uri).rsplit_once('.')?;
    (!stem.is_empty()).then(|| extension.to_ascii_lowercase())
}

fn looks_like_html(text: &str) -> bool {
    let head = &text[..text.floor_char_boundary(SNIFF)].trim_start().to_ascii_lowercase();
    head.starts_with("<!doctype html") || head.starts_with("<html") || head.contains("<body")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_first_then_content() {
        for (uri, content, expected) in [
            ("a/b.md", "<html>", Media::Markdown),
            ("b.HTML", "x", Media::Html),
            ("file:///a/b.html?x=1.txt#y", "x", Media::Html),
            ("c.txt", "<html>", Media::Text),
            ("page", "\u{feff}\n<!DOCTYPE html><p>x", Media::Html),
            ("main.rs", "fn main() {}", Media::Text),
            (".md", "x", Media::Text),
        ] {
            let (media, text) = Media::detect(uri, content.as_bytes()).unwrap();
            assert_eq!(media, expected, "{uri}");
            assert!(!text.starts_with('\u{feff}'));
        }
    }

    #[test]
    fn what_is_no_text_is_refused_with_the_reason() {
        for (content, expected) in [
            (&b"%PDF-1.7 ..."[..], "not a text document but a PDF; convert it"),
            (b"abc\0def", "a NUL byte at 3"),
            (b"caf\xe9", "an invalid byte at 3; convert it to UTF-8"),
            (b"\xFF\xFEa\0", "text in UTF-16; convert it"),
            (b"", "empty"),
            (b"\xEF\xBB\xBF \n\t", "empty"),
        ] {
            let message = Media::detect("x.txt", content).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
