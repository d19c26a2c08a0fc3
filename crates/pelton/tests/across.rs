//! Instances that are served on their own, over TLS, and jobs that call them. Real processes and real sockets throughout.
//!
//! This test has its own `main`: the program is started again as the servers and as the jobs.

#![expect(clippy::disallowed_methods, reason = "patience in a test, and processes that it kills")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, StringArray};
use pelton::certificates::{Wanted, make};
use pelton::control::{JobReport, query, rundir};
use pelton::env::real::Host;
use pelton::prelude::*;
use pelton::{Server, Serving, Settings};
use rustix::process::{Pid, Signal, kill_process};

/// What this process is to be: a server or a job. Neither: the test.
const ROLE: &str = "PELTON_TEST_ROLE";
/// The test's folder.
const FOLDER: &str = "PELTON_TEST_FOLDER";
/// What the server or job is called.
const NAME: &str = "PELTON_TEST_NAME";
/// Where a server listens, and whether it wants certificates of its callers.
const LISTEN: &str = "PELTON_TEST_LISTEN";
const REQUIRE: &str = "PELTON_TEST_REQUIRE";
/// How long any of it may take.
const PATIENCE: Duration = Duration::from_secs(90);
const ROWS: usize = 1200;

/// Says of each row that it runs, and takes its time.
struct Slow {
    clock: Arc<dyn pelton::env::Clock>,
}

fn text(name: &str) -> Vec<Field> {
    vec![Field::new(name, DataType::Utf8, false)]
}

impl Service for Slow {
    fn open(ctx: &Context) -> Result<Self> {
        Ok(Slow { clock: ctx.clock.clone() })
    }

    fn methods() -> Methods<Self> {
        Methods::<Self>::new().concurrent("shout", 4, text("text"), text("loud"), |service, rows, _| {
            let clock = service.clock.clone();
            Box::pin(async move {
                let texts: Vec<&str> = rows.column(0).as_string::<i32>().iter().flatten().collect();
                note("executed", &texts.iter().map(|t| format!("{t}\n")).collect::<String>());
                clock.sleep(Duration::from_millis(40)).await;
                let loud: ArrayRef =
                    Arc::new(StringArray::from_iter_values(texts.iter().map(|t| t.to_uppercase())));
                Ok(RecordBatch::try_from_iter([("loud", loud)])?)
            })
        })
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn note(file: &str, lines: &str) {
    let path = PathBuf::from(variable(FOLDER)).join(file);
    let mut notes = OpenOptions::new().create(true).append(true).open(path).unwrap();
    notes.write_all(lines.as_bytes()).unwrap();
}

fn main() {
    match variable(ROLE).as_str() {
        "server" => be_server(),
        "job" => be_job(),
        _ => test(),
    }
}

fn be_server() {
    let folder = PathBuf::from(variable(FOLDER));
    let serving = Serving {
        token_file: Some(folder.join("token")),
        certificates: Some(folder.join("certificates")),
        require_certificate: !variable(REQUIRE).is_empty(),
        ..Serving::default()
    };
    let name = variable(NAME);
    let mut server = Server::new(serving).announcing(move |line| note(&name, &format!("{line}\n")));
    let declaration = Declaration::new("shout").max_rows(4);
    let served = server.service::<Slow>(declaration, &variable(LISTEN)).and_then(|()| server.run());
    if let Err(e) = served {
        eprintln!("{e}");
        std::process::exit(1);
    }
}

fn be_job() {
    let (folder, name) = (PathBuf::from(variable(FOLDER)), variable(NAME));
    let run = || {
        let settings = Settings {
            checkpoint_interval: Duration::from_millis(200),
            ..Settings::new(folder.join(format!("{name}-state")))
        };
        let mut job = Job::with("across", settings);
        let shout = job.service::<Slow>(Declaration::from_file(&folder.join(format!("{name}.toml")))?)?;
        job.read("lines", read_lines(folder.join(format!("{name}.txt")))?)
            .call(&shout.method("shout").unordered(), &["text"])
            .write("shouted", json_lines(folder.join(format!("{name}-out")))?);
        job.run()
    };
    if let Err(e) = run() {
        eprintln!("{e}");
        std::process::exit(1);
    }
}

/// A process of this test's own. It does not outlive it.
struct Running {
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    #[track_caller]
    fn ended(&mut self) -> (ExitStatus, String) {
        let status = wait("a process to end", || self.child.try_wait().unwrap());
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status, said)
    }

    #[track_caller]
    fn succeeds(&mut self) {
        let (status, said) = self.ended();
        assert!(status.success(), "{status}: {said}");
    }

    fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }
}

#[track_caller]
fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "no sign of {what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

