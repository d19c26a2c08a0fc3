//! Ways to decide on the caller's side how many calls may be in flight: what callers without permits have.
//!
//! Each is one published way in its published setting; each starts at a window of one call.

mod aimd;
mod gradient2;
mod vegas;

pub use aimd::Aimd;
pub use gradient2::Gradient2;
pub use vegas::Vegas;

use super::backend::Answer;

/// How much one caller may have in flight at one replica.
pub trait Window: Send {
    /// In calls. Below one: one call at a time, and a pause between two.
    fn limit(&self) -> f64;
    /// A call ended.
    fn ended(&mut self, call: &Ended);
}

/// What a caller learns when a call ends. Times in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub now: f64,
    pub sent: f64,
    pub took: f64,
    /// What it took, as a share of its deadline.
    pub lateness: f64,
    pub answer: Answer,
    /// Calls that were in flight when it was sent, itself included.
    pub in_flight: f64,
    /// There was no more to send.
    pub source_limited: bool,
}

/// No window grows beyond this.
const MOST: f64 = 1000.0;
/// None of those that follow round-trip time shrinks below this.
const LEAST: f64 = 0.5;

/// Always the same.
pub struct Fixed(pub f64);

impl Window for Fixed {
    fn limit(&self) -> f64 {
        self.0
    }
    fn ended(&mut self, _: &Ended) {}
}

/// Gathers calls into samples, as `WindowedLimit` of Netflix's concurrency-limits does: at least this long, at least ten calls.
struct Sampler {
    length: f64,
    began: Option<f64>,
    took: f64,
    answered: f64,
    dropped: bool,
    in_flight: f64,
}

/// Several calls taken together.
struct Sample {
    /// The mean of those that were answered; none were if it is None.
    took: Option<f64>,
    in_flight: f64,
    dropped: bool,
}

const SAMPLE_CALLS: f64 = 10.0;

impl Sampler {
    fn new(length: f64) -> Self {
        Sampler { length, began: None, took: 0.0, answered: 0.0, dropped: false, in_flight: 0.0 }
    }

    fn add(&mut self, call: &Ended) -> Option<Sample> {
        let began = *self.began.get_or_insert(call.now);
        if call.answer == Answer::Done {
            self.took += call.took;
            self.answered += 1.0;
        } else {
            self.dropped = true;
        }
        self.in_flight = self.in_flight.max(call.in_flight);
        let complete = call.now - began >= self.length && (self.answered >= SAMPLE_CALLS || self.dropped);
        complete.then(|| {
            let Sampler { took, answered, dropped, in_flight, .. } = *self;
            *self = Sampler { began: Some(call.now), ..Sampler::new(self.length) };
            Sample { took: (answered > 0.0).then(|| took / answered), in_flight, dropped }
        })
    }
}

#[cfg(test)]
mod tests;
