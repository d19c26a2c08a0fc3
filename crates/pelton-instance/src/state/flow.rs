//! What an instance has measured of itself, and how much it wants with it because of that.

use std::time::Duration;

use pelton_core::Time;
use pelton_core::declaration::Declaration;
use pelton_core::service::{Cardinality, MethodSpec};
use pelton_policy::budget::{self, Continuous, Facts, Plan, Resident};
use pelton_policy::memory::Memory;
use pelton_policy::run_time::RunTime;

/// What the newest row counts for in the mean weight.
const NEWEST: f64 = 0.03;
/// What the newest permit counts for in the round trip.
const NEWEST_TRIP: f64 = 0.1;
/// A longer round trip is a caller's hesitation, not the network.
const LONGEST_TRIP: f64 = 0.1;
/// A memory that is fuller than this, with requests that grow, will not hold them to their end.
const OVERFLOW: f64 = 0.96;
/// How fast a batch limit that was learned from running out of memory is tried again: a tenth a minute.
const RELAX: f64 = 0.1;

/// How a method uses the instance.
#[derive(Clone, Debug)]
enum Engine {
    /// One batch after another.
    Serial,
    /// Several batches that do not slow each other down.
    Workers(usize),
    /// Requests that grow while they run beside each other.
    Continuous(usize, Continuous),
}

#[derive(Clone, Debug)]
struct Method {
    engine: Engine,
    model: RunTime,
    /// It takes one row at a time.
    one_row: bool,
}

/// What rows and weight are with the instance.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    pub(super) queued: u64,
    pub(super) queued_weight: f64,
    pub(super) running: u64,
    pub(super) running_weight: f64,
    /// Weight of what began so lately that the gauge may not show it.
    pub(super) young_weight: f64,
}

impl Load {
    pub(super) fn rows(&self) -> u64 {
        self.queued + self.running
    }

    pub(super) fn weight(&self) -> f64 {
        self.queued_weight + self.running_weight
    }
}

#[derive(Debug)]
pub(super) struct Flow {
    methods: Vec<Method>,
    /// The one that ran last: the budget is for it.
    latest: usize,
    memory: Memory,
    /// Used and total, as the service reported last.
    gauge: Option<(f64, f64)>,
    row_weight: f64,
    /// Seconds from a permit to what was sent on it.
    round_trip: f64,
    /// Rows of a batch that did not fit into memory, and when.
    exhausted: Option<(f64, Time)>,
    longest_run: Duration,
    runs: u64,
}

impl Flow {
    pub(super) fn new(declaration: &Declaration, methods: &[MethodSpec]) -> Self {
        let engine = |spec: &MethodSpec| match spec.concurrency {
            None | Some(1) => Engine::Serial,
            Some(bound) if declaration.weight.output.is_some() => {
                Engine::Continuous(bound, Continuous::default())
            }
            Some(bound) => Engine::Workers(bound),
        };
        let method = |spec: &MethodSpec| Method {
            engine: engine(spec),
            model: RunTime::default(),
            one_row: spec.cardinality == Cardinality::Many,
        };
        Flow {
            methods: methods.iter().map(method).collect(),
            latest: 0,
            memory: Memory::new(declaration.weight.memory),
            gauge: None,
            row_weight: 1.0,
            round_trip: 0.0,
            exhausted: None,
            longest_run: Duration::ZERO,
            runs: 0,
        }
    }

    // --- what happens ---

    pub(super) fn arrived(&mut self, weight: f64) {
        self.row_weight += NEWEST * (weight - self.row_weight);
    }

    /// A permit was answered with requests after this long.
    pub(super) fn answered(&mut self, trip: Duration) {
        let trip = trip.as_secs_f64().min(LONGEST_TRIP);
        self.round_trip += NEWEST_TRIP * (trip - self.round_trip);
    }

    pub(super) fn reported(&mut self, used: f64, total: f64) {
        self.gauge = Some((used, total));
    }

    pub(super) fn started(&mut self, method: u16) {
        self.latest = usize::from(method);
    }

    pub(super) fn ran(&mut self, method: u16, weight: f64, time: Duration) {
        self.methods[usize::from(method)].model.observe(weight, time.as_secs_f64());
        self.longest_run = self.longest_run.max(time);
        self.runs += 1;
    }

    /// A request of a method whose requests grow has ended, after running so long; `had`: its time in all.
    pub(super) fn grew(
        &mut self,
        method: u16,
        grown: f64,
        took: Duration,
        had: Option<Duration>,
        running: u64,
    ) {
        if let Engine::Continuous(_, engine) = &mut self.methods[usize::from(method)].engine {
            engine.ended(grown, took.as_secs_f64(), had.map(|d| d.as_secs_f64()), running as f64);
        }
    }

    /// A request has had its time and runs still.
    pub(super) fn late(&mut self, method: u16, began: Time, now: Time) {
        if let Engine::Continuous(_, engine) = &mut self.methods[usize::from(method)].engine {
            engine.late(began, now);
        }
    }

    /// Whether what runs is about to fill the memory, and something of it has to go.
    pub(super) fn overflows(&self) -> bool {
        let full = self.gauge.is_some_and(|(used, total)| used > OVERFLOW * total);
        full && matches!(self.methods[self.latest].engine, Engine::Continuous(..))
    }

