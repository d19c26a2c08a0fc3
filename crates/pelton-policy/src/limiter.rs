//! How much may be in flight at a server that is not ours.
//!
//! Such a server says nothing of itself, so the caller decides by what it sees: how long answers take against their deadline, what is refused
//! (429), and what dies. The window counts units (a call's weight, 1 by default), starts at 1, and below one call it paces: one call at a
//! time, the next when a round trip divided by the window has passed.
//!
//! - **Latency against the deadline.** An epoch is a window's worth of answers to calls that were sent after the last change. At its end the
//!   window aims at a 90th percentile of 0.7 deadlines: it falls in proportion above, and grows below, fast until it first comes near.
//! - **Calls without a deadline** aim at ten times the best latency. Where runs take `a + b * rows` that is about nine tenths of the most that
//!   batching can give, where work is served one by one it is a full queue, and where latency does not depend on load it does not bind. What is
//!   best is measured anew from time to time, by a few calls one after another, so that neither a slower model nor our own queue is mistaken for it.
//!   Longer deadlines than a hundred times the best count as that: a limit of an hour is no wish for an hour's queue.
//! - **Refusals** come back fast, so each counts at once: it takes up to two and a half calls off, each answer puts a little back. A refused call keeps its
//!   place in the window until its pause is over, so that a server that refuses everything is left alone for as long as it asked.
//! - **Crashes.** Calls that died in the middle of their work, and nothing goes after them: that window was too much. Three quarters of it are a
//!   ceiling from then on, which rises slowly. Fast failures say nothing of load and leave the window alone.
//!
//! One limiter an endpoint and process; pure: whoever owns it sends, measures and waits.

use std::collections::BTreeMap;
use std::time::Duration;

use pelton_core::Time;

/// The 90th percentile of latency over deadline that is aimed at.
const TARGET: f64 = 0.7;
/// Start-up ends at this share of the target.
const NEAR: f64 = 0.6;
/// What start-up adds in an epoch.
const START: f64 = 0.5;
/// What an epoch adds at most after that, in shares of the window and in calls. The calls make unequal windows equal.
const GROW: (f64, f64) = (0.15, 0.1);
/// An answer this many deadlines late is not waited with until the epoch ends.
const FAR_TOO_LATE: f64 = 1.5;
/// What that leaves.
const CUT: f64 = 0.7;
/// What a refusal takes off: calls, and at most this share of the window.
const REFUSED: (f64, f64) = (2.5, 0.3);
/// What an answer puts back while refusals are remembered: calls, more the longer it has been quiet, and a share of one by the window.
const ANSWERED: (f64, f64) = (0.05, 0.3);
/// How long a refusal is remembered.
const REMEMBERED: Duration = Duration::from_secs(20);
/// A ceiling after a crash, as a share of the window then, and what it rises by in a minute after the first crash and after another near it.
const CEILING: (f64, f64, f64) = (0.75, 0.10, 0.02);
/// Deadlines of calls that have none, and the longest that count, in best latencies.
const NO_DEADLINE: f64 = 10.0;
const LONGEST_DEADLINE: f64 = 100.0;
/// How often the best latency is measured anew: this long, and this many round trips.
const MEASURE_EVERY: (Duration, f64) = (Duration::from_secs(60), 100.0);
/// Under this window our own load is as good as none.
const ALONE: f64 = 0.25;
const SMALLEST: f64 = 0.05;
const LARGEST: f64 = 10_000.0;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ended {
    /// With an answer that was due within `deadline`.
    Answered { deadline: Option<Duration> },
    /// It was given up when its time was over, without an answer.
    TimedOut,
    /// The server would not take it now, and may after `pause`.
    Refused { pause: Duration },
    /// It failed, and the endpoint is to blame. `ejected`: with this the endpoint was given up for the time being.
    Failed { ejected: bool },
    /// In a way that says nothing of the server's load.
    Silent,
}

/// A call that was sent, as the limiter remembers it. To be handed back when it ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    sent: Time,
    units: f64,
    /// In flight when it was sent, itself included.
    in_flight: f64,
    source_limited: bool,
}

