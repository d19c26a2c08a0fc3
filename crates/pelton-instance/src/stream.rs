//! A streamed answer at the instance: which of its parts wait, and which are kept; and what a caller has under way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use pelton_core::declaration::StreamLimits;
use pelton_core::{RequestId, RequestRun, Result};
use pelton_wire::body::{self, Piece};

/// What a part counts for beside its rows: columns and frames take room too, and a part may be one short word.
const OVERHEAD: u64 = 1 << 10;

/// The parts that a request's method gave, numbered from 0.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    /// The number of the first that is kept.
    first: u64,
    /// The number of the next to send to whoever is attached.
    next: u64,
    /// The number of the next that the method gives.
    end: u64,
    /// From `first` to `end`; none while they are on disk.
    parts: VecDeque<(Piece, u64)>,
    bytes: u64,
    /// The client that has some of it.
    pub(crate) owner: String,
}

impl Stream {
    pub(crate) fn push(&mut self, piece: Piece) {
        let bytes = size(&piece);
        self.bytes += bytes;
        self.parts.push_back((piece, bytes));
        self.end += 1;
    }

    /// The parts that are kept.
    pub(crate) fn kept(&self) -> Vec<Piece> {
        self.parts.iter().map(|(piece, _)| piece.clone()).collect()
    }

    /// They are on disk, and not here.
    pub(crate) fn went(&mut self) {
        self.parts = VecDeque::new();
        self.bytes = 0;
    }

    /// They are here again.
    pub(crate) fn came_back(&mut self, pieces: Vec<Piece>) {
        self.parts = own(pieces).into_iter().map(|piece| (piece.clone(), size(&piece))).collect();
        self.bytes = self.parts.iter().map(|(_, bytes)| bytes).sum();
    }

    /// Bytes of the parts that are kept, sent or not.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a caller that has nothing of it can still have all of it.
    pub(crate) fn is_whole(&self) -> bool {
        self.first == 0
    }

    pub(crate) fn has_unsent(&self) -> bool {
        self.next < self.end
    }

    /// Begins anew after so many parts; false if they are not there any more, or never were.
    pub(crate) fn rewind(&mut self, after: u64) -> bool {
        let there = (self.first..=self.end).contains(&after);
        if there {
            self.next = after;
        }
        there
    }

    /// Sends what there is room for.
    pub(crate) fn send(&mut self, id: RequestId, untaken: &mut Untaken) -> Vec<Piece> {
        let mut sent = Vec::new();
        while untaken.room(id)
            && let Some((piece, bytes)) = self.parts.get((self.next - self.first) as usize)
        {
            untaken.sent(id, *bytes);
            sent.push(piece.clone());
            self.next += 1;
        }
        sent
    }

    /// Forgets parts that the caller has, once there are more than may be kept: all but the last so many of those that were sent.
    pub(crate) fn forget(&mut self, under_way: u64, kept: u64) {
        if self.is_whole() && self.bytes <= kept {
            return;
        }
        while self.first + under_way < self.next
            && let Some((_, bytes)) = self.parts.pop_front()
        {
            self.first += 1;
            self.bytes -= bytes;
        }
    }
}

/// The same in buffers of their own: what was read from disk has results of others in it, and is not there twice for ever.
fn own(pieces: Vec<Piece>) -> Vec<Piece> {
    let Ok(rows) = body::gather(&pieces).and_then(|rows| body::copy(&rows)) else { return pieces };
    let (batch, mut offset) = (Arc::new(rows), 0);
    let piece = |old: Piece| {
        offset += old.rows;
        Piece { batch: batch.clone(), offset: offset - old.rows, rows: old.rows }
    };
    pieces.into_iter().map(piece).collect()
}

fn size(piece: &Piece) -> u64 {
    body::bytes(&piece.batch.slice(piece.offset, piece.rows)) + OVERHEAD
}

