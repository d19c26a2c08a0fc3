//! What both pipelines have in common: their options, and how one is run and reported.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use pelton::dataflow::job::{End, Summary};
use pelton::declaration::Instances;
use pelton::env::real::Disk;
use pelton::env::storage::{replace, sync_folder};
use pelton::{Bytes, Declaration, ErrorPolicy, Job, Settings};

use crate::progress::Line;

/// The folder within an output that holds its checkpoints and logs.
const STATE: &str = "_pelton";
/// How a job that was stopped and can go on says so: the exit code of "try again later".
const STOPPED: u8 = 75;

#[derive(Args)]
pub(crate) struct Options {
    /// Folder or file to read; may be given several times
    #[arg(long, required = true, value_name = "PATH")]
    pub(crate) input: Vec<PathBuf>,
    /// Folder to write; a run that was interrupted goes on where it was
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Declaration of the service (TOML), in place of the built-in one
    #[arg(long, value_name = "FILE")]
    service: Option<PathBuf>,
    /// How many instances of the service [default: one a core]
    #[arg(long, value_name = "N")]
    instances: Option<u32>,
    /// What to do with a row that cannot be processed
    #[arg(long, value_enum, default_value = "output")]
    pub(crate) on_error: OnError,
    /// Largest file to read
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub(crate) max_file_size: Bytes,
    /// Forget what was done, and write the output anew
    #[arg(long)]
    fresh: bool,
    /// Show what would run, and run nothing
    #[arg(long)]
    explain: bool,
    /// Time from checkpoint to checkpoint
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    checkpoint_interval: Duration,
    /// Start from this checkpoint and not from the newest
    #[arg(long, value_name = "NUMBER", conflicts_with = "fresh")]
    from_checkpoint: Option<u64>,
    /// Begin a new output from this savepoint (see `pelton savepoint`): it gets the rows that come after it
    #[arg(long, value_name = "DIR", conflicts_with = "from_checkpoint")]
    from: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OnError {
    /// Write it to errors-*.jsonl in the output, and go on
    Output,
    /// Fail the job
    Fail,
}

impl Options {
    /// The service's declaration: the built-in one, or the file's; with what the command line says of it.
    pub(crate) fn declaration(&self, built_in: Declaration) -> Result<Declaration> {
        let mut declaration = match &self.service {
            Some(file) => {
                let declaration = Declaration::from_file(file)?;
                if declaration.name != built_in.name {
                    bail!(
                        "{} declares a service `{}`; this pipeline calls `{}`",
                        file.display(),
                        declaration.name,
                        built_in.name
                    );
                }
                declaration
            }
            None => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                built_in.instances(u32::try_from(cores)?)
            }
        };
        if let Some(n) = self.instances {
            declaration.instances = Instances::fixed(n);
        }
        if self.on_error == OnError::Output {
            declaration.on_error = ErrorPolicy::ErrorOutput;
        }
        Ok(declaration)
    }

    /// Whether a model's own default option should be set: the declaration does not come from a file that says its own.
    pub(crate) fn has_own_declaration(&self) -> bool {
        self.service.is_some()
    }

    pub(crate) fn job(&self, name: &str) -> Job {
        let settings = Settings {
            fresh: self.fresh,
            from: self.from.clone(),
            restore_from: self.from_checkpoint,
            checkpoint_interval: self.checkpoint_interval,
            ..Settings::new(self.output.join(STATE))
        };
        Job::with(name, settings)
    }

    /// Runs a job, or explains it. `shape` are the settings that all rows of one output must have been made with.
    pub(crate) fn run(&self, job: Job, rows: &'static str, shape: &[(&str, String)]) -> Result<ExitCode> {
        if self.explain {
            print!("{}", job.explain()?);
            return Ok(ExitCode::SUCCESS);
        }
        crate::log();
        self.prepare_output()?;
        self.check_shape(shape)?;
        let line = Line::new(rows);
        let result = job.run_observed(|snapshot| line.show(snapshot));
        line.finish();
        let summary = result?;
        self.report(&summary, rows);
        Ok(match summary.end {
            End::Stopped => ExitCode::from(STOPPED),
            End::Finished | End::AlreadyFinished => ExitCode::SUCCESS,
        })
    }

