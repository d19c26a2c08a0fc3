//! When a checkpoint begins, is complete or is given up. Pure: the caller tells and writes.
//!
//! One at a time. A subtask that has finished counts as aligned, and what it held at its end stands in every later
//! checkpoint. Where all of a subtask's upstream finished before a barrier, nobody would bring it the barrier: it is
//! told directly.

use std::time::Duration;

use pelton_core::Time;

use crate::sink::Staged;
use crate::subtask::state::State;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) interval: Duration,
    /// At least this much time between the end of one and the begin of the next.
    pub(crate) pause: Duration,
    pub(crate) timeout: Duration,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Tell these subtasks to begin this checkpoint.
    Begin {
        number: u64,
        tell: Vec<usize>,
    },
    /// Tell these, too: what was to bring them the barrier has finished before it came.
    Tell {
        number: u64,
        tell: Vec<usize>,
    },
    Abort {
        number: u64,
    },
    /// All parts are there: write it. [`Coordinator::parts`] has them.
    Write {
        number: u64,
    },
}

struct Member {
    upstream: Vec<usize>,
    /// What it held at its end.
    finished: Option<State>,
    /// Told to begin the current checkpoint, or brought a barrier of it.
    told: bool,
    acked: Option<State>,
    /// Staged output that no complete checkpoint covers, with the number of the first that may.
    staged: Vec<(u64, Vec<Staged>)>,
}

enum Current {
    None,
    Collecting { number: u64, begun: Time },
    Writing { number: u64, begun: Time },
}

pub(crate) struct Coordinator {
    pace: Pace,
    members: Vec<Member>,
    current: Current,
    /// The number of the last one that was begun.
    last: u64,
    next_at: Time,
    asked: bool,
}

impl Coordinator {
    /// `upstream` says for each subtask whose output it takes; `last` is the newest number in use.
    pub(crate) fn new(pace: Pace, upstream: Vec<Vec<usize>>, last: u64, now: Time) -> Self {
        let member =
            |upstream| Member { upstream, finished: None, told: false, acked: None, staged: Vec::new() };
        let members = upstream.into_iter().map(member).collect();
        Coordinator {
            pace,
            members,
            current: Current::None,
            last,
            next_at: now + pace.interval,
            asked: false,
        }
    }

    /// Begin one as soon as possible.
    pub(crate) fn ask(&mut self) {
        self.asked = true;
    }

    pub(crate) fn all_finished(&self) -> bool {
        self.members.iter().all(|m| m.finished.is_some())
    }

    /// When to call [`decide`](Coordinator::decide) again, if nothing else happens before.
    pub(crate) fn next_at(&self) -> Option<Time> {
        match self.current {
            Current::None => Some(self.next_at),
            Current::Collecting { begun, .. } => Some(begun + self.pace.timeout),
            Current::Writing { .. } => None,
        }
    }

    pub(crate) fn decide(&mut self, now: Time) -> Option<Decision> {
        match self.current {
            Current::None if now >= self.next_at || self.asked || self.all_finished() => {
                self.asked = false;
                self.last += 1;
                self.current = Current::Collecting { number: self.last, begun: now };
                for member in &mut self.members {
                    (member.told, member.acked) = (false, None);
                }
                Some(Decision::Begin { number: self.last, tell: self.untold() })
            }
            Current::Collecting { number, begun } => {
                if self.members.iter().all(|m| m.acked.is_some() || m.finished.is_some()) {
                    self.current = Current::Writing { number, begun };
                    return Some(Decision::Write { number });
                }
                if now >= begun + self.pace.timeout {
                    self.current = Current::None;
                    self.next_at = now + self.pace.pause.max(self.pace.interval);
                    return Some(Decision::Abort { number });
                }
                // Somebody may have finished in the meantime.
                let tell = self.untold();
                (!tell.is_empty()).then_some(Decision::Tell { number, tell })
            }
            Current::None | Current::Writing { .. } => None,
        }
    }

    /// Those to whom no barrier comes: sources, and those whose upstream all finished without passing it on.
    fn untold(&mut self) -> Vec<usize> {
        let silent = |m: &Member| m.finished.is_some() && m.acked.is_none();
        let of = |at: usize, members: &[Member]| {
            let m = &members[at];
            !m.told && !silent(m) && m.acked.is_none() && m.upstream.iter().all(|u| silent(&members[*u]))
        };
        let found: Vec<usize> = (0..self.members.len()).filter(|at| of(*at, &self.members)).collect();
        found.iter().for_each(|at| self.members[*at].told = true);
        found
    }

    pub(crate) fn acked(&mut self, subtask: usize, number: u64, mut state: State) {
        let member = &mut self.members[subtask];
        // Staged output stays staged when its checkpoint was aborted: the next one covers it.
        let staged = std::mem::take(&mut state.staged);
        if !staged.is_empty() {
            member.staged.push((number, staged));
        }
        if matches!(self.current, Current::Collecting { number: current, .. } if current == number) {
            member.acked = Some(state);
        }
    }

    pub(crate) fn finished(&mut self, subtask: usize, mut state: State) {
        let covered_by = match self.current {
            Current::Collecting { number, .. } if self.members[subtask].acked.is_none() => number,
            _ => self.last + 1,
        };
        let member = &mut self.members[subtask];
        let staged = std::mem::take(&mut state.staged);
        if !staged.is_empty() {
            member.staged.push((covered_by, staged));
        }
        member.finished = Some(state);
    }

