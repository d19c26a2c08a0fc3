//! Other servers with the same scripted model, as processes beside this one: too much at a time, and full batches.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pelton::env::real::Host;
use pelton::env::{Address, Env, Place};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use super::cpu::Meter;
use super::load::{Course, Requests};
use super::{Batching, Effort, Found, IN_FLIGHT, Overload};
use crate::bench::batching::{self, PAYLOAD, WARM_UP};
use crate::bench::figure;
use crate::family::{self, Member};
use crate::http::{Messages, post};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum System {
    Mosec,
    Ray,
}

/// One way to set a server up, and what is measured of it.
struct Setup {
    configuration: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    overload: bool,
    batching: bool,
}

/// Ray's entry through HAProxy, and its other settings for throughput.
const HAPROXY: &[(&str, &str)] =
    &[("RAY_SERVE_ENABLE_HA_PROXY", "1"), ("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")];

impl System {
    pub(super) fn name(self) -> &'static str {
        match self {
            System::Mosec => "mosec",
            System::Ray => "ray",
        }
    }

    fn script(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(format!("{}_server.py", self.name()))
    }

    fn path(self) -> &'static str {
        match self {
            System::Mosec => "/inference",
            System::Ray => "/",
        }
    }

    /// A queue that is shorter than the deadline gives goodput in an overload, and one that holds everything gives full batches
    /// at any number of calls in flight: each is the best that the server can be set to for its part.
    fn setups(self) -> &'static [Setup] {
        match self {
            System::Mosec => &[
                Setup {
                    configuration: "as it comes",
                    arguments: &[],
                    environment: &[],
                    overload: true,
                    batching: false,
                },
                Setup {
                    configuration: "by hand: capacity 512",
                    arguments: &["--capacity", "512"],
                    environment: &[],
                    overload: true,
                    batching: false,
                },
                Setup {
                    configuration: "by hand: capacity 8192",
                    arguments: &["--capacity", "8192", "--timeout", "30000"],
                    environment: &[],
                    overload: false,
                    batching: true,
                },
            ],
            System::Ray => &[
                Setup {
                    configuration: "as it comes, 2048 ongoing",
                    arguments: &["--ongoing", "2048"],
                    environment: &[],
                    overload: true,
                    batching: true,
                },
                Setup {
                    configuration: "by hand: 40 ms wait, 64 + 64",
                    arguments: &["--ongoing", "64", "--queued", "64", "--batch-wait", "0.04"],
                    environment: HAPROXY,
                    overload: true,
                    batching: false,
                },
                Setup {
                    configuration: "by hand: 40 ms wait, 2048 ongoing",
                    arguments: &["--ongoing", "2048", "--batch-wait", "0.04"],
                    environment: HAPROXY,
                    overload: false,
                    batching: true,
                },
            ],
        }
    }
}

/// How long a server may take to answer its first request, and to end.
const START: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a call in a closed loop may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Files that this process and the servers have open at most: a connection for each request under way.
const OPEN_FILES: u64 = 16_384;
const TICK: Duration = Duration::from_millis(1);

pub(super) fn measure(
    host: &Host,
    system: System,
    python: &Path,
    scratch: &Path,
    effort: &Effort,
    found: &mut dyn FnMut(Found) -> Result<()>,
) -> Result<()> {
    allow_files();
    let env = host.env();
    for (number, setup) in system.setups().iter().enumerate() {
        let folder = scratch.join(format!("{}{number}", system.name()));
        let configuration = setup.configuration.to_owned();
        let name = system.name().to_owned();
        let mut server = Server::start(env, system, setup, python, &folder)?;
        host.block_on(async {
            server.ready(env).await?;
            if setup.overload {
                let (requests, others) = overload(env, &server, effort.course).await;
                let verdict = requests.judge(&effort.course);
                let (system, configuration) = (name.clone(), configuration.clone());
                found(Found::Overload(Overload { system, configuration, verdict, others }))?;
            }
            for in_flight in IN_FLIGHT.into_iter().filter(|_| setup.batching) {
                server.ready(env).await?;
                let (rate, failures, others) = rate(env, &server, in_flight, effort.batching).await?;
                let share = rate / batching::ideal();
                let (system, configuration) = (name.clone(), configuration.clone());
                found(Found::Batching(Batching {
                    system,
                    configuration,
                    in_flight,
                    rate,
                    share,
                    failures,
                    others,
                }))?;
            }
            anyhow::Ok(())
        })
        .with_context(|| format!("{}, {}", system.name(), setup.configuration))?;
        host.block_on(server.stop(env));
    }
    Ok(())
}

