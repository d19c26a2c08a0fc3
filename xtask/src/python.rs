//! A Python interpreter, and virtual environments for it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::fetch::hex;
use crate::places::{Places, remove};
use crate::process;

/// What the pinned packages need.
const OLDEST: (u32, u32) = (3, 11);
/// Written last: an environment without it was interrupted.
const COMPLETE: &str = ".complete";

pub(crate) struct Python {
    program: OsString,
    /// As in `3.11.7`.
    version: String,
}

impl Python {
    /// `python3`, or what the environment variable `PYTHON` names.
    pub(crate) fn find() -> Result<Python> {
        let program =
            std::env::var_os("PYTHON").filter(|p| !p.is_empty()).unwrap_or_else(|| "python3".into());
        let shown = program.to_string_lossy().into_owned();
        let next = format!("install Python {}.{} or later, or name one in PYTHON", OLDEST.0, OLDEST.1);
        let asked =
            Command::new(&program).args(["-c", "import platform; print(platform.python_version())"]).output();
        let version = match asked {
            Ok(output) if output.status.success() => {
                String::from_utf8_lossy(&output.stdout).trim().to_owned()
            }
            Ok(output) => {
                bail!("`{shown}` does not run: {}; {next}", String::from_utf8_lossy(&output.stderr).trim())
            }
            Err(e) => bail!("`{shown}`: {e}; {next}"),
        };
        if !new_enough(&version) {
            bail!("`{shown}` is Python {version}; {next}");
        }
        for (module, package) in
            [("pip", "python3-pip"), ("venv", "python3-venv"), ("ensurepip", "python3-venv")]
        {
            let found = Command::new(&program).args(["-c", &format!("import {module}")]).output();
            if !found.is_ok_and(|o| o.status.success()) {
                bail!(
                    "`{shown}` has no module {module}; install it (on Debian and Ubuntu: `apt install {package}`)"
                );
            }
        }
        Ok(Python { program, version })
    }

    /// Runs it with this terminal.
    pub(crate) fn run(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        paths: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<()> {
        // What it says is no result of this command.
        process::run(Command::new(&self.program).args(arguments).args(paths).stdout(std::io::stderr()))
    }

    pub(crate) fn program(&self) -> &OsStr {
        &self.program
    }

    /// The environment of [`environment`](Self::environment), if it has been made.
    pub(crate) fn made(&self, places: &Places, name: &str, requirements: &Path) -> Result<Option<Python>> {
        let (_, folder) = self.place(places, name, requirements)?;
        Ok(folder.join(COMPLETE).exists().then(|| self.inside(&folder)))
    }

    /// The key of an environment with these requirements, and its folder.
    fn place(&self, places: &Places, name: &str, requirements: &Path) -> Result<(String, PathBuf)> {
        let wanted = fs::read(requirements).with_context(|| format!("reading {}", requirements.display()))?;
        let key = hex(&Sha256::new()
            .chain_update(&self.version)
            .chain_update([0])
            .chain_update(&wanted)
            .finalize());
        let folder = places.cache().join("python").join(format!("{name}-{}", &key[..12]));
        Ok((key, folder))
    }

    fn inside(&self, folder: &Path) -> Python {
        Python { program: interpreter(folder).into(), version: self.version.clone() }
    }

    /// A virtual environment with these requirements, made unless it is there. What it gives is its interpreter.
    pub(crate) fn environment(&self, places: &Places, name: &str, requirements: &Path) -> Result<Python> {
        let (key, folder) = self.place(places, name, requirements)?;
        let inside = self.inside(&folder);
        if folder.join(COMPLETE).exists() {
            return Ok(inside);
        }
        // It can't be built elsewhere and moved: it holds its own path.
        remove(&folder)?;
        self.run(["-m", "venv"], [&folder])?;
        let pip =
            ["-m", "pip", "install", "--disable-pip-version-check", "--only-binary=:all:", "--requirement"];
        inside.run(pip, [requirements]).with_context(|| {
            format!(
                "pip could not install {}; check the network and pip's settings (`{self} -m pip config list`), then run \
                 the same command again",
                requirements.display()
            )
        })?;
        fs::write(folder.join(COMPLETE), &key)?;
        Ok(inside)
    }
}

impl fmt::Display for Python {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program.to_string_lossy())
    }
}

fn interpreter(environment: &Path) -> PathBuf {
    environment.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" })
}

fn new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|n| n.parse::<u32>().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) >= OLDEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(["3.11.7", "3.12.0rc1", "3.100", "4.0"].into_iter().all(new_enough));
        assert!(!["3.9.9", "2.7.18", "3", ""].into_iter().any(new_enough));
    }
}
