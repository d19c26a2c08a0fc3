//! An object read as it comes, whatever its size.

use std::io;
use std::sync::mpsc;

use bytes::{Buf, Bytes};
use pelton_core::{Error, Result};
use pelton_env::Task;

/// The bytes of an object, in order. A read that breaks goes on where it stopped, as long as the object's version is the same; after an
/// error nothing more comes. A few pieces are kept ahead of whoever reads; dropping it ends the read.
pub struct ObjectStream {
    /// None after the last.
    pub(super) pieces: mpsc::Receiver<Result<Option<Bytes>>>,
    pub(super) rest: Bytes,
    pub(super) ended: bool,
    pub(super) _task: Task,
}

impl ObjectStream {
    /// The next piece; None at the end. Blocks.
    pub fn piece(&mut self) -> Result<Option<Bytes>> {
        if self.rest.has_remaining() {
            return Ok(Some(std::mem::take(&mut self.rest)));
        }
        if self.ended {
            return Ok(None);
        }
        let piece = self
            .pieces
            .recv()
            .unwrap_or_else(|_| Err(Error::internal("a stream of an object ended without saying so")));
        self.ended = !matches!(piece, Ok(Some(_)));
        piece
    }
}

impl io::Read for ObjectStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if !self.rest.has_remaining() {
            self.rest = self.piece().map_err(io::Error::other)?.unwrap_or_default();
        }
        let n = self.rest.len().min(into.len());
        self.rest.copy_to_slice(&mut into[..n]);
        Ok(n)
    }
}
