//! Counters and histograms that cross process boundaries: small, mergeable, plain data.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How often which sizes were seen. Buckets grow by the square root of two, so a quantile is right within 41 %; the mean is exact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Histogram {
    /// Bucket `2 k` begins at `2^k`, bucket `2 k + 1` at `2^k * sqrt(2)`.
    counts: Vec<u64>,
    sum: u64,
}

impl Histogram {
    pub fn record(&mut self, value: u64) {
        self.record_many(value, 1);
    }

    /// As if `value` were recorded `times` times.
    pub fn record_many(&mut self, value: u64, times: u64) {
        let bucket = bucket(value);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] = self.counts[bucket].saturating_add(times);
        self.sum = self.sum.saturating_add(value.saturating_mul(times));
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |all, n| all.saturating_add(*n))
    }

    /// The sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// 0 if nothing was recorded.
    pub fn mean(&self) -> f64 {
        if self.count() == 0 { 0.0 } else { self.sum as f64 / self.count() as f64 }
    }

    /// A value that this share of the recorded ones does not exceed, up to the width of a bucket; 0 if nothing was recorded.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = (share.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen = u64::saturating_add(seen, *count);
            if seen >= wanted {
                return begin(bucket + 1).saturating_sub(1);
            }
        }
        0
    }

    pub fn merge(&mut self, other: &Histogram) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine = mine.saturating_add(*theirs);
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// What was recorded since `earlier`, an older copy of this one.
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let earlier_count = |i: usize| earlier.counts.get(i).copied().unwrap_or(0);
        let counts =
            self.counts.iter().enumerate().map(|(i, count)| count.saturating_sub(earlier_count(i))).collect();
        Histogram { counts, sum: self.sum.saturating_sub(earlier.sum) }
    }
}

fn bucket(value: u64) -> usize {
    let value = value.max(1);
    let power = value.ilog2();
    // Whether value / 2^power >= sqrt(2), in whole numbers.
    let upper = u128::from(value) * u128::from(value) >= 1u128 << (2 * power + 1);
    2 * power as usize + usize::from(upper)
}

fn begin(bucket: usize) -> u64 {
    let power = 2f64.powf(bucket as f64 / 2.0).ceil();
    if power >= u64::MAX as f64 { u64::MAX } else { power as u64 }
}

/// What happened how often, by reason.
pub type Tally = BTreeMap<String, u64>;

/// One more of `reason`, or several.
pub fn count(tally: &mut Tally, reason: &str, times: u64) {
    if times > 0 {
        match tally.get_mut(reason) {
            Some(n) => *n = n.saturating_add(times),
            None => {
                tally.insert(reason.to_owned(), times);
            }
        }
    }
}

/// Adds another tally's counts.
pub fn merge(tally: &mut Tally, other: &Tally) {
    for (reason, times) in other {
        count(tally, reason, *times);
    }
}

/// What has been counted since an older copy.
pub fn since(tally: &Tally, earlier: &Tally) -> Tally {
    let fresh = |(reason, n): (&String, &u64)| {
        let n = n.saturating_sub(earlier.get(reason).copied().unwrap_or(0));
        (n > 0).then(|| (reason.clone(), n))
    };
    tally.iter().filter_map(fresh).collect()
}

/// What became of results that were finished and not acknowledged yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LedgerMeter {
    /// Results that had to be forgotten before they were acknowledged.
    pub evicted: u64,
    /// Of those, the ones that came back from disk other than they were written, or not at all.
    pub damaged: u64,
    /// Results that were written to disk, and their bytes.
    pub spilled: u64,
    pub spilled_bytes: u64,
    /// Results that somebody asked for and that were read back.
    pub loaded: u64,
    /// Results on disk or on their way there now.
    pub on_disk: u64,
    /// What they take there now, with what the files still hold of others.
    pub disk_bytes: u64,
}

impl LedgerMeter {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        *self == LedgerMeter::default()
    }

    pub fn merge(&mut self, other: &LedgerMeter) {
        self.evicted += other.evicted;
        self.damaged += other.damaged;
        self.spilled += other.spilled;
        self.spilled_bytes += other.spilled_bytes;
        self.loaded += other.loaded;
        self.on_disk += other.on_disk;
        self.disk_bytes += other.disk_bytes;
    }

    /// What was counted since an older copy; what is a state and not a count stays.
    pub fn since(&self, earlier: &LedgerMeter) -> LedgerMeter {
        LedgerMeter {
            evicted: self.evicted.saturating_sub(earlier.evicted),
            damaged: self.damaged.saturating_sub(earlier.damaged),
            spilled: self.spilled.saturating_sub(earlier.spilled),
            spilled_bytes: self.spilled_bytes.saturating_sub(earlier.spilled_bytes),
            loaded: self.loaded.saturating_sub(earlier.loaded),
            ..self.clone()
        }
    }
}

/// Where the time of an instance's requests goes, and why its batches closed. Times in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceMeter {
    /// A request's wait for the instance to be free.
    pub queue: Histogram,
    /// A request's wait for its batch to fill, while the instance was free.
    pub batch_wait: Histogram,
    /// A batch's run.
    pub run: Histogram,
    /// Rows of a batch.
    pub batch_rows: Histogram,
    /// Why batches closed.
    pub closed: Tally,
    /// Requests that were not taken, or taken and given up without a run.
    pub refused: Tally,
    /// Requests that failed at the instance.
    pub failed: Tally,
    /// Batches that were run again in halves.
    pub split: u64,
    /// Rows that the instance would have with it now, as it has measured itself.
    pub permits: u64,
    /// Rows that a batch holds at most, as it has measured itself.
    pub batch_limit: u64,
    /// What it makes of the declared memory: 1 is all of it.
    pub memory_belief: f64,
    /// Left out where there is nothing to tell.
    #[serde(skip_serializing_if = "LedgerMeter::is_empty")]
    pub ledger: LedgerMeter,
    /// What the service itself counts.
    #[serde(skip_serializing_if = "Tally::is_empty")]
    pub counted: Tally,
}

