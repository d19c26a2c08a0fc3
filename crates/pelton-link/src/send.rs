//! The sending half: a queue for what keeps its order, one for what overtakes, and the task that writes both.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use pelton_env::{Env, Place};
use pelton_wire::body::{Encoder, bytes};
use pelton_wire::{Frame, Header};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, error::TryRecvError, unbounded_channel};

use crate::Message;

/// Small frames are written together, up to about this many bytes.
const TOGETHER: usize = 64 << 10;
/// A queue of so many bytes is long.
const LONG: u64 = 16 << 20;
/// What a message counts for beside its rows.
const EACH: u64 = 256;

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

    pub(crate) fn start(env: &Env, write: Box<dyn AsyncWrite + Send + Sync + Unpin>) -> Sender {
        let (urgent, urgent_queue) = unbounded_channel();
        let (ordered, ordered_queue) = unbounded_channel();
        let backlog = Arc::new(Backlog::default());
        let shared = backlog.clone();
        env.spawn(Place::Network, async move {
            let mut writer =
                Writer { write, pending: VecDeque::new(), encoder: Encoder::default(), backlog: &shared };
            if let Err(e) = writer.run(urgent_queue, ordered_queue).await {
                tracing::debug!("a connection could not be written to: {e}");
            }
            shared.end();
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

struct Writer<'a> {
    write: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    pending: VecDeque<Bytes>,
    encoder: Encoder,
    backlog: &'a Backlog,
}

impl Writer<'_> {
    async fn run(
        &mut self,
        mut urgent: UnboundedReceiver<Queued>,
        mut ordered: UnboundedReceiver<Queued>,
    ) -> io::Result<()> {
        loop {
            let next = tokio::select! {
                biased;
                Some(message) = urgent.recv() => message,
                Some(message) = ordered.recv() => message,
                else => break,
            };
            let mut bytes = next.bytes;
            self.encode(next.message)?;
            // Whatever else is there goes out with it, what overtakes first.
            while self.queued() < TOGETHER {
                match urgent.try_recv().or_else(|_: TryRecvError| ordered.try_recv()) {
                    Ok(next) => {
                        bytes += next.bytes;
                        self.encode(next.message)?;
                    }
                    Err(_) => break,
                }
            }
            self.flush().await?;
            self.backlog.taken(bytes);
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
            let sender = Sender::start(host.env(), Box::new(ours));
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
            let sender = Sender::start(host.env(), Box::new(ours));
            let _room = sender.room();
            drop(sender);
            assert_eq!(theirs.read(&mut [0; 1]).await.unwrap(), 0);
        });
    }
}
