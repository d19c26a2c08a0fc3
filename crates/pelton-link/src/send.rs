//! The sending half: a queue for what keeps its order, one for what overtakes, and the task that writes both.
//!
//! A body goes into the segment that both ends map, if there is one and it has room; else through the socket, a long one in pieces, and
//! what overtakes goes out between them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use pelton_core::Time;
use pelton_env::{Env, Place as Where};
use pelton_wire::body::{Encoded, Encoder, bytes};
use pelton_wire::{Frame, Header, Place};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::Message;
use crate::shared::incoming::Releases;
use crate::shared::outgoing::{Outgoing, Put};

/// Small frames are written together, up to about this many bytes.
const TOGETHER: usize = 64 << 10;
/// A queue of so many bytes is long.
const LONG: u64 = 16 << 20;
/// What a message counts for beside its rows.
const EACH: u64 = 256;

/// Bytes of a body's pieces, and of the longest body that is one piece.
const PIECE: usize = 256 << 10;

/// A segment in which nothing has been for so long gives its memory back.
const IDLE: Duration = Duration::from_secs(2);

/// Most slices that are handed to the system at once.
const SLICES: usize = 64;

/// Pushes messages towards the peer. Cheap to clone; the connection ends when the last clone is gone and all is written.
///
/// The queues have no limit of their own: what is in them is bounded by permits on the way to an instance, and on the way back by
/// what the instance holds, if it hears no more from whoever does not read (see [`Room`]).
#[derive(Clone)]
pub struct Sender {
    urgent: UnboundedSender<Queued>,
    ordered: UnboundedSender<Queued>,
    backlog: Arc<Backlog>,
}

/// A message, and what it counts for in the backlog.
struct Queued {
    message: Message,
    bytes: u64,
}

/// Bytes that the peer has not taken yet.
#[derive(Default)]
struct Backlog {
    bytes: AtomicU64,
    /// The connection has ended: nothing waits any more.
    over: AtomicBool,
    less: Notify,
}

impl Backlog {
    fn taken(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.less.notify_waiters();
    }

    fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.less.notify_waiters();
    }
}

impl Sender {
    /// Queues a message. One to a connection that has ended is dropped: its end is an event of its own.
    pub fn send(&self, message: impl Into<Message>) {
        let message = message.into();
        let queue = if message.frame.keeps_order() { &self.ordered } else { &self.urgent };
        let bytes = EACH + message.rows.as_ref().map_or(0, bytes);
        self.backlog.bytes.fetch_add(bytes, Ordering::AcqRel);
        let _ = queue.send(Queued { message, bytes });
    }

    /// Where those wait who answer what the peer asks. It keeps no connection open.
    pub fn room(&self) -> Room {
        Room(self.backlog.clone())
    }

    /// `outgoing`: where large bodies are put, if the peer reads them there. `releases`: what is to be said of its own.
    pub(crate) fn start(
        env: &Env,
        write: Box<dyn AsyncWrite + Send + Sync + Unpin>,
        outgoing: Option<Outgoing>,
        releases: Releases,
    ) -> Sender {
        let (urgent, urgent_queue) = unbounded_channel();
        let (ordered, ordered_queue) = unbounded_channel();
        let backlog = Arc::new(Backlog::default());
        let mut writer = Writer {
            env: env.clone(),
            write,
            pending: VecDeque::new(),
            queued: 0,
            counted: 0,
            rest: VecDeque::new(),
            encoder: Encoder::default(),
            outgoing,
            releases,
            backlog: backlog.clone(),
        };
        env.spawn(Where::Network, async move {
            let queues = Queues { urgent: urgent_queue, ordered: ordered_queue };
            if let Err(e) = writer.run(queues).await {
                tracing::debug!("a connection could not be written to: {e}");
            }
            writer.backlog.end();
        })
        .detach();
        Sender { urgent, ordered, backlog }
    }
}

/// Room for more, on one connection.
#[derive(Clone)]
pub struct Room(Arc<Backlog>);

