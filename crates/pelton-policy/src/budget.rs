//! How many rows an instance wants with it, and how large its batches are: as measured, nothing of it set by hand.
//!
//! Three kinds of work, three formulas. All times in seconds.

use pelton_core::Time;

use crate::run_time::RunTime;

/// What an instance wants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Rows in a batch.
    pub batch_rows: f64,
    /// Rows held or permitted.
    pub permits: f64,
}

/// What is known beside the run times.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Most rows in a batch.
    pub max_rows: f64,
    /// Mean weight of a row: what run times are measured against.
    pub row_weight: f64,
    /// How long an answer may take, waiting included.
    pub target: Option<f64>,
    /// One way over the network.
    pub way: f64,
}

/// One batch after another. Two batches are wanted: one runs, one waits; and what the instance works off while a permit
/// and its rows are under way. A batch is small enough that waiting for one and running in one stays within the target.
pub fn serial(model: &RunTime, facts: Facts) -> Plan {
    let Some((fixed, each)) = model.line() else {
        // With a target, the first batch is a small one: nobody knows yet how long it takes.
        let rows = if facts.target.is_some() { 2f64.min(facts.max_rows) } else { facts.max_rows };
        return Plan { batch_rows: rows, permits: 2.0 * rows };
    };
    let each = each * facts.row_weight;
    let rows = match facts.target {
        Some(target) => (((0.85 * target - 2.0 * facts.way) / 2.0 - fixed) / each).clamp(1.0, facts.max_rows),
        None => facts.max_rows,
    };
    let time = fixed + each * rows;
    Plan { batch_rows: rows, permits: 2.0 * rows + rows / time * 4.0 * facts.way }
}

/// `workers` batches at a time that do not slow each other down. A batch holds as many rows as make its fixed cost a twelfth of
/// the rest, or less, as long as it takes no more than three tenths of the target.
pub fn workers(model: &RunTime, workers: f64, facts: Facts) -> Plan {
    let (Some((fixed, each)), Some(mean)) = (model.line(), model.mean()) else {
        let rows = facts.max_rows.min(16.0);
        return Plan { batch_rows: rows, permits: (workers * rows).max(1.0) };
    };
    let each = each * facts.row_weight;
    let worth = 2f64.powf((12.0 * fixed / each).max(1.0).log2().ceil());
    let short = facts.target.map_or(f64::INFINITY, |target| (0.3 * target - fixed) / each);
    let rows = worth.min(short).clamp(1.0, facts.max_rows);
    let batches = 1.5 * workers + workers / mean * 4.0 * facts.way;
    let batches = facts.target.map_or(batches, |target| batches.min(0.7 * target * workers / mean));
    Plan { batch_rows: rows, permits: (batches * rows).max(1.0) }
}

/// Many at a time that slow each other down and grow while they run: language models with continuous batching.
#[derive(Clone, Copy, Debug, Default)]
pub struct Continuous {
    /// Moments of what an answer adds to its request's weight.
    grown: f64,
    grown_squared: f64,
    /// How long a unit of growth takes, against how many run.
    pace: RunTime,
    /// Samples of it that are not in there yet: their number, seconds, growth, and how many ran.
    sampled: (f64, f64, f64, f64),
    /// 95th percentile of the growth that is asked for in a second of a request's time.
    need: f64,
    /// Requests that had a limit on their time.
    limited: u64,
    /// What lateness has taught beyond the model: below 1, fewer may run.
    trim: f64,
    /// When it was last lowered.
    trimmed: Option<Time>,
}

/// So many ends make one sample of the pace.
const ENDS: f64 = 6.0;
/// Requests that run before anything is known of the pace.
const FIRST: f64 = 16.0;

/// What runs and waits at the instance now, in rows and weight.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resident {
    pub running: f64,
    pub queued: f64,
    /// Weight of the queued ones.
    pub queued_weight: f64,
    /// What is used of the memory.
    pub used: f64,
}

