//! The simulated network: connections in memory, with latency, bounded buffers and faults.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pelton_core::{BoxFuture, Fate, Kind, RequestRun, Time};
use pelton_env::{Address, Connection, Listener, Network};
use pelton_wire::Frame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::faults::trace::{Tap, Trace, describe};
use crate::faults::world::{Pid, Sleep, World};

/// A connection attempt that gets no answer fails after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How the network behaves when nothing is wrong with it.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// One way.
    pub latency: Duration,
    /// Up to this much on top.
    pub jitter: Duration,
    /// Bytes under way in one direction of a connection; a writer waits when there are more.
    pub buffer: usize,
}

/// How a connection ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Both sides see it at once; what was under way is lost.
    Sharp,
    /// The side that connected sees it at once, the other only after this, and until then still reads what was under way.
    Late(Duration),
}

/// All connections and listeners. Cheap to clone.
#[derive(Clone)]
pub struct Net {
    world: World,
    trace: Trace,
    weather: Weather,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    listeners: BTreeMap<Address, Listening>,
    connections: Vec<Conn>,
    /// Processes to which nothing passes until then.
    stalled: BTreeMap<Pid, Time>,
    /// Processes that take no new connection until then.
    refusing: BTreeMap<Pid, Time>,
}

struct Listening {
    pid: Pid,
    waiting: VecDeque<usize>,
    waker: Option<Waker>,
}

struct Conn {
    /// The side that connected, and the one that accepted.
    sides: [Side; 2],
    /// What each side writes.
    pipes: [Pipe; 2],
    audit: Audit,
}

struct Side {
    pid: Pid,
    name: String,
    /// From then on this side sees a broken connection.
    reset_at: Option<Time>,
    reads: bool,
    writes: bool,
}

#[derive(Default)]
struct Pipe {
    chunks: VecDeque<(Time, Vec<u8>)>,
    bytes: usize,
    /// When the last byte so far arrives.
    last: Time,
    /// After the last byte there are no more.
    closed: bool,
    stalled_until: Time,
    reader: Option<Waker>,
    writer: Option<Waker>,
    tap: Tap,
}

/// What passed on a connection, for the law that nothing is sent without a permit or, ahead of it, an announcement.
#[derive(Default)]
struct Audit {
    announced: u64,
    permitted: u64,
    sent: u64,
    returned: u64,
}

impl Net {
    pub fn new(world: World, trace: Trace, weather: Weather) -> Self {
        Net { world, trace, weather, inner: Arc::default() }
    }

    /// The network as one process sees it.
    pub(crate) fn of(&self, pid: Pid, name: &str) -> Arc<dyn Network> {
        Arc::new(Place { net: self.clone(), pid, name: name.to_owned() })
    }

    /// Cuts the connections between processes called so; returns how many there were.
    pub fn cut(&self, how: Cut, mut which: impl FnMut(&str, &str) -> bool) -> usize {
        let now = self.world.now();
        let mut inner = self.lock();
        let mut cut = 0;
        for conn in inner.connections.iter_mut().filter(|c| c.is_open(now)) {
            if which(&conn.sides[0].name, &conn.sides[1].name) {
                let late = if let Cut::Late(d) = how { d } else { Duration::ZERO };
                self.trace
                    .add(now, format_args!("cut {} - {} {how:?}", conn.sides[0].name, conn.sides[1].name));
                conn.sides[0].reset_at = Some(now);
                conn.sides[1].reset_at = Some(now + late);
                conn.wake_all();
                cut += 1;
            }
        }
        cut
    }

    /// Nothing passes to or from a process for a while.
    pub fn stall(&self, pid: Pid, how_long: Duration) {
        let now = self.world.now();
        let until = now + how_long;
        self.trace.add(now, format_args!("stall process {pid} for {how_long:?}"));
        let mut inner = self.lock();
        let entry = inner.stalled.entry(pid).or_insert(until);
        *entry = until.max(*entry);
        for conn in &mut inner.connections {
            if conn.sides.iter().any(|s| s.pid == pid) {
                for pipe in &mut conn.pipes {
                    pipe.stalled_until = pipe.stalled_until.max(until);
                }
                conn.wake_all();
            }
        }
    }

    /// A process takes no new connection for a while.
    pub fn refuse(&self, pid: Pid, how_long: Duration) {
        self.lock().refusing.insert(pid, self.world.now() + how_long);
    }

