//! A model's files: reading them, their digests, and what to say where one is not there.

use std::fmt::Write;
use std::path::Path;

use pelton_core::declaration::Resources;
use pelton_core::{Error, Result};
use sha2::{Digest, Sha256};

/// Reads a file whole. Where it cannot be read, `next` says what to do.
pub(crate) fn read(path: &Path, next: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::invalid(format!("model file {}: {e}; {next}", path.display())))
}

/// The sha256 in hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Says no to a file that is not the one that the declaration means.
pub(crate) fn check_digest(path: &Path, found: &str, expected: Option<&str>, next: &str) -> Result<()> {
    match expected {
        Some(expected) if !expected.eq_ignore_ascii_case(found) => Err(Error::invalid(format!(
            "model file {} has the sha256 {found}, the option `digest` says {expected}; {next}",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// How many threads a model may compute on.
pub(crate) fn threads(resources: &Resources) -> usize {
    (resources.cpu as usize).max(1)
}
