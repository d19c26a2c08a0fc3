//! Jobs on a real cluster, and what is killed while they run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::cluster::{Cluster, Scheduler, lib};
use super::jar::{self, Jars};
use super::rest::{Rest, wait_for};
use crate::digits;
use crate::places::Places;
use crate::process::{self, step};
use crate::wheel;

/// Until something is there that is on its way.
const SOON: Duration = Duration::from_secs(60);

/// What a trial has: a cluster, what is built, and a folder of its own.
struct Stage<'a> {
    cluster: &'a mut Cluster,
    rest: Rest,
    places: &'a Places,
    jars: &'a Jars,
    /// The example's jar, as the cluster calls it.
    jar: &'a str,
    folder: PathBuf,
}

type Trial = (&'static str, fn(&mut Stage) -> Result<()>);

const TRIALS: [Trial; 8] = [
    ("digits: the same results as on the embedded host", digits_are_the_same),
    ("a service in Python", a_service_in_python_answers),
    ("errors say what was wrong", errors_say_what_was_wrong),
    ("kill -9 of an instance", an_instance_is_killed),
    ("an exception in the job's own code", the_data_plane_fails),
    ("kill -9 of a TaskManager", a_task_manager_is_killed),
    ("stop with a savepoint, and another parallelism", a_job_is_stopped_and_goes_on),
    ("checkpoints while calls take an hour", checkpoints_wait_for_no_call),
];

pub(crate) fn run(places: &Places, filter: Option<&str>) -> Result<()> {
    digits::install(places)?;
    let lib = lib(places)?;
    let jars = jar::build(places)?;
    for scheduler in [Scheduler::Default, Scheduler::Adaptive] {
        let folder = places.cache().join(format!("flink/trials-{scheduler:?}").to_lowercase());
        let mut cluster = step(&format!("starting Flink, {scheduler:?}Scheduler"), || {
            Cluster::start(&lib, &folder, scheduler)
        })?;
        let jar = cluster.rest().upload(&jars.example)?;
        for (number, (name, trial)) in TRIALS.into_iter().enumerate() {
            if filter.is_some_and(|filter| !name.contains(filter)) {
                continue;
            }
            let folder = folder.join(format!("trial-{number}"));
            fs::create_dir_all(&folder)?;
            let rest = cluster.rest();
            let mut stage = Stage { cluster: &mut cluster, rest, places, jars: &jars, jar: &jar, folder };
            step(&format!("on Flink, {scheduler:?}Scheduler: {name}"), || trial(&mut stage))
                .with_context(|| format!("its logs are in {}", cluster.folder().join("log").display()))?;
        }
    }
    Ok(())
}

impl Stage<'_> {
    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    fn output(&self) -> PathBuf {
        self.folder.join("output")
    }

    fn start(&self, class: &str, arguments: &[(&str, &str)], savepoint: Option<&str>) -> Result<String> {
        let output = self.output().display().to_string();
        let all = [("output", output.as_str())];
        let words =
            all.iter().chain(arguments).flat_map(|(name, value)| [format!("--{name}"), (*value).to_owned()]);
        self.rest.run(self.jar, class, &words.collect::<Vec<_>>(), savepoint)
    }

    /// A job of 3,000 rows, 500 a second, whose service takes 20 ms for a batch of up to 8.
    fn shouting(&self, service: &str, more: &[(&str, &str)]) -> Result<String> {
        self.shouting_from(None, service, "latency = '20ms'", more)
    }

    fn shouting_from(
        &self,
        savepoint: Option<&str>,
        service: &str,
        options: &str,
        more: &[(&str, &str)],
    ) -> Result<String> {
        let script = format!(
            "name = 'shout'\ninstances = 2\nkind = 'scripted'\n[batch]\nrows = 8\n[options]\n{options}\n"
        );
        let declaration = self.write("shout.toml", &script)?;
        let program = self.jars.shout.display().to_string();
        let own = [
            ("service", service),
            ("declaration", &declaration),
            ("program", &program),
            ("rows", "3000"),
            ("rate", "500"),
        ];
        // The last of two with one name is what counts.
        self.start("example.Shouting", &[&own, more].concat(), savepoint)
    }

    /// The processes of the instances, when so many are there.
    fn instances(&self, count: usize) -> Result<BTreeMap<String, u32>> {
        wait_for(SOON, || Some(self.cluster.instances()).filter(|all| all.len() == count))
            .context("waiting for the instances")
    }

    /// Until the job has so many checkpoints.
    fn checkpoints(&self, job: &str, count: u64) -> Result<()> {
        let enough = || (self.rest.checkpoints(job).ok()?.0 >= count).then_some(());
        wait_for(SOON, enough).with_context(|| {
            format!("waiting for {count} checkpoints; {}", self.rest.failure(job).unwrap_or_default())
        })
    }

    /// Every row once, with an answer.
    fn all_rows_once(&self, rows: usize) -> Result<()> {
        let lines = lines(&self.output())?;
        let answered =
            lines.iter().filter_map(|line| line.split_once(' ')).filter(|(_, answer)| answer.len() == 16);
        let numbers: BTreeSet<usize> = answered.filter_map(|(number, _)| number.parse().ok()).collect();
        ensure!(lines.len() == rows, "{} lines in the output, of {rows} rows", lines.len());
        ensure!(
            numbers == (0..rows).collect(),
            "rows are missing: only {} of {rows} have an answer",
            numbers.len()
        );
        Ok(())
    }
}

