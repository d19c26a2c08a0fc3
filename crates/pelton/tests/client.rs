//! A program that is no job calls services: those that are served on their own, and those of a job, by its name. Real processes throughout.
//!
//! This test has its own `main`: the program is started again as the servers, as the job, and as the job's instances.

#![expect(clippy::disallowed_methods, reason = "patience in a test, and processes and threads of its own")]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, StringArray};
use futures::{FutureExt, StreamExt};
use pelton::certificates::{Wanted, make};
use pelton::client::{Affinity, ServiceClient, Target};
use pelton::control::{JobReport, query, rundir};
use pelton::env::real::Host;
use pelton::prelude::*;
use pelton::{Fate, Kind, Server, Serving, Settings};
use rustix::process::{Pid, Signal, kill_process};

/// What this process is to be: a server or a job. Neither: the test.
const ROLE: &str = "PELTON_TEST_ROLE";
/// The test's folder.
const FOLDER: &str = "PELTON_TEST_FOLDER";
/// Where a server listens.
const LISTEN: &str = "PELTON_TEST_LISTEN";
/// How many instances a job has.
const INSTANCES: &str = "PELTON_TEST_INSTANCES";
/// How long any of it may take.
const PATIENCE: Duration = Duration::from_secs(90);

struct Words {
    clock: Arc<dyn pelton::env::Clock>,
    instance: u32,
}

fn text(name: &str) -> Vec<Field> {
    vec![Field::new(name, DataType::Utf8, false)]
}

fn number(name: &str) -> Vec<Field> {
    vec![Field::new(name, DataType::Int64, false)]
}

fn texts(name: &str, values: impl IntoIterator<Item = impl AsRef<str>>) -> RecordBatch {
    let column: ArrayRef = Arc::new(StringArray::from_iter_values(values));
    RecordBatch::try_from_iter([(name, column)]).unwrap()
}

fn numbers(name: &str, values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
    RecordBatch::try_from_iter([(name, column)]).unwrap()
}

fn strings(rows: &RecordBatch) -> Vec<String> {
    rows.column(0).as_string::<i32>().iter().flatten().map(str::to_owned).collect()
}

fn integers(rows: &RecordBatch) -> Vec<i64> {
    rows.column(0).as_primitive::<Int64Type>().values().to_vec()
}

impl Service for Words {
    fn open(ctx: &Context) -> Result<Self> {
        Ok(Words { clock: ctx.clock.clone(), instance: ctx.instance })
    }

