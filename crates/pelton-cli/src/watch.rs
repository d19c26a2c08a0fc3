//! `pelton status --watch`: where a second goes, for each service.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use anyhow::Result;
use pelton::Bytes;
use pelton::control::{JobReport, RemoteReport, ServiceReport, query, rundir};
use pelton::env::real::Host;
use pelton::meter::{CallerMeter, Histogram, InstanceMeter, Tally};

/// Looks every `interval`, `times` times or until it is interrupted.
pub(crate) fn run(interval: Duration, times: Option<u64>, json: bool) -> Result<()> {
    let host = Host::new(1, 1)?;
    let mut before: BTreeMap<(String, String), Seen> = BTreeMap::new();
    let clear = std::io::stdout().is_terminal() && !json;
    let mut round = 0;
    // The first look has nothing to compare with: it shows what has been since the start.
    while times.is_none_or(|times| round < times) {
        if round > 0 {
            host.block_on(host.env().sleep(interval));
        }
        round += 1;
        let mut text = String::new();
        let found = rundir::jobs(&rundir::base())?;
        if found.is_empty() {
            text.push_str("no jobs run here\n");
        }
        for job in found {
            let Ok(report) = host.block_on(query(host.env(), &job)) else { continue };
            let now = host.env().now();
            if !json {
                let _ = writeln!(text, "job {}  process {}", report.job, report.pid);
            }
            for service in &report.services {
                let seen = Seen::of(service, now);
                let key = (report.job.clone(), service.name.clone());
                let fresh = before.get(&key).map(|earlier| seen.since(earlier));
                if json {
                    let line = as_json(&report, service, fresh.as_ref().unwrap_or(&seen));
                    let _ = writeln!(text, "{line}");
                } else {
                    show(&mut text, service, fresh.as_ref().unwrap_or(&seen));
                }
                before.insert(key, seen);
            }
            for remote in &report.remotes {
                if json {
                    let line = serde_json::json!({ "job": report.job, "remote": remote });
                    let _ = writeln!(text, "{line}");
                } else {
                    show_remote(&mut text, remote);
                }
            }
        }
        if json && before.is_empty() {
            text.clear();
        }
        if clear {
            // Home, and clear what is below.
            print!("\x1b[H\x1b[J");
        }
        print!("{text}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// What a service's meters said at one moment, or between two.
struct Seen {
    at: pelton::Time,
    /// None: since the start.
    elapsed: Option<Duration>,
    instances: InstanceMeter,
    callers: CallerMeter,
    executed: u64,
}

impl Seen {
    fn of(service: &ServiceReport, at: pelton::Time) -> Seen {
        let mut instances = InstanceMeter::default();
        service.instances.iter().for_each(|i| instances.merge(&i.meter));
        let executed = service.instances.iter().map(|i| i.executed).sum();
        Seen { at, elapsed: None, instances, callers: service.callers.meter.clone(), executed }
    }

    fn since(&self, earlier: &Seen) -> Seen {
        Seen {
            at: self.at,
            elapsed: Some(self.at.since(earlier.at)),
            instances: self.instances.since(&earlier.instances),
            callers: self.callers.since(&earlier.callers),
            // An instance that was started again counts from nothing.
            executed: self.executed.saturating_sub(earlier.executed),
        }
    }

    /// Microseconds that a request spends on its way and in buffers, beside what the instance accounts for.
    fn way(&self) -> f64 {
        let Seen { instances: i, callers: c, .. } = self;
        (c.answer.mean() - i.queue.mean() - i.batch_wait.mean() - i.run.mean()).max(0.0)
    }
}

fn show(text: &mut String, service: &ServiceReport, seen: &Seen) {
    let Seen { instances: i, callers: c, .. } = seen;
    let held: u64 = service.instances.iter().map(|instance| instance.held).sum();
    let _ = write!(text, "\nservice {}  {} of {} ready", service.name, service.ready(), service.wanted);
    match seen.elapsed {
        Some(elapsed) => {
            let seconds = elapsed.as_secs_f64().max(1e-9);
            let _ = write!(
                text,
                "   {:.0} rows/s, {:.1} batches/s of {:.1} rows",
                seen.executed as f64 / seconds,
                i.run.count() as f64 / seconds,
                i.batch_rows.mean()
            );
        }
        None => {
            let _ = write!(
                text,
                "   {} rows since the start, batches of {:.1} rows",
                seen.executed,
                i.batch_rows.mean()
            );
        }
    }
    let _ =
        writeln!(text, "; {} wait or run, {held} of them at instances", service.callers.unended.max(held));

    let parts: [(&str, f64, Option<&Histogram>); 5] = [
        ("waits for a permit", c.permit_wait.mean(), Some(&c.permit_wait)),
        ("waits for the instance", i.queue.mean(), Some(&i.queue)),
        ("waits for its batch to fill", i.batch_wait.mean(), Some(&i.batch_wait)),
        ("runs", i.run.mean(), Some(&i.run)),
        ("is on its way", seen.way(), None),
    ];
    let whole: f64 = parts.iter().map(|(_, mean, _)| mean).sum();
    if whole > 0.0 {
        let _ = writeln!(text, "  a request {:>36}  {:>9}", "mean", "99 %");
        for (what, mean, histogram) in parts {
            let share = mean / whole;
            let p99 = histogram.map_or_else(String::new, |h| time(h.quantile(0.99) as f64));
            let bar = "#".repeat((share * 30.0).round() as usize);
            let _ = writeln!(text, "    {what:<32} {:>9}  {p99:>9}  {bar}", time(mean));
        }
    }
    if let Some(elapsed) = seen.elapsed {
        let ready = service.ready().max(1) as f64;
        let busy = i.run.sum() as f64 / 1e6 / elapsed.as_secs_f64().max(1e-9) / ready;
        let idle = (1.0 - busy).max(0.0);
        if busy <= 1.05 {
            let _ =
                writeln!(text, "  an instance's second: runs {busy:.2} s, has nothing to run {idle:.2} s");
        } else {
            let _ = writeln!(text, "  an instance runs {busy:.1} batches at a time");
        }
    }
    let _ = writeln!(
        text,
        "  a batch holds at most {} rows, {} rows are permitted ahead{}",
        i.batch_limit,
        i.permits,
        if i.memory_belief < 0.999 && i.memory_belief > 0.0 {
            format!("; memory counts as {:.0} % of what was declared", 100.0 * i.memory_belief)
        } else {
            String::new()
        }
    );
    for (what, tally) in [
        ("batches closed because of", &i.closed),
        ("not taken", &i.refused),
        ("failed", &i.failed),
        ("tried again after", &c.retries),
        ("left alone after", &c.ejections),
        ("ended", &c.ended),
        ("counted by the service", &i.counted),
    ] {
        if !tally.is_empty() {
            let _ = writeln!(text, "  {what}: {}", list(tally));
        }
    }
    let l = &i.ledger;
    if !l.is_empty() {
        let _ = writeln!(
            text,
            "  results before their checkpoint: {} on disk now ({}); {} written ({}), {} read back, {} forgotten{}",
            l.on_disk,
            Bytes(l.disk_bytes),
            l.spilled,
            Bytes(l.spilled_bytes),
            l.loaded,
            l.evicted,
            if l.damaged > 0 { format!(", {} of them damaged", l.damaged) } else { String::new() }
        );
    }
    if i.split > 0 {
        let _ = writeln!(text, "  batches run again in halves: {}", i.split);
    }
    for instance in service.instances.iter().filter(|i| i.standstill >= Duration::from_secs(10)) {
        let seconds = instance.standstill.as_secs();
        let _ = writeln!(text, "  {} has run for {seconds} s without giving anything", instance.instance);
    }
}

fn show_remote(text: &mut String, remote: &RemoteReport) {
    let RemoteReport { name, protocol, unended, sent, retries, endpoints, .. } = remote;
    let _ = writeln!(
        text,
        "\nservice {name}, {protocol} by others; {unended} wait or run, {sent} of them sent; tried again {retries}"
    );
    for e in endpoints {
        let _ = writeln!(
            text,
            "    {}: {} answers, {} in flight of a window of {:.1}; {} refusals, {} failures{}",
            e.url,
            e.answers,
            e.in_flight,
            e.window,
            e.refusals,
            e.failures,
            if e.ejected { "; left alone for a while" } else { "" }
        );
    }
}

fn list(tally: &Tally) -> String {
    let each: Vec<String> = tally.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
    each.join(", ")
}

/// Microseconds, for people.
fn time(micros: f64) -> String {
    match micros {
        t if t < 1_000.0 => format!("{t:.0} us"),
        t if t < 1_000_000.0 => format!("{:.1} ms", t / 1e3),
        t => format!("{:.2} s", t / 1e6),
    }
}

fn as_json(report: &JobReport, service: &ServiceReport, seen: &Seen) -> serde_json::Value {
    serde_json::json!({
        "job": report.job,
        "service": service.name,
        "ready": service.ready(),
        "wanted": service.wanted,
        "seconds": seen.elapsed.map(|e| e.as_secs_f64()),
        "rows": seen.executed,
        "instances": seen.instances,
        "callers": seen.callers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        assert_eq!([time(12.0), time(1_500.0), time(2e6)], ["12 us", "1.5 ms", "2.00 s"]);
    }
}
