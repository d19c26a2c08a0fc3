//! Inference servers that nobody here wrote, started for one test and ended with it.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pelton_env::Env;

/// A Python that has them: `PELTON_SERVERS`, or what the set-up made here.
fn python() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("PELTON_SERVERS") {
        return Some(given.into());
    }
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/python");
    let folders = std::fs::read_dir(made).ok()?.filter_map(Result::ok).map(|e| e.path());
    let of_servers = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("servers-"));
    folders.filter(of_servers).find(|p| p.join(".complete").exists()).map(|p| p.join("bin/python"))
}

/// A server's processes. They end when this is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) ports: Vec<u16>,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts `tests/servers/SCRIPT` with so many free ports and these arguments, and waits until it takes connections at all of them.
    /// None, and a line that says so, if the set-up was not run.
    pub(crate) async fn start(env: &Env, script: &str, ports: usize, arguments: &[&str]) -> Option<Server> {
        let Some(python) = python() else {
            // Past the test's captured output: whoever runs the tests shall see it.
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: no inference servers here; run `cargo xtask setup` ({script})"
            );
            return None;
        };
        // All at once, so that they differ.
        let free: Vec<TcpListener> =
            (0..ports).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
        let ports: Vec<u16> = free.iter().map(|l| l.local_addr().unwrap().port()).collect();
        drop(free);
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let output = File::create(&log).unwrap();
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../pelton-remote/tests/servers").join(script);
        let child = Command::new(python)
            .arg("-B")
            .arg(script)
            .args(ports.iter().map(u16::to_string))
            .args(arguments)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stderr(output.try_clone().unwrap())
            .stdout(output)
            // It starts processes of its own; they shall end with it.
            .process_group(0)
            .spawn()
            .unwrap();
        let mut server = Server { child, ports, log, _folder: folder };
        let answering =
            |port: &u16| TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, *port))).is_ok();
        let waiting = async {
            while !server.ports.iter().all(answering) {
                let ended = server.child.try_wait().unwrap();
                assert!(ended.is_none(), "the server ended: {ended:?}\n{}", server.log());
                env.sleep(Duration::from_millis(50)).await;
            }
        };
        let up = env.within(Duration::from_secs(120), waiting).await.is_some();
        assert!(up, "the server does not come up:\n{}", server.log());
        Some(server)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
    }
}
