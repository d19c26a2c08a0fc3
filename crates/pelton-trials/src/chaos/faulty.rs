//! A server that speaks OpenAI's HTTP interface and fails in every way: it refuses, answers with rubbish, with half an answer, or not at
//! all. What it answers depends on the question alone, so that a trial can tell whether each row got its own answer.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pelton::env::{Address, Connection, Env, Listener, Place, Task};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::http::{Message, Messages, response};

/// How long a good answer takes, from and to.
const TAKES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(15));
/// How many questions are answered at a time.
const SLOTS: usize = 4;
/// Answers a second that callers get of a few such servers together, as tried: with every tenth request failing they never open wide.
pub(crate) const RATE: f64 = 400.0;
/// How long a late one takes.
const LATE: Duration = Duration::from_millis(400);
/// How long a caller is kept waiting for nothing; longer than it waits.
const SILENCE: Duration = Duration::from_secs(5);
/// How long the port may be taken after its listener is gone.
const REOPEN: Duration = Duration::from_secs(10);

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    Answered,
    /// A right answer that comes late.
    Late,
    /// 429, now and then with the time after which to come again.
    TooMany,
    /// 503.
    Unavailable,
    /// Bytes that are no HTTP.
    Noise,
    /// 200 with a body that is no JSON.
    NoJson,
    /// 200 with JSON that is no answer.
    NoAnswer,
    /// An answer that ends in the middle.
    Half,
    /// The connection is closed without a word.
    HangsUp,
    /// Not a word for a long time, and then the end of the connection.
    Silence,
}

pub(crate) const FAULTS: [Fault; 9] = [
    Fault::Late,
    Fault::TooMany,
    Fault::Unavailable,
    Fault::Noise,
    Fault::NoJson,
    Fault::NoAnswer,
    Fault::Half,
    Fault::HangsUp,
    Fault::Silence,
];

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Fault::Answered => "answered",
            Fault::Late => "late",
            Fault::TooMany => "429",
            Fault::Unavailable => "503",
            Fault::Noise => "noise",
            Fault::NoJson => "no-json",
            Fault::NoAnswer => "no-answer",
            Fault::Half => "half",
            Fault::HangsUp => "hung-up",
            Fault::Silence => "silence",
        }
    }
}

/// Draws what becomes of requests.
struct Dice {
    rng: StdRng,
    /// The part of requests that do not just get their answer.
    share: f64,
    count: BTreeMap<Fault, u64>,
}

impl Dice {
    fn draw(&mut self) -> Fault {
        let faulty = self.rng.random_bool(self.share);
        let fault = if faulty { FAULTS[self.rng.random_range(0..FAULTS.len())] } else { Fault::Answered };
        *self.count.entry(fault).or_default() += 1;
        fault
    }

    fn takes(&mut self) -> Duration {
        TAKES.0 + (TAKES.1 - TAKES.0).mul_f64(self.rng.random_range(0.0..1.0))
    }
}

/// What is sent for a question, how long after it, and whether the connection goes on.
struct Reply {
    after: Duration,
    bytes: Vec<u8>,
    keeps: bool,
}

/// Everything that goes wrong, and what does not, is here.
fn reply(dice: &mut Dice, question: &Message) -> Reply {
    let after = dice.takes();
    let (status, body) = answer(question);
    let right = response(status, &["content-type: application/json".to_owned()], body.to_string().as_bytes());
    let with = |bytes: Vec<u8>| Reply { after, bytes, keeps: true };
    let ends = |after, bytes: Vec<u8>| Reply { after, bytes, keeps: false };
    let refusal = |status: &str, headers: &[String]| {
        let body = json!({ "error": { "message": "scripted to refuse", "type": "server_error" } });
        response(status, headers, body.to_string().as_bytes())
    };
    match dice.draw() {
        Fault::Answered => with(right),
        Fault::Late => Reply { after: LATE, bytes: right, keeps: true },
        Fault::TooMany => {
            let says_when = dice.rng.random_bool(0.1);
            let headers = if says_when { vec!["retry-after: 1".to_owned()] } else { Vec::new() };
            with(refusal("429 Too Many Requests", &headers))
        }
        Fault::Unavailable => with(refusal("503 Service Unavailable", &[])),
        Fault::Noise => ends(after, (0..64).map(|_| dice.rng.random::<u8>()).collect()),
        Fault::NoJson => with(response("200 OK", &[], b"<html>Welcome!</html>")),
        Fault::NoAnswer => with(response("200 OK", &[], json!({ "ok": true }).to_string().as_bytes())),
        Fault::Half => ends(after, right[..right.len() - dice.rng.random_range(1..40)].to_vec()),
        Fault::HangsUp => ends(Duration::ZERO, Vec::new()),
        Fault::Silence => ends(SILENCE, Vec::new()),
    }
}

