//! The same scenario with every capacity somewhere else, so that nothing is tuned to its numbers.

use pelton_core::id::stable_hash;

use super::{Backend, Scenario, Seconds};
use crate::flow::draw::Draws;

/// Share of the arrivals that is kept: the capacities may all have become smaller.
const ARRIVALS: f64 = 0.8;

impl Scenario {
    /// Moves every capacity, in every regime anew, by a factor from 0.75 to 1.33; the same for the same seed.
    pub fn jittered(mut self, seed: u64) -> Self {
        let mut draws = Draws::new(seed, stable_hash(&self.name));
        let mut factor = || 0.75f64.powf(1.0 - 2.0 * draws.uniform());
        for regime in &mut self.regimes {
            let [fixed, marginal, memory, cache, prefill, rate] = [(); 6].map(|()| factor());
            let scale = |time: &mut Seconds, by: f64| *time = Seconds::new(time.get() * by);
            for replica in &mut regime.replicas {
                match &mut replica.backend {
                    Backend::Batching(b) => {
                        scale(&mut b.run, fixed);
                        scale(&mut b.per_cost, marginal);
                        b.memory = b.memory.map(|m| m * memory);
                    }
                    Backend::LanguageModel(m) => {
                        scale(&mut m.step, fixed);
                        scale(&mut m.step_per_sequence, marginal);
                        m.memory *= cache;
                        m.prefill *= prefill;
                    }
                    Backend::Gateway(g) => {
                        g.rate *= rate;
                        g.slots = (g.slots * memory).round();
                    }
                    Backend::Cpu(c) => {
                        scale(&mut c.per_call, fixed);
                        scale(&mut c.per_item, marginal);
                    }
                }
            }
            let (cost, output) = (factor(), factor());
            // The cost of an item is its size in the backend's unit; what has no size keeps it.
            if !matches!(regime.replicas[0].backend, Backend::Gateway(_) | Backend::Cpu(_)) {
                regime.work.cost.median *= cost;
            }
            if let Some(o) = &mut regime.work.output {
                o.median *= output;
            }
            regime.work.rate = regime.work.rate.map(|r| r * ARRIVALS);
        }
        self
    }
}
