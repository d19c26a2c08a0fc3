//! Whether an endpoint is fit to be sent to, and how busy it looks.
//!
//! Two answers to failures. *Failure-biased load*: a failure counts as an answer ten times slower than usual, however fast it came, so
//! that an endpoint that fails at once never looks like the quickest one. *Ejection*: an endpoint at which nearly everything fails
//! gets nothing for a while, longer each time; then one call alone tries it. The last endpoint that is left is never away for long: there
//! is nothing better to send to.
//!
//! Only what an endpoint is to blame for counts ([`pelton_core::Kind::counts_against_endpoint`]), never a caller's mistake.

use std::time::Duration;

use pelton_core::Time;

/// A failure counts as an answer this many times slower than usual.
const SLOWER: f64 = 10.0;
/// What a failure counts as where no answer is known yet.
const UNKNOWN: Duration = Duration::from_secs(1);
/// How long a latency is remembered: after this time an older one weighs 1/e.
const MEMORY: Duration = Duration::from_secs(10);

/// When an endpoint is ejected, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// What one outcome weighs in the share of failures.
    pub weight: f64,
    /// The share of failures among the latest outcomes that ejects. Five in a row reach 0.67.
    pub failing: f64,
    /// The first ejection; each following one is 1.5 times as long.
    pub first: Duration,
    pub longest: Duration,
    /// The longest one while no other endpoint takes calls.
    pub longest_alone: Duration,
}

impl Settings {
    /// For instances that give permits: they cannot be flooded, and a failure that comes at once costs little. Only one at which
    /// next to nothing works is left alone, and not for long.
    pub fn of_instances() -> Self {
        Settings { weight: 0.05, failing: 0.9, longest: Duration::from_secs(5), ..Settings::default() }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            weight: 0.2,
            failing: 0.67,
            first: Duration::from_millis(100),
            longest: Duration::from_secs(30),
            longest_alone: Duration::from_secs(2),
        }
    }
}

/// Whether an endpoint may be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Yes,
    /// One call, which decides; say [`Health::probing`] when it is sent.
    Probe,
    /// Not before this time.
    NotBefore(Time),
    /// A probe is under way.
    WaitForProbe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Well,
    Ejected { at: Time, time: Duration },
    Probing,
}

/// What is known of one endpoint.
#[derive(Clone, Debug)]
pub struct Health {
    settings: Settings,
    stand: Stand,
    /// Ejections that are not forgotten yet.
    times: u32,
    /// Latest outcomes: 0 all well, 1 all failed.
    failing: f64,
    /// Of answers alone.
    latency: Option<f64>,
    /// Of answers, and of failures at what they count as.
    biased: Option<f64>,
    measured: Time,
}

impl Health {
    pub fn new(settings: Settings) -> Self {
        Health {
            settings,
            stand: Stand::Well,
            times: 0,
            failing: 0.0,
            latency: None,
            biased: None,
            measured: Time::ZERO,
        }
    }

    /// An answer came.
    pub fn succeeded(&mut self, took: Duration, now: Time) {
        let sample = took.as_secs_f64();
        self.latency = Some(mixed(self.latency, sample, 0.1));
        self.measure(sample, now);
        self.answered();
    }

    /// An answer came whose time says nothing: the caller's mistake, say. The endpoint lives.
    pub fn answered(&mut self) {
        self.failing *= 1.0 - self.settings.weight;
        if matches!(self.stand, Stand::Probing | Stand::Ejected { .. }) {
            self.stand = Stand::Well;
            self.failing = 0.0;
        } else if self.failing < 0.01 {
            self.times = 0;
        }
    }

    /// A call failed, and the endpoint is to blame. True if that ejects it now; not if it was ejected already.
    /// `random` is uniform in 0..1.
    pub fn failed(&mut self, took: Duration, now: Time, random: f64) -> bool {
        let counts_as = self.latency.map_or(UNKNOWN.as_secs_f64(), |l| l * SLOWER);
        self.measure(counts_as.max(took.as_secs_f64()), now);
        self.failing += self.settings.weight * (1.0 - self.failing);
        match self.stand {
            Stand::Well if self.failing >= self.settings.failing => {
                self.eject(now, random);
                true
            }
            Stand::Probing => {
                self.eject(now, random);
                false
            }
            Stand::Well | Stand::Ejected { .. } => false,
        }
    }

    /// Whether it may be sent to. `alone`: no other endpoint takes calls.
    pub fn admission(&self, alone: bool, now: Time) -> Admission {
        match self.stand {
            Stand::Well => Admission::Yes,
            Stand::Probing => Admission::WaitForProbe,
            Stand::Ejected { at, time } => {
                let until = at + if alone { time.min(self.settings.longest_alone) } else { time };
                if now >= until { Admission::Probe } else { Admission::NotBefore(until) }
            }
        }
    }

    /// The one call that decides was sent.
    pub fn probing(&mut self) {
        self.stand = Stand::Probing;
    }

    /// The call that was to decide was taken back: the next one will.
    pub fn probe_lost(&mut self, now: Time) {
        if self.stand == Stand::Probing {
            self.stand = Stand::Ejected { at: now, time: Duration::ZERO };
        }
    }

    /// Whether it takes calls like any other.
    pub fn is_well(&self) -> bool {
        self.stand == Stand::Well
    }

