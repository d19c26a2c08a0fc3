//! Finished results on disk, for a ledger that has no room for them in memory. The ledger decides; this writes, reads and gives back.
//!
//! Segments are files without a name (see [`Storage::scratch`](pelton_env::Storage::scratch)), so nothing is left of them whatever ends the
//! process. Nothing is synced: a ledger dies with its process, and what is on its disk is of use to nobody else. What comes back is
//! believed only if its checksum is the one that is remembered here, in memory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use bytes::Bytes as Buffer;
use pelton_core::service::MethodSpec;
use pelton_core::{Bytes, Error, Result, Time};
use pelton_env::storage::Scratch;
use pelton_env::{Env, Storage};
use pelton_wire::body::{self, Encoder, Piece, gather};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::state::Event;

/// What was read and is not with its callers yet, in bytes.
const READ_AHEAD: usize = 16 << 20;
/// For so long the next block waits for callers that do not take what was read for them.
const PATIENCE: Duration = Duration::from_secs(5);
/// Rows begin at such a place, which is what their columns need.
const ALIGNMENT: usize = 64;

/// What the disk is asked to do.
#[derive(Debug)]
pub enum Order {
    Write(Block),
    Load(Load),
    /// Nothing in this segment is needed any more.
    Free(u64),
}

/// Results that are written together, of one method.
#[derive(Debug)]
pub struct Block {
    /// The order of the first result, by which the ledger knows the block.
    pub first: u64,
    pub segment: u64,
    pub method: u16,
    /// Each with its order.
    pub results: Vec<(u64, Vec<Piece>)>,
}

/// A block to read.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub first: u64,
    pub segment: u64,
    pub extent: Extent,
}

/// Where in its segment a block is, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
    pub checksum: u32,
}

/// It did not work; the log says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// What to ask, and whom.
pub(crate) struct Orders {
    changes: mpsc::UnboundedSender<Order>,
    loads: mpsc::UnboundedSender<Load>,
}

impl Orders {
    pub(crate) fn send(&self, order: Order) {
        let _ = match order {
            Order::Load(load) => self.loads.send(load).is_ok(),
            change => self.changes.send(change).is_ok(),
        };
    }
}

/// The other end of [`Orders`].
pub(crate) struct Ordered {
    changes: mpsc::UnboundedReceiver<Order>,
    loads: mpsc::UnboundedReceiver<Load>,
}

pub(crate) fn orders() -> (Orders, Ordered) {
    let (changes, changed) = mpsc::unbounded_channel();
    let (loads, loaded) = mpsc::unbounded_channel();
    (Orders { changes, loads }, Ordered { changes: changed, loads: loaded })
}

/// Does what is ordered until nobody orders any more; blocks its thread. What is written and given back does not wait for
/// callers that are slow to take what is read.
pub(crate) async fn work(env: Env, mut store: Store, mut ordered: Ordered, events: impl Fn(Event)) {
    let ahead = Arc::new(Semaphore::new(READ_AHEAD));
    let mut next: Option<(Load, Time)> = None;
    loop {
        let room = async {
            if next.is_none() {
                let load = ordered.loads.recv().await?;
                next = Some((load, env.now() + PATIENCE));
            }
            let (load, until) = next?;
            let bytes = load.extent.length.min(READ_AHEAD as u64) as u32;
            let wait = until.since(env.now());
            // Without a permit where nobody takes anything: those who do shall not wait for those who do not for ever.
            let permit = env.within(wait, ahead.clone().acquire_many_owned(bytes)).await;
            Some((load, permit.and_then(std::result::Result::ok)))
        };
        tokio::select! {
            biased;
            change = ordered.changes.recv() => match change {
                Some(Order::Write(block)) => {
                    let first = block.first;
                    events(Event::Written { first, result: store.write(block) });
                }
                Some(Order::Free(segment)) => store.free(segment),
                Some(Order::Load(_)) => {}
                None => return,
            },
            Some((load, permit)) = room => {
                next = None;
                events(Event::Loaded { first: load.first, result: store.read(load, permit) });
            }
        }
    }
}

/// The segments.
pub(crate) struct Store {
    storage: Arc<dyn Storage>,
    folder: PathBuf,
    limit: Bytes,
    methods: Arc<[MethodSpec]>,
    segments: BTreeMap<u64, Segment>,
    encoder: Encoder,
    /// It was said once that it does not work to write, and to read.
    warned: (bool, bool),
}

struct Segment {
    file: Box<dyn Scratch>,
    end: u64,
}