    fn methods() -> Methods<Self> {
        Methods::<Self>::new()
            .concurrent("shout", 4, text("text"), text("loud"), |service, rows, _| {
                let clock = service.clock.clone();
                Box::pin(async move {
                    let said = strings(&rows);
                    note("executed", &said.iter().map(|t| format!("{t}\n")).collect::<String>());
                    clock.sleep(Duration::from_millis(10)).await;
                    Ok(texts("loud", said.iter().map(|t| t.to_uppercase())))
                })
            })
            .concurrent("sleep", 64, number("millis"), number("millis"), |service, rows, invocation| {
                let clock = service.clock.clone();
                Box::pin(async move {
                    let mut left = integers(&rows).into_iter().max().unwrap_or_default();
                    while left > 0 && !invocation.is_cancelled() {
                        clock.sleep(Duration::from_millis(5)).await;
                        left -= 5;
                    }
                    if left > 0 {
                        // Whoever asked is to find out by itself.
                        clock.sleep(Duration::from_secs(1)).await;
                    }
                    Ok(rows)
                })
            })
            .serial("together", number("n"), number("rows"), |_, rows, _| {
                Ok(numbers("rows", vec![rows.num_rows() as i64; rows.num_rows()]))
            })
            .serial("who", number("n"), number("instance"), |service, rows, _| {
                Ok(numbers("instance", vec![i64::from(service.instance); rows.num_rows()]))
            })
            .serial("fail", number("n"), number("n"), |_, _, _| Err(Error::user("the row is bad")))
            .streaming("count", number("n"), number("i"), |_, rows, _, emit| {
                (0..integers(&rows)[0]).try_for_each(|i| emit(numbers("i", vec![i; 1000])))
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

fn declaration() -> Declaration {
    let mut declaration = Declaration::new("words").max_rows(8);
    declaration.retry.backoff = Duration::from_millis(5);
    declaration
}

fn be_server() {
    let folder = PathBuf::from(variable(FOLDER));
    let listen = variable(LISTEN);
    let tls = !listen.starts_with("unix:");
    let serving = Serving {
        token_file: Some(folder.join("token")),
        certificates: tls.then(|| folder.join("certificates")),
        ..Serving::default()
    };
    let mut server = Server::new(serving).announcing(move |line| note("served", &format!("{line}\n")));
    let served = server.service::<Words>(declaration(), &listen).and_then(|()| server.run());
    if let Err(e) = served {
        eprintln!("{e}");
        std::process::exit(1);
    }
}

fn be_job() {
    let folder = PathBuf::from(variable(FOLDER));
    let instances: u32 = variable(INSTANCES).parse().unwrap();
    let run = || {
        let mut job = Job::with("calls", Settings::new(folder.join("state")));
        job.service::<Words>(declaration().instances(instances))?;
        let mut other = Declaration::new("elsewhere");
        other.endpoints = vec!["unix:/nowhere.sock".into()];
        other.access = Some(pelton::client::Access {
            token_file: Some(folder.join("token")),
            ..pelton::client::Access::default()
        });
        job.service::<Words>(other)?;
        job.serve(async |services| {
            loop {
                services.env().sleep(Duration::from_secs(1)).await;
            }
        })
    };
    let ended: Result<()> = run();
    note("ended", &format!("{:?}\n", ended.map_err(|e| e.message().to_owned())));
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
    fn ended(&mut self) {
        wait("a process to end", || self.child.try_wait().unwrap());
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
        let env = world.host.env();
        let hosts = vec!["127.0.0.1".to_owned()];
        let wanted = Wanted { folder: world.path("certificates"), hosts, name: "server".into(), days: 30 };
        make(&wanted, env.clock.unix_millis(), &env.entropy.secret()).unwrap();
        fs::create_dir(world.path("run")).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn start(&self, role: &str, variables: &[(&str, &str)]) -> Running {
        let child = Command::new(std::env::current_exe().unwrap())
            .env(ROLE, role)
            .env(FOLDER, self.folder.path())
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Running { child: child.unwrap() }
    }

    /// A server and where it is.
    fn server(&self, listen: &str) -> (Running, String) {
        let known = self.read("served").matches(" is served at ").count();
        let server = self.start("server", &[(LISTEN, listen)]);
        let at = wait("a server", || {
            let said = self.read("served");
            let line = said.lines().filter(|l| l.contains(" is served at ")).nth(known)?;
            Some(line.rsplit(' ').next().unwrap().to_owned())
        });
        (server, at)
    }

    fn job(&self, instances: &str) -> Running {
        self.start("job", &[(INSTANCES, instances)])
    }

    fn target(&self, job: &str, service: &str) -> Target {
        Target::job(job, service).jobs_in(self.path("run").join("pelton"))
    }

    fn report(&self) -> Option<JobReport> {
        let jobs = rundir::jobs(&self.path("run").join("pelton")).ok()?;
        self.host.block_on(query(self.host.env(), jobs.first()?)).ok()
    }

    /// The processes of the job's instances, once so many are ready.
    fn instances(&self, number: usize) -> Vec<u32> {
        wait("instances", || {
            let report = self.report()?;
            let words = report.services.iter().find(|s| s.name == "words")?;
            let pids: Vec<u32> = words.instances.iter().filter_map(|i| i.pid).collect();
            (words.ready() == number && pids.len() == number).then_some(pids)
        })
    }
}

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

fn done(what: &str) {
    println!("ok: {what}");
}

fn test() {
    let world = World::new();
    served(&world);
    in_python(&world);
    job(&world);
}

/// The caller that shares nothing with this workspace but the protocol's page.
fn in_python(world: &World) {
    let Some(python) = python() else {
        return println!("SKIPPED: no pyarrow here; run `cargo xtask setup`");
    };
    let (_server, at) = world.server(&format!("unix:{}", world.path("python.sock").display()));
    let mut job = world.job("2");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("timeout")
        .arg(PATIENCE.as_secs().to_string())
        .arg(python)
        .arg(root.join("tests/python/calls.py"))
        .args([&at, world.read("token").trim(), "calls"])
        .env("PYTHONPATH", root.join("../../docs/examples"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("XDG_RUNTIME_DIR", world.path("run"))
        .output()
        .unwrap();
    print!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    job.signal(Signal::INT);
    job.ended();
}

/// A Python with pyarrow: `PELTON_PYARROW`, or what the set-up made here.
fn python() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("PELTON_PYARROW") {
        return Some(given.into());
    }
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/python");
    let folders = fs::read_dir(made).ok()?.flatten().map(|e| e.path());
    let named = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("pyarrow-"));
    folders.filter(named).find(|p| p.join(".complete").exists()).map(|p| p.join("bin/python"))
}

fn served(world: &World) {
    let (_local, unix) = world.server(&format!("unix:{}", world.path("words.sock").display()));
    let (_far, tls) = world.server("127.0.0.1:0");
    let token = || world.path("token");

    // Without any runtime.
    let client = ServiceClient::connect_blocking(Target::endpoints([&*unix]).token_file(token())).unwrap();
    let names: Vec<&str> = client.methods().iter().map(|m| m.name.as_str()).collect();
    assert_eq!((client.service(), &names[..2]), ("words", &["shout", "sleep"][..]));
    let loud = client.call_blocking("shout", texts("text", ["a", "b"])).unwrap();
    assert_eq!(strings(&loud), ["A", "B"]);
    let none = client.call_blocking("shout", texts("text", [""; 0])).unwrap();
    assert_eq!((none.num_rows(), none.schema()), (0, loud.schema()));
    done("a blocking call without a runtime, over a Unix socket; its methods are learnt");

    // As a job would call it, over TLS, from within runtimes of either kind.
    let (token_file, certificates) = (token(), world.path("certificates"));
    let declared = format!(
        "name = \"words\"\nendpoints = [{tls:?}, {unix:?}]\n[access]\ntoken_file = {token_file:?}\ncertificates = {certificates:?}\n"
    );
    fs::write(world.path("words.toml"), declared).unwrap();
    for runtime in [
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
        tokio::runtime::Builder::new_current_thread().build().unwrap(),
    ] {
        runtime.block_on(async {
            let target = Target::from_file(world.path("words.toml")).unwrap();
            let client = ServiceClient::connect(target).await.unwrap();
            let calls = (0..200).map(|n| {
                let client = client.clone();
                async move {
                    strings(&client.call("shout", texts("text", [format!("row {n}")])).await?)
                        .pop()
                        .ok_or_else(|| Error::user("no row"))
                }
            });
            let answers = futures::future::try_join_all(calls).await.unwrap();
            let expected: Vec<String> = (0..200).map(|n| format!("ROW {n}")).collect();
            assert_eq!(answers, expected);
            wait("both endpoints", || (client.stats().ready == 2).then_some(()));
        });
    }
    done("calls from within a runtime, over TLS and a Unix socket, by a job's own declaration");

    // Batches form across clients.
    let other =
        ServiceClient::connect_blocking(Target::endpoints([&*unix]).token(world.read("token").trim()))
            .unwrap();
    let sizes = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| client.call_blocking("sleep", numbers("millis", [200])));
        for i in 0..8 {
            let (client, sizes) = (if i % 2 == 0 { &client } else { &other }, &sizes);
            scope.spawn(move || {
                for _ in 0..20 {
                    let rows = client.call_blocking("together", numbers("n", [1])).unwrap();
                    sizes.fetch_max(integers(&rows)[0] as usize, Ordering::Relaxed);
                }
            });
        }
        busy.join().unwrap().unwrap();
    });
    assert!(sizes.load(Ordering::Relaxed) > 4, "batches of {sizes:?} rows: of one client's alone");
    done("rows of two clients and eight threads share batches");

    // Streams.
    let parts: Vec<_> =
        client.stream("count", numbers("n", [3, 2])).unwrap().blocking().map(Result::unwrap).collect();
    let rows = |request| -> Vec<i64> {
        parts.iter().filter(|p| p.request == request).flat_map(|p| integers(&p.rows)).step_by(1000).collect()
    };
    assert_eq!((rows(0), rows(1)), (vec![0, 1, 2], vec![0, 1]));
    let mut endless = client.stream("count", numbers("n", [i64::MAX])).unwrap();
    futures::executor::block_on(async {
        for _ in 0..3 {
            assert_eq!(endless.next().await.unwrap().unwrap().request, 0);
        }
    });
    drop(endless);
    let other = ServiceClient::connect_blocking(Target::endpoints([&*unix]).token_file(token())).unwrap();
    let kept = other.stream("count", numbers("n", [3])).unwrap();
    drop(other);
    assert_eq!(kept.blocking().map(Result::unwrap).map(|p| p.rows.num_rows()).sum::<usize>(), 3000);
    // It had the service to itself.
    assert_eq!(integers(&client.call_blocking("together", numbers("n", [1])).unwrap()), [1]);
    done("a stream, and an endless one that is dropped");

    // Options, and what is taken back.
    let sleep = client.method("sleep").unwrap();
    let error = sleep
        .clone()
        .timeout(Duration::from_millis(50))
        .call_blocking(numbers("millis", [60_000]))
        .unwrap_err();
    assert_eq!((error.kind(), error.fate()), (Kind::Deadline, Fate::Unknown));
    let mut call = Box::pin(sleep.call(numbers("millis", [60_000])));
    assert!((&mut call).now_or_never().is_none());
    wait("the call to be at an instance", || (client.stats().held == 1).then_some(()));
    drop(call);
    wait("the dropped call to be taken back", || (client.stats().unended == 0).then_some(()));
    let ordered =
        client.method("shout").unwrap().keys(vec![7; 4]).call_blocking(texts("text", ["1", "2", "3", "4"]));
    assert_eq!(strings(&ordered.unwrap()), ["1", "2", "3", "4"]);
    done("deadlines, keys, and a dropped call");

    // What goes wrong.
    let connect = |target: Target| ServiceClient::connect_blocking(target).map(|_| ());
    let short = Duration::from_millis(300);
    let nowhere = format!("unix:{}", world.path("nowhere.sock").display());
    for (result, kind, said) in [
        (
            client.call_blocking("shout", numbers("n", [1])).map(|_| ()),
            Kind::Invalid,
            "columns are (n: Int64), expected (text: Utf8)",
        ),
        (client.call_blocking("shut", numbers("n", [1])).map(|_| ()), Kind::Invalid, "it has: shout, sleep"),
        (client.stream("shut", numbers("n", [1])).map(|_| ()), Kind::Invalid, "it has: shout, sleep"),
        (client.call_blocking("fail", numbers("n", [1])).map(|_| ()), Kind::User, "the row is bad"),
        (
            connect(Target::endpoints([&*unix]).token("0123456789abcdef0123")),
            Kind::Denied,
            "the token is not",
        ),
        (connect(Target::endpoints([&*unix]).token("short")), Kind::Invalid, "16 to 1024"),
        (
            connect(Target::endpoints([&*nowhere]).token_file(token()).patience(short)),
            Kind::Connect,
            "nowhere.sock",
        ),
        (connect(world.target("calls", "words").patience(short)), Kind::Connect, "no job `calls` runs here"),
    ] {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.message().contains(said), "{error:?}");
    }
    let error = client.call_blocking("fail", numbers("n", [1])).unwrap_err();
    assert_eq!(error.fate(), Fate::Executed);
    done("mistakes and refusals are named, at once");

    // Nothing there any more.
    let brief = ServiceClient::connect_blocking(
        Target::endpoints([&*tls])
            .token_file(token())
            .certificates(world.path("certificates"))
            .patience(short),
    )
    .unwrap();
    assert_eq!(strings(&brief.call_blocking("shout", texts("text", ["x"])).unwrap()), ["X"]);
    drop(_far);
    let error = brief.call_blocking("shout", texts("text", ["y"])).unwrap_err();
    assert_eq!(error.kind(), Kind::Connect);
    assert!(error.message().contains("Target::patience"), "{error:?}");
    let error = brief.call_blocking("shout", texts("text", ["z"])).unwrap_err();
    assert_eq!(error.fate(), Fate::NotSent);
    let (_again, _) = world.server(tls.strip_prefix("tls://").unwrap());
    wait("calls to pass again", || brief.call_blocking("shout", texts("text", ["w"])).ok());
    done("a service that is gone ends calls after the patience, and is used again when it is back");
}

/// Calls from threads and from a runtime, until it is told to stop. Every call has its own answer.
fn under_load(client: &ServiceClient, world: &World, what: impl FnOnce()) {
    let (stop, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (stop, calls) = (&stop, &calls);
    let one = move |n: usize| texts("text", (0..4).map(|i| format!("row {n} {i}")));
    let right = move |n: usize, rows: &RecordBatch| {
        assert_eq!(strings(rows), (0..4).map(|i| format!("ROW {n} {i}")).collect::<Vec<_>>());
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let n = calls.fetch_add(1, Ordering::Relaxed);
                    right(n, &client.call_blocking("shout", one(n)).unwrap());
                }
            });
        }
        scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                while !stop.load(Ordering::Relaxed) {
                    let numbers: Vec<usize> = (0..8).map(|_| calls.fetch_add(1, Ordering::Relaxed)).collect();
                    let all = numbers.iter().map(|n| client.call("shout", one(*n)));
                    for (n, rows) in numbers.iter().zip(futures::future::join_all(all).await) {
                        right(*n, &rows.unwrap());
                    }
                }
            });
        });
        let before = calls.load(Ordering::Relaxed);
        wait("calls", || (calls.load(Ordering::Relaxed) > before + 50).then_some(()));
        // Told to stop also when this fails, or its threads never end.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            what();
            let before = calls.load(Ordering::Relaxed);
            wait("calls afterwards", || (calls.load(Ordering::Relaxed) > before + 50).then_some(()));
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
    // All that was called has run, and what ran was called.
    let executed = world.read("executed");
    assert!(executed.lines().count() >= 4 * calls.load(Ordering::Relaxed));
    assert_eq!(client.stats().unended, 0);
    fs::remove_file(world.path("executed")).unwrap();
}

