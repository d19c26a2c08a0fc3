//! The command `pelton`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pelton_cli::run(std::env::args_os())
}
