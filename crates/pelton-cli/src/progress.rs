//! The live line while a job runs.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use pelton::Snapshot;

/// Where nobody watches a live line, a plain one is written this often.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

pub(crate) struct Line {
    bar: Option<ProgressBar>,
    /// What the rows that are written are called; also the name of the sink.
    rows: &'static str,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Rows written at the last look and when, for the rate.
    samples: Vec<(Duration, u64)>,
    plain_at: Duration,
}

impl Line {
    pub(crate) fn new(rows: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("the template is right"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Line { bar, rows, state: RefCell::default() }
    }

    pub(crate) fn show(&self, snapshot: &Snapshot) {
        let mut state = self.state.borrow_mut();
        let written = snapshot.progress.nodes.iter().find(|n| n.name == self.rows).map_or(0, |n| n.rows_in);
        let rate = state.rate(snapshot.elapsed, written);
        let text = describe(snapshot, self.rows, written, rate);
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None if snapshot.elapsed >= state.plain_at + PLAIN_EVERY => {
                state.plain_at = snapshot.elapsed;
                eprintln!("{text}");
            }
            None => {}
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl State {
    /// Rows a second over the last ten seconds.
    fn rate(&mut self, now: Duration, written: u64) -> f64 {
        self.samples.push((now, written));
        self.samples.retain(|(at, _)| now.saturating_sub(*at) <= Duration::from_secs(10));
        let (first, before) = self.samples[0];
        let seconds = now.saturating_sub(first).as_secs_f64();
        if seconds > 0.0 { (written - before) as f64 / seconds } else { 0.0 }
    }
}

fn describe(snapshot: &Snapshot, rows: &str, written: u64, rate: f64) -> String {
    let mut parts = Vec::new();
    if snapshot.stopping {
        parts.push("stopping (Ctrl-C again ends at once)".to_owned());
    }
    if let Some(source) = snapshot.progress.nodes.iter().find(|n| n.splits_total > 0) {
        parts.push(format!("files {}/{}", source.splits_done, source.splits_total));
    }
    parts.push(format!("{rows} {written} ({rate:.1}/s)"));
    for service in &snapshot.services.services {
        parts.push(format!("{} {}/{} ready", service.name, service.ready(), service.wanted));
        if let Some(stats) = snapshot.clients.get(&service.name) {
            parts.push(format!("{} held, {} waiting", stats.held, stats.unended - stats.held));
            if stats.retries > 0 {
                parts.push(format!("{} retries", stats.retries));
            }
        }
        let waiting = service.instances.iter().find(|i| i.pid.is_none());
        if let Some(error) = waiting.and_then(|i| i.last_error.as_ref()) {
            parts.push(format!("restarting: {error}"));
        }
    }
    for service in &snapshot.services.remotes {
        let well = service.endpoints.iter().filter(|e| !e.ejected).count();
        parts.push(format!("{} {well}/{} endpoints", service.name, service.endpoints.len()));
        parts.push(format!("{} sent, {} waiting", service.sent, service.unended - service.sent));
    }
    let errors: u64 = snapshot.progress.nodes.iter().find(|n| n.name == "errors").map_or(0, |n| n.rows_in);
    if errors > 0 {
        parts.push(format!("{errors} errors"));
    }
    parts.push(format!("{}s", snapshot.elapsed.as_secs()));
    parts.join(" | ")
}
