//! Frames: their header, their meta part, and which of them overtake others.
//!
//! Header, 12 bytes, little-endian: kind `u8`, place of the body `u8` (see [`Place`]), reserved `u16` (0), meta length `u32`, body
//! length `u32`.

use std::time::Duration;

use pelton_core::call::Priority;
use pelton_core::error::{Error, Fate, Kind, Result, Retry};
use pelton_core::id::{RequestId, RequestRun};

use crate::greeting::{Greeting, Status, Welcome};
use crate::scalar::{Reader, put_text};

/// Bytes of a header.
pub const HEADER: usize = 12;

/// Most bytes of a body that stands behind its meta part: that much is allocated on the word of a peer. Longer ones come in pieces.
pub const MAX_INLINE: u32 = 1 << 20;

/// Most bytes of a meta part, whatever the connection's limit on bodies.
pub const MAX_META: u32 = 8 << 20;

/// Most requests that one frame is about.
pub const MAX_REQUESTS: u64 = 1 << 20;

/// Some requests that a result frame is about: `rows` rows of the body for each of them, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub run: RequestRun,
    pub rows: u32,
    /// Whether this ends them.
    pub last: bool,
}

/// What the rows are like that a caller would send.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    /// Mean size of a row, in bytes.
    pub row_bytes: u64,
    /// Mean weight of a row, in the service's unit.
    pub row_weight: f64,
    /// How long their callers wait for an answer, the shortest; none: as long as it takes.
    pub patience: Option<Duration>,
    /// How many of them are interactive, and how many bulk; the rest is normal.
    pub interactive: u64,
    pub bulk: u64,
}

/// How much time some requests have left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deadlines {
    None,
    /// All of them the same.
    All(Duration),
    /// Each its own, in the order of their ids.
    Each(Vec<Duration>),
}

impl Deadlines {
    /// What the request at this place has left.
    pub fn of(&self, place: usize) -> Option<Duration> {
        match self {
            Deadlines::None => None,
            Deadlines::All(d) => Some(*d),
            Deadlines::Each(all) => all.get(place).copied(),
        }
    }
}

/// What one side says to the other, less the record batch that some of them carry.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// Who connects, and why. First frame of the connecting side.
    Hello(Greeting),
    /// Accepted. First frame of the listening side.
    Welcome(Box<Welcome>),
    /// Not accepted; the connection ends.
    Refused(Error),

    /// Caller: how many rows it would send, counted from the start of the connection: demand is this less what was permitted.
    /// Absolute, so that it can be corrected downwards and repeated without harm. And what these rows are like.
    Announce {
        rows: u64,
        like: Demand,
    },
    /// Instance: how many rows may have been sent, counted from the start of the connection; and how many it holds now.
    Permit {
        rows: u64,
        held: u64,
    },
    /// Caller: how many permitted rows it will not use, counted from the start of the connection.
    Return {
        rows: u64,
    },

    /// Caller: requests, one row of the body each.
    Request {
        method: u16,
        priority: Priority,
        /// They were running when an instance died, more than once: each runs in a batch of its own.
        alone: bool,
        deadlines: Deadlines,
        runs: Vec<RequestRun>,
    },
    /// Instance: results, rows in the body.
    Results {
        method: u16,
        entries: Vec<Entry>,
    },
    /// Instance: these ended in this error.
    Failure {
        runs: Vec<RequestRun>,
        error: Error,
    },
    /// Instance: it does not hold these, and nothing of them ran: hand-back at a drain, or unknown at an [`Attach`](Frame::Attach).
    HandBack {
        runs: Vec<RequestRun>,
    },
    /// Instance, once a caller has joined: what it queues, runs or keeps the results of, whoever sent it. `last`: that was all.
    Holds {
        runs: Vec<RequestRun>,
        last: bool,
    },
    /// Caller: these were sent on an earlier connection; go on with them here.
    Attach {
        runs: Vec<RequestRun>,
    },
    /// Caller: nobody waits for these any more.
    Cancel {
        runs: Vec<RequestRun>,
    },
    /// Caller: forget these results.
    Acknowledge {
        runs: Vec<RequestRun>,
    },

    /// Caller: bytes of parts that each of its streams here, and all of them together, may have under way; and of these streams it has
    /// taken so many parts more. Counted from the start of the connection; what is cancelled is not counted any more.
    Credit {
        window: u64,
        total: u64,
        taken: Vec<(RequestId, u32)>,
    },
    /// Caller: streams of an earlier connection; go on with them here after so many parts.
    Resume {
        streams: Vec<(RequestId, u32)>,
    },

    /// Instance: it takes nothing new.
    Draining,
    /// Instance: how much it holds, for balancing.
    Load {
        held: u64,
    },
    /// Either: answer with the same number.
    Ping(u64),
    Pong(u64),

    /// Instance, to control and observers: what it says of itself.
    Status(Box<Status>),
    /// Control: hand back what has not started, finish the rest, and leave.
    Drain,
    /// Control: leave now.
    Stop,
    /// Observer, to control: what runs? Answered by a [`Report`](Frame::Report).
    Query,
    /// Control: everything about a job, as JSON.
    Report(String),
    /// Observer, to control: do this, as JSON. Answered by a [`Report`](Frame::Report) once it is done.
    Command(String),

    // What follows is between the two ends of a connection, and nobody else hears of it.
    /// Either, once: the descriptor that comes with this is a segment of so many bytes, in which it puts bodies.
    Segment {
        bytes: u64,
    },
    /// Either: the bodies at these offsets of the peer's segment are not looked at any more.
    Release {
        offsets: Vec<u64>,
    },
    /// Either: its body is the next piece of the body that was begun.
    Piece,
}