/// Asks for as many open files as may be had; with too few, requests fail with that as their reason.
fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(OPEN_FILES, |m| m.min(OPEN_FILES));
    if limit.current.is_some_and(|now| now < most) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum });
    }
}

/// A server's processes, found by a mark in their environment. Dropping it ends them all.
struct Server {
    main: Child,
    mark: String,
    address: Address,
    request: Vec<u8>,
    log: PathBuf,
}

impl Server {
    fn start(env: &Env, system: System, setup: &Setup, python: &Path, folder: &Path) -> Result<Server> {
        std::fs::create_dir_all(folder)?;
        let log = folder.join("log");
        let file = File::create(&log)?;
        let port = free_port()?;
        let mark = env.entropy.secret();
        let mut command = Command::new(python);
        command.arg("-B").arg(system.script()).args(["--port", &port.to_string()]);
        match system {
            System::Mosec => command.args(["--address", "127.0.0.1"]),
            System::Ray => command.arg("--folder").arg(folder),
        };
        let main = command
            .args(setup.arguments)
            .env("SCRIPTED_LATENCY", batching::LATENCY.as_secs_f64().to_string())
            .env("SCRIPTED_PER_ROW", batching::PER_ROW.as_secs_f64().to_string())
            .env("SCRIPTED_ROWS", batching::ROWS.to_string())
            // Ray gives its workers a lower priority, and reports its use to its makers, unless it is told.
            .envs([("RAY_worker_niceness", "0"), ("RAY_USAGE_STATS_ENABLED", "0"), ("PYTHONUNBUFFERED", "1")])
            .envs(setup.environment.iter().copied())
            .env(family::VARIABLE, &mark)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {}", python.display()))?;
        let address = Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let request = post(system.path(), "application/octet-stream", &PAYLOAD);
        Ok(Server { main, mark, address, request, log })
    }

    fn pids(&self) -> Vec<u32> {
        family::members(&self.mark).into_iter().map(|m| m.pid).collect()
    }

    /// Waits until it answers.
    async fn ready(&mut self, env: &Env) -> Result<()> {
        let until = env.now() + START;
        loop {
            if let Some(status) = self.main.try_wait()? {
                bail!("it ended with {status}; its last words:\n{}", self.last_words());
            }
            let asked = env.within(Duration::from_secs(3), async {
                let mut connection = connect(env, &self.address).await?;
                ask(&mut connection, &self.request).await
            });
            if matches!(asked.await, Some(Ok(_))) {
                return Ok(());
            }
            ensure!(env.now() < until, "no answer within {START:?}; its last words:\n{}", self.last_words());
            env.sleep(LOOK_EVERY).await;
        }
    }

