//! What instances say they hold, as runs of ids: as small as it was said, however many requests a run claims.

use std::collections::BTreeMap;

use pelton_core::{RequestId, RequestRun};

use crate::peer::PeerKey;

/// Most runs that are remembered. What is claimed beyond it is not known of here; it runs again if it is asked for.
const MOST_RUNS: usize = 1 << 20;

/// Which instance holds which request. The last to claim one has it.
#[derive(Default)]
pub(crate) struct Claims {
    /// By their first id. No two overlap.
    runs: BTreeMap<RequestId, (u32, PeerKey)>,
}

impl Claims {
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.runs.clear();
    }

    /// This instance holds these.
    pub(crate) fn claim(&mut self, run: RequestRun, peer: PeerKey) {
        self.cut(run);
        if self.runs.len() < MOST_RUNS {
            self.runs.insert(run.first, (run.count, peer));
        }
    }

    /// Takes a request out. Returns who holds it.
    pub(crate) fn remove(&mut self, id: RequestId) -> Option<PeerKey> {
        self.cut(RequestRun::one(id))
    }

    /// Forgets what this instance holds.
    pub(crate) fn forget(&mut self, peer: PeerKey) {
        self.runs.retain(|_, (_, at)| *at != peer);
    }

    /// Takes a run of requests out. Returns one who held any of them.
    fn cut(&mut self, run: RequestRun) -> Option<PeerKey> {
        let end = run.first.sequence + u64::from(run.count);
        let last = RequestId { sequence: end - 1, ..run.first };
        let mut holder = None;
        while let Some((&first, &(count, peer))) = self.runs.range(..=last).next_back() {
            let stop = first.sequence + u64::from(count);
            let same = (first.operator, first.group) == (run.first.operator, run.first.group);
            if !same || stop <= run.first.sequence {
                break;
            }
            self.runs.remove(&first);
            holder = Some(peer);
            // What lies before and behind stays.
            if stop > end {
                self.runs.insert(RequestId { sequence: end, ..first }, ((stop - end) as u32, peer));
            }
            if first.sequence < run.first.sequence {
                self.runs.insert(first, ((run.first.sequence - first.sequence) as u32, peer));
            }
        }
        holder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(sequence: u64) -> RequestId {
        RequestId { operator: 1, group: 1, sequence }
    }

    /// What is left, as `FIRST+COUNT@PEER`, after claims and removals, `3+4@1` and `-5`.
    fn check(script: &str, left: &str) {
        let mut claims = Claims::default();
        for word in script.split_whitespace() {
            match word.strip_prefix('-') {
                Some(sequence) => {
                    claims.remove(id(sequence.parse().unwrap()));
                }
                None => {
                    let (run, peer) = word.split_once('@').unwrap();
                    let (first, count) = run.split_once('+').unwrap();
                    let run = RequestRun { first: id(first.parse().unwrap()), count: count.parse().unwrap() };
                    claims.claim(run, peer.parse().unwrap());
                }
            }
        }
        let shown = claims.runs.iter().map(|(id, (count, peer))| format!("{}+{count}@{peer}", id.sequence));
        assert_eq!(shown.collect::<Vec<_>>().join(" "), left, "{script}");
    }

    #[test]
    fn the_last_to_claim_a_request_has_it() {
        check("3+4@1", "3+4@1");
        check("3+4@1 -5", "3+2@1 6+1@1");
        check("3+4@1 -3 -6 -9 -2", "4+2@1");
        check("3+4@1 4+2@2", "3+1@1 4+2@2 6+1@1");
        check("0+2@1 2+2@1 4+2@1 1+4@2", "0+1@1 1+4@2 5+1@1");
        check("5+1@1 0+9@2", "0+9@2");
        check("0+1048576@1 -7", "0+7@1 8+1048568@1");
    }

    #[test]
    fn claims_of_other_groups_and_instances_stay() {
        let mut claims = Claims::default();
        let other = RequestId { group: 2, ..id(0) };
        claims.claim(RequestRun { first: id(0), count: 9 }, 1);
        claims.claim(RequestRun { first: other, count: 9 }, 2);
        assert_eq!((claims.remove(RequestId { group: 0, ..id(3) }), claims.remove(id(3))), (None, Some(1)));
        claims.forget(1);
        assert_eq!((claims.remove(id(4)), claims.remove(other)), (None, Some(2)));
    }
}
