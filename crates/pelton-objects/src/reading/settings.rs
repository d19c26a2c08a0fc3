//! What a reader is told.

use std::collections::BTreeMap;
use std::time::Duration;

use pelton_core::{Bytes, Error, Result};
use serde::{Deserialize, Serialize};

/// A reader's settings: data, with a default for all but the roots. In a declaration they are `[options.objects]`, if the service's own
/// options have a field `objects` of this type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReaderSettings {
    /// From where objects are read: `file:///FOLDER`, `s3://BUCKET/PREFIX`, `https://HOST/PREFIX`. A reference that leads elsewhere is
    /// refused, whatever the machine's keys and rights would allow.
    pub roots: Vec<String>,
    /// One read into memory gives no more. 64 MiB.
    #[serde(default = "max_bytes")]
    pub max_bytes: Bytes,
    /// What was read and is kept, for all of an instance. 256 MiB; 0 keeps nothing.
    #[serde(default = "cache")]
    pub cache: Bytes,
    /// Reads at a time; more wait. 16.
    #[serde(default = "concurrency")]
    pub concurrency: usize,
    /// How long one try may take; of a stream, how long it may give nothing. 30 s.
    #[serde(default = "attempt_timeout", with = "humantime_serde")]
    pub attempt_timeout: Duration,
    /// How long a read is tried again when servers fail. 60 s.
    #[serde(default = "patience", with = "humantime_serde")]
    pub patience: Duration,
    /// Options of S3 that are no secret: `region`, `endpoint`, `allow_http`, .. Those of the environment go before.
    #[serde(default)]
    pub s3: BTreeMap<String, String>,
}

fn max_bytes() -> Bytes {
    Bytes::mib(64)
}
fn cache() -> Bytes {
    Bytes::mib(256)
}
fn concurrency() -> usize {
    16
}
fn attempt_timeout() -> Duration {
    Duration::from_secs(30)
}
fn patience() -> Duration {
    Duration::from_secs(60)
}

impl ReaderSettings {
    pub fn new(roots: impl IntoIterator<Item = impl Into<String>>) -> Self {
        ReaderSettings {
            roots: roots.into_iter().map(Into::into).collect(),
            max_bytes: max_bytes(),
            cache: cache(),
            concurrency: concurrency(),
            attempt_timeout: attempt_timeout(),
            patience: patience(),
            s3: BTreeMap::new(),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let bad = |message: String| Err(Error::invalid(format!("objects: {message}")));
        if self.roots.is_empty() {
            return bad(
                "no roots: say from where objects are read, as in roots = [\"s3://bucket/images\"]".into()
            );
        }
        if self.max_bytes == Bytes(0) || self.concurrency == 0 || self.concurrency > 1024 {
            return bad("max_bytes has to be at least 1 B, concurrency 1 to 1024".into());
        }
        let secret = |name: &&String| {
            let name = name.to_ascii_lowercase();
            ["key", "token", "secret", "credential"].iter().any(|word| name.contains(word))
        };
        match self.s3.keys().find(secret) {
            Some(name) => bad(format!(
                "option `{name}` of S3 may be a secret, and declarations are stored and shown; give it in the environment, as \
                 AWS_{}",
                name.trim_start_matches("aws_").to_ascii_uppercase()
            )),
            None => Ok(()),
        }
    }
}