impl Room {
    /// Waits while much is queued that the peer has not taken. Who answers what a peer asks waits here before it reads on: a peer that asks
    /// and never reads would fill the memory otherwise. Only one side of a connection may do so.
    pub async fn wait(&self) {
        loop {
            let less = self.0.less.notified();
            if self.is_there() {
                return;
            }
            less.await;
        }
    }

    /// Whether nobody has to wait.
    pub fn is_there(&self) -> bool {
        self.0.over.load(Ordering::Acquire) || self.0.bytes.load(Ordering::Acquire) <= LONG
    }
}

struct Queues {
    urgent: UnboundedReceiver<Queued>,
    ordered: UnboundedReceiver<Queued>,
}

impl Queues {
    /// What is to go out next; none when nobody is left who could say anything.
    async fn next(&mut self) -> Option<Queued> {
        tokio::select! {
            biased;
            Some(queued) = self.urgent.recv() => Some(queued),
            Some(queued) = self.ordered.recv() => Some(queued),
            else => None,
        }
    }

    fn next_now(&mut self) -> Option<Queued> {
        self.urgent.try_recv().or_else(|_| self.ordered.try_recv()).ok()
    }
}

struct Writer {
    env: Env,
    write: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    /// What is to be written now.
    pending: VecDeque<Bytes>,
    /// Bytes of what was encoded since the last write, here and in the segment.
    queued: usize,
    /// What all that counts for in the backlog.
    counted: u64,
    /// What is left of a body that goes out in pieces.
    rest: VecDeque<Bytes>,
    encoder: Encoder,
    outgoing: Option<Outgoing>,
    releases: Releases,
    backlog: Arc<Backlog>,
}

impl Writer {
    async fn run(&mut self, mut queues: Queues) -> io::Result<()> {
        let (env, releases) = (self.env.clone(), self.releases.clone());
        let mut idle_at: Option<Time> = None;
        loop {
            tokio::select! {
                biased;
                next = queues.next() => match next {
                    Some(queued) => self.encode(queued)?,
                    None => break,
                },
                () = releases.due() => {}
                () = env.sleep_until(idle_at) => self.trim(),
            }
            // Whatever else is there goes out with it, what overtakes first.
            while self.queued < TOGETHER && self.rest.is_empty() {
                match queues.next_now() {
                    Some(queued) => self.encode(queued)?,
                    None => break,
                }
            }
            self.flush().await?;
            while !self.rest.is_empty() {
                while let Ok(queued) = queues.urgent.try_recv() {
                    self.encode(queued)?;
                }
                self.next_piece();
                self.flush().await?;
            }
            self.backlog.taken(std::mem::take(&mut self.counted));
            let holds = self.outgoing.as_ref().is_some_and(Outgoing::holds_memory);
            idle_at = holds.then(|| env.now() + IDLE);
        }
        self.write.shutdown().await
    }

