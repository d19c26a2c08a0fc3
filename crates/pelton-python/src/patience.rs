//! What a program is told while it waits for services that are slow to open.

use std::time::Duration;

use pelton::Snapshot;

/// When it is told first; then each time that twice as long has passed.
const FIRST: Duration = Duration::from_secs(10);

/// When to say something next.
pub(crate) struct Patience {
    next: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { next: FIRST }
    }
}

impl Patience {
    /// Tells the log which services nobody of is ready yet.
    pub(crate) fn look(&mut self, job: &Snapshot) {
        if job.elapsed < self.next {
            return;
        }
        self.next *= 2;
        for service in job.services.services.iter().filter(|s| s.ready() == 0) {
            let Some(instance) = service.instances.first() else { continue };
            let waited = job.elapsed.as_secs();
            match &instance.last_error {
                Some(error) => tracing::warn!(
                    "service `{}` is not ready after {waited} s: {error}; its log is {}",
                    service.name,
                    instance.log
                ),
                None => tracing::warn!(
                    "service `{}` is not ready after {waited} s: its `open` has not returned; its log is {}",
                    service.name,
                    instance.log
                ),
            }
        }
    }
}
