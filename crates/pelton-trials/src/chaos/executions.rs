//! How many executions a trial took beyond one a row, and what for.

use std::fmt;

use super::counted::Executed;

/// Executions beyond the first of a row.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Beyond {
    /// Of rows that an instance had executed, or was executing, when it died.
    pub(crate) dead: u64,
    /// Of rows that only instances executed which went on, or ended in good order: none of these was necessary.
    pub(crate) live: u64,
}

impl Beyond {
    pub(crate) fn count(executed: &[Executed], rows: u64) -> Beyond {
        let mut beyond = Beyond::default();
        // For each row, how many executions there were, and whether an instance that died made one of them.
        let mut all = vec![(0u64, false); rows as usize];
        for instance in executed {
            for row in &instance.rows {
                let (times, dead) = &mut all[*row as usize];
                *times += 1;
                *dead |= instance.died;
            }
        }
        for (times, dead) in all {
            let again = times.saturating_sub(1);
            *(if dead { &mut beyond.dead } else { &mut beyond.live }) += again;
        }
        beyond
    }

    pub(crate) fn total(&self) -> u64 {
        self.dead + self.live
    }
}

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "of what instances had when they died {}, of what live instances had {}",
            self.dead, self.live
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_execution_is_put_down_to_what_caused_it() {
        let instance = |rows: &[u64], died| Executed { rows: rows.to_vec(), died };
        let executed = [instance(&[0, 1, 2, 1], false), instance(&[2, 3], false), instance(&[3, 4, 4], true)];
        assert_eq!(Beyond::count(&executed, 5), Beyond { dead: 2, live: 2 });
    }
}
