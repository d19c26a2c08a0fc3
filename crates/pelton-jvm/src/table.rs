//! What Java has numbers of. The only state of this library that belongs to nobody: Java has no other way to keep what is Rust's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pelton_agent::Hold;
use pelton_core::{Error, Result};

use crate::client::Client;

pub(crate) static CLIENTS: Table<Client> = Table::new("client");
pub(crate) static HOLDS: Table<Mutex<Hold>> = Table::new("hold");

/// Things by their numbers, which are never used twice: one that is gone is an error, never another thing.
pub(crate) struct Table<T> {
    what: &'static str,
    entries: Mutex<(i64, BTreeMap<i64, Arc<T>>)>,
}

impl<T> Table<T> {
    const fn new(what: &'static str) -> Self {
        Table { what, entries: Mutex::new((0, BTreeMap::new())) }
    }

    fn lock(&self) -> MutexGuard<'_, (i64, BTreeMap<i64, Arc<T>>)> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, thing: impl Into<T>) -> i64 {
        let (last, entries) = &mut *self.lock();
        *last += 1;
        entries.insert(*last, Arc::new(thing.into()));
        *last
    }

    pub(crate) fn get(&self, number: i64) -> Result<Arc<T>> {
        let found = self.lock().1.get(&number).cloned();
        found.ok_or_else(|| Error::internal(format!("{} {number} is closed", self.what)))
    }

    pub(crate) fn remove(&self, number: i64) -> Option<Arc<T>> {
        self.lock().1.remove(&number)
    }
}
