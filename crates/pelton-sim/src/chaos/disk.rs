//! The disk that all hosts of a run have one after another: it can fail, be full, and forget what was not synced.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pelton_env::Storage;
use pelton_env::simulated::{EIO, Fault, Machine};

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Disk {
    machine: Machine,
    /// The power was cut since the last host.
    cut: Arc<AtomicBool>,
}

impl Disk {
    pub(crate) fn new(seed: u64) -> Disk {
        Disk { machine: Machine::new(seed), cut: Arc::default() }
    }

    /// Where the job keeps its checkpoints.
    pub(crate) fn state() -> PathBuf {
        "/state".into()
    }

    /// The disk as the next host finds it. The one before can do nothing any more.
    pub(crate) fn storage(&self) -> Arc<dyn Storage> {
        if self.cut.swap(false, Ordering::Relaxed) { self.machine.reboot() } else { self.machine.process() }
    }

    /// What was not synced may be gone.
    pub(crate) fn cut_power(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    /// An operation fails, after so many others.
    pub(crate) fn fail(&self, after: u64) {
        self.machine.arm(after, Fault::Fails(EIO));
    }

    /// There is room for so many operations more.
    pub(crate) fn fill(&self, operations: u64) {
        self.machine.fill(Path::new("/"), operations);
    }

    pub(crate) fn mend(&self) {
        self.machine.mend();
    }

    /// The complete checkpoints there are, rising.
    pub(crate) fn checkpoints(&self) -> Vec<u64> {
        let files = self.machine.files(&Disk::state());
        let complete = files.keys().filter_map(|name| name.strip_suffix("/manifest.json"));
        let mut numbers: Vec<u64> =
            complete.filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    }
}
