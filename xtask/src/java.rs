//! A Java, a Maven, and what is built with them: into `.cache`, Maven's own repository included.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::fetch::hex;
use crate::places::{Places, publish};
use crate::process;

/// What the projects are compiled for.
const OLDEST: u32 = 17;

/// A folder with the `classes` of a Maven project and the `lib` that they need, built unless it is there. The project writes to where the
/// property `output` says.
pub(crate) fn project(places: &Places, name: &str, project: &Path) -> Result<PathBuf> {
    let folder = places.cache().join("java").join(format!("{name}-{}", &key(project)?[..12]));
    if folder.exists() {
        return Ok(folder);
    }
    compiler()?;
    let java = places.cache().join("java");
    fs::create_dir_all(&java).with_context(|| format!("making {}", java.display()))?;
    let unfinished =
        tempfile::tempdir_in(&java).with_context(|| format!("making a folder in {}", java.display()))?;
    let output = unfinished.path().join("output");
    let property = |name: &str, path: &Path| format!("-D{name}={}", path.display());
    let mut maven = Command::new("mvn");
    // Artifacts whose checksums differ are refused, not only complained of.
    maven.args(["--batch-mode", "--quiet", "--strict-checksums", "--file"]).arg(project.join("pom.xml"));
    maven.arg(property("maven.repo.local", &places.cache().join("maven"))).arg(property("output", &output));
    maven.args(["compiler:compile", "dependency:copy-dependencies"]);
    // What it says is no result of this command.
    process::run(maven.stdout(std::io::stderr())).with_context(|| {
        format!(
            "Maven could not build {}; it takes Maven 3.8 or later as `mvn` (on Debian and Ubuntu: `apt install maven`) and, the first time, \
             the network and Maven's settings (`mvn help:effective-settings`); run the same command again then",
            project.display()
        )
    })?;
    publish(&output, &folder)?;
    Ok(folder)
}

/// Changes with any file of it.
fn key(project: &Path) -> Result<String> {
    let mut files = Vec::new();
    let mut folders = vec![project.to_owned()];
    while let Some(folder) = folders.pop() {
        let reading = || format!("reading {}", folder.display());
        for entry in fs::read_dir(&folder).with_context(reading)? {
            let path = entry.with_context(reading)?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    let mut key = Sha256::new();
    for file in files {
        let content = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        key.update(file.strip_prefix(project)?.as_os_str().as_encoded_bytes());
        key.update([0]);
        key.update(Sha256::digest(&content));
    }
    Ok(hex(&key.finalize()))
}

/// Fails unless there is a compiler that is new enough, where Maven looks for it.
fn compiler() -> Result<()> {
    let program = match std::env::var_os("JAVA_HOME").filter(|home| !home.is_empty()) {
        Some(home) => PathBuf::from(home).join("bin/javac"),
        None => "javac".into(),
    };
    let shown = program.display();
    let next = format!(
        "install a Java development kit {OLDEST} or later (on Debian and Ubuntu: `apt install openjdk-{OLDEST}-jdk-headless`), or name one in JAVA_HOME"
    );
    match Command::new(&program).arg("-version").output() {
        Ok(output) => {
            // Old ones say it on standard error.
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned();
            if version(&said).is_none_or(|version| version < OLDEST) {
                bail!("`{shown} -version` says `{said}`; {next}");
            }
            Ok(())
        }
        Err(e) => bail!("`{shown}`: {e}; {next}"),
    }
}

/// As in `javac 17.0.15`; the 8 of `javac 1.8.0_402` reads as 1.
fn version(said: &str) -> Option<u32> {
    let numbers = said.lines().find_map(|line| line.strip_prefix("javac "))?;
    numbers.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_compiler_is_its_first_number() {
        for (said, expected) in [
            ("javac 17.0.15", Some(17)),
            ("javac 21-ea", Some(21)),
            ("javac 1.8.0_402", Some(1)),
            ("Picked up JAVA_TOOL_OPTIONS: -Xmx1g\njavac 24", Some(24)),
            ("not found", None),
        ] {
            assert_eq!(version(said), expected, "{said}");
        }
    }

    #[test]
    fn a_project_is_another_one_after_any_change() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("src")).unwrap();
        let mut keys = Vec::new();
        for (file, content) in
            [("pom.xml", "one"), ("src/Main.java", "one"), ("src/Main.java", "two"), ("pom.xml", "two")]
        {
            fs::write(dir.path().join(file), content).unwrap();
            assert_eq!(key(dir.path()).unwrap(), key(dir.path()).unwrap());
            keys.push(key(dir.path()).unwrap());
        }
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 4);
    }
}
