//! The sending half: a queue for what keeps its order, one for what overtakes, and the task that writes both.
//!
//! A body goes into the segment that both ends map, if there is one and it has room; else through the socket, a long one in pieces, and
//! what overtakes goes out between them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::FutureExt;
use pelton_core::Time;
use pelton_env::{Env, Place as Where};
use pelton_wire::body::{Encoded, Encoder, bytes};
use pelton_wire::{Frame, Header, Place};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex as AsyncMutex, Notify};

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

/// What is queued is written by whoever queued it, if it is no more than this; otherwise by the connection's own task.
const LITTLE: u64 = 16 << 10;

/// Pushes messages towards the peer. Cheap to clone; the connection ends when the last clone is gone and all is written.
///
/// The queues have no limit of their own: what is in them is bounded by permits on the way to an instance, and on the way back by
/// what the instance holds, if it hears no more from whoever does not read (see [`Room`]).
#[derive(Clone)]
pub struct Sender {
    line: Arc<Line>,
    _open: Arc<Open>,
}

/// Closes the line with the last sender.
struct Open(Arc<Line>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.queues().closed = true;
        self.0.wake.notify_one();
    }
}

/// What senders and the connection's task share.
struct Line {
    queues: Mutex<Queues>,
    /// Whoever has it writes what is queued.
    writer: AsyncMutex<Writer>,
    /// There is something for the task to do.
    wake: Notify,
    backlog: Arc<Backlog>,
}

/// A message, and what it counts for in the backlog.
struct Queued {
    message: Message,
    bytes: u64,
}

#[derive(Default)]
struct Queues {
    urgent: VecDeque<Queued>,
    ordered: VecDeque<Queued>,
    /// Bytes of all of it.
    bytes: u64,
    /// Nobody is left who could say anything, or nobody who would hear it.
    closed: bool,
}

impl Queues {
    /// What is to go out next.
    fn next(&mut self) -> Option<Queued> {
        let next = self.urgent.pop_front().or_else(|| self.ordered.pop_front())?;
        self.bytes -= next.bytes;
        Some(next)
    }

    fn next_urgent(&mut self) -> Option<Queued> {
        let next = self.urgent.pop_front()?;
        self.bytes -= next.bytes;
        Some(next)
    }
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
    /// Sends a message. One to a connection that has ended is dropped: its end is an event of its own.
    pub fn send(&self, message: impl Into<Message>) {
        self.queue(message);
        self.write();
    }

    /// The same for one of several messages: they go out together, with [`write`](Sender::write).
    pub fn queue(&self, message: impl Into<Message>) {
        let message = message.into();
        let bytes = EACH + message.rows.as_ref().map_or(0, bytes);
        let mut queues = self.line.queues();
        if queues.closed {
            return;
        }
        self.line.backlog.bytes.fetch_add(bytes, Ordering::AcqRel);
        queues.bytes += bytes;
        let queue = if message.frame.keeps_order() { &mut queues.ordered } else { &mut queues.urgent };
        queue.push_back(Queued { message, bytes });
    }

    /// Writes what is queued: here and now if it is little and the peer takes it, which saves the way to another thread. Never waits.
    pub fn write(&self) {
        let little = self.line.queues().bytes <= LITTLE;
        let written = little
            && match self.line.writer.try_lock() {
                Ok(mut writer) => matches!(writer.write_all(&self.line).now_or_never(), Some(Ok(()))),
                // Whoever writes may just have looked for the last time.
                Err(_) => false,
            };
        if !written {
            self.line.wake.notify_one();
        }
    }

    /// Where those wait who answer what the peer asks. It keeps no connection open.
    pub fn room(&self) -> Room {
        Room(self.line.backlog.clone())
    }

    /// `outgoing`: where large bodies are put, if the peer reads them there. `releases`: what is to be said of its own.
    pub(crate) fn start(
        env: &Env,
        write: Box<dyn AsyncWrite + Send + Sync + Unpin>,
        outgoing: Option<Outgoing>,
        releases: Releases,
    ) -> Sender {
        let backlog = Arc::new(Backlog::default());
        let writer = Writer {
            write,
            pending: VecDeque::new(),
            queued: 0,
            counted: 0,
            rest: VecDeque::new(),
            midway: false,
            unflushed: false,
            encoder: Encoder::default(),
            outgoing,
            releases: releases.clone(),
            used: false,
            active: env.now(),
        };
        let line = Arc::new(Line {
            queues: Mutex::default(),
            writer: AsyncMutex::new(writer),
            wake: Notify::new(),
            backlog,
        });
        env.spawn(Where::Network, run(env.clone(), line.clone(), releases)).detach();
        Sender { _open: Arc::new(Open(line.clone())), line }
    }
}

