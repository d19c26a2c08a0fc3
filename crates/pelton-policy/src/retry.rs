//! How many tries beyond the first a service gets.
//!
//! A fixed number of attempts a request multiplies the load by that number at the very moment when a service can take least.
//! A budget bounds it: each success pays for a share of a retry, so that in the long run retries stay that share of what works,
//! and a small allowance by time lets a quiet caller try again at all. (The idea: Finagle's and tower's retry budgets.)
//! One budget is shared by all callers of a service in a process.

use std::time::Duration;

use pelton_core::Time;

/// What pays for retries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Retries that one success pays for.
    pub share: f64,
    /// Retries that each second pays for.
    pub per_second: f64,
    /// Most retries that are saved up. An endpoint that dies takes all that it held with it, and that much is tried again at once.
    pub saved: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { share: 0.2, per_second: 5.0, saved: 100.0 }
    }
}

/// A retry budget. It begins full.
#[derive(Clone, Debug)]
pub struct Budget {
    settings: Settings,
    balance: f64,
    at: Time,
}

impl Budget {
    pub fn new(settings: Settings, now: Time) -> Self {
        Budget { settings, balance: settings.saved, at: now }
    }

    /// A request succeeded.
    pub fn succeeded(&mut self, now: Time) {
        self.advance(now);
        self.balance = (self.balance + self.settings.share).min(self.settings.saved);
    }

    /// Takes one retry, or says when time alone will have paid for one. (Successes may do so earlier.)
    pub fn take(&mut self, now: Time) -> Result<(), Time> {
        self.advance(now);
        if self.balance >= 1.0 - 1e-9 {
            self.balance = (self.balance - 1.0).max(0.0);
            return Ok(());
        }
        let missing = 1.0 - self.balance;
        let wait = (missing / self.settings.per_second).clamp(0.001, 3600.0);
        Err(now + Duration::from_secs_f64(wait))
    }

    /// Takes one retry even if there is none, and says when it is paid for: now, or when time alone will have done so. Whoever waits until
    /// then stays within the budget.
    pub fn owe(&mut self, now: Time) -> Time {
        self.advance(now);
        self.balance = (self.balance - 1.0).max(-self.settings.saved);
        let wait = (-self.balance / self.settings.per_second).clamp(0.0, 3600.0);
        now + Duration::from_secs_f64(wait)
    }

    /// Retries that could be taken now.
    pub fn balance(&self) -> f64 {
        self.balance
    }

    fn advance(&mut self, now: Time) {
        let paid = now.since(self.at).as_secs_f64() * self.settings.per_second;
        self.balance = (self.balance + paid).min(self.settings.saved);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_origin(Duration::from_millis(ms))
    }

    fn taken(budget: &mut Budget, now: Time) -> usize {
        (0..10_000).take_while(|_| budget.take(now).is_ok()).count()
    }

    #[test]
    fn retries_stay_a_share_of_successes_plus_an_allowance() {
        let mut budget = Budget::new(Settings { share: 0.2, per_second: 5.0, saved: 100.0 }, at(0));
        assert_eq!(taken(&mut budget, at(0)), 100, "begins full");
        for _ in 0..50 {
            budget.succeeded(at(0));
        }
        assert_eq!(taken(&mut budget, at(0)), 10, "a fifth of the successes");
        assert_eq!(taken(&mut budget, at(2_000)), 10, "five a second");
        assert_eq!(taken(&mut budget, at(1_000_000)), 100, "saved up to the maximum");
    }

    #[test]
    fn what_is_owed_is_paid_one_after_the_other() {
        let mut budget = Budget::new(Settings { share: 0.2, per_second: 5.0, saved: 2.0 }, at(0));
        let paid: Vec<Time> = (0..4).map(|_| budget.owe(at(0))).collect();
        assert_eq!(paid, [at(0), at(0), at(200), at(400)]);
        assert!(budget.take(at(400)).is_err());
        assert_eq!(budget.owe(at(1000)), at(1000));
        // Debts are bounded too.
        assert_eq!((0..100).map(|_| budget.owe(at(1000))).max(), Some(at(1400)));
    }

    #[test]
    fn an_empty_budget_says_when_to_come_again() {
        let mut budget = Budget::new(Settings { share: 0.2, per_second: 5.0, saved: 1.0 }, at(0));
        assert_eq!(budget.take(at(0)), Ok(()));
        let again = budget.take(at(0)).expect_err("it is empty");
        assert_eq!(again, at(200));
        assert_eq!(budget.take(again), Ok(()));
        // A clock that goes back pays nothing.
        assert!(budget.take(at(100)).is_err());
    }
}
