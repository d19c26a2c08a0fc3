//! What a run keeps of what happened.

use pelton_core::Time;

use super::clock::seconds;
use super::scenario::Scenario;

/// A run is looked at in this many slices of time.
pub const SLICES: usize = 400;

/// What happened in one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    length: f64,
    /// Items that were answered in time, by regime.
    pub good: Vec<f64>,
    /// The same by slice of time.
    pub good_by_slice: Vec<f64>,
    /// The same by caller.
    pub good_by_caller: Vec<f64>,
    /// Items that were answered too late, or given up because it was too late.
    pub late: f64,
    /// How long answers took, as a share of their deadline.
    pub lateness: Histogram,
    pub calls: u64,
    pub refused: u64,
    /// Calls that failed or were lost with their backend.
    pub failed: u64,
    /// Attempts of our own clients beyond the first, for whatever reason.
    pub again: u64,
    pub out_of_memory: u64,
    /// Calls that were put back by their backend, and begun again.
    pub preempted: u64,
    /// By slice of time: calls that callers had sent and that had not ended.
    pub in_flight: Vec<f64>,
    /// By slice of time: permits that were out; 0 where there are none.
    pub permits: Vec<f64>,
    sampled: usize,
}

impl Record {
    pub fn new(scenario: &Scenario, callers: usize) -> Self {
        Record {
            length: scenario.length,
            good: vec![0.0; scenario.regimes.len()],
            good_by_slice: vec![0.0; SLICES],
            good_by_caller: vec![0.0; callers],
            late: 0.0,
            lateness: Histogram::default(),
            calls: 0,
            refused: 0,
            failed: 0,
            again: 0,
            out_of_memory: 0,
            preempted: 0,
            in_flight: vec![0.0; SLICES],
            permits: vec![0.0; SLICES],
            sampled: 0,
        }
    }

    pub fn total(&self) -> f64 {
        self.good.iter().sum()
    }

    /// Seconds in a slice.
    pub fn slice(&self) -> f64 {
        self.length / SLICES as f64
    }

    /// Some items of one call were answered, after `lateness` of their deadline.
    pub fn answered(&mut self, now: Time, regime: usize, caller: usize, items: f64, lateness: f64) {
        self.lateness.add(lateness);
        if lateness > 1.0 {
            self.late += items;
            return;
        }
        let slice = ((seconds(now) / self.slice()) as usize).min(SLICES - 1);
        self.good[regime] += items;
        self.good_by_slice[slice] += items;
        self.good_by_caller[caller] += items;
    }

    /// Whether a slice has begun of which it is not noted yet how much is under way.
    pub fn wants_sample(&self, now: Time) -> bool {
        self.sampled < SLICES && seconds(now) >= self.sampled as f64 * self.slice()
    }

    pub fn sample(&mut self, now: Time, in_flight: f64, permits: f64) {
        while self.wants_sample(now) {
            self.in_flight[self.sampled] = in_flight;
            self.permits[self.sampled] = permits;
            self.sampled += 1;
        }
    }
}

/// Counts by size, in buckets 2 % wide.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

const SMALLEST: f64 = 1e-4;
const WIDTH: f64 = 1.02;
/// Up to 10,000.
const BUCKETS: usize = 931;

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: vec![0; BUCKETS], count: 0 }
    }
}

impl Histogram {
    pub fn add(&mut self, value: f64) {
        let bucket = (value.max(SMALLEST) / SMALLEST).ln() / WIDTH.ln();
        self.buckets[(bucket as usize).min(BUCKETS - 1)] += 1;
        self.count += 1;
    }

    /// What a share of the values is not above, to the width of a bucket.
    pub fn quantile(&self, share: f64) -> f64 {
        let wanted = (share * self.count as f64).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= wanted {
                return SMALLEST * WIDTH.powi(bucket as i32 + 1);
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_a_bucket() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.99), 0.0);
        (1..=1000).for_each(|i| histogram.add(f64::from(i) / 1000.0));
        for share in [0.1, 0.5, 0.99, 1.0] {
            let found = histogram.quantile(share);
            assert!(found >= share && found <= share * WIDTH * WIDTH, "{share}: {found}");
        }
    }
}