    pub(super) fn refused(&mut self) {
        self.memory.refused();
    }

    /// A batch of so many rows did not fit into memory.
    pub(super) fn ran_out(&mut self, rows: u64, now: Time) {
        self.memory.ran_out();
        let learned = (rows as f64 / 2.0).max(1.0);
        let present = self.batch_bound(now).unwrap_or(f64::INFINITY);
        self.exhausted = Some((learned.min(present), now));
    }

    // --- what follows from it ---

    pub(super) fn any_continuous(&self) -> bool {
        self.methods.iter().any(|m| matches!(m.engine, Engine::Continuous(..)))
    }

    pub(super) fn is_continuous(&self, method: u16) -> bool {
        matches!(self.methods[usize::from(method)].engine, Engine::Continuous(..))
    }

    pub(super) fn belief(&self) -> f64 {
        self.memory.belief()
    }

    pub(super) fn row_weight(&self) -> f64 {
        self.row_weight
    }

    /// Rows of a batch that are sure to fit, if running out of memory has taught how many.
    pub(super) fn batch_bound(&self, now: Time) -> Option<f64> {
        let (rows, since) = self.exhausted?;
        Some(rows * (1.0 + RELAX * now.since(since).as_secs_f64() / 60.0))
    }

    fn facts(&self, declaration: &Declaration, target: Option<Duration>, now: Time) -> Facts {
        let rows = f64::from(declaration.batch.rows).min(self.batch_bound(now).unwrap_or(f64::INFINITY));
        Facts {
            max_rows: rows.max(1.0),
            row_weight: self.row_weight.max(1e-9),
            target: target.map(|t| t.as_secs_f64()),
            way: self.round_trip / 2.0,
        }
    }

    /// Batch and permits for one method. `target`: how long answers may take.
    pub(super) fn plan(
        &self,
        method: u16,
        declaration: &Declaration,
        target: Option<Duration>,
        load: Load,
        now: Time,
    ) -> Plan {
        let facts = self.facts(declaration, target, now);
        let method = &self.methods[usize::from(method)];
        let mut plan = match &method.engine {
            Engine::Serial => budget::serial(&method.model, facts),
            Engine::Workers(n) => budget::workers(&method.model, *n as f64, facts),
            Engine::Continuous(n, engine) => {
                let memory = self.memory.believed(self.total());
                let permits = engine.permits(facts, *n as f64, memory, self.resident(engine, load));
                Plan { batch_rows: 1.0, permits }
            }
        };
        if method.one_row {
            plan.permits = (plan.permits / plan.batch_rows).max(2.0);
            plan.batch_rows = 1.0;
        }
        plan
    }

    /// The budget of rows: that of the method which ran last.
    pub(super) fn permits(
        &self,
        declaration: &Declaration,
        target: Option<Duration>,
        load: Load,
        now: Time,
    ) -> u64 {
        match declaration.permits.rows {
            Some(rows) => u64::from(rows),
            None => (self.plan(self.latest as u16, declaration, target, load, now).permits as u64).max(1),
        }
    }

    /// The budget of weight, held and permitted; and what a row counts for beyond its own weight.
    pub(super) fn weight_budget(&self, declaration: &Declaration, now: Time) -> (f64, f64) {
        let facts = self.facts(declaration, None, now);
        match &self.methods[self.latest].engine {
            Engine::Continuous(_, engine) => {
                let growth = engine.growth().unwrap_or(facts.row_weight);
                let all = self.memory.believed(self.total());
                (all.map_or(f64::INFINITY, |all| engine.weight(facts, all)), growth)
            }
            _ => (self.memory.planned(self.total()).unwrap_or(f64::INFINITY), 0.0),
        }
    }

    /// Whether a row has to be sent back although it was permitted.
    pub(super) fn refuses(&self, method: u16, weight: f64, load: Load) -> bool {
        !self.is_continuous(method) && self.memory.refuses(load.weight(), weight, self.total())
    }

    /// Whether a request of this weight may start beside what runs.
    pub(super) fn may_start(&self, method: u16, weight: f64, load: Load) -> bool {
        match &self.methods[usize::from(method)].engine {
            Engine::Continuous(_, engine) => {
                let total = self.total().or_else(|| self.memory.believed(None));
                total.is_none_or(|total| engine.may_start(weight, self.resident(engine, load), total))
            }
            _ => true,
        }
    }

    /// How long a run may go without any progress.
    pub(super) fn stall_limit(&self, declaration: &Declaration) -> Duration {
        pelton_policy::stall::limit(declaration.stall, self.longest_run, self.runs)
    }

    fn total(&self) -> Option<f64> {
        self.gauge.map(|(_, total)| total)
    }

    fn resident(&self, engine: &Continuous, load: Load) -> Resident {
        let guess = || load.running_weight + load.running as f64 * engine.growth().unwrap_or(0.0);
        Resident {
            running: load.running as f64,
            queued: load.queued as f64,
            queued_weight: load.queued_weight,
            used: self.gauge.map_or_else(guess, |(used, _)| used + load.young_weight),
        }
    }
}
