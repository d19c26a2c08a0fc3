//! `pelton call`: rows in, answers out, to try a service from a shell.

use std::io::{BufRead, Write, stdin, stdout};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use arrow_array::RecordBatch;
use arrow_json::{LineDelimitedWriter, ReaderBuilder};
use clap::Args;
use pelton::client::{Cardinality, Method, ServiceClient, Target};
use pelton::service::show_columns;

/// Most rows in one call.
const ROWS: usize = 1024;

#[derive(Args)]
pub(crate) struct Arguments {
    /// A service of a job that runs here, as JOB/SERVICE; or a declaration (FILE.toml) with endpoints and access
    service: String,
    /// What to call, with one JSON object a line on standard input; without it, the methods are shown
    method: Option<String>,
    /// How long each row's answer may take
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// How long to wait for a service that is not there
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "10s")]
    patience: Duration,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let target = match arguments.service.rsplit_once('/') {
        _ if arguments.service.ends_with(".toml") => Target::from_file(&arguments.service)?,
        Some((job, service)) => Target::job(job, service),
        None => bail!("`{}` is neither JOB/SERVICE nor FILE.toml", arguments.service),
    };
    let client = ServiceClient::connect_blocking(target.patience(arguments.patience))?;
    let Some(name) = &arguments.method else {
        for method in client.methods() {
            let (input, output) = (show_columns(&method.input), show_columns(&method.output));
            let parts = if method.cardinality == Cardinality::Many { ", in parts" } else { "" };
            println!("{}({input}) -> ({output}){parts}", method.name);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let method = client.method(name)?;
    let method = match arguments.timeout {
        Some(timeout) => method.timeout(timeout),
        None => method,
    };
    answer(&method, stdin().lock(), stdout().lock())?;
    Ok(ExitCode::SUCCESS)
}

/// Calls a method with rows as they come. Answers keep their order; those in parts are given row by row of the input.
fn answer(method: &Method, rows: impl BufRead, answers: impl Write) -> Result<()> {
    let streams = method.spec().cardinality == Cardinality::Many;
    let reader = ReaderBuilder::new(Arc::clone(&method.spec().input))
        .with_strict_mode(true)
        .with_batch_size(if streams { 1 } else { ROWS });
    let columns = show_columns(&method.spec().input);
    let reading = || format!("reading rows; `{}` takes ({columns})", method.spec().name);
    let mut writer = LineDelimitedWriter::new(answers);
    for rows in reader.build(rows)? {
        let rows = rows.with_context(reading)?;
        if streams {
            for part in method.stream(rows)?.blocking() {
                show(&mut writer, &part?.rows)?;
            }
        } else {
            show(&mut writer, &method.call_blocking(rows)?)?;
        }
    }
    writer.finish()?;
    Ok(())
}

fn show(writer: &mut LineDelimitedWriter<impl Write>, rows: &RecordBatch) -> Result<()> {
    writer.write(rows)?;
    writer.get_mut().flush().context("writing answers")
}