/// What is in the finished files of a folder, as Flink's sink calls them and ours does.
fn lines(folder: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            lines.extend(self::lines(&path)?);
        } else if name.starts_with("part-") {
            lines.extend(fs::read_to_string(&path)?.lines().map(str::to_owned));
        }
    }
    Ok(lines)
}

fn kill(pid: u32) -> Result<()> {
    process::output(Command::new("kill").args(["-9", &pid.to_string()])).map(drop)
}

fn digits_are_the_same(stage: &mut Stage) -> Result<()> {
    let images = stage.places.digits();
    let model = stage.places.root.join("models/digits/digits.onnx");
    let declaration = format!(
        "name = 'classifier'\ninstances = 2\n[batch]\nrows = 64\n[options]\nmodel = '{}'\n",
        model.display()
    );
    let declaration = stage.write("classifier.toml", &declaration)?;
    let program = format!("{} instance", stage.jars.pelton.display());
    let shown = images.display().to_string();
    let job = stage.start(
        "example.Digits",
        &[("declaration", &declaration), ("program", &program), ("images", &shown)],
        None,
    )?;
    stage.rest.ended(&job)?;
    let on_flink: BTreeMap<String, (i64, f32)> = lines(&stage.output())?
        .iter()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            Ok((words[0].to_owned(), (words[1].parse()?, words[2].parse()?)))
        })
        .collect::<Result<_>>()?;

    let embedded = stage.folder.join("embedded");
    let mut classify = Command::new(&stage.jars.pelton);
    classify
        .args(["classify", "--service", &declaration, "--input"])
        .arg(&images)
        .arg("--output")
        .arg(&embedded);
    process::output(classify.current_dir(&stage.folder))?;
    let mut expected = BTreeMap::new();
    for line in lines(&embedded)? {
        let row: serde_json::Value = serde_json::from_str(&line)?;
        let (Some(uri), Some(label)) = (row["uri"].as_str(), row["label"].as_i64()) else { continue };
        let name = uri.rsplit('/').next().unwrap_or(uri).to_owned();
        // As it is written: the shortest text that reads as this number.
        expected.insert(name, (label, row["score"].to_string().parse::<f32>()?));
    }
    ensure!(!expected.is_empty(), "the embedded host gave nothing");
    let same = |name: &String, (label, score): &(i64, f32)| {
        // The last bits of a score depend on which rows share its batch.
        on_flink.get(name).is_some_and(|(l, s)| l == label && (s - score).abs() < 1e-5)
    };
    let wrong = expected.iter().find(|(name, answer)| !same(name, answer));
    if wrong.is_some() || on_flink.len() != expected.len() {
        bail!(
            "{} answers on Flink, {} on the embedded host; the first that differs: {wrong:?}",
            on_flink.len(),
            expected.len()
        );
    }
    wait_for(SOON, || stage.cluster.instances().is_empty().then_some(()))
        .context("the job has ended, and its instances have not")
}

