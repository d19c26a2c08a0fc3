//! Somebody else's server behind a gateway: a token bucket, slots, and a latency of its own.

use std::collections::BTreeSet;
use std::time::Duration;

use pelton_core::Time;

use super::{Answer, Call, Died, Machine, Work};
use crate::flow::clock::between;
use crate::flow::scenario::{Backend, Gateway, Replica, Spread};

/// How long a refusal takes.
const REFUSES_AFTER: f64 = 0.01;
/// The bucket holds this many seconds' tokens.
const BUCKET: f64 = 0.25;
/// What a refused call takes from the bucket.
const REFUSAL_COSTS: f64 = 0.2;
/// Other tenants' use is a mean-reverting walk that is drawn once a second.
const SWAY_EVERY: Duration = Duration::from_secs(1);
const SWAY_KEEPS: f64 = 0.8;
const SWAY_DRAWS: f64 = 0.6;

pub(super) struct Server {
    like: Gateway,
    slow: f64,
    active: BTreeSet<u32>,
    tokens: f64,
    filled: Time,
    sway: f64,
    swayed: Time,
}

impl Server {
    pub(super) fn new(like: Gateway, slow: f64) -> Self {
        let (filled, swayed) = (Time::ZERO, Time::ZERO);
        Server { like, slow, active: BTreeSet::new(), tokens: 0.0, filled, sway: 0.0, swayed }
    }

    fn rate(&mut self, out: &mut Work<'_>) -> f64 {
        while self.swayed <= out.now {
            self.swayed = self.swayed + SWAY_EVERY;
            self.sway = SWAY_KEEPS * self.sway + SWAY_DRAWS * out.draws.normal();
        }
        self.like.rate * (1.0 + self.like.sway * self.sway).clamp(0.3, 1.7)
    }
}

impl Machine for Server {
    fn arrive(&mut self, call: Call, out: &mut Work<'_>) -> Result<(), Died> {
        let rate = self.rate(out);
        let most = (BUCKET * rate).max(2.0);
        self.tokens = (self.tokens + rate * between(self.filled, out.now)).min(most);
        self.filled = out.now;
        if self.active.len() as f64 >= self.like.slots || self.tokens < 1.0 {
            self.tokens = (self.tokens - REFUSAL_COSTS).max(-BUCKET * rate);
            out.answer(call.key, Answer::Refused, REFUSES_AFTER);
        } else {
            self.tokens -= 1.0;
            self.active.insert(call.key);
            let Spread { median, sigma, most } = self.like.latency;
            let latency = out.draws.lognormal(Spread { median: median * self.slow, sigma, most });
            out.wake(latency, call.key);
        }
        Ok(())
    }

    fn due(&mut self, key: u32, out: &mut Work<'_>) -> Result<(), Died> {
        self.active.remove(&key);
        out.answer(key, Answer::Done, 0.0);
        Ok(())
    }

    fn shift(&mut self, to: &Replica, _: &mut Work<'_>) {
        if let Backend::Gateway(like) = &to.backend {
            self.like = like.clone();
        }
        self.slow = to.slow;
    }

    fn clear(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.active).into_iter().collect()
    }
}
