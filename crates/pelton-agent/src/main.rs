//! The agent's program. It is started by the host's library, not by hand.

use std::process::ExitCode;

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PELTON_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_env_filter(filter).init();
    let result = match std::env::args().nth(1).as_deref() {
        None => pelton_agent::detach(),
        Some("run") => pelton_agent::run(std::io::stdin()),
        Some(other) => {
            eprintln!("`{other}` is not known: pelton-agent reads its order from standard input");
            return ExitCode::FAILURE;
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e}");
            ExitCode::FAILURE
        }
    }
}