/// The interpreter with the package, as `cargo xtask test -p pelton-python` leaves it, writes the declaration; the job knows only that.
fn a_service_in_python_answers(stage: &mut Stage) -> Result<()> {
    let python = wheel::install(stage.places)?;
    let asked =
        Command::new(python.program()).args(["-c", "import pelton"]).stderr(Stdio::null()).status()?;
    if !asked.success() {
        println!(
            "SKIPPED: the Python package is not installed for the tests; `cargo xtask test -p pelton-python` does it"
        );
        return Ok(());
    }
    let script = "import pyarrow.compute as pc\nimport pelton as pn\n\n\nclass Shout(pn.Service):\n    \
                  @pn.method(input={'text': str}, output={'loud': str}, max_rows=32)\n    def shout(self, batch):\n        \
                  return {'loud': pc.utf8_upper(batch['text'])}\n\n\nprint(Shout(replicas=2).declaration())\n";
    let script = stage.write("shout.py", script)?;
    let declaration = process::output(Command::new(python.program()).arg(script))?;
    let declaration = stage.write("shout.toml", &String::from_utf8(declaration)?)?;
    let own =
        [("service", "python"), ("declaration", declaration.as_str()), ("rows", "1000"), ("rate", "1000")];
    let job = stage.start("example.Shouting", &own, None)?;
    stage.rest.ended(&job)?;
    let answers: BTreeSet<String> = lines(&stage.output())?.into_iter().collect();
    let expected: BTreeSet<String> = (0..1000).map(|n| format!("{n} NUMBER {n}")).collect();
    let wrong = answers.symmetric_difference(&expected).next();
    ensure!(
        wrong.is_none(),
        "{} answers of 1000; the first that is wrong or missing: {wrong:?}",
        answers.len()
    );
    Ok(())
}

/// Of rows in the error output, and of a service that cannot begin, in the job's own exceptions.
fn errors_say_what_was_wrong(stage: &mut Stage) -> Result<()> {
    let job = stage.shouting_from(None, "poisoned", "poison_rate = 0.1", &[("rows", "500")])?;
    stage.rest.ended(&job)?;
    let lines = lines(&stage.output())?;
    let (failed, answered): (Vec<&String>, Vec<&String>) =
        lines.iter().partition(|l| l.contains(" failed: "));
    ensure!(
        failed.len() + answered.len() == 500,
        "{} rows failed and {} did not, of 500",
        failed.len(),
        answered.len()
    );
    ensure!(
        !failed.is_empty() && failed.iter().all(|l| l.contains("scripted to fail")),
        "other errors than were scripted: {failed:?}"
    );
    let job = stage.shouting_from(None, "wrong", "latency = '1 fortnight'", &[])?;
    let said = || stage.rest.failure(&job).ok().filter(|text| text.contains("fortnight"));
    wait_for(SOON, said).context("the job does not say what is wrong with its service")?;
    stage.rest.cancel(&job)?;
    Ok(())
}

fn an_instance_is_killed(stage: &mut Stage) -> Result<()> {
    let job = stage.shouting("killed-instance", &[])?;
    let before = stage.instances(2)?;
    stage.checkpoints(&job, 2)?;
    let (victim, pid) = before.iter().next().context("there are two")?;
    kill(*pid)?;
    let other = || {
        let now = stage.cluster.instances();
        (now.len() == 2 && !now.contains_key(victim)).then_some(now)
    };
    let after = wait_for(SOON, other).context("waiting for another instance")?;
    ensure!(
        after.values().filter(|pid| before.values().any(|p| p == *pid)).count() == 1,
        "the other instance did not live on"
    );
    stage.rest.ended(&job)?;
    for (vertex, attempts) in stage.rest.attempts(&job)? {
        ensure!(attempts == 0, "{vertex} was started again");
    }
    stage.all_rows_once(3000)
}