    fn last_words(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Asks it to end; what is left then is ended.
    async fn stop(mut self, env: &Env) {
        if let Some(main) = Member::find(self.main.id()) {
            main.signal(Signal::TERM);
        }
        let until = env.now() + STOP;
        while env.now() < until && matches!(self.main.try_wait(), Ok(None)) {
            env.sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Whoever is ended may just have started another.
        for _ in 0..5 {
            let members = family::members(&self.mark);
            if members.is_empty() {
                break;
            }
            members.iter().for_each(|member| member.signal(Signal::KILL));
        }
        let _ = self.main.wait();
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

async fn connect(env: &Env, address: &Address) -> Result<Messages, String> {
    let connection = env.network.connect(address).await;
    Ok(Messages::new(connection.map_err(|e| format!("connecting: {:?}", e.kind()))?))
}

/// One request and its answer. Whether the connection is good for another afterwards.
async fn ask(connection: &mut Messages, request: &[u8]) -> Result<bool, String> {
    let broken = |e: io::Error| format!("connection: {:?}", e.kind());
    connection.send(request).await.map_err(broken)?;
    let answer = connection.receive().await.map_err(broken)?;
    let answer = answer.ok_or_else(|| "connection: ended".to_owned())?;
    match answer.status().map_err(broken)? {
        200 if answer.body != PAYLOAD => Err("a wrong answer".to_owned()),
        200 => Ok(answer.keeps()),
        status => Err(format!("status {status}")),
    }
}

type Idle = Arc<Mutex<Vec<Messages>>>;

fn idle_one(idle: &Idle) -> Option<Messages> {
    idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
}

/// Requests when they are due; each gives up at its deadline, and hangs up then.
async fn overload(env: &Env, server: &Server, course: Course) -> (Requests, f64) {
    let meter = Meter::begin(env, server.pids());
    let requests = Arc::new(Mutex::new(Requests::default()));
    let idle = Idle::default();
    let begun = env.now();
    let lock = |r: &Mutex<Requests>, f: &mut dyn FnMut(&mut Requests)| {
        f(&mut r.lock().unwrap_or_else(PoisonError::into_inner));
    };
    let (address, request) = (Arc::new(server.address.clone()), Arc::new(server.request.clone()));
    loop {
        let now = env.now().since(begun);
        let mut begin = 0;
        lock(&requests, &mut |r| begin = course.due(now) - r.len());
        for _ in 0..begin {
            let mut number = 0;
            lock(&requests, &mut |r| number = r.begin(env.now().since(begun)));
            let (requests, idle, env2) = (requests.clone(), idle.clone(), env.clone());
            let (address, request) = (address.clone(), request.clone());
            let task = async move {
                let env = env2;
                let asked = env.within(course.deadline, async {
                    let mut connection = match idle_one(&idle) {
                        Some(connection) => connection,
                        None => connect(&env, &address).await?,
                    };
                    Ok(ask(&mut connection, &request).await?.then_some(connection))
                });
                let failure = match asked.await {
                    Some(Ok(connection)) => {
                        idle.lock().unwrap_or_else(PoisonError::into_inner).extend(connection);
                        None
                    }
                    Some(Err(why)) => Some(why),
                    None => Some("deadline".to_owned()),
                };
                let at = env.now().since(begun);
                requests.lock().unwrap_or_else(PoisonError::into_inner).end(number, at, failure.as_deref());
            };
            env.spawn(Place::Network, task).detach();
        }
        if now >= course.end() {
            break;
        }
        env.sleep(TICK).await;
    }
    let others = meter.end(env).others;
    let until = env.now() + course.deadline * 3;
    loop {
        let mut open = 0;
        lock(&requests, &mut |r| open = r.open());
        if open == 0 || env.now() >= until {
            break;
        }
        env.sleep(LOOK_EVERY).await;
    }
    let ended = std::mem::take(&mut *requests.lock().unwrap_or_else(PoisonError::into_inner));
    (ended, others)
}

/// Rows a second of loops that call for one row after another, how many calls failed, and the cores that others took.
async fn rate(env: &Env, server: &Server, in_flight: usize, time: Duration) -> Result<(f64, u64, f64)> {
    let meter = Meter::begin(env, server.pids());
    // Its first batches tell a server what load it is under; Ray's replicas learn it a little slowly.
    let begin = env.now() + 2 * WARM_UP;
    let until = begin + time;
    let course = RefCell::new(figure::Course::default());
    let failures = RefCell::new(0u64);
    let mut loops: FuturesUnordered<_> = (0..in_flight)
        .map(|_| async {
            let mut connection = None;
            while env.now() < until {
                let asked = env.within(PATIENCE, async {
                    let mut messages = match connection.take() {
                        Some(messages) => messages,
                        None => connect(env, &server.address).await?,
                    };
                    Ok::<_, String>(ask(&mut messages, &server.request).await?.then_some(messages))
                });
                match asked.await {
                    Some(Ok(messages)) => {
                        connection = messages;
                        course.borrow_mut().add(env.now(), 1);
                    }
                    Some(Err(_)) | None => {
                        *failures.borrow_mut() += 1;
                        // Whoever was refused comes back a little later.
                        env.sleep(Duration::from_millis(20)).await;
                    }
                }
            }
        })
        .collect();
    while loops.next().await.is_some() {}
    drop(loops);
    let others = meter.end(env).others;
    let course = course.into_inner();
    let total = course.len() as f64 - in_flight as f64;
    let counted = course.cut(begin, total);
    let rate = if counted.len() < 2 { 0.0 } else { counted.rate() };
    Ok((rate, failures.into_inner(), others))
}