/// Whether the next call may go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Room {
    /// Now. The number is how full the window is, 0 to 1.
    Now(f64),
    NotBefore(Time),
    /// Once another one has ended.
    Full,
}

#[derive(Clone, Debug, Default)]
struct Epoch {
    began: Time,
    /// Latency over deadline of each answer.
    ratios: Vec<f64>,
    latency: f64,
    ended: u32,
    source_limited: u32,
}

#[derive(Clone, Copy, Debug)]
struct Ceiling {
    height: f64,
    since: Time,
    per_minute: f64,
}

#[derive(Clone, Copy, Debug)]
struct Down {
    window: f64,
    crashed: bool,
}

/// The window of one endpoint.
#[derive(Clone, Debug)]
pub struct Limiter {
    window: f64,
    starting: bool,
    epoch: Epoch,
    /// Smoothed over epochs.
    p90: Option<f64>,
    /// Seconds, smoothed; 0 while unknown.
    round_trip: f64,
    refused: Option<Time>,
    ceiling: Option<Ceiling>,
    /// The window at the last crash.
    crashed_at: Option<f64>,
    /// When a call last died in the middle of its work.
    died: Option<Time>,
    down: Option<Down>,
    last_cut: Option<Time>,
    /// What was really in flight lately, at most.
    peak: f64,
    best: Option<f64>,
    best_since: Time,
    /// The last answer had no deadline.
    deadline_free: bool,
    /// The window to return to when the best latency is measured.
    measuring: Option<f64>,
    // --- what is in flight ---
    calls: u64,
    units: f64,
    resting: BTreeMap<Time, f64>,
    last_sent: Option<Time>,
}

impl Default for Limiter {
    fn default() -> Self {
        Limiter::new()
    }
}

impl Limiter {
    pub fn new() -> Self {
        Limiter {
            window: 1.0,
            starting: true,
            epoch: Epoch::default(),
            p90: None,
            round_trip: 0.0,
            refused: None,
            ceiling: None,
            crashed_at: None,
            died: None,
            down: None,
            last_cut: None,
            peak: 0.0,
            best: None,
            best_since: Time::ZERO,
            deadline_free: false,
            measuring: None,
            calls: 0,
            units: 0.0,
            resting: BTreeMap::new(),
            last_sent: None,
        }
    }

    /// Units that may be in flight.
    pub fn window(&self, now: Time) -> f64 {
        self.window.min(self.cap(now)).max(SMALLEST)
    }

    /// Calls in flight, without those that were refused and rest.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Smoothed, if an answer came yet.
    pub fn round_trip(&self) -> Option<Duration> {
        (self.round_trip > 0.0).then(|| Duration::from_secs_f64(self.round_trip))
    }

    /// Whether a call of this weight may go now.
    pub fn room(&mut self, units: f64, now: Time) -> Room {
        self.wake(now);
        let window = self.window(now);
        let taken = self.units + self.resting.values().sum::<f64>();
        let until = self.resting.first_key_value().map(|(until, _)| *until);
        let full = until.map_or(Room::Full, Room::NotBefore);
        if window < 1.0 || units > window {
            // One at a time, at a pace.
            if taken > 0.0 {
                return full;
            }
            let pause = Duration::from_secs_f64((self.round_trip * units / window).min(3600.0));
            return match self.last_sent.map(|sent| sent + pause) {
                Some(next) if now < next => Room::NotBefore(next),
                _ => Room::Now(0.0),
            };
        }
        // Half a call over: so that the window is met in the mean.
        if taken + units <= window + 0.5 * units + 1e-9 { Room::Now(taken / window) } else { full }
    }

    /// A call goes now. `source_limited`: there is nothing to send after it.
    pub fn sent(&mut self, units: f64, source_limited: bool, now: Time) -> Call {
        self.calls += 1;
        self.units += units;
        self.last_sent = Some(now);
        let in_flight = self.units + self.resting.values().sum::<f64>();
        Call { sent: now, units, in_flight, source_limited }
    }

