//! The instances of a job's service, over restarts of the job. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pelton_core::Time;
use pelton_core::endpoint::{Endpoint, EndpointDelta};
use pelton_core::id::InstanceId;

/// A job that was started again takes over the instances of the run before it, one after another. One that it has not named for so long,
/// it has not taken over.
const CONFIRM: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Known {
    endpoints: BTreeMap<InstanceId, Endpoint>,
    draining: BTreeSet<InstanceId>,
    /// Of an earlier run, and not named by this one: until when that is waited for.
    unconfirmed: BTreeMap<InstanceId, Time>,
}

impl Known {
    /// What a job's control says, as changes of what it said before, over runs of the job.
    pub(crate) fn hear(&mut self, delta: EndpointDelta, now: Time) -> Vec<EndpointDelta> {
        match delta {
            EndpointDelta::Reset(all) => {
                let named: BTreeSet<&InstanceId> = all.iter().map(|e| &e.instance).collect();
                let before = self.endpoints.keys().chain(&self.draining);
                let missing: Vec<InstanceId> = before.filter(|id| !named.contains(id)).cloned().collect();
                for id in missing {
                    self.unconfirmed.entry(id).or_insert(now + CONFIRM);
                }
                all.into_iter().flat_map(|endpoint| self.add(endpoint)).collect()
            }
            EndpointDelta::Add(endpoint) => self.add(endpoint),
            EndpointDelta::Drain(instance) => {
                self.endpoints.remove(&instance);
                self.draining.insert(instance.clone());
                vec![EndpointDelta::Drain(instance)]
            }
            EndpointDelta::Remove(instance) => self.remove(instance),
        }
    }

    fn add(&mut self, endpoint: Endpoint) -> Vec<EndpointDelta> {
        if self.endpoints.get(&endpoint.instance) == Some(&endpoint) {
            self.unconfirmed.remove(&endpoint.instance);
            return Vec::new();
        }
        // In its place, or under its name.
        let of = &endpoint.instance;
        let replaced = |id: &InstanceId| {
            id == of
                || (self.unconfirmed.contains_key(id) && id.service == of.service && id.number == of.number)
        };
        let before = self.endpoints.keys().chain(&self.draining);
        let gone: Vec<InstanceId> = before.filter(|id| replaced(id)).cloned().collect();
        let mut deltas: Vec<EndpointDelta> = gone.into_iter().flat_map(|id| self.remove(id)).collect();
        self.endpoints.insert(endpoint.instance.clone(), endpoint.clone());
        deltas.push(EndpointDelta::Add(endpoint));
        deltas
    }

    fn remove(&mut self, instance: InstanceId) -> Vec<EndpointDelta> {
        self.endpoints.remove(&instance);
        self.draining.remove(&instance);
        self.unconfirmed.remove(&instance);
        vec![EndpointDelta::Remove(instance)]
    }

    /// When [`expire`](Known::expire) has something to do.
    pub(crate) fn due(&self) -> Option<Time> {
        self.unconfirmed.values().min().copied()
    }

    /// Nobody has taken these over.
    pub(crate) fn expire(&mut self, now: Time) -> Vec<EndpointDelta> {
        let late = self.unconfirmed.iter().filter(|(_, until)| **until <= now).map(|(id, _)| id.clone());
        late.collect::<Vec<_>>().into_iter().flat_map(|id| self.remove(id)).collect()
    }

    /// Another job has the name: nothing of this one is there any more.
    pub(crate) fn forget(&mut self) -> Vec<EndpointDelta> {
        let all: Vec<InstanceId> = self.endpoints.keys().chain(&self.draining).cloned().collect();
        all.into_iter().flat_map(|id| self.remove(id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use pelton_core::endpoint::Address;

    use super::*;

    fn at(number: u32, incarnation: u32, path: &str) -> Endpoint {
        let instance = InstanceId { service: "s".into(), number, incarnation };
        Endpoint { instance, address: Address::Unix(PathBuf::from(path)) }
    }

    fn show(deltas: &[EndpointDelta]) -> String {
        let one = |delta: &EndpointDelta| match delta {
            EndpointDelta::Reset(all) => format!("reset {}", all.len()),
            EndpointDelta::Add(e) => format!("add {}", e.instance),
            EndpointDelta::Drain(id) => format!("drain {id}"),
            EndpointDelta::Remove(id) => format!("remove {id}"),
        };
        deltas.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn instances_are_kept_over_a_restart_that_takes_them_over() {
        let mut known = Known::default();
        let (start, later) = (Time::ZERO, Time::ZERO + Duration::from_secs(1));
        let mut hear = |delta, now| show(&known.hear(delta, now));
        assert_eq!(hear(EndpointDelta::Reset(vec![at(0, 1, "/a")]), start), "add s-0.1");
        assert_eq!(hear(EndpointDelta::Add(at(1, 1, "/b")), start), "add s-1.1");
        assert_eq!(hear(EndpointDelta::Add(at(2, 1, "/c")), start), "add s-2.1");
        assert_eq!(hear(EndpointDelta::Drain(at(2, 1, "/c").instance), start), "drain s-2.1");
        // Started again: 0 is taken over, 1 replaced, and nothing said of 2.
        assert_eq!(hear(EndpointDelta::Reset(vec![]), later), "");
        assert_eq!(hear(EndpointDelta::Add(at(0, 1, "/a")), later), "", "it was there all the time");
        assert_eq!(hear(EndpointDelta::Add(at(1, 2, "/d")), later), "remove s-1.1, add s-1.2");
        assert_eq!(known.due(), Some(later + CONFIRM));
        assert_eq!(show(&known.expire(later)), "");
        assert_eq!(show(&known.expire(later + CONFIRM)), "remove s-2.1");
        assert_eq!(known.due(), None);
        assert_eq!(show(&known.forget()), "remove s-0.1, remove s-1.2");
    }

    #[test]
    fn one_of_the_same_name_elsewhere_is_another() {
        let mut known = Known::default();
        known.hear(EndpointDelta::Reset(vec![at(0, 1, "/a")]), Time::ZERO);
        let again = known.hear(EndpointDelta::Reset(vec![at(0, 1, "/b")]), Time::ZERO);
        assert_eq!(show(&again), "remove s-0.1, add s-0.1");
    }
}