/// Where a frame's body is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Behind the meta part; at most [`MAX_INLINE`] bytes.
    #[default]
    Inline = 0,
    /// In the sender's segment; behind the meta part stands its offset there, `u64`.
    Segment = 1,
    /// In the [`Piece`](Frame::Piece)s that follow; only frames that overtake come between them.
    Pieces = 2,
}

/// A header as it was read, its lengths already held against the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: u8,
    pub place: Place,
    pub meta: u32,
    pub body: u32,
}

impl Header {
    /// Reads a header; refuses lengths above the limits, naming them.
    pub fn decode(bytes: &[u8; HEADER], max_meta: u32, max_body: u64) -> Result<Header> {
        let mut r = Reader::new(bytes);
        let (kind, place, reserved, meta, body) = (r.u8()?, r.u8()?, r.u16()?, r.u32()?, r.u32()?);
        let place = match (place, reserved) {
            (0, 0) => Place::Inline,
            (1, 0) => Place::Segment,
            (2, 0) => Place::Pieces,
            _ => {
                return Err(Error::protocol(
                    "a frame header has reserved bits set; the peer speaks something else",
                ));
            }
        };
        if meta > max_meta {
            return Err(Error::protocol(format!(
                "a frame's meta part of {meta} bytes is over the limit of {max_meta}"
            )));
        }
        if u64::from(body) > max_body {
            return Err(Error::protocol(format!(
                "a frame's body of {body} bytes is over the limit of {max_body} (max_message)"
            )));
        }
        if place == Place::Inline && body > MAX_INLINE {
            return Err(Error::protocol(format!(
                "a frame's body of {body} bytes in one piece is over the limit of {MAX_INLINE}"
            )));
        }
        if place != Place::Inline && body == 0 {
            return Err(Error::protocol("a frame without a body says where it is"));
        }
        Ok(Header { kind, place, meta, body })
    }

    pub fn encode(self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[0] = self.kind;
        out[1] = self.place as u8;
        out[4..8].copy_from_slice(&self.meta.to_le_bytes());
        out[8..].copy_from_slice(&self.body.to_le_bytes());
        out
    }
}

