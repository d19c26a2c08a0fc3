//! What must hold, whatever happens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use pelton_client::Client;
use pelton_core::RequestId;
use pelton_core::call::{Caller, Holder, Receiver, Submission};
use pelton_core::service::MethodSpec;

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

/// Nothing that was executed on a live instance was executed again, but for the reasons that are allowed. Counts those.
pub(crate) fn nothing_ran_twice(
    executions: &Executions,
    register: &Register,
    machine: &Machine,
    facts: &Facts,
    small_ledger: bool,
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
            let reason = match excuse(first, second, machine, facts, small_ledger) {
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
    small_ledger: bool,
) -> Option<&'static str> {
    if first.ended.is_some_and(|(_, well)| !well) {
        return Some("failed");
    }
    if machine.ended_at(first.pid).is_some_and(|at| at <= second.began) {
        return Some("died");
    }
    let away = |(pid, from, until): &(u32, _, pelton_core::Time)| {
        (*pid == first.pid || !machine.is_instance(*pid)) && until.since(*from) >= NOTICED
    };
    if facts.was_away(first.began, second.began).iter().any(away) {
        return Some("out of reach");
    }
    // Nobody may have seen it if the instance is gone.
    let seen = facts.evicted_by(first.pid) > 0 || !machine.is_running(first.pid);
    (small_ledger && seen).then_some("evicted")
}
