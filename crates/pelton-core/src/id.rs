//! Who is who: jobs, operators, requests, instances.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Identifies one unit of work sent by the data plane, the same after a restore: it is derived from where the row
/// came from (the group: a source split, or a key group) and which call site sends it (the operator), and counts up
/// within the two. The job is said once a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    pub operator: u32,
    pub group: u64,
    pub sequence: u64,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:016x}/{}", self.operator, self.group, self.sequence)
    }
}

/// `count` requests with consecutive sequence numbers: how ids travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestRun {
    pub first: RequestId,
    pub count: u32,
}

impl RequestRun {
    pub fn one(id: RequestId) -> Self {
        RequestRun { first: id, count: 1 }
    }

    pub fn ids(self) -> impl Iterator<Item = RequestId> {
        (0..u64::from(self.count))
            .map(move |i| RequestId { sequence: self.first.sequence.wrapping_add(i), ..self.first })
    }

    /// Packs ids into as few runs as their order allows.
    pub fn pack(ids: impl IntoIterator<Item = RequestId>) -> Vec<RequestRun> {
        let mut runs: Vec<RequestRun> = Vec::new();
        for id in ids {
            match runs.last_mut() {
                Some(run)
                    if run.first.operator == id.operator
                        && run.first.group == id.group
                        && run.first.sequence.checked_add(u64::from(run.count)) == Some(id.sequence)
                        && run.count < u32::MAX =>
                {
                    run.count += 1;
                }
                _ => runs.push(RequestRun::one(id)),
            }
        }
        runs
    }

    /// How many requests some runs hold.
    pub fn total(runs: &[RequestRun]) -> u64 {
        runs.iter().map(|r| u64::from(r.count)).sum()
    }
}

/// One running copy of a service: which of its places (`number`), and the how-manieth process in that place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceId {
    pub service: String,
    pub number: u32,
    pub incarnation: u32,
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}.{}", self.service, self.number, self.incarnation)
    }
}

/// A stable 64-bit name for a text (a document's uri, say): FNV-1a, so that it is the same in every process,
/// version and language.
pub fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_and_unpacking_ids_loses_nothing() {
        let id = |group, sequence| RequestId { operator: 1, group, sequence };
        let ids = vec![id(1, 0), id(1, 1), id(1, 2), id(2, 3), id(2, 4), id(1, 3), id(1, 3)];
        let runs = RequestRun::pack(ids.clone());
        assert_eq!(runs.len(), 4);
        assert_eq!(RequestRun::total(&runs), 7);
        assert_eq!(runs.into_iter().flat_map(RequestRun::ids).collect::<Vec<_>>(), ids);
    }

    #[test]
    fn the_stable_hash_is_fnv_1a() {
        // Reference values: http://www.isthe.com/chongo/tech/comp/fnv/
        assert_eq!(stable_hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(stable_hash("foobar"), 0x8594_4171_f739_67e8);
    }
}
