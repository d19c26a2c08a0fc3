//! The sending half: a queue for what keeps its order, one for what overtakes, and the task that writes both.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes};
use pelton_env::{Env, Place};
use pelton_wire::body::Encoder;
use pelton_wire::{Frame, Header};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, error::TryRecvError, unbounded_channel};

use crate::Message;

/// Small frames are written together, up to about this many bytes.
const TOGETHER: usize = 64 << 10;

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

    pub(crate) fn start(env: &Env, write: Box<dyn AsyncWrite + Send + Sync + Unpin>) -> Sender {
        let (urgent, urgent_queue) = unbounded_channel();
        let (ordered, ordered_queue) = unbounded_channel();
        env.spawn(Place::Network, async move {
            let mut writer = Writer { write, pending: VecDeque::new(), encoder: Encoder::default() };
            if let Err(e) = writer.run(urgent_queue, ordered_queue).await {
                tracing::debug!("a connection could not be written to: {e}");
            }
        })
        .detach();
        Sender { urgent, ordered }
    }
}

struct Writer {
    write: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    pending: VecDeque<Bytes>,
    encoder: Encoder,
}

impl Writer {
    async fn run(
        &mut self,
        mut urgent: UnboundedReceiver<Message>,
        mut ordered: UnboundedReceiver<Message>,
    ) -> io::Result<()> {
        loop {
            let next = tokio::select! {
                biased;
                Some(message) = urgent.recv() => message,
                Some(message) = ordered.recv() => message,
                else => break,
            };
            self.encode(next)?;
            // Whatever else is there goes out with it, what overtakes first.
            while self.queued() < TOGETHER {
                match urgent.try_recv().or_else(|_: TryRecvError| ordered.try_recv()) {
                    Ok(message) => self.encode(message)?,
                    Err(_) => break,
                }
            }
            self.flush().await?;
        }
        self.write.shutdown().await
    }

    fn queued(&self) -> usize {
        self.pending.iter().map(Bytes::len).sum()
    }

    fn encode(&mut self, message: Message) -> io::Result<()> {
        let meta = message.frame.encode_meta();
        let body = match &message.rows {
            Some(rows) => self.encoder.encode(rows).map_err(io::Error::other)?,
            None => Default::default(),
        };
        let length = body.iter().map(Bytes::len).sum::<usize>();
        let too_long = || io::Error::other(format!("a frame of {length} bytes is too long for the protocol"));
        let header = Header {
            kind: message.frame.kind(),
            meta: u32::try_from(meta.len()).map_err(|_| too_long())?,
            body: u32::try_from(length).map_err(|_| too_long())?,
        };
        let mut head = Vec::with_capacity(pelton_wire::HEADER + meta.len());
        head.extend(header.encode());
        head.extend(meta);
        self.pending.push_back(head.into());
        self.pending.extend(body.into_iter().filter(|piece| !piece.is_empty()));
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            let slices: Vec<IoSlice<'_>> = self.pending.iter().take(64).map(|b| IoSlice::new(b)).collect();
            let mut written = self.write.write_vectored(&slices).await?;
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
        self.write.flush().await
    }
}

/// One frame, written by itself: for the handshake.
pub(crate) async fn write_frame(
    write: &mut (dyn AsyncWrite + Send + Sync + Unpin),
    frame: &Frame,
) -> io::Result<()> {
    let meta = frame.encode_meta();
    let header = Header { kind: frame.kind(), meta: meta.len() as u32, body: 0 };
    let mut bytes = header.encode().to_vec();
    bytes.extend(meta);
    write.write_all(&bytes).await?;
    write.flush().await
}
