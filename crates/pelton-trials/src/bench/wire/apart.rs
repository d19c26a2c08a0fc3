//! TLS over TCP, with caller and server in network namespaces of their own that a pair of virtual interfaces connects: nothing goes over the
//! loopback, and no privileges are needed. So far tonic alone: instances of Pelton's listen on sockets of Unix.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use pelton::env::Env;
use pelton::env::real::Host;
use pelton_peers::load::Summary;

use super::peer::said;
use super::{BIG, IN_FLIGHT, SMALL};

const CALLER: Ipv4Addr = Ipv4Addr::new(10, 93, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 93, 0, 2);
const PORT: u16 = 7443;
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The caller's side, as a process in a namespace of its own.
#[derive(Args)]
pub(crate) struct Apart {
    /// The program of `pelton-peers`
    #[arg(long)]
    program: PathBuf,
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    seconds: f64,
}

/// One thing that was measured, as the other process prints it: what, calls a second, median and 99 % in microseconds.
pub(super) type Line = (String, usize, f64, f64, f64);

/// Starts this program once more, in namespaces, and gives what it measured.
pub(super) fn measure(program: &Path, scratch: &Path, time: Duration) -> Result<Vec<Line>> {
    finish(Command::new(program).arg("certificate").arg(scratch))?;
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net"])
        .arg(std::env::current_exe()?)
        .arg("wire-apart")
        .args(["--seconds", &time.as_secs_f64().to_string()])
        .args([Path::new("--program"), program, Path::new("--folder"), scratch])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("starting `unshare`, which is part of util-linux")?;
    ensure!(output.status.success(), "the part with namespaces ended with {}", output.status);
    let lines = String::from_utf8(output.stdout)?;
    lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// The process that [`measure`] starts: connects the two namespaces, starts the server in the other one, and calls it.
pub(crate) fn run(arguments: &Apart) -> Result<()> {
    let host = Host::new(2, 1)?;
    let server = Command::new("unshare")
        .arg("--net")
        .arg(&arguments.program)
        .args(["serve", "--port", &PORT.to_string(), "--tls"])
        .arg(&arguments.folder)
        .stdin(Stdio::null())
        .spawn()
        .context("starting the server")?;
    let mut server = Ending(server);
    let pid = server.0.id().to_string();
    host.block_on(async {
        other_namespace(host.env(), &mut server.0).await?;
        ip(&["link", "add", "veth-caller", "type", "veth", "peer", "name", "veth-server", "netns", &pid])?;
        ip(&["addr", "add", &format!("{CALLER}/30"), "dev", "veth-caller"])?;
        ip(&["link", "set", "veth-caller", "up"])?;
        there(&pid, &["addr", "add", &format!("{SERVER}/30"), "dev", "veth-server"])?;
        there(&pid, &["link", "set", "veth-server", "up"])?;
        calls(host.env(), arguments).await
    })
}

/// Waits until the server's process has left this one's namespace.
async fn other_namespace(env: &Env, server: &mut Child) -> Result<()> {
    let until = env.now() + PATIENCE;
    let here = fs::read_link("/proc/self/ns/net")?;
    loop {
        let there = fs::read_link(format!("/proc/{}/ns/net", server.id())).ok();
        if there.is_some_and(|there| there != here) {
            return Ok(());
        }
        ensure!(server.try_wait()?.is_none() && env.now() < until, "the server has no namespace of its own");
        env.sleep(LOOK_EVERY).await;
    }
}

async fn calls(env: &Env, arguments: &Apart) -> Result<()> {
    let caller = |what: &str, bytes: usize| {
        let mut command = Command::new(&arguments.program);
        let address = SocketAddr::from((SERVER, PORT)).to_string();
        command.args([what, "--address", &address, "--bytes", &bytes.to_string(), "--tls"]);
        command.arg(&arguments.folder);
        command
    };
    let until = env.now() + PATIENCE;
    loop {
        let asked: (Result<(), String>, f64) = said(&mut caller("once", 14))?;
        match asked.0 {
            Ok(()) => break,
            Err(why) => ensure!(env.now() < until, "no answer within {PATIENCE:?}: {why}"),
        }
        env.sleep(LOOK_EVERY).await;
    }
    let small = SMALL.into_iter().flat_map(|(name, bytes)| [(name, bytes, IN_FLIGHT), (name, bytes, 1)]);
    for (name, bytes, in_flight) in small.chain(BIG) {
        let seconds = arguments.seconds.to_string();
        let mut load = caller("load", bytes);
        load.args(["--in-flight", &in_flight.to_string(), "--seconds", &seconds]);
        let ended: Summary = said(&mut load)?;
        ensure!(
            ended.failed == 0,
            "{name}: {} calls failed: {}",
            ended.failed,
            ended.why.unwrap_or_default()
        );
        let what = format!("TLS, {name}, {in_flight} in flight");
        let line: Line = (what, bytes, ended.rate, ended.p50, ended.p99);
        println!("{}", serde_json::to_string(&line)?);
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    finish(Command::new("ip").args(arguments))
}

/// The same in the namespace of another process.
fn there(pid: &str, arguments: &[&str]) -> Result<()> {
    finish(Command::new("nsenter").args(["--target", pid, "--net", "ip"]).args(arguments))
}

fn finish(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", words.trim());
    Ok(())
}

/// A process that ends with this.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