impl Continuous {
    /// A request ended well after `took` seconds of running, and had grown by so much; `had` seconds in all were its time, if that was
    /// limited; `running` is how many ran beside it.
    pub fn ended(&mut self, grown: f64, took: f64, had: Option<f64>, running: f64) {
        const NEWEST: f64 = 0.015;
        if self.grown == 0.0 {
            (self.grown, self.grown_squared) = (grown, grown * grown);
        } else {
            self.grown += NEWEST * (grown - self.grown);
            self.grown_squared += NEWEST * (grown * grown - self.grown_squared);
        }
        let (ends, seconds, growth, beside) = &mut self.sampled;
        (*ends, *seconds, *growth, *beside) =
            (*ends + 1.0, *seconds + took, *growth + grown, *beside + (running + 1.0));
        // The first ends count at once: with few running there are few of them.
        if (*ends >= ENDS || self.pace.runs() < 3) && *growth > 0.0 {
            self.pace.observe(*beside / *ends, *seconds / *growth);
            self.sampled = (0.0, 0.0, 0.0, 0.0);
        }
        if let Some(had) = had {
            self.limited += 1;
            let need = grown / had.max(1e-9);
            // A running quantile: steps up 19 times as large as those down settle where one of twenty lies above.
            let above = f64::from(u8::from(need >= self.need));
            let step = 0.05_f64.max(1.0 / self.limited as f64);
            self.need = if self.limited == 1 { need } else { self.need * (1.0 + step * (above - 0.05)) };
            self.trim = (self.trim() + 0.004).min(1.0);
        }
    }

    /// A request that began then had its time, and has not ended. What began before the last lesson teaches nothing new.
    pub fn late(&mut self, began: Time, now: Time) {
        if self.trimmed.is_none_or(|trimmed| began >= trimmed) {
            self.trim = (self.trim() * 0.9).max(0.2);
            self.trimmed = Some(now);
        }
    }

    fn trim(&self) -> f64 {
        if self.trim == 0.0 { 1.0 } else { self.trim }
    }

    /// How many may run so that 19 of 20 are in time, with a tenth to spare. None: no one is in a hurry.
    fn in_time(&self, target: Option<f64>) -> Option<f64> {
        target?;
        let Some((alone, each)) = self.pace.line() else { return Some(FIRST) };
        if self.need <= 0.0 {
            return None;
        }
        let known = self.pace.known();
        let all = alone + each * known;
        // Where the number that runs has hardly changed, the line's slope is a guess: a quarter at least is theirs.
        let (alone, each) = if alone > 0.75 * all { (0.75 * all, 0.25 * all / known) } else { (alone, each) };
        let allowed = 0.92 / self.need;
        let most = (allowed - alone) / each * self.trim();
        // Not far beyond what has been seen, nor far below: the line says little there.
        let least = 0.5 * known * (allowed / all).min(1.0) * self.trim();
        Some(most.clamp(least.max(1.0), (2.0 * known).max(FIRST)))
    }

    /// What a request that is looked at while it runs has grown by on average: long ones are seen more often.
    pub fn growth(&self) -> Option<f64> {
        (self.grown > 0.0).then(|| self.grown_squared / (2.0 * self.grown))
    }

    /// Mean weight that an answer adds.
    pub fn mean_growth(&self) -> f64 {
        self.grown
    }

    /// Rows wanted with the instance. `memory`: all that is believed to be there.
    pub fn permits(&self, facts: Facts, most: f64, memory: Option<f64>, now: Resident) -> f64 {
        let in_time = self.in_time(facts.target).unwrap_or(f64::INFINITY);
        let by_memory = memory.map_or(f64::INFINITY, |memory| {
            let growth = self.growth().unwrap_or(facts.row_weight);
            let held = now.running + now.queued;
            let room = 0.93 * memory - now.used - now.queued_weight - 0.5 * growth * held.sqrt();
            held + room / (facts.row_weight + growth)
        });
        by_memory.min(in_time).min(most + 8.0).max(1.0)
    }

