//! Bodies between two ends, of which one lies: about its segment, about what is in it, about what it releases, about pieces. And it writes where
//! its bodies are being looked at.
//!
//! Laws: nothing panics; what was decoded stays valid, whatever is written to the segment; what was released does not change any more; a body
//! is put only where nothing is that was not released; a release is refused exactly if it is of what was not lent.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};

use arrow_array::{Array, RecordBatch};
use pelton_core::call::Priority;
use pelton_core::id::{RequestId, RequestRun};
use pelton_env::segment::Segment;
use pelton_env::{Connection, Descriptors};
use pelton_link::{Door, Link, Message, Sharing, greeting};
use pelton_wire::body::{Piece, decode, gather};
use pelton_wire::{Deadlines, Entry, Frame, HEADER, Header, Place, Role};
use tokio::io::{AsyncRead, ReadBuf};

use crate::body::encoded;
use crate::frame::says_what_is_wrong;
use crate::handshake::{TOKEN, door_of_ours, on_the_wire, welcome};
use crate::input::Input;
use crate::link::{Still, Written};
use crate::{arrays, frames};

/// Bytes of the liar's segment.
const SIZE: u64 = 512 << 10;
/// Bytes of the honest end's.
const OURS: u64 = 256 << 10;
const PAGE: u64 = 4096;
/// So many things an input may do.
const STEPS: usize = 60;
/// So many batches are looked at.
const KEPT: usize = 6;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let Some(mut world) = World::new(&mut input) else { return };
    for _ in 0..STEPS {
        if input.is_empty() || !world.step(&mut input) {
            break;
        }
    }
    // Whoever holds them may do so longer than the connection lasts.
    let World { still, link, kept, mut segment, body, .. } = world;
    drop(link);
    still.settle();
    for at in kept.iter().filter_map(|kept| kept.at) {
        let rest = segment.bytes_mut().get_mut(at as usize..).unwrap_or_default();
        let n = rest.len().min(body.len());
        rest[..n].fill(0xa5);
    }
    kept.iter().for_each(Kept::check);
}

/// A batch that is looked at.
struct Kept {
    rows: RecordBatch,
    /// Where it came from in the segment.
    at: Option<u64>,
    /// What it is, in other memory, once it must not change.
    is: Option<RecordBatch>,
}

impl Kept {
    fn check(&self) {
        for column in self.rows.columns() {
            column.to_data().validate_full().unwrap_or_else(|e| panic!("it became invalid: {e}"));
        }
        if let Some(is) = &self.is {
            assert!(self.rows == *is, "it changes, though it was released");
        }
    }
}

struct World {
    still: Still,
    link: Link,
    feed: Feed,
    written: Written,
    descriptors: Descriptors,
    segment: Segment,
    rows: &'static RecordBatch,
    body: &'static [u8],
    kept: Vec<Kept>,
    /// What the honest end has put in its segment, and not heard to be released.
    lent: BTreeMap<u64, u64>,
}

impl World {
    /// After an honest greeting, and mostly with a segment that is one.
    fn new(input: &mut Input<'_>) -> Option<World> {
        let all = large();
        let (rows, body) = &all[usize::from(input.u8()) % all.len()];
        let mut hello = greeting(Role::Caller, TOKEN, "job", "client", 1);
        hello.segment = if input.below(8) > 0 { 1 << 30 } else { input.number() };
        let (still, feed, written) = (Still::default(), Feed::default(), Written::default());
        feed.push(&on_the_wire(&Frame::Hello(hello)));
        let descriptors = Descriptors::default();
        let connection = Connection {
            read: Box::new(feed.clone()),
            write: Box::new(written.clone()),
            descriptors: Some(descriptors.clone()),
        };
        let door = Door { sharing: Sharing { segment: OURS, from: 8 << 10 }, ..door_of_ours() };
        let env = still.env();
        let caller = still.run(door.answer(&env, connection)).expect("it greets well");
        let mut welcome = welcome();
        for method in &mut welcome.methods {
            (method.input, method.output) = (rows.schema(), rows.schema());
        }
        let link = still.run(caller.welcome(&env, welcome)).expect("it is there");
        let segment = Segment::create(SIZE).expect("there is memory");
        let (kept, lent) = (Vec::new(), BTreeMap::new());
        let mut world = World { still, link, feed, written, descriptors, segment, rows, body, kept, lent };
        let honest = input.below(8) > 0;
        (!honest || world.announce(SIZE, true)).then_some(world)
    }

