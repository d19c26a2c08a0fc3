//! The jars: the library with its native parts, and the example project that uses it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::places::{Places, remove};
use crate::process::{self, cargo, step};

pub(crate) struct Jars {
    /// The library, for users' projects.
    pub(crate) library: PathBuf,
    /// A job's jar, with the library in it.
    pub(crate) example: PathBuf,
    /// Programs that serve: the command `pelton`, and the example `shout`.
    pub(crate) pelton: PathBuf,
    pub(crate) shout: PathBuf,
}

/// Builds all of it.
pub(crate) fn build(places: &Places) -> Result<Jars> {
    step("building the jar of Pelton for Flink", || {
        let target = native(places)?;
        let folder = places.cache().join("flink");
        let natives = folder.join("native");
        remove(&natives)?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            other => other,
        };
        let place = natives.join(format!("linux-{architecture}"));
        fs::create_dir_all(&place)?;
        for name in ["libpelton_jvm.so", "pelton-agent"] {
            copy(&target.join(name), &place.join(name))?;
        }
        let output = folder.join("jars");
        let property = |name: &str, path: &Path| format!("-D{name}={}", path.display());
        let mut maven = Command::new("mvn");
        maven
            .args(["--batch-mode", "--quiet", "--strict-checksums", "--file"])
            .arg(places.root.join("jvm/pom.xml"));
        maven.arg(property("maven.repo.local", &places.cache().join("maven")));
        maven.arg(property("output", &output)).arg(property("native", &natives)).arg("package");
        process::run(maven.stdout(std::io::stderr())).context(
            "Maven could not build the jar; it takes Maven 3.8 or later as `mvn` and, the first time, the network; run the same command again then",
        )?;
        Ok(Jars {
            library: output.join("pelton-flink/pelton-flink-0.1.0.jar"),
            example: output.join("example/example-1.jar"),
            pelton: target.join("pelton"),
            shout: target.join("examples/shout"),
        })
    })
}

/// The folder with what cargo built.
fn native(places: &Places) -> Result<PathBuf> {
    let packages = ["pelton-jvm", "pelton-agent", "pelton-cli", "pelton"];
    let mut build = cargo(&places.root, ["build", "--lib", "--bins", "--example", "shout"]);
    packages.iter().for_each(|package| _ = build.args(["--package", package]));
    process::run(&mut build)?;
    let metadata =
        process::output(&mut cargo(&places.root, ["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata)?;
    let target = metadata["target_directory"].as_str().context("cargo names no target folder")?;
    Ok(Path::new(target).join("debug"))
}

/// Without symbols, if there is a tool that takes them out: a jar holds them for nobody.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let stripped = Command::new("strip").args(["--strip-unneeded", "-o"]).arg(to).arg(from).status();
    if !stripped.is_ok_and(|status| status.success()) {
        fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    }
    Ok(())
}
