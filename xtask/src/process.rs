//! Runs a command, says which, and says how long something took.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A cargo of the same toolchain, in the workspace.
pub(crate) fn cargo(root: &Path, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).current_dir(root);
    cargo
}

/// Runs it with this terminal; fails unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", shown(command));
    let status = command.status().map_err(|e| not_started(command, e))?;
    if !status.success() {
        bail!("`{}` failed ({status}); its words are above", shown(command));
    }
    Ok(())
}

/// What it prints.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stderr(Stdio::inherit()).output().map_err(|e| not_started(command, e))?;
    if !output.status.success() {
        bail!("`{}` failed ({}); its words are above", shown(command), output.status);
    }
    Ok(output.stdout)
}

fn not_started(command: &Command, e: std::io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy();
    match e.kind() {
        ErrorKind::NotFound => anyhow::anyhow!("`{program}` was not found; install it, or put it on PATH"),
        _ => anyhow::anyhow!("`{program}` could not be started: {e}"),
    }
}

fn shown(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(name).chain(command.get_args()).map(|w| w.to_string_lossy());
    words
        .map(|w| if w.contains(' ') { format!("{w:?}") } else { w.into_owned() })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Says what is done and, afterwards, how long it took.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("{what} ...");
    let (done, took) = timed(work);
    let done = done.with_context(|| what.to_owned())?;
    eprintln!("{what}: done in {:.1} s", took.as_secs_f64());
    Ok(done)
}

#[expect(clippy::disallowed_methods, reason = "a tool at a developer's terminal, on the machine's own clock")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let done = work();
    (done, begin.elapsed())
}
