//! The segment that this side fills.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pelton_core::{Error, Result};
use pelton_env::Descriptors;
use pelton_env::segment::Segment;
use pelton_wire::Frame;
use pelton_wire::body::Encoded;

use super::arena::{Arena, GRAIN};

/// What stays with an idle segment; the rest of its memory is given back.
const KEPT: u64 = 8 << 20;

/// What is taken of it: the writer takes, and the reader hears of what is released.
#[derive(Clone, Default)]
pub(crate) struct Taken(Arc<Mutex<Option<Arena>>>);

impl Taken {
    fn lock(&self) -> MutexGuard<'_, Option<Arena>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer is done with these.
    pub(crate) fn release(&self, offsets: &[u64]) -> Result<()> {
        let mut arena = self.lock();
        let released = |offset: &u64| arena.as_mut().is_some_and(|arena| arena.release(*offset));
        match offsets.iter().all(released) {
            true => Ok(()),
            false => Err(Error::protocol("a peer released what was not lent to it")),
        }
    }
}

/// Where bodies are put, once there is one that is worth it.
pub(crate) struct Outgoing {
    descriptors: Descriptors,
    /// Its size.
    bytes: u64,
    /// Shorter bodies are not put there.
    from: usize,
    segment: Option<Segment>,
    taken: Taken,
    /// A segment could not be had; it is not tried again.
    failed: bool,
}

/// Where a body was put, and what is to be said first.
pub(crate) struct Put {
    pub(crate) offset: u64,
    pub(crate) first: Option<Frame>,
}

impl Outgoing {
    pub(crate) fn new(descriptors: Descriptors, bytes: u64, from: usize, taken: Taken) -> Self {
        let bytes = bytes - bytes % GRAIN;
        Outgoing { descriptors, bytes, from, segment: None, taken, failed: false }
    }

    /// Puts a body there; nothing if it is too short for that, or there is no room.
    pub(crate) fn put(&mut self, body: &Encoded) -> Option<Put> {
        if body.length() < self.from || body.length() as u64 > self.bytes || self.failed {
            return None;
        }
        let mut first = None;
        if self.segment.is_none() {
            match self.make() {
                Ok(frame) => first = Some(frame),
                Err(e) => {
                    tracing::warn!("no shared memory, bodies go through the socket: {e}");
                    self.failed = true;
                    return None;
                }
            }
        }
        let offset = self.taken.lock().as_mut()?.take(body.length() as u64);
        let place = offset.and_then(|offset| {
            let all = self.segment.as_mut()?.bytes_mut();
            all.get_mut(offset as usize..)?.get_mut(..body.length())
        });
        match (offset, place) {
            (Some(offset), Some(place)) => {
                body.write_to(place);
                Some(Put { offset, first })
            }
            // The peer has the segment announced all the same, with the next body.
            _ => None,
        }
    }

    fn make(&mut self) -> std::io::Result<Frame> {
        let segment = Segment::create(self.bytes)?;
        self.descriptors.attach(segment.descriptor()?);
        *self.taken.lock() = Some(Arena::new(self.bytes));
        self.segment = Some(segment);
        Ok(Frame::Segment { bytes: self.bytes })
    }

    /// Whether it holds memory that it could give back when nothing is in it.
    pub(crate) fn holds_memory(&self) -> bool {
        self.taken.lock().as_ref().is_some_and(|arena| arena.reach() > KEPT)
    }

    /// Gives most of the memory back, if nothing is in it.
    pub(crate) fn trim(&mut self) {
        let mut taken = self.taken.lock();
        if let (Some(arena), Some(segment)) = (taken.as_mut().filter(|a| a.is_empty()), &self.segment) {
            let (offset, length) = arena.trim(KEPT);
            if let Err(e) = segment.give_back(offset, length) {
                tracing::debug!("shared memory could not be given back: {e}");
            }
        }
    }
}
