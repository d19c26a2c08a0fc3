//! What happened, in order: printed when a seed fails, hashed to show that a seed is one run and not several.

use std::sync::{Arc, Mutex, MutexGuard};

use pelton_core::{RequestRun, Time, id::stable_hash};
use pelton_wire::frame::HEADER;
use pelton_wire::{Frame, Header, State};

/// Collects the lines of one run. Cheap to clone.
#[derive(Clone, Default)]
pub struct Trace {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Trace {
    pub fn add(&self, now: Time, what: impl std::fmt::Display) {
        self.lock().push(format!("{now} {what}"));
    }

    pub fn lines(&self) -> Vec<String> {
        self.lock().clone()
    }

    /// One number for the whole trace.
    pub fn hash(&self) -> u64 {
        self.lock().iter().fold(0, |h, line| h.rotate_left(5) ^ stable_hash(line))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Reads the frames that pass in one direction of a connection.
#[derive(Default)]
pub(crate) struct Tap {
    bytes: Vec<u8>,
    /// Bytes of the present frame's body that have not passed.
    body: usize,
}

impl Tap {
    /// The frames that are complete, up to their body, with these bytes.
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let skipped = self.body.min(bytes.len());
            self.body -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return frames;
            }
            let wanted = match self.bytes.first_chunk::<HEADER>() {
                None => HEADER,
                Some(_) => HEADER + self.header().meta as usize,
            };
            let taken = (wanted - self.bytes.len()).min(bytes.len());
            self.bytes.extend(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.bytes.len() < HEADER {
                return frames;
            }
            let header = self.header();
            if self.bytes.len() == HEADER + header.meta as usize {
                let frame = Frame::decode_meta(header.kind, &self.bytes[HEADER..]);
                frames.push(frame.expect("both sides are Pelton"));
                self.body = header.body as usize;
                self.bytes.clear();
            }
        }
    }

    fn header(&self) -> Header {
        let bytes = self.bytes.first_chunk::<HEADER>().expect("looked at when there is one");
        Header::decode(bytes, u32::MAX, u64::MAX).expect("both sides are Pelton")
    }
}

/// A frame in a few words: nothing in them differs from run to run of one seed (process ids and tokens do).
pub(crate) fn describe(frame: &Frame) -> String {
    match frame {
        Frame::Hello(g) => format!("hello {:?} {} epoch {}", g.role, g.client, g.epoch),
        Frame::Welcome(w) => {
            format!("welcome {} {} held {}", w.instance, state(&w.status.state), w.status.held)
        }
        Frame::Refused(e) => format!("refused {}", e.kind().name()),
        Frame::Announce { rows, .. } => format!("announce {rows}"),
        Frame::Permit { rows, held } => format!("permit {rows} held {held}"),
        Frame::Return { rows } => format!("return {rows}"),
        Frame::Request { priority, deadlines, runs, .. } => {
            format!(
                "request {priority:?} {} {}",
                deadlines.of(0).map_or("-".into(), |d| format!("{d:?}")),
                show(runs)
            )
        }
        Frame::Results { entries, .. } => {
            let each = entries.iter().map(|e| format!("{}{}", show(&[e.run]), if e.last { "" } else { "~" }));
            format!("results {}", each.collect::<Vec<_>>().join(" "))
        }
        Frame::Failure { runs, error } => format!("failure {} {}", error.kind().name(), show(runs)),
        Frame::HandBack { runs } => format!("hand-back {}", show(runs)),
        Frame::Holds { runs, .. } => format!("holds {}", show(runs)),
        Frame::Attach { runs } => format!("attach {}", show(runs)),
        Frame::Cancel { runs } => format!("cancel {}", show(runs)),
        Frame::Acknowledge { runs } => format!("acknowledge {}", show(runs)),
        Frame::Status(s) => format!("status {} held {} executed {}", state(&s.state), s.held, s.executed),
        other => format!("{other:?}").to_lowercase(),
    }
}

fn state(state: &State) -> &'static str {
    match state {
        State::Opening => "opening",
        State::Ready => "ready",
        State::Draining => "draining",
        State::Failed { .. } => "failed",
    }
}

fn show(runs: &[RequestRun]) -> String {
    let run = |r: &RequestRun| {
        let from = format!("{}:{}", r.first.operator, r.first.sequence);
        if r.count == 1 { from } else { format!("{from}+{}", r.count - 1) }
    };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}