    /// An output that somebody else made is not mixed with ours; one that is to be made anew is emptied of what we made.
    fn prepare_output(&self) -> Result<()> {
        let state = self.output.join(STATE);
        let parts = parts(&self.output).with_context(|| format!("reading {}", self.output.display()))?;
        if self.fresh {
            // The state goes first: were it to stay without its parts, a run after a failure here would not write them again.
            match std::fs::remove_dir_all(&state) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("removing {}", state.display()));
                }
                // Durable before its output goes, for the same reason.
                Ok(()) => sync_folder(&Disk, &self.output)?,
                Err(_) => {}
            }
            for part in parts {
                std::fs::remove_file(&part).with_context(|| format!("removing {}", part.display()))?;
            }
        } else if !parts.is_empty() && !state.is_dir() {
            bail!(
                "{} holds {} that no run of this command wrote; name another --output, or write it anew with --fresh",
                self.output.display(),
                parts[0].file_name().unwrap_or_default().display(),
            );
        }
        Ok(())
    }

    /// An output that was begun with other settings is not gone on with.
    fn check_shape(&self, shape: &[(&str, String)]) -> Result<()> {
        let state = self.output.join(STATE);
        let path = state.join("settings.json");
        let now: serde_json::Map<String, serde_json::Value> =
            shape.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())).collect();
        match std::fs::read(&path) {
            Ok(json) => {
                let then: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&json)
                    .with_context(|| format!("{} is damaged", path.display()))?;
                if let Some((name, value)) = now.iter().find(|(name, value)| then.get(*name) != Some(value)) {
                    let begun = then.get(name).and_then(|v| v.as_str()).unwrap_or("nothing");
                    bail!(
                        "{} was begun with {name} {begun}, not {}; give the same again, name another --output, or begin anew with --fresh",
                        self.output.display(),
                        value.as_str().unwrap_or_default(),
                    );
                }
                Ok(())
            }
            // The sinks say in better words why an output cannot be made.
            Err(_) if std::fs::create_dir_all(&state).is_err() => Ok(()),
            Err(_) => {
                let json = serde_json::to_vec_pretty(&now)?;
                // Half a file under this name would be taken for damage.
                Ok(replace(&Disk, &path, &json)?)
            }
        }
    }

    fn report(&self, summary: &Summary, rows: &str) {
        let node = |name: &str| summary.nodes.iter().find(|n| n.name == name);
        let read = summary.nodes.iter().find(|n| n.splits_total > 0);
        let written = node(rows).map_or(0, |n| n.rows_in);
        let errors = node("errors").map_or(0, |n| n.rows_in);
        let elapsed = summary.elapsed;
        let how = match summary.end {
            End::Finished => "finished",
            End::AlreadyFinished => "nothing new to do",
            End::Stopped => "stopped",
        };
        if let Some(checkpoint) = summary.restored_from {
            match &self.from {
                Some(from) => eprintln!("began from savepoint {} (checkpoint {checkpoint})", from.display()),
                None => eprintln!("went on from checkpoint {checkpoint}"),
            }
        }
        let rate = written as f64 / elapsed.as_secs_f64().max(1e-9);
        let files = read.map_or(0, |n| n.splits_done);
        eprintln!(
            "{how} after {}: {files} of {} files, {written} {rows} in this run ({rate:.1}/s), {} checkpoints -> {}",
            humantime::format_duration(Duration::from_millis(elapsed.as_millis() as u64)),
            read.map_or(0, |n| n.splits_total),
            summary.checkpoints,
            self.output.display(),
        );
        if errors > 0 {
            eprintln!("{errors} rows could not be processed: see {}/errors-*.jsonl", self.output.display());
        }
        if summary.changed > 0 {
            eprintln!(
                "{} files have changed since they were read and were not read again; --fresh reads everything anew",
                summary.changed
            );
        }
        if summary.lost > 0 {
            eprintln!("{} files were gone before they were read to their end", summary.lost);
        }
        if summary.end == End::Stopped {
            eprintln!("run the same command again to go on");
        }
    }
}

/// The files in an output that this command would have written.
fn parts(output: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(output) {
        Ok(entries) => entries,
        // Whether it can be made, or is a file, the sinks say in better words.
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(e),
    };
    let mut parts = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ours = name.starts_with("part-") && (name.ends_with(".parquet") || name.ends_with(".jsonl"));
        if ours || (name.starts_with("errors-") && name.ends_with(".jsonl")) {
            parts.push(path);
        }
    }
    parts.sort();
    Ok(parts)
}