impl Frame {
    /// The number that stands for this kind of frame on the wire.
    pub fn kind(&self) -> u8 {
        match self {
            Frame::Hello(_) => 1,
            Frame::Welcome(_) => 2,
            Frame::Refused(_) => 3,
            Frame::Announce { .. } => 4,
            Frame::Permit { .. } => 5,
            Frame::Return { .. } => 6,
            Frame::Request { .. } => 7,
            Frame::Results { .. } => 8,
            Frame::Failure { .. } => 9,
            Frame::HandBack { .. } => 10,
            Frame::Attach { .. } => 11,
            Frame::Cancel { .. } => 12,
            Frame::Acknowledge { .. } => 13,
            Frame::Draining => 14,
            Frame::Load { .. } => 15,
            Frame::Ping(_) => 16,
            Frame::Pong(_) => 17,
            Frame::Status(_) => 18,
            Frame::Drain => 19,
            Frame::Stop => 20,
            Frame::Query => 21,
            Frame::Report(_) => 22,
            Frame::Command(_) => 23,
            Frame::Holds { .. } => 24,
            Frame::Credit { .. } => 30,
            Frame::Resume { .. } => 31,
            Frame::Segment { .. } => 32,
            Frame::Release { .. } => 33,
            Frame::Piece => 34,
        }
    }

    /// Whether it carries a record batch. Such frames wait for one another; all others overtake them.
    pub fn has_body(&self) -> bool {
        matches!(self, Frame::Request { .. } | Frame::Results { .. })
    }

    /// Whether its place among the data frames matters: it must not overtake what it is about. A cancellation that overtook its
    /// request would find nothing to cancel. A ping and its answer tell that all that was said before them is there.
    pub fn keeps_order(&self) -> bool {
        let about_requests = matches!(
            self,
            Frame::Failure { .. }
                | Frame::HandBack { .. }
                | Frame::Attach { .. }
                | Frame::Resume { .. }
                | Frame::Cancel { .. }
        );
        self.has_body() || about_requests || matches!(self, Frame::Ping(_) | Frame::Pong(_))
    }

    /// Visits the operator in each id of a request that the frame is about.
    pub fn operators(&mut self, visit: &mut dyn FnMut(&mut u32)) {
        match self {
            Frame::Request { runs, .. }
            | Frame::Failure { runs, .. }
            | Frame::HandBack { runs }
            | Frame::Holds { runs, .. }
            | Frame::Attach { runs }
            | Frame::Cancel { runs }
            | Frame::Acknowledge { runs } => runs.iter_mut().for_each(|run| visit(&mut run.first.operator)),
            Frame::Results { entries, .. } => {
                entries.iter_mut().for_each(|entry| visit(&mut entry.run.first.operator));
            }
            // Each by its name: a new frame with ids belongs above.
            Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::Refused(_)
            | Frame::Announce { .. }
            | Frame::Permit { .. }
            | Frame::Return { .. }
            | Frame::Draining
            | Frame::Load { .. }
            | Frame::Ping(_)
            | Frame::Pong(_)
            | Frame::Status(_)
            | Frame::Drain
            | Frame::Stop
            | Frame::Query
            | Frame::Report(_)
            | Frame::Command(_)
            | Frame::Segment { .. }
            | Frame::Release { .. }
            | Frame::Piece => {}
            Frame::Credit { taken: streams, .. } | Frame::Resume { streams } => {
                streams.iter_mut().for_each(|(id, _)| visit(&mut id.operator));
            }
        }
    }

