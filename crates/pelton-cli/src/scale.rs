//! `pelton scale`: another number of subtasks for an operator of a running job.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use pelton::control::command;
use pelton::env::real::Host;
use pelton::{Command, Rescaled};

use crate::jobs;

#[derive(Args)]
#[command(
    after_help = "The job takes a checkpoint at once and goes on from it with the new subtasks; instances notice nothing, and what they run \
    goes on. Operators that run fused with this one get the same number. `pelton index --explain` shows the operators."
)]
pub(crate) struct Arguments {
    /// Name or id of the job, as `pelton status` shows it
    job: String,
    /// Name of the operator
    operator: String,
    /// How many subtasks it shall have
    subtasks: u32,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    crate::log();
    let job = jobs::choose(Some(&arguments.job))?;
    let (operator, parallelism) = (arguments.operator.clone(), arguments.subtasks);
    let request = serde_json::to_value(Command::Scale { operator, parallelism })?;
    let host = Host::new(1, 1)?;
    let answer = host.block_on(command(host.env(), &job, &request))?;
    let Rescaled { operator, from, to, took } = serde_json::from_value(answer)?;
    eprintln!("job {}: `{operator}` has {to} subtasks instead of {from}, after {took:.1?}", job.card.job);
    Ok(ExitCode::SUCCESS)
}
