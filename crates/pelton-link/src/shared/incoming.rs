//! The segment that the peer fills: its bodies are read where they are, and released when the last reference to them is gone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use pelton_core::{Error, Result};
use pelton_env::Descriptors;
use pelton_env::segment::SegmentView;
use tokio::sync::Notify;

use super::LARGEST;
use super::arena::GRAIN;

/// When more than one part in so many of a segment is lent out, bodies are copied out of it instead: whoever keeps results for long
/// (a ledger, a pending row) can keep others from half of it, and never from all.
const SHARE: u64 = 2;

/// Released bytes that are worth a frame of their own; less goes out with the next frame, whatever that is.
const WORTH_A_FRAME: u64 = 1 << 20;

/// What is not looked at any more, on its way to the peer.
#[derive(Clone, Default)]
pub(crate) struct Releases(Arc<Waiting>);

#[derive(Default)]
struct Waiting {
    ranges: Mutex<(Vec<u64>, u64)>,
    due: Notify,
}

impl Releases {
    fn add(&self, offset: u64, length: u64) {
        let mut ranges = self.0.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        ranges.0.push(offset);
        ranges.1 += length;
        if ranges.1 >= WORTH_A_FRAME {
            self.0.due.notify_one();
        }
    }

    /// Until there is enough for a frame.
    pub(crate) async fn due(&self) {
        self.0.due.notified().await;
    }

    /// The offsets of all that waits.
    pub(crate) fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.0.ranges.lock().unwrap_or_else(PoisonError::into_inner)).0
    }
}

/// Where bodies are read.
pub(crate) struct Incoming {
    /// The way that a segment comes; none if the peer was told that it need not send one.
    descriptors: Option<Descriptors>,
    view: Option<Arc<View>>,
    releases: Releases,
}

struct View {
    segment: SegmentView,
    lent: Mutex<Ranges>,
    releases: Releases,
    /// The connection has ended: nobody hears of releases.
    orphaned: AtomicBool,
}

/// Ranges that are looked at: offset and length of each, and the sum.
#[derive(Default)]
struct Ranges {
    all: BTreeMap<u64, u64>,
    bytes: u64,
}

impl Ranges {
    /// Whether something of this range is there already.
    fn meets(&self, offset: u64, length: u64) -> bool {
        self.all.range(..offset + length).next_back().is_some_and(|(o, l)| o + l > offset)
    }
}

/// A body in the peer's segment.
pub(crate) enum Body {
    /// It may stay there.
    InPlace(Bytes),
    /// So much is lent out that it is to be copied, and dropped at once.
    ToCopy(Bytes),
}

impl Incoming {
    pub(crate) fn new(descriptors: Option<Descriptors>, releases: Releases) -> Self {
        if let Some(descriptors) = &descriptors {
            descriptors.expect();
        }
        Incoming { descriptors, view: None, releases }
    }

    /// The peer says that it has made a segment.
    pub(crate) fn open(&mut self, bytes: u64) -> Result<()> {
        let bad = |why: &str| Error::protocol(format!("the peer's shared memory is refused: {why}"));
        let descriptors = self.descriptors.as_ref().ok_or_else(|| bad("nobody asked for it"))?;
        if self.view.is_some() {
            return Err(bad("it has one already"));
        }
        if bytes > LARGEST {
            return Err(bad(&format!("{bytes} bytes are over the limit of {LARGEST}")));
        }
        let descriptor = descriptors.take().ok_or_else(|| bad("its descriptor is missing"))?;
        let segment = SegmentView::open(descriptor, bytes).map_err(|e| bad(&e.to_string()))?;
        self.view = Some(Arc::new(View {
            segment,
            lent: Mutex::default(),
            releases: self.releases.clone(),
            orphaned: AtomicBool::new(false),
        }));
        Ok(())
    }

    /// A body that the peer has put there.
    pub(crate) fn body(&self, offset: u64, length: u64) -> Result<Body> {
        let bad = |why: &str| {
            Error::protocol(format!("a body of {length} bytes at {offset} of the peer's shared memory {why}"))
        };
        let view = self.view.as_ref().ok_or_else(|| bad("is nowhere: there is none"))?;
        let size = view.segment.bytes().len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > size) || length == 0 {
            return Err(bad(&format!("is not within its {size} bytes")));
        }
        if !offset.is_multiple_of(GRAIN) {
            return Err(bad("does not begin with a page"));
        }
        let mut lent = view.lock();
        if lent.meets(offset, length) {
            return Err(bad("is where another one is, which was not released"));
        }
        let copied = lent.bytes + length > size / SHARE;
        lent.all.insert(offset, length);
        lent.bytes += length;
        drop(lent);
        let bytes =
            Bytes::from_owner(Lent { view: view.clone(), offset: offset as usize, length: length as usize });
        Ok(if copied { Body::ToCopy(bytes) } else { Body::InPlace(bytes) })
    }
}

impl Drop for Incoming {
    /// The peer writes no more: all memory in which nothing is looked at is given back, and the rest as it is released.
    fn drop(&mut self) {
        let Some(view) = &self.view else { return };
        let lent = view.lock();
        view.orphaned.store(true, Ordering::Release);
        let mut from = 0;
        let end = view.segment.bytes().len() as u64;
        for (offset, length) in lent.all.iter().map(|(o, l)| (*o, *l)).chain([(end, 0)]) {
            view.give_back(from, offset - from);
            from = (offset + length).next_multiple_of(GRAIN);
        }
    }
}

impl View {
    fn lock(&self) -> MutexGuard<'_, Ranges> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, offset: u64, length: u64) {
        if let Err(e) = self.segment.give_back(offset, length) {
            tracing::debug!("shared memory could not be given back: {e}");
        }
    }
}

/// A range that is looked at as long as this lives.
struct Lent {
    view: Arc<View>,
    offset: usize,
    length: usize,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.view.segment.bytes()[self.offset..self.offset + self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let (offset, length) = (self.offset as u64, self.length as u64);
        let mut lent = self.view.lock();
        lent.all.remove(&offset);
        lent.bytes -= length;
        if self.view.orphaned.load(Ordering::Acquire) {
            self.view.give_back(offset, length.next_multiple_of(GRAIN));
        } else {
            self.view.releases.add(offset, length);
        }
    }
}