/// A part in pieces of at most about so many bytes; one row is never divided. An error for a row above `max_row`: its size.
pub(crate) fn split(part: Piece, most: u64, max_row: u64) -> Result<Vec<Piece>, u64> {
    let mut pieces = Vec::new();
    let mut rest = vec![part];
    while let Some(piece) = rest.pop() {
        let bytes = body::bytes(&piece.batch.slice(piece.offset, piece.rows));
        if piece.rows > 1 && bytes > most {
            let half = piece.rows / 2;
            rest.push(Piece { offset: piece.offset + half, rows: piece.rows - half, ..piece.clone() });
            rest.push(Piece { rows: half, ..piece });
        } else if bytes > max_row {
            return Err(bytes);
        } else {
            pieces.push(piece);
        }
    }
    Ok(pieces)
}

/// What was sent over a connection and not taken: in bytes, by stream. A stream may have a window full of it, and all together a total;
/// the last part of each may exceed them. One that has nothing under way has always room for one part.
#[derive(Debug)]
pub(crate) struct Untaken {
    window: u64,
    total: u64,
    bytes: u64,
    streams: BTreeMap<RequestId, (VecDeque<u64>, u64)>,
    /// Those that wait for room.
    waiting: BTreeSet<RequestId>,
}

impl Untaken {
    pub(crate) fn new(limits: &StreamLimits) -> Self {
        Untaken {
            window: limits.window.get(),
            total: limits.total.get(),
            bytes: 0,
            streams: BTreeMap::new(),
            waiting: BTreeSet::new(),
        }
    }

    pub(crate) fn limit(&mut self, window: u64, total: u64) {
        (self.window, self.total) = (window, total);
    }

    pub(crate) fn room(&self, id: RequestId) -> bool {
        self.streams.get(&id).is_none_or(|(_, bytes)| *bytes < self.window && self.bytes < self.total)
    }