struct World {
    folder: tempfile::TempDir,
    host: Host,
}

impl World {
    fn new() -> World {
        let world = World { folder: tempfile::tempdir().unwrap(), host: Host::new(1, 1).unwrap() };
        world.certify("certificates");
        fs::create_dir(world.path("run")).unwrap();
        world
    }

    fn certify(&self, name: &str) {
        let folder = self.path(name);
        let hosts = ["127.0.0.1", "localhost", SERVING_SIDE].map(str::to_owned).to_vec();
        let env = self.host.env();
        let wanted = Wanted { folder, hosts, name: "server".into(), days: 30 };
        make(&wanted, env.clock.unix_millis(), &env.entropy.secret()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn start(&self, role: &str, name: &str, variables: &[(&str, &str)]) -> Running {
        self.start_in(None, role, name, variables)
    }

    /// The same in another network, if one is named.
    fn start_in(&self, network: Option<&str>, role: &str, name: &str, variables: &[(&str, &str)]) -> Running {
        let program = std::env::current_exe().unwrap();
        let mut command = match network {
            None => Command::new(program),
            Some(network) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", network]).arg(program);
                command
            }
        };
        let child = command
            .env(ROLE, role)
            .env(NAME, name)
            .env(FOLDER, self.folder.path())
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("PELTON_LOG", "info")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        Running { child: child.unwrap() }
    }

    /// A server and where it is.
    fn server(&self, name: &str, listen: &str, require: &str) -> (Running, String) {
        self.server_in(None, name, listen, require)
    }

    fn server_in(&self, network: Option<&str>, name: &str, listen: &str, require: &str) -> (Running, String) {
        let known = self.read(name).matches(" is served at ").count();
        let server = self.start_in(network, "server", name, &[(LISTEN, listen), (REQUIRE, require)]);
        let at = wait("a server", || {
            let said = self.read(name);
            let line = said.lines().filter(|l| l.contains(" is served at ")).nth(known)?;
            Some(line.rsplit(' ').next().unwrap().to_owned())
        });
        (server, at)
    }

    /// A job's declaration and its rows.
    fn declare(&self, name: &str, endpoints: &[&str], access: &str) {
        let rows: String = (0..ROWS).map(|n| format!("{name} row {n}\n")).collect();
        fs::write(self.path(&format!("{name}.txt")), rows).unwrap();
        let token = self.path("token");
        let certificates = self.path("certificates");
        let access = access.replace("CERTIFICATES", certificates.to_str().unwrap());
        let text = format!(
            "name = \"shout\"\nendpoints = {endpoints:?}\n[retry]\nattempts = 10\n[access]\ntoken_file = {token:?}\n{access}\n"
        );
        fs::write(self.path(&format!("{name}.toml")), text).unwrap();
    }

    fn job(&self, name: &str) -> Running {
        self.start("job", name, &[])
    }

    /// How often each row of a job ran.
    fn executed(&self, job: &str) -> BTreeMap<String, usize> {
        let mut times = BTreeMap::new();
        for line in self.read("executed").lines().filter(|l| l.starts_with(&format!("{job} "))) {
            *times.entry(line.to_owned()).or_default() += 1;
        }
        times
    }

    fn wait_for_work(&self, job: &str, rows: usize) {
        wait("work", || (self.executed(job).len() >= rows).then_some(()));
    }

    /// Every row of the job is in its output once, with its own answer.
    #[track_caller]
    fn is_whole(&self, job: &str) {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(self.path(&format!("{job}-out"))).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "jsonl") {
                continue;
            }
            for line in fs::read_to_string(path).unwrap().lines() {
                let row: serde_json::Value = serde_json::from_str(line).unwrap();
                let text = row["text"].as_str().unwrap();
                assert_eq!(row["loud"].as_str(), Some(text.to_uppercase().as_str()));
                assert!(text.starts_with(&format!("{job} ")), "{job} has a row of another: {text}");
                assert!(found.insert(text.to_owned()), "{text} is there twice");
            }
        }
        assert_eq!(found.len(), ROWS, "rows in the output of {job}");
    }

    fn report(&self) -> Option<JobReport> {
        let jobs = rundir::jobs(&self.path("run").join("pelton")).ok()?;
        self.host.block_on(query(self.host.env(), jobs.first()?)).ok()
    }
}

const TLS: &str = "certificates = \"CERTIFICATES\"";

