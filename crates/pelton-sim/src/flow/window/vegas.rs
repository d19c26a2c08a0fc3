//! TCP Vegas for calls: the queue is estimated from how much longer calls take than without load.
//!
//! Brakmo, O'Malley and Peterson, "TCP Vegas", 1994; settings as in `VegasLimit` of Netflix's concurrency-limits (0.5.3):
//! grow by 6 log10 of the limit while the queue is at most log10, by log10 up to 3 log10, shrink by log10 above 6 log10 and
//! after a drop; the time without load is measured anew about every 30 limits' samples.

use super::{Ended, LEAST, MOST, Sampler, Window};
use crate::flow::draw::Draws;

const PROBE_EVERY: f64 = 30.0;

pub struct Vegas {
    limit: f64,
    sampler: Sampler,
    without_load: Option<f64>,
    samples: f64,
    jitter: f64,
    draws: Draws,
}

impl Vegas {
    pub fn new(sample: f64, draws: Draws) -> Self {
        Vegas {
            limit: 1.0,
            sampler: Sampler::new(sample),
            without_load: None,
            samples: 0.0,
            jitter: 0.75,
            draws,
        }
    }
}

impl Window for Vegas {
    fn limit(&self) -> f64 {
        self.limit
    }

    fn ended(&mut self, call: &Ended) {
        let Some(sample) = self.sampler.add(call) else { return };
        let log = self.limit.max(1.0).log10().floor().max(1.0);
        if sample.dropped {
            self.limit = (self.limit - log).max(LEAST);
            return;
        }
        let Some(took) = sample.took else { return };
        self.samples += 1.0;
        if self.jitter * PROBE_EVERY * self.limit <= self.samples {
            self.samples = 0.0;
            self.jitter = 0.5 + 0.5 * self.draws.uniform();
            self.without_load = Some(took);
            return;
        }
        let without_load = match self.without_load {
            Some(least) if least <= took => least,
            _ => {
                self.without_load = Some(took);
                return;
            }
        };
        if sample.in_flight * 2.0 < self.limit {
            return;
        }
        let queue = (self.limit * (1.0 - without_load / took)).ceil();
        if queue <= log {
            self.limit += 6.0 * log;
        } else if queue < 3.0 * log {
            self.limit += log;
        } else if queue > 6.0 * log {
            self.limit -= log;
        }
        self.limit = self.limit.clamp(LEAST, MOST);
    }
}
