//! The inputs of a subtask as one: barriers aligned, watermarks joined.

use std::collections::VecDeque;

use crate::batch::Batch;
use crate::edge::{Ahead, Message, Receiver};

/// What comes next.
#[derive(Debug)]
pub(crate) enum Event {
    Batch(Batch),
    /// The least of all inputs', and more than the last one.
    Watermark(i64),
    /// Everything before it was given out.
    Barrier(u64),
    /// All inputs have ended.
    End,
    /// An input's sender is gone without an end.
    Lost,
}

struct Input {
    receiver: Receiver,
    aligned: bool,
    ended: bool,
    watermark: i64,
}

pub(crate) struct Inputs {
    /// Overtaken batches of a checkpoint that was restored: before everything that comes.
    restored: VecDeque<Batch>,
    inputs: Vec<Input>,
    turn: usize,
    aligning: Option<u64>,
    triggered: Option<u64>,
    /// Barriers up to this one are of aborted checkpoints, or done.
    forgotten: u64,
    watermark: i64,
    ended: bool,
}

impl Inputs {
    pub(crate) fn new(receivers: Vec<Receiver>, restored: Vec<Batch>) -> Self {
        let input = |receiver| Input { receiver, aligned: false, ended: false, watermark: i64::MIN };
        Inputs {
            restored: restored.into(),
            inputs: receivers.into_iter().map(input).collect(),
            turn: 0,
            aligning: None,
            triggered: None,
            forgotten: 0,
            watermark: i64::MIN,
            ended: false,
        }
    }

    /// The next event, if there is one now.
    pub(crate) fn next(&mut self) -> Option<Event> {
        if let Some(batch) = self.restored.pop_front() {
            return Some(Event::Batch(batch));
        }
        let count = self.inputs.len();
        let mut idle = 0;
        while idle < count {
            let input = &mut self.inputs[self.turn];
            let message = if input.aligned || input.ended { None } else { input.receiver.pop() };
            match message {
                None if !input.ended && input.receiver.is_closed() => return Some(Event::Lost),
                None => idle += 1,
                Some(message) => {
                    idle = 0;
                    if let Some(event) = self.take(message) {
                        self.turn = (self.turn + 1) % count;
                        return Some(event);
                    }
                }
            }
            self.turn = (self.turn + 1) % count;
        }
        None
    }

    /// Lets a barrier overtake what is queued: its number and the batches it overtook, for the snapshot. None while some
    /// input does not have it yet.
    pub(crate) fn overtake(&mut self) -> Option<(u64, Vec<Batch>)> {
        let mut number = self.triggered.or(self.aligning);
        for input in self.inputs.iter().filter(|i| !i.aligned && !i.ended) {
            match input.receiver.ahead(self.forgotten) {
                Ahead::Unknown => return None,
                Ahead::Barrier(n) if *number.get_or_insert(n) != n => return None,
                Ahead::Barrier(_) | Ahead::End => {}
            }
        }
        let number = number?;
        let mut batches: Vec<Batch> = self.restored.iter().cloned().collect();
        for input in self.inputs.iter().filter(|i| !i.aligned && !i.ended) {
            batches.extend(input.receiver.overtake(number));
        }
        self.forget(number);
        Some((number, batches))
    }

    /// A barrier that no input will bring, because what is upstream had ended before it.
    pub(crate) fn trigger(&mut self, number: u64) {
        if number > self.forgotten {
            self.triggered = Some(number);
        }
    }

    pub(crate) fn is_triggered(&self) -> bool {
        self.triggered.is_some()
    }

    /// The checkpoint was aborted, or its barrier is through.
    pub(crate) fn forget(&mut self, number: u64) {
        self.forgotten = self.forgotten.max(number);
        if self.triggered.is_some_and(|n| n <= number) {
            self.triggered = None;
        }
        if self.aligning.is_some_and(|n| n <= number) {
            self.aligning = None;
            self.inputs.iter_mut().for_each(|i| i.aligned = false);
        }
    }

    fn take(&mut self, message: Message) -> Option<Event> {
        let input = &mut self.inputs[self.turn];
        match message {
            Message::Batch(batch) => Some(Event::Batch(batch)),
            Message::Watermark(watermark) => {
                input.watermark = input.watermark.max(watermark);
                let least = self.inputs.iter().map(|i| i.watermark).min()?;
                (least > self.watermark).then(|| {
                    self.watermark = least;
                    Event::Watermark(least)
                })
            }
            Message::Barrier(number) if number <= self.forgotten => None,
            Message::Barrier(number) => {
                input.aligned = true;
                self.aligning = Some(number);
                self.aligned()
            }
            Message::End => {
                // What has ended holds neither barriers nor watermarks back.
                input.ended = true;
                input.watermark = i64::MAX;
                if self.inputs.iter().all(|i| i.ended) && !self.ended {
                    self.ended = true;
                    return Some(Event::End);
                }
                self.aligned()
            }
        }
    }

    fn aligned(&mut self) -> Option<Event> {
        let number = self.aligning?;
        if !self.inputs.iter().all(|i| i.aligned || i.ended) {
            return None;
        }
        self.forget(number);
        Some(Event::Barrier(number))
    }
}