    /// The meta part.
    pub fn encode_meta(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Frame::Hello(greeting) => out = json(greeting),
            Frame::Welcome(welcome) => out = json(welcome),
            Frame::Status(status) => out = json(status),
            Frame::Report(text) | Frame::Command(text) => out = text.clone().into_bytes(),
            Frame::Refused(error) => put_error(&mut out, error),
            Frame::Announce { rows, like } => {
                out.extend(rows.to_le_bytes());
                out.extend(like.row_bytes.to_le_bytes());
                out.extend(like.row_weight.to_le_bytes());
                out.extend(micros(like.patience).to_le_bytes());
                out.extend(like.interactive.to_le_bytes());
                out.extend(like.bulk.to_le_bytes());
            }
            Frame::Permit { rows, held } => {
                out.extend(rows.to_le_bytes());
                out.extend(held.to_le_bytes());
            }
            Frame::Return { rows } => out.extend(rows.to_le_bytes()),
            Frame::Request { method, priority, alone, deadlines, runs } => {
                out.extend(method.to_le_bytes());
                out.push(*priority as u8);
                out.push(u8::from(*alone));
                put_deadlines(&mut out, deadlines);
                put_runs(&mut out, runs);
            }
            Frame::Results { method, entries } => {
                out.extend(method.to_le_bytes());
                out.extend((entries.len() as u32).to_le_bytes());
                for entry in entries {
                    put_run(&mut out, entry.run);
                    out.extend(entry.rows.to_le_bytes());
                    out.push(u8::from(entry.last));
                }
            }
            Frame::Failure { runs, error } => {
                put_error(&mut out, error);
                put_runs(&mut out, runs);
            }
            Frame::HandBack { runs }
            | Frame::Attach { runs }
            | Frame::Cancel { runs }
            | Frame::Acknowledge { runs } => put_runs(&mut out, runs),
            Frame::Holds { runs, last } => {
                out.push(u8::from(*last));
                put_runs(&mut out, runs);
            }
            Frame::Credit { window, total, taken } => {
                out.extend(window.to_le_bytes());
                out.extend(total.to_le_bytes());
                put_streams(&mut out, taken);
            }
            Frame::Resume { streams } => put_streams(&mut out, streams),
            Frame::Load { held } => out.extend(held.to_le_bytes()),
            Frame::Segment { bytes } => out.extend(bytes.to_le_bytes()),
            Frame::Release { offsets } => {
                out.extend((offsets.len() as u32).to_le_bytes());
                out.extend(offsets.iter().flat_map(|offset| offset.to_le_bytes()));
            }
            Frame::Ping(n) | Frame::Pong(n) => out.extend(n.to_le_bytes()),
            Frame::Draining | Frame::Drain | Frame::Stop | Frame::Query | Frame::Piece => {}
        }
        out
    }

    /// Reads a meta part. What it says is well-formed after this; whether it makes sense is for the receiver to check.
    pub fn decode_meta(kind: u8, meta: &[u8]) -> Result<Frame> {
        let mut r = Reader::new(meta);
        let frame = match kind {
            1 => return Ok(Frame::Hello(from_json(meta)?)),
            2 => return Ok(Frame::Welcome(from_json(meta)?)),
            18 => return Ok(Frame::Status(from_json(meta)?)),
            22 => return Ok(Frame::Report(text(meta)?)),
            23 => return Ok(Frame::Command(text(meta)?)),
            3 => Frame::Refused(error(&mut r)?),
            4 => Frame::Announce { rows: r.u64()?, like: demand(&mut r)? },
            5 => Frame::Permit { rows: r.u64()?, held: r.u64()? },
            6 => Frame::Return { rows: r.u64()? },
            7 => {
                let (method, priority, alone) = (r.u16()?, priority(r.u8()?)?, r.u8()? != 0);
                let deadlines = deadlines(&mut r)?;
                let runs = runs(&mut r)?;
                if let Deadlines::Each(each) = &deadlines
                    && each.len() as u64 != RequestRun::total(&runs)
                {
                    return Err(Error::protocol(format!(
                        "a frame has {} deadlines for {} requests",
                        each.len(),
                        RequestRun::total(&runs)
                    )));
                }
                Frame::Request { method, priority, alone, deadlines, runs }
            }
            8 => {
                let method = r.u16()?;
                let n = r.count(RUN + 5)?;
                let mut entries = Vec::with_capacity(n);
                for _ in 0..n {
                    entries.push(Entry { run: run(&mut r)?, rows: r.u32()?, last: r.u8()? != 0 });
                }
                if entries.iter().map(|e| u64::from(e.run.count)).sum::<u64>() > MAX_REQUESTS {
                    return Err(Error::protocol(format!(
                        "a frame is about more than {MAX_REQUESTS} requests"
                    )));
                }
                Frame::Results { method, entries }
            }
            9 => Frame::Failure { error: error(&mut r)?, runs: runs(&mut r)? },
            10 => Frame::HandBack { runs: runs(&mut r)? },
            11 => Frame::Attach { runs: runs(&mut r)? },
            12 => Frame::Cancel { runs: runs(&mut r)? },
            13 => Frame::Acknowledge { runs: runs(&mut r)? },
            14 => Frame::Draining,
            15 => Frame::Load { held: r.u64()? },
            16 => Frame::Ping(r.u64()?),
            17 => Frame::Pong(r.u64()?),
            19 => Frame::Drain,
            20 => Frame::Stop,
            21 => Frame::Query,
            24 => {
                let last = r.u8()? != 0;
                Frame::Holds { runs: runs(&mut r)?, last }
            }
            30 => Frame::Credit { window: r.u64()?, total: r.u64()?, taken: streams(&mut r)? },
            31 => Frame::Resume { streams: streams(&mut r)? },
            32 => Frame::Segment { bytes: r.u64()? },
            33 => {
                let n = r.count(8)?;
                Frame::Release { offsets: (0..n).map(|_| r.u64()).collect::<Result<_>>()? }
            }
            34 => Frame::Piece,
            other => return Err(Error::protocol(format!("a frame of unknown kind {other}"))),
        };
        r.end()?;
        Ok(frame)
    }
}