fn the_data_plane_fails(stage: &mut Stage) -> Result<()> {
    let marker = stage.folder.join("failed").display().to_string();
    let job = stage.shouting("failing-job", &[("fails-at", "1000"), ("fails-once", &marker)])?;
    let before = stage.instances(2)?;
    wait_for(SOON, || Path::new(&marker).exists().then_some(())).context("waiting for the failure")?;
    stage.rest.ended(&job)?;
    ensure!(stage.rest.failure(&job)?.contains("once, as it was told"), "the job did not fail");
    ensure_untouched(stage, &before)?;
    stage.all_rows_once(3000)
}

/// Of the two, the one that the calls run on.
fn a_task_manager_is_killed(stage: &mut Stage) -> Result<()> {
    let job = stage.shouting("killed-task-manager", &[])?;
    let before = stage.instances(2)?;
    stage.checkpoints(&job, 2)?;
    let places = stage.rest.places(&job, "-deliver")?;
    let place = places.first().context("the calls are nowhere")?;
    let number = usize::from(place.starts_with("taskmanager-1"));
    ensure!(place.starts_with(&format!("taskmanager-{number}")), "{place} is no TaskManager of this cluster");
    stage.cluster.kill_task_manager(number);
    stage.cluster.start_task_manager(number)?;
    stage.rest.ended(&job)?;
    let again = stage.rest.attempts(&job)?;
    let calls = again.iter().find(|(vertex, _)| vertex.contains("-deliver"));
    ensure!(calls.is_some_and(|(_, attempts)| *attempts > 0), "the calls were not started again: {again:?}");
    ensure_untouched(stage, &before)?;
    stage.cluster.wait_for_slots()?;
    stage.all_rows_once(3000)
}

fn a_job_is_stopped_and_goes_on(stage: &mut Stage) -> Result<()> {
    let job = stage.shouting("stopped", &[("parallelism", "2")])?;
    let before = stage.instances(2)?;
    stage.checkpoints(&job, 3)?;
    let savepoint = stage.rest.stop(&job, &stage.folder.join("savepoints"))?;
    wait_for(SOON, || (stage.rest.state(&job).ok()? == "FINISHED").then_some(()))
        .context("waiting until the job has stopped")?;
    let rows = lines(&stage.output())?.len();
    ensure!(
        rows > 0 && rows < 3000,
        "{rows} rows were in the output when the job was stopped: it is to be in its midst"
    );
    let job =
        stage.shouting_from(Some(&savepoint), "stopped", "latency = '20ms'", &[("parallelism", "3")])?;
    stage.rest.ended(&job)?;
    ensure_untouched(stage, &before)?;
    stage.all_rows_once(3000)
}

fn checkpoints_wait_for_no_call(stage: &mut Stage) -> Result<()> {
    let job = stage.shouting_from(
        None,
        "endless",
        "latency = '1h'",
        &[("rows", "100000"), ("rate", "100"), ("lease", "3")],
    )?;
    stage.instances(2)?;
    stage.checkpoints(&job, 10)?;
    let (complete, longest) = stage.rest.checkpoints(&job)?;
    println!("{complete} checkpoints while no call ended; the longest took {} ms", longest.as_millis());
    ensure!(
        lines(&stage.output()).unwrap_or_default().is_empty(),
        "a call has ended, which were to take an hour"
    );
    stage.rest.cancel(&job)?;
    // Nobody comes back for them.
    let gone = || stage.cluster.instances().is_empty().then_some(());
    wait_for(SOON, gone).context("the job was cancelled, the lease is over, and its instances are there")
}

/// What has been started of this service in all: nothing but the instances that were there at first.
fn ensure_untouched(stage: &Stage, before: &BTreeMap<String, u32>) -> Result<()> {
    for (instance, pid) in before {
        let (place, incarnation) = instance.rsplit_once('.').context("an instance has a number")?;
        ensure!(incarnation == "1", "{instance} is not the first");
        let log = stage.cluster.folder().join("log").join(format!("{place}.log"));
        let text = fs::read_to_string(&log)?;
        let began = format!("begins as process {pid}");
        let behind = text.split_once(&began).map(|(_, behind)| behind);
        let behind =
            behind.with_context(|| format!("{} does not say that {instance} began", log.display()))?;
        ensure!(!behind.contains("begins as process"), "another {place} was started: {behind}");
    }
    Ok(())
}
