//! `pelton savepoint`: a checkpoint of a running job that its user keeps.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use pelton::Command;
use pelton::control::command;
use pelton::control::rundir::{self, Found};
use pelton::dataflow::savepoint::Saved;
use pelton::env::real::Host;

#[derive(Args)]
#[command(
    after_help = "A savepoint needs nothing of the job that it was taken of, and is never removed. All rows up to it are, or \
    will be, in that job's output; `pelton index --from DIR` and `pelton classify --from DIR`, with another --output, give the rest."
)]
pub(crate) struct Arguments {
    /// Name or id of the job, as `pelton status` shows it [default: the one that runs]
    job: Option<String>,
    /// Folder for the savepoint: empty, or made
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Stop the job with this savepoint as its last checkpoint
    #[arg(long)]
    stop: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    crate::log();
    let job = choose(rundir::jobs(&rundir::base())?, arguments.job.as_deref())?;
    // The job works in another folder.
    let folder = std::path::absolute(&arguments.output)
        .with_context(|| format!("--output {}", arguments.output.display()))?;
    let request = serde_json::to_value(Command::Savepoint { folder: folder.clone(), stop: arguments.stop })?;
    let host = Host::new(1, 1)?;
    let saved = host.block_on(command(host.env(), &job, &request))?;
    let Saved { checkpoint, bytes } = serde_json::from_value(saved)?;
    let how = if arguments.stop { ", and stopped it" } else { "" };
    eprintln!(
        "took checkpoint {checkpoint} of job {}{how} ({bytes} bytes) -> {}",
        job.card.job,
        folder.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// The job that is meant; an error that says which there are.
fn choose(mut jobs: Vec<Found>, wanted: Option<&str>) -> Result<Found> {
    let list = |jobs: &[Found]| {
        let show = |f: &Found| format!("{} (process {})", f.card.job, f.card.pid);
        jobs.iter().map(show).collect::<Vec<_>>().join(", ")
    };
    if jobs.is_empty() {
        bail!("no jobs run here; see `pelton status`");
    }
    let all = list(&jobs);
    if let Some(wanted) = wanted {
        jobs.retain(|f| f.card.job == wanted || f.card.name == wanted);
    }
    match (jobs.len(), wanted) {
        (1, _) => Ok(jobs.remove(0)),
        (0, _) => bail!("no job `{}` runs here; there are: {all}", wanted.unwrap_or_default()),
        (_, Some(wanted)) => bail!("several jobs are called `{wanted}`: {}; name one by its id", list(&jobs)),
        (_, None) => bail!("several jobs run here: {all}; name one"),
    }
}
