//! How much an instance dares to hold: what it was told of its memory, and what it has made of that since.

/// What is planned with; the rest is for rows that turn out heavier than announced.
const PLANNED: f64 = 0.92;
/// Beyond this, nothing more is let in, whatever was permitted.
const GUARD: f64 = 0.95;
/// Belief that is left after a refusal by the guard, and after running out of memory.
const AFTER_REFUSAL: f64 = 0.97;
const AFTER_EXHAUSTION: f64 = 0.85;
const LEAST: f64 = 0.05;

/// Memory in the service's unit of weight.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    declared: Option<f64>,
    belief: f64,
}

impl Memory {
    pub fn new(declared: Option<f64>) -> Self {
        Memory { declared, belief: 1.0 }
    }

    pub fn belief(&self) -> f64 {
        self.belief
    }

    /// How much may be planned with; `reported` is the total that the service reports. None: nobody has said that there is a bound.
    pub fn planned(&self, reported: Option<f64>) -> Option<f64> {
        self.believed(reported).map(|all| PLANNED * all)
    }

    /// All of it, as far as it is believed.
    pub fn believed(&self, reported: Option<f64>) -> Option<f64> {
        self.declared.or(reported).map(|all| all * self.belief)
    }

    /// Whether `more` would be too much beside `held`. What the service reports of its memory goes before what was declared.
    pub fn refuses(&self, held: f64, more: f64, reported: Option<f64>) -> bool {
        // What is alone is let in, however large: it could never be otherwise.
        held > 0.0 && reported.or(self.declared).is_some_and(|all| held + more > GUARD * all)
    }

    /// The guard had to refuse what was permitted. Without learning from it, the same would be permitted again at once.
    pub fn refused(&mut self) {
        self.belief = (self.belief * AFTER_REFUSAL).max(LEAST);
    }

    /// Memory ran out.
    pub fn ran_out(&mut self) {
        self.belief = (self.belief * AFTER_EXHAUSTION).max(LEAST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn belief_follows_what_happens() {
        let mut memory = Memory::new(Some(140.0));
        assert!(memory.planned(None).is_some_and(|p| (p - 128.8).abs() < 1e-9));
        // It has only 100 in truth, and the service says so.
        assert!(memory.refuses(90.0, 10.0, Some(100.0)) && !memory.refuses(90.0, 10.0, None));
        assert!(!memory.refuses(0.0, 1000.0, Some(100.0)), "alone");
        while memory.planned(None) > Some(92.0) {
            memory.refused();
        }
        assert!(memory.belief() > 0.69);
        memory.ran_out();
        assert!(memory.belief() < 0.62);
        assert_eq!(Memory::new(None).planned(None), None);
        assert_eq!(Memory::new(None).believed(Some(10.0)), Some(10.0));
    }
}