    fn trim(&mut self) {
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.trim();
        }
    }

    fn encode(&mut self, Queued { message, bytes }: Queued) -> io::Result<()> {
        self.counted += bytes;
        let Some(rows) = &message.rows else {
            self.push(&message.frame, Place::Inline, 0, None);
            return Ok(());
        };
        let body = self.encoder.encode(rows).map_err(io::Error::other)?;
        let length = u32::try_from(body.length()).map_err(|_| {
            io::Error::other(format!("a body of {} bytes is too long for the protocol", body.length()))
        })?;
        match self.outgoing.as_mut().and_then(|outgoing| outgoing.put(&body)) {
            Some(Put { offset, first }) => {
                if let Some(first) = first {
                    self.push(&first, Place::Inline, 0, None);
                }
                self.push(&message.frame, Place::Segment, length, Some(offset));
                self.queued += body.length();
            }
            None => self.through_the_socket(&message.frame, length, body),
        }
        Ok(())
    }

    fn through_the_socket(&mut self, frame: &Frame, length: u32, body: Encoded) {
        let in_pieces = body.length() > PIECE;
        self.push(frame, if in_pieces { Place::Pieces } else { Place::Inline }, length, None);
        if in_pieces {
            self.rest.extend(body.into_parts());
        } else {
            self.queued += body.length();
            self.pending.extend(body.into_parts());
        }
    }

    /// Queues a frame without its body; `offset`: where that is.
    fn push(&mut self, frame: &Frame, place: Place, body: u32, offset: Option<u64>) {
        let meta = frame.encode_meta();
        // What a frame is about is bounded far below 4 GiB.
        let header = Header { kind: frame.kind(), place, meta: meta.len() as u32, body };
        let mut head = Vec::with_capacity(pelton_wire::HEADER + meta.len() + 8);
        head.extend(header.encode());
        head.extend(meta);
        head.extend(offset.iter().flat_map(|offset| offset.to_le_bytes()));
        self.queued += head.len();
        self.pending.push_back(head.into());
    }

    fn next_piece(&mut self) {
        let mut piece: Vec<Bytes> = Vec::new();
        let mut length = 0;
        while let Some(part) = self.rest.front_mut().filter(|_| length < PIECE) {
            let taken = part.split_to(part.len().min(PIECE - length));
            length += taken.len();
            piece.push(taken);
            if part.is_empty() {
                self.rest.pop_front();
            }
        }
        self.push(&Frame::Piece, Place::Inline, length as u32, None);
        self.pending.extend(piece);
    }

    async fn flush(&mut self) -> io::Result<()> {
        let offsets = self.releases.take();
        if !offsets.is_empty() {
            // Before all else: it makes room.
            self.push(&Frame::Release { offsets }, Place::Inline, 0, None);
            self.pending.rotate_right(1);
        }
        while !self.pending.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = slices.len().min(self.pending.len());
            for (slice, bytes) in slices.iter_mut().zip(&self.pending) {
                *slice = IoSlice::new(bytes);
            }
            let mut written = self.write.write_vectored(&slices[..count]).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            while let Some(first) = self.pending.front_mut() {
                if first.len() > written {
                    first.advance(written);
                    break;
                }
                written -= first.len();
                self.pending.pop_front();
            }
        }
        self.queued = 0;
        self.write.flush().await
    }
}

/// One frame, written by itself: for the handshake.
pub(crate) async fn write_frame(
    write: &mut (dyn AsyncWrite + Send + Sync + Unpin),
    frame: &Frame,
) -> io::Result<()> {
    let meta = frame.encode_meta();
    let header = Header { kind: frame.kind(), place: Place::Inline, meta: meta.len() as u32, body: 0 };
    let mut bytes = header.encode().to_vec();
    bytes.extend(meta);
    write.write_all(&bytes).await?;
    write.flush().await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pelton_env::real::Host;
    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn who_does_not_read_gets_no_more_answers() {
        let host = Host::new(1, 1).unwrap();
        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        host.block_on(async {
            let sender = Sender::start(host.env(), Box::new(ours), None, Releases::default());
            let room = sender.room();
            room.wait().await;
            let pongs = LONG / EACH + 1000;
            (0..pongs).for_each(|n| sender.send(Frame::Pong(n)));
            let soon = Duration::from_millis(50);
            assert!(host.env().within(soon, room.wait()).await.is_none(), "nothing is read");
            let mut read = vec![0; 20 * pongs as usize];
            theirs.read_exact(&mut read).await.unwrap();
            room.wait().await;
            // A connection that is gone makes nobody wait.
            (0..pongs).for_each(|n| sender.send(Frame::Pong(n)));
            drop(theirs);
            room.wait().await;
        });
    }

    #[test]
    fn room_keeps_no_connection_open() {
        let host = Host::new(1, 1).unwrap();
        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        host.block_on(async {
            let sender = Sender::start(host.env(), Box::new(ours), None, Releases::default());
            let _room = sender.room();
            drop(sender);
            assert_eq!(theirs.read(&mut [0; 1]).await.unwrap(), 0);
        });
    }
}
