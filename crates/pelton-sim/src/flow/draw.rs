//! Random draws of one part of a simulation.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

/// A stream of draws, decided by the seed and by whose it is.
#[derive(Debug)]
pub struct Draws(StdRng);

/// A lognormal quantity: its logarithm is normal with deviation `sigma` around that of the median.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    pub median: f64,
    #[serde(default)]
    pub sigma: f64,
    /// What is larger is cut to this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<f64>,
}

impl Spread {
    pub const fn exactly(median: f64) -> Self {
        Spread { median, sigma: 0.0, most: None }
    }
}

impl Draws {
    /// `whose` tells the parts of one simulation apart, so that one that draws more does not change the others.
    pub fn new(seed: u64, whose: u64) -> Self {
        Draws(StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(whose)))
    }

    /// Uniform in 0..1, never 0.
    pub fn uniform(&mut self) -> f64 {
        1.0 - self.0.random::<f64>()
    }

    /// Standard normal (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub fn lognormal(&mut self, of: Spread) -> f64 {
        let drawn = if of.sigma == 0.0 { of.median } else { of.median * (of.sigma * self.normal()).exp() };
        of.most.map_or(drawn, |most| drawn.min(most))
    }

    /// A factor around 1 by which something takes longer or shorter.
    pub fn noise(&mut self, sigma: f64) -> f64 {
        self.lognormal(Spread { median: 1.0, sigma, most: None })
    }

    /// The wait for the next of events that come independently, `mean` apart.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.uniform().ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_moments_they_should_have() {
        let mut draws = Draws::new(1, 2);
        let n = 100_000;
        let mean = |f: &mut dyn FnMut() -> f64| (0..n).map(|_| f()).sum::<f64>() / f64::from(n);
        assert!((mean(&mut || draws.uniform()) - 0.5).abs() < 0.01);
        assert!((mean(&mut || draws.normal().powi(2)) - 1.0).abs() < 0.03);
        assert!((mean(&mut || draws.exponential(3.0)) - 3.0).abs() < 0.06);
        let spread = Spread { median: 2.0, sigma: 0.5, most: None };
        assert!((mean(&mut || draws.lognormal(spread).ln()) - 2f64.ln()).abs() < 0.01);
        assert!((0..n).all(|_| draws.lognormal(Spread { most: Some(2.5), ..spread }) <= 2.5));
        assert_eq!(draws.lognormal(Spread::exactly(7.0)), 7.0);
    }

    #[test]
    fn a_seed_decides_and_parts_differ() {
        let three = |seed, whose| {
            [(); 3].map({
                let mut draws = Draws::new(seed, whose);
                move |()| draws.uniform()
            })
        };
        assert_eq!(three(1, 1), three(1, 1));
        assert_ne!(three(1, 1), three(1, 2));
        assert_ne!(three(1, 1), three(2, 1));
    }
}
