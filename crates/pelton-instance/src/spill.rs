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

/// Without limits of their own: the ledger has no more on its way to disk than it says, and asks for a block once.
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
        Store {
            storage,
            folder: folder.to_owned(),
            limit,
            methods,
            segments,
            encoder,
            warned: (false, false),
        }
    }

    pub(crate) fn write(&mut self, block: Block) -> std::result::Result<Extent, Failed> {
        let segment = block.segment;
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
        // Of streams there may be nothing left but that they ended.
        if results.iter().all(|(_, parts)| parts.is_empty()) {
            return Ok(content);
        }
        let rows = gather(results.iter().flat_map(|(_, parts)| parts))?;
        for part in self.encoder.encode(&rows)?.into_parts() {
            content.extend_from_slice(&part);
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
    if body > content.len() {
        return Err(bad());
    }
    if shape.iter().all(|(_, parts)| parts.is_empty()) {
        return Ok(shape.into_iter().map(|(order, _)| (order, Vec::new())).collect());
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

#[cfg(test)]
mod tests {
    use std::fs;

    use arrow_array::cast::AsArray;
    use arrow_array::{ArrayRef, BinaryArray};
    use arrow_schema::{DataType, Field, Schema};
    use pelton_core::service::Cardinality;
    use pelton_env::Place;
    use pelton_env::real::{Disk, Host};
    use pelton_env::simulated::Machine;

    use super::*;

    fn methods() -> Arc<[MethodSpec]> {
        let schema = Arc::new(Schema::new(vec![Field::new("bytes", DataType::Binary, true)]));
        let spec = |name: &str, cardinality| MethodSpec {
            name: name.into(),
            input: schema.clone(),
            output: schema.clone(),
            cardinality,
            concurrency: None,
        };
        [spec("call", Cardinality::One), spec("stream", Cardinality::Many)].into()
    }

    fn rows(values: &[&[u8]]) -> Arc<RecordBatch> {
        let column: ArrayRef = Arc::new(BinaryArray::from_iter_values(values));
        Arc::new(RecordBatch::try_new(methods()[0].output.clone(), vec![column]).unwrap())
    }

    /// Results of one row each, the first of them this old.
    fn block(first: u64, segment: u64, values: &[&[u8]]) -> Block {
        let batch = rows(values);
        let result = |i: usize| (first + i as u64, vec![Piece { batch: batch.clone(), offset: i, rows: 1 }]);
        Block { first, segment, method: 0, results: (0..values.len()).map(result).collect() }
    }

    /// `ORDER: PART PART ...`, the rows of a part joined by `+`.
    fn shown(results: &[(u64, Vec<Piece>)]) -> String {
        let part = |p: &Piece| {
            let column = p.batch.column(0).as_binary::<i32>();
            let row =
                |i| String::from_utf8_lossy(&column.value(i)[..column.value(i).len().min(9)]).into_owned();
            (p.offset..p.offset + p.rows).map(row).collect::<Vec<_>>().join("+")
        };
        let result = |(order, parts): &(u64, Vec<Piece>)| {
            format!("{order}: {}", parts.iter().map(part).collect::<Vec<_>>().join(" "))
        };
        results.iter().map(result).collect::<Vec<_>>().join(", ")
    }

    fn store(storage: Arc<dyn Storage>, folder: &Path) -> Store {
        Store::new(storage, folder, Bytes::mib(1), methods())
    }

    fn load(first: u64, segment: u64, extent: Extent) -> Load {
        Load { first, segment, extent }
    }

    /// How many files of this folder are open that have no name, and their bytes.
    fn nameless(folder: &Path) -> (usize, u64) {
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let ours = |path: &PathBuf| fs::read_link(path).is_ok_and(|file| file.starts_with(folder));
        let sizes: Vec<u64> =
            open.map(|fd| fd.path()).filter(ours).map(|path| fs::metadata(path).unwrap().len()).collect();
        (sizes.len(), sizes.iter().sum())
    }

    #[test]
    fn results_come_back_from_real_files_that_nobody_sees() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut store = store(Arc::new(Disk), folder);
        let large = vec![b'x'; 1 << 20];
        let first = store.write(block(3, 1, &[b"a", b"bc", b""])).unwrap();
        let second = store.write(block(6, 1, &[&large, b"d"])).unwrap();
        let third = store.write(block(8, 2, &[&large])).unwrap();
        assert_eq!((first.offset, second.offset, third.offset), (0, first.length, 0));
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
        assert_eq!(nameless(folder), (2, first.length + second.length + third.length));
        assert_eq!(shown(&store.read(load(6, 1, second), None).unwrap()), "6: xxxxxxxxx, 7: d");
        assert_eq!(shown(&store.read(load(3, 1, first), None).unwrap()), "3: a, 4: bc, 5: ");
        store.free(1);
        assert_eq!(nameless(folder), (1, third.length), "its room is given back");
        assert_eq!(store.read(load(3, 1, first), None).unwrap_err(), Failed);
        assert_eq!(shown(&store.read(load(8, 2, third), None).unwrap()), "8: xxxxxxxxx");
        drop(store);
        assert_eq!(nameless(folder), (0, 0));
    }

    #[test]
    fn a_stream_keeps_its_parts() {
        let machine = Machine::new(0);
        let mut store = store(machine.process(), Path::new("/"));
        let (one, other) = (rows(&[b"a", b"b"]), rows(&[b"c"]));
        let piece = |batch: &Arc<RecordBatch>, rows| Piece { batch: batch.clone(), offset: 0, rows };
        let results =
            vec![(7, vec![piece(&one, 2), piece(&other, 1), piece(&one, 0)]), (9, vec![piece(&one, 0)])];
        let extent = store.write(Block { first: 7, segment: 1, method: 1, results }).unwrap();
        let read = store.read(load(7, 1, extent), None).unwrap();
        assert_eq!(shown(&read), "7: a+b c , 9: ");
        // Of one that its caller has taken, and of which nothing is kept.
        let extent =
            store.write(Block { first: 10, segment: 1, method: 1, results: vec![(10, vec![])] }).unwrap();
        assert_eq!(shown(&store.read(load(10, 1, extent), None).unwrap()), "10: ");
    }

    #[test]
    fn a_disk_that_fails_costs_what_it_has_and_no_more() {
        let machine = Machine::new(0);
        let mut store = store(machine.process(), Path::new("/"));
        let first = store.write(block(0, 1, &[b"a", b"b"])).unwrap();
        for _ in 0..20 {
            machine.fill(Path::new("/"), 0);
            assert_eq!(store.write(block(2, 1, &[b"c"])), Err(Failed));
            assert_eq!(store.write(block(2, 2, &[b"c"])), Err(Failed));
            machine.mend();
        }
        let second = store.write(block(2, 1, &[b"c"])).unwrap();
        assert_eq!(second.offset, first.length, "what was written in part is written over");
        for _ in 0..20 {
            machine.garble(1);
            assert_eq!(store.read(load(0, 1, first), None).unwrap_err(), Failed);
        }
        let elsewhere = Extent { offset: second.offset, ..first };
        assert_eq!(store.read(load(0, 1, elsewhere), None).unwrap_err(), Failed);
        assert_eq!(shown(&store.read(load(0, 1, first), None).unwrap()), "0: a, 1: b");
        assert_eq!(shown(&store.read(load(2, 1, second), None).unwrap()), "2: c");
    }

    #[test]
    fn no_more_is_read_than_callers_take_and_writes_do_not_wait_for_that() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::new(1, 1).unwrap();
        let (orders, ordered) = orders();
        let (events, mut happened) = mpsc::unbounded_channel();
        let store = store(Arc::new(Disk), folder.path());
        let work = work(host.env().clone(), store, ordered, move |event| drop(events.send(event)));
        let _work = host.env().spawn(Place::Dedicated, work);
        let large = vec![b'x'; READ_AHEAD * 2 / 3];
        let mut extents = Vec::new();
        let mut next = |limit: u64| {
            host.block_on(host.env().within(Duration::from_millis(limit), happened.recv()))
                .map(Option::unwrap)
        };
        for first in 0..2 {
            orders.send(Order::Write(block(first, 1, &[&large])));
            match next(10_000) {
                Some(Event::Written { result: Ok(extent), .. }) => extents.push(extent),
                other => panic!("{other:?}"),
            }
        }
        for first in 0..2 {
            orders.send(Order::Load(load(first, 1, extents[first as usize])));
        }
        let Some(Event::Loaded { first: 0, result: Ok(read) }) = next(10_000) else { panic!("not read") };
        assert_eq!(shown(&read), "0: xxxxxxxxx");
        assert!(next(100).is_none(), "the first was not taken yet");
        orders.send(Order::Write(block(2, 1, &[b"y"])));
        assert!(matches!(next(2_000), Some(Event::Written { first: 2, result: Ok(_) })));
        drop(read);
        assert!(matches!(next(2_000), Some(Event::Loaded { first: 1, result: Ok(_) })));
        // Callers that take nothing do not hold up the others for ever.
        orders.send(Order::Load(load(0, 1, extents[0])));
        orders.send(Order::Load(load(1, 1, extents[1])));
        let kept = [next(10_000), next(10_000)];
        assert!(kept.iter().all(|e| matches!(e, Some(Event::Loaded { result: Ok(_), .. }))), "{kept:?}");
    }
}
