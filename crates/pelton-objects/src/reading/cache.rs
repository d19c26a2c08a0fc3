//! What was read and is kept, and who waits for what is being read. Pure.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use bytes::Bytes;

/// Objects by key, the one used longest ago forgotten first; `W` is whoever waits for one that is being read.
pub(super) struct Cache<K, W> {
    most: u64,
    held: u64,
    entries: HashMap<K, (Bytes, u64)>,
    /// Keys by when they were used last.
    used: BTreeMap<u64, K>,
    tick: u64,
    reading: HashMap<K, Vec<W>>,
}

/// What an object that is asked for is.
pub(super) enum Asked<W> {
    Here(Bytes, W),
    /// Somebody reads it; `W` is told.
    Awaited,
    /// Whoever asked has to read it, and say when it is [`done`](Cache::done).
    Missing,
}

impl<K: Clone + Eq + Hash, W> Cache<K, W> {
    pub(super) fn new(most: u64) -> Self {
        Cache {
            most,
            held: 0,
            entries: HashMap::new(),
            used: BTreeMap::new(),
            tick: 0,
            reading: HashMap::new(),
        }
    }

    pub(super) fn get(&mut self, key: &K) -> Option<Bytes> {
        let (bytes, used) = self.entries.get_mut(key)?;
        self.used.remove(used);
        self.tick += 1;
        *used = self.tick;
        self.used.insert(self.tick, key.clone());
        Some(bytes.clone())
    }

    pub(super) fn ask(&mut self, key: &K, who: W) -> Asked<W> {
        if let Some(bytes) = self.get(key) {
            return Asked::Here(bytes, who);
        }
        if let Some(waiting) = self.reading.get_mut(key) {
            waiting.push(who);
            return Asked::Awaited;
        }
        self.reading.insert(key.clone(), vec![who]);
        Asked::Missing
    }

    /// It was read, or could not be; what shall be kept is given. Returns who waits.
    pub(super) fn done(&mut self, key: &K, keep: Option<Bytes>) -> Vec<W> {
        if let Some(bytes) = keep {
            self.keep(key, bytes);
        }
        self.reading.remove(key).unwrap_or_default()
    }

    fn keep(&mut self, key: &K, bytes: Bytes) {
        let size = bytes.len() as u64;
        if size > self.most || self.entries.contains_key(key) {
            return;
        }
        while self.held + size > self.most
            && let Some((_, oldest)) = self.used.pop_first()
        {
            self.held -= self.entries.remove(&oldest).map_or(0, |(b, _)| b.len() as u64);
        }
        self.tick += 1;
        self.used.insert(self.tick, key.clone());
        self.entries.insert(key.clone(), (bytes, self.tick));
        self.held += size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: usize) -> Bytes {
        Bytes::from(vec![0; n])
    }

    #[test]
    fn what_was_used_longest_ago_is_forgotten_first() {
        let mut cache: Cache<&str, ()> = Cache::new(10);
        for key in ["a", "b", "c"] {
            assert!(matches!(cache.ask(&key, ()), Asked::Missing));
            assert_eq!(cache.done(&key, Some(bytes(3))).len(), 1);
        }
        assert!(cache.get(&"a").is_some());
        assert!(matches!(cache.ask(&"d", ()), Asked::Missing));
        cache.done(&"d", Some(bytes(4)));
        let there: Vec<&str> = ["a", "b", "c", "d"].into_iter().filter(|k| cache.get(k).is_some()).collect();
        assert_eq!((there, cache.held), (vec!["a", "c", "d"], 10));
        cache.done(&"huge", Some(bytes(11)));
        assert!(cache.get(&"huge").is_none() && cache.get(&"a").is_some(), "it would have pushed out all");
    }

    #[test]
    fn one_reads_and_all_are_told() {
        let mut cache: Cache<u8, u8> = Cache::new(0);
        assert!(matches!(cache.ask(&1, 10), Asked::Missing));
        assert!(matches!(cache.ask(&1, 11), Asked::Awaited));
        assert!(matches!(cache.ask(&2, 12), Asked::Missing));
        assert_eq!(cache.done(&1, Some(bytes(1))), [10, 11]);
        assert!(matches!(cache.ask(&1, 13), Asked::Missing), "nothing is kept by a cache of nothing");
        assert_eq!(cache.done(&1, None), [13]);
    }
}
