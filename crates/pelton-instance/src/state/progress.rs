//! Runs that nobody waits for any more, and runs that do not get on.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pelton_core::Time;

use super::{Action, BatchId, Phase, State};

impl State {
    /// When something is due about what runs.
    pub(super) fn progress_due(&self) -> Option<Time> {
        let limit = self.flow.stall_limit(&self.declaration);
        let due = |r: &super::Running| {
            let stop = r.cancelled_since.is_none().then_some(r.latest).flatten();
            let kill = r.cancelled_since.zip(self.declaration.kill_after).map(|(since, wait)| since + wait);
            [r.suspended.0.is_none().then(|| r.progress + limit), stop, kill].into_iter().flatten().min()
        };
        self.running.values().filter_map(due).min()
    }

    /// Tells runs to stop that are past all of their deadlines, and finds those that do not.
    pub(super) fn look_at_progress(&mut self, now: Time, actions: &mut Vec<Action>) {
        for running in self.running.values_mut() {
            if running.cancelled_since.is_none() && running.latest.is_some_and(|at| now >= at) {
                self.flow.late(running.method, running.since, now);
                running.cancel(now);
            }
        }
        let limit = self.flow.stall_limit(&self.declaration);
        let kill_after = self.declaration.kill_after;
        let stuck = self.running.iter().find_map(|(id, r)| {
            let ignored = r.cancelled_since.zip(kill_after).filter(|(since, wait)| now >= *since + *wait);
            if let Some((since, wait)) = ignored {
                let gone_on = now.since(since);
                return Some((
                    *id,
                    format!("has gone on for {gone_on:?} after it was told to stop (kill_after is {wait:?})"),
                ));
            }
            (r.suspended.0.is_none() && now >= r.progress + limit).then(|| {
                (
                    *id,
                    format!(
                        "has given nothing for {:?} (the limit is {limit:?}; see `stall`)",
                        now.since(r.progress)
                    ),
                )
            })
        });
        if let Some((batch, why)) = stuck
            && !self.given_up
        {
            self.given_up = true;
            let dump = self.dump(batch, &why, now);
            // Whoever waits in the queue goes elsewhere at once.
            self.drain(now, actions);
            actions.push(Action::Abort(dump));
        }
    }

    /// What there is to know of an instance that does not get on.
    fn dump(&self, batch: BatchId, why: &str, now: Time) -> String {
        const MOST: usize = 20;
        let mut text = format!("batch {batch} {why}\n");
        let _ = writeln!(
            text,
            "state {:?}: {} rows queued, {} running; {} callers; {} batches run, {} rows",
            phase(&self.phase),
            self.queue.rows(),
            self.running_rows,
            self.connections.len(),
            self.batches,
            self.executed
        );
        for (id, r) in &self.running {
            let method = &self.methods[usize::from(r.method)].name;
            let ids: Vec<String> = r.items.iter().take(MOST).map(|item| item.id.to_string()).collect();
            let more = r.items.len().saturating_sub(MOST);
            let _ = writeln!(
                text,
                "batch {id}: method `{method}`, {} rows, weight {:.1}, runs for {:?}, nothing for {:?}{}; requests {}{}",
                r.items.len(),
                r.weight,
                now.since(r.since),
                now.since(r.progress),
                if r.cancelled.load(Ordering::Relaxed) { ", told to stop" } else { "" },
                ids.join(" "),
                if more > 0 { format!(" and {more} more") } else { String::new() }
            );
        }
        text
    }

    /// How long the longest run goes on without any progress.
    pub(super) fn standstill(&self, now: Time) -> Duration {
        let working = self.running.values().filter(|r| r.suspended.0.is_none());
        working.map(|r| now.since(r.progress)).max().unwrap_or_default()
    }
}

fn phase(phase: &Phase) -> &'static str {
    match phase {
        Phase::Opening => "opening",
        Phase::Ready => "ready",
        Phase::Draining => "draining",
        Phase::Failed { .. } => "failed",
    }
}