/// The right answer to a question, or why it is none.
fn answer(question: &Message) -> (&'static str, Value) {
    let wrong = |what: &str| {
        ("400 Bad Request", json!({ "error": { "message": what, "type": "invalid_request_error" } }))
    };
    let Ok(body) = serde_json::from_slice::<Value>(&question.body) else {
        return wrong("the body is no JSON");
    };
    match question.first.get(1).map(|path| path.as_str()) {
        Some(path) if path.ends_with("/chat/completions") => {
            let last = body["messages"].as_array().and_then(|m| m.last()).and_then(|m| m["content"].as_str());
            let Some(prompt) = last else { return wrong("no messages") };
            let message = json!({ "role": "assistant", "content": words(prompt) });
            let choice = json!({ "index": 0, "message": message, "finish_reason": "stop" });
            let usage = json!({ "prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 10 });
            (
                "200 OK",
                json!({ "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage }),
            )
        }
        Some(path) if path.ends_with("/embeddings") => {
            let Some(texts) = body["input"].as_array() else { return wrong("`input` is no list") };
            let vector = |text: &Value| {
                let score = score(text.as_str().unwrap_or_default());
                (0..4).map(|i| ((score >> (16 * i)) & 0xffff) as f32 / 65536.0).collect::<Vec<_>>()
            };
            let data = texts.iter().enumerate();
            let data: Vec<Value> = data
                .map(|(i, text)| json!({ "object": "embedding", "index": i, "embedding": vector(text) }))
                .collect();
            ("200 OK", json!({ "object": "list", "model": body["model"], "data": data }))
        }
        _ => (
            "404 Not Found",
            json!({ "error": { "message": "no such path", "type": "invalid_request_error" } }),
        ),
    }
}

/// What the model says to a prompt.
pub(crate) fn words(prompt: &str) -> String {
    format!("score {}", score(prompt))
}

/// A number made of the text (64-bit FNV-1a).
pub(crate) fn score(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The server, within this process.
pub(crate) struct Faulty {
    env: Env,
    address: SocketAddr,
    dice: Arc<Mutex<Dice>>,
    slots: Arc<Semaphore>,
    serving: Option<Task>,
}

impl Faulty {
    pub(crate) fn begin(env: &Env, seed: u64, share: f64) -> Result<Faulty> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = env.network.listen(&Address::Tcp(any))?;
        let Address::Tcp(address) = listener.address() else { bail!("a port was asked for") };
        let dice = Dice { rng: StdRng::seed_from_u64(seed), share, count: BTreeMap::new() };
        let mut server = Faulty {
            env: env.clone(),
            address,
            dice: Arc::new(Mutex::new(dice)),
            slots: Arc::new(Semaphore::new(SLOTS)),
            serving: None,
        };
        server.serve(listener);
        Ok(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How often each thing happened.
    pub(crate) fn count(&self) -> BTreeMap<Fault, u64> {
        lock(&self.dice).count.clone()
    }

    /// Ends all connections, and refuses new ones.
    pub(crate) fn close(&mut self) {
        self.serving = None;
    }

    /// Takes connections again, at the same port.
    pub(crate) async fn open(&mut self) -> Result<()> {
        let until = self.env.now() + REOPEN;
        let listener = loop {
            match self.env.network.listen(&Address::Tcp(self.address)) {
                Ok(listener) => break listener,
                Err(e) if self.env.now() >= until => return Err(e.into()),
                Err(_) => self.env.sleep(Duration::from_millis(10)).await,
            }
        };
        self.serve(listener);
        Ok(())
    }

    fn serve(&mut self, mut listener: Box<dyn Listener>) {
        let (env, dice, slots) = (self.env.clone(), self.dice.clone(), self.slots.clone());
        let task = async move {
            // They end with this task.
            let mut connections = FuturesUnordered::new();
            loop {
                tokio::select! {
                    taken = listener.accept() => match taken {
                        Ok(connection) => connections.push(answer_all(env.clone(), dice.clone(), slots.clone(), connection)),
                        Err(_) => env.sleep(Duration::from_millis(10)).await,
                    },
                    Some(()) = connections.next(), if !connections.is_empty() => {}
                }
            }
        };
        self.serving = Some(self.env.spawn(Place::Network, task));
    }
}

fn lock(dice: &Mutex<Dice>) -> MutexGuard<'_, Dice> {
    dice.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection, until either side ends it.
async fn answer_all(env: Env, dice: Arc<Mutex<Dice>>, slots: Arc<Semaphore>, connection: Connection) {
    let mut messages = Messages::new(connection);
    while let Ok(Some(question)) = messages.receive().await {
        let reply = reply(&mut lock(&dice), &question);
        // Whoever is late or says nothing does not keep the others from it.
        let slot = if reply.after <= TAKES.1 { slots.acquire().await.ok() } else { None };
        env.sleep(reply.after).await;
        drop(slot);
        if messages.send(&reply.bytes).await.is_err() || !reply.keeps {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use pelton::env::real::Host;

    use super::*;
    use crate::http::post;

    fn chat(prompt: &str) -> Vec<u8> {
        let body = json!({ "model": "m", "messages": [{ "role": "user", "content": prompt }] });
        post("/v1/chat/completions", "application/json", body.to_string().as_bytes())
    }

    /// What comes back of one question on a connection of its own, in one word.
    async fn asked(env: &Env, server: &Faulty, prompt: &str) -> String {
        let Ok(connection) = env.network.connect(&Address::Tcp(server.address)).await else {
            return "refused".into();
        };
        let mut messages = Messages::new(connection);
        if messages.send(&chat(prompt)).await.is_err() {
            return "broken".into();
        }
        match messages.receive().await {
            Err(_) => "broken".into(),
            Ok(None) => "nothing".into(),
            Ok(Some(reply)) => {
                let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
                let content = body["choices"][0]["message"]["content"].as_str();
                let status = reply.first[1].clone();
                content.map_or(status, str::to_owned)
            }
        }
    }

    #[test]
    fn without_faults_each_question_gets_its_answer() {
        let host = Host::new(1, 1).unwrap();
        host.block_on(async {
            let mut server = Faulty::begin(host.env(), 1, 0.0).unwrap();
            assert_eq!(asked(host.env(), &server, "one").await, words("one"));
            assert_ne!(words("one"), words("two"));
            server.close();
            assert_eq!(asked(host.env(), &server, "one").await, "refused");
            server.open().await.unwrap();
            assert_eq!(asked(host.env(), &server, "two").await, words("two"));
            assert_eq!(server.count(), [(Fault::Answered, 2)].into());
        });
    }

    #[test]
    fn every_fault_occurs_and_none_gives_another_answer() {
        let host = Host::new(1, 1).unwrap();
        host.block_on(async {
            let server = Faulty::begin(host.env(), 7, 1.0).unwrap();
            let asking = (0..200).map(|i| {
                let (env, server) = (host.env(), &server);
                async move {
                    let prompt = format!("row {i}");
                    let said = asked(env, server, &prompt).await;
                    assert!(!said.starts_with("score") || said == words(&prompt), "{said}");
                    said
                }
            });
            let said: std::collections::BTreeSet<String> = futures::future::join_all(asking)
                .await
                .into_iter()
                .filter(|s| !s.starts_with("score"))
                .collect();
            let expected = ["200", "429", "503", "broken", "nothing"];
            assert!(expected.iter().all(|e| said.contains(*e)), "{said:?}");
            assert_eq!(server.count().into_keys().collect::<Vec<_>>(), FAULTS);
        });
    }

    #[test]
    fn embeddings_are_made_of_their_texts() {
        let question = |texts: &[&str]| Message {
            first: ["POST", "/v1/embeddings", "HTTP/1.1"].map(str::to_owned).to_vec(),
            body: json!({ "model": "m", "input": texts }).to_string().into_bytes(),
            ..Message::default()
        };
        let (status, both) = answer(&question(&["a", "b"]));
        let (_, b) = answer(&question(&["b"]));
        assert_eq!((status, &both["data"][1]["embedding"]), ("200 OK", &b["data"][0]["embedding"]));
        assert_eq!(answer(&Message::default()).0, "400 Bad Request");
    }
}