    /// A process is gone: its listeners and connections with it. What it had sent arrives, or is lost.
    pub(crate) fn end_process(&self, pid: Pid) {
        let now = self.world.now();
        let lost = self.world.chance(0.5);
        let mut inner = self.lock();
        inner.listeners.retain(|_, l| l.pid != pid);
        for conn in &mut inner.connections {
            for me in 0..2 {
                if conn.sides[me].pid == pid {
                    conn.sides[me].reset_at.get_or_insert(now);
                    if lost {
                        conn.sides[1 - me].reset_at.get_or_insert(now + self.weather.latency);
                    } else {
                        conn.pipes[me].closed = true;
                    }
                    conn.wake_all();
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn delay(&self) -> Duration {
        self.world.between(self.weather.latency, self.weather.latency + self.weather.jitter)
    }

    fn halves(&self, conn: usize, side: usize) -> Connection {
        Connection {
            read: Box::new(Reader { net: self.clone(), conn, side, sleep: None }),
            write: Box::new(Writer { net: self.clone(), conn, side }),
            descriptors: None,
        }
    }

    async fn connect(self, pid: Pid, name: String, to: Address) -> io::Result<Connection> {
        self.world.sleep(self.delay()).await;
        let began = self.world.now();
        loop {
            let now = self.world.now();
            let stalled = {
                let inner = self.lock();
                let target = inner.listeners.get(&to).map(|l| l.pid);
                [Some(pid), target].into_iter().flatten().filter_map(|p| inner.stalled.get(&p)).max().copied()
            };
            match stalled.filter(|until| *until > now) {
                Some(_) if now.since(began) >= CONNECT_TIMEOUT => return Err(io::ErrorKind::TimedOut.into()),
                Some(until) => self.world.sleep_until(until.min(began + CONNECT_TIMEOUT)).await,
                None => break,
            }
        }
        let now = self.world.now();
        let mut inner = self.lock();
        let Inner { listeners, connections, refusing, .. } = &mut *inner;
        let Some(listening) = listeners.get_mut(&to) else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        if refusing.get(&listening.pid).is_some_and(|until| *until > now) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let side = |pid, name| Side { pid, name, reset_at: None, reads: true, writes: true };
        let conn = connections.len();
        connections.push(Conn {
            sides: [side(pid, name), side(listening.pid, short(&to))],
            pipes: [Pipe::default(), Pipe::default()],
            audit: Audit::default(),
        });
        listening.waiting.push_back(conn);
        wake(&mut listening.waker);
        drop(inner);
        Ok(self.halves(conn, 0))
    }
}

/// An address without the folder, which differs from run to run.
fn short(address: &Address) -> String {
    match address {
        Address::Unix(path) => {
            path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
        }
        other => other.to_string(),
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl Conn {
    fn is_open(&self, now: Time) -> bool {
        self.sides.iter().all(|s| s.reset_at.is_none_or(|at| at > now) && (s.reads || s.writes))
    }

    fn wake_all(&mut self) {
        for pipe in &mut self.pipes {
            wake(&mut pipe.reader);
            wake(&mut pipe.writer);
        }
    }
}

struct Place {
    net: Net,
    pid: Pid,
    name: String,
}

impl Network for Place {
    fn connect(&self, to: &Address) -> BoxFuture<io::Result<Connection>> {
        Box::pin(self.net.clone().connect(self.pid, self.name.clone(), to.clone()))
    }

    fn listen(&self, at: &Address) -> io::Result<Box<dyn Listener>> {
        let mut inner = self.net.lock();
        if inner.listeners.contains_key(at) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        inner
            .listeners
            .insert(at.clone(), Listening { pid: self.pid, waiting: VecDeque::new(), waker: None });
        Ok(Box::new(Ear { net: self.net.clone(), pid: self.pid, at: at.clone() }))
    }
}

struct Ear {
    net: Net,
    pid: Pid,
    at: Address,
}

impl Listener for Ear {
    fn address(&self) -> Address {
        self.at.clone()
    }

    fn accept(&mut self) -> Pin<Box<dyn Future<Output = io::Result<Connection>> + Send + '_>> {
        Box::pin(std::future::poll_fn(|cx| {
            let mut inner = self.net.lock();
            let Some(listening) = inner.listeners.get_mut(&self.at) else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            match listening.waiting.pop_front() {
                Some(conn) => Poll::Ready(Ok(self.net.halves(conn, 1))),
                None => {
                    listening.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let now = self.net.world.now();
        let mut inner = self.net.lock();
        if inner.listeners.get(&self.at).is_some_and(|l| l.pid == self.pid)
            && let Some(Listening { waiting, .. }) = inner.listeners.remove(&self.at)
        {
            for conn in waiting {
                inner.connections[conn].sides[0].reset_at.get_or_insert(now);
                inner.connections[conn].wake_all();
            }
        }
    }
}

struct Reader {
    net: Net,
    conn: usize,
    side: usize,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let now = self.net.world.now();
            let next = {
                let mut inner = self.net.lock();
                let Conn { sides, pipes, .. } = &mut inner.connections[self.conn];
                let reset_at = sides[self.side].reset_at;
                if reset_at.is_some_and(|at| at <= now) {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                let pipe = &mut pipes[1 - self.side];
                let mut read = 0;
                while buf.remaining() > 0
                    && pipe.stalled_until <= now
                    && let Some((_, chunk)) = pipe.chunks.front_mut().filter(|(at, _)| *at <= now)
                {
                    let n = chunk.len().min(buf.remaining());
                    buf.put_slice(&chunk[..n]);
                    chunk.drain(..n);
                    read += n;
                    if chunk.is_empty() {
                        pipe.chunks.pop_front();
                    }
                }
                if read > 0 || buf.remaining() == 0 {
                    pipe.bytes -= read;
                    wake(&mut pipe.writer);
                    return Poll::Ready(Ok(()));
                }
                let end = (pipe.closed && pipe.chunks.is_empty()).then_some(pipe.last);
                if end.is_some_and(|at| at.max(pipe.stalled_until) <= now) {
                    return Poll::Ready(Ok(()));
                }
                pipe.reader = Some(cx.waker().clone());
                let arrival =
                    pipe.chunks.front().map(|(at, _)| *at).or(end).map(|at| at.max(pipe.stalled_until));
                arrival.into_iter().chain(reset_at).min()
            };
            let Some(next) = next else { return Poll::Pending };
            let mut sleep = Box::pin(self.net.world.sleep_until(next));
            if sleep.as_mut().poll(cx).is_pending() {
                self.sleep = Some(sleep);
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.net.closed(self.conn, self.side, true);
    }
}

struct Writer {
    net: Net,
    conn: usize,
    side: usize,
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let net = &self.net;
        let now = net.world.now();
        let mut inner = net.lock();
        let Conn { sides, pipes, audit } = &mut inner.connections[self.conn];
        let (me, peer) = (&sides[self.side], &sides[1 - self.side]);
        if me.reset_at.is_some_and(|at| at <= now) || !(peer.reads || peer.writes) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let pipe = &mut pipes[self.side];
        if pipe.bytes >= net.weather.buffer {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut n = bytes.len().min(net.weather.buffer - pipe.bytes);
        if n > 1 && net.world.chance(0.1) {
            n = 1 + net.world.below(n as u64 - 1) as usize;
        }
        let at = pipe.last.max(now + net.delay());
        pipe.last = at;
        pipe.bytes += n;
        pipe.chunks.push_back((at, bytes[..n].to_vec()));
        for frame in pipe.tap.pass(&bytes[..n]) {
            net.trace.add(now, format_args!("{} > {} {}", me.name, peer.name, describe(&frame)));
            if let Err(why) = audit.pass(&frame) {
                net.world.fail(format!("{} > {}: {why}", me.name, peer.name));
            }
        }
        wake(&mut pipe.reader);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.net.closed(self.conn, self.side, false);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.net.closed(self.conn, self.side, false);
    }
}

impl Net {
    /// A side has closed its reading or writing half.
    fn closed(&self, conn: usize, side: usize, reading: bool) {
        let soon = self.world.now() + self.weather.latency;
        let mut inner = self.lock();
        let Conn { sides, pipes, .. } = &mut inner.connections[conn];
        if reading {
            sides[side].reads = false;
        } else if std::mem::replace(&mut sides[side].writes, false) {
            pipes[side].closed = true;
            pipes[side].last = pipes[side].last.max(soon);
        }
        inner.connections[conn].wake_all();
    }
}

impl Audit {
    fn pass(&mut self, frame: &Frame) -> Result<(), String> {
        let Audit { announced, permitted, sent, returned } = self;
        match frame {
            Frame::Announce { rows, .. } => *announced = *rows,
            Frame::Permit { rows, .. } => *permitted = (*permitted).max(*rows),
            Frame::Request { runs, .. } => {
                // Rows may go ahead of their permits, announced and once at a time.
                let ahead = *sent + *returned > *permitted;
                *sent += RequestRun::total(runs);
                if *sent + *returned > *permitted && (ahead || *sent + *returned > *announced) {
                    return Err(format!(
                        "{sent} rows sent and {returned} permits returned, of {permitted} permits and {announced} rows announced"
                    ));
                }
            }
            Frame::Return { rows } => {
                *returned = *rows;
                if *sent + *returned > *permitted {
                    return Err(format!("{sent} rows sent and {returned} returned, of {permitted} permits"));
                }
            }
            // What is refused for want of a permit was not sent.
            Frame::Failure { runs, error }
                if error.kind() == Kind::Overload && error.fate() == Fate::Refused =>
            {
                *sent = sent.saturating_sub(RequestRun::total(runs));
            }
            _ => {}
        }
        Ok(())
    }
}
