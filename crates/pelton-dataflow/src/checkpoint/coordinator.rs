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
    Begin { number: u64, tell: Vec<usize> },
    /// Tell these, too: what was to bring them the barrier has finished before it came.
    Tell { number: u64, tell: Vec<usize> },
    Abort { number: u64 },
    /// All parts are there: write it. [`Coordinator::parts`] has them.
    Write { number: u64 },
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
        let member = |upstream| Member { upstream, finished: None, told: false, acked: None, staged: Vec::new() };
        let members = upstream.into_iter().map(member).collect();
        Coordinator { pace, members, current: Current::None, last, next_at: now + pace.interval, asked: false }
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
            state.staged = m.staged.iter().filter(|(n, _)| *n <= number).flat_map(|(_, s)| s.clone()).collect();
            state
        };
        (self.members.iter_mut().map(part).collect(), is_final)
    }

    /// The checkpoint is durable and its outputs are visible; says how long it took from its begin.
    pub(crate) fn written(&mut self, now: Time) -> Duration {
        let Current::Writing { number, begun } = self.current else { return Duration::ZERO };
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
