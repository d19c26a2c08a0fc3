//! A small HTTP server that does what it is told, right or wrong, and remembers what it was asked.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pelton_core::endpoint::Address;
use pelton_core::{BoxFuture, Time};
use pelton_env::{Connection, Env, Listener, Place, Task};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What becomes of a request.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    /// The right answer.
    Answer,
    /// The right answer, later.
    Slow(Duration),
    /// This status with these headers and text.
    Status(u16, &'static str, String),
    /// These bytes as the body of a 200, with this content type.
    Body(&'static str, String),
    /// The head and half of the right answer, and then the connection is closed.
    Half,
    /// The connection is closed without a word.
    Close,
    /// Nothing, until the caller goes away.
    Silent,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Its number, from 0.
    pub(crate) n: usize,
    pub(crate) head: String,
    pub(crate) body: Value,
    /// The texts in it.
    pub(crate) inputs: Vec<String>,
}

#[derive(Default)]
struct Seen {
    requests: usize,
    /// How often each text came.
    asked: BTreeMap<String, usize>,
    /// Texts that are being worked on, or not known to be given up.
    active: BTreeMap<String, usize>,
    twice: Vec<String>,
    /// When each text was last refused, and the shortest time until it came again.
    refused: BTreeMap<String, Time>,
    soonest: Option<Duration>,
}

pub(crate) struct Faulty {
    pub(crate) url: String,
    seen: Arc<Mutex<Seen>>,
    _task: Task,
}

/// What a connection becomes before anything is said: TLS, say.
pub(crate) type Wrap = Arc<dyn Fn(Connection) -> BoxFuture<std::io::Result<Connection>> + Send + Sync>;

type Script = Arc<dyn Fn(&Asked) -> Behaviour + Send + Sync>;

impl Faulty {
    pub(crate) fn start(env: &Env, script: impl Fn(&Asked) -> Behaviour + Send + Sync + 'static) -> Faulty {
        Faulty::wrapped(env, "http", Arc::new(|plain| Box::pin(async { Ok(plain) })), script)
    }

    pub(crate) fn wrapped(
        env: &Env,
        scheme: &str,
        wrap: Wrap,
        script: impl Fn(&Asked) -> Behaviour + Send + Sync + 'static,
    ) -> Faulty {
        let any = Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let listener = env.network.listen(&any).unwrap();
        let Address::Tcp(at) = listener.address() else { panic!("a TCP address") };
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task =
            env.spawn(Place::Network, accept(env.clone(), listener, wrap, Arc::new(script), seen.clone()));
        Faulty { url: format!("{scheme}://localhost:{}", at.port()), seen, _task: task }
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen.lock().unwrap().requests
    }

    /// How often this text came.
    pub(crate) fn asked(&self, text: &str) -> usize {
        self.seen.lock().unwrap().asked.get(text).copied().unwrap_or(0)
    }

    /// The shortest time from a refusal of a text to its coming again.
    pub(crate) fn soonest(&self) -> Option<Duration> {
        self.seen.lock().unwrap().soonest
    }

    /// Fails if a text came while it was worked on.
    pub(crate) fn check_none_twice(&self) {
        let seen = self.seen.lock().unwrap();
        assert!(seen.twice.is_empty(), "sent twice at once: {:?}", seen.twice);
    }
}

async fn accept(
    env: Env,
    mut listener: Box<dyn Listener>,
    wrap: Wrap,
    script: Script,
    seen: Arc<Mutex<Seen>>,
) {
    let mut connections = Vec::new();
    while let Ok(connection) = listener.accept().await {
        let (wrapping, env2) = (wrap(connection), env.clone());
        let (script, seen) = (script.clone(), seen.clone());
        connections.push(env.spawn(Place::Network, async move {
            if let Ok(connection) = wrapping.await {
                let _ = serve(env2, connection, script, seen).await;
            }
        }));
    }
}

async fn serve(
    env: Env,
    mut connection: Connection,
    script: Script,
    seen: Arc<Mutex<Seen>>,
) -> std::io::Result<()> {
    let mut read = Vec::new();
    loop {
        let Some(asked) = request(&mut connection, &mut read).await? else { return Ok(()) };
        let now = env.now();
        let asked = {
            let mut seen = seen.lock().unwrap();
            let asked = Asked { n: seen.requests, ..asked };
            seen.requests += 1;
            for text in &asked.inputs {
                *seen.asked.entry(text.clone()).or_default() += 1;
                let active = seen.active.entry(text.clone()).or_default();
                *active += 1;
                if *active > 1 {
                    seen.twice.push(text.clone());
                }
                if let Some(refused) = seen.refused.remove(text) {
                    let waited = now.since(refused);
                    seen.soonest = Some(seen.soonest.map_or(waited, |s| s.min(waited)));
                }
            }
            asked
        };
        let behaviour = script(&asked);
        let over = |refused: bool| {
            let mut seen = seen.lock().unwrap();
            for text in &asked.inputs {
                if let Some(active) = seen.active.get_mut(text) {
                    *active -= 1;
                }
                if refused {
                    seen.refused.insert(text.clone(), env.now());
                }
            }
        };
        let right = right(&asked);
        let (status, headers, kind, body) = match behaviour {
            Behaviour::Answer => (200, "", "application/json", right),
            Behaviour::Slow(time) => {
                env.sleep(time).await;
                (200, "", "application/json", right)
            }
            Behaviour::Status(status, headers, text) => (status, headers, "text/plain", text),
            Behaviour::Body(kind, body) => (200, "", kind, body),
            Behaviour::Half => {
                over(false);
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    right.len()
                );
                connection.write.write_all(head.as_bytes()).await?;
                connection.write.write_all(&right.as_bytes()[..right.len() / 2]).await?;
                connection.write.flush().await?;
                return Ok(());
            }
            Behaviour::Close => {
                over(false);
                return Ok(());
            }
            Behaviour::Silent => {
                // Until the other side closes: then nobody waits for it.
                while connection.read.read_u8().await.is_ok() {}
                over(false);
                return Ok(());
            }
        };
        over(status == 429);
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        connection.write.write_all(head.as_bytes()).await?;
        connection.write.write_all(body.as_bytes()).await?;
        connection.write.flush().await?;
    }
}

