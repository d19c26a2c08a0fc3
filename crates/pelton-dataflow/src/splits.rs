//! The splits that a source has now, against those that a checkpoint knows. Pure.

use std::collections::BTreeMap;

use pelton_core::{Error, Result};

use crate::batch::{Batch, RowError};
use crate::plan::OnError;
use crate::source::Split;
use crate::subtask::chain::error_rows;
use crate::subtask::state::{OpenSplit, State};

/// What there is to read.
#[derive(Default)]
pub(crate) struct Merged {
    /// Splits that no run has begun, in the source's order.
    pub(crate) fresh: Vec<Split>,
    /// Recorded ones whose content is another now. What was read of them stays, and they are not read again.
    pub(crate) changed: u64,
    /// Splits that were read in part and cannot be read on, with what it is to their rows' error output.
    pub(crate) lost: u64,
    pub(crate) done: u64,
    pub(crate) total: u64,
}

/// Compares; in `parts`, splits that cannot be read on are ended, with an error row where the policy allows that.
pub(crate) fn merge(
    source: &str,
    found: Vec<Split>,
    parts: &mut [State],
    on_error: OnError,
    error_outputs: &[usize],
) -> Result<Merged> {
    let now: BTreeMap<u64, &Split> = found.iter().map(|s| (s.id, s)).collect();
    if now.len() < found.len() {
        return Err(Error::invalid(format!(
            "source `{source}` found two splits with the same id; its uris must differ"
        )));
    }
    let mut merged = Merged::default();
    let mut known: BTreeMap<u64, ()> = BTreeMap::new();
    for part in parts {
        for (id, version) in &part.done {
            known.insert(*id, ());
            merged.done += 1;
            merged.changed += u64::from(now.get(id).is_some_and(|s| s.version != *version));
        }
        for open in &mut part.open {
            known.insert(open.split.id, ());
            let current = now.get(&open.split.id);
            let has_changed = current.is_some_and(|s| s.version != open.split.version);
            merged.changed += u64::from(has_changed);
            if !open.ended && (has_changed || current.is_none()) {
                merged.lost += 1;
                end(source, open, has_changed, on_error, error_outputs)?;
            }
        }
    }
    merged.total = known.len() as u64;
    merged.fresh = found.into_iter().filter(|s| !known.contains_key(&s.id)).collect();
    merged.total += merged.fresh.len() as u64;
    Ok(merged)
}

/// Ends a split that cannot be read on: its position means nothing in other content.
fn end(
    source: &str,
    open: &mut OpenSplit,
    changed: bool,
    on_error: OnError,
    error_outputs: &[usize],
) -> Result<()> {
    let uri = &open.split.uri;
    let what = if changed { "has changed" } else { "has vanished" };
    if on_error == OnError::Fail {
        return Err(Error::storage(format!(
            "source `{source}`: {uri} was read up to position {} and {what} since; put it back as it was, let the source send \
             errors to an error output, or start anew with --fresh",
            open.position
        )));
    }
    let error = Error::storage(format!(
        "it was read up to position {} and {what} since; the rest is missing",
        open.position
    ));
    let rows = error_rows(source, &[(None, RowError { row: uri.clone(), error })])?;
    for output in error_outputs {
        open.unsent.push((*output, Batch { split: open.split.id, rows: rows.clone() }));
    }
    open.ended = true;
    Ok(())
}
