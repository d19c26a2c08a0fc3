//! A small disk of the trial's own that can be full: a file system in memory, in a name space of mounts that ends with the trial.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What it holds: a trial's output, staged and visible, and two checkpoints, many times.
const MIB: u64 = 256;
const BALLAST: &str = "ballast";

/// What an error says that has no other cause.
pub(super) const FULL: &str = "No space left on device";

pub(super) struct Disk(PathBuf);

/// Starts this program again, as one that may mount. Returns only if that cannot be.
pub(super) fn begin_again(flag: &str) -> Result<()> {
    let arguments = std::env::args_os().skip(1).chain([OsString::from(flag)]);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--"]).arg(std::env::current_exe()?);
    Err(command.args(arguments).exec()).context(
        "a disk that can be full needs `unshare` of util-linux and user name spaces (kernel.unprivileged_userns_clone); run the trial without --full-disk",
    )
}

impl Disk {
    /// Mounts one on a new folder of this name.
    pub(super) fn mount(folder: PathBuf) -> Result<Disk> {
        fs::create_dir(&folder)?;
        let options = format!("size={MIB}m,mode=700");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&folder))?;
        Ok(Disk(folder))
    }

    /// Leaves no room on it.
    pub(super) fn fill(&self) -> Result<()> {
        let mut ballast = File::create(self.0.join(BALLAST))?;
        let block = vec![0u8; 1 << 20];
        // In smaller and smaller pieces; whoever else removes something gives room again, as on any disk.
        let mut piece = block.len();
        while piece > 0 {
            match ballast.write(&block[..piece]) {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::StorageFull => piece /= 2,
                Err(e) => return Err(e).context("filling the disk"),
            }
        }
        Ok(())
    }

    pub(super) fn empty(&self) -> Result<()> {
        fs::remove_file(self.0.join(BALLAST)).context("making room on the disk")
    }

    /// What is on it, where it stays.
    pub(super) fn copy(&self, to: &Path) -> Result<()> {
        run(Command::new("cp").arg("-a").arg(&self.0).arg(to))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: whoever has a file open on it is being killed.
        let _ = run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn run(command: &mut Command) -> Result<()> {
    let what = || format!("running {}", command.get_program().display());
    let (what, ended) = (what(), command.output());
    let ended = ended.with_context(|| what.clone())?;
    ensure!(ended.status.success(), "{what}: {}", String::from_utf8_lossy(&ended.stderr).trim());
    Ok(())
}
