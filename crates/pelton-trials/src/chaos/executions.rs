//! How many executions a trial took beyond one a row, and what for.

use std::collections::BTreeMap;
use std::fmt;

use super::Blow;

/// Executions beyond the first of a row.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Beyond {
    /// By the same job again: an instance was killed.
    pub(crate) instances: u64,
    /// By a later job, because the one before was killed.
    pub(crate) jobs: u64,
    /// By a later job, because the one before was stopped.
    pub(crate) stops: u64,
}

impl Beyond {
    /// `executed` is what each job's instances did; `ends` are the jobs in their order, with how each ended.
    pub(crate) fn count(
        executed: &BTreeMap<u32, Vec<u64>>,
        ends: &[(u32, Option<Blow>)],
        rows: u64,
    ) -> Beyond {
        let mut beyond = Beyond::default();
        // For each row, how the last job that executed it ended.
        let mut before: Vec<Option<Option<Blow>>> = vec![None; rows as usize];
        for (job, end) in ends {
            let mut mine = executed.get(job).cloned().unwrap_or_default();
            let all = mine.len();
            mine.sort_unstable();
            mine.dedup();
            beyond.instances += (all - mine.len()) as u64;
            for row in mine {
                match before[row as usize].replace(*end) {
                    None => {}
                    Some(Some(Blow::Stop)) => beyond.stops += 1,
                    Some(_) => beyond.jobs += 1,
                }
            }
        }
        beyond
    }

    pub(crate) fn total(&self) -> u64 {
        self.instances + self.jobs + self.stops
    }
}

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "after killed instances {}, after killed jobs {}, after stops {}",
            self.instances, self.jobs, self.stops
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_execution_is_put_down_to_what_caused_it() {
        let executed = [(7, vec![0, 1, 2, 1]), (8, vec![2, 3]), (9, vec![3, 4])].into();
        let ends = [(7, Some(Blow::Job)), (8, Some(Blow::Stop)), (9, None)];
        let beyond = Beyond::count(&executed, &ends, 5);
        assert_eq!(beyond, Beyond { instances: 1, jobs: 1, stops: 1 });
    }
}
