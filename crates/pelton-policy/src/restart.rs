//! When a region of the data plane that failed is started again, and when it is given up.

use std::collections::VecDeque;
use std::time::Duration;

use pelton_core::Time;

use crate::backoff;

/// An exponentially growing delay, and a budget of restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// Restarts within `window`; with one more the job fails. 0: none.
    pub restarts: u32,
    pub window: Duration,
    /// Wait before the first one; doubles with each in the window, with jitter.
    pub delay: Duration,
    pub max_delay: Duration,
}

impl Default for Strategy {
    fn default() -> Self {
        Strategy {
            restarts: 3,
            window: Duration::from_secs(600),
            delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(30),
        }
    }
}

/// What a region has had of it.
#[derive(Clone, Debug)]
pub struct Restarts {
    strategy: Strategy,
    /// When it failed, within the window.
    failures: VecDeque<Time>,
    /// Restarts in all.
    all: u64,
}

impl Restarts {
    pub fn new(strategy: Strategy) -> Self {
        Restarts { strategy, failures: VecDeque::new(), all: 0 }
    }

    /// It has failed: how long to wait before it is started again. None: it is given up.
    pub fn failed(&mut self, now: Time, random: f64) -> Option<Duration> {
        let Strategy { restarts, window, delay, max_delay } = self.strategy;
        while self.failures.front().is_some_and(|at| now.since(*at) > window) {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        let failures = u32::try_from(self.failures.len()).unwrap_or(u32::MAX);
        (failures <= restarts).then(|| {
            self.all += 1;
            backoff::delay(failures, delay, max_delay, random)
        })
    }

    /// Restarts so far.
    pub fn count(&self) -> u64 {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_old_failures_are_forgotten() {
        let second = Duration::from_secs(1);
        let strategy = Strategy { restarts: 2, window: 10 * second, delay: second, max_delay: 30 * second };
        let mut restarts = Restarts::new(strategy);
        for (at, expected) in [(0, Some(1)), (5, Some(2)), (9, None), (11, None), (40, Some(1))] {
            let wait = restarts.failed(Time::from_origin(at * second), 1.0);
            assert_eq!(wait, expected.map(|s| s * second), "at {at} s");
        }
        assert_eq!(restarts.count(), 3);
        let mut none = Restarts::new(Strategy { restarts: 0, ..strategy });
        assert_eq!(none.failed(Time::ZERO, 1.0), None);
    }
}