fn text(meta: &[u8]) -> Result<String> {
    String::from_utf8(meta.to_vec()).map_err(|_| Error::protocol("a report or command is not UTF-8"))
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("greetings and reports are plain data")
}

fn from_json<T: serde::de::DeserializeOwned>(meta: &[u8]) -> Result<T> {
    serde_json::from_slice(meta)
        .map_err(|e| Error::protocol(format!("a greeting or status cannot be read: {}", without_values(&e))))
}

/// What is wrong, without what the peer said there: a peer that says our own greeting back would bring its token into logs.
fn without_values(e: &serde_json::Error) -> String {
    let text = e.to_string();
    if !e.is_data() || text.starts_with("missing field") {
        return text;
    }
    let kind = text.split(['`', '"']).next().unwrap_or_default().trim_end();
    format!("{kind} at column {}", e.column())
}

/// Rounded up, so that a deadline that is set never becomes 0, which means none.
fn micros(d: Option<Duration>) -> u64 {
    d.map_or(0, |d| u64::try_from(d.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX).max(1))
}

fn duration(micros: u64) -> Option<Duration> {
    (micros != 0).then(|| Duration::from_micros(micros))
}

fn demand(r: &mut Reader<'_>) -> Result<Demand> {
    let (row_bytes, row_weight) = (r.u64()?, f64::from_bits(r.u64()?));
    if !(row_weight.is_finite() && row_weight >= 0.0) {
        return Err(Error::protocol("an announced weight is not a number of 0 or more"));
    }
    Ok(Demand { row_bytes, row_weight, patience: duration(r.u64()?), interactive: r.u64()?, bulk: r.u64()? })
}

/// What kind `u8`, then one duration or a number `u32` of them, in microseconds `u64` each.
fn put_deadlines(out: &mut Vec<u8>, deadlines: &Deadlines) {
    match deadlines {
        Deadlines::None => out.push(0),
        Deadlines::All(d) => {
            out.push(1);
            out.extend(micros(Some(*d)).to_le_bytes());
        }
        Deadlines::Each(each) => {
            out.push(2);
            out.extend((each.len() as u32).to_le_bytes());
            for d in each {
                out.extend(micros(Some(*d)).to_le_bytes());
            }
        }
    }
}

fn deadlines(r: &mut Reader<'_>) -> Result<Deadlines> {
    // What is written is never 0, and what is read neither: it comes back as it was read.
    let some = |micros: u64| Duration::from_micros(micros.max(1));
    match r.u8()? {
        0 => Ok(Deadlines::None),
        1 => Ok(Deadlines::All(some(r.u64()?))),
        2 => {
            let n = r.count(8)?;
            let each = (0..n).map(|_| Ok(some(r.u64()?))).collect::<Result<_>>()?;
            Ok(Deadlines::Each(each))
        }
        other => Err(Error::protocol(format!("a request has an unknown kind {other} of deadlines"))),
    }
}

