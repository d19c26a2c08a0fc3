//! `cargo xtask setup`: fetches what tests and the demo need, once.

use std::fs::{self, File, TryLockError};

use anyhow::{Context, Result};

use crate::places::Places;
use crate::{digits, model, servers, wheel};

/// Does nothing that is done already. Interrupted at any point, it leaves nothing half-done where others look.
pub(crate) fn run(places: &Places) -> Result<()> {
    let _lock = lock(places)?;
    places.remove_unfinished()?;
    model::install(places)?;
    digits::install(places)?;
    for servers in &servers::ALL {
        servers.install(places)?;
    }
    wheel::install(places)?;
    places.remove_unfinished()
}

/// One set-up at a time; freed when this process ends, however it ends.
fn lock(places: &Places) -> Result<File> {
    let path = places.cache().join("setup.lock");
    fs::create_dir_all(places.cache()).with_context(|| format!("making {}", places.cache().display()))?;
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    let locking = || format!("locking {}", path.display());
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            println!("another set-up is at work in {}; waiting for it ...", places.cache().display());
            file.lock().with_context(locking)?;
        }
        Err(TryLockError::Error(e)) => return Err(e).with_context(locking),
    }
    Ok(file)
}