    /// The weight that all who are let in may come to: as many requests of the usual size as fit with two standard deviations
    /// to spare. (Deviations of prompts and outputs as a share of their means: 0.6 and 1.2.)
    pub fn weight(&self, facts: Facts, memory: f64) -> f64 {
        let growth = self.growth().unwrap_or(facts.row_weight);
        let each = facts.row_weight + growth;
        let spare = 2.0 * (0.6 * facts.row_weight).hypot(1.2 * growth);
        let root = (-spare + (spare * spare + 4.0 * each * 0.97 * memory).sqrt()) / (2.0 * each);
        root * root * each
    }

    /// Whether one more of this weight may start: what runs shall be able to grow by its mean without filling the memory.
    pub fn may_start(&self, weight: f64, now: Resident, total: f64) -> bool {
        let reserve = 0.5 * self.grown * (now.running + 1.0);
        now.running < 0.5 || now.used + weight + reserve <= 0.92 * total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(target: Option<f64>) -> Facts {
        Facts { max_rows: 32.0, row_weight: 1.0, target, way: 0.0005 }
    }

    fn model(fixed: f64, each: f64) -> RunTime {
        let mut model = RunTime::default();
        for size in [4.0, 32.0, 16.0, 8.0, 24.0, 32.0, 2.0, 30.0, 10.0] {
            model.observe(size, fixed + each * size);
        }
        model
    }

    #[test]
    fn a_serial_instance_wants_two_batches_that_are_in_time() {
        let plan = serial(&model(0.020, 0.004), facts(None));
        assert_eq!(plan.batch_rows, 32.0);
        assert!((plan.permits - 64.4).abs() < 0.3, "{plan:?}");
        let tight = serial(&model(0.050, 0.010), facts(Some(0.3)));
        assert!((tight.batch_rows - 7.7).abs() < 1.0 && tight.permits < 17.0, "{tight:?}");
        assert_eq!(serial(&model(0.5, 0.1), facts(Some(0.1))).batch_rows, 1.0);
        assert_eq!(serial(&RunTime::default(), facts(Some(1.0))).permits, 4.0);
    }

    #[test]
    fn workers_get_batches_that_are_worth_their_cost() {
        let facts = Facts { max_rows: 256.0, row_weight: 1.0, target: Some(0.005), way: 0.00005 };
        let plan = workers(&model(40e-6, 6e-6), 8.0, facts);
        assert!((plan.batch_rows - 128.0).abs() < 1.0, "{plan:?}");
        assert!(plan.permits > 8.0 * 128.0 && plan.permits < 5000.0, "{plan:?}");
        let free = workers(&model(1e-9, 1e-3), 8.0, facts);
        assert_eq!(free.batch_rows, 1.0);
    }

    #[test]
    fn what_grows_is_let_in_by_what_it_will_be() {
        let mut engine = Continuous::default();
        let facts = Facts { max_rows: 1.0, row_weight: 300.0, target: Some(10.0), way: 0.0005 };
        let permits = |engine: &Continuous| engine.permits(facts, 256.0, Some(60_000.0), Resident::default());
        assert_eq!(permits(&engine), FIRST);
        // A step takes 12 ms and a quarter more for each that runs; each request has 45 ms for each of its 200 steps.
        let mut now = Time::ZERO;
        let mut run = |ends: usize, slow: f64| {
            for _ in 0..ends {
                let n = permits(&engine).min(300.0);
                let step = (0.012 + 0.00025 * n) * slow;
                if step > 0.045 {
                    now = now + std::time::Duration::from_secs(9);
                    engine.late(now, now)
                } else {
                    engine.ended(200.0, 200.0 * step, Some(9.0), n - 1.0)
                }
            }
            permits(&engine)
        };
        let usual = run(400, 1.0);
        assert!((100.0..132.0).contains(&usual), "{usual}");
        let slow = run(400, 2.0);
        assert!((20.0..42.0).contains(&slow), "{slow}");
        assert_eq!(engine.growth(), Some(100.0));
        let full = Resident { running: 100.0, used: 55_000.0, ..Resident::default() };
        assert!(engine.permits(Facts { target: None, ..facts }, 256.0, Some(60_000.0), full) < 101.0);
        assert!(!engine.may_start(300.0, full, 60_000.0));
        assert!(engine.weight(facts, 60_000.0) < 60_000.0);
    }
}
