//! The seams as they are outside a simulation.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use pelton_core::BoxFuture;
use rand::Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::{
    Address, Clock, Connection, Entropy, Env, Exit, INSTANCE_VARIABLE, Listener, Network, Place, Process,
    ProcessSpec, Processes, Task, Tasks, Time,
};

pub use crate::disk::Disk;

/// Owns the threads of a real [`Env`]. Dropping it waits for no task.
pub struct Host {
    env: Env,
    network: Option<Runtime>,
    compute: Option<Runtime>,
}

impl Host {
    /// Starts the threads: `network` of them serve connections, `compute` of them run the data plane.
    pub fn new(network: usize, compute: usize) -> io::Result<Host> {
        let runtime = |name: &str, threads: usize| {
            Builder::new_multi_thread().worker_threads(threads.max(1)).thread_name(name).enable_all().build()
        };
        let network = runtime("pelton-net", network)?;
        let compute = runtime("pelton-compute", compute)?;
        let env = Env {
            clock: Arc::new(WallClock { origin: now() }),
            network: Arc::new(Sockets),
            processes: Arc::new(Programs),
            tasks: Arc::new(Pools { network: network.handle().clone(), compute: compute.handle().clone() }),
            entropy: Arc::new(Os),
            storage: Arc::new(Disk),
            crash: Arc::new(|why| {
                eprintln!("crashing: {why}");
                std::process::abort();
            }),
        };
        Ok(Host { env, network: Some(network), compute: Some(compute) })
    }

    pub fn env(&self) -> &Env {
        &self.env
    }

    /// Runs `future` on the calling thread, with the network threads' reactor.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.network.as_ref().expect("only taken on drop").block_on(future)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for runtime in [self.network.take(), self.compute.take()].into_iter().flatten() {
            runtime.shutdown_background();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the real clock")]
fn now() -> Instant {
    Instant::now()
}

struct WallClock {
    origin: Instant,
}

impl Clock for WallClock {
    fn now(&self) -> Time {
        Time::from_origin(now().duration_since(self.origin))
    }

    /// Exact to about 100 us. The timer of tokio rounds up to whole milliseconds, which is 3 % of a 36 ms batch.
    #[expect(clippy::disallowed_methods, reason = "this is the real clock")]
    fn sleep(&self, d: Duration) -> BoxFuture<()> {
        let until = now() + d;
        Box::pin(async move {
            let coarse = d.saturating_sub(Duration::from_millis(2));
            if !coarse.is_zero() {
                tokio::time::sleep(coarse).await;
            }
            let rest = until.saturating_duration_since(now());
            if rest >= Duration::from_millis(20) || d >= Duration::from_millis(500) {
                tokio::time::sleep(rest).await;
            } else if !rest.is_zero() {
                let _ = tokio::task::spawn_blocking(move || std::thread::sleep(rest)).await;
            }
        })
    }

    #[expect(clippy::disallowed_methods, reason = "this is the real clock")]
    fn unix_millis(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }
}

struct Os;

impl Entropy for Os {
    #[expect(clippy::disallowed_methods, reason = "this is where randomness comes in")]
    fn seed(&self) -> u64 {
        rand::rng().next_u64()
    }

    #[expect(clippy::disallowed_methods, reason = "this is where randomness comes in")]
    fn secret(&self) -> String {
        let mut rng = rand::rng();
        format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64())
    }
}

struct Pools {
    network: Handle,
    compute: Handle,
}

impl Tasks for Pools {
    fn spawn(&self, place: Place, future: BoxFuture<()>) -> Task {
        match place {
            Place::Network => abortable(self.network.spawn(future)),
            Place::Compute => abortable(self.compute.spawn(future)),
            Place::Dedicated => {
                let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
                let reactor = self.network.clone();
                #[expect(clippy::disallowed_methods, reason = "this is where threads are started")]
                std::thread::spawn(move || {
                    // Tokio has a task that goes on for long without a pause wait at whatever of tokio's it comes to, until it is polled anew. Who
                    // blocks this thread until a future has ended (a user's method may) is not polled anew before: that would never end.
                    let future = tokio::task::unconstrained(future);
                    reactor.block_on(async {
                        tokio::select! {
                            biased;
                            _ = stopped => {}
                            () = future => {}
                        }
                    });
                });
                // Dropped with the task, a sender ends the receiver; detached, it is forgotten and never does.
                let stop = std::mem::ManuallyDrop::new(stop);
                Task::new(move || drop(std::mem::ManuallyDrop::into_inner(stop)))
            }
        }
    }
}