    /// False: the connection has ended.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        match input.below(9) {
            0..=2 => self.body_in_the_segment(input),
            3 => {
                let n = usize::from(input.u8()) % KEPT;
                if n < self.kept.len() {
                    self.kept.remove(n);
                }
                self.hears(&[], None)
            }
            4 => {
                self.scribble(input);
                true
            }
            5 => {
                let n = 1 + usize::from(input.u8()) * self.rows.num_rows() / 256;
                let run = RequestRun { first: id(), count: n as u32 };
                let frame = Frame::Results { method: 0, entries: vec![Entry { run, rows: 1, last: true }] };
                self.link.sender.send(Message { frame, rows: Some(self.rows.slice(0, n)) });
                self.hears(&[], None)
            }
            6 => self.release(input),
            7 => self.pieces(input),
            _ => match input.below(8) {
                0 => {
                    let bytes = if input.bool() { SIZE } else { input.number() };
                    self.announce(bytes, input.bool())
                }
                1 => self.hears(&on_the_wire(&frames::between(input)), None),
                _ => self.hears(&on_the_wire(&Frame::Ping(input.number())), None),
            },
        }
    }

    fn announce(&mut self, bytes: u64, with_descriptor: bool) -> bool {
        if with_descriptor {
            self.descriptors.arrived(self.segment.descriptor().expect("it can be had twice"));
        }
        self.hears(&on_the_wire(&Frame::Segment { bytes }), None)
    }

    fn body_in_the_segment(&mut self, input: &mut Input<'_>) -> bool {
        let offset = match input.below(16) {
            0 => input.number(),
            n => u64::from(n) * 7 * PAGE,
        };
        let length = if input.below(16) == 0 { input.number() as u32 } else { self.body.len() as u32 };
        let place = usize::try_from(offset).ok().filter(|offset| *offset < SIZE as usize);
        if let Some(place) =
            place.and_then(|offset| self.segment.bytes_mut()[offset..].get_mut(..self.body.len()))
        {
            place.copy_from_slice(self.body);
            for _ in 0..input.below(3) {
                let at = usize::from(input.u8()) << 8 | usize::from(input.u8());
                place[at % self.body.len()] = input.u8();
            }
            self.check();
        }
        let said = with_body(&self.request(), Place::Segment, length, &offset.to_le_bytes());
        self.hears(&said, Some(offset))
    }

    /// Writes where something may be looked at.
    fn scribble(&mut self, input: &mut Input<'_>) {
        let n = usize::from(input.u8()) % KEPT;
        let from = self.kept.get(n).and_then(|kept| kept.at).unwrap_or(u64::from(input.u8()) * PAGE);
        let at = from as usize + (usize::from(input.u8()) << 8 | usize::from(input.u8()));
        let (byte, n) = (input.u8(), 1 << input.below(14));
        let all = self.segment.bytes_mut();
        let end = (at + n).min(all.len());
        if let Some(place) = all.get_mut(at..end) {
            place.fill(byte);
        }
        self.check();
    }

    fn release(&mut self, input: &mut Input<'_>) -> bool {
        let mut offsets = Vec::new();
        for _ in 0..input.below(3) {
            let lent = self.lent.keys().nth(usize::from(input.below(4)));
            offsets.push(match lent.filter(|_| input.below(8) > 0) {
                Some(offset) => *offset,
                None => input.number(),
            });
        }
        let honest = offsets.iter().all(|offset| self.lent.remove(offset).is_some());
        let goes_on = self.hears(&on_the_wire(&Frame::Release { offsets }), None);
        assert_eq!(goes_on, honest, "a release is refused exactly if it is of what was not lent");
        goes_on
    }

    fn pieces(&mut self, input: &mut Input<'_>) -> bool {
        let total = if input.below(8) == 0 { input.number() as u32 } else { self.body.len() as u32 };
        let mut said = with_body(&self.request(), Place::Pieces, total, &[]);
        let mut rest = self.body;
        for _ in 0..=input.below(4) {
            let (piece, more) = rest.split_at(rest.len().min(usize::from(input.u8()) << 8));
            rest = more;
            said.extend(with_body(&Frame::Piece, Place::Inline, piece.len() as u32, piece));
            if input.below(8) == 0 {
                said.extend(on_the_wire(&frames::between(input)));
            }
        }
        if !rest.is_empty() && input.below(8) > 0 {
            said.extend(with_body(&Frame::Piece, Place::Inline, rest.len() as u32, rest));
        }
        self.hears(&said, None)
    }

    fn request(&self) -> Frame {
        let run = RequestRun { first: id(), count: self.rows.num_rows() as u32 };
        let (priority, deadlines) = (Priority::Normal, Deadlines::None);
        Frame::Request { method: 0, priority, alone: false, deadlines, runs: vec![run] }
    }

    /// The honest end hears this, and what it says is looked at. False: it ends the connection.
    fn hears(&mut self, said: &[u8], at: Option<u64>) -> bool {
        let mark = Frame::Load { held: 7 };
        self.feed.push(said);
        self.feed.push(&on_the_wire(&mark));
        loop {
            match self.still.run(self.link.receiver.next()) {
                Ok(Some(message)) if message.frame == mark => break,
                Ok(Some(Message { rows: Some(rows), .. })) => {
                    let kept = Kept { rows, at, is: None };
                    kept.check();
                    self.kept.truncate(KEPT - 1);
                    self.kept.insert(0, kept);
                }
                Ok(Some(_)) => {}
                Ok(None) => panic!("the mark is there, and was not read"),
                Err(e) => {
                    says_what_is_wrong(e.message());
                    return false;
                }
            }
        }
        // What is released goes out with whatever goes out.
        self.link.sender.send(mark);
        self.still.settle();
        self.looks_at_what_is_said();
        true
    }

    fn looks_at_what_is_said(&mut self) {
        let said = self.written.take();
        let mut rest = said.as_slice();
        while let Some((header, behind)) = rest.split_first_chunk::<HEADER>() {
            let header = Header::decode(header, u32::MAX, u64::MAX).expect("ours");
            let (meta, behind) = behind.split_at(header.meta as usize);
            let length = match header.place {
                Place::Inline => header.body as usize,
                Place::Segment => 8,
                Place::Pieces => 0,
            };
            let (body, behind) = behind.split_at(length);
            rest = behind;
            match Frame::decode_meta(header.kind, meta).expect("ours") {
                Frame::Segment { bytes } => assert!(bytes <= OURS),
                Frame::Release { offsets } => {
                    let released = |kept: &&mut Kept| kept.at.is_some_and(|at| offsets.contains(&at));
                    for kept in self.kept.iter_mut().filter(released) {
                        kept.is.get_or_insert_with(|| copied(&kept.rows));
                    }
                }
                _ if header.place == Place::Segment => {
                    let offset = u64::from_le_bytes(body.try_into().expect("eight bytes"));
                    let end = offset + u64::from(header.body);
                    assert!(offset % PAGE == 0 && end <= OURS, "{offset} to {end} of {OURS}");
                    let before = self.lent.range(..end).next_back();
                    assert!(
                        before.is_none_or(|(o, l)| o + l <= offset),
                        "a body is put where another one is"
                    );
                    self.lent.insert(offset, u64::from(header.body));
                }
                _ => {}
            }
        }
    }

    fn check(&self) {
        self.kept.iter().for_each(Kept::check);
    }
}

