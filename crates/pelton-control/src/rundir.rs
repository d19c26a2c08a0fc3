//! Where the jobs of this machine and user are found: a private folder with a subfolder a job.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pelton_core::endpoint::Address;
use pelton_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// Unix socket paths are at most 107 bytes long on Linux; the rest is for the socket's own name.
const LONGEST: usize = 107 - 48;

/// What stands in a job's folder for those who look for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    pub job: String,
    pub name: String,
    pub pid: u32,
    pub started: u64,
    token: String,
}

/// A running job's folder; removed with this.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
}

/// The folder of this user: `$XDG_RUNTIME_DIR/pelton`, else `pelton-UID` among the temporary files.
pub fn base() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_dir()) {
        Some(dir) => dir.join("pelton"),
        None => PathBuf::from("/tmp").join(format!("pelton-{}", user())),
    }
}

/// Who owns this process's own entry, which is who it runs as.
fn user() -> u32 {
    fs::metadata("/proc/self").map_or(0, |m| m.uid())
}

impl RunDir {
    /// Makes the folder of a job below `base`, which nobody else may read.
    pub fn create(base: &Path, card: &Card) -> Result<RunDir> {
        let failed = |e: std::io::Error| {
            Error::from(e).context(format_args!("making the run folder below {}", base.display()))
        };
        DirBuilder::new().recursive(true).mode(0o700).create(base).map_err(failed)?;
        let metadata = fs::symlink_metadata(base).map_err(failed)?;
        if !metadata.is_dir() || metadata.uid() != user() || metadata.permissions().mode() & 0o077 != 0 {
            return Err(Error::invalid(format!(
                "the run folder {} is not a private folder of this user; remove it, or set XDG_RUNTIME_DIR",
                base.display()
            )));
        }
        let path = base.join(&card.job);
        if path.as_os_str().len() > LONGEST {
            return Err(Error::invalid(format!(
                "the run folder {} has too long a path for sockets (at most {LONGEST} bytes); set XDG_RUNTIME_DIR to a shorter one",
                path.display()
            )));
        }
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let dir = RunDir { path };
        let json = serde_json::to_vec(card).expect("a card is plain data");
        let temporary = dir.path.join("job.tmp");
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed)?;
        file.write_all(&json).map_err(failed)?;
        fs::rename(&temporary, dir.path.join("job.json")).map_err(failed)?;
        Ok(dir)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn remove(&self) {
        let _ = fs::remove_dir_all(&self.path);
    }

    /// Where control listens.
    pub fn control(&self) -> Address {
        control_of(&self.path)
    }

    /// Where an instance listens. Services are told apart by number, which is shorter than their names.
    pub fn instance(&self, service: usize, number: u32, incarnation: u32) -> Address {
        Address::Unix(self.path.join(format!("{service}-{number}-{incarnation}.sock")))
    }
}

fn control_of(path: &Path) -> Address {
    Address::Unix(path.join("control.sock"))
}

impl Drop for RunDir {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Card {
    pub fn new(job: String, name: String, started: u64, token: String) -> Self {
        Card { job, name, pid: std::process::id(), started, token }
    }

    pub fn token(&self) -> &str {
        &self.token
    }
}

/// A job found in the run folder.
pub struct Found {
    pub card: Card,
    pub control: Address,
    pub path: PathBuf,
}

/// The jobs of this user, by start. Folders of jobs whose process is gone are removed on the way: a process that was killed could not.
pub fn jobs(base: &Path) -> Result<Vec<Found>> {
    let entries = match fs::read_dir(base) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::from(e).context(format_args!("reading {}", base.display()))),
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(json) = fs::read(path.join("job.json")) else { continue };
        let Ok(card) = serde_json::from_slice::<Card>(&json) else { continue };
        if Path::new("/proc").join(card.pid.to_string()).exists() {
            found.push(Found { control: control_of(&path), card, path });
        } else {
            let _ = fs::remove_dir_all(&path);
        }
    }
    found.sort_by_key(|f| f.card.started);
    Ok(found)
}
