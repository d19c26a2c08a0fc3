//! A source's subtask: reads split after split.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use pelton_core::{Error, Result};

use super::chain::{Chain, check};
use super::state::{OpenSplit, State};
use crate::batch::Batch;
use crate::outbox::Outbox;
use crate::progress::add;
use crate::source::{Reader, Source, Split};

/// Splits that nobody has begun: the source's subtasks take one after another.
pub(crate) type Pool = Arc<Mutex<VecDeque<Split>>>;

pub(crate) struct Reading {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) pool: Pool,
    /// Begun in an earlier run. They are dealt out beforehand, so that each is in exactly one subtask's state.
    pub(crate) begun: VecDeque<OpenSplit>,
    pub(crate) done: Vec<(u64, String)>,
    current: Option<Current>,
}

struct Current {
    open: OpenSplit,
    reader: Option<Box<dyn Reader>>,
}

impl Reading {
    pub(crate) fn new(source: Arc<dyn Source>, pool: Pool, restored: State) -> Self {
        let (begun, done) = (restored.open.into(), restored.done);
        Reading { source, pool, begun, done, current: None }
    }

    /// Reads once. Law: the outbox is empty. Says whether there is more.
    pub(crate) fn step(&mut self, chain: &mut Chain, outbox: &mut Outbox) -> Result<bool> {
        let name = chain.members[0].name.clone();
        let Some(current) = &mut self.current else {
            return Ok(self.begin(outbox));
        };
        let context = |e: Error| e.context(format!("source `{name}`, split {}", current.open.split.uri));
        if current.open.ended {
            // Its last rows are sent now.
            self.done.push((current.open.split.id, current.open.split.version.clone()));
            add(&chain.members[0].counters.splits_done, 1);
            self.current = None;
            return Ok(true);
        }
        let reader = match &mut current.reader {
            Some(reader) => reader,
            none => {
                let reader = self.source.open(&current.open.split, current.open.position).map_err(context)?;
                none.insert(reader)
            }
        };
        match reader.next().map_err(context)? {
            None => {
                current.open.ended = true;
                current.reader = None;
            }
            Some(read) => {
                let split = current.open.split.id;
                current.open.position = read.position;
                check(&name, &read.rows, &chain.members[0].schema)?;
                let batch = Batch { split, rows: read.rows };
                add(&chain.members[0].counters.bytes, batch.bytes());
                chain.errors(0, split, read.bad.into_iter().map(|e| (None, e)).collect(), outbox)?;
                chain.pass(0, batch, outbox)?;
            }
        }
        Ok(true)
    }

    /// Takes the next split; there may be none.
    fn begin(&mut self, outbox: &mut Outbox) -> bool {
        let fresh = |split| OpenSplit { split, position: 0, ended: false, unsent: Vec::new() };
        let next = self.begun.pop_front();
        let next = next.or_else(|| self.pool.lock().expect("nothing panics under it").pop_front().map(fresh));
        let Some(mut open) = next else { return false };
        for (output, batch) in open.unsent.drain(..) {
            outbox.push(output, batch);
        }
        self.current = Some(Current { open, reader: None });
        true
    }

    /// `unsent` is what a barrier overtook: it goes with the split that it was read from.
    pub(crate) fn save(&self, unsent: Vec<(usize, Batch)>) -> State {
        let mut state = State { done: self.done.clone(), ..State::default() };
        match &self.current {
            Some(current) => state.open.push(OpenSplit { unsent, ..current.open.clone() }),
            None => state.unsent = unsent,
        }
        state.open.extend(self.begun.iter().cloned());
        state
    }
}
