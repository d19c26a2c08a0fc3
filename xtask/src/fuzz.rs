//! `cargo xtask fuzz`: hostile input, guided by what it reaches.
//!
//! libFuzzer around the targets of `pelton-fuzz`. Its instrumentation is a pass of LLVM that the stable compiler has too, so no other toolchain is
//! needed; a C++ compiler is, for libFuzzer itself. `--address` adds the address sanitizer, which only a nightly toolchain has.
//!
//! Only what is attacked is instrumented: what libFuzzer looks at after each input grows with the program, and was most of its time.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::places::Places;
use crate::process::{self, cargo};

const TARGETS: [&str; 7] = ["frame", "body", "handshake", "reader", "client", "instance", "segment"];
/// libFuzzer's builds are for a named platform, so that build scripts and macros are left as they are.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
/// Edges, and where they are: what libFuzzer learns from.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table";
/// What is compared with what, so that it finds numbers that code looks for.
const COMPARISONS: &str = "-Cllvm-args=-sanitizer-coverage-trace-compares";
/// The crates that are attacked, and so instrumented; with comparisons those that read bytes. (Cargo does not see when these change: remove
/// the folder that the fuzzer is built in.)
const ATTACKED: [(&str, bool); 9] = [
    ("arrow_data", false),
    ("arrow_ipc", true),
    ("flatbuffers", true),
    ("pelton_client", false),
    ("pelton_core", false),
    ("pelton_instance", false),
    ("pelton_link", false),
    ("pelton_policy", false),
    ("pelton_wire", true),
];
/// Set where this program stands in for the compiler.
const COMPILES: &str = "PELTON_FUZZ_COMPILES";

#[derive(Args)]
pub(crate) struct Arguments {
    /// Only this one: frame, body, handshake, reader, client, instance, segment
    #[arg(long, value_parser = TARGETS)]
    target: Option<String>,
    /// Inputs for each target; 0: no limit but the time
    #[arg(long, default_value_t = 1_000_000)]
    runs: u64,
    /// Minutes for each target at most; 0: no limit but the runs
    #[arg(long, default_value_t = 0)]
    minutes: u64,
    /// Longest input, in bytes
    #[arg(long, default_value_t = 2048)]
    longest: usize,
    /// Where chance begins; the same seed and corpus give the same inputs
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// With the address sanitizer: needs a nightly toolchain
    #[arg(long)]
    address: bool,
    /// Run this one file, as often as a finding is looked at
    #[arg(long, requires = "target")]
    input: Option<PathBuf>,
    /// Adds what the runs found interesting to the corpus of the repository: as few and as short inputs as reach the same
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(places: &Places, arguments: &Arguments) -> Result<()> {
    let program = build(places, arguments.address)?;
    let targets = TARGETS.iter().filter(|t| arguments.target.as_deref().is_none_or(|only| only == **t));
    let mut findings = Vec::new();
    for target in targets {
        let ended = Fuzzer { places, program: &program, target, arguments }.run()?;
        eprintln!("{target}: {ended}");
        if let Ended::Broke(file) = ended {
            findings.push(file);
        }
    }
    if !findings.is_empty() {
        bail!(
            "{} of the targets broke a law; what to do about a finding stands in CONTRIBUTING.md",
            findings.len()
        );
    }
    Ok(())
}

/// Where this program was started in the compiler's place, it becomes the compiler, with instrumentation for what is attacked. Comes back with
/// an error only.
pub(crate) fn compile() -> Option<Result<()>> {
    env::var_os(COMPILES)?;
    let mut arguments = env::args_os().skip(1);
    let mut compiler = Command::new(arguments.next()?);
    compiler.args(arguments);
    let name = env::args().skip_while(|argument| argument != "--crate-name").nth(1);
    if let Some((_, compares)) = name.and_then(|name| ATTACKED.iter().find(|(crate_, _)| *crate_ == name)) {
        compiler.args(COVERAGE.split_whitespace());
        compiler.args(compares.then_some(COMPARISONS));
    }
    Some(Err(compiler.exec()).context("the compiler could not be started"))
}

/// The instrumented program.
fn build(places: &Places, address: bool) -> Result<PathBuf> {
    let folder = target(places).join(if address { "fuzz-address" } else { "fuzz" });
    let mut flags = "-Cdebug-assertions -Coverflow-checks --cfg fuzzing".to_owned();
    let arguments =
        ["build", "--release", "--package", "pelton-fuzz", "--features", "libfuzzer", "--target", PLATFORM];
    let mut build = match address {
        true => {
            flags += " -Zsanitizer=address";
            let mut build = Command::new("cargo");
            build
                .arg("+nightly")
                .args(arguments)
                .current_dir(&places.root)
                .env_remove("CARGO")
                .env_remove("RUSTC");
            build
        }
        false => cargo(&places.root, arguments),
    };
    let us = env::current_exe().context("this program cannot find itself")?;
    build.env("CARGO_TARGET_DIR", &folder).env("RUSTFLAGS", flags);
    build.env("RUSTC_WRAPPER", us).env(COMPILES, "1");
    process::run(&mut build).context("the fuzzer could not be built; libFuzzer needs a C++ compiler")?;
    Ok(folder.join(PLATFORM).join("release/pelton-fuzz"))
}

/// How the runs of one target ended.
enum Ended {
    /// Its last words.
    Held(String),
    Broke(PathBuf),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Held(words) => write!(f, "held. {words}"),
            Ended::Broke(file) => write!(f, "BROKE A LAW at {}", file.display()),
        }
    }
}

