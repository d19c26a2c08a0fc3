//! What a subtask has made and not sent yet.
//!
//! It is as much as came of one step. A subtask whose outbox is not empty makes nothing more; a barrier overtakes the
//! outbox, whose batches are then part of the snapshot.

use std::collections::VecDeque;

use crate::batch::Batch;
use crate::edge::{Message, Sender};
use crate::topology::{mix, route};

/// An edge that leaves a stage, to all subtasks of the next one.
pub(crate) struct Target {
    pub(crate) senders: Vec<Sender>,
    /// Where several edges lead to one node, rows of one split come on several ways. Mixed into the split, this keeps
    /// the ways apart, so that each keeps its order and its numbers.
    pub(crate) salt: Option<u64>,
}

enum Item {
    Batch(usize, Batch),
    Watermark(i64),
}

#[derive(Default)]
pub(crate) struct Outbox {
    targets: Vec<Target>,
    unsent: VecDeque<Item>,
}

impl Outbox {
    pub(crate) fn new(targets: Vec<Target>) -> Self {
        Outbox { targets, unsent: VecDeque::new() }
    }

    pub(crate) fn push(&mut self, target: usize, batch: Batch) {
        self.unsent.push_back(Item::Batch(target, batch));
    }

    /// Keeps its place among the batches.
    pub(crate) fn watermark(&mut self, watermark: i64) {
        self.unsent.push_back(Item::Watermark(watermark));
    }

    /// Sends what there is room for; says whether everything is sent.
    pub(crate) fn flush(&mut self) -> bool {
        while let Some(item) = self.unsent.pop_front() {
            match item {
                Item::Watermark(watermark) => self.control(&Message::Watermark(watermark)),
                Item::Batch(target, batch) => {
                    let Target { senders, salt } = &self.targets[target];
                    let split = salt.map_or(batch.split, |salt| mix(batch.split ^ salt));
                    let kept = batch.split;
                    let sent = senders[route(split, senders.len())].try_send(Batch { split, ..batch });
                    if let Err(batch) = sent {
                        self.unsent.push_front(Item::Batch(target, Batch { split: kept, ..batch }));
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Overtakes everything that is not sent; returns it, for the snapshot.
    pub(crate) fn barrier(&mut self, number: u64) -> Vec<(usize, Batch)> {
        self.control(&Message::Barrier(number));
        let batches = self.unsent.iter().filter_map(|item| match item {
            Item::Batch(target, batch) => Some((*target, batch.clone())),
            Item::Watermark(_) => None,
        });
        batches.collect()
    }

    /// Law: nothing is unsent.
    pub(crate) fn end(&mut self) {
        self.control(&Message::Watermark(i64::MAX));
        self.control(&Message::End);
    }

    fn control(&self, message: &Message) {
        for sender in self.targets.iter().flat_map(|t| &t.senders) {
            sender.control(message.clone());
        }
    }
}