fn abortable(handle: tokio::task::JoinHandle<()>) -> Task {
    Task::new(move || handle.abort())
}

struct Sockets;

impl Network for Sockets {
    fn connect(&self, to: &Address) -> BoxFuture<io::Result<Connection>> {
        let to = to.clone();
        Box::pin(async move {
            match to {
                Address::Unix(path) => Ok(unix(UnixStream::connect(path).await?)),
                Address::Tcp(addr) => tcp(TcpStream::connect(addr).await?),
                Address::Host(host, port) => tcp(TcpStream::connect((host.as_str(), port)).await?),
                Address::Tls(..) => Err(no_tls(&to)),
            }
        })
    }

    fn resolve(&self, host: &str, port: u16) -> BoxFuture<io::Result<Vec<SocketAddr>>> {
        let host = host.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host((host.as_str(), port)).await?.collect()) })
    }

    fn listen(&self, at: &Address) -> io::Result<Box<dyn Listener>> {
        match at {
            Address::Unix(path) => Ok(Box::new(Unix { listener: UnixListener::bind(path)?, at: at.clone() })),
            Address::Tcp(addr) => listen_tcp(std::net::TcpListener::bind(addr)?),
            Address::Host(host, port) => listen_tcp(std::net::TcpListener::bind((host.as_str(), *port))?),
            Address::Tls(..) => Err(no_tls(at)),
        }
    }
}

/// Who wants TLS wraps it around what this network gives.
fn no_tls(at: &Address) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("{at} needs certificates, and none were given"))
}

fn listen_tcp(listener: std::net::TcpListener) -> io::Result<Box<dyn Listener>> {
    listener.set_nonblocking(true)?;
    Ok(Box::new(Tcp { listener: TcpListener::from_std(listener)? }))
}

fn unix(stream: UnixStream) -> Connection {
    let (read, write, descriptors) = crate::descriptors::split(stream);
    Connection { read: Box::new(read), write: Box::new(write), descriptors: Some(descriptors) }
}

/// A peer whose machine is gone says nothing of it. After so long without a sign of it, the connection breaks.
const GONE_AFTER: Duration = Duration::from_secs(30);
/// From sign to sign of a connection that has nothing else to say.
const SIGN_EVERY: Duration = Duration::from_secs(10);

fn tcp(stream: TcpStream) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    let signs = TcpKeepalive::new().with_time(SIGN_EVERY).with_interval(SIGN_EVERY).with_retries(3);
    socket.set_tcp_keepalive(&signs)?;
    socket.set_tcp_user_timeout(Some(GONE_AFTER))?;
    let (read, write) = stream.into_split();
    Ok(Connection { read: Box::new(read), write: Box::new(write), descriptors: None })
}

struct Unix {
    listener: UnixListener,
    at: Address,
}

impl Listener for Unix {
    fn address(&self) -> Address {
        self.at.clone()
    }
    fn accept(&mut self) -> std::pin::Pin<Box<dyn Future<Output = io::Result<Connection>> + Send + '_>> {
        Box::pin(async { Ok(unix(self.listener.accept().await?.0)) })
    }
}

impl Drop for Unix {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.at {
            let _ = std::fs::remove_file(path);
        }
    }
}

struct Tcp {
    listener: TcpListener,
}

impl Listener for Tcp {
    fn address(&self) -> Address {
        Address::Tcp(self.listener.local_addr().expect("a bound listener has an address"))
    }
    fn accept(&mut self) -> std::pin::Pin<Box<dyn Future<Output = io::Result<Connection>> + Send + '_>> {
        Box::pin(async { tcp(self.listener.accept().await?.0) })
    }
}

