//! What must hold, whatever happens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use pelton_client::Client;
use pelton_core::call::{Caller, Holder, Receiver, Submission};
use pelton_core::service::MethodSpec;
use pelton_core::{RequestId, Time};

use crate::chaos::facts::Facts;
use crate::faults::probe::{Execution, Executions};
use crate::faults::process::Machine;
use crate::faults::world::World;

/// Who is away for less than this is waited for.
const NOTICED: Duration = Duration::from_millis(900);

/// What the data plane says to its clients, over all hosts. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Register {
    world: World,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// The number that each request carries.
    numbers: BTreeMap<RequestId, u64>,
    acknowledged: BTreeSet<RequestId>,
}

impl Register {
    pub(crate) fn new(world: &World) -> Self {
        Register { world: world.clone(), inner: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn submitted(&self, submission: &Submission) {
        let numbers = submission.arguments.column(0).as_primitive::<UInt64Type>();
        let mut inner = self.lock();
        for (id, number) in submission.ids.iter().zip(numbers.values()) {
            let known = *inner.numbers.entry(*id).or_insert(*number);
            if known != *number {
                self.world.fail(format!("request {id} came with {known}, and comes with {number}"));
            }
            if inner.acknowledged.contains(id) {
                self.world.fail(format!("request {id} was acknowledged, and comes again"));
            }
        }
    }

    fn acknowledged(&self, ids: &[RequestId]) {
        let mut inner = self.lock();
        for id in ids {
            if !inner.numbers.contains_key(id) {
                self.world.fail(format!("request {id} is acknowledged, and was never made"));
            }
            inner.acknowledged.insert(*id);
        }
    }

    /// The job goes back: what was done since is done again, under the same names.
    pub(crate) fn go_back(&self) {
        self.lock().acknowledged.clear();
    }

    /// The requests that carried each number.
    fn requests(&self) -> BTreeMap<u64, usize> {
        let mut requests = BTreeMap::new();
        for number in self.lock().numbers.values() {
            *requests.entry(*number).or_default() += 1;
        }
        requests
    }
}

/// A client that is listened in to.
pub(crate) struct Registered {
    pub(crate) client: Arc<Client>,
    pub(crate) register: Register,
}

impl Caller for Registered {
    fn service(&self) -> &str {
        self.client.service()
    }
    fn methods(&self) -> &[MethodSpec] {
        self.client.methods()
    }
    fn submit(&self, submission: Submission, receiver: Arc<dyn Receiver>) {
        self.register.submitted(&submission);
        self.client.submit(submission, receiver);
    }
    fn cancel(&self, ids: &[RequestId]) {
        self.client.cancel(ids);
    }
    fn abandon(&self, operators: &[u32]) {
        self.client.abandon(operators);
    }
    fn hold(&self) {
        self.client.hold();
    }
    fn acknowledge(&self, ids: &[RequestId]) {
        self.register.acknowledged(ids);
        self.client.acknowledge(ids);
    }
    fn holders(&self, ids: &[RequestId]) -> Vec<Holder> {
        self.client.holders(ids)
    }
}

/// What the services promise in this run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// They forget results before they are acknowledged.
    pub(crate) small_ledger: bool,
    /// They put on disk what such a ledger has no room for.
    pub(crate) spills: bool,
    /// An attempt that takes longer is given up, and another made.
    pub(crate) attempt: Option<Duration>,
}

/// Nothing that was executed on a live instance was executed again, but for the reasons that are allowed. Counts those.
pub(crate) fn nothing_ran_twice(
    executions: &Executions,
    register: &Register,
    machine: &Machine,
    facts: &Facts,
    terms: Terms,
) -> Result<(), String> {
    let requests = register.requests();
    let mut beyond: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut necessary = 0;
    for (number, runs) in executions.all() {
        let Some(ids) = requests.get(&number) else {
            return Err(format!("{number} was executed, and nobody had asked for it"));
        };
        necessary += 1;
        let mut renumbered = 0;
        for (at, second) in runs.iter().enumerate().skip(1) {
            let first = &runs[at - 1];
            let reason = match excuse(first, second, machine, facts, terms) {
                Some(reason) => reason,
                // Behind calls whose answers come in any order, a row is another request after each restart.
                None if renumbered + 1 < *ids => {
                    renumbered += 1;
                    "renumbered"
                }
                None => {
                    return Err(format!(
                        "{number} ran again though it had run or was running (it had {ids} ids): {runs:?}"
                    ));
                }
            };
            *beyond.entry(reason).or_default() += 1;
        }
    }
    facts.executed(necessary, beyond);
    Ok(())
}

/// Why one execution was followed by another.
fn excuse(
    first: &Execution,
    second: &Execution,
    machine: &Machine,
    facts: &Facts,
    terms: Terms,
) -> Option<&'static str> {
    if first.ended.is_some_and(|(_, well)| !well) {
        return Some("failed");
    }
    if machine.ended_at(first.pid).is_some_and(|at| at <= second.began) {
        return Some("died");
    }
    let noticed = |(_, from, until): &(u32, Time, Time)| until.since(*from) >= NOTICED;
    let away = |(pid, ..): &(u32, Time, Time)| *pid == first.pid || !machine.is_instance(*pid);
    let between = facts.was_away(first.began, second.began);
    // One that was out of reach and comes back goes on with what it has, which others were given meanwhile.
    let back = facts.was_away(Time::ZERO, second.began);
    if between.iter().any(|a| noticed(a) && away(a)) || back.iter().any(|a| noticed(a) && a.0 == second.pid) {
        return Some("out of reach");
    }
    if facts.rewound_between(first.began, second.began) {
        return Some("went back");
    }
    if facts.was_left_draining(first.pid, first.began, second.began) {
        return Some("left draining");
    }
    if terms.attempt.is_some() {
        return Some("overdue");
    }
    // Nobody may have seen it if the instance is gone.
    let seen = facts.evicted_by(first.pid) > 0 || !machine.is_running(first.pid);
    let may_forget = !terms.spills || facts.had_bad_disk(first.pid);
    (terms.small_ledger && may_forget && seen).then_some("evicted")
}
