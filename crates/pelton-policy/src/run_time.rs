//! How long a batch takes, learned from those that ran.

/// What the newest run counts for: the rest keeps 85 %.
const DECAY: f64 = 0.85;
/// A run that differs by this share from what was expected at a size not far from the usual is no noise: something was changed.
const JUMP: f64 = 0.5;
/// How far is not far.
const NEAR: f64 = 0.5;
/// Below this relative variance of sizes, the slope cannot be told.
const SPREAD: f64 = 0.002;

/// Run time against batch size: `fixed + each * size`, an exponentially weighted least-squares line. Sizes are in whatever unit the
/// batches are counted in, times in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunTime {
    size: f64,
    time: f64,
    size_variance: f64,
    covariance: f64,
    /// The share of the mean run time that does not depend on the size, as it was last known.
    fixed_share: f64,
    runs: u64,
}

impl RunTime {
    /// A batch of this size took this long.
    pub fn observe(&mut self, size: f64, seconds: f64) {
        let (size, seconds) = (size.max(1e-9), seconds.max(1e-9));
        self.runs += 1;
        if self.runs == 1 {
            (self.size, self.time, self.fixed_share) = (size, seconds, 0.5);
            return;
        }
        let (by_size, by_time) = (size - self.size, seconds - self.time);
        let expected = self.time * (self.fixed_share + (1.0 - self.fixed_share) * size / self.size);
        if (seconds / expected - 1.0).abs() > JUMP && (by_size / self.size).abs() < NEAR {
            (self.size, self.time, self.size_variance, self.covariance) = (size, seconds, 0.0, 0.0);
            return;
        }
        self.size += (1.0 - DECAY) * by_size;
        self.time += (1.0 - DECAY) * by_time;
        self.size_variance = DECAY * (self.size_variance + (1.0 - DECAY) * by_size * by_size);
        self.covariance = DECAY * (self.covariance + (1.0 - DECAY) * by_size * by_time);
        if self.size_variance / (self.size * self.size) > SPREAD {
            let each = (self.covariance / self.size_variance).clamp(0.0, self.time / self.size);
            self.fixed_share = ((self.time - each * self.size) / self.time).clamp(0.02, 0.98);
        }
    }

    /// Seconds for a batch whatever its size, and seconds more for each unit of it. None: nothing ran yet.
    pub fn line(&self) -> Option<(f64, f64)> {
        (self.runs > 0).then(|| {
            (self.fixed_share * self.time, ((1.0 - self.fixed_share) * self.time / self.size).max(1e-12))
        })
    }

    /// Mean seconds of a run. None: nothing ran yet.
    pub fn mean(&self) -> Option<f64> {
        (self.runs > 0).then_some(self.time)
    }

    /// The usual size.
    pub fn known(&self) -> f64 {
        self.size
    }

    pub fn runs(&self) -> u64 {
        self.runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_and_found_again_after_a_jump() {
        let mut model = RunTime::default();
        assert_eq!(model.line(), None);
        for size in [8.0, 16.0, 32.0, 24.0, 12.0, 32.0, 8.0, 20.0] {
            model.observe(size, 0.020 + 0.004 * size);
        }
        let (fixed, each) = model.line().unwrap();
        assert!((fixed - 0.020).abs() < 0.004 && (each - 0.004).abs() < 0.0005, "{fixed} {each}");
        // A slower model was loaded: the same size takes three times as long.
        for _ in 0..3 {
            model.observe(20.0, 0.300);
        }
        let (fixed, each) = model.line().unwrap();
        assert!((fixed + 20.0 * each - 0.300).abs() < 0.01, "{fixed} {each}");
    }
}