/// Rows that ran more than once.
fn twice(world: &World) -> usize {
    let executed = world.read("executed");
    let mut rows: Vec<&str> = executed.lines().collect();
    let all = rows.len();
    rows.sort_unstable();
    rows.dedup();
    all - rows.len()
}

fn job(world: &World) {
    // Whoever comes first waits for the other.
    let mut running = None;
    let client = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            ServiceClient::connect_blocking(world.target("calls", "words").patience(Duration::from_secs(60)))
        });
        running = Some(world.job("2"));
        connecting.join().unwrap().unwrap()
    });
    let mut running = running.unwrap();
    assert_eq!(strings(&client.call_blocking("shout", texts("text", ["a"])).unwrap()), ["A"]);
    let pids = world.instances(2);
    for (service, said) in [("wards", "it has: words, elsewhere"), ("elsewhere", "at unix:/nowhere.sock")] {
        let error = ServiceClient::connect_blocking(world.target("calls", service)).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error:?}");
        assert!(error.message().contains(said), "{error:?}");
    }
    wait("both instances", || (client.stats().ready == 2).then_some(()));
    for instance in 0..2 {
        let who = client.method("who").unwrap().affinity(Affinity::Instance(instance));
        assert_eq!(integers(&who.call_blocking(numbers("n", [1])).unwrap()), [i64::from(instance)]);
    }
    done("a job's service by name, from before the job was there");

    let _ = fs::remove_file(world.path("executed"));
    under_load(&client, world, || {
        kill(pids[0], Signal::KILL);
        wait("another process", || (!world.instances(2).contains(&pids[0])).then_some(()));
    });
    done("an instance that is killed under load costs no call");

    // The job is killed, and comes back: its instances never stopped.
    let pids = world.instances(2);
    under_load(&client, world, || {
        running.signal(Signal::KILL);
        running.ended();
        running = world.job("2");
        assert_eq!(world.instances(2), pids, "taken over");
        assert_eq!(twice(world), 0, "nothing ran twice for it");
    });
    done("a job that is killed under load, and started again, costs no call, and nothing runs twice");

    // Stopped in good order, and started with more instances, then with fewer.
    for number in [3, 1] {
        under_load(&client, world, || {
            running.signal(Signal::INT);
            running.ended();
            running = world.job(&number.to_string());
            world.instances(number);
            wait("all instances", || (client.stats().ready == number).then_some(()));
        });
    }
    assert!(world.read("ended").contains("interrupted"), "{}", world.read("ended"));
    done("a job that is restarted under load with three instances, and with one, costs no call");

    // It goes for good.
    let brief =
        ServiceClient::connect_blocking(world.target("calls", "words").patience(Duration::from_millis(300)))
            .unwrap();
    running.signal(Signal::INT);
    running.ended();
    let error = brief.call_blocking("shout", texts("text", ["late"])).unwrap_err();
    assert_eq!(error.kind(), Kind::Connect);
    assert!(error.message().contains("no job `calls` runs here"), "{error:?}");
    done("a job that is gone is named");
}