fn priority(code: u8) -> Result<Priority> {
    [Priority::Interactive, Priority::Normal, Priority::Bulk]
        .into_iter()
        .find(|p| *p as u8 == code)
        .ok_or_else(|| Error::protocol(format!("a request has the unknown priority {code}")))
}

/// Bytes of a run: operator `u32`, group `u64`, first sequence `u64`, count `u32`.
const RUN: usize = 24;

fn put_run(out: &mut Vec<u8>, run: RequestRun) {
    out.extend(run.first.operator.to_le_bytes());
    out.extend(run.first.group.to_le_bytes());
    out.extend(run.first.sequence.to_le_bytes());
    out.extend(run.count.to_le_bytes());
}

fn put_runs(out: &mut Vec<u8>, runs: &[RequestRun]) {
    out.extend((runs.len() as u32).to_le_bytes());
    for run in runs {
        put_run(out, *run);
    }
}

fn run(r: &mut Reader<'_>) -> Result<RequestRun> {
    let first = RequestId { operator: r.u32()?, group: r.u64()?, sequence: r.u64()? };
    let count = r.u32()?;
    if count == 0 || first.sequence.checked_add(u64::from(count)).is_none() {
        return Err(Error::protocol(format!("a run of {count} requests from {first} cannot be")));
    }
    Ok(RequestRun { first, count })
}

fn runs(r: &mut Reader<'_>) -> Result<Vec<RequestRun>> {
    let n = r.count(RUN)?;
    let runs: Vec<RequestRun> = (0..n).map(|_| run(r)).collect::<Result<_>>()?;
    if RequestRun::total(&runs) > MAX_REQUESTS {
        return Err(Error::protocol(format!("a frame is about more than {MAX_REQUESTS} requests")));
    }
    Ok(runs)
}

/// A number `u32` of streams: id as in a run, parts `u32`; which are the bytes of a run.
fn put_streams(out: &mut Vec<u8>, streams: &[(RequestId, u32)]) {
    out.extend((streams.len() as u32).to_le_bytes());
    for (first, count) in streams {
        put_run(out, RequestRun { first: *first, count: *count });
    }
}

fn streams(r: &mut Reader<'_>) -> Result<Vec<(RequestId, u32)>> {
    let n = r.count(RUN)?;
    let stream = |r: &mut Reader<'_>| {
        let id = RequestId { operator: r.u32()?, group: r.u64()?, sequence: r.u64()? };
        if id.sequence == u64::MAX {
            return Err(Error::protocol(format!("a stream {id} cannot be")));
        }
        Ok((id, r.u32()?))
    };
    (0..n).map(|_| stream(r)).collect()
}

/// An error: kind `u8`, fate `u8`, retry `u8`, wait in microseconds `u64`, message.
fn put_error(out: &mut Vec<u8>, error: &Error) {
    let fate = match error.fate() {
        Fate::NotSent => 0,
        Fate::Refused => 1,
        Fate::Unknown => 2,
        Fate::Executed => 3,
    };
    let (retry, wait) = match error.retry() {
        Retry::Never => (0, None),
        Retry::Here => (1, None),
        Retry::Elsewhere => (2, None),
        Retry::After(wait) => (3, Some(wait)),
    };
    out.extend([error.kind().code(), fate, retry]);
    out.extend(micros(wait).to_le_bytes());
    put_text(out, error.message());
}

fn error(r: &mut Reader<'_>) -> Result<Error> {
    let (kind, fate, retry, wait) = (r.u8()?, r.u8()?, r.u8()?, r.u64()?);
    let message = r.text()?;
    // A kind that a newer peer knows and we don't is still an error with a message.
    let kind = Kind::from_code(kind).unwrap_or(Kind::Internal);
    let fate = match fate {
        0 => Fate::NotSent,
        1 => Fate::Refused,
        3 => Fate::Executed,
        _ => Fate::Unknown,
    };
    let retry = match retry {
        1 => Retry::Here,
        2 => Retry::Elsewhere,
        3 => Retry::After(Duration::from_micros(wait.max(1))),
        _ => Retry::Never,
    };
    Ok(Error::new(kind, fate, retry, message))
}