    /// The parts of the checkpoint that is to be written, by subtask, and whether it covers the end of all of them.
    pub(crate) fn parts(&mut self) -> (Vec<State>, bool) {
        let number = self.last;
        let is_final = self.members.iter().all(|m| m.finished.is_some() && m.acked.is_none());
        let part = |m: &mut Member| {
            let mut state = m.acked.take().or_else(|| m.finished.clone()).unwrap_or_default();
            state.staged =
                m.staged.iter().filter(|(n, _)| *n <= number).flat_map(|(_, s)| s.clone()).collect();
            state
        };
        (self.members.iter_mut().map(part).collect(), is_final)
    }

    /// The checkpoint is durable and its outputs are visible; says how long it took from its begin.
    pub(crate) fn written(&mut self, now: Time) -> Duration {
        let Current::Writing { number, begun } = self.current else {
            return Duration::ZERO;
        };
        for member in &mut self.members {
            member.staged.retain(|(n, _)| *n > number);
        }
        self.current = Current::None;
        self.next_at = (begun + self.pace.interval).max(now + self.pace.pause);
        now.since(begun)
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.current, Current::None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_origin(Duration::from_secs(seconds))
    }

    /// Two sources, a call that takes both, a sink.
    fn coordinator() -> Coordinator {
        let seconds = Duration::from_secs;
        let pace = Pace { interval: seconds(5), pause: seconds(2), timeout: seconds(60) };
        Coordinator::new(pace, vec![vec![], vec![], vec![0, 1], vec![2]], 10, at(0))
    }

    fn staged(name: &str) -> State {
        State { staged: vec![Staged(name.into())], ..State::default() }
    }

    fn names(parts: &[State]) -> Vec<&str> {
        parts.iter().flat_map(|p| &p.staged).map(|s| s.0.as_str().unwrap()).collect()
    }

    #[test]
    fn one_at_a_time_with_an_interval_and_a_pause() {
        let mut c = coordinator();
        assert_eq!(c.decide(at(4)), None);
        assert_eq!(c.decide(at(5)), Some(Decision::Begin { number: 11, tell: vec![0, 1] }));
        (0..3).for_each(|s| c.acked(s, 11, State::default()));
        assert_eq!(c.decide(at(20)), None, "one is missing, and there is only one at a time");
        c.acked(3, 11, staged("a"));
        assert_eq!(c.decide(at(20)), Some(Decision::Write { number: 11 }));
        let (parts, is_final) = c.parts();
        assert_eq!((names(&parts), is_final), (vec!["a"], false));
        assert_eq!(c.written(at(21)), Duration::from_secs(16));
        assert_eq!((c.decide(at(22)), c.next_at()), (None, Some(at(23))), "the pause");
        assert!(matches!(c.decide(at(23)), Some(Decision::Begin { number: 12, .. })));
    }

    #[test]
    fn what_an_aborted_one_had_staged_goes_into_the_next() {
        let mut c = coordinator();
        c.decide(at(5));
        c.acked(3, 11, staged("a"));
        assert_eq!(c.decide(at(65)), Some(Decision::Abort { number: 11 }));
        c.acked(2, 11, State::default());
        assert!(matches!(c.decide(at(70)), Some(Decision::Begin { number: 12, .. })));
        (0..3).for_each(|s| c.acked(s, 12, State::default()));
        c.acked(3, 12, staged("b"));
        assert_eq!(c.decide(at(70)), Some(Decision::Write { number: 12 }));
        assert_eq!(names(&c.parts().0), ["a", "b"]);
        c.written(at(71));
        assert!(c.members.iter().all(|m| m.staged.is_empty()), "once it is visible, it is forgotten");
    }

    #[test]
    fn those_behind_finished_ones_are_told_directly_and_the_last_covers_the_end() {
        let mut c = coordinator();
        c.finished(0, State { done: vec![(1, "v".to_owned())], ..State::default() });
        assert_eq!(c.decide(at(5)), Some(Decision::Begin { number: 11, tell: vec![1] }));
        // The second source ends before the barrier reached it.
        c.finished(1, State::default());
        assert_eq!(c.decide(at(5)), Some(Decision::Tell { number: 11, tell: vec![2] }));
        c.acked(2, 11, State::default());
        c.acked(3, 11, staged("a"));
        // What ends after its part was given belongs to the next.
        c.finished(2, State::default());
        c.finished(3, staged("b"));
        assert_eq!(c.decide(at(6)), Some(Decision::Write { number: 11 }));
        let (parts, is_final) = c.parts();
        assert_eq!((names(&parts), is_final), (vec!["a"], false));
        assert_eq!(parts[0].done.len(), 1, "the state of a finished one stands in every later checkpoint");
        c.written(at(6));
        assert_eq!(
            c.decide(at(6)),
            Some(Decision::Begin { number: 12, tell: vec![] }),
            "at once: all have finished"
        );
        assert_eq!(c.decide(at(6)), Some(Decision::Write { number: 12 }));
        let (parts, is_final) = c.parts();
        assert_eq!((names(&parts), is_final, parts[0].done.len()), (vec!["b"], true, 1));
    }
}
