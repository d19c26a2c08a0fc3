//! Gradient2: the limit follows how a call's time now compares with its long-term mean.
//!
//! Settings as in `Gradient2Limit` of Netflix's concurrency-limits (0.5.3): tolerance 1.5, a queue of 4, smoothing 0.2, a mean
//! over 600 samples after 10 to warm up. Its lower bound of 20 is left out: here each caller has a window of its own. A sample
//! with a drop counts as the steepest gradient, 0.5; the original leaves drops to the timeout.

use super::{Ended, LEAST, MOST, Sampler, Window};

const TOLERANCE: f64 = 1.5;
const QUEUE: f64 = 4.0;
const SMOOTHING: f64 = 0.2;
const LONG: f64 = 600.0;
const WARM_UP: f64 = 10.0;
const STEEPEST: f64 = 0.5;

pub struct Gradient2 {
    limit: f64,
    sampler: Sampler,
    long: f64,
    samples: f64,
}

impl Gradient2 {
    pub fn new(sample: f64) -> Self {
        Gradient2 { limit: 1.0, sampler: Sampler::new(sample), long: 0.0, samples: 0.0 }
    }

    fn measure(&mut self, took: f64) {
        self.samples += 1.0;
        if self.samples <= WARM_UP {
            self.long += (took - self.long) / self.samples;
        } else {
            self.long += (took - self.long) * 2.0 / (LONG + 1.0);
        }
        // After a long time of overload the mean comes back faster.
        if self.long > 2.0 * took {
            self.long *= 0.95;
        }
    }
}

impl Window for Gradient2 {
    fn limit(&self) -> f64 {
        self.limit
    }

    fn ended(&mut self, call: &Ended) {
        let Some(sample) = self.sampler.add(call) else { return };
        if let Some(took) = sample.took {
            self.measure(took);
        }
        if sample.in_flight < self.limit / 2.0 {
            return;
        }
        let wanted = match sample.took {
            Some(took) if !sample.dropped => {
                self.limit * (TOLERANCE * self.long / took).clamp(STEEPEST, 1.0) + QUEUE
            }
            _ => self.limit * STEEPEST,
        };
        self.limit = ((1.0 - SMOOTHING) * self.limit + SMOOTHING * wanted).clamp(LEAST, MOST);
    }
}
