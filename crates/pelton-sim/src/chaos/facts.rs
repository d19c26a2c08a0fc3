//! What was done to a run and what came of it: the excuses that its checks may accept, and the numbers for people.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use pelton_core::Time;

use crate::faults::world::Pid;

/// Collects. Cheap to clone.
#[derive(Clone, Default)]
pub struct Facts {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    counts: BTreeMap<&'static str, u64>,
    /// Who could not be reached, or did not answer, from when to when.
    away: Vec<(Pid, Time, Time)>,
    /// What a process's ledger had to forget, as far as anybody saw.
    evicted: BTreeMap<Pid, u64>,
    /// Instances that put results on disk.
    spilled: BTreeSet<Pid>,
    /// Instances whose disk was full or failed.
    bad_disks: BTreeSet<Pid>,
    /// When the job went back to an earlier checkpoint.
    rewinds: Vec<Time>,
    /// Instances that were told to drain, and when first.
    drained: BTreeMap<Pid, Time>,
    /// When hosts started.
    hosts: Vec<Time>,
    necessary: u64,
    beyond: BTreeMap<&'static str, u64>,
}

impl Facts {
    pub(crate) fn count(&self, what: &'static str) {
        self.add(what, 1);
    }

    pub(crate) fn add(&self, what: &'static str, n: u64) {
        *self.lock().counts.entry(what).or_default() += n;
    }

    /// How often each thing happened.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.lock().counts.clone()
    }

    pub(crate) fn away(&self, pid: Pid, from: Time, until: Time) {
        self.lock().away.push((pid, from, until));
    }

    /// Who was away at some moment between these two.
    pub(crate) fn was_away(&self, from: Time, until: Time) -> Vec<(Pid, Time, Time)> {
        self.lock().away.iter().filter(|(_, a, b)| *a <= until && *b >= from).copied().collect()
    }

    pub(crate) fn rewound(&self, at: Time) {
        self.lock().rewinds.push(at);
    }

    pub(crate) fn rewound_between(&self, from: Time, until: Time) -> bool {
        self.lock().rewinds.iter().any(|at| (from..=until).contains(at))
    }

    pub(crate) fn drained(&self, pid: Pid, at: Time) {
        self.lock().drained.entry(pid).or_insert(at);
    }

    pub(crate) fn host_started(&self, at: Time) {
        self.lock().hosts.push(at);
    }

    /// Whether this instance was draining when a host started between these moments: that one does not take it over.
    pub(crate) fn was_left_draining(&self, pid: Pid, from: Time, until: Time) -> bool {
        let inner = self.lock();
        let since = inner.drained.get(&pid).copied();
        since.is_some_and(|since| inner.hosts.iter().any(|at| (from.max(since)..=until).contains(at)))
    }

    pub(crate) fn evicted(&self, pid: Pid, n: u64) {
        let mut inner = self.lock();
        let entry = inner.evicted.entry(pid).or_default();
        *entry = n.max(*entry);
    }

    pub(crate) fn evicted_by(&self, pid: Pid) -> u64 {
        self.lock().evicted.get(&pid).copied().unwrap_or_default()
    }

    pub(crate) fn spilled(&self, pid: Pid) {
        let mut inner = self.lock();
        if inner.spilled.insert(pid) {
            *inner.counts.entry("ledgers that spilled").or_default() += 1;
        }
    }

    pub(crate) fn bad_disk(&self, pid: Pid) {
        self.lock().bad_disks.insert(pid);
    }

    pub(crate) fn had_bad_disk(&self, pid: Pid) -> bool {
        self.lock().bad_disks.contains(&pid)
    }

    pub(crate) fn executed(&self, necessary: u64, beyond: BTreeMap<&'static str, u64>) {
        let mut inner = self.lock();
        (inner.necessary, inner.beyond) = (necessary, beyond);
    }

    /// Rows that had to run, each once.
    pub fn necessary(&self) -> u64 {
        self.lock().necessary
    }

    /// Executions beyond that, by what they were good for.
    pub fn beyond(&self) -> BTreeMap<&'static str, u64> {
        self.lock().beyond.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
