//! `cargo xtask flink`: a standalone cluster of stock Apache Flink on this machine, the jar that brings Pelton into its jobs, and tests of both.

mod cluster;
mod jar;
mod rest;
mod trial;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::places::Places;
use crate::process::step;
use cluster::{Cluster, Scheduler};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Menu,
}

#[derive(Subcommand)]
enum Menu {
    /// Start a cluster: one JobManager, two TaskManagers with four slots each, on free ports of this machine
    Up {
        #[arg(long, value_enum, default_value_t)]
        scheduler: Scheduler,
    },
    /// Run a job on the cluster that `up` started, and wait for its end
    Run {
        /// The jar; else the one of the example project, which is built
        #[arg(long, value_name = "FILE")]
        jar: Option<PathBuf>,
        /// The class with its `main`
        #[arg(long, value_name = "NAME", default_value = "example.Shouting")]
        class: String,
        /// For its `main`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        rest: Vec<String>,
    },
    /// End the cluster that `up` started, and what its jobs left
    Down,
    /// Build the jar and say where it is
    Jar,
    /// What `cargo xtask test` runs: jobs on a cluster, and what is killed meanwhile
    Test {
        /// Only the trials whose names have this in them
        filter: Option<String>,
    },
}

pub(crate) fn run(places: &Places, arguments: &Arguments) -> Result<()> {
    if let Menu::Down = arguments.command {
        return down(places);
    }
    if let Some(missing) = missing() {
        bail!("{missing}");
    }
    match &arguments.command {
        Menu::Up { scheduler } => up(places, *scheduler),
        Menu::Run { jar, class, rest } => {
            let cluster = Cluster::there(&folder(places))?
                .context("no cluster runs; start one with `cargo xtask flink up`")?;
            let jar = jar.clone().map_or_else(|| Ok(jar::build(places)?.example), Ok::<_, anyhow::Error>)?;
            let rest_interface = cluster.rest();
            let uploaded = rest_interface.upload(&jar)?;
            let job = rest_interface.run(&uploaded, class, rest, None)?;
            println!("job {job} runs; http://127.0.0.1:{}/#/job/running/{job}/overview", cluster.port());
            rest_interface.ended(&job)?;
            println!("job {job} has finished");
            Ok(())
        }
        Menu::Jar => {
            println!("{}", jar::build(places)?.library.display());
            Ok(())
        }
        Menu::Test { filter } => trial::run(places, filter.as_deref()),
        Menu::Down => Ok(()),
    }
}

/// The trials, as part of all tests; skipped with a line that says so where there is no Java.
pub(crate) fn test(places: &Places) -> Result<()> {
    match missing() {
        Some(missing) => {
            println!("SKIPPED: the tests on Apache Flink: {missing}");
            Ok(())
        }
        None => trial::run(places, None),
    }
}

/// What this machine lacks.
fn missing() -> Option<String> {
    for (program, package) in
        [("java", "openjdk-17-jre-headless"), ("javac", "openjdk-17-jdk-headless"), ("mvn", "maven")]
    {
        let asked =
            Command::new(program).arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !asked.is_ok_and(|status| status.success()) {
            return Some(format!("`{program}` was not found; on Debian and Ubuntu: `apt install {package}`"));
        }
    }
    None
}

/// Of the cluster that `up` starts.
fn folder(places: &Places) -> PathBuf {
    places.cache().join("flink/cluster")
}

fn up(places: &Places, scheduler: Scheduler) -> Result<()> {
    let folder = folder(places);
    if let Some(there) = Cluster::there(&folder)? {
        bail!(
            "a cluster runs already, at http://127.0.0.1:{}; end it with `cargo xtask flink down`",
            there.port()
        );
    }
    let lib = cluster::lib(places)?;
    let cluster = step("starting Flink", || Cluster::start(&lib, &folder, scheduler))?;
    println!("Flink is at http://127.0.0.1:{}; `cargo xtask flink down` ends it", cluster.port());
    cluster.keep()?;
    println!("its logs are in {}", folder.join("log").display());
    Ok(())
}

fn down(places: &Places) -> Result<()> {
    match Cluster::there(&folder(places))? {
        Some(cluster) => {
            cluster.end();
            println!("Flink has ended, and the instances of its jobs");
        }
        None => println!("no cluster runs"),
    }
    Ok(())
}