fn test() {
    let world = World::new();
    let (mut first, a) = world.server("a", "127.0.0.1:0", "");
    let (mut second, b) = world.server("b", "localhost:0", "");
    assert!(a.starts_with("tls://127.0.0.1:") && b.starts_with("tls://"), "{a} {b}");
    let secret = world.read("token");
    let private = fs::metadata(world.path("token")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&private.permissions()) & 0o777, 0o600);
    done("two servers, with a token of their own making");

    // Killed at any moment, a job finds what it left.
    world.declare("killed", &[&a, &b], TLS);
    let mut job = world.job("killed");
    for rows in [200, 500] {
        world.wait_for_work("killed", rows);
        let report = wait("a report", || world.report().filter(|r| r.services[0].ready() == 2));
        let at: Vec<_> = report.services[0].instances.iter().filter_map(|i| i.address.clone()).collect();
        assert_eq!(at, [a.clone(), b.clone()]);
        job.signal(Signal::KILL);
        assert!(!job.ended().0.success());
        job = world.job("killed");
    }
    job.succeeds();
    world.is_whole("killed");
    let twice: Vec<_> = world.executed("killed").into_iter().filter(|(_, times)| *times != 1).collect();
    assert_eq!(twice, [], "a restarted job attaches to what runs, and has nothing run twice");
    done("a job that is killed twice has each row run once");

    // Two jobs of one name, with the same ids.
    world.declare("left", &[&a, &b], TLS);
    world.declare("right", &[&b, &a], TLS);
    let (mut left, mut right) = (world.job("left"), world.job("right"));
    left.succeeds();
    right.succeeds();
    world.is_whole("left");
    world.is_whole("right");
    done("two jobs at one time, with the same ids, get each its own answers");

    // An instance is killed at load, and comes back as another process at the same address.
    world.declare("loses", &[&a, &b], TLS);
    let mut job = world.job("loses");
    world.wait_for_work("loses", 200);
    second.signal(Signal::KILL);
    second.ended();
    let at = world.executed("loses").len();
    world.wait_for_work("loses", at + 100);
    let (mut second, same) = world.server("b", b.strip_prefix("tls://").unwrap(), "");
    assert_eq!(same, b);
    wait("the new process to be used", || {
        let report = world.report()?;
        report.services[0].instances.iter().find(|i| i.restarts == 1 && i.executed > 0).map(drop)
    });
    job.succeeds();
    world.is_whole("loses");
    let again = world.executed("loses").values().filter(|times| **times > 1).count();
    assert!(again <= 128, "{again} rows ran twice; only those that the killed one had may");
    done(&format!("a server is killed and comes back: no row is lost, {again} of {ROWS} ran twice"));

    // One stands still, for as long as it takes the job to do without it.
    world.declare("waits", &[&a, &b], TLS);
    let mut job = world.job("waits");
    world.wait_for_work("waits", 200);
    second.signal(Signal::STOP);
    job.succeeds();
    second.signal(Signal::CONT);
    world.is_whole("waits");
    done("a server stands still: what it held is run by the other");

    // One leaves in good order.
    world.declare("drained", &[&a, &b], TLS);
    let mut job = world.job("drained");
    world.wait_for_work("drained", 200);
    second.signal(Signal::INT);
    second.succeeds();
    job.succeeds();
    world.is_whole("drained");
    assert!(
        world.executed("drained").values().all(|times| *times == 1),
        "a server that drains loses nothing"
    );
    done("a server leaves in good order: nothing runs twice");

    apart(&world);
    hostile(&world, &first, &a);
    refused(&world, &a);

    first.signal(Signal::TERM);
    let (status, said) = first.ended();
    assert!(status.success(), "{status}: {said}");
    assert!(!said.contains(secret.trim()), "the token stays out of logs");
    assert!(said.contains("a connection was refused"), "{said}");
    done("asked to end, a server ends");
}

/// Where a server listens whose network is another.
const SERVING_SIDE: &str = "10.203.77.1";

/// Two networks with a cable between them. They go when this does.
struct Networks {
    serving: String,
    calling: String,
}

fn ip(arguments: &str) -> bool {
    let ran = Command::new("ip").args(arguments.split_whitespace()).stderr(Stdio::null()).status();
    ran.is_ok_and(|status| status.success())
}

impl Networks {
    /// None where this user may not make any.
    fn new() -> Option<Networks> {
        let pid = std::process::id();
        let made = Networks { serving: format!("pelton-a-{pid}"), calling: format!("pelton-b-{pid}") };
        let Networks { serving: a, calling: b } = &made;
        if !ip(&format!("netns add {a}")) {
            return None;
        }
        let laid = [
            format!("netns add {b}"),
            format!("link add eth9 netns {a} type veth peer name eth9 netns {b}"),
            format!("-n {a} addr add {SERVING_SIDE}/24 dev eth9"),
            format!("-n {b} addr add 10.203.77.2/24 dev eth9"),
            format!("-n {a} link set eth9 up"),
            format!("-n {b} link set eth9 up"),
        ];
        laid.iter().all(|step| ip(step)).then_some(made)
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.serving));
        ip(&format!("netns del {}", self.calling));
    }
}

