//! A digest around a small file, so that one flipped bit in it is found.

use std::path::Path;

use pelton_core::{Error, Result};
use sha2::{Digest, Sha256};

const BEGIN: &str = "{\"sha256\":\"";
const MIDDLE: &str = "\",\"sealed\":";
const END: &str = "}\n";
/// Hexadecimal digits of a digest.
const DIGITS: usize = 64;

/// These bytes of JSON within JSON that has their digest.
pub(crate) fn seal(json: &[u8]) -> Vec<u8> {
    [BEGIN.as_bytes(), digest(json).as_bytes(), MIDDLE.as_bytes(), json, END.as_bytes()].concat()
}

/// What was sealed. Every byte is checked, those of the seal too.
pub(crate) fn open<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let content = || {
        let rest = bytes.strip_prefix(BEGIN.as_bytes())?;
        let (said, rest) = rest.split_at_checked(DIGITS)?;
        let json = rest.strip_prefix(MIDDLE.as_bytes())?.strip_suffix(END.as_bytes())?;
        (digest(json).as_bytes() == said).then_some(json)
    };
    content().ok_or_else(|| {
        Error::storage(format!(
            "{} is damaged: it differs from the SHA-256 that stands in it",
            path.display()
        ))
    })
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_missing_byte_is_found() {
        let path = Path::new("a.json");
        let sealed = seal(b"{\"number\": 12}");
        assert_eq!(open(path, &sealed).unwrap(), b"{\"number\": 12}");
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&sealed).unwrap()["sealed"]["number"], 12);
        for byte in 0..sealed.len() {
            assert!(open(path, &sealed[..byte]).is_err(), "cut to {byte} bytes");
            for bit in 0..8 {
                let mut damaged = sealed.clone();
                damaged[byte] ^= 1 << bit;
                let error = open(path, &damaged).unwrap_err();
                assert!(error.message().starts_with("a.json is damaged"), "{error}");
            }
        }
        assert!(open(path, &[&sealed[..], b"\n"].concat()).is_err());
    }
}
