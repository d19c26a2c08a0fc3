//! Uris of objects: `SCHEME://AUTHORITY/PATH`, what is no plain character as `%20`. Pure.

use std::fmt::Write;

use crate::error::{Error, Result};

/// A path's bytes as the path of a uri.
pub fn encode(path: &[u8]) -> String {
    let mut uri = String::with_capacity(path.len());
    for byte in path {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' => uri.push(char::from(*byte)),
            b if b.is_ascii_alphanumeric() => uri.push(char::from(*b)),
            b => {
                let _ = write!(uri, "%{b:02X}");
            }
        }
    }
    uri
}

/// A uri in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    pub scheme: &'a str,
    /// Host and port, or the bucket; empty for files.
    pub authority: &'a str,
    /// Each name of the path, decoded: none is empty, `.` or `..`, none has a `/` or a NUL in it.
    pub names: Vec<Vec<u8>>,
}

/// The parts of a uri of an object or a folder.
pub fn parts(uri: &str) -> Result<Parts<'_>> {
    let bad = |what: &str| {
        Error::invalid(format!(
            "uri `{uri}`: {what}; write file:///FOLDER/FILE, s3://BUCKET/KEY or https://HOST/PATH"
        ))
    };
    // Refuses what may hold a key before anything is shown.
    check_shown(uri)?;
    let (scheme, rest) = uri.split_once("://").ok_or_else(|| bad("it is no uri"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut names = Vec::new();
    let mut shown = path.split('/').peekable();
    while let Some(name) = shown.next() {
        // A folder may end with a slash.
        if name.is_empty() && shown.peek().is_none() {
            break;
        }
        let name = decode(name).map_err(|what| bad(&what))?;
        if name.is_empty() || name == b"." || name == b".." || name.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(bad(
                "each name of its path has to be one, not empty, `.`, `..` or with a `/` or NUL in it",
            ));
        }
        names.push(name);
    }
    Ok(Parts { scheme, authority, names })
}

/// Whether a reference may have this uri.
pub(super) fn check(uri: &str, longest: usize) -> Result<()> {
    check_shown(uri)?;
    if uri.len() > longest {
        let message = format!("a uri has {} bytes, and {longest} are the most: {}..", uri.len(), &uri[..64]);
        return Err(Error::invalid(message));
    }
    let parts = parts(uri)?;
    if parts.names.is_empty() || uri.ends_with('/') {
        return Err(Error::invalid(format!("uri `{uri}` has no path to an object")));
    }
    Ok(())
}

/// Refuses what cannot be shown: keys, and characters that are no part of a uri.
fn check_shown(uri: &str) -> Result<()> {
    let authority = uri.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or(""));
    if authority.contains('@') || uri.contains(['?', '#']) {
        return Err(Error::invalid(
            "the uri of an object has a user, a `?` or a `#` in it (it is not shown, for it may hold a key): write these characters of a \
             name as %40, %3F and %23, and give keys in the environment",
        ));
    }
    match uri.bytes().position(|b| !b.is_ascii_graphic() || matches!(b, b'"' | b'<' | b'>' | b'\\' | b'`')) {
        Some(at) => Err(Error::invalid(format!(
            "a uri has a character at byte {at} that has to be written as %20 is: {}",
            uri.escape_debug()
        ))),
        None => Ok(()),
    }
}

fn decode(name: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = &after[..after.len().min(2)];
        let hex = std::str::from_utf8(digits).ok().filter(|d| d.len() == 2 && !d.starts_with('+'));
        let byte = hex.and_then(|d| u8::from_str_radix(d, 16).ok());
        bytes.push(byte.ok_or_else(|| {
            format!("`%{}` is no character; write % as %25", String::from_utf8_lossy(digits))
        })?);
        rest = &after[2..];
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_comes_back() {
        for name in ["plain.png", "a b%20?#@.png", "\u{e4}\u{1f600}", "back\\slash\"`<>"] {
            let uri = format!("file://{}", encode(format!("/tmp/{name}").as_bytes()));
            check(&uri, 4096).unwrap();
            assert_eq!(parts(&uri).unwrap().names, [b"tmp".to_vec(), name.as_bytes().to_vec()]);
        }
        let uri = format!("file://{}", encode(b"/\xff\n"));
        assert_eq!(parts(&uri).unwrap().names, [b"\xff\n".to_vec()]);
    }

    #[test]
    fn paths_cannot_climb() {
        for path in ["a/../b", "%2e%2e/b", "./b", "a//b", "a%2Fb", "a%00", "..", "."] {
            let error = parts(&format!("file:///{path}")).map(drop).unwrap_err();
            assert!(error.message().contains("each name"), "{path}: {error}");
        }
        let folder = parts("s3://bucket/some/prefix/").unwrap();
        assert_eq!((folder.scheme, folder.authority, folder.names.len()), ("s3", "bucket", 2));
        assert!(parts("s3://bucket").unwrap().names.is_empty());
    }
}
