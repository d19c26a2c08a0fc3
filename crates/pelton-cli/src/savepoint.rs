//! `pelton savepoint`: a checkpoint of a running job that its user keeps.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use pelton::Command;
use pelton::control::command;
use pelton::dataflow::savepoint::Saved;
use pelton::env::real::Host;

use crate::jobs;

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
    let job = jobs::choose(arguments.job.as_deref())?;
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
