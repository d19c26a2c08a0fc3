//! The command as a user runs it: a real process, real files, real instances.

#![allow(dead_code, reason = "not every test file needs all of it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use tempfile::TempDir;

/// No single step of a test may take longer.
const LIMIT: Duration = Duration::from_secs(300);

/// A scratch place with a run folder of its own, so that tests see their own jobs only.
pub(crate) struct World {
    dir: TempDir,
}

impl World {
    pub(crate) fn new() -> World {
        let world = World { dir: tempfile::tempdir().expect("a temporary folder") };
        fs::create_dir(world.path("run")).unwrap();
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// `pelton` with these arguments; `{}` in one stands for the scratch place.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let here = self.dir.path().to_str().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pelton"));
        command
            .args(arguments.iter().map(|a| a.replace("{}", here)))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("PELTON_MODEL", model())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().expect("the command starts"))
    }

    /// The same with this on its standard input.
    pub(crate) fn run_with(&self, arguments: &[&str], input: &str) -> Ran {
        let given = fs::File::open(self.write("stdin", input)).unwrap();
        Ran::from(self.command(arguments).stdin(given).output().expect("the command starts"))
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        let child = self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Running { child: Some(child.expect("the command starts")) }
    }

    /// The same, with what it says in a file while it runs.
    pub(crate) fn start_saying(&self, arguments: &[&str], file: &str) -> Running {
        let said = fs::File::create(self.path(file)).unwrap();
        let child = self.command(arguments).stdout(Stdio::null()).stderr(said).spawn();
        Running { child: Some(child.expect("the command starts")) }
    }

    /// What `pelton status` says of the jobs here.
    pub(crate) fn status(&self) -> Vec<serde_json::Value> {
        let ran = self.run(&["status", "--json"]);
        ran.stdout.lines().map(|line| serde_json::from_str(line).expect("status is JSON")).collect()
    }

    /// Waits until the job's instances have executed at least this much together, and returns their processes.
    pub(crate) fn instances_after(&self, executed: u64) -> Vec<u32> {
        wait_for("the instances to have worked", || {
            let jobs = self.status();
            let instances = jobs.first()?["services"][0]["instances"].as_array()?.clone();
            let total: u64 = instances.iter().filter_map(|i| i["executed"].as_u64()).sum();
            let pids: Option<Vec<u32>> =
                instances.iter().map(|i| i["pid"].as_u64().map(|pid| pid as u32)).collect();
            pids.filter(|_| total >= executed)
        })
    }

    /// Some text files, and a scripted embedder that takes its time.
    pub(crate) fn documents(&self, files: usize, paragraphs: usize) {
        for file in 0..files {
            let text: Vec<String> = (0..paragraphs)
                .map(|p| {
                    format!(
                        "Document {file}, paragraph {p}. {}",
                        "Some words that fill the page. ".repeat(12)
                    )
                })
                .collect();
            self.write(&format!("docs/{file:03}.txt"), text.join("\n\n"));
        }
    }

    pub(crate) fn scripted(&self, options: &str) {
        let head = "name = \"embedder\"\nkind = \"scripted\"\ninstances = 2\n[batch]\nrows = 4\n[retry]\nattempts = 30\n[options]\n";
        self.write("embedder.toml", format!("{head}{options}\n"));
    }

    /// How often each (document, chunk) stands in an index.
    pub(crate) fn chunks(&self, index: &str) -> BTreeMap<(String, u32), usize> {
        let mut count = BTreeMap::new();
        for rows in pelton::files::read_parquet(self.path(index), "part").expect("an index") {
            let rows = rows.expect("whole Parquet files");
            let uris = rows.column_by_name("uri").unwrap().as_string::<i32>();
            let chunks = rows.column_by_name("chunk").unwrap().as_primitive::<UInt32Type>();
            for row in 0..rows.num_rows() {
                *count.entry((uris.value(row).to_owned(), chunks.value(row))).or_default() += 1;
            }
        }
        count
    }

    /// The index holds exactly these chunks, each once.
    #[track_caller]
    pub(crate) fn holds(&self, index: &str, expected: &BTreeMap<(String, u32), usize>) {
        let found = self.chunks(index);
        let missing: Vec<_> = expected.keys().filter(|k| !found.contains_key(*k)).collect();
        let wrong: Vec<_> = found.iter().filter(|(k, n)| expected.get(*k) != Some(*n)).collect();
        let errors = self.errors(index);
        assert!(
            missing.is_empty() && wrong.is_empty(),
            "missing: {missing:?}; wrong: {wrong:?}; errors: {errors:?}"
        );
    }

    /// The error rows of an output.
    pub(crate) fn errors(&self, output: &str) -> Vec<serde_json::Value> {
        json_lines(&self.path(output), "errors-")
    }
}

/// The model that `cargo xtask setup` fetches.
pub(crate) fn model() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.cache/models/all-minilm-l6-v2");
    let model = std::env::var_os("PELTON_MODEL").map_or_else(|| PathBuf::from(default), PathBuf::from);
    assert!(
        model.join("tokenizer.json").is_file(),
        "no model in {}; run `cargo xtask setup`",
        model.display()
    );
    model
}

/// The held-out images that `cargo xtask setup` makes.
pub(crate) fn digits() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.cache/digits/images");
    let images = std::env::var_os("PELTON_DIGITS").map_or_else(|| PathBuf::from(default), PathBuf::from);
    assert!(
        images.join("labels.json").is_file(),
        "no images in {}; run `cargo xtask setup`",
        images.display()
    );
    images
}

pub(crate) fn json_lines(folder: &Path, prefix: &str) -> Vec<serde_json::Value> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let ours = |p: &&PathBuf| p.file_name().unwrap().to_str().unwrap().starts_with(prefix);
    let texts = files.iter().filter(ours).map(|p| fs::read_to_string(p).unwrap());
    texts
        .flat_map(|t| t.lines().map(|l| serde_json::from_str(l).expect("whole lines")).collect::<Vec<_>>())
        .collect()
}

/// A command that has ended.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ran {
    #[track_caller]
    pub(crate) fn succeeded(self) -> Ran {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// It failed, with one message that contains all of these.
    #[track_caller]
    pub(crate) fn refused(self, expected: &[&str]) {
        assert_eq!(self.code, Some(1), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        let messages: Vec<&str> = self.stderr.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(messages.len(), 1, "one message, not:\n{}", self.stderr);
        for part in expected {
            assert!(self.stderr.contains(part), "`{part}` is missing in:\n{}", self.stderr);
        }
    }
}

/// A command at work; killed when dropped.
pub(crate) struct Running {
    child: Option<Child>,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    pub(crate) fn wait(mut self) -> Ran {
        Ran::from(self.child.take().expect("it runs").wait_with_output().expect("it ends"))
    }

    /// SIGKILL, and it is gone.
    pub(crate) fn kill(mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.expect("`kill` is there").success(), "process {pid} is not there");
}

pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // What is dead and not reaped (by whoever inherited it) has state Z.
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z') && !rest.is_empty())
}

/// Looks every now and then until there is something, for a bounded time.
#[expect(clippy::disallowed_methods, reason = "real processes live in real time")]
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < LIMIT, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
