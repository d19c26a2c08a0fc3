//! `pelton status`: the jobs, services and instances of this machine.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use pelton::Bytes;
use pelton::control::{JobReport, query, rundir};
use pelton::env::real::Host;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Print JSON, a line a job (with --watch: a line a service and look)
    #[arg(long)]
    json: bool,
    /// Look again and again, and show where each second goes for each service
    #[arg(long, short)]
    watch: bool,
    /// From look to look
    #[arg(long, default_value = "1s", requires = "watch", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// So many looks; by default until Ctrl-C
    #[arg(long, requires = "watch")]
    times: Option<u64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    crate::log();
    if arguments.watch {
        crate::watch::run(arguments.interval, arguments.times, arguments.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let found = rundir::jobs(&rundir::base())?;
    if found.is_empty() && !arguments.json {
        println!("no jobs run here");
    }
    let host = Host::new(1, 1)?;
    for job in found {
        match host.block_on(query(host.env(), &job)) {
            Ok(report) if arguments.json => println!("{}", serde_json::to_string(&report)?),
            Ok(report) => show(&report),
            // It ended between the look and the question.
            Err(e) => eprintln!("job {} (process {}) does not answer: {e}", job.card.job, job.card.pid),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(report: &JobReport) {
    println!("job {}  process {}, up {}", report.job, report.pid, up(report.started));
    for service in &report.services {
        println!("  service {}  {} of {} ready", service.name, service.ready(), service.wanted);
        for i in &service.instances {
            let pid = i.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            println!(
                "    {:<20} {:<9} process {pid:<8} held {:<6} executed {:<9} batches {:<7} restarts {}",
                i.instance, i.phase, i.held, i.executed, i.batches, i.restarts
            );
            let ledger = &i.meter.ledger;
            if ledger.on_disk > 0 || ledger.evicted > 0 {
                println!(
                    "      results before their checkpoint: {} on disk ({}), {} forgotten",
                    ledger.on_disk,
                    pelton::Bytes(ledger.disk_bytes),
                    ledger.evicted
                );
            }
            if let Some(error) = &i.last_error {
                println!("      last error: {error} (log: {})", i.log);
            }
        }
    }
    for service in &report.remotes {
        println!(
            "  service {}  remote, {}, model {}; {} unended, {} sent, {} retries",
            service.name, service.protocol, service.model, service.unended, service.sent, service.retries
        );
        for e in &service.endpoints {
            let state = if e.ejected { "ejected" } else { "takes calls" };
            println!(
                "    {:<32} {state:<11} window {:<7.1} in flight {:<6} answers {:<9} refusals {:<7} failures {}",
                e.url, e.window, e.in_flight, e.answers, e.refusals, e.failures
            );
        }
    }
    for node in report.progress["nodes"].as_array().into_iter().flatten() {
        let number = |key: &str| node[key].as_u64().unwrap_or(0);
        let name = node["name"].as_str().unwrap_or("?");
        print!(
            "  operator {name:<20} in {:<9} out {:<9} errors {:<6}",
            number("rows_in"),
            number("rows_out"),
            number("errors")
        );
        if number("splits_total") > 0 {
            print!(" splits {}/{}", number("splits_done"), number("splits_total"));
        }
        if number("pending") > 0 {
            print!(" pending {}", number("pending"));
        }
        if number("stored_keys") > 0 {
            print!(" stored {} keys, {}", number("stored_keys"), pelton::Bytes(number("stored_bytes")));
        }
        println!();
    }
    show_recovery(&report.progress);
}

/// The last checkpoint, and what went wrong.
fn show_recovery(progress: &serde_json::Value) {
    if let Some(number) = progress["checkpoint"]["number"].as_u64() {
        let of = |key: &str| progress["checkpoint"][key].as_u64().unwrap_or(0);
        let aborted = progress["aborted"].as_u64().unwrap_or(0);
        let (bytes, new) = (Bytes(of("bytes")), Bytes(of("new")));
        println!(
            "  checkpoint {number}  took {} ms, {bytes}, {new} of it new; {aborted} aborted",
            of("took_ms")
        );
    }
    if let Some(failure) = progress["failure"].as_str() {
        println!("  data plane started again {} times, last for: {failure}", progress["restarts"]);
    }
}

/// How long ago that was, to the second.
#[expect(clippy::disallowed_methods, reason = "shown to a person, decides nothing")]
fn up(started: u64) -> humantime::FormattedDuration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    humantime::format_duration(Duration::from_secs(now.as_secs().saturating_sub(started / 1000)))
}