/// The next request, or nothing if the caller has gone.
async fn request(connection: &mut Connection, read: &mut Vec<u8>) -> std::io::Result<Option<Asked>> {
    let head_end = loop {
        if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        let mut buffer = [0; 4096];
        match connection.read.read(&mut buffer).await? {
            0 => return Ok(None),
            n => read.extend_from_slice(&buffer[..n]),
        }
    };
    let head = String::from_utf8_lossy(&read[..head_end]).into_owned();
    if head.starts_with("PRI * HTTP/2.0") {
        // Not spoken here; and what is said to it is nonsense there.
        connection.write.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await?;
        return Ok(None);
    }
    let length =
        head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:").map(str::to_owned));
    let length: usize = length.and_then(|l| l.trim().parse().ok()).expect("requests say their length");
    while read.len() < head_end + length {
        let mut buffer = [0; 4096];
        match connection.read.read(&mut buffer).await? {
            0 => return Ok(None),
            n => read.extend_from_slice(&buffer[..n]),
        }
    }
    let body: Value = serde_json::from_slice(&read[head_end..head_end + length]).expect("requests are JSON");
    read.drain(..head_end + length);
    let inputs = match (body["input"].as_array(), body["messages"].as_array()) {
        (Some(texts), _) => texts.iter().map(|t| t.as_str().unwrap().to_owned()).collect(),
        (None, Some(messages)) => messages
            .iter()
            .filter(|m| m["role"] == "user")
            .map(|m| m["content"].as_str().unwrap().to_owned())
            .collect(),
        (None, None) => Vec::new(),
    };
    Ok(Some(Asked { n: 0, head, body, inputs }))
}

/// What a server without faults says: each text's own number, or the text in capitals.
fn right(asked: &Asked) -> String {
    if asked.body["messages"].is_array() {
        let text = asked.inputs.concat().to_uppercase();
        return json!({ "choices": [{ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" }] }).to_string();
    }
    let number = |text: &str| text.parse::<f64>().unwrap_or(-1.0);
    // Backwards: the index says which is which.
    let data: Vec<Value> = (asked.inputs.iter().enumerate().rev())
        .map(|(i, text)| json!({ "object": "embedding", "index": i, "embedding": [number(text)] }))
        .collect();
    json!({ "object": "list", "data": data, "model": "m" }).to_string()
}
