//! Pipelines: images in Parquet to labels in Parquet.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::program::{Course, Program};
use super::{LOOP, MAP_BATCHES, Part, SERVICE, System, Trial};
use crate::bench::report::Better;

/// The figure of how many rows a second.
pub(super) const RATE: &str = "a million images: rows/s";
/// Rows that the model gets at a time.
const BATCH: u32 = 1024;

/// A way to do it: who, which script, which of its ways, and which interpreter has it.
struct Way {
    name: String,
    script: &'static str,
    how: Option<&'static str>,
    python: PathBuf,
}

#[derive(Deserialize)]
struct Done {
    rows: f64,
    seconds: f64,
}

impl Trial<'_> {
    pub(super) fn rows(&mut self) -> Result<()> {
        let mut ways = vec![self.way(LOOP, "loop_rows.py", None, None)?];
        ways.push(self.way(MAP_BATCHES, "pelton_rows.py", Some("map_batches"), None)?);
        ways.push(self.way(SERVICE, "pelton_rows.py", Some("service"), None)?);
        for system in self.peers(&[System::Daft, System::Ray]) {
            let script = if system == System::Daft { "daft_rows.py" } else { "ray_rows.py" };
            match self.way(system.name(), script, None, Some(system)) {
                Ok(way) => ways.push(way),
                Err(e) => self.report.missing(system.name(), &format!("{e:#}")),
            }
        }
        if self.wants(Part::Offline) {
            let input = self.input("million", self.effort.rows, 4, false)?;
            // One after another in each round, so that what else the machine does hits all of them.
            for round in 0..self.effort.rounds {
                for way in &ways {
                    match self.classify(way, &input, &format!("{}-{round}", way.script)) {
                        Ok((done, course)) => self.note(way, &done, &course),
                        Err(e) => self.report.missing(&way.name, &format!("{e:#}")),
                    }
                }
            }
            fs::remove_dir_all(&input)?;
        }
        if self.wants(Part::Large) {
            let input = self.input("large", self.effort.large, 1, true)?;
            let bytes = fs::metadata(input.join("part-00.parquet"))?.len() as f64;
            let gigabytes = format!("a file of {:.2} GB", bytes / 1e9);
            for way in ways {
                match self.classify(&way, &input, &format!("{}-large", way.script)) {
                    Ok((done, course)) => {
                        let mut add = |which: &str, unit, better, value| {
                            self.report.add(
                                "large",
                                &format!("{gigabytes}: {which}"),
                                &way.name,
                                unit,
                                better,
                                value,
                            );
                        };
                        add("memory at most", "MB", Better::Less, course.memory / 1e6);
                        add("rows/s", "rows/s", Better::More, done.rows / done.seconds);
                    }
                    Err(e) => self.report.missing(&way.name, &format!("{e:#}")),
                }
            }
            fs::remove_dir_all(&input)?;
        }
        Ok(())
    }

    fn way(
        &self,
        name: &str,
        script: &'static str,
        how: Option<&'static str>,
        system: Option<System>,
    ) -> Result<Way> {
        let python = match system {
            Some(system) => self.python(system)?,
            None => self.pelton()?,
        };
        Ok(Way { name: name.to_owned(), script, how, python: python.to_owned() })
    }

    fn input(&self, name: &str, rows: u64, files: u32, plain: bool) -> Result<PathBuf> {
        let folder = self.scratch.join(name);
        self.make("make_rows.py", |command| {
            command.arg(&folder).args(["--rows", &rows.to_string(), "--files", &files.to_string()]);
            command.args(plain.then_some("--plain"));
        })?;
        Ok(folder)
    }

    fn classify(&self, way: &Way, input: &Path, name: &str) -> Result<(Done, Course)> {
        let env = self.host.env();
        let folder = tempfile::Builder::new().prefix("pelton-rows-").tempdir().context("making a folder")?;
        let output = folder.path().join("output");
        let program = Program::start(env, &way.python, way.script, &self.scratch.join(name), |command| {
            command.arg("--input").arg(input).arg("--output").arg(&output);
            command.arg("--model").arg(&self.model).args(["--batch", &BATCH.to_string()]);
            command.arg("--folder").arg(folder.path());
            command.args(way.how.iter().flat_map(|how| ["--how", how]));
        })?;
        self.host.block_on(program.result(env))
    }

    fn note(&mut self, way: &Way, done: &Done, course: &Course) {
        self.report.others(course.others);
        let mut add = |what: &str, unit, better, value| {
            self.report.add("offline", what, &way.name, unit, better, value);
        };
        add(RATE, "rows/s", Better::More, done.rows / done.seconds);
        let name = RATE.split(':').next().unwrap_or_default();
        add(&format!("{name}: memory at most"), "MB", Better::Less, course.memory / 1e6);
        add(
            &format!("{name}: processor, with the program's start and end"),
            "us a row",
            Better::Less,
            course.processor() / done.rows * 1e6,
        );
    }
}
