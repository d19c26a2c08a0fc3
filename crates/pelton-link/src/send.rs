//! The sending half: a queue for what keeps its order, one for what overtakes, and the task that writes both.
//!
//! A body goes into the segment that both ends map, if there is one and it has room; else through the socket, a long one in pieces, and
//! what overtakes goes out between them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::time::Duration;

use bytes::{Buf, Bytes};
use pelton_core::Time;
use pelton_env::{Env, Place as Where};
use pelton_wire::body::{Encoded, Encoder};
use pelton_wire::{Frame, Header, Place};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::Message;
use crate::shared::incoming::Releases;
use crate::shared::outgoing::{Outgoing, Put};

/// Small frames are written together, up to about this many bytes.
const TOGETHER: usize = 64 << 10;

/// Bytes of a body's pieces, and of the longest body that is one piece.
const PIECE: usize = 256 << 10;

/// A segment in which nothing has been for so long gives its memory back.
const IDLE: Duration = Duration::from_secs(2);

/// Most slices that are handed to the system at once.
const SLICES: usize = 64;

/// Pushes messages towards the peer. Cheap to clone; the connection ends when the last clone is gone and all is written.
///
/// The queues have no limit of their own: what is in them is bounded by permits on the way to an instance, and by
/// what the instance holds on the way back.
#[derive(Clone)]
pub struct Sender {
    urgent: UnboundedSender<Message>,
    ordered: UnboundedSender<Message>,
}

impl Sender {
    /// Queues a message. One to a connection that has ended is dropped: its end is an event of its own.
    pub fn send(&self, message: impl Into<Message>) {
        let message = message.into();
        let queue = if message.frame.keeps_order() { &self.ordered } else { &self.urgent };
        let _ = queue.send(message);
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
        let mut writer = Writer {
            env: env.clone(),
            write,
            pending: VecDeque::new(),
            queued: 0,
            rest: VecDeque::new(),
            encoder: Encoder::default(),
            outgoing,
            releases,
        };
        env.spawn(Where::Network, async move {
            let queues = Queues { urgent: urgent_queue, ordered: ordered_queue };
            if let Err(e) = writer.run(queues).await {
                tracing::debug!("a connection could not be written to: {e}");
            }
        })
        .detach();
        Sender { urgent, ordered }
    }
}

struct Queues {
    urgent: UnboundedReceiver<Message>,
    ordered: UnboundedReceiver<Message>,
}

impl Queues {
    /// What is to go out next; none when nobody is left who could say anything.
    async fn next(&mut self) -> Option<Message> {
        tokio::select! {
            biased;
            Some(message) = self.urgent.recv() => Some(message),
            Some(message) = self.ordered.recv() => Some(message),
            else => None,
        }
    }

    fn next_now(&mut self) -> Option<Message> {
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
    /// What is left of a body that goes out in pieces.
    rest: VecDeque<Bytes>,
    encoder: Encoder,
    outgoing: Option<Outgoing>,
    releases: Releases,
}

impl Writer {
    async fn run(&mut self, mut queues: Queues) -> io::Result<()> {
        let (env, releases) = (self.env.clone(), self.releases.clone());
        let mut idle_at: Option<Time> = None;
        loop {
            tokio::select! {
                biased;
                next = queues.next() => match next {
                    Some(message) => self.encode(message)?,
                    None => break,
                },
                () = releases.due() => {}
                () = env.sleep_until(idle_at) => self.trim(),
            }
            // Whatever else is there goes out with it, what overtakes first.
            while self.queued < TOGETHER && self.rest.is_empty() {
                match queues.next_now() {
                    Some(message) => self.encode(message)?,
                    None => break,
                }
            }
            self.flush().await?;
            while !self.rest.is_empty() {
                while let Ok(message) = queues.urgent.try_recv() {
                    self.encode(message)?;
                }
                self.next_piece();
                self.flush().await?;
            }
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

    fn encode(&mut self, message: Message) -> io::Result<()> {
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
