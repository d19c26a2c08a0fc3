//! When an instance closes a batch.
//!
//! A batch closes when the instance is free, not when a timer fires: cutting small batches that then queue is what makes
//! servers tip over. The linger is only for an idle instance that knows of more to come.

use std::time::Duration;

use pelton_core::Time;

/// What the next batch may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub rows: u64,
    pub bytes: u64,
    pub weight: f64,
    pub linger: Duration,
}

/// What waits for the next batch.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    pub rows: u64,
    pub bytes: u64,
    pub weight: f64,
    /// When its oldest row came.
    pub since: Time,
    /// Whether more rows were announced or permitted and are not here yet.
    pub more_to_come: bool,
}

/// Why a batch closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    Rows,
    Bytes,
    Weight,
    Linger,
    /// Nobody announced any more.
    NothingToCome,
}

impl Reason {
    /// The stable name, as it stands in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Rows => "rows",
            Reason::Bytes => "bytes",
            Reason::Weight => "weight",
            Reason::Linger => "linger",
            Reason::NothingToCome => "nothing-to-come",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Close(Reason),
    /// Look again at this time, or when more comes.
    WaitUntil(Time),
}

/// Decides for an instance that is free and has rows waiting.
pub fn close(limits: Limits, waiting: Waiting, now: Time) -> Decision {
    let lingers_until = waiting.since + limits.linger;
    if waiting.rows >= limits.rows {
        Decision::Close(Reason::Rows)
    } else if waiting.bytes >= limits.bytes {
        Decision::Close(Reason::Bytes)
    } else if waiting.weight >= limits.weight {
        Decision::Close(Reason::Weight)
    } else if now >= lingers_until {
        Decision::Close(Reason::Linger)
    } else if !waiting.more_to_come {
        Decision::Close(Reason::NothingToCome)
    } else {
        Decision::WaitUntil(lingers_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_closes() {
        let ms = Duration::from_millis;
        let at = |n| Time::from_origin(ms(n));
        let limits = Limits { rows: 32, bytes: 1000, weight: 50.0, linger: ms(5) };
        let waiting = Waiting { rows: 4, bytes: 100, weight: 4.0, since: at(10), more_to_come: true };
        assert_eq!(close(limits, waiting, at(12)), Decision::WaitUntil(at(15)));
        assert_eq!(close(limits, waiting, at(15)), Decision::Close(Reason::Linger));
        assert_eq!(close(limits, Waiting { rows: 32, ..waiting }, at(10)), Decision::Close(Reason::Rows));
        assert_eq!(close(limits, Waiting { bytes: 1000, ..waiting }, at(10)), Decision::Close(Reason::Bytes));
        assert_eq!(
            close(limits, Waiting { weight: 50.0, ..waiting }, at(10)),
            Decision::Close(Reason::Weight)
        );
        let alone = Waiting { more_to_come: false, ..waiting };
        assert_eq!(close(limits, alone, at(10)), Decision::Close(Reason::NothingToCome));
    }
}