fn copied(rows: &RecordBatch) -> RecordBatch {
    decode(encoded(rows).into(), &rows.schema()).expect("what is written is read again")
}

fn id() -> RequestId {
    RequestId { operator: 1, group: 1, sequence: 1 }
}

fn with_body(frame: &Frame, place: Place, body: u32, behind: &[u8]) -> Vec<u8> {
    let meta = frame.encode_meta();
    let header = Header { kind: frame.kind(), place, meta: meta.len() as u32, body };
    [&header.encode()[..], &meta, behind].concat()
}

/// Batches so long that some of their columns stay in the segment, and their bodies.
fn large() -> &'static [(RecordBatch, Vec<u8>)] {
    static LARGE: OnceLock<Vec<(RecordBatch, Vec<u8>)>> = OnceLock::new();
    LARGE.get_or_init(|| {
        let repeated = |rows: RecordBatch| {
            let piece = Piece { rows: rows.num_rows(), batch: Arc::new(rows), offset: 0 };
            let rows = gather(std::iter::repeat_n(&piece, 150)).expect("of one schema");
            let body = encoded(&rows);
            (rows, body)
        };
        arrays::batches().into_iter().map(repeated).collect()
    })
}

/// A peer's bytes, as it says them; the end of the connection where it has said nothing more.
#[derive(Clone, Default)]
struct Feed(Arc<Mutex<VecDeque<u8>>>);

impl Feed {
    fn push(&self, bytes: &[u8]) {
        self.0.lock().expect("one thread").extend(bytes);
    }
}

impl AsyncRead for Feed {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut bytes = self.0.lock().expect("one thread");
        let n = bytes.len().min(into.remaining());
        into.put_slice(&bytes.make_contiguous()[..n]);
        bytes.drain(..n);
        Poll::Ready(Ok(()))
    }
}
