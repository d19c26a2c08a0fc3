//! The seams: everything through which the outside comes in.
//!
//! Clock, randomness, network, processes, tasks and storage. [`Env`] bundles them; [`real`] holds the implementations for use, the
//! simulator brings its own. No other crate reads a clock, draws a random number, opens a socket or starts a task
//! by itself (`clippy.toml` says so).

mod descriptors;
mod disk;
pub mod real;
pub mod segment;
pub mod simulated;
pub mod storage;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

pub use descriptors::Descriptors;
use pelton_core::BoxFuture;
pub use pelton_core::endpoint::Address;
pub use pelton_core::time::{Clock, Time};
use rand::SeedableRng;
use rand::rngs::StdRng;
pub use storage::Storage;
use tokio::io::{AsyncRead, AsyncWrite};

/// All seams together. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    pub clock: Arc<dyn Clock>,
    pub network: Arc<dyn Network>,
    pub processes: Arc<dyn Processes>,
    pub tasks: Arc<dyn Tasks>,
    pub entropy: Arc<dyn Entropy>,
    /// For what must outlive this process, and for what must not. What is read once and made by others is read where it is.
    pub storage: Arc<dyn Storage>,
    /// Ends this process at once, as a crash would.
    pub crash: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Env {
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    pub async fn sleep(&self, d: Duration) {
        self.clock.sleep(d).await;
    }

    /// Waits until `at`; for ever if there is no such time.
    pub async fn sleep_until(&self, at: Option<Time>) {
        match at {
            Some(at) => self.clock.sleep(at.since(self.clock.now())).await,
            None => std::future::pending().await,
        }
    }

    /// `work`'s output, or `None` if `limit` passed first.
    pub async fn within<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            out = work => Some(out),
            () = self.clock.sleep(limit) => None,
        }
    }

    /// A generator of its own for one component.
    pub fn rng(&self) -> StdRng {
        StdRng::seed_from_u64(self.entropy.seed())
    }

    /// Starts a task. It ends with its [`Task`] handle, unless that is detached.
    pub fn spawn(&self, place: Place, future: impl Future<Output = ()> + Send + 'static) -> Task {
        self.tasks.spawn(place, Box::pin(future))
    }
}

/// Where a task runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Among the tasks that serve connections: never blocks, never computes for long.
    Network,
    /// Among the tasks of the data plane, which may compute for as long as a batch takes.
    Compute,
    /// On a thread of its own, which it may block.
    Dedicated,
}

/// A running task. Dropping the handle ends it at its next await.
pub struct Task {
    abort: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Task {
    pub fn new(abort: impl FnOnce() + Send + Sync + 'static) -> Self {
        Task { abort: Some(Box::new(abort)) }
    }

    /// Lets it run on by itself.
    pub fn detach(mut self) {
        self.abort = None;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(abort) = self.abort.take() {
            abort();
        }
    }
}

/// Starts tasks.
pub trait Tasks: Send + Sync + 'static {
    fn spawn(&self, place: Place, future: BoxFuture<()>) -> Task;
}

/// Seeds for generators. Law: two calls give unrelated seeds.
pub trait Entropy: Send + Sync + 'static {
    fn seed(&self) -> u64;
    /// 32 hexadecimal digits that nobody can guess.
    fn secret(&self) -> String;
}

/// A connection: a reliable, ordered stream of bytes in both directions, until it breaks.
pub struct Connection {
    pub read: Box<dyn AsyncRead + Send + Sync + Unpin>,
    pub write: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    /// The way of descriptors beside it, where there is one: on Unix sockets.
    pub descriptors: Option<Descriptors>,
}

/// Opens connections and takes them. Law: a refused or broken connection is an `io::Error` within bounded time.
pub trait Network: Send + Sync + 'static {
    fn connect(&self, to: &Address) -> BoxFuture<io::Result<Connection>>;
    /// The addresses of a host by name, at least one. A network without names knows only addresses.
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<io::Result<Vec<SocketAddr>>> {
        let parsed = host.parse::<IpAddr>().map(|ip| vec![SocketAddr::new(ip, port)]);
        let unknown = format!("{host} is not an address, and this network has no names");
        Box::pin(async move { parsed.map_err(|_| io::Error::new(io::ErrorKind::NotFound, unknown)) })
    }
    /// The listener is bound when this returns.
    fn listen(&self, at: &Address) -> io::Result<Box<dyn Listener>>;
}

pub trait Listener: Send + 'static {
    /// Where it really listens (a TCP port 0 is resolved).
    fn address(&self) -> Address;
    fn accept(&mut self) -> std::pin::Pin<Box<dyn Future<Output = io::Result<Connection>> + Send + '_>>;
}

/// What a connection passes through before anything is read from it: TLS, where it comes from another machine. May wait for the peer; who
/// calls it bounds the time.
pub trait Guard: Send + Sync + 'static {
    fn admit(&self, connection: Connection) -> BoxFuture<io::Result<Connection>>;
}

/// A process to start: an instance of a service.
#[derive(Clone, Debug)]
pub struct ProcessSpec {
    /// What it is called in messages and logs.
    pub name: String,
    /// The service that it shall be an instance of; the program finds out by the environment variable
    /// [`INSTANCE_VARIABLE`].
    pub service: String,
    /// The command and its arguments. Empty: the program that runs now, with its own.
    pub program: Vec<String>,
    /// Given to it on its standard input.
    pub bootstrap: String,
    /// Variables that are added to its environment.
    pub environment: Vec<(&'static str, String)>,
    /// Where its standard output and error go.
    pub log: PathBuf,
}

/// The environment variable that tells a program that it was started as the instance of a service.
pub const INSTANCE_VARIABLE: &str = "PELTON_INSTANCE";

/// Starts processes.
pub trait Processes: Send + Sync + 'static {
    fn start(&self, spec: ProcessSpec) -> io::Result<Box<dyn Process>>;
    /// A process that is there already, and whose parent is another or gone. An error if there is none of this number.
    fn adopt(&self, pid: u32) -> io::Result<Box<dyn Process>>;
    /// What tells this program from another build of it.
    fn program(&self) -> String;
}

/// A process that was started. Law: `exited` returns once the process is gone, however it went.
pub trait Process: Send + 'static {
    fn pid(&self) -> u32;
    fn exited(&mut self) -> std::pin::Pin<Box<dyn Future<Output = Exit> + Send + '_>>;
    /// Ends it at once (SIGKILL).
    fn kill(&mut self);
}

/// How a process ended, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    pub success: bool,
    pub description: String,
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        Exit { success: status.success(), description: status.to_string() }
    }
}