/// Starts the program that runs now once more, with the same arguments, as an instance; or the one that the instance names.
struct Programs;

impl Processes for Programs {
    fn start(&self, spec: ProcessSpec) -> io::Result<Box<dyn Process>> {
        use std::os::unix::process::CommandExt;

        let log = File::options().create(true).append(true).open(&spec.log)?;
        let mut command = match spec.program.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments);
                command
            }
            None => {
                let mut command = Command::new(std::env::current_exe()?);
                let mut arguments = std::env::args_os();
                // Also the name that it was called by: an interpreter finds its environment by it, and not by the file that it is.
                if let Some(name) = arguments.next() {
                    command.arg0(name);
                }
                command.args(arguments);
                command
            }
        };
        command
            .envs(spec.environment)
            .env(INSTANCE_VARIABLE, &spec.service)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own: Ctrl-C in a terminal is for the job, which lets its instances finish.
            .process_group(0);
        let mut child = tokio::process::Command::from(command).spawn()?;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // Small enough for the pipe's buffer or not, a child that does not read it must not hold us up.
        #[expect(clippy::disallowed_methods, reason = "this is where processes are started")]
        tokio::spawn(async move {
            let _ = stdin.write_all(spec.bootstrap.as_bytes()).await;
        });
        Ok(Box::new(Child { pid: child.id().unwrap_or(0), child }))
    }

    fn adopt(&self, pid: u32) -> io::Result<Box<dyn Process>> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("there is no process {pid}"));
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        let handle = pidfd_open(number, PidfdFlags::empty())?;
        Ok(Box::new(Adopted { pid, handle }))
    }

    fn program(&self) -> String {
        let metadata = std::env::current_exe().and_then(std::fs::metadata);
        metadata.map_or_else(
            |_| String::new(),
            |m| {
                format!("{}.{}.{}.{}", m.dev(), m.ino(), m.size(), m.mtime_nsec() + m.mtime() * 1_000_000_000)
            },
        )
    }
}

/// How soon the end of a process that is not our child is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A process that is not our child.
struct Adopted {
    pid: u32,
    handle: OwnedFd,
}

impl Process for Adopted {
    fn pid(&self) -> u32 {
        self.pid
    }

    #[expect(clippy::disallowed_methods, reason = "this is where processes are watched")]
    fn exited(&mut self) -> std::pin::Pin<Box<dyn Future<Output = Exit> + Send + '_>> {
        Box::pin(async {
            // Readable once it has ended (pidfd_open(2)). Looked at now and then, because waiting for any descriptor takes unsafe code.
            while let Ok(0) =
                poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], Some(&Timespec::default()))
            {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            let description = "ended; it was taken over, so that its exit status is not known".to_owned();
            Exit { success: false, description }
        })
    }

    fn kill(&mut self) {
        let _ = pidfd_send_signal(&self.handle, rustix::process::Signal::KILL);
    }
}

struct Child {
    pid: u32,
    child: tokio::process::Child,
}

impl Process for Child {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn exited(&mut self) -> std::pin::Pin<Box<dyn Future<Output = Exit> + Send + '_>> {
        Box::pin(async {
            match self.child.wait().await {
                Ok(status) => status.into(),
                Err(e) => Exit { success: false, description: format!("its end could not be observed: {e}") },
            }
        })
    }

    fn kill(&mut self) {
        let _ = self.child.start_kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dedicated_thread_may_block_on_any_number_of_futures() {
        let host = Host::new(1, 1).unwrap();
        let env = host.env().clone();
        let (tell, told) = std::sync::mpsc::channel();
        let work = async move {
            // More than tokio lets a task do in one go.
            for _ in 0..500 {
                futures::executor::block_on(env.sleep(Duration::from_micros(1)));
            }
            tell.send(()).unwrap();
        };
        let _task = host.env().spawn(Place::Dedicated, work);
        assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok(()), "it never got through");
    }
}
