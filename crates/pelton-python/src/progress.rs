//! How far a job is, for whoever shows it.

use std::sync::{Arc, Mutex, PoisonError};

use pelton::Snapshot;
use serde_json::{Value, json};

/// What was seen of a job last. All clones are one.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Option<Snapshot>>>);

impl Seen {
    pub(crate) fn note(&self, snapshot: &Snapshot) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(snapshot.clone());
    }

    /// As JSON; None before anything runs.
    pub(crate) fn told(&self) -> Option<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(tell)
    }
}

fn tell(job: &Snapshot) -> Value {
    let nodes = job.progress.nodes.iter().map(|n| {
        json!({
            "name": n.name, "rows_in": n.rows_in, "rows_out": n.rows_out, "errors": n.errors,
            "splits_done": n.splits_done, "splits_total": n.splits_total,
        })
    });
    let services = job.services.services.iter().map(|service| {
        let stats = job.clients.get(&service.name);
        let waiting = service.instances.iter().find(|i| i.pid.is_none());
        json!({
            "name": service.name, "ready": service.ready(), "wanted": service.wanted,
            "held": stats.map_or(0, |s| s.held), "waiting": stats.map_or(0, |s| s.unended - s.held),
            "pids": service.instances.iter().filter_map(|i| i.pid).collect::<Vec<_>>(),
            "restarting": waiting.and_then(|i| i.last_error.as_ref()),
        })
    });
    json!({
        "seconds": job.elapsed.as_secs_f64(),
        "stopping": job.stopping,
        "nodes": nodes.collect::<Vec<_>>(),
        "services": services.collect::<Vec<_>>(),
    })
}