    /// Whether no other stream should begin.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= self.total
    }

    fn sent(&mut self, id: RequestId, bytes: u64) {
        let (parts, all) = self.streams.entry(id).or_default();
        parts.push_back(bytes);
        *all += bytes;
        self.bytes += bytes;
    }

    /// So many of the oldest have been taken.
    pub(crate) fn taken(&mut self, id: RequestId, parts: u32) {
        let Some((sizes, all)) = self.streams.get_mut(&id) else { return };
        let freed: u64 = sizes.drain(..sizes.len().min(parts as usize)).sum();
        *all -= freed;
        self.bytes -= freed;
        if sizes.is_empty() {
            self.streams.remove(&id);
        }
    }

    /// Parts of a stream that are under way.
    pub(crate) fn parts(&self, id: RequestId) -> u64 {
        self.streams.get(&id).map_or(0, |(sizes, _)| sizes.len() as u64)
    }

    /// Nothing of these will be taken any more.
    pub(crate) fn forget(&mut self, run: RequestRun) {
        let last = RequestId { sequence: run.first.sequence + u64::from(run.count - 1), ..run.first };
        let range = run.first..=last;
        let ids = self.streams.range(range.clone()).map(|(id, _)| *id);
        let ids: Vec<RequestId> = ids.chain(self.waiting.range(range).copied()).collect();
        for id in ids {
            self.taken(id, u32::MAX);
            self.waiting.remove(&id);
        }
    }

    /// A stream waits for room, or does not.
    pub(crate) fn wait(&mut self, id: RequestId, waits: bool) {
        if waits {
            self.waiting.insert(id);
        } else {
            self.waiting.remove(&id);
        }
    }

    pub(crate) fn waiting(&self) -> Vec<RequestId> {
        self.waiting.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, RecordBatch, StringArray};
    use pelton_core::Bytes;

    use super::*;

    fn id(sequence: u64) -> RequestId {
        RequestId { operator: 1, group: 1, sequence }
    }

    fn texts(lengths: &[usize]) -> Piece {
        let column: ArrayRef =
            Arc::new(StringArray::from_iter_values(lengths.iter().map(|n| "x".repeat(*n))));
        let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
        Piece { offset: 0, rows: lengths.len(), batch: Arc::new(batch) }
    }

    /// Parts of 3 KB with their overhead.
    fn part() -> Piece {
        texts(&[2048 - 8])
    }

    /// What stream 1 sends and keeps after each step, with room for 9 KB a stream and 15 KB in all, and 12 KB kept: `+` the method gives a
    /// part, `-2` two are taken, `o4` another stream sends four, `O4` four of that are taken, `r2` it is resumed after two on a
    /// new connection.
    fn check(script: &str, expected: &str) {
        let limits = StreamLimits { window: Bytes::kib(9), total: Bytes::kib(15), kept: Bytes::kib(12) };
        let (mut stream, mut untaken) = (Stream::default(), Untaken::new(&limits));
        let mut told = Vec::new();
        for word in script.split_whitespace() {
            let (what, number) = word.split_at(1);
            let number = || number.parse::<u64>().unwrap();
            let mut known = true;
            match what {
                "+" => stream.push(part()),
                "-" => untaken.taken(id(1), number() as u32),
                "o" => (0..number()).for_each(|_| untaken.sent(id(2), 3 << 10)),
                "O" => untaken.taken(id(2), number() as u32),
                "r" => {
                    untaken = Untaken::new(&limits);
                    known = stream.rewind(number());
                }
                other => panic!("{other}"),
            }
            let sent = if known { stream.send(id(1), &mut untaken).len() } else { 0 };
            if known {
                stream.forget(untaken.parts(id(1)), 12 << 10);
            }
            let rest = if stream.has_unsent() { "+" } else { "" };
            let cut = if stream.is_whole() { "" } else { "cut" };
            told.push(format!("{}{sent}{rest}/{}{cut}", if known { "" } else { "?" }, stream.parts.len()));
        }
        assert_eq!(told.join(" "), expected, "{script}");
    }

    #[test]
    fn it_runs_ahead_by_a_window() {
        check("+ + + + -1 -3 +", "1/1 1/2 1/3 0+/4 1/4 0/4 1/1cut");
        check("+ + -1 -1 + + +", "1/1 1/2 0/2 0/2 1/3 1/4 1/3cut");
        check("+ -1 + -1 + -1 + -1 + -1", "1/1 0/1 1/2 0/2 1/3 0/3 1/4 0/4 1/1cut 0/0cut");
    }

    #[test]
    fn it_has_one_part_under_way_whatever_others_have() {
        check("o5 + + -1 + O1 -1", "0/0 1/1 0+/2 1/2 0+/3 0+/3 1/3");
        check("+ o4 + O1", "1/1 0/1 0+/2 1/2");
    }

    #[test]
    fn it_is_resumed_where_the_caller_is_as_far_as_it_is_kept() {
        check("+ + + -2 r2 r0 r4", "1/1 1/2 1/3 0/3 1/3 3/3 ?0/3");
        check("+ + + -3 + + -1 r2 r3 r5", "1/1 1/2 1/3 0/3 1/4 1/2cut 0/1cut ?0/1cut ?0/1cut 0/0cut");
        // What is not taken is never forgotten.
        check("+ + + + + r0", "1/1 1/2 1/3 0+/4 0+/5 3+/5");
    }

    #[test]
    fn parts_are_divided_by_rows_and_rows_are_not() {
        let check = |lengths: &[usize], most, max, expected: Result<&[usize], u64>| {
            let pieces =
                split(texts(lengths), most, max).map(|p| p.iter().map(|p| p.rows).collect::<Vec<_>>());
            assert_eq!(pieces, expected.map(<[usize]>::to_vec), "{lengths:?}");
        };
        check(&[10, 10], 1000, 1000, Ok(&[2]));
        check(&[400, 400, 400, 400], 1000, 1000, Ok(&[2, 2]));
        check(&[10, 10, 10, 2000, 10], 1000, 9000, Ok(&[2, 1, 1, 1]));
        check(&[], 1000, 1000, Ok(&[0]));
        check(&[10, 2000], 1000, 1500, Err(2008));
    }
}
