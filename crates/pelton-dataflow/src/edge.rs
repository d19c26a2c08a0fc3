//! An edge between two subtasks: a queue that is bounded in bytes.
//!
//! Control messages need no permit, so that a barrier is never held back by data. A sender that finds no room keeps its
//! batch; while it waits, a barrier overtakes what it keeps (see [`Outbox`](crate::outbox::Outbox)) and what is queued
//! ([`Receiver::overtake`]). So checkpoints neither wait for room nor add to what is queued.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::batch::Batch;

#[derive(Clone, Debug)]
pub(crate) enum Message {
    Batch(Batch),
    /// No row with an event time before this comes any more.
    Watermark(i64),
    Barrier(u64),
    /// Nothing comes any more.
    End,
}

/// What stands in a queue between its front and a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    Barrier(u64),
    /// No barrier, and the sender has ended.
    End,
    /// The barrier did not come yet.
    Unknown,
}

struct Queue {
    messages: VecDeque<(Message, u64)>,
    bytes: u64,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    limit: u64,
    room: Arc<Notify>,
    arrived: Arc<Notify>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nothing panics under this lock")
    }
}

/// An edge of `limit` bytes. `room` is woken when room appears, `arrived` when something arrives.
pub(crate) fn edge(limit: u64, room: Arc<Notify>, arrived: Arc<Notify>) -> (Sender, Receiver) {
    let queue = Mutex::new(Queue { messages: VecDeque::new(), bytes: 0, closed: false });
    let shared = Arc::new(Shared { queue, limit, room, arrived });
    (Sender(shared.clone()), Receiver(shared))
}

pub(crate) struct Sender(Arc<Shared>);

impl Sender {
    /// Gives the batch back where there is no room. An empty queue takes any batch, or a big one would never pass.
    pub(crate) fn try_send(&self, batch: Batch) -> Result<(), Batch> {
        let bytes = batch.bytes();
        let mut queue = self.0.lock();
        if queue.bytes > 0 && queue.bytes + bytes > self.0.limit {
            return Err(batch);
        }
        queue.bytes += bytes;
        queue.messages.push_back((Message::Batch(batch), bytes));
        drop(queue);
        self.0.arrived.notify_one();
        Ok(())
    }

    /// Watermarks, barriers and the end: always taken. There are few, and they are small.
    pub(crate) fn control(&self, message: Message) {
        self.0.lock().messages.push_back((message, 0));
        self.0.arrived.notify_one();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.arrived.notify_one();
    }
}

pub(crate) struct Receiver(Arc<Shared>);

impl Receiver {
    pub(crate) fn pop(&self) -> Option<Message> {
        let mut queue = self.0.lock();
        let (message, bytes) = queue.messages.pop_front()?;
        queue.bytes -= bytes;
        drop(queue);
        if bytes > 0 {
            self.0.room.notify_one();
        }
        Some(message)
    }

    /// Whether the sender is gone and nothing is queued any more. Without an end before it, the sender failed.
    pub(crate) fn is_closed(&self) -> bool {
        let queue = self.0.lock();
        queue.closed && queue.messages.is_empty()
    }

    /// The first barrier above `forgotten` that is queued, or the end.
    pub(crate) fn ahead(&self, forgotten: u64) -> Ahead {
        let queue = self.0.lock();
        let barrier = queue.messages.iter().find_map(|(m, _)| match m {
            Message::Barrier(n) if *n > forgotten => Some(Ahead::Barrier(*n)),
            Message::End => Some(Ahead::End),
            _ => None,
        });
        barrier.unwrap_or(Ahead::Unknown)
    }

    /// Takes barrier `n` out and returns the batches that were before it, or before the end where there is no such
    /// barrier. The batches also stay queued: they are for the snapshot.
    pub(crate) fn overtake(&self, n: u64) -> Vec<Batch> {
        let mut queue = self.0.lock();
        let at = queue.messages.iter().position(|(m, _)| matches!(m, Message::Barrier(b) if *b == n));
        let ahead = at.unwrap_or(queue.messages.len());
        let batches = queue.messages.iter().take(ahead).filter_map(|(m, _)| match m {
            Message::Batch(batch) => Some(batch.clone()),
            _ => None,
        });
        let batches = batches.collect();
        if let Some(at) = at {
            queue.messages.remove(at);
        }
        batches
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{Int64Array, RecordBatch};

    use super::*;

    fn batch(rows: i64) -> Batch {
        let column: arrow_array::ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
        Batch { split: 0, rows: RecordBatch::try_from_iter([("n", column)]).unwrap() }
    }

    fn pair(limit: u64) -> (Sender, Receiver) {
        edge(limit, Arc::default(), Arc::default())
    }

    #[test]
    fn bytes_bound_it_and_one_big_batch_passes() {
        let (sender, receiver) = pair(2 * batch(10).bytes());
        assert!(sender.try_send(batch(10)).is_ok() && sender.try_send(batch(10)).is_ok());
        assert_eq!(sender.try_send(batch(1)).unwrap_err().rows.num_rows(), 1, "it is given back");
        receiver.pop();
        assert!(sender.try_send(batch(1)).is_ok());
        assert!(sender.try_send(batch(1000)).is_err());
        receiver.pop();
        receiver.pop();
        assert!(sender.try_send(batch(1000)).is_ok(), "above the limit, but alone");
        assert!(sender.try_send(batch(0)).is_err());
        sender.control(Message::Barrier(1));
        sender.control(Message::End);
        assert_eq!(receiver.ahead(0), Ahead::Barrier(1));
        assert_eq!(receiver.ahead(1), Ahead::End);
    }

    #[test]
    fn a_barrier_overtakes_what_is_before_it_and_nothing_else() {
        let (sender, receiver) = pair(1 << 20);
        for rows in [1, 2] {
            sender.try_send(batch(rows)).unwrap();
        }
        assert_eq!(receiver.ahead(0), Ahead::Unknown);
        sender.control(Message::Barrier(7));
        sender.try_send(batch(3)).unwrap();
        let overtaken: Vec<usize> = receiver.overtake(7).iter().map(|b| b.rows.num_rows()).collect();
        assert_eq!(overtaken, [1, 2]);
        let rest = std::iter::from_fn(|| receiver.pop());
        let rest: Vec<usize> =
            rest.map(|m| if let Message::Batch(b) = m { b.rows.num_rows() } else { 99 }).collect();
        assert_eq!(rest, [1, 2, 3], "the batches stay, the barrier is out");
    }

    #[test]
    fn the_receiver_learns_that_the_sender_is_gone() {
        let (sender, receiver) = pair(100);
        sender.try_send(batch(1)).unwrap();
        drop(sender);
        assert!(!receiver.is_closed(), "something is queued");
        receiver.pop();
        assert!(receiver.is_closed());
    }
}
