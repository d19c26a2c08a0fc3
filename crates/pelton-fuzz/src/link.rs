//! An environment in which time stands still and a connection is bytes: what a link reads is what the input says.

use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pelton_core::{BoxFuture, Time};
use pelton_env::real::Disk;
use pelton_env::{
    Address, Clock, Connection, Entropy, Env, Listener, Network, Place, Process, ProcessSpec, Processes,
    Task, Tasks,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A peer's bytes, given out in pieces; then the end of the connection.
pub(crate) struct Stream {
    bytes: Vec<u8>,
    at: usize,
    /// How long the pieces are, in turn. Empty: all at once.
    pieces: Vec<u8>,
    turn: usize,
}

impl Stream {
    pub(crate) fn new(bytes: Vec<u8>, pieces: &[u8]) -> Self {
        Stream { bytes, at: 0, pieces: pieces.to_vec(), turn: 0 }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = self.bytes.len() - self.at;
        let piece = match self.pieces.get(self.turn % self.pieces.len().max(1)) {
            Some(n) => usize::from(*n) + 1,
            None => usize::MAX,
        };
        let n = rest.min(piece).min(into.remaining());
        into.put_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
        self.turn += 1;
        Poll::Ready(Ok(()))
    }
}

/// What was written.
#[derive(Clone, Default)]
pub(crate) struct Written(pub(crate) Arc<Mutex<Vec<u8>>>);

impl Written {
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().expect("nothing panics while it writes"))
    }
}

impl AsyncWrite for Written {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().expect("nothing panics while it writes").extend(bytes);
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Runs futures that have all they wait for.
#[derive(Clone, Default)]
pub(crate) struct Still {
    tasks: Arc<Mutex<Vec<BoxFuture<()>>>>,
    /// Who answers when somebody is connected to.
    peer: Arc<Mutex<Option<Connection>>>,
}

impl Still {
    pub(crate) fn answered_by(connection: Connection) -> Still {
        let still = Still::default();
        *still.peer.lock().expect("nobody else has it") = Some(connection);
        still
    }

    pub(crate) fn env(&self) -> Env {
        let seams = Arc::new(Seams { tasks: Arc::downgrade(&self.tasks), peer: self.peer.clone() });
        Env {
            clock: seams.clone(),
            network: seams.clone(),
            processes: seams.clone(),
            tasks: seams.clone(),
            entropy: seams,
            storage: Arc::new(Disk),
            crash: Arc::new(|why| panic!("crashed: {why}")),
        }
    }

    /// A future that waits for nothing but the input.
    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(out) => out,
            Poll::Pending => panic!("it waits, though the peer's last byte is there"),
        }
    }

    /// Lets everything that was started go on.
    pub(crate) fn settle(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock().expect("nobody else has it"));
        for mut task in tasks {
            if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                self.tasks.lock().expect("nobody else has it").push(task);
            }
        }
    }
}

/// What those who run in it see of it. (They do not keep it: it has what they have started.)
struct Seams {
    tasks: Weak<Mutex<Vec<BoxFuture<()>>>>,
    peer: Arc<Mutex<Option<Connection>>>,
}

impl Clock for Seams {
    fn now(&self) -> Time {
        Time::ZERO
    }
    fn sleep(&self, _: Duration) -> BoxFuture<()> {
        Box::pin(std::future::pending())
    }
    fn unix_millis(&self) -> u64 {
        0
    }
}

impl Tasks for Seams {
    fn spawn(&self, _: Place, future: BoxFuture<()>) -> Task {
        if let Some(tasks) = self.tasks.upgrade() {
            tasks.lock().expect("nobody else has it").push(future);
        }
        Task::new(|| {})
    }
}

impl Entropy for Seams {
    fn seed(&self) -> u64 {
        0
    }
    fn secret(&self) -> String {
        "0".repeat(32)
    }
}

impl Network for Seams {
    fn connect(&self, _: &Address) -> BoxFuture<io::Result<Connection>> {
        let peer = self.peer.lock().expect("nobody else has it").take();
        Box::pin(async move { peer.ok_or_else(|| io::ErrorKind::ConnectionRefused.into()) })
    }
    fn listen(&self, _: &Address) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Processes for Seams {
    fn start(&self, _: ProcessSpec) -> io::Result<Box<dyn Process>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn adopt(&self, _: u32) -> io::Result<Box<dyn Process>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn program(&self) -> String {
        String::new()
    }
}