/// The connection's task: writes what nobody else could, and ends it.
async fn run(env: Env, line: Arc<Line>, releases: Releases) {
    loop {
        let idle_at = {
            let mut writer = line.writer.lock().await;
            // In this order: what is queued before the line is closed is written.
            let closed = line.queues().closed;
            if let Err(e) = writer.write_all(&line).await {
                tracing::debug!("a connection could not be written to: {e}");
                break;
            }
            if closed {
                if let Err(e) = writer.write.shutdown().await {
                    tracing::debug!("a connection could not be ended: {e}");
                }
                break;
            }
            writer.idle_at(env.now())
        };
        tokio::select! {
            biased;
            () = line.wake.notified() => {}
            () = releases.due() => {}
            () = env.sleep_until(idle_at) => {}
        }
    }
    let mut queues = line.queues();
    *queues = Queues { closed: true, ..Queues::default() };
    drop(queues);
    line.backlog.end();
}

impl Line {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
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

struct Writer {
    write: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    /// What is to be written now.
    pending: VecDeque<Bytes>,
    /// Bytes of what was encoded since the last write, here and in the segment.
    queued: usize,
    /// What all that counts for in the backlog.
    counted: u64,
    /// What is left of a body that goes out in pieces.
    rest: VecDeque<Bytes>,
    /// Some of what is to be written now is: nothing may go before the rest.
    midway: bool,
    /// Something was written that may not be on its way yet.
    unflushed: bool,
    encoder: Encoder,
    outgoing: Option<Outgoing>,
    releases: Releases,
    /// Whether something was put into the segment since it was looked at, and when it was seen to be used.
    used: bool,
    active: Time,
}

impl Writer {
    /// Writes all that is queued. Dropped before its end, it goes on where it was when it is called again.
    async fn write_all(&mut self, line: &Line) -> io::Result<()> {
        loop {
            // Whatever is there goes out together, what overtakes first.
            while self.queued < TOGETHER && self.rest.is_empty() {
                let Some(queued) = line.queues().next() else { break };
                self.encode(queued)?;
            }
            while !self.rest.is_empty() {
                self.flush().await?;
                while let Some(queued) = { line.queues().next_urgent() } {
                    self.encode(queued)?;
                }
                self.next_piece();
            }
            self.flush().await?;
            line.backlog.taken(std::mem::take(&mut self.counted));
            if line.queues().bytes == 0 {
                return Ok(());
            }
        }
    }

    /// When the segment's memory is to be looked at; gives back what nobody uses.
    fn idle_at(&mut self, now: Time) -> Option<Time> {
        let outgoing = self.outgoing.as_mut()?;
        if std::mem::take(&mut self.used) {
            self.active = now;
        } else if now >= self.active + IDLE {
            outgoing.trim();
        }
        outgoing.holds_memory().then(|| self.active + IDLE)
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
                self.used = true;
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
        loop {
            let offsets = if self.midway { Vec::new() } else { self.releases.take() };
            if !offsets.is_empty() {
                // Before all else: it makes room.
                self.push(&Frame::Release { offsets }, Place::Inline, 0, None);
                self.pending.rotate_right(1);
            }
            if self.pending.is_empty() {
                break;
            }
            while !self.pending.is_empty() {
                self.write_some().await?;
                self.midway = !self.pending.is_empty();
            }
        }
        self.queued = 0;
        if self.unflushed {
            self.write.flush().await?;
            self.unflushed = false;
        }
        Ok(())
    }

    async fn write_some(&mut self) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = slices.len().min(self.pending.len());
        for (slice, bytes) in slices.iter_mut().zip(&self.pending) {
            *slice = IoSlice::new(bytes);
        }
        let mut written = self.write.write_vectored(&slices[..count]).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.unflushed = true;
        while let Some(first) = self.pending.front_mut() {
            if first.len() > written {
                first.advance(written);
                break;
            }
            written -= first.len();
            self.pending.pop_front();
        }
        Ok(())
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