impl Store {
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        folder: &Path,
        limit: Bytes,
        methods: Arc<[MethodSpec]>,
    ) -> Store {
        let (segments, encoder) = (BTreeMap::new(), Encoder::default());
        Store { storage, folder: folder.to_owned(), limit, methods, segments, encoder, warned: (false, false) }
    }

    pub(crate) fn write(&mut self, block: Block) -> std::result::Result<Extent, Failed> {
        let segment = block.segment;
        // What they share is freed as soon as they are written.
        let content = self.encode(block).map_err(|e| e.to_string());
        let written = content.and_then(|content| self.append(segment, &content).map_err(|e| e.to_string()));
        written.map_err(|e| {
            let (folder, limit) = (self.folder.display(), self.limit);
            if !std::mem::replace(&mut self.warned.0, true) {
                tracing::warn!(
                    "finished results could not be written below {folder} (`ledger.spill`; at most {limit}, `ledger.spill_bytes`): {e}; \
                     the oldest are forgotten instead (`evicted` counts them), and run again if a restarted job needs them; \
                     see `df -h {folder}` and make room, or name another folder. It is tried again, and not said again"
                );
            }
            Failed
        })
    }

    fn append(&mut self, segment: u64, content: &[u8]) -> io::Result<Extent> {
        let Segment { file, end } = match self.segments.entry(segment) {
            std::collections::btree_map::Entry::Occupied(there) => there.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => {
                new.insert(Segment { file: self.storage.scratch(&self.folder)?, end: 0 })
            }
        };
        // After a failure the next block is written over what there is of this one.
        file.write_at(*end, content)?;
        let extent =
            Extent { offset: *end, length: content.len() as u64, checksum: crc32fast::hash(content) };
        *end += extent.length;
        Ok(extent)
    }

    pub(crate) fn read(
        &mut self,
        load: Load,
        permit: Option<OwnedSemaphorePermit>,
    ) -> std::result::Result<Vec<(u64, Vec<Piece>)>, Failed> {
        // Where the segment was given back since, nobody wants the block any more.
        let Segment { file, .. } = self.segments.get_mut(&load.segment).ok_or(Failed)?;
        let Extent { offset, length, checksum } = load.extent;
        let content = file.read_at(offset, length as usize).map_err(|e| e.to_string());
        let results = content.and_then(|content| {
            if crc32fast::hash(&content) != checksum {
                return Err("they are not what was written (their checksum is another one)".to_owned());
            }
            // It counts as read ahead until the last of its rows is with its caller.
            decode(Buffer::from_owner(Read { content, _permit: permit }), &self.methods)
                .map_err(|e| e.to_string())
        });
        results.map_err(|e| {
            let folder = self.folder.display();
            if !std::mem::replace(&mut self.warned.1, true) {
                tracing::warn!(
                    "finished results could not be read back from {folder} (`ledger.spill`): {e}; they are forgotten \
                     (`damaged` counts them), and run again where somebody asks for them; see `dmesg` for what the device says, \
                     or name another folder. This is not said again"
                );
            }
            Failed
        })
    }

    pub(crate) fn free(&mut self, segment: u64) {
        self.segments.remove(&segment);
    }

    /// The number of results and their method; for each its order, its parts and their rows; then all rows as one body.
    fn encode(&mut self, block: Block) -> Result<Vec<u8>> {
        let Block { method, results, .. } = block;
        let mut content = Vec::new();
        content.extend((results.len() as u32).to_le_bytes());
        content.extend(u32::from(method).to_le_bytes());
        for (order, parts) in &results {
            content.extend(order.to_le_bytes());
            content.extend((parts.len() as u32).to_le_bytes());
            parts.iter().for_each(|part| content.extend((part.rows as u32).to_le_bytes()));
        }
        content.resize(content.len().next_multiple_of(ALIGNMENT), 0);
        let rows = gather(results.iter().flat_map(|(_, parts)| parts))?;
        for piece in self.encoder.encode(&rows)? {
            content.extend_from_slice(&piece);
        }
        Ok(content)
    }
}

/// What was read, and the room that it takes.
struct Read {
    content: Vec<u8>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Read {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

fn decode(content: Buffer, methods: &[MethodSpec]) -> Result<Vec<(u64, Vec<Piece>)>> {
    let bad = || Error::internal("a block of results is not as it is written");
    let mut head = &content[..];
    let mut number = |bytes: usize| -> Result<u64> {
        let (these, rest) = head.split_at_checked(bytes).ok_or_else(bad)?;
        head = rest;
        let mut number = [0; 8];
        number[..bytes].copy_from_slice(these);
        Ok(u64::from_le_bytes(number))
    };
    let (count, method) = (number(4)?, number(4)?);
    let schema = &methods.get(method as usize).ok_or_else(bad)?.output;
    let mut shape = Vec::new();
    let mut taken = 8;
    for _ in 0..count {
        let (order, parts) = (number(8)?, number(4)?);
        let rows = (0..parts).map(|_| number(4).map(|rows| rows as usize)).collect::<Result<Vec<usize>>>()?;
        taken += 12 + 4 * rows.len();
        shape.push((order, rows));
    }
    let body = taken.next_multiple_of(ALIGNMENT);
    if body > content.len() || shape.iter().all(|(_, parts)| parts.is_empty()) {
        return Err(bad());
    }
    let batch: Arc<RecordBatch> = Arc::new(body::decode(content.slice(body..), schema)?);
    let mut offset = 0;
    let mut results = Vec::with_capacity(shape.len());
    for (order, parts) in shape {
        let mut pieces = Vec::with_capacity(parts.len());
        for rows in parts {
            if offset + rows > batch.num_rows() {
                return Err(bad());
            }
            pieces.push(Piece { batch: batch.clone(), offset, rows });
            offset += rows;
        }
        results.push((order, pieces));
    }
    Ok(results)
}
