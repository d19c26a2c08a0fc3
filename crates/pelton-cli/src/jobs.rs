//! Which of the jobs on this machine a command is for.

use anyhow::{Result, bail};
use pelton::control::rundir::{self, Found};

/// The job that is meant; an error that says which there are.
pub(crate) fn choose(wanted: Option<&str>) -> Result<Found> {
    let mut jobs = rundir::jobs(&rundir::base())?;
    let list = |jobs: &[Found]| {
        let show = |f: &Found| format!("{} (process {})", f.card.job, f.card.pid);
        jobs.iter().map(show).collect::<Vec<_>>().join(", ")
    };
    if jobs.is_empty() {
        bail!("no jobs run here; see `pelton status`");
    }
    let all = list(&jobs);
    if let Some(wanted) = wanted {
        jobs.retain(|f| f.card.job == wanted || f.card.name == wanted);
    }
    match (jobs.len(), wanted) {
        (1, _) => Ok(jobs.remove(0)),
        (0, _) => bail!("no job `{}` runs here; there are: {all}", wanted.unwrap_or_default()),
        (_, Some(wanted)) => bail!("several jobs are called `{wanted}`: {}; name one by its id", list(&jobs)),
        (_, None) => bail!("several jobs run here: {all}; name one"),
    }
}
