//! An S3-compatible server that nobody here wrote (moto's), on loopback. It keeps objects in memory.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pelton_env::real::Host;

pub(crate) const SECRET: &str = "hush-hush";

/// A Python that has it: `PELTON_OBJECTS`, or what the set-up made here.
fn python() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("PELTON_OBJECTS") {
        return Some(given.into());
    }
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/python");
    let folders = fs::read_dir(made).ok()?.filter_map(Result::ok).map(|e| e.path());
    let of_objects = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("objects-"));
    folders.filter(of_objects).find(|p| p.join(".complete").exists()).map(|p| p.join("bin/python"))
}

pub(crate) struct Server {
    python: PathBuf,
    child: Child,
    pub(crate) port: u16,
    pub(crate) host: Host,
    folder: tempfile::TempDir,
}

impl Server {
    /// With an empty bucket `bucket`. None, and a line that says so, if the set-up was not run.
    pub(crate) fn start() -> Option<Server> {
        let Some(python) = python() else {
            let _ = writeln!(std::io::stderr(), "SKIPPED: no object store here; run `cargo xtask setup`");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let child = spawn(&python, port, folder.path());
        let mut server = Server { python, child, port, host: Host::new(1, 1).unwrap(), folder };
        server.wait_until_up();
        assert!(server.ask("PUT /bucket").starts_with("HTTP/1.1 200"), "{}", server.log());
        Some(server)
    }

    fn wait_until_up(&mut self) {
        for _ in 0..600 {
            if TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))).is_ok() {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the server ended: {ended:?}\n{}", self.log());
            self.sleep(Duration::from_millis(100));
        }
        panic!("the server does not come up:\n{}", self.log());
    }

    /// One request without a body; the answer with its head.
    pub(crate) fn ask(&self, request: &str) -> String {
        self.send(request, b"")
    }

    /// One request; the answer with its head.
    pub(crate) fn send(&self, request: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        let head = format!("Host: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        stream.write_all(format!("{request} HTTP/1.1\r\n{head}").as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Again, on the same port, with nothing in it.
    pub(crate) fn run(&mut self) {
        self.child = spawn(&self.python, self.port, self.folder.path());
        self.wait_until_up();
    }

    /// Stops it from answering (`STOP`), or lets it go on (`CONT`).
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    pub(crate) fn sleep(&self, d: Duration) {
        self.host.block_on(self.host.env().sleep(d));
    }

    pub(crate) fn endpoint(&self) -> String {
        endpoint(self.port)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

pub(crate) fn endpoint(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn spawn(python: &Path, port: u16, folder: &Path) -> Child {
    let log = File::options().create(true).append(true).open(folder.join("log")).unwrap();
    Command::new(python)
        .args([
            "-B",
            "-c",
            "from moto.server import main; main()",
            "-H",
            "127.0.0.1",
            "-p",
            &port.to_string(),
        ])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            eprintln!("the end of the server's log:\n{}", &log[log.len().saturating_sub(4000)..]);
        }
    }
}
