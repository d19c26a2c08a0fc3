//! Additive increase, multiplicative decrease (Chiu and Jain, 1989).

use super::{Ended, MOST, Window};
use crate::flow::backend::Answer;

/// What is left of the window after a late answer, a refusal or a failure.
const DECREASE: f64 = 0.7;
const SMALLEST: f64 = 0.1;

/// One call more a window of answers in time; a third less at most once a round trip.
pub struct Aimd {
    limit: f64,
    /// Calls sent before this were sent under a window that has been cut since.
    cut: f64,
}

impl Default for Aimd {
    fn default() -> Self {
        Aimd { limit: 1.0, cut: -1.0 }
    }
}

impl Window for Aimd {
    fn limit(&self) -> f64 {
        self.limit
    }

    fn ended(&mut self, call: &Ended) {
        if call.answer != Answer::Done || call.lateness > 1.0 {
            if call.sent > self.cut {
                self.limit = (self.limit * DECREASE).max(SMALLEST);
                self.cut = call.now;
            }
        } else if call.in_flight >= 0.5 * self.limit && !call.source_limited {
            self.limit = (self.limit + 1.0 / self.limit.max(1.0)).min(MOST);
        }
    }
}
