//! Callers and servers of other libraries, as processes that `bench wire` starts. Each prints what it has to say as one line of JSON.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use clap::{Args, Parser};
use futures::future::join_all;
use pelton_peers::grpc::{self, Security};
use pelton_peers::http;
use pelton_peers::load::{self, Course, Ended, FILL, Summary, same};
use tokio::task::JoinHandle;

#[derive(Parser)]
#[command(
    name = "pelton-peers",
    about = "Callers and servers of other libraries, to be measured beside Pelton"
)]
enum Command {
    /// A gRPC server that gives back what it gets; until it is ended
    Serve {
        #[arg(long)]
        port: u16,
        /// How long a call takes, one after another; 0: no time
        #[arg(long, default_value_t = 0.0)]
        seconds: f64,
        /// A folder with `certificate.pem` and `key.pem`
        #[arg(long)]
        tls: Option<PathBuf>,
    },
    /// A certificate and its key, for `serve`, into this folder
    Certificate { folder: PathBuf },
    /// Calls one after another, several side by side
    Load {
        #[command(flatten)]
        server: Server,
        #[arg(long)]
        in_flight: usize,
        #[arg(long)]
        seconds: f64,
    },
    /// Calls at a fixed rate
    Open {
        #[command(flatten)]
        server: Server,
        /// Calls a second
        #[arg(long)]
        rate: f64,
        #[arg(long)]
        seconds: f64,
    },
    /// One call, and the memory that this process held at most beyond what it held before
    Once {
        #[command(flatten)]
        server: Server,
    },
    /// One streamed answer of so many bytes over gRPC, the memory as with `once`, and the seconds that it took
    Stream {
        #[command(flatten)]
        server: Server,
    },
}

/// Who is called, and with what.
#[derive(Args)]
struct Server {
    /// With several, gRPC goes to the one with the least to do, HTTP to all in turn
    #[arg(long, value_delimiter = ',', required = true)]
    address: Vec<SocketAddr>,
    /// The path of an HTTP server; by default it is gRPC
    #[arg(long)]
    path: Option<String>,
    /// A folder with the `certificate.pem` to trust
    #[arg(long)]
    tls: Option<PathBuf>,
    /// Bytes of the payload, which the answer must be, too
    #[arg(long, required_unless_present = "payload")]
    bytes: Option<usize>,
    /// A file with the payload
    #[arg(long, requires = "answer", conflicts_with = "bytes")]
    payload: Option<PathBuf>,
    /// A file with what the answer must be
    #[arg(long)]
    answer: Option<PathBuf>,
}

/// One call at a time.
enum Lane {
    Grpc(grpc::Client),
    Http(http::Lane),
}

impl Lane {
    async fn call(&mut self, what: &Exchange) -> Result<(), String> {
        let answer = match self {
            Lane::Grpc(client) => client.call(what.payload.clone()).await?,
            Lane::Http(lane) => lane.call(what.payload.clone()).await?,
        };
        same(&answer, &what.answer)
    }
}

impl Server {
    fn channel(&self) -> Result<grpc::Client> {
        let security = match &self.tls {
            Some(folder) => Security::Tls { certificate: read(folder, "certificate.pem")? },
            None => Security::Plain,
        };
        grpc::Client::to(&self.address, &security).map_err(|e| anyhow!(e))
    }

    /// What makes lanes. gRPC has one connection for all of them, HTTP one for each.
    fn lanes(&self) -> Result<impl Fn(usize) -> Lane> {
        let (path, addresses) = (self.path.clone(), self.address.clone());
        let channel = self.channel()?;
        Ok(move |number: usize| match &path {
            Some(path) => Lane::Http(http::Lane::new(addresses[number % addresses.len()], path.clone())),
            None => Lane::Grpc(channel.clone()),
        })
    }

    fn exchange(&self) -> Result<Exchange> {
        let file = |path: &PathBuf| {
            fs::read(path).map(Bytes::from).with_context(|| format!("reading {}", path.display()))
        };
        match (&self.payload, &self.answer) {
            (Some(payload), Some(answer)) => Ok(Exchange { payload: file(payload)?, answer: file(answer)? }),
            _ => {
                let payload = Bytes::from(vec![FILL; self.bytes.unwrap_or(0)]);
                Ok(Exchange { answer: payload.clone(), payload })
            }
        }
    }
}

