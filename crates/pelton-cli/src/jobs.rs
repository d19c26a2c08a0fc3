//! Which of the jobs on this machine a command is for.

use anyhow::{Result, bail};
use pelton::control::rundir::{self, Found};

/// The job that is meant; an error that says which there are.
pub(crate) fn choose(wanted: Option<&str>) -> Result<Found> {
    if let Some(wanted) = wanted {
        return Ok(rundir::find(&rundir::base(), wanted)?);
    }
    let mut jobs = rundir::jobs(&rundir::base())?;
    match jobs.len() {
        1 => Ok(jobs.remove(0)),
        0 => bail!("no jobs run here; see `pelton status`"),
        _ => bail!("several jobs run here: {}; name one", rundir::show(&jobs)),
    }
}