struct Fuzzer<'a> {
    places: &'a Places,
    program: &'a Path,
    target: &'a str,
    arguments: &'a Arguments,
}

impl Fuzzer<'_> {
    fn run(&self) -> Result<Ended> {
        if let Some(input) = &self.arguments.input {
            return self.once(input);
        }
        let (found, findings) = (self.folder("corpus")?, self.folder("findings")?);
        let corpus = self.committed("corpus");
        let mut fuzz = self.command(&findings);
        fuzz.arg(format!("-seed={}", self.arguments.seed))
            .arg(format!("-max_len={}", self.arguments.longest))
            .arg(format!("-runs={}", if self.arguments.runs == 0 { -1 } else { self.arguments.runs as i64 }))
            .arg(format!("-max_total_time={}", 60 * self.arguments.minutes))
            .args(["-print_final_stats=1", "-timeout=20", "-rss_limit_mb=3072", "-entropic=0"])
            .args([&found, &corpus]);
        let regressions = self.committed("regressions");
        if regressions.is_dir() {
            fuzz.arg(regressions);
        }
        let log = findings.with_extension("log");
        eprintln!("{}: runs; its words go to {}", self.target, log.display());
        let words = fs::File::create(&log).with_context(|| format!("{} cannot be written", log.display()))?;
        fuzz.stdout(Stdio::null()).stderr(words);
        let status = fuzz.status().context("the fuzzer could not be started")?;
        let words = fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
        if !status.success() {
            return self.finding(&words);
        }
        if self.arguments.keep {
            self.keep(&found, &corpus)?;
        }
        Ok(Ended::Held(summary(&words)))
    }

    /// One input, with all that is said about it.
    fn once(&self, input: &Path) -> Result<Ended> {
        let findings = self.folder("findings")?;
        let status =
            self.command(&findings).arg(input).status().context("the fuzzer could not be started")?;
        Ok(if status.success() { Ended::Held(String::new()) } else { Ended::Broke(input.to_owned()) })
    }

    fn finding(&self, words: &str) -> Result<Ended> {
        let file =
            words.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, file)| file);
        let Some(file) = file else {
            bail!("the fuzzer of `{}` ended without a finding:\n{}", self.target, tail(words, 20));
        };
        for line in words.lines().skip_while(|l| !l.contains("panicked at") && !l.contains("ERROR:")).take(6)
        {
            eprintln!("    {line}");
        }
        eprintln!("    again: cargo xtask fuzz --target {} --input {file}", self.target);
        Ok(Ended::Broke(file.into()))
    }

    /// As few inputs as reach what is reached, beside those that are in the repository.
    fn keep(&self, found: &Path, corpus: &Path) -> Result<()> {
        let findings = self.folder("findings")?;
        let mut merge = self.command(&findings);
        merge.arg("-merge=1").args([corpus, found]).stdout(Stdio::null()).stderr(Stdio::null());
        process::run(&mut merge).context("the corpus could not be merged")
    }

    fn command(&self, findings: &Path) -> Command {
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(self.program).env("PELTON_FUZZ_TARGET", self.target);
        command.arg(format!("-artifact_prefix={}/", findings.display()));
        command
    }

    /// A folder beside the program, for what is found.
    fn folder(&self, kind: &str) -> Result<PathBuf> {
        let folder = target(self.places).join("fuzz").join(kind).join(self.target);
        fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        Ok(folder)
    }

    fn committed(&self, kind: &str) -> PathBuf {
        self.places.root.join("crates/pelton-fuzz").join(kind).join(self.target)
    }
}

/// Where cargo builds.
fn target(places: &Places) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| places.root.join("target"), PathBuf::from)
}

/// Executions, their rate and what they reached, from libFuzzer's own figures.
fn summary(words: &str) -> String {
    let figure = |name: &str| {
        let line = words.lines().rev().find(|l| l.starts_with(name))?;
        line.split_whitespace().last().map(str::to_owned)
    };
    let runs = figure("stat::number_of_executed_units:").unwrap_or_default();
    let rate = figure("stat::average_exec_per_sec:").unwrap_or_default();
    let memory = figure("stat::peak_rss_mb:").unwrap_or_default();
    let done = words.lines().rev().find(|l| l.contains(" cov: ")).unwrap_or_default();
    let reached: Vec<&str> = done.split_whitespace().skip_while(|w| *w != "cov:").take(6).collect();
    format!("{runs} inputs, {rate} a second, {memory} MB at most; reached {}", reached.join(" "))
}

fn tail(words: &str, n: usize) -> String {
    let lines: Vec<&str> = words.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}
