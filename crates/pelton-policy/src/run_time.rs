//! How long a batch takes, learned from those that ran.

/// What the newest run counts for in the means: the rest keeps 85 %.
const DECAY: f64 = 0.85;
/// What is kept of what tells the slope: it changes seldom, and one run says little about it.
const SLOPE_DECAY: f64 = 0.95;
/// A run that differs by this share from what was expected at a size not far from the usual is no noise: something was changed.
const JUMP: f64 = 0.5;
/// How far is not far.
const NEAR: f64 = 0.5;
/// So many runs in a row have to differ where runs are noisy: one alone does where they are not.
const NOISY: f64 = 0.12;
const IN_A_ROW: u32 = 3;
/// The slope is believed if its standard error is less than this share of the mean time a unit.
const SURE: f64 = 0.15;

/// Run time against batch size: `fixed + each * size`, an exponentially weighted least-squares line. Sizes are in whatever unit the
/// batches are counted in, times in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunTime {
    size: f64,
    time: f64,
    size_variance: f64,
    covariance: f64,
    /// Squared relative distance of runs from the line.
    noise: f64,
    /// The share of the mean run time that does not depend on the size, as it was last known.
    fixed_share: f64,
    /// Runs in a row that were not as expected.
    jumps: u32,
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
        let off = seconds / expected - 1.0;
        if off.abs() > JUMP && (by_size / self.size).abs() < NEAR {
            self.jumps += 1;
            if self.noise.sqrt() < NOISY || self.jumps >= IN_A_ROW {
                (self.size, self.time, self.size_variance, self.covariance) = (size, seconds, 0.0, 0.0);
                self.jumps = 0;
            }
            return;
        }
        self.jumps = 0;
        self.noise += 0.1 * (off * off - self.noise);
        self.size += (1.0 - DECAY) * by_size;
        self.time += (1.0 - DECAY) * by_time;
        self.size_variance = SLOPE_DECAY * (self.size_variance + (1.0 - SLOPE_DECAY) * by_size * by_size);
        self.covariance = SLOPE_DECAY * (self.covariance + (1.0 - SLOPE_DECAY) * by_size * by_time);
        let counted = (1.0 / (1.0 - SLOPE_DECAY)).min(self.runs as f64);
        let spread = self.size_variance.sqrt() / self.size;
        let error = (self.noise.sqrt() + 0.005) / (counted.sqrt() * spread.max(1e-9));
        if error < SURE {
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
        for _ in 0..4 {
            model.observe(20.0, 0.300);
        }
        let (fixed, each) = model.line().unwrap();
        assert!((fixed + 20.0 * each - 0.300).abs() < 0.01, "{fixed} {each}");
    }

    #[test]
    fn noise_at_one_size_says_nothing_about_the_slope() {
        let mut model = RunTime::default();
        let mut x = 1u64;
        let mut noise = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            0.6 + 0.8 * (x >> 40) as f64 / (1u64 << 24) as f64
        };
        for size in [16.0, 117.0, 64.0, 32.0, 100.0, 8.0, 120.0, 16.0] {
            model.observe(size, (40e-6 + 6e-6 * size) * noise());
        }
        for i in 0..5000 {
            let size = 60.0 + f64::from(i % 9);
            model.observe(size, (40e-6 + 6e-6 * size) * noise());
            let (_, each) = model.line().unwrap();
            assert!((2e-6..9e-6).contains(&each), "{i}: {each}");
        }
    }
}
