//! How many instances a pool has. Pure.

use std::time::Duration;

use pelton_core::Time;

#[derive(Debug)]
pub(crate) struct Pool {
    /// So many instances there are, or are being started.
    pub(crate) wanted: u32,
    lease: Duration,
    /// Since when fewer hold the pool than there are instances.
    short_since: Option<Time>,
}

impl Pool {
    /// `before`: as many as there were when an earlier agent had it.
    pub(crate) fn new(before: u32, lease: Duration, now: Time) -> Self {
        Pool { wanted: before, lease, short_since: Some(now) }
    }

    /// What `held` holds mean. More are served at once; fewer when nobody has come back for the lease.
    pub(crate) fn held(&mut self, held: u32, now: Time) {
        if held >= self.wanted {
            self.wanted = held;
            self.short_since = None;
            return;
        }
        let since = *self.short_since.get_or_insert(now);
        if now.since(since) >= self.lease {
            self.wanted = held;
            self.short_since = None;
        }
    }

    /// One hold was given up for good: its instance is not waited for.
    pub(crate) fn released(&mut self) {
        self.wanted = self.wanted.saturating_sub(1);
    }

    /// When [`held`](Pool::held) has something to do though nothing happens.
    pub(crate) fn due(&self) -> Option<Time> {
        self.short_since.map(|since| since + self.lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_waits_for_those_who_held_it() {
        let at = |s| Time::ZERO + Duration::from_secs(s);
        let mut pool = Pool::new(1, Duration::from_secs(30), at(0));
        let mut told = Vec::new();
        for (s, held) in
            [(1, 1), (2, 3), (3, 0), (20, 3), (21, 1), (50, 1), (51, 1), (52, 0), (81, 0), (82, 0)]
        {
            pool.held(held, at(s));
            told.push(pool.wanted);
        }
        assert_eq!(told, [1, 3, 3, 3, 3, 3, 1, 1, 1, 0]);
    }

    #[test]
    fn what_is_given_up_for_good_is_not_waited_for() {
        let mut pool = Pool::new(0, Duration::from_secs(30), Time::ZERO);
        pool.held(2, Time::ZERO);
        pool.released();
        pool.held(1, Time::ZERO);
        assert_eq!((pool.wanted, pool.due()), (1, None));
        pool.released();
        pool.held(0, Time::ZERO);
        assert_eq!(pool.wanted, 0);
    }
}