impl InstanceMeter {
    pub fn merge(&mut self, other: &InstanceMeter) {
        self.queue.merge(&other.queue);
        self.batch_wait.merge(&other.batch_wait);
        self.run.merge(&other.run);
        self.batch_rows.merge(&other.batch_rows);
        merge(&mut self.closed, &other.closed);
        merge(&mut self.refused, &other.refused);
        merge(&mut self.failed, &other.failed);
        self.split += other.split;
        self.permits += other.permits;
        self.batch_limit = self.batch_limit.max(other.batch_limit);
        self.memory_belief = other.memory_belief;
        self.ledger.merge(&other.ledger);
        merge(&mut self.counted, &other.counted);
    }

    /// What was measured since an older copy; what is a state and not a count stays.
    pub fn since(&self, earlier: &InstanceMeter) -> InstanceMeter {
        InstanceMeter {
            queue: self.queue.since(&earlier.queue),
            batch_wait: self.batch_wait.since(&earlier.batch_wait),
            run: self.run.since(&earlier.run),
            batch_rows: self.batch_rows.since(&earlier.batch_rows),
            closed: since(&self.closed, &earlier.closed),
            refused: since(&self.refused, &earlier.refused),
            failed: since(&self.failed, &earlier.failed),
            split: self.split.saturating_sub(earlier.split),
            ledger: self.ledger.since(&earlier.ledger),
            counted: since(&self.counted, &earlier.counted),
            ..self.clone()
        }
    }
}

/// Where the time of a caller's requests goes before and after an instance has them. Times in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallerMeter {
    /// A request's wait for a permit.
    pub permit_wait: Histogram,
    /// From when it was sent to its answer: the way, the instance's queue and the run.
    pub answer: Histogram,
    /// How requests ended: `ok`, or the kind of the error.
    pub ended: Tally,
    /// Attempts beyond the first, by what made them necessary.
    pub retries: Tally,
    /// Requests that an instance held already, and that were not sent again.
    pub taken_up: u64,
    /// Times an endpoint was left alone for a while, by what it did.
    pub ejections: Tally,
}

impl CallerMeter {
    pub fn merge(&mut self, other: &CallerMeter) {
        self.permit_wait.merge(&other.permit_wait);
        self.answer.merge(&other.answer);
        merge(&mut self.ended, &other.ended);
        merge(&mut self.retries, &other.retries);
        self.taken_up += other.taken_up;
        merge(&mut self.ejections, &other.ejections);
    }

    /// What was measured since an older copy.
    pub fn since(&self, earlier: &CallerMeter) -> CallerMeter {
        CallerMeter {
            permit_wait: self.permit_wait.since(&earlier.permit_wait),
            answer: self.answer.since(&earlier.answer),
            ended: since(&self.ended, &earlier.ended),
            retries: since(&self.retries, &earlier.retries),
            taken_up: self.taken_up.saturating_sub(earlier.taken_up),
            ejections: since(&self.ejections, &earlier.ejections),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_within_a_bucket() {
        let mut all = Histogram::default();
        (1..=1000).for_each(|v| all.record(v));
        assert_eq!((all.count(), all.sum()), (1000, 500_500));
        for (share, exact) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0)] {
            let found = all.quantile(share) as f64;
            assert!(found >= exact && found <= exact * 1.42, "{share}: {found}");
        }
        assert_eq!(Histogram::default().quantile(0.5), 0);
        let mut edge = Histogram::default();
        edge.record(0);
        edge.record(u64::MAX);
        assert_eq!((edge.quantile(0.5), edge.count()), (1, 2));
    }

    #[test]
    fn the_difference_of_two_copies_is_what_came_between() {
        let mut all = Histogram::default();
        all.record(3);
        let earlier = all.clone();
        all.record_many(100, 2);
        let fresh = all.since(&earlier);
        assert_eq!((fresh.count(), fresh.sum()), (2, 200));
        let mut again = earlier.clone();
        again.merge(&fresh);
        assert_eq!(again.sum(), all.sum());
        let earlier = LedgerMeter { evicted: 1, spilled: 2, on_disk: 3, ..LedgerMeter::default() };
        let all = LedgerMeter { evicted: 4, spilled: 2, on_disk: 2, ..LedgerMeter::default() };
        let mut fresh = all.since(&earlier);
        assert_eq!(fresh, LedgerMeter { evicted: 3, on_disk: 2, ..LedgerMeter::default() });
        fresh.merge(&earlier);
        assert_eq!(fresh, LedgerMeter { evicted: 4, spilled: 2, on_disk: 5, ..LedgerMeter::default() });
        let (mut a, mut b) = (Tally::new(), Tally::new());
        count(&mut a, "x", 1);
        count(&mut b, "x", 3);
        count(&mut b, "y", 1);
        assert_eq!(since(&b, &a), Tally::from([("x".into(), 2), ("y".into(), 1)]));
    }
}
