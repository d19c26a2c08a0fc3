//! TLS over TCP, with caller and servers in network namespaces of their own that a pair of virtual interfaces connects: nothing goes over the
//! loopback, and no privileges are needed where user namespaces are allowed.

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

use super::measured::{IN_FLIGHT, Load, Measured, Spending};
use super::own;
use super::peer::{System, said};

const CALLER: Ipv4Addr = Ipv4Addr::new(10, 93, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 93, 0, 2);
/// The ports of tonic's server and of Pelton's two instances. Nobody else is in that namespace.
const TONIC: u16 = 7443;
const OURS: [u16; 2] = [7444, 7445];
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How a caller gets into a namespace of its own.
const UNSHARE: [&str; 4] = ["unshare", "--user", "--map-root-user", "--net"];

/// The caller's side, as a process in a namespace of its own.
#[derive(Args)]
pub(crate) struct Apart {
    /// The program of `pelton-peers`; none: Pelton alone
    #[arg(long)]
    program: Option<PathBuf>,
    #[arg(long)]
    folder: PathBuf,
    /// How long small and large payloads are called
    #[arg(long)]
    small: f64,
    #[arg(long)]
    large: f64,
}

/// The server's side: Pelton's instances.
#[derive(Args)]
pub(crate) struct ApartServer {
    #[arg(long)]
    folder: PathBuf,
}

fn at(port: u16) -> String {
    SocketAddr::from((SERVER, port)).to_string()
}

/// Why there can be no namespaces here, if that is so.
pub(super) fn forbidden() -> Option<String> {
    let [unshare, arguments @ ..] = UNSHARE;
    let why = match Command::new(unshare).args(arguments).arg("true").output() {
        Ok(output) if output.status.success() => return None,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(e) => format!("`{unshare}` of util-linux: {e}"),
    };
    Some(format!("network namespaces are not to be had here, and without them TLS is not measured ({why})"))
}

/// Starts this program once more, in namespaces, and gives what it measured.
pub(super) fn measure(
    env: &Env,
    program: Option<&Path>,
    folder: &Path,
    (small, large): (Duration, Duration),
) -> Result<Vec<Measured>> {
    own::certify(env, folder, &SERVER.to_string())?;
    let [unshare, arguments @ ..] = UNSHARE;
    let mut command = Command::new(unshare);
    command.args(arguments).arg(std::env::current_exe()?).arg("wire-apart").arg("--folder").arg(folder);
    command.args(["--small", &small.as_secs_f64().to_string(), "--large", &large.as_secs_f64().to_string()]);
    if let Some(program) = program {
        finish(Command::new(program).arg("certificate").arg(folder))?;
        command.arg("--program").arg(program);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the part with namespaces ended with {}", output.status);
    let lines = String::from_utf8(output.stdout)?;
    lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// The process that [`measure`] starts: starts the servers in another namespace, connects the two, and calls.
pub(crate) fn run(arguments: &Apart) -> Result<()> {
    let host = Host::new(2, 1)?;
    let mut serve = Command::new("unshare");
    serve.arg("--net").arg(std::env::current_exe()?).arg("wire-apart-server").arg("--folder");
    // Where it listens and until when its certificate is valid is no news here.
    let mut server = Ending::start(serve.arg(&arguments.folder).env("PELTON_LOG", "warn"))?;
    let pid = server.0.id().to_string();
    host.block_on(other_namespace(host.env(), &mut server.0))?;
    ip(&["link", "add", "veth-caller", "type", "veth", "peer", "name", "veth-server", "netns", &pid])?;
    ip(&["addr", "add", &format!("{CALLER}/30"), "dev", "veth-caller"])?;
    ip(&["link", "set", "veth-caller", "up"])?;
    for rest in [
        &["addr", "add", &format!("{SERVER}/30"), "dev", "veth-server"][..],
        &["link", "set", "veth-server", "up"],
    ] {
        finish(there(&pid).arg("ip").args(rest))?;
    }
    let small = Duration::from_secs_f64(arguments.small);
    let large = Duration::from_secs_f64(arguments.large);
    own::reached(&arguments.folder, OURS.map(at))?.serve(async |services| {
        services.ready().await?;
        let called = async {
            for load in Load::small(small) {
                tell(&own::one_by_one(services, &load, &[server.0.id()]).await?)?;
                if load.in_flight == IN_FLIGHT {
                    tell(&own::from_a_window(services, &load, &[server.0.id()]).await?)?;
                }
            }
            for load in Load::large(large) {
                tell(&own::one_by_one(services, &load, &[server.0.id()]).await?)?;
            }
            anyhow::Ok(())
        };
        called.await.map_err(|e| pelton::Error::internal(format!("{e:#}")))
    })?;
    let Some(program) = &arguments.program else { return Ok(()) };
    let mut serve = there(&pid);
    serve.arg(program).args(["serve", "--port", &TONIC.to_string(), "--tls"]).arg(&arguments.folder);
    let server = Ending::start(&mut serve)?;
    host.block_on(tonic(host.env(), arguments, program, server.0.id(), (small, large)))
}

/// What the process in the other namespace does.
pub(crate) fn serve(arguments: &ApartServer) -> Result<()> {
    own::serve(
        &arguments.folder,
        IN_FLIGHT as u32,
        OURS.map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).to_string()),
    )
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

async fn tonic(
    env: &Env,
    arguments: &Apart,
    program: &Path,
    server: u32,
    (small, large): (Duration, Duration),
) -> Result<()> {
    let caller = |what: &str, bytes: usize| {
        let mut command = Command::new(program);
        command.args([what, "--address", &at(TONIC), "--bytes", &bytes.to_string(), "--tls"]);
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
    for load in Load::small(small).into_iter().chain(Load::large(large)) {
        let mut command = caller("load", load.bytes);
        command.args(["--in-flight", &load.in_flight.to_string()]);
        command.args(["--seconds", &load.time.as_secs_f64().to_string()]);
        let spending = Spending::begin(env, &[server]);
        let ended: Summary = said(&mut command)?;
        let spent = spending.end(env).with_caller(&ended);
        tell(&load.measured(System::Tonic.name(), ended, spent))?;
    }
    Ok(())
}

fn tell(measured: &Measured) -> Result<()> {
    println!("{}", serde_json::to_string(measured)?);
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    finish(Command::new("ip").args(arguments))
}

/// Starts a program in the namespace of another process.
fn there(pid: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", pid, "--net"]);
    command
}

fn finish(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", words.trim());
    Ok(())
}

/// A process that ends with this.
struct Ending(Child);

impl Ending {
    /// What it prints is no result of this process.
    fn start(command: &mut Command) -> Result<Ending> {
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Ending(started.with_context(|| format!("starting {command:?}"))?))
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
