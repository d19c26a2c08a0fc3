//! How long a run without any progress is taken for normal.

use std::time::Duration;

/// So many runs have to be seen before they say what is normal.
const ENOUGH: u64 = 20;
const UNKNOWN: Duration = Duration::from_secs(15 * 60);
const LEAST: Duration = Duration::from_secs(5 * 60);
const TIMES: u32 = 10;

/// The limit for a run that gives nothing: what was declared, or ten times the longest of at least twenty runs (five minutes
/// at least: a language model's longest answer takes a hundred times its usual one), or a quarter of an hour while too little is known.
pub fn limit(declared: Option<Duration>, longest: Duration, runs: u64) -> Duration {
    declared.unwrap_or_else(|| if runs < ENOUGH { UNKNOWN } else { (longest * TIMES).max(LEAST) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_tells_what_is_normal() {
        let s = Duration::from_secs;
        assert_eq!(limit(Some(s(3)), s(100), 100), s(3));
        assert_eq!(limit(None, s(1), 5), UNKNOWN);
        assert_eq!(limit(None, s(1), 20), LEAST);
        assert_eq!(limit(None, s(600), 20), s(6000));
    }
}
