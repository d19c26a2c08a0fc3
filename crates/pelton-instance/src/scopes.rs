//! Whose requests are whose, where several jobs call one instance.
//!
//! A request's id is unique within its job, and the job is said once a connection. The state knows ids alone; so each pair of job and operator
//! gets an operator number of this instance's own on the way in, and its own one back on the way out. The number is the same wherever it is
//! free, which it always is while there is one job. What another job holds is not told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pelton_core::RequestRun;
use pelton_wire::Frame;

/// Most pairs that are known at a time. Those that nothing is held of are forgotten when it is reached.
const MOST: usize = 1 << 16;

#[derive(Debug, Default)]
pub(crate) struct Scopes {
    /// By number here: the job, and its own number.
    here: BTreeMap<u32, (Arc<str>, u32)>,
    /// By job and its own number: the number here.
    there: BTreeMap<(Arc<str>, u32), u32>,
}

impl Scopes {
    /// Renumbers what a job's caller says. False if there is no room for another operator: `in_use` are the numbers here that something is
    /// held of.
    pub(crate) fn receive(
        &mut self,
        job: &Arc<str>,
        frame: &mut Frame,
        in_use: impl Fn() -> BTreeSet<u32>,
    ) -> bool {
        let (mut last, mut room) = (None, true);
        frame.operators(&mut |operator| {
            let number = match last {
                Some((theirs, ours)) if theirs == *operator => Some(ours),
                _ => self.number(job, *operator, &in_use),
            };
            match number {
                Some(ours) => {
                    last = Some((*operator, ours));
                    *operator = ours;
                }
                None => room = false,
            }
        });
        room
    }

    /// Renumbers what is said to a job's caller, and leaves out what is not its own.
    pub(crate) fn send(&self, job: &str, frame: &mut Frame) {
        let theirs =
            |ours: u32| self.here.get(&ours).filter(|(of, _)| **of == *job).map(|(_, theirs)| *theirs);
        if let Frame::Holds { runs, .. } = frame {
            runs.retain(|run: &RequestRun| theirs(run.first.operator).is_some());
        }
        let mut last = None;
        frame.operators(&mut |operator| {
            let known = match last {
                Some((ours, number)) if ours == *operator => Some(number),
                _ => theirs(*operator),
            };
            if let Some(number) = known {
                last = Some((*operator, number));
                *operator = number;
            }
        });
    }

    fn number(&mut self, job: &Arc<str>, theirs: u32, in_use: impl Fn() -> BTreeSet<u32>) -> Option<u32> {
        let key = (job.clone(), theirs);
        if let Some(ours) = self.there.get(&key) {
            return Some(*ours);
        }
        if self.here.len() >= MOST {
            let in_use = in_use();
            self.here.retain(|ours, _| in_use.contains(ours));
            self.there.retain(|_, ours| in_use.contains(ours));
            if self.here.len() >= MOST {
                return None;
            }
        }
        let mut ours = theirs;
        while self.here.contains_key(&ours) {
            ours = ours.wrapping_add(1);
        }
        self.here.insert(ours, key.clone());
        self.there.insert(key, ours);
        Some(ours)
    }
}

#[cfg(test)]
mod tests {
    use pelton_core::RequestId;

    use super::*;

    fn runs(operators: &[u32]) -> Vec<RequestRun> {
        let id = |operator| RequestId { operator, group: 1, sequence: 2 };
        operators.iter().map(|o| RequestRun::one(id(*o))).collect()
    }

    fn of(frame: &mut Frame) -> Vec<u32> {
        let mut found = Vec::new();
        frame.operators(&mut |o| found.push(*o));
        found
    }

    #[test]
    fn ids_of_one_job_stay_and_those_of_another_are_kept_apart() {
        let mut scopes = Scopes::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let nothing = BTreeSet::new;
        let mut said = |job: &Arc<str>, operators: &[u32]| {
            let mut frame = Frame::Attach { runs: runs(operators) };
            assert!(scopes.receive(job, &mut frame, nothing));
            of(&mut frame)
        };
        assert_eq!(said(&a, &[7, 7, 8]), [7, 7, 8]);
        assert_eq!(said(&b, &[7, 9]), [9, 10]);
        assert_eq!(said(&a, &[9]), [11]);
        assert_eq!(said(&b, &[7]), [9], "the same as before");
        let mut held = Frame::Holds { runs: runs(&[7, 8, 9, 10, 11]), last: true };
        scopes.send("b", &mut held);
        assert_eq!(of(&mut held), [7, 9], "its own, by its own numbers");
        let mut held = Frame::Holds { runs: runs(&[7, 8, 9, 10, 11]), last: true };
        scopes.send("a", &mut held);
        assert_eq!(of(&mut held), [7, 8, 9]);
    }

    #[test]
    fn what_nothing_is_held_of_makes_room() {
        let mut scopes = Scopes::default();
        let job: Arc<str> = "a".into();
        let all: Vec<u32> = (0..MOST as u32).collect();
        assert!(scopes.receive(&job, &mut Frame::Attach { runs: runs(&all) }, BTreeSet::new));
        let other: Arc<str> = "b".into();
        let full = || all.iter().copied().collect();
        assert!(!scopes.receive(&other, &mut Frame::Attach { runs: runs(&[1]) }, full));
        let mut frame = Frame::Attach { runs: runs(&[1, 2]) };
        assert!(scopes.receive(&other, &mut frame, || BTreeSet::from([1])));
        assert_eq!(of(&mut frame), [2, 3], "1 is another's still");
    }
}
