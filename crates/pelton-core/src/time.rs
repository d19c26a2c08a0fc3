//! Time as the pure parts see it.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use crate::BoxFuture;

/// A point in time: nanoseconds since an origin that the clock chose. Points of one clock compare; others don't.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The clock's origin.
    pub const ZERO: Time = Time(0);

    /// The point `since_origin` after the clock's origin.
    pub fn from_origin(since_origin: Duration) -> Self {
        Time(u64::try_from(since_origin.as_nanos()).unwrap_or(u64::MAX))
    }

    /// How long after the clock's origin this is.
    pub fn since_origin(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, d: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;
    fn sub(self, d: Duration) -> Time {
        Time(self.0.saturating_sub(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}s", self.since_origin().as_secs_f64())
    }
}

/// Where time comes from. Law: `now` never goes back, and after `sleep(d)` it is at least `d` later.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Time;
    fn sleep(&self, d: Duration) -> BoxFuture<()>;
    /// Milliseconds since the Unix epoch, for names and records that people read; never for a decision.
    fn unix_millis(&self) -> u64;
}
