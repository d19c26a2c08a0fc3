//! What objects are called. Pure.

use pelton_core::{Error, Result};
use pelton_dataflow::sink::Staged;
use serde::{Deserialize, Serialize};

pub(crate) const STAGING: &str = "_staging";

/// What a [`Staged`] says; names without a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) staged: String,
    pub(crate) part: String,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
}

impl Record {
    pub(crate) fn staged(&self) -> Result<Staged> {
        Ok(Staged(serde_json::to_value(self).map_err(|e| Error::internal(e.to_string()))?))
    }

    pub(crate) fn read(staged: &Staged) -> Result<Record> {
        let record: Record = serde_json::from_value(staged.0.clone()).map_err(|e| {
            Error::storage(format!("a checkpoint names output that is not of an object store's sink: {e}"))
        })?;
        for name in [&record.staged, &record.part] {
            if name.is_empty() || name.contains('/') || name.starts_with('.') {
                return Err(Error::storage(format!(
                    "a checkpoint names output `{name}`, which is no object's name"
                )));
            }
        }
        Ok(record)
    }
}

/// The objects of one sink.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) prefix: String,
    pub(crate) extension: &'static str,
}

impl Names {
    pub(crate) fn new(prefix: &str, extension: &'static str) -> Result<Names> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let begins = prefix.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins || !prefix.chars().all(plain) || prefix.len() > 64 {
            return Err(Error::invalid(format!(
                "prefix `{prefix}`: begin with a letter or digit, go on with letters, digits, `-` and `_`, 64 at most"
            )));
        }
        Ok(Names { prefix: prefix.to_owned(), extension })
    }

    /// Of an object that waits. `token` was never used before.
    pub(crate) fn staged(&self, generation: u64, subtask: u32, token: u64) -> String {
        format!("{}-{generation:05}-{subtask:04}-{token:016x}.{}", self.prefix, self.extension)
    }

    /// Of the object that it becomes.
    pub(crate) fn part(&self, generation: u64, subtask: u32, checkpoint: u64, token: u64) -> String {
        format!(
            "{}-{generation:05}-{subtask:04}-{checkpoint:06}-{token:016x}.{}",
            self.prefix, self.extension
        )
    }

    /// Which generation staged an object of this sink.
    pub(crate) fn generation_of_staged(&self, name: &str) -> Option<u64> {
        let [generation, _subtask] = self.numbers(name)?;
        Some(generation)
    }

    /// Generation and checkpoint of a part of this sink.
    pub(crate) fn part_of(&self, name: &str) -> Option<(u64, u64)> {
        let [generation, _subtask, checkpoint] = self.numbers(name)?;
        Some((generation, checkpoint))
    }

    /// The numbers before the token, if it is a name of ours with so many of them.
    fn numbers<const N: usize>(&self, name: &str) -> Option<[u64; N]> {
        let inner = name
            .strip_prefix(&self.prefix)?
            .strip_prefix('-')?
            .strip_suffix(self.extension)?
            .strip_suffix('.')?;
        let (numbers, token) = inner.rsplit_once('-')?;
        if token.len() != 16 || !token.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let digits =
            |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let numbers: Vec<u64> = numbers.split('-').map(digits).collect::<Option<_>>()?;
        numbers.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_do_not_mix() {
        let names = Names::new("part", "parquet").unwrap();
        let (staged, part) = (names.staged(3, 12, 0xabc), names.part(3, 12, 4_000_000, 0xabc));
        assert_eq!(part, "part-00003-0012-4000000-0000000000000abc.parquet");
        assert_eq!(names.generation_of_staged(&staged), Some(3));
        assert_eq!(names.part_of(&part), Some((3, 4_000_000)));
        assert_eq!((names.part_of(&staged), names.generation_of_staged(&part)), (None, None));
        for other in [
            "part-errors-1-2-3-0000000000000abc.parquet",
            "part-1-2-3-abc.parquet",
            "part-1-2-3-0000000000000abc.jsonl",
        ] {
            assert_eq!(names.part_of(other), None, "{other}");
        }
        for bad in ["", "-a", "_a", "a/b", "a b", &"a".repeat(65)] {
            assert!(Names::new(bad, "parquet").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_record_cannot_lead_elsewhere() {
        for (staged, part) in [("../x", "y"), ("x", "a/b"), ("", "y"), ("x", "..")] {
            let value = serde_json::json!({ "staged": staged, "part": part, "bytes": 0, "rows": 0 });
            assert!(Record::read(&Staged(value)).is_err(), "{staged} {part}");
        }
        assert!(Record::read(&Staged(serde_json::json!("another sink's"))).is_err());
    }
}