/// A server in one network and a job in another, and the cable between them is pulled for a while.
fn apart(world: &World) {
    let Some(networks) = Networks::new() else {
        return done(
            "not tried: a server and a job in two networks; this user may not make networks (ip netns)",
        );
    };
    let listen = format!("{SERVING_SIDE}:7000");
    let (mut server, at) = world.server_in(Some(&networks.serving), "apart", &listen, "yes");
    world.declare("apart", &[&at], TLS);
    let mut job = world.start_in(Some(&networks.calling), "job", "apart", &[]);
    world.wait_for_work("apart", 200);
    assert!(ip(&format!("-n {} link set eth9 down", networks.calling)));
    std::thread::sleep(Duration::from_secs(3));
    let quiet = world.executed("apart").len();
    assert!(quiet < ROWS, "the job is done, and nothing was tried");
    assert!(ip(&format!("-n {} link set eth9 up", networks.calling)));
    job.succeeds();
    world.is_whole("apart");
    assert!(world.executed("apart").values().all(|times| *times == 1), "what was under way was attached to");
    server.signal(Signal::TERM);
    server.succeeds();
    done("two networks, certificates on both sides, no cable for 3 s: nothing is lost or runs twice");
}

/// Peers that mean harm, and a job beside them.
fn hostile(world: &World, server: &Running, at: &str) {
    let address = at.strip_prefix("tls://").unwrap();
    let idle = server.open_files();
    let mut half_open: Vec<TcpStream> = Vec::new();
    for n in 0..2000 {
        let mut peer = TcpStream::connect(address).unwrap();
        match n % 4 {
            // Silent.
            0 => {}
            // The beginning of TLS, and no more.
            1 => _ = peer.write_all(&[0x16, 3, 1, 2, 0, 1]),
            2 => _ = peer.write_all(b"GET / HTTP/1.1\r\n\r\n"),
            // The beginning of a greeting in plain text.
            _ => _ = peer.write_all(&[1, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0]),
        }
        half_open.push(peer);
    }
    world.declare("beside", &[at], TLS);
    let mut job = world.job("beside");
    world.wait_for_work("beside", 100);
    let open = server.open_files();
    assert!(
        open <= idle + 512 + 32,
        "{open} files are open, {idle} before: half-open connections are bounded"
    );
    job.succeeds();
    world.is_whole("beside");
    // Each has its time, and no more.
    wait("the half-open connections to be ended", || (server.open_files() <= idle + 8).then_some(()));
    for peer in &half_open {
        let _ = peer.shutdown(Shutdown::Both);
    }
    done("2000 half-open connections cost only themselves, in number and in time");
}

/// Jobs that do not get in, and what they say.
fn refused(world: &World, at: &str) {
    let check = |name: &str, endpoint: &str, access: &str, words: &[&str]| {
        world.declare(name, &[endpoint], access);
        let began = Instant::now();
        let (status, said) = world.job(name).ended();
        assert!(!status.success(), "{name} got in");
        for word in words {
            assert!(said.contains(word), "`{word}` is not in: {said}");
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{name} took {:?}", began.elapsed());
        assert!(!said.contains(world.read("token").trim()), "the token stays out of errors");
    };
    let (strict, closed) = world.server("strict", "127.0.0.1:0", "yes");
    let only_ca = format!("ca = {:?}", world.path("certificates").join("ca.pem"));
    check("bare", &closed, &only_ca, &["wants a certificate", "client.pem", &closed]);
    world.declare("known", &[&closed], TLS);
    world.job("known").succeeds();
    world.is_whole("known");
    drop(strict);
    done("where certificates are required, a job without one is told so, and one with one works");

    world.certify("others");
    let other = format!("ca = {:?}", world.path("others").join("ca.pem"));
    check("stranger", at, &other, &["authority", "others/ca.pem", at]);
    let plain = at.replace("tls://", "tcp://");
    check("plain", &plain, "", &["speaks TLS", "tls://"]);
    check("elsewhere", "tcp://192.0.2.1:7000", "", &["access.insecure"]);
    check("nobody", "tls://127.0.0.1:1", TLS, &["tls://127.0.0.1:1", "refused"]);
    let token = world.path("token");
    let right = world.read("token");
    fs::write(&token, "another-token-than-theirs").unwrap();
    check("impostor", at, TLS, &["token", at]);
    fs::write(&token, right).unwrap();
    done("wrong authority, plain text, another machine, nobody there, wrong token: each is said");
}

fn done(what: &str) {
    println!("ok: {what}");
}
