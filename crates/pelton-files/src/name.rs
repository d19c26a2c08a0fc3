//! A file's uri from its path, and back.
//!
//! A uri is the path below a base with `/` between names. A name that is not UTF-8 is shown lossily, behind a hash of its
//! bytes: two such names never give one uri, and the file is found again by looking through its folder.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use pelton_core::id::stable_hash;

pub(crate) fn uri(base: &Path, path: &Path) -> String {
    let below = path.strip_prefix(base).unwrap_or(path);
    let mut uri = String::new();
    for component in below.components() {
        match component {
            Component::RootDir | Component::Prefix(_) | Component::CurDir => {}
            Component::ParentDir => push(&mut uri, ".."),
            Component::Normal(name) => push(&mut uri, &show(name)),
        }
    }
    uri
}

pub(crate) fn path(base: &Path, uri: &str) -> io::Result<PathBuf> {
    let mut path = base.to_owned();
    for shown in uri.split('/').filter(|s| !s.is_empty()) {
        path.push(if shown.contains(char::REPLACEMENT_CHARACTER) {
            find(&path, shown)?
        } else {
            shown.into()
        });
    }
    Ok(path)
}

fn push(uri: &mut String, name: &str) {
    if !uri.is_empty() {
        uri.push('/');
    }
    uri.push_str(name);
}

fn show(name: &OsStr) -> String {
    match name.to_str() {
        Some(name) => name.to_owned(),
        // The hash in front, so that the extension stays at the end.
        None => {
            let bytes = name.as_encoded_bytes().escape_ascii().to_string();
            format!("~{:016x}~{}", stable_hash(&bytes), name.to_string_lossy())
        }
    }
}

fn find(folder: &Path, shown: &str) -> io::Result<OsString> {
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if show(&name) == shown {
            return Ok(name);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no file named {shown}")))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_uri_leads_back_to_its_file() {
        let base = tempfile::tempdir().unwrap();
        let names: [&[u8]; 6] =
            [b"plain.md", b"a b%20.md", "\u{fffd}.md".as_bytes(), b"\xff.md", b"\xfe.md", b"back\\slash"];
        let mut seen = std::collections::BTreeSet::new();
        for name in names {
            let file = base.path().join("sub").join(OsStr::from_bytes(name));
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, name).unwrap();
            let uri = uri(base.path(), &file);
            assert_eq!(path(base.path(), &uri).unwrap(), file);
            assert!(seen.insert(uri));
        }
        assert!(path(base.path(), "sub/\u{fffd}gone").is_err());
    }

    #[test]
    fn uris_are_relative_and_use_slashes() {
        assert_eq!(uri(Path::new("/a"), Path::new("/a/b/c.md")), "b/c.md");
        assert_eq!(uri(Path::new("a/"), Path::new("a/./b")), "b");
    }
}
