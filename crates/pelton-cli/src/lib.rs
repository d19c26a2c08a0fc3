//! The command `pelton`, for its own program and for that of the Python package.

mod call;
mod certificates;
mod classify;
mod index;
mod instance;
mod jobs;
mod pipeline;
mod progress;
mod savepoint;
mod scale;
mod search;
mod serve;
mod status;
mod watch;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "pelton",
    version,
    about = "Dataflows whose model-inference steps are services inside the job"
)]
#[command(after_help = "The log level is set by PELTON_LOG (error, warn, info, debug).")]
struct Menu {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a searchable index of a folder of documents
    Index(index::Arguments),
    /// Ask an index a question
    Search(search::Arguments),
    /// Recognise handwritten digits in a folder of PNG images
    Classify(classify::Arguments),
    /// Serve instances on their own, for jobs here and on other machines
    Serve(serve::Arguments),
    /// Serve as the instance that this process was started as: for `program` in a declaration, where the program that calls is another
    Instance,
    /// Call a service with rows from standard input, one JSON object a line
    Call(call::Arguments),
    /// Make, or renew, the certificates for TLS between machines
    Certificates(certificates::Arguments),
    /// Keep a checkpoint of a running job in a folder of its own
    Savepoint(savepoint::Arguments),
    /// Give an operator of a running job another number of subtasks
    Scale(scale::Arguments),
    /// Show the jobs, services and instances of this machine
    Status(status::Arguments),
}

/// Runs the command. `arguments` begin with the program's name.
///
/// In a program that was started as an instance of one of its services, serves and does not return: that program is this one once
/// more, with the same arguments.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command = Menu::parse_from(arguments).command;
    let result = match &command {
        Command::Index(arguments) => index::run(arguments),
        Command::Search(arguments) => search::run(arguments),
        Command::Classify(arguments) => classify::run(arguments),
        Command::Serve(arguments) => serve::run(arguments),
        Command::Instance => instance::run(),
        Command::Call(arguments) => call::run(arguments),
        Command::Certificates(arguments) => certificates::run(arguments),
        Command::Savepoint(arguments) => savepoint::run(arguments),
        Command::Scale(arguments) => scale::run(arguments),
        Command::Status(arguments) => status::run(arguments),
    };
    match result {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Logs of this process go to standard error; an instance sets its own up before this is reached.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PELTON_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let ansi = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(ansi).with_env_filter(filter);
    let _ = log.try_init();
}
