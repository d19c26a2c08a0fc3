//! A plain HTTP server on loopback, with ranges and ETags, that fails when it is told to.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pelton_env::real::Host;
use pelton_env::{Env, Place, Task};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What an object is, and what the server says of it.
#[derive(Clone)]
pub(crate) struct Page {
    pub(crate) content: Vec<u8>,
    /// With its quotes.
    pub(crate) etag: Option<String>,
    pub(crate) modified: Option<&'static str>,
}

/// How the next answer goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Status(u16),
    /// Come again after so many seconds.
    Later(u64),
    /// The connection ends after so many bytes of content.
    Cut(usize),
    /// Nothing comes.
    Hang,
    /// Elsewhere.
    Redirect(String),
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) pages: BTreeMap<String, Page>,
    pub(crate) faults: VecDeque<Fault>,
    /// Path and range of each request.
    pub(crate) requests: Vec<(String, Option<String>)>,
    pub(crate) no_ranges: bool,
    /// Before each answer.
    pub(crate) slow: Duration,
    now: usize,
    /// Most requests that were answered side by side.
    pub(crate) most: usize,
}

pub(crate) struct Web {
    pub(crate) port: u16,
    state: Arc<Mutex<State>>,
    _task: Task,
    _host: Host,
}

impl Web {
    pub(crate) fn start() -> Web {
        let host = Host::new(1, 1).unwrap();
        let listener = host.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let (env, shared) = (host.env().clone(), state.clone());
        let task = host.env().spawn(Place::Network, async move {
            while let Ok((client, _)) = listener.accept().await {
                let (own, state) = (env.clone(), shared.clone());
                env.spawn(Place::Network, async move { _ = serve(client, &own, &state).await }).detach();
            }
        });
        Web { port, state, _task: task, _host: host }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn put(&self, path: &str, content: impl Into<Vec<u8>>, etag: &str) {
        let page = Page { content: content.into(), etag: Some(format!("\"{etag}\"")), modified: None };
        self.state().pages.insert(path.to_owned(), page);
    }

    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.extend(faults);
    }

    /// Requests since it was asked last.
    pub(crate) fn requests(&self) -> Vec<(String, Option<String>)> {
        std::mem::take(&mut self.state().requests)
    }
}

async fn serve(mut client: TcpStream, env: &Env, state: &Mutex<State>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16_384 {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let head_only = head.starts_with("HEAD ");
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|l| l.split_once(": "));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.to_owned())
    };
    let range = header("range");
    let (page, fault, no_ranges, slow) = {
        let mut state = state.lock().unwrap();
        state.requests.push((path.clone(), range.clone()));
        state.now += 1;
        state.most = state.most.max(state.now);
        (state.pages.get(&path).cloned(), state.faults.pop_front(), state.no_ranges, state.slow)
    };
    env.sleep(slow).await;
    state.lock().unwrap().now -= 1;
    let mut cut = usize::MAX;
    let plain = |status: u16, more: &str, body: &str| {
        format!(
            "HTTP/1.1 {status} so\r\n{more}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    let refused = match fault {
        Some(Fault::Status(status)) => Some(plain(status, "", "hush-hush is in what servers say")),
        Some(Fault::Later(seconds)) => Some(plain(503, &format!("Retry-After: {seconds}\r\n"), "")),
        Some(Fault::Redirect(to)) => Some(plain(302, &format!("Location: {to}\r\n"), "")),
        Some(Fault::Hang) => {
            env.sleep(Duration::from_secs(60)).await;
            return Ok(());
        }
        Some(Fault::Cut(bytes)) => {
            cut = bytes;
            None
        }
        None => None,
    };
    let Some(page) = page.filter(|_| refused.is_none()) else {
        let answer = refused.unwrap_or_else(|| plain(404, "", "none"));
        client.write_all(answer.as_bytes()).await?;
        return client.shutdown().await;
    };
    let size = page.content.len();
    let span = range.filter(|_| !no_ranges).map(|range| {
        let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
        let to = to.parse().map_or(size, |to: usize| (to + 1).min(size));
        (from.parse::<usize>().unwrap(), to)
    });
    let mut headers = String::new();
    if let Some(etag) = &page.etag {
        headers += &format!("ETag: {etag}\r\n");
    }
    if let Some(modified) = page.modified {
        headers += &format!("Last-Modified: {modified}\r\n");
    }
    let (status, content) = match span {
        Some((from, _)) if from >= size => {
            client.write_all(plain(416, "", "").as_bytes()).await?;
            return client.shutdown().await;
        }
        Some((from, to)) => {
            headers += &format!("Content-Range: bytes {from}-{}/{size}\r\n", to - 1);
            (206, &page.content[from..to])
        }
        None => (200, &page.content[..]),
    };
    let length = content.len();
    let head =
        format!("HTTP/1.1 {status} OK\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    client.write_all(head.as_bytes()).await?;
    if !head_only {
        client.write_all(&content[..length.min(cut)]).await?;
    }
    client.shutdown().await
}
