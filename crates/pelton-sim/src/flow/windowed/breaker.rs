//! Whether a replica is worth asking at all.

use std::time::Duration;

use pelton_core::Time;
use pelton_policy::backoff;

/// Opens when nearly every call fails; then one call at a time asks whether that is still so.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Breaker {
    /// The share of calls that failed lately.
    failing: f64,
    open: bool,
    probes: u32,
    /// None while a probe is under way.
    probes_at: Option<Time>,
}

const MEMORY: f64 = 0.8;
const OPENS_AT: f64 = 0.9;
const FIRST_PROBE: Duration = Duration::from_millis(100);
const PROBES_AT_LEAST: Duration = Duration::from_secs(2);

impl Breaker {
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// When it is to be probed.
    pub(super) fn probes_at(&self) -> Option<Time> {
        self.probes_at
    }

    pub(super) fn probe(&mut self) {
        if self.open {
            self.probes_at = None;
        }
    }

    pub(super) fn succeeded(&mut self) {
        *self =
            Breaker { failing: if self.open { 0.0 } else { self.failing * MEMORY }, ..Breaker::default() };
    }

    /// Returns when to probe it, if it is open.
    pub(super) fn failed(&mut self, now: Time, random: f64) -> Option<Time> {
        self.failing = MEMORY * self.failing + (1.0 - MEMORY);
        if self.failing >= OPENS_AT || self.open {
            self.open = true;
            if self.probes_at.is_none() {
                self.probes += 1;
                self.probes_at =
                    Some(now + backoff::delay(self.probes, FIRST_PROBE, PROBES_AT_LEAST, random));
            }
        }
        self.probes_at
    }
}