    /// A call has ended.
    pub fn ended(&mut self, call: Call, how: Ended, now: Time) {
        self.wake(now);
        self.calls = self.calls.saturating_sub(1);
        // Sums of fractions drift; nothing in flight is nothing.
        self.units = if self.calls == 0 { 0.0 } else { (self.units - call.units).max(0.0) };
        let took = now.since(call.sent).as_secs_f64();
        match how {
            Ended::Silent => {}
            Ended::Failed { ejected } => self.failed(took, ejected, now),
            Ended::Refused { pause } => {
                *self.resting.entry(now + pause).or_default() += call.units;
                self.refused = Some(now);
                self.starting = false;
                self.window = (self.window - REFUSED.0.min(REFUSED.1 * self.window)).max(SMALLEST);
                self.count(call, None, took, now);
            }
            Ended::TimedOut => self.late(call, now),
            Ended::Answered { deadline } => {
                if self.down.is_some() {
                    self.restart(now);
                }
                self.round_trip =
                    if self.round_trip == 0.0 { took } else { 0.9 * self.round_trip + 0.1 * took };
                self.deadline_free = deadline.is_none();
                let ratio = took / self.deadline(deadline, took);
                if ratio > FAR_TOO_LATE
                    && self.p90.is_some()
                    && self.last_cut.is_none_or(|cut| call.sent > cut)
                {
                    return self.late(call, now);
                }
                self.put_back(call, now);
                self.count(call, Some(ratio), took, now);
            }
        }
    }

    fn cap(&self, now: Time) -> f64 {
        self.ceiling
            .map_or(LARGEST, |c| c.height * (1.0 + c.per_minute * now.since(c.since).as_secs_f64() / 60.0))
    }

    /// Seconds that an answer should take at most.
    fn deadline(&self, deadline: Option<Duration>, took: f64) -> f64 {
        let best = self.best.unwrap_or(took);
        let longest = best * LONGEST_DEADLINE;
        deadline.map_or(best * NO_DEADLINE, |d| d.as_secs_f64().min(longest)).max(1e-6)
    }

    /// Refused calls whose pause is over give their place back.
    fn wake(&mut self, now: Time) {
        while let Some(first) = self.resting.first_entry().filter(|e| *e.key() <= now) {
            first.remove();
        }
    }

    fn failed(&mut self, took: f64, ejected: bool, now: Time) {
        if self.round_trip > 0.0 && took > 0.25 * self.round_trip {
            self.died = Some(now);
        }
        if ejected && self.down.is_none() {
            let lately = Duration::from_secs_f64(1.0 + self.round_trip);
            let crashed = self.died.is_some_and(|died| now.since(died) < lately);
            self.down = Some(Down { window: self.window.min(self.peak.max(0.1)), crashed });
        }
    }

    /// The endpoint is back.
    fn restart(&mut self, now: Time) {
        let Some(down) = self.down.take() else { return };
        if down.crashed {
            let again = self.crashed_at.is_some_and(|before| (down.window / before).ln().abs() < 0.35);
            let per_minute = if again { CEILING.2 } else { CEILING.1 };
            self.crashed_at = Some(down.window);
            let height = (CEILING.0 * down.window).max(0.1);
            self.ceiling = Some(Ceiling { height, since: now, per_minute });
        }
        self.window = (0.5 * down.window).max(0.1);
        self.starting = !down.crashed;
        self.measuring = None;
        self.begin(now);
    }

    /// Far over its deadline: cut at once, and not again for what was sent before.
    fn late(&mut self, call: Call, now: Time) {
        if self.last_cut.is_none_or(|cut| call.sent > cut) {
            self.window = (self.window * CUT).max(SMALLEST);
            self.last_cut = Some(now);
            self.starting = false;
            self.measuring = None;
            self.begin(now);
        }
    }

