//! Trials of Pelton with real processes, as `cargo xtask chaos` and `cargo xtask bench` run them.
//!
//! Instances are this program once more, with the same arguments: whatever declares a service does so before it does anything
//! else.

mod bench;
mod chaos;
mod family;
mod http;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "pelton-trials", about = "Trials of Pelton with real processes")]
struct Menu {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Kill a job and its instances at random moments, let them hang, crawl and be out of reach, and check every row of the output
    Chaos(chaos::Arguments),
    /// The job that `chaos` kills: exits with 0 when it has finished, with 4 when it was stopped and can go on
    ChaosJob(chaos::job::Arguments),
    /// Measure what calls cost, how full batches are, and a real model
    Bench(bench::Arguments),
    /// The job that `bench recovery` kills
    #[command(hide = true)]
    RecoveryJob(bench::recovery::job::Arguments),
    /// The part of `bench wire` with network namespaces, started in one
    #[command(hide = true)]
    WireApart(bench::wire::apart::Apart),
    /// The server that this part calls
    #[command(hide = true)]
    WireApartServer(bench::wire::apart::ApartServer),
    /// What `bench` starts several times: calls the model in a loop
    #[cfg(feature = "model")]
    #[command(hide = true)]
    ModelLoop(bench::model::Loop),
}

fn main() -> ExitCode {
    let ended = match Menu::parse().command {
        Command::Chaos(arguments) => chaos::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::ChaosJob(arguments) => chaos::job::run(&arguments),
        Command::RecoveryJob(arguments) => bench::recovery::job::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Bench(arguments) => bench::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::WireApart(arguments) => bench::wire::apart::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::WireApartServer(arguments) => {
            bench::wire::apart::serve(&arguments).map(|()| ExitCode::SUCCESS)
        }
        #[cfg(feature = "model")]
        Command::ModelLoop(arguments) => bench::model::run_loop(&arguments).map(|()| ExitCode::SUCCESS),
    };
    ended.unwrap_or_else(|e| {
        eprintln!("\nerror: {e:#}");
        ExitCode::FAILURE
    })
}
