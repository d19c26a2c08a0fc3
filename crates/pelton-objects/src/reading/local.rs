//! Files of this machine. Blocks.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use futures::{StreamExt, stream};
use pelton_core::{Error, ObjectRef, Result};
use pelton_files::version;

use super::attempt::{Body, Failure, Span, check_version, gone, part};

/// What is read at once.
const PIECE: u64 = 1 << 20;

/// Opens a file. It may be reached by links, as long as they lead to a place below the root.
pub(super) fn open(
    object: &ObjectRef,
    root: &Path,
    path: &Path,
    span: Span,
    fits: impl Fn(u64) -> Result<()>,
) -> Result<Body, Failure> {
    let wrong = |e: io::Error| failed(object, &e);
    let real = fs::canonicalize(path).map_err(wrong)?;
    if !real.starts_with(root) {
        return Err(Failure::Stays(Error::user(format!(
            "object {object}: it is a link to {}, which is in none of the places that this service reads from; add one to `roots` in its \
             [options.objects]",
            real.display()
        ))));
    }
    // A pipe would be waited for.
    if !fs::metadata(&real).map_err(wrong)?.is_file() {
        return Err(Failure::Stays(Error::user(format!("object {object}: it is no file"))));
    }
    let file = File::open(&real).map_err(wrong)?;
    let metadata = file.metadata().map_err(wrong)?;
    let opened = version(&metadata);
    check_version(object, Some(&opened))?;
    let length = part(object, span, metadata.len())?;
    fits(length)?;
    let whole = Reading { object: object.clone(), file, opened: opened.clone(), at: span.from, left: length };
    let pieces = stream::unfold(Some(whole), |reading| async {
        let mut reading = reading?;
        let piece = reading.next()?;
        let goes_on = piece.is_ok();
        Some((piece, goes_on.then_some(reading)))
    });
    Ok(Body::new(length, Some(opened), pieces.boxed()))
}

struct Reading {
    object: ObjectRef,
    file: File,
    opened: String,
    at: u64,
    left: u64,
}

impl Reading {
    fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        if self.left == 0 {
            return None;
        }
        let n = self.left.min(PIECE);
        let mut piece = vec![0; n as usize];
        let read = self.file.read_exact_at(&mut piece, self.at).and_then(|()| self.file.metadata());
        Some(match read {
            Ok(now) => {
                let now = version(&now);
                // It may be written to while it is read.
                if now != self.opened {
                    return Some(Err(Failure::Stays(Error::user(format!(
                        "object {}: it changed while it was read: its version was {} and is {now}; list it again, and leave objects as \
                         they are while jobs read them",
                        self.object, self.opened
                    )))));
                }
                self.at += n;
                self.left -= n;
                Ok(piece.into())
            }
            Err(e) => Err(failed(&self.object, &e)),
        })
    }
}

fn failed(object: &ObjectRef, e: &io::Error) -> Failure {
    match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Failure::Stays(gone(object)),
        io::ErrorKind::PermissionDenied => Failure::Stays(Error::user(format!(
            "object {object}: the instance may not read it; give its user the right to"
        ))),
        _ => Failure::Passes { why: e.to_string(), after: None },
    }
}