    /// An answer while refusals are remembered.
    fn put_back(&mut self, call: Call, now: Time) {
        let Some(refused) = self.refused else { return };
        let since = now.since(refused);
        if since > REMEMBERED {
            self.refused = None;
        } else if !call.source_limited && self.p90.is_none_or(|p90| p90 <= TARGET) {
            let quiet = (since.as_secs_f64() / (3.0 * self.round_trip)).clamp(0.0, 3.0);
            // In proportion to what a refusal takes, so that small windows do not live with more refusals than large ones.
            let share = (REFUSED.1 * self.window / REFUSED.0).min(1.0);
            let more = ANSWERED.0 * share * (1.0 + quiet) + ANSWERED.1 / self.window.max(1.0);
            self.window = (self.window + more).min(LARGEST).min(self.cap(now));
        }
    }

    /// Counts towards the epoch, and ends it if it is full. `ratio`: of an answer.
    fn count(&mut self, call: Call, ratio: Option<f64>, took: f64, now: Time) {
        // What was sent under the window before says nothing about this one.
        if call.sent < self.epoch.began {
            return;
        }
        self.peak = (0.97 * self.peak).max(call.in_flight.min(self.window));
        self.epoch.ended += 1;
        self.epoch.source_limited += u32::from(call.source_limited);
        if let Some(ratio) = ratio {
            self.epoch.ratios.push(ratio);
            self.epoch.latency += took;
        }
        if f64::from(self.epoch.ended) < self.window.ceil().clamp(4.0, 40.0) {
            return;
        }
        let epoch = std::mem::take(&mut self.epoch);
        self.end_epoch(epoch, now);
        self.begin(now);
    }

    fn begin(&mut self, now: Time) {
        self.epoch = Epoch { began: now, ..Epoch::default() };
    }

    fn end_epoch(&mut self, mut epoch: Epoch, now: Time) {
        if !epoch.ratios.is_empty() {
            let mean = epoch.latency / epoch.ratios.len() as f64;
            epoch.ratios.sort_by(f64::total_cmp);
            let p90 = epoch.ratios[(epoch.ratios.len() * 9 / 10).min(epoch.ratios.len() - 1)];
            self.p90 = Some(match self.p90 {
                Some(before) if !self.starting => 0.4 * before + 0.6 * p90,
                _ => p90,
            });
            self.measure(mean, now);
        }
        if self.measuring.is_some() {
            return;
        }
        let p90 = self.p90.unwrap_or(0.0);
        if p90 > TARGET {
            let too_much = 1.0 - (TARGET / p90).max(0.5);
            self.window *= 1.0 - 0.7 * too_much;
            // A little back, by which small windows gain on large ones.
            if p90 < 1.0 {
                self.window += 0.3 * GROW.1;
            }
            self.starting = false;
        } else if self.refused.is_none() && epoch.source_limited * 2 < epoch.ended {
            if self.starting {
                self.window *= 1.0 + START;
                self.starting = p90 <= NEAR * TARGET;
            } else {
                let head = (TARGET / p90.max(0.05) - 1.0).clamp(0.0, 1.0);
                self.window += (GROW.0 * self.window + GROW.1) * head;
            }
        }
        self.window = self.window.clamp(SMALLEST, LARGEST).min(self.cap(now));
        let due = MEASURE_EVERY.0.as_secs_f64().max(MEASURE_EVERY.1 * self.round_trip);
        if self.best.is_some()
            && now.since(self.best_since).as_secs_f64() > due
            && self.window > 4.0
            && self.deadline_free
        {
            self.measuring = Some(self.window);
            self.window = 1.0;
        }
    }

    /// Takes an epoch's mean latency for the best, if it is better, or if it was measured under as good as no load of ours.
    fn measure(&mut self, mean: f64, now: Time) {
        if let Some(window) = self.measuring.take() {
            self.window = window;
            self.best = Some(mean);
            self.best_since = now;
        } else if self.window <= ALONE {
            self.best = Some(self.best.map_or(mean, |best| 0.7 * best + 0.3 * mean));
            self.best_since = now;
        } else if self.best.is_none_or(|best| mean < best) {
            self.best = Some(mean);
            self.best_since = now;
        }
    }
}

#[cfg(test)]
mod tests;