    /// How long an answer takes, failures counted as slow ones. None: nothing is known.
    pub fn biased_latency(&self) -> Option<Duration> {
        self.biased.map(Duration::from_secs_f64)
    }

    /// How much slower its failures make it look: 1 for one that answers.
    pub fn bias(&self) -> f64 {
        match (self.biased, self.latency) {
            (Some(biased), Some(latency)) if self.failing > 0.05 => (biased / latency.max(1e-9)).max(1.0),
            (Some(_), None) => SLOWER,
            _ => 1.0,
        }
    }

    fn measure(&mut self, sample: f64, now: Time) {
        // Dense samples weigh little each, a rare one much: what counts is how old the rest is.
        let age = now.since(self.measured).as_secs_f64() / MEMORY.as_secs_f64();
        let weight = (1.0 - (-age).exp()).max(0.1);
        self.biased = Some(mixed(self.biased, sample, weight));
        self.measured = self.measured.max(now);
    }

    fn eject(&mut self, now: Time, random: f64) {
        let Settings { first, longest, .. } = self.settings;
        let time = first.as_secs_f64() * 1.5f64.powi(self.times.min(40) as i32);
        let time = time.min(longest.as_secs_f64()) * (0.8 + 0.4 * random.clamp(0.0, 1.0));
        self.times = self.times.saturating_add(1);
        self.stand = Stand::Ejected { at: now, time: Duration::from_secs_f64(time) };
    }
}

/// How busy each endpoint looks: its time an answer, failures counted as slow ones, times what it has and one more. One of which nothing is
/// known counts as the mean of the others.
pub fn loads(endpoints: &[(&Health, u64)]) -> Vec<f64> {
    let known = || endpoints.iter().filter_map(|(health, _)| health.biased);
    let typical = match known().count() {
        0 => 1.0,
        n => known().sum::<f64>() / n as f64,
    };
    endpoints
        .iter()
        .map(|(health, in_flight)| health.biased.unwrap_or(typical) * (*in_flight as f64 + 1.0))
        .collect()
}

fn mixed(old: Option<f64>, sample: f64, weight: f64) -> f64 {
    old.map_or(sample, |old| old + weight * (sample - old))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn at(n: u64) -> Time {
        Time::from_origin(ms(n))
    }

    fn ejected(after: u64) -> Health {
        let mut health = Health::new(Settings::default());
        let failures = (0..20).take_while(|_| !health.failed(ms(1), at(after), 0.5)).count();
        assert_eq!(failures, 4, "the fifth in a row ejects");
        health
    }

    #[test]
    fn what_fails_fast_looks_busier_than_what_is_slow() {
        let (mut failing, mut slow, new) = (
            Health::new(Settings::default()),
            Health::new(Settings::default()),
            Health::new(Settings::default()),
        );
        for i in 0..100 {
            slow.succeeded(ms(100), at(i * 10));
            if i % 2 == 0 {
                failing.succeeded(ms(50), at(i * 10));
            } else {
                failing.failed(ms(1), at(i * 10), 0.5);
            }
        }
        let loads = loads(&[(&failing, 0), (&slow, 1), (&slow, 0), (&new, 0)]);
        assert!(loads[0] > loads[1] && loads[1] > loads[2], "{loads:?}");
        assert!(loads[3] > loads[2] && loads[3] < loads[0], "unknown counts as typical: {loads:?}");
    }

    #[test]
    fn a_few_failures_among_many_answers_do_not_eject() {
        let mut health = Health::new(Settings::default());
        for i in 0..10_000u64 {
            // Two in a hundred, and now and then three in a row.
            if i % 50 == 0 || i % 1000 < 3 {
                assert!(!health.failed(ms(10), at(i), 0.5), "after {i}");
            } else {
                health.succeeded(ms(100), at(i));
            }
        }
    }

    #[test]
    fn one_call_decides_whether_it_is_back() {
        let mut health = ejected(1000);
        assert_eq!(health.admission(false, at(1050)), Admission::NotBefore(at(1100)));
        assert_eq!(health.admission(false, at(1100)), Admission::Probe);
        health.probing();
        assert_eq!(health.admission(false, at(9000)), Admission::WaitForProbe);
        assert!(!health.failed(ms(1), at(1200), 0.5), "it was out already");
        assert_eq!(health.admission(false, at(1200)), Admission::NotBefore(at(1350)));
        health.probing();
        health.probe_lost(at(1400));
        assert_eq!(health.admission(false, at(1400)), Admission::Probe);
        health.probing();
        health.answered();
        assert_eq!(health.admission(false, at(1500)), Admission::Yes);
    }

    #[test]
    fn it_stays_away_longer_each_time_and_the_last_one_never_long() {
        let mut health = ejected(0);
        let mut now = at(0);
        let mut waits = Vec::new();
        for _ in 0..20 {
            let Admission::NotBefore(until) = health.admission(false, now) else { panic!("{health:?}") };
            waits.push(until.since(now));
            if let Admission::NotBefore(alone) = health.admission(true, now) {
                assert!(alone.since(now) <= Settings::default().longest_alone);
            }
            now = until;
            health.probing();
            health.failed(ms(1), now, 0.5);
        }
        assert!(waits.windows(2).all(|w| w[0] <= w[1]), "{waits:?}");
        assert_eq!(waits.last(), Some(&Settings::default().longest));
    }
}