/// What is sent, and what must come back.
#[derive(Clone)]
struct Exchange {
    payload: Bytes,
    answer: Bytes,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    match Command::parse() {
        Command::Serve { port, seconds, tls } => {
            let own = |folder: PathBuf| {
                let (certificate, key) = (read(&folder, "certificate.pem")?, read(&folder, "key.pem")?);
                anyhow::Ok(grpc::Own { certificate, key })
            };
            let each = (seconds > 0.0).then(|| Duration::from_secs_f64(seconds));
            let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            grpc::serve(at, each, tls.map(own).transpose()?).await.map_err(|e| anyhow!(e))
        }
        Command::Certificate { folder } => {
            let own = grpc::certificate().map_err(|e| anyhow!(e))?;
            fs::write(folder.join("certificate.pem"), own.certificate)?;
            Ok(fs::write(folder.join("key.pem"), own.key)?)
        }
        Command::Load { server, in_flight, seconds } => {
            say(&loads(&server, in_flight, Duration::from_secs_f64(seconds)).await?)
        }
        Command::Open { server, rate, seconds } => {
            let (lane, what) = (server.lanes()?, server.exchange()?);
            let idle: RefCell<Vec<Lane>> = RefCell::default();
            let made = Cell::new(0);
            let call = async || {
                let waiting = idle.borrow_mut().pop();
                let mut lane = waiting.unwrap_or_else(|| lane(made.replace(made.get() + 1)));
                lane.call(&what).await?;
                idle.borrow_mut().push(lane);
                Ok(())
            };
            // Whoever kills a replica counts from here.
            say(&"begun")?;
            std::io::stdout().flush()?;
            say(&load::open(rate, Duration::from_secs_f64(seconds), call).await)
        }
        Command::Once { server } => {
            let mut lane = server.lanes()?(0);
            let before = memory("VmRSS:");
            let what = server.exchange()?;
            let answer = load::bounded(lane.call(&what)).await;
            say(&(answer, memory("VmHWM:") - before))
        }
        Command::Stream { server } => {
            let mut channel = server.channel()?;
            // The connection is there, and what it takes is not counted.
            channel.call(Bytes::new()).await.map_err(|e| anyhow!(e))?;
            let (before, begun) = (memory("VmRSS:"), load::now());
            let answer = load::bounded(channel.parts(server.bytes.unwrap_or(0) as u64)).await;
            say(&(answer, memory("VmHWM:") - before, begun.elapsed().as_secs_f64()))
        }
    }
}

/// Each lane is a task of its own.
async fn loads(server: &Server, in_flight: usize, time: Duration) -> Result<Summary> {
    let (lane, what) = (server.lanes()?, server.exchange()?);
    let (before, course) = (processor(), Course::new(time));
    let tasks: Vec<_> = (0..in_flight)
        .map(|number| {
            let (mut lane, what) = (lane(number), what.clone());
            let task = async move {
                let mut ended = Ended::default();
                while let Some(began) = course.begin() {
                    let answer = lane.call(&what).await;
                    if answer.is_err() {
                        // Whoever is refused at once comes back a little later.
                        load::sleep(Duration::from_millis(1)).await;
                    }
                    ended.note(&course, began, answer);
                }
                ended
            };
            #[expect(clippy::disallowed_methods, reason = "a program of other libraries")]
            tokio::spawn(task)
        })
        .collect();
    let mut all = Ended::default();
    let bounded = |task: JoinHandle<Ended>| load::bounded(async { task.await.map_err(|e| e.to_string()) });
    for lane in join_all(tasks.into_iter().map(bounded)).await {
        // One that has no answer long after its time counts as a failed call.
        all.add(lane.unwrap_or_else(|why| Ended { failed: 1, why: Some(why), ..Ended::default() }));
    }
    let after = processor();
    Ok(Summary { processor: Some((before, after)), ..all.summary(&course) })
}

fn say(what: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(what)?);
    Ok(())
}

fn read(folder: &Path, name: &str) -> Result<String> {
    let path = folder.join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// A line of /proc/self/status, in bytes; 0 if there is none.
fn memory(line: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|l| l.strip_prefix(line));
    let kib: f64 = found.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0.0);
    kib * 1024.0
}

/// Seconds that this process has run: `utime` and `stime` of proc_pid_stat(5), of which there are 100 a second.
fn processor() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    fields.take(2).filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / 100.0
}
