//! One windowed caller: what it has to send, and where it may send it.

use std::collections::VecDeque;

use pelton_core::Time;

use super::breaker::Breaker;
use crate::flow::backend::Answer;
use crate::flow::clock::after;
use crate::flow::draw::Draws;
use crate::flow::scenario::Work;
use crate::flow::window::Window;

#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) cost: f64,
    pub(super) output: u32,
    pub(super) arrived: Time,
}

/// What it knows of one replica.
pub(super) struct Lane {
    /// None: the plan says.
    pub(super) window: Option<Box<dyn Window>>,
    pub(super) in_flight: f64,
    /// A round trip's time, smoothed.
    round_trip: f64,
    last: Option<Time>,
    breaker: Breaker,
    /// Spreads the fraction of a window over time, so that 2.5 is sometimes 2 and sometimes 3.
    dither: f64,
}

/// The golden ratio's fraction: its multiples are spread evenly.
const GOLDEN: f64 = 0.618_033_988_75;

impl Lane {
    pub(super) fn new(window: Option<Box<dyn Window>>, place: usize) -> Self {
        let dither = (place as f64 * GOLDEN) % 1.0;
        Lane { window, in_flight: 0.0, round_trip: 0.0, last: None, breaker: Breaker::default(), dither }
    }

    /// Counts a call that is sent; returns how many are in flight with it.
    pub(super) fn send(&mut self, now: Time) -> f64 {
        self.in_flight += 1.0;
        self.last = Some(now);
        self.dither = (self.dither + GOLDEN) % 1.0;
        self.breaker.probe();
        self.in_flight
    }

    /// How full the window is, if a call may be sent; else when to look again, if time alone will tell.
    fn room(&self, limit: f64, now: Time) -> Result<f64, Option<Time>> {
        if self.breaker.is_open() {
            return match self.breaker.probes_at() {
                Some(at) if at > now => Err(Some(at)),
                Some(_) if self.in_flight < 0.5 => Ok(0.0),
                _ => Err(None),
            };
        }
        if limit <= 0.0 {
            return Err(None);
        }
        if limit < 1.0 {
            let ready = self.last.map_or(now, |last| after(last, self.round_trip / limit));
            return match self.in_flight > 0.5 {
                true => Err(None),
                false if ready > now => Err(Some(ready)),
                false => Ok(0.0),
            };
        }
        if self.in_flight + 1.0 <= (limit + self.dither).floor() {
            Ok(self.in_flight / limit)
        } else {
            Err(None)
        }
    }
}

pub(super) enum Choice {
    Send(usize),
    Look(Time),
    /// Until something ends.
    Wait,
}

pub(super) struct Caller {
    pub(super) draws: Draws,
    /// What comes back goes first.
    pub(super) again: VecDeque<Item>,
    pub(super) waiting: VecDeque<Item>,
    pub(super) lanes: Vec<Lane>,
    pub(super) looks_at: Option<Time>,
    turn: usize,
}

impl Caller {
    pub(super) fn new(draws: Draws, lanes: Vec<Lane>, turn: usize) -> Self {
        let (again, waiting) = (VecDeque::new(), VecDeque::new());
        Caller { draws, again, waiting, lanes, looks_at: None, turn }
    }

    pub(super) fn has_nothing(&self) -> bool {
        self.again.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn draw(&mut self, work: &Work, now: Time) -> Item {
        let cost = self.draws.lognormal(work.cost);
        let output = work.output.map_or(0, |output| self.draws.lognormal(output).round().max(1.0) as u32);
        Item { cost, output, arrived: now }
    }

    /// The next items to send.
    pub(super) fn take(
        &mut self,
        work: &Work,
        saturated: bool,
        most: usize,
        now: Time,
        into: &mut Vec<Item>,
    ) {
        while into.len() < most {
            let item = match self.again.pop_front() {
                None if saturated => Some(self.draw(work, now)),
                None => self.waiting.pop_front(),
                again => again,
            };
            let Some(item) = item else { return };
            into.push(item);
        }
    }

    /// The replica whose window is least full, in turn where several are.
    pub(super) fn choose(&mut self, planned: Option<&[f64]>, now: Time) -> Choice {
        let mut best: Option<(f64, usize)> = None;
        let mut looks: Option<Time> = None;
        let count = self.lanes.len();
        for replica in (self.turn..self.turn + count).map(|i| i % count) {
            let lane = &self.lanes[replica];
            let limit = match (planned, &lane.window) {
                (Some(limits), _) => limits[replica],
                (None, Some(window)) => window.limit(),
                (None, None) => 0.0,
            };
            match lane.room(limit, now) {
                Ok(full) if best.is_none_or(|(least, _)| full < least) => best = Some((full, replica)),
                Ok(_) | Err(None) => {}
                Err(Some(at)) => looks = Some(looks.map_or(at, |other| other.min(at))),
            }
        }
        match (best, looks) {
            (Some((_, replica)), _) => {
                self.turn = (self.turn + 1) % count;
                Choice::Send(replica)
            }
            (None, Some(at)) => Choice::Look(at),
            (None, None) => Choice::Wait,
        }
    }

    /// A call ended. Returns when to ask again, if the replica seems not to be there.
    pub(super) fn ended(&mut self, replica: usize, answer: Answer, took: f64, now: Time) -> Option<Time> {
        let lane = &mut self.lanes[replica];
        match answer {
            Answer::Done => {
                lane.round_trip =
                    if lane.round_trip == 0.0 { took } else { 0.9 * lane.round_trip + 0.1 * took };
                lane.breaker.succeeded();
                None
            }
            Answer::Refused => None,
            Answer::Failed => {
                let random = self.draws.uniform();
                lane.breaker.failed(now, random)
            }
        }
    }
}
