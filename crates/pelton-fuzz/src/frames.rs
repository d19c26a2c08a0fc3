//! Frames that are well-formed, and say whatever the input wants them to.

use pelton_core::call::Priority;
use pelton_core::error::{Error, Fate, Kind, Retry};
use pelton_core::id::{RequestId, RequestRun};
use pelton_wire::{Deadlines, Demand, Entry, Frame, MAX_REQUESTS};

use crate::input::Input;

/// Most requests of one run: longer ones only cost time.
const LONGEST: u64 = 1 << 12;

/// A few ids around each other, so that frames are about the same requests.
pub(crate) fn id(input: &mut Input<'_>) -> RequestId {
    let (operator, group) = (u32::from(input.below(3)), u64::from(input.below(2)));
    RequestId { operator, group, sequence: u64::from(input.below(32)) }
}

fn run(input: &mut Input<'_>) -> RequestRun {
    let mut first = id(input);
    let count = match input.u8() {
        n @ ..=249 => u64::from(n % 16) + 1,
        250..=252 => {
            first.sequence = u64::MAX - u64::from(input.u8()) - 1;
            1
        }
        _ => input.number().clamp(1, LONGEST),
    };
    let room = u64::MAX - first.sequence;
    RequestRun { first, count: count.min(room) as u32 }
}

pub(crate) fn runs(input: &mut Input<'_>) -> Vec<RequestRun> {
    let n = input.below(5);
    let runs: Vec<RequestRun> = (0..n).map(|_| run(input)).collect();
    assert!(RequestRun::total(&runs) <= MAX_REQUESTS, "the generator keeps to the protocol");
    runs
}

pub(crate) fn streams(input: &mut Input<'_>) -> Vec<(RequestId, u32)> {
    runs(input).into_iter().map(|run| (run.first, run.count)).collect()
}

pub(crate) fn error(input: &mut Input<'_>) -> Error {
    let kind = Kind::ALL[usize::from(input.below(Kind::ALL.len() as u8))];
    let fate = [Fate::NotSent, Fate::Refused, Fate::Unknown, Fate::Executed][usize::from(input.below(4))];
    let retry = match input.below(4) {
        0 => Retry::Never,
        1 => Retry::Here,
        2 => Retry::Elsewhere,
        _ => Retry::After(input.duration()),
    };
    Error::new(kind, fate, retry, "lies")
}

pub(crate) fn demand(input: &mut Input<'_>) -> Demand {
    let weight = f64::from_bits(input.number());
    Demand {
        row_bytes: input.number(),
        row_weight: if weight.is_finite() && weight >= 0.0 { weight } else { f64::from(input.u8()) },
        patience: input.bool().then(|| input.duration()),
        interactive: input.number(),
        bulk: input.number(),
    }
}

fn deadlines(input: &mut Input<'_>, requests: u64) -> Deadlines {
    match input.below(3) {
        0 => Deadlines::None,
        1 => Deadlines::All(input.duration()),
        _ => Deadlines::Each((0..requests.min(LONGEST)).map(|_| input.duration()).collect()),
    }
}

pub(crate) fn request(input: &mut Input<'_>) -> Frame {
    let method = u16::from(input.below(3));
    let priority = [Priority::Interactive, Priority::Normal, Priority::Bulk][usize::from(input.below(3))];
    let alone = input.bool();
    let mut runs = runs(input);
    runs.retain(|run| run.count <= 64);
    let deadlines = deadlines(input, RequestRun::total(&runs));
    Frame::Request { method, priority, alone, deadlines, runs }
}

pub(crate) fn results(input: &mut Input<'_>) -> Frame {
    let method = u16::from(input.below(3));
    let entry = |mut run: RequestRun, input: &mut Input<'_>| {
        run.count = run.count.min(64);
        Entry { run, rows: u32::from(input.below(4)), last: input.bool() }
    };
    let entries = runs(input).into_iter().map(|run| entry(run, input)).collect();
    Frame::Results { method, entries }
}

/// What the two ends say of how bodies travel.
pub(crate) fn between(input: &mut Input<'_>) -> Frame {
    match input.below(3) {
        0 => Frame::Segment { bytes: input.number() },
        1 => Frame::Release { offsets: (0..input.below(5)).map(|_| input.number()).collect() },
        _ => Frame::Piece,
    }
}

/// Any frame but those of [`between`] and those whose meta part is JSON.
pub(crate) fn any(input: &mut Input<'_>) -> Frame {
    match input.below(21) {
        0 => Frame::Announce { rows: input.number(), like: demand(input) },
        1 => Frame::Permit { rows: input.number(), held: input.number() },
        2 => Frame::Return { rows: input.number() },
        3 => request(input),
        4 => results(input),
        5 => Frame::Failure { runs: runs(input), error: error(input) },
        6 => Frame::HandBack { runs: runs(input) },
        7 => Frame::Holds { runs: runs(input), last: input.bool() },
        8 => Frame::Attach { runs: runs(input) },
        9 => Frame::Cancel { runs: runs(input) },
        10 => Frame::Acknowledge { runs: runs(input) },
        11 => Frame::Draining,
        12 => Frame::Load { held: input.number() },
        13 => Frame::Ping(input.number()),
        14 => Frame::Pong(input.number()),
        15 => Frame::Drain,
        16 => Frame::Stop,
        17 => Frame::Query,
        18 => Frame::Credit { window: input.number(), total: input.number(), taken: streams(input) },
        19 => Frame::Resume { streams: streams(input) },
        _ => Frame::Refused(error(input)),
    }
}
